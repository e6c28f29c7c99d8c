//! `uplink_in`: packets that enter the node by an uplink or by loopback. `uplink_in_l3`: the same
//! for uplinks without Ethernet.
//!
//! ```text
//! not IP, VLAN tag, loopback, multicast            -> pass to the node's stack
//! address of a WireGuard key                       -> drop: such packets come from WireGuard only
//! tunnel                                           -> pass to the node's stack
//! ICMP error                                       -> flow::icmp_error
//! known flow (published port, reply from outside)  -> flow::apply
//! TCP connection whose backend is dead             -> reset
//! first packet to a published port                 -> flow::published
//! TCP to a published port, neither known nor SYN   -> reset, unless a local socket has it
//! anything else                                    -> pass to the node's stack
//! ```
//!
//! The program must pass everything that is not for weft, because the node's own traffic comes this
//! way too.

use aya_ebpf::{macros::classifier, programs::TcContext};
use weft_ebpf_common::{DropReason, LOOPBACK_IFINDEX, zone};

use crate::{
    flow::{
        apply,
        fragments::track_fragments,
        icmp_error,
        lookup::{Lookup, lookup},
        published::{self, Client},
    },
    maps::{FLOWS, config},
    packet::{
        parse::{Packet, fragment, l4_kind, parse},
        skb::Skb,
    },
    reply::refuse::{self, ReplyPath},
    scratch::{Scratch, scratch},
    verdict::{PASS, Verdict, drop},
};

/// Entry point: a packet that enters by a link with Ethernet, or by loopback.
#[classifier]
// A function that is not inlined has a symbol. Its name would contain a hash of the build folder,
// so other folders would build other objects.
#[inline(always)]
pub fn uplink_in(context: TcContext) -> i32 {
    handle_any_packet(Skb::with_ethernet(context.skb.skb))
}

/// Entry point: a packet that enters by a link without Ethernet, such as WireGuard, tun or PPP.
#[classifier]
#[inline(always)]
pub fn uplink_in_l3(context: TcContext) -> i32 {
    handle_any_packet(Skb::without_ethernet(context.skb.skb))
}

#[inline(always)]
fn handle_any_packet(skb: Skb) -> Verdict {
    let Some(s) = scratch() else { return PASS };
    if skb.has_vlan_tag() {
        return PASS;
    }
    match parse(skb, &mut s.packet) {
        Ok(true) => {}
        // The node's stack decides about other protocols and malformed packets.
        Ok(false) | Err(_) => return PASS,
    }
    if s.packet.dst.is_loopback() || s.packet.dst.is_multicast_or_broadcast() {
        return PASS;
    }
    if has_key_address(&s.packet) {
        return drop(DropReason::KeyAddress);
    }
    // Tunnel packets are most of the traffic between nodes, and the tunnel port cannot be
    // published.
    if s.packet.is_udp() && config().is_some_and(|config| s.packet.dport_be == config.tunnel_port_be) {
        return PASS;
    }
    handle_packet(skb, s)
}

/// Whether the packet has an address of a WireGuard key. On this link it is forged: packets with
/// such addresses enter the node by weft's WireGuard links only.
#[inline(always)]
fn has_key_address(packet: &Packet) -> bool {
    !packet.v4
        && config().is_some_and(|config| config.is_key_address(&packet.src) || config.is_key_address(&packet.dst))
}

/// Handles an IP packet that is addressed to a single host.
#[inline(always)]
fn handle_packet(skb: Skb, s: &mut Scratch) -> Verdict {
    match s.packet.l4_kind {
        l4_kind::ICMP_ERROR => return icmp_error::forward_from_link(skb, s),
        l4_kind::PORTS | l4_kind::ECHO_REPLY => {}
        _ => return PASS,
    }
    if s.packet.fragment == fragment::LATER && !track_fragments(&mut s.packet, zone::HOST, &mut s.fragment_key) {
        return PASS;
    }
    s.packet.write_key(zone::HOST, &mut s.key);
    match lookup(&s.packet, &s.key) {
        Lookup::Hit(flow, backend) => {
            track_fragments(&mut s.packet, zone::HOST, &mut s.fragment_key);
            if let Some(backend) = backend
                && published::update_client(skb, &s.packet, flow, backend, &mut s.reply_key).is_err()
            {
                return drop(DropReason::Helper);
            }
            apply::translate_and_send(skb, &s.packet, flow, backend)
        }
        Lookup::BackendDead => {
            let _ = FLOWS.remove(&s.key);
            refuse::reject(skb, &s.packet, ReplyPath::IncomingLink, DropReason::BackendDead)
        }
        Lookup::Miss => handle_new_flow(skb, s),
    }
}

/// Handles a packet without a flow: creates one if it goes to a published port.
#[inline(always)]
fn handle_new_flow(skb: Skb, s: &mut Scratch) -> Verdict {
    if s.packet.l4_kind != l4_kind::PORTS || !published::is_node_address(&s.packet.dst) {
        return PASS;
    }
    let Some(target) = published::find_target(&s.packet) else { return PASS };
    if s.packet.is_tcp() && !s.packet.is_syn() {
        // Either the node itself opened this connection, from a port that is also published, or its
        // flow was evicted. In the second case a reset ends the connection at both ends; without
        // it, both would wait for a timeout.
        let (packet, own) = (&s.packet, &s.packet.dst);
        if skb.has_local_tcp_connection(&packet.src, own, packet.sport_be, packet.dport_be) {
            return PASS;
        }
        return refuse::reject(skb, &s.packet, ReplyPath::IncomingLink, DropReason::NoFlow);
    }
    if skb.ifindex() == LOOPBACK_IFINDEX && is_reply_to_local_socket(s) {
        return PASS;
    }
    track_fragments(&mut s.packet, zone::HOST, &mut s.fragment_key);
    match published::create_flow(skb, s, target, Client::Link) {
        Some(verdict) => verdict,
        None => refuse::reject(skb, &s.packet, ReplyPath::IncomingLink, DropReason::NoBackend),
    }
}

/// Whether the packet is a reply to a socket of the node itself, which uses a local port that is
/// also published.
#[inline(always)]
fn is_reply_to_local_socket(s: &mut Scratch) -> bool {
    s.packet.write_reply_key(zone::HOST, &mut s.reply_key);
    FLOWS.get_ptr(&s.reply_key).is_some()
}
