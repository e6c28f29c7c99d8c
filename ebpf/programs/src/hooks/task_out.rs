//! All that a task sends: the host side of its veth. Nothing leaves a task that is not accounted for here; there is no
//! bridge behind it and no stack.

use aya_ebpf::{macros::classifier, programs::TcContext};
use weft_ebpf_common::{DropReason, Endpoint, endpoint_flags};

use crate::{
    flow::{
        apply, egress,
        fragments::follow_fragments,
        icmp_error,
        lookup::{self, Known},
        published::{self, Client},
        vip,
    },
    maps::{ENDPOINTS, FLOWS},
    packet::{
        parse::{ETH_P_ARP, Packet, fragment, parse, shape},
        send,
        skb::Skb,
    },
    reply::{
        echo, neigh,
        refuse::{self, Way},
    },
    scratch::{Scratch, scratch},
    verdict::{Verdict, drop},
};

#[classifier]
// A function of its own would put the build folder's hash into the object, by its name.
#[inline(always)]
pub fn task_out(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    let (Some(s), Some(endpoint)) = (scratch(), endpoint(skb.ifindex())) else { return drop(DropReason::NoEndpoint) };
    // The kernel took a VLAN tag off before this hook, and would put it on again on the way out: into a network that is
    // not the task's.
    if skb.is_tagged() {
        return drop(DropReason::Spoofed);
    }
    let mut mac = [0_u8; 6];
    if skb.load(6, &mut mac).is_err() {
        return drop(DropReason::Malformed);
    }
    if mac != endpoint.mac {
        return drop(DropReason::Spoofed);
    }
    if skb.protocol_be() == ETH_P_ARP {
        return neigh::arp(skb, endpoint);
    }
    match parse(skb, &mut s.packet) {
        Ok(true) => {}
        Ok(false) => return drop(DropReason::Protocol),
        Err(_) => return drop(DropReason::Malformed),
    }
    if neigh::is_discovery(&s.packet) {
        return neigh::discovery(skb, &s.packet, endpoint);
    }
    if s.packet.dst.is_group() || s.packet.dst.is_loopback() || s.packet.dst.is_link_local() {
        return drop(DropReason::NotRouted);
    }
    if owns(endpoint, &s.packet) {
        return sent(skb, s, endpoint);
    }
    if s.packet.src.is_link_local() {
        return drop(DropReason::NotRouted);
    }
    answered_elsewhere(skb, s, endpoint)
}

#[inline(always)]
fn endpoint(ifindex: u32) -> Option<&'static Endpoint> {
    // SAFETY: written by user space only; deleted meanwhile, it stays memory of the map, at worst another entry by now.
    unsafe { ENDPOINTS.get(ifindex) }
}

#[inline(always)]
fn owns(endpoint: &Endpoint, packet: &Packet) -> bool {
    packet.src == if packet.v4 { endpoint.v4 } else { endpoint.v6 }
}

/// The task answers from its first interface's address over another interface, because its routes say so. Only what
/// answers a known flow is let through.
#[inline(always)]
fn answered_elsewhere(skb: Skb, s: &mut Scratch, endpoint_: &Endpoint) -> Verdict {
    let Some(primary) = endpoint(endpoint_.primary) else { return drop(DropReason::Spoofed) };
    if !owns(primary, &s.packet) || s.packet.shape != shape::PORTS {
        return drop(DropReason::Spoofed);
    }
    if !follow_fragments(&mut s.packet, primary.net, &mut s.frag_key) {
        return drop(DropReason::FragmentUnknown);
    }
    s.packet.key(primary.net, &mut s.key);
    match lookup::known(&s.packet, &s.key) {
        Known::Yes(flow, None) => apply::go(skb, &s.packet, flow, None),
        _ => drop(DropReason::Spoofed),
    }
}

