//! Translating ICMP errors about packets of a flow, such as "fragmentation needed" or "port
//! unreachable".
//!
//! The hooks call this for each ICMP error. An error has no flow of its own. It quotes the packet
//! that it is about and goes to the sender of that packet, as a reply would. So the flow of the
//! replies to the quoted packet says how to translate both headers:
//!
//! ```text
//! task T sends              T:5000 -> X:443    leaves node N as N:61234 -> X:443
//! error arrives at N        R -> N             quotes N:61234 -> X:443
//! flow of the replies       X:443 -> N:61234   becomes X:443 -> T:5000
//! error is forwarded to T   R -> T             quotes T:5000 -> X:443
//! ```
//!
//! Errors that weft itself sends are built in `reply::icmp`.

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

/// Forwards an error from the outside, at the node that it reaches. Passes it to the node's stack
/// if it is about no flow.
#[inline(always)]
pub fn forward_from_link(skb: Skb, s: &mut Scratch) -> Verdict {
    translate_by_flow(skb, s, zone::HOST, true).unwrap_or(PASS)
}

/// Forwards an error from the outside, at the node of the backend. `encrypted` says whether the
/// ingress node sent it encrypted.
#[inline(always)]
pub fn forward_from_client(skb: Skb, s: &mut Scratch, encrypted: bool) -> Verdict {
    translate_by_flow(skb, s, zone::REQUEST, encrypted).unwrap_or_else(|| drop(DropReason::NoFlow))
}

/// Forwards an error from a backend, at the ingress node. The backend's node has already translated
/// it. `encrypted` says whether that node sent it encrypted.
#[inline(always)]
pub fn forward_from_backend(skb: Skb, s: &mut Scratch, encrypted: bool) -> Verdict {
    if parse_quoted_packet(skb, &s.packet, &mut s.quoted).is_err() {
        return drop(DropReason::Malformed);
    }
    s.quoted.write_key(zone::HOST, &mut s.key);
    // SAFETY: the entry is read at once.
    if let Some(flow) = unsafe { FLOWS.get(&s.key) }
        && flow.action == Action::Request as u8
    {
        return if flow.is_encrypted() && !encrypted {
            drop(DropReason::Unencrypted)
        } else {
            send::to_client(skb, flow)
        };
    }
    translate_by_flow(skb, s, zone::REPLY, encrypted).unwrap_or_else(|| drop(DropReason::NoFlow))
}

/// Forwards an error from a task of network `net`. `None` if it is about no flow. If another node
/// sent the error, the caller has checked that it was encrypted if it had to be.
#[inline(always)]
pub fn forward_from_task(skb: Skb, s: &mut Scratch, net: u32) -> Option<Verdict> {
    translate_by_flow(skb, s, net, true)
}

/// Translates and sends an error that is about a flow of `zone`. `None` if there is no such flow.
/// `encrypted` is false if another node sent the error in clear: then an error about a flow that
/// must be encrypted is dropped.
#[inline(always)]
fn translate_by_flow(skb: Skb, s: &mut Scratch, zone: u32, encrypted: bool) -> Option<Verdict> {
    if parse_quoted_packet(skb, &s.packet, &mut s.quoted).is_err() {
        return Some(drop(DropReason::Malformed));
    }
    // An error goes to the sender of the packet that it quotes.
    if s.packet.dst != s.quoted.src {
        return None;
    }
    s.quoted.write_reply_key(zone, &mut s.key);
    // SAFETY: the entry is read at once. If another CPU replaces it meanwhile, the error is at
    // worst translated for another flow, and its receiver ignores it.
    let flow = unsafe { FLOWS.get(&s.key) }?;
    if flow.is_encrypted() && !encrypted {
        return Some(drop(DropReason::Unencrypted));
    }
    if translate(skb, &s.packet, &s.quoted, flow).is_err() {
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

/// Parses the packet that an error quotes: its IP header and the first eight bytes after it.
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

/// Translates an error and the packet that it quotes. `flow` is that of packets in the direction of
/// the error: `flow.dst` becomes the destination of the error, and the source of the quoted packet,
/// which went in the other direction.
#[inline(always)]
fn translate(skb: Skb, packet: &Packet, quoted: &Packet, flow: &Flow) -> Result<(), HelperError> {
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

/// Replaces an address in the quoted packet.
#[inline(always)]
fn rewrite_quoted_address(skb: Skb, packet: &Packet, at: u32, from: &Addr, to: &Addr) -> Result<(), HelperError> {
    if from == to {
        return Ok(());
    }
    let checksum = packet.l4 + 2;
    if packet.v4 {
        // The checksum in the quoted IP header balances the change, so the checksum of the error
        // stays valid.
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

/// Replaces a port in the quoted packet. The transport checksum of the quoted packet stays as it
/// is, because hosts do not verify it.
#[inline(always)]
fn rewrite_quoted_port(skb: Skb, packet: &Packet, at: u32, from: u16, to: u16) -> Result<(), HelperError> {
    if from == to {
        return Ok(());
    }
    skb.update_l4_checksum(packet.l4 + 2, from, to, false)?;
    skb.store(at, &to)
}
