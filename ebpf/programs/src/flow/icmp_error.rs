//! ICMP errors about translated flows. An error quotes the packet that it is about, so its flow is the one of the
//! quoted packet's answers; outside and inside are translated as that flow says.

use weft_ebpf_common::{Action, Addr, DropReason, Flow, zone};

use super::{apply, pick};
use crate::{
    maps::FLOWS,
    packet::{
        parse::{ICMP, ICMP_V6, Malformed, Packet, TCP, UDP, fragment, l4_kind, parse_icmp},
        rewrite::rewrite_address,
        send,
        skb::{HelperError, Skb},
    },
    scratch::Scratch,
    verdict::{PASS, Verdict, drop},
};

/// From the outside, at the node that it reaches.
#[inline(always)]
pub fn forward_from_link(skb: Skb, s: &mut Scratch) -> Verdict {
    translate_by_flow(skb, s, zone::HOST).unwrap_or(PASS)
}

/// From the outside, at the node of the backend.
#[inline(always)]
pub fn forward_from_client(skb: Skb, s: &mut Scratch) -> Verdict {
    translate_by_flow(skb, s, zone::REQUEST).unwrap_or_else(|| drop(DropReason::NoFlow))
}

/// From a backend, at the node where the request came in. It is translated already.
#[inline(always)]
pub fn forward_from_backend(skb: Skb, s: &mut Scratch) -> Verdict {
    if parse_quoted_packet(skb, &s.packet, &mut s.quoted).is_err() {
        return drop(DropReason::Malformed);
    }
    s.quoted.write_key(zone::HOST, &mut s.key);
    // SAFETY: read at once.
    if let Some(flow) = unsafe { FLOWS.get(&s.key) }
        && flow.action == Action::Request as u8
    {
        return send::to_client(skb, flow);
    }
    translate_by_flow(skb, s, zone::REPLY).unwrap_or_else(|| drop(DropReason::NoFlow))
}

/// From a task of the network. `None` where it is about no flow that weft translates.
#[inline(always)]
pub fn forward_from_task(skb: Skb, s: &mut Scratch, net: u32) -> Option<Verdict> {
    translate_by_flow(skb, s, net)
}

#[inline(always)]
fn translate_by_flow(skb: Skb, s: &mut Scratch, zone: u32) -> Option<Verdict> {
    if parse_quoted_packet(skb, &s.packet, &mut s.quoted).is_err() {
        return Some(drop(DropReason::Malformed));
    }
    // Whoever speaks of a packet speaks to its sender.
    if s.packet.dst != s.quoted.src {
        return None;
    }
    s.quoted.write_reply_key(zone, &mut s.key);
    // SAFETY: read at once; at worst the error is translated as another flow's, and nobody takes it.
    let flow = unsafe { FLOWS.get(&s.key) }?;
    if translate_error(skb, &s.packet, &s.quoted, flow).is_err() {
        return Some(drop(DropReason::Helper));
    }
    if flow.backend == 0 {
        return Some(apply::send(skb, flow, None));
    }
    Some(match pick::find_backend(flow.backend) {
        Some(backend) => apply::send(skb, flow, Some(backend)),
        None => drop(DropReason::BackendDead),
    })
}

/// Parses the packet that an error quotes: its IP header and at least eight bytes more.
#[inline(always)]
fn parse_quoted_packet(skb: Skb, packet: &Packet, quoted: &mut Packet) -> Result<(), Malformed> {
    let at = packet.l4 + 8;
    quoted.v4 = packet.v4;
    if packet.v4 {
        let mut header = [0_u32; 5];
        skb.load(at, &mut header)?;
        quoted.src = Addr::from_v4_be(header[3]);
        quoted.dst = Addr::from_v4_be(header[4]);
        quoted.proto = (u32::from_be(header[2]) >> 16) as u8;
        quoted.l4 = at + ((u32::from_be(header[0]) >> 22) & 0x3c);
    } else {
        let mut header = [0_u32; 10];
        skb.load(at, &mut header)?;
        quoted.src = Addr { words_be: [header[2], header[3], header[4], header[5]] };
        quoted.dst = Addr { words_be: [header[6], header[7], header[8], header[9]] };
        quoted.proto = (u32::from_be(header[1]) >> 8) as u8;
        quoted.l4 = at + 40;
    }
    let mut l4 = [0_u16; 4];
    skb.load(quoted.l4, &mut l4)?;
    quoted.sport_be = 0;
    quoted.dport_be = 0;
    quoted.l4_kind = l4_kind::OTHER;
    quoted.fragment = fragment::WHOLE;
    match quoted.proto {
        TCP | UDP => {
            quoted.l4_kind = l4_kind::PORTS;
            quoted.sport_be = l4[0];
            quoted.dport_be = l4[1];
        }
        ICMP | ICMP_V6 => {
            quoted.icmp_type = (u16::from_be(l4[0]) >> 8) as u8;
            parse_icmp(quoted, l4[2]);
        }
        _ => {}
    }
    Ok(())
}

/// `flow` says what becomes of packets in the error's direction: its destination is who hears the error, and in the
/// quote, which was under way in the other direction, the sender.
#[inline(always)]
fn translate_error(skb: Skb, packet: &Packet, quoted: &Packet, flow: &Flow) -> Result<(), HelperError> {
    if packet.src == quoted.dst && packet.src != flow.src {
        rewrite_address(skb, packet, true, &packet.src, &flow.src)?;
    }
    if packet.dst != flow.dst {
        rewrite_address(skb, packet, false, &packet.dst, &flow.dst)?;
    }
    let at = packet.l4 + 8;
    let (src_at, dst_at) = if packet.v4 { (at + 12, at + 16) } else { (at + 8, at + 24) };
    rewrite_quoted_address(skb, packet, src_at, &quoted.src, &flow.dst)?;
    rewrite_quoted_address(skb, packet, dst_at, &quoted.dst, &flow.src)?;
    let (sport_at, dport_at) =
        if quoted.l4_kind == l4_kind::PORTS { (quoted.l4, quoted.l4 + 2) } else { (quoted.l4 + 4, quoted.l4 + 4) };
    rewrite_quoted_port(skb, packet, sport_at, quoted.sport_be, flow.dport_be)?;
    rewrite_quoted_port(skb, packet, dport_at, quoted.dport_be, flow.sport_be)
}

#[inline(always)]
fn rewrite_quoted_address(skb: Skb, packet: &Packet, at: u32, from: &Addr, to: &Addr) -> Result<(), HelperError> {
    if from == to {
        return Ok(());
    }
    let checksum = packet.l4 + 2;
    if packet.v4 {
        // The quoted header's own checksum balances the change, so the error's stays.
        skb.update_l3_checksum(packet.l4 + 8 + 10, from.v4_be(), to.v4_be(), 4)?;
        return skb.store(at, &to.v4_be());
    }
    let (old, new) = (&from.words_be, &to.words_be);
    skb.update_l4_checksum_word(checksum, old[0], new[0])?;
    skb.update_l4_checksum_word(checksum, old[1], new[1])?;
    skb.update_l4_checksum_word(checksum, old[2], new[2])?;
    skb.update_l4_checksum_word(checksum, old[3], new[3])?;
    skb.store(at, new)
}

/// The quoted transport checksum is left: hosts do not look at it.
#[inline(always)]
fn rewrite_quoted_port(skb: Skb, packet: &Packet, at: u32, from: u16, to: u16) -> Result<(), HelperError> {
    if from == to {
        return Ok(());
    }
    skb.update_l4_checksum(packet.l4 + 2, from, to, false)?;
    skb.store(at, &to)
}
