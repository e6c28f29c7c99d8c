//! ICMP errors about translated flows. An error quotes the packet that it is about, so its flow is the one of the
//! quoted packet's answers; outside and inside are translated as that flow says.

use weft_ebpf_common::{Action, Addr, DropReason, Flow, zone};

use super::{apply, pick};
use crate::{
    maps::FLOWS,
    packet::{
        parse::{ICMP, ICMP_V6, Malformed, Packet, TCP, UDP, fragment, parse_icmp, shape},
        rewrite::address,
        send,
        skb::{Refused, Skb},
    },
    scratch::Scratch,
    verdict::{PASS, Verdict, drop},
};

/// From the outside, at the node that it reaches.
#[inline(always)]
pub fn from_link(skb: Skb, s: &mut Scratch) -> Verdict {
    about_flow(skb, s, zone::HOST).unwrap_or(PASS)
}

/// From the outside, at the node of the backend.
#[inline(always)]
pub fn from_client(skb: Skb, s: &mut Scratch) -> Verdict {
    about_flow(skb, s, zone::REQUEST).unwrap_or_else(|| drop(DropReason::NoFlow))
}

/// From a backend, at the node where the request came in. It is translated already.
#[inline(always)]
pub fn from_backend(skb: Skb, s: &mut Scratch) -> Verdict {
    if quote(skb, &s.packet, &mut s.quote).is_err() {
        return drop(DropReason::Malformed);
    }
    s.quote.key(zone::HOST, &mut s.key);
    // SAFETY: read at once.
    if let Some(flow) = unsafe { FLOWS.get(&s.key) }
        && flow.action == Action::Request as u8
    {
        return send::to_client(skb, flow);
    }
    about_flow(skb, s, zone::REPLY).unwrap_or_else(|| drop(DropReason::NoFlow))
}

/// From a task of the network. `None` where it is about no flow that weft translates.
#[inline(always)]
pub fn from_task(skb: Skb, s: &mut Scratch, net: u32) -> Option<Verdict> {
    about_flow(skb, s, net)
}

#[inline(always)]
fn about_flow(skb: Skb, s: &mut Scratch, zone: u32) -> Option<Verdict> {
    if quote(skb, &s.packet, &mut s.quote).is_err() {
        return Some(drop(DropReason::Malformed));
    }
    // Whoever speaks of a packet speaks to its sender.
    if s.packet.dst != s.quote.src {
        return None;
    }
    s.quote.reverse_key(zone, &mut s.key);
    // SAFETY: read at once; at worst the error is translated as another flow's, and nobody takes it.
    let flow = unsafe { FLOWS.get(&s.key) }?;
    if translate(skb, &s.packet, &s.quote, flow).is_err() {
        return Some(drop(DropReason::Helper));
    }
    if flow.backend == 0 {
        return Some(apply::on(skb, flow, None));
    }
    Some(match pick::backend(flow.backend) {
        Some(backend) => apply::on(skb, flow, Some(backend)),
        None => drop(DropReason::BackendDead),
    })
}

/// Parses the packet that an error quotes: its IP header and at least eight bytes more.
#[inline(always)]
fn quote(skb: Skb, packet: &Packet, quote: &mut Packet) -> Result<(), Malformed> {
    let at = packet.l4 + 8;
    quote.v4 = packet.v4;
    if packet.v4 {
        let mut header = [0_u32; 5];
        skb.load(at, &mut header)?;
        quote.src = Addr::from_v4_be(header[3]);
        quote.dst = Addr::from_v4_be(header[4]);
        quote.proto = (u32::from_be(header[2]) >> 16) as u8;
        quote.l4 = at + ((u32::from_be(header[0]) >> 22) & 0x3c);
    } else {
        let mut header = [0_u32; 10];
        skb.load(at, &mut header)?;
        quote.src = Addr { words_be: [header[2], header[3], header[4], header[5]] };
        quote.dst = Addr { words_be: [header[6], header[7], header[8], header[9]] };
        quote.proto = (u32::from_be(header[1]) >> 8) as u8;
        quote.l4 = at + 40;
    }
    let mut l4 = [0_u16; 4];
    skb.load(quote.l4, &mut l4)?;
    quote.sport_be = 0;
    quote.dport_be = 0;
    quote.shape = shape::OTHER;
    quote.fragment = fragment::WHOLE;
    match quote.proto {
        TCP | UDP => {
            quote.shape = shape::PORTS;
            quote.sport_be = l4[0];
            quote.dport_be = l4[1];
        }
        ICMP | ICMP_V6 => {
            quote.icmp_type = (u16::from_be(l4[0]) >> 8) as u8;
            parse_icmp(quote, l4[2]);
        }
        _ => {}
    }
    Ok(())
}

/// `flow` says what becomes of packets in the error's direction: its destination is who hears the error, and in the
/// quote, which was under way in the other direction, the sender.
#[inline(always)]
fn translate(skb: Skb, packet: &Packet, quote: &Packet, flow: &Flow) -> Result<(), Refused> {
    if packet.src == quote.dst && packet.src != flow.src {
        address(skb, packet, true, &packet.src, &flow.src)?;
    }
    if packet.dst != flow.dst {
        address(skb, packet, false, &packet.dst, &flow.dst)?;
    }
    let at = packet.l4 + 8;
    let (src_at, dst_at) = if packet.v4 { (at + 12, at + 16) } else { (at + 8, at + 24) };
    quoted_address(skb, packet, src_at, &quote.src, &flow.dst)?;
    quoted_address(skb, packet, dst_at, &quote.dst, &flow.src)?;
    let (sport_at, dport_at) =
        if quote.shape == shape::PORTS { (quote.l4, quote.l4 + 2) } else { (quote.l4 + 4, quote.l4 + 4) };
    quoted_port(skb, packet, sport_at, quote.sport_be, flow.dport_be)?;
    quoted_port(skb, packet, dport_at, quote.dport_be, flow.sport_be)
}

#[inline(always)]
fn quoted_address(skb: Skb, packet: &Packet, at: u32, from: &Addr, to: &Addr) -> Result<(), Refused> {
    if from == to {
        return Ok(());
    }
    let checksum = packet.l4 + 2;
    if packet.v4 {
        // The quoted header's own checksum balances the change, so the error's stays.
        skb.fix_l3(packet.l4 + 8 + 10, from.v4_be(), to.v4_be(), 4)?;
        return skb.store(at, &to.v4_be());
    }
    let (old, new) = (&from.words_be, &to.words_be);
    skb.fix_l4_word(checksum, old[0], new[0])?;
    skb.fix_l4_word(checksum, old[1], new[1])?;
    skb.fix_l4_word(checksum, old[2], new[2])?;
    skb.fix_l4_word(checksum, old[3], new[3])?;
    skb.store(at, new)
}

/// The quoted transport checksum is left: hosts do not look at it.
#[inline(always)]
fn quoted_port(skb: Skb, packet: &Packet, at: u32, from: u16, to: u16) -> Result<(), Refused> {
    if from == to {
        return Ok(());
    }
    skb.fix_l4(packet.l4 + 2, from, to, false)?;
    skb.store(at, &to)
}
