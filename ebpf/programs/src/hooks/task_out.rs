//! `task_out`: packets that a task sends, at the host side of its veth.
//!
//! ```text
//! source is not the task's          -> drop, except replies by another interface of the task
//! ARP, neighbour discovery          -> reply::neigh
//! multicast, broadcast              -> drop
//! loopback, link-local              -> drop
//! ICMP error                        -> flow::icmp_error
//! known flow                        -> flow::apply
//! to a task of the network          -> to that task, directly or by the tunnel
//! ping of a VIP or gateway          -> reply::echo
//! first packet to a VIP             -> flow::vip
//! to the tunnel or control port     -> drop
//! first packet to a published port  -> flow::published
//! first packet to anything else     -> flow::egress
//! ```
//!
//! The program must never return `PASS`: the node's stack would route the packet without a check. A
//! packet that the program does not handle is dropped. No other code checks that a task uses only
//! its own addresses.

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
        send::{self, RemoteNode},
        skb::Skb,
    },
    reply::{
        echo, neigh,
        refuse::{self, ReplyPath},
    },
    scratch::{Scratch, scratch},
    verdict::{Verdict, drop},
};

/// Entry point: a packet from a task.
#[classifier]
// A function that is not inlined has a symbol. Its name would contain a hash of the build folder,
// so other folders would build other objects.
#[inline(always)]
pub fn task_out(context: TcContext) -> i32 {
    let skb = Skb::with_ethernet(context.skb.skb);
    let (Some(s), Some(endpoint)) = (scratch(), find_endpoint(skb.ifindex())) else {
        return drop(DropReason::NoEndpoint);
    };
    // The kernel removes a VLAN tag before this hook and adds it again when the packet leaves. The
    // packet would then enter a network that is not the task's.
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
    if s.packet.dst.is_multicast_or_broadcast() {
        return drop(DropReason::Multicast);
    }
    if s.packet.dst.is_loopback() || s.packet.dst.is_link_local() {
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

/// The task interface behind a veth of this node.
#[inline(always)]
fn find_endpoint(ifindex: u32) -> Option<&'static Endpoint> {
    // SAFETY: only user space writes this map. If it deletes the entry meanwhile, the memory still
    // belongs to the map and holds at worst another entry.
    unsafe { ENDPOINTS.get(ifindex) }
}

/// Whether the source of the packet is the address of this interface.
#[inline(always)]
fn has_source_of(endpoint: &Endpoint, packet: &Packet) -> bool {
    packet.src == if packet.v4 { endpoint.v4 } else { endpoint.v6 }
}

/// Handles a packet with the address of the task's first interface that came by another interface,
/// because the task's routes say so. Only a reply of a known flow is accepted.
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

/// Handles a packet whose source is the task's address on this interface.
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

/// Sends the packet to another task of the network. `None` if no task has the destination address.
#[inline(always)]
fn send_within_network(skb: Skb, s: &Scratch, endpoint: &Endpoint) -> Option<Verdict> {
    let found = send::find_task(endpoint.net, &s.packet.dst)?;
    Some(if endpoint.flags & endpoint_flags::ISOLATED != 0 {
        drop(DropReason::Isolated)
    } else if found.ifindex != 0 {
        send::to_task(skb, found.ifindex, &found.mac)
    } else {
        send::to_task_node(skb, endpoint.net, &RemoteNode { addr: found.node, encrypt: found.is_encrypted() })
    })
}

/// Handles a packet that has no flow and goes to no task.
#[inline(always)]
fn handle_new_flow(skb: Skb, s: &mut Scratch, endpoint: &Endpoint) -> Verdict {
    let path = ReplyPath::IncomingLink;
    let service = vip::find_service(endpoint.net, &s.packet);
    // No VIP is a gateway.
    let subnet = if service.is_some() { None } else { egress::find_route(endpoint.net, &s.packet.dst) };
    let is_gateway = subnet.is_some_and(|subnet| subnet.source == s.packet.dst);
    if service.is_some() || is_gateway {
        if echo::is_echo_request(&s.packet) {
            return echo::answer_echo(skb, &s.packet, &endpoint.mac);
        }
    }
    if s.packet.fragment == fragment::LATER {
        // Its first fragment has created the flow, or was refused.
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
    if let Some(subnet) = subnet {
        if subnet.source.is_unspecified() {
            // The broadcast address. RFC 1122, 3.2.2: a broadcast is not answered by an ICMP error.
            return drop(DropReason::Multicast);
        }
        return refuse::reject(skb, &s.packet, path, DropReason::NoTask);
    }
    handle_egress(skb, s, endpoint)
}

/// Handles a new flow that leaves the network: to a published port of this node, or to the outside.
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
