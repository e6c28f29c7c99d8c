//! All that a task sends: the host side of its veth. Nothing leaves a task that is not accounted for here; there is no
//! bridge behind it and no stack.

use aya_ebpf::{macros::classifier, programs::TcContext};
use weft_ebpf_common::{DropReason, Endpoint, endpoint_flags};

use crate::{
    flow::{
        apply, egress,
        fragments::track_fragments,
        icmp_error,
        lookup::{Lookup, lookup, track_reply_entry},
        published::{self, Client},
        vip,
    },
    maps::{ENDPOINTS, FLOWS},
    packet::{
        parse::{ETH_P_ARP, Packet, fragment, l4_kind, parse},
        send,
        skb::Skb,
    },
    reply::{
        echo, neigh,
        refuse::{self, ReplyPath},
    },
    scratch::{Scratch, scratch},
    verdict::{Verdict, drop},
};

#[classifier]
// A function of its own would put the build folder's hash into the object, by its name.
#[inline(always)]
pub fn task_out(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    let (Some(s), Some(endpoint)) = (scratch(), find_endpoint(skb.ifindex())) else {
        return drop(DropReason::NoEndpoint);
    };
    // The kernel took a VLAN tag off before this hook, and would put it on again on the way out: into a network that is
    // not the task's.
    if skb.has_vlan_tag() {
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
        return neigh::answer_arp(skb, endpoint);
    }
    match parse(skb, &mut s.packet) {
        Ok(true) => {}
        Ok(false) => return drop(DropReason::Protocol),
        Err(_) => return drop(DropReason::Malformed),
    }
    if neigh::is_ndp(&s.packet) {
        return neigh::answer_ndp(skb, &s.packet, endpoint);
    }
    if s.packet.dst.is_multicast_or_broadcast() || s.packet.dst.is_loopback() || s.packet.dst.is_link_local() {
        return drop(DropReason::NotRouted);
    }
    if has_source_of(endpoint, &s.packet) {
        return handle_packet(skb, s, endpoint);
    }
    if s.packet.src.is_link_local() {
        return drop(DropReason::NotRouted);
    }
    handle_asymmetric_reply(skb, s, endpoint)
}

#[inline(always)]
fn find_endpoint(ifindex: u32) -> Option<&'static Endpoint> {
    // SAFETY: written by user space only; deleted meanwhile, it stays memory of the map, at worst another entry by now.
    unsafe { ENDPOINTS.get(ifindex) }
}

#[inline(always)]
fn has_source_of(endpoint: &Endpoint, packet: &Packet) -> bool {
    packet.src == if packet.v4 { endpoint.v4 } else { endpoint.v6 }
}

/// The task answers from its first interface's address over another interface, because its routes say so. Only what
/// answers a known flow is let through.
#[inline(always)]
fn handle_asymmetric_reply(skb: Skb, s: &mut Scratch, endpoint: &Endpoint) -> Verdict {
    let Some(primary) = find_endpoint(endpoint.primary) else { return drop(DropReason::Spoofed) };
    if !has_source_of(primary, &s.packet) || s.packet.l4_kind != l4_kind::PORTS {
        return drop(DropReason::Spoofed);
    }
    if !track_fragments(&mut s.packet, primary.net, &mut s.fragment_key) {
        return drop(DropReason::FragmentUnknown);
    }
    s.packet.write_key(primary.net, &mut s.key);
    match lookup(&s.packet, &s.key) {
        Lookup::Hit(flow, None) => apply::translate_and_send(skb, &s.packet, flow, None),
        _ => drop(DropReason::Spoofed),
    }
}

