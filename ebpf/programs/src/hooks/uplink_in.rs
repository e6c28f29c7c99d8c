//! Ingress of every link with a global address, and of loopback: published ports, and the answers to what tasks sent to
//! the outside. Whatever is neither passes.

use aya_ebpf::{macros::classifier, programs::TcContext};
use weft_ebpf_common::{DropReason, LOOPBACK_IFINDEX, TUNNEL_PORT, zone};

use crate::{
    flow::{
        apply,
        fragments::track_fragments,
        icmp_error,
        lookup::{Lookup, lookup},
        published::{self, Client},
    },
    maps::FLOWS,
    packet::{
        parse::{fragment, l4_kind, parse},
        skb::Skb,
    },
    reply::refuse::{self, ReplyPath},
    scratch::{Scratch, scratch},
    verdict::{PASS, Verdict, drop},
};

#[classifier]
// A function of its own would put the build folder's hash into the object, by its name.
#[inline(always)]
pub fn uplink_in(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    let Some(s) = scratch() else { return PASS };
    if skb.has_vlan_tag() {
        return PASS;
    }
    match parse(skb, &mut s.packet) {
        Ok(true) => {}
        // Not for weft to judge: the node's stack will.
        Ok(false) | Err(_) => return PASS,
    }
    if s.packet.dst.is_loopback() || s.packet.dst.is_multicast_or_broadcast() {
        return PASS;
    }
    // Most of what a node's links carry, and nothing that could be published.
    if s.packet.is_udp() && s.packet.dport_be == TUNNEL_PORT.to_be() {
        return PASS;
    }
    handle_packet(skb, s)
}

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

#[inline(always)]
fn handle_new_flow(skb: Skb, s: &mut Scratch) -> Verdict {
    if s.packet.l4_kind != l4_kind::PORTS || !published::is_node_address(&s.packet.dst) {
        return PASS;
    }
    let Some(target) = published::find_target(&s.packet) else { return PASS };
    if s.packet.is_tcp() && !s.packet.is_syn() {
        // Either a connection that the node itself made from a port that happens to be published, or one that was
        // forgotten, which must not hang.
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

/// Whether the packet answers a flow that a socket of the node itself made, from a port that happens to be published.
#[inline(always)]
fn is_reply_to_local_socket(s: &mut Scratch) -> bool {
    s.packet.write_reply_key(zone::HOST, &mut s.reply_key);
    FLOWS.get_ptr(&s.reply_key).is_some()
}