/// A packet whose source is in order.
#[inline(always)]
fn sent(skb: Skb, s: &mut Scratch, endpoint: &Endpoint) -> Verdict {
    let net = endpoint.net;
    if s.packet.shape == shape::ERROR {
        return match icmp_error::from_task(skb, s, net) {
            Some(verdict) => verdict,
            None => neighbour(skb, s, endpoint).unwrap_or_else(|| drop(DropReason::NoFlow)),
        };
    }
    if follow_fragments(&mut s.packet, net, &mut s.frag_key) {
        s.packet.key(net, &mut s.key);
        match lookup::known(&s.packet, &s.key) {
            Known::Yes(flow, backend) => {
                lookup::note_answers(&s.packet, flow, &mut s.back_key);
                return apply::go(skb, &s.packet, flow, backend);
            }
            Known::Dead => {
                let _ = FLOWS.remove(&s.key);
                return refuse::packet(skb, &s.packet, Way::Link, DropReason::BackendDead);
            }
            Known::No => {}
        }
    }
    if let Some(verdict) = neighbour(skb, s, endpoint) {
        return verdict;
    }
    unknown(skb, s, endpoint)
}

/// To another task of the network.
#[inline(always)]
fn neighbour(skb: Skb, s: &Scratch, endpoint: &Endpoint) -> Option<Verdict> {
    let found = send::forward(endpoint.net, &s.packet.dst)?;
    Some(if endpoint.flags & endpoint_flags::ISOLATED != 0 {
        drop(DropReason::Isolated)
    } else if found.ifindex != 0 {
        send::to_task(skb, found.ifindex, &found.mac)
    } else {
        send::overlay(skb, endpoint.net, &found.node)
    })
}

/// A new flow to anything but a task.
#[inline(always)]
fn unknown(skb: Skb, s: &mut Scratch, endpoint: &Endpoint) -> Verdict {
    let back = Way::Link;
    let service = vip::service(endpoint.net, &s.packet);
    let is_gateway = s.packet.dst == if s.packet.v4 { endpoint.v4_gateway } else { endpoint.v6_gateway };
    if service.is_some() || is_gateway {
        if echo::is_request(&s.packet) {
            return echo::answer(skb, &s.packet, &endpoint.mac);
        }
    }
    if s.packet.fragment == fragment::LATER {
        // Its first fragment made the flow, or was refused.
        return drop(DropReason::FragmentUnknown);
    }
    if let Some(service) = service {
        if s.packet.shape != shape::PORTS {
            return drop(DropReason::Protocol);
        }
        if s.packet.is_tcp() && !s.packet.is_syn() {
            return refuse::packet(skb, &s.packet, back, DropReason::NoFlow);
        }
        return match vip::new(skb, s, endpoint.net, service) {
            Some(verdict) => verdict,
            None => refuse::packet(skb, &s.packet, back, DropReason::NoBackend),
        };
    }
    if is_gateway || within(endpoint, &s.packet) {
        return refuse::packet(skb, &s.packet, back, DropReason::NoTask);
    }
    outside(skb, s, endpoint)
}

#[inline(always)]
fn within(endpoint: &Endpoint, packet: &Packet) -> bool {
    if packet.v4 {
        packet.dst.is_within(&endpoint.v4_subnet, &endpoint.v4_mask)
    } else {
        packet.dst.is_within(&endpoint.v6_subnet, &endpoint.v6_mask)
    }
}

/// A new flow that leaves the network: to a published port of this node, or to anything else.
#[inline(always)]
fn outside(skb: Skb, s: &mut Scratch, endpoint: &Endpoint) -> Verdict {
    let back = Way::Link;
    if egress::is_node_port(&s.packet) {
        return drop(DropReason::NodePort);
    }
    if endpoint.flags & endpoint_flags::INTERNAL != 0 {
        return refuse::packet(skb, &s.packet, back, DropReason::Isolated);
    }
    if s.packet.is_tcp() && !s.packet.is_syn() {
        return refuse::packet(skb, &s.packet, back, DropReason::NoFlow);
    }
    if published::is_own(&s.packet.dst)
        && let Some(target) = published::target(&s.packet)
    {
        return match published::new(skb, s, target, Client::Task(endpoint.net)) {
            Some(verdict) => verdict,
            None => refuse::packet(skb, &s.packet, back, DropReason::NoBackend),
        };
    }
    egress::new(skb, s, endpoint.net)
        .unwrap_or_else(|| refuse::packet(skb, &s.packet, back, DropReason::PortsExhausted))
}