/// A packet whose source is in order.
#[inline(always)]
fn handle_packet(skb: Skb, s: &mut Scratch, endpoint: &Endpoint) -> Verdict {
    let net = endpoint.net;
    if s.packet.l4_kind == l4_kind::ICMP_ERROR {
        return match icmp_error::forward_from_task(skb, s, net) {
            Some(verdict) => verdict,
            None => send_within_network(skb, s, endpoint).unwrap_or_else(|| drop(DropReason::NoFlow)),
        };
    }
    if track_fragments(&mut s.packet, net, &mut s.fragment_key) {
        s.packet.write_key(net, &mut s.key);
        match lookup(&s.packet, &s.key) {
            Lookup::Hit(flow, backend) => {
                track_reply_entry(&s.packet, flow, &mut s.reply_key);
                return apply::translate_and_send(skb, &s.packet, flow, backend);
            }
            Lookup::BackendDead => {
                let _ = FLOWS.remove(&s.key);
                return refuse::reject(skb, &s.packet, ReplyPath::IncomingLink, DropReason::BackendDead);
            }
            Lookup::Miss => {}
        }
    }
    if let Some(verdict) = send_within_network(skb, s, endpoint) {
        return verdict;
    }
    handle_new_flow(skb, s, endpoint)
}

/// To another task of the network.
#[inline(always)]
fn send_within_network(skb: Skb, s: &Scratch, endpoint: &Endpoint) -> Option<Verdict> {
    let found = send::find_task(endpoint.net, &s.packet.dst)?;
    Some(if endpoint.flags & endpoint_flags::ISOLATED != 0 {
        drop(DropReason::Isolated)
    } else if found.ifindex != 0 {
        send::to_task(skb, found.ifindex, &found.mac)
    } else {
        send::to_task_node(skb, endpoint.net, &found.node)
    })
}

/// A new flow to anything but a task.
#[inline(always)]
fn handle_new_flow(skb: Skb, s: &mut Scratch, endpoint: &Endpoint) -> Verdict {
    let path = ReplyPath::IncomingLink;
    let service = vip::find_service(endpoint.net, &s.packet);
    let is_gateway = s.packet.dst == if s.packet.v4 { endpoint.v4_gateway } else { endpoint.v6_gateway };
    if service.is_some() || is_gateway {
        if echo::is_echo_request(&s.packet) {
            return echo::answer_echo(skb, &s.packet, &endpoint.mac);
        }
    }
    if s.packet.fragment == fragment::LATER {
        // Its first fragment made the flow, or was refused.
        return drop(DropReason::FragmentUnknown);
    }
    if let Some(service) = service {
        if s.packet.l4_kind != l4_kind::PORTS {
            return drop(DropReason::Protocol);
        }
        if s.packet.is_tcp() && !s.packet.is_syn() {
            return refuse::reject(skb, &s.packet, path, DropReason::NoFlow);
        }
        return match vip::create_flow(skb, s, endpoint.net, service) {
            Some(verdict) => verdict,
            None => refuse::reject(skb, &s.packet, path, DropReason::NoBackend),
        };
    }
    if is_gateway || is_within_subnet(endpoint, &s.packet) {
        return refuse::reject(skb, &s.packet, path, DropReason::NoTask);
    }
    handle_egress(skb, s, endpoint)
}

#[inline(always)]
fn is_within_subnet(endpoint: &Endpoint, packet: &Packet) -> bool {
    if packet.v4 {
        packet.dst.is_within(&endpoint.v4_subnet, &endpoint.v4_mask)
    } else {
        packet.dst.is_within(&endpoint.v6_subnet, &endpoint.v6_mask)
    }
}

/// A new flow that leaves the network: to a published port of this node, or to anything else.
#[inline(always)]
fn handle_egress(skb: Skb, s: &mut Scratch, endpoint: &Endpoint) -> Verdict {
    let path = ReplyPath::IncomingLink;
    if egress::is_node_port(&s.packet) {
        return drop(DropReason::NodePort);
    }
    if endpoint.flags & endpoint_flags::INTERNAL != 0 {
        return refuse::reject(skb, &s.packet, path, DropReason::Isolated);
    }
    if s.packet.is_tcp() && !s.packet.is_syn() {
        return refuse::reject(skb, &s.packet, path, DropReason::NoFlow);
    }
    if published::is_node_address(&s.packet.dst)
        && let Some(target) = published::find_target(&s.packet)
    {
        return match published::create_flow(skb, s, target, Client::Task(endpoint.net)) {
            Some(verdict) => verdict,
            None => refuse::reject(skb, &s.packet, path, DropReason::NoBackend),
        };
    }
    egress::create_flow(skb, s, endpoint.net)
        .unwrap_or_else(|| refuse::reject(skb, &s.packet, path, DropReason::PortsExhausted))
}
