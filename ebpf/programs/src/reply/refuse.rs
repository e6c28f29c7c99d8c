//! Rejecting packets: weft drops the packet, counts it, and tells the sender.
//!
//! ```text
//! TCP                     -> TCP reset
//! UDP                     -> ICMP port unreachable
//! too big for the path    -> ICMP fragmentation needed, or packet too big
//! anything else           -> no answer
//! ```
//!
//! Without an answer, the sender would wait for a timeout. The hooks call [`reject`]; `flow::apply`
//! and `tunnel_in` call [`reject_too_big`]. A TCP reset must never be answered by a reset (RFC
//! 9293, 3.5.2).

use weft_ebpf_common::{Backend, DropReason};

use super::{icmp, ip::write_reply_header};
use crate::{
    packet::{
        checksum,
        parse::{Packet, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, V4_HEADER_LEN, V6_HEADER_LEN, fragment},
        send::{self, RemoteNode},
        skb::{HelperError, Skb},
    },
    verdict::{Verdict, drop},
};

const TCP_HEADER_LEN: u32 = 20;

/// The path from this node to the sender of a packet.
#[derive(Clone, Copy)]
pub enum ReplyPath {
    /// Out of the link that the packet came in by: to a neighbour of the node, or into the task.
    IncomingLink,
    /// Through the tunnel, to the ingress node.
    Tunnel(RemoteNode),
    /// Through the tunnel, to the backend with this id, which is on another node.
    Backend(u64, &'static Backend),
}

/// Counts the packet as dropped for `reason`, and answers it with a TCP reset or an ICMP error if
/// one is possible.
#[inline(always)]
pub fn reject(skb: Skb, packet: &Packet, path: ReplyPath, reason: DropReason) -> Verdict {
    let dropped = drop(reason);
    let header = if packet.v4 { V4_HEADER_LEN } else { V6_HEADER_LEN };
    // Packets with IP options or extension headers are rare. They are dropped without an answer.
    if packet.fragment != fragment::WHOLE || packet.l4 != skb.ip_offset() + header {
        return dropped;
    }
    let built = if packet.is_tcp() {
        // RFC 9293, 3.5.2: a reset is not answered by a reset.
        if packet.tcp_flags & TCP_RST != 0 {
            return dropped;
        }
        write_tcp_reset(skb, packet)
    } else if packet.is_udp() {
        icmp::write_port_unreachable(skb, packet)
    } else {
        return dropped;
    };
    if built.is_err() {
        return drop(DropReason::Helper);
    }
    send_reply(skb, path)
}

/// Counts the packet as dropped because it is too big, and answers it with an ICMP error that says
/// that packets of up to `mtu` bytes fit.
#[inline(always)]
pub fn reject_too_big(skb: Skb, packet: &Packet, mtu: u32, path: ReplyPath) -> Verdict {
    let dropped = drop(DropReason::TooBig);
    let header = if packet.v4 { V4_HEADER_LEN } else { V6_HEADER_LEN };
    if packet.fragment == fragment::LATER || packet.l4 != skb.ip_offset() + header {
        return dropped;
    }
    if icmp::write_too_big(skb, packet, mtu).is_err() {
        return drop(DropReason::Helper);
    }
    send_reply(skb, path)
}

#[inline(always)]
fn send_reply(skb: Skb, path: ReplyPath) -> Verdict {
    match path {
        ReplyPath::IncomingLink => send::to_sender(skb),
        ReplyPath::Tunnel(node) => send::to_ingress_node(skb, &node),
        ReplyPath::Backend(id, backend) => send::to_backend_node(skb, id, backend),
    }
}

/// Turns the packet into a TCP reset. If the segment has an ACK, the reset takes the acknowledged
/// number as its sequence number; if not, the reset acknowledges the segment (RFC 9293, 3.5.2).
#[inline(always)]
fn write_tcp_reset(skb: Skb, packet: &Packet) -> Result<(), HelperError> {
    let partial = is_checksum_partial(skb, packet.l4 + 16)?;
    skb.resize(packet.l4 + TCP_HEADER_LEN)?;
    write_reply_header(skb, packet, TCP, TCP_HEADER_LEN)?;
    let (seq_be, ack_be, flags) = if packet.tcp_flags & TCP_ACK != 0 {
        (packet.tcp_ack_be, 0, TCP_RST)
    } else {
        let counts = u32::from(packet.tcp_flags & TCP_SYN != 0) + u32::from(packet.tcp_flags & TCP_FIN != 0);
        let len = packet.l4_len.wrapping_sub(packet.tcp_header_len.into()).wrapping_add(counts);
        (0, u32::from_be(packet.tcp_seq_be).wrapping_add(len).to_be(), TCP_RST | TCP_ACK)
    };
    let ports = (u32::from(u16::from_be(packet.dport_be)) << 16 | u32::from(u16::from_be(packet.sport_be))).to_be();
    let mut tcp = [ports, seq_be, ack_be, ((TCP_HEADER_LEN / 4) << 28 | u32::from(flags) << 16).to_be(), 0];
    let pseudo = checksum::sum_pseudo_header(&packet.dst, &packet.src, TCP, TCP_HEADER_LEN);
    // If a device completes the checksum, the field must hold the sum of the pseudo header.
    let checksum = if partial { checksum::fold(pseudo) } else { !checksum::fold(pseudo + checksum::sum_words(&tcp)) };
    tcp[4] = (u32::from(u16::from_be(checksum)) << 16).to_be();
    skb.store(packet.l4, &tcp)
}

/// Whether the transport checksum is partial: a device completes it when the packet leaves
/// (`CHECKSUM_PARTIAL`, linux/skbuff.h). No helper reports this. In that case `bpf_l4_csum_replace`
/// ignores changes of the transport header. So this function calls it for a change that has not
/// happened and checks whether the checksum is different afterwards. The caller must then write the
/// checksum anew.
#[inline(always)]
fn is_checksum_partial(skb: Skb, checksum_offset: u32) -> Result<bool, HelperError> {
    let (mut before, mut after) = (0_u16, 0_u16);
    skb.load(checksum_offset, &mut before)?;
    skb.update_l4_checksum(checksum_offset, 0, 1, false)?;
    skb.load(checksum_offset, &mut after)?;
    Ok(before == after)
}
