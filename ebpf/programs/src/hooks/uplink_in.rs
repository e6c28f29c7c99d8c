//! Ingress of every link with a global address, and of loopback: published ports, and the answers to what tasks sent to
//! the outside. Whatever is neither passes.

use aya_ebpf::{macros::classifier, programs::TcContext};
use weft_ebpf_common::{DropReason, LOOPBACK_IFINDEX, TUNNEL_PORT, zone};

use crate::{
    flow::{
        apply,
        fragments::follow_fragments,
        icmp_error,
        lookup::{self, Known},
        published::{self, Client},
    },
    maps::FLOWS,
    packet::{
        parse::{fragment, parse, shape},
        skb::Skb,
    },
    reply::refuse::{self, Way},
    scratch::{Scratch, scratch},
    verdict::{PASS, Verdict, drop},
};

#[classifier]
// A function of its own would put the build folder's hash into the object, by its name.
#[inline(always)]
pub fn uplink_in(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    let Some(s) = scratch() else { return PASS };
    if skb.is_tagged() {
        return PASS;
    }
    match parse(skb, &mut s.packet) {
        Ok(true) => {}
        // Not for weft to judge: the node's stack will.
        Ok(false) | Err(_) => return PASS,
    }
    if s.packet.dst.is_loopback() || s.packet.dst.is_group() {
        return PASS;
    }
    // Most of what a node's links carry, and nothing that could be published.
    if s.packet.is_udp() && s.packet.dport_be == TUNNEL_PORT.to_be() {
        return PASS;
    }
    received(skb, s)
}

#[inline(always)]
fn received(skb: Skb, s: &mut Scratch) -> Verdict {
    match s.packet.shape {
        shape::ERROR => return icmp_error::from_link(skb, s),
        shape::PORTS | shape::ECHO_REPLY => {}
        _ => return PASS,
    }
    if s.packet.fragment == fragment::LATER && !follow_fragments(&mut s.packet, zone::HOST, &mut s.frag_key) {
        return PASS;
    }
    s.packet.key(zone::HOST, &mut s.key);
    match lookup::known(&s.packet, &s.key) {
        Known::Yes(flow, backend) => {
            follow_fragments(&mut s.packet, zone::HOST, &mut s.frag_key);
            if let Some(backend) = backend
                && published::follow_client(skb, &s.packet, flow, backend, &mut s.back_key).is_err()
            {
                return drop(DropReason::Helper);
            }
            apply::go(skb, &s.packet, flow, backend)
        }
        Known::Dead => {
            let _ = FLOWS.remove(&s.key);
            refuse::packet(skb, &s.packet, Way::Link, DropReason::BackendDead)
        }
        Known::No => unknown(skb, s),
    }
}

#[inline(always)]
fn unknown(skb: Skb, s: &mut Scratch) -> Verdict {
    if s.packet.shape != shape::PORTS || !published::is_own(&s.packet.dst) {
        return PASS;
    }
    let Some(target) = published::target(&s.packet) else { return PASS };
    if s.packet.is_tcp() && !s.packet.is_syn() {
        // Either a connection that the node itself made from a port that happens to be published, or one that was
        // forgotten, which must not hang.
        let (packet, own) = (&s.packet, &s.packet.dst);
        if skb.has_own_connection(&packet.src, own, packet.sport_be, packet.dport_be) {
            return PASS;
        }
        return refuse::packet(skb, &s.packet, Way::Link, DropReason::NoFlow);
    }
    if skb.ifindex() == LOOPBACK_IFINDEX && answers_own_socket(s) {
        return PASS;
    }
    follow_fragments(&mut s.packet, zone::HOST, &mut s.frag_key);
    match published::new(skb, s, target, Client::Link) {
        Some(verdict) => verdict,
        None => refuse::packet(skb, &s.packet, Way::Link, DropReason::NoBackend),
    }
}

/// Whether the packet answers a flow that a socket of the node itself made, from a port that happens to be published.
#[inline(always)]
fn answers_own_socket(s: &mut Scratch) -> bool {
    s.packet.reverse_key(zone::HOST, &mut s.back_key);
    FLOWS.get_ptr(&s.back_key).is_some()
}
