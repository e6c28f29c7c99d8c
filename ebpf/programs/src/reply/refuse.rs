//! Refusals that the other end hears: TCP gets a reset, UDP a port-unreachable. Silence would make it wait.

use weft_ebpf_common::{Addr, DropReason};

use super::icmp;
use crate::{
    packet::{
        checksum,
        parse::{Packet, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, V4_LEN, V6_LEN, fragment},
        rewrite::reply_header,
        send,
        skb::{ETH_LEN, Refused, Skb},
    },
    verdict::{Verdict, drop},
};

const TCP_LEN: u32 = 20;

/// The way back to whoever sent the packet.
#[derive(Clone, Copy)]
pub enum Way {
    /// Out of the link that it came in by: to a neighbour, or into the task.
    Link,
    /// Through the tunnel.
    Node(Addr),
}

/// Counts a packet as dropped, and turns it into the answer that says so.
#[inline(always)]
pub fn packet(skb: Skb, packet: &Packet, way: Way, reason: DropReason) -> Verdict {
    let dropped = drop(reason);
    let header = if packet.v4 { V4_LEN } else { V6_LEN };
    // Options or extensions in the way: rare, and not worth it.
    if packet.fragment != fragment::WHOLE || packet.l4 != ETH_LEN + header {
        return dropped;
    }
    let built = if packet.is_tcp() {
        // Never answer a reset with one.
        if packet.tcp_flags & TCP_RST != 0 {
            return dropped;
        }
        reset(skb, packet)
    } else if packet.is_udp() {
        icmp::port_unreachable(skb, packet)
    } else {
        return dropped;
    };
    if built.is_err() {
        return drop(DropReason::Helper);
    }
    answer(skb, way)
}

/// Counts a packet as too big, and turns it into the answer that says what fits.
#[inline(always)]
pub fn too_big(skb: Skb, packet: &Packet, mtu: u32) -> Verdict {
    let dropped = drop(DropReason::TooBig);
    let header = if packet.v4 { V4_LEN } else { V6_LEN };
    if packet.fragment == fragment::LATER || packet.l4 != ETH_LEN + header {
        return dropped;
    }
    if icmp::too_big(skb, packet, mtu).is_err() {
        return drop(DropReason::Helper);
    }
    send::back(skb)
}

#[inline(always)]
fn answer(skb: Skb, way: Way) -> Verdict {
    match way {
        Way::Link => send::back(skb),
        Way::Node(node) => send::reply(skb, &node),
    }
}

/// RFC 9293, 3.5.2: a segment with ACK is reset at the number that it acknowledges; one without is acknowledged.
#[inline(always)]
fn reset(skb: Skb, packet: &Packet) -> Result<(), Refused> {
    let partial = is_partial(skb, packet.l4 + 16)?;
    skb.resize(packet.l4 + TCP_LEN)?;
    reply_header(skb, packet, TCP, TCP_LEN)?;
    let (seq_be, ack_be, flags) = if packet.tcp_flags & TCP_ACK != 0 {
        (packet.tcp_ack_be, 0, TCP_RST)
    } else {
        let counts = u32::from(packet.tcp_flags & TCP_SYN != 0) + u32::from(packet.tcp_flags & TCP_FIN != 0);
        let len = packet.l4_len.wrapping_sub(packet.tcp_len.into()).wrapping_add(counts);
        (0, u32::from_be(packet.tcp_seq_be).wrapping_add(len).to_be(), TCP_RST | TCP_ACK)
    };
    let ports = (u32::from(u16::from_be(packet.dport_be)) << 16 | u32::from(u16::from_be(packet.sport_be))).to_be();
    let mut tcp = [ports, seq_be, ack_be, ((TCP_LEN / 4) << 28 | u32::from(flags) << 16).to_be(), 0];
    let pseudo = checksum::pseudo(&packet.dst, &packet.src, TCP, TCP_LEN);
    // Where the checksum is left to the device, the field holds the sum of the pseudo header.
    let checksum = if partial { checksum::fold(pseudo) } else { !checksum::fold(pseudo + checksum::words(&tcp)) };
    tcp[4] = (u32::from(u16::from_be(checksum)) << 16).to_be();
    skb.store(packet.l4, &tcp)
}

/// Whether the transport checksum is left to a device. There is no helper that tells; but in that case the kernel
/// rightly ignores a change in the transport header, so one is pretended.
#[inline(always)]
fn is_partial(skb: Skb, checksum_at: u32) -> Result<bool, Refused> {
    let (mut before, mut after) = (0_u16, 0_u16);
    skb.load(checksum_at, &mut before)?;
    skb.fix_l4(checksum_at, 0, 1, false)?;
    skb.load(checksum_at, &mut after)?;
    Ok(before == after)
}
