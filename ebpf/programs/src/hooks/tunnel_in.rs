//! Ingress of the VXLAN device. Every packet comes from a node of the cluster, or is dropped.

use aya_ebpf::{macros::classifier, programs::TcContext};
use weft_ebpf_common::{Action, Addr, DropReason, FIRST_NETWORK_VNI, HOST_NET, NetAddr, VNI_REPLY, VNI_REQUEST, zone};

use crate::{
    flow::{
        apply,
        fragments::track_fragments,
        icmp_error,
        lookup::{Lookup, lookup},
        pick, published,
    },
    maps::{FLOWS, NODES},
    packet::{
        parse::{l4_kind, parse},
        send,
        skb::Skb,
    },
    reply::refuse::{self, ReplyPath},
    scratch::{Scratch, scratch},
    verdict::{Verdict, drop},
};

#[classifier]
// A function of its own would put the build folder's hash into the object, by its name.
#[inline(always)]
pub fn tunnel_in(context: TcContext) -> i32 {
    let skb = Skb::new(context.skb.skb);
    let (Some(s), Some(source)) = (scratch(), skb.tunnel_source()) else { return drop(DropReason::Helper) };
    // SAFETY: the value is not looked at.
    if unsafe { NODES.get(NetAddr { net: HOST_NET, addr: source.node }) }.is_none() {
        return drop(DropReason::UntrustedNode);
    }
    if skb.has_vlan_tag() {
        return drop(DropReason::Protocol);
    }
    match parse(skb, &mut s.packet) {
        Ok(true) => {}
        Ok(false) => return drop(DropReason::Protocol),
        Err(_) => return drop(DropReason::Malformed),
    }
    match source.vni {
        VNI_REQUEST => handle_request(skb, s, &source.node),
        VNI_REPLY => handle_reply(skb, s),
        net if net >= FIRST_NETWORK_VNI => handle_overlay(skb, s, net),
        _ => drop(DropReason::UnknownNetwork),
    }
}

/// A packet to a published port of `node`, as that node got it.
#[inline(always)]
fn handle_request(skb: Skb, s: &mut Scratch, node: &Addr) -> Verdict {
    let Some(id) = send::requested_backend(skb) else { return drop(DropReason::Malformed) };
    if s.packet.l4_kind == l4_kind::ICMP_ERROR {
        return icmp_error::forward_from_client(skb, s);
    }
    if !track_fragments(&mut s.packet, zone::REQUEST, &mut s.fragment_key) {
        return drop(DropReason::FragmentUnknown);
    }
    s.packet.write_key(zone::REQUEST, &mut s.key);
    if let Lookup::Hit(flow, backend) = lookup(&s.packet, &s.key)
        && flow.backend == id
    {
        return apply::translate_and_send(skb, &s.packet, flow, backend);
    }
    let Some(backend) = pick::find_backend(id).filter(|backend| backend.ifindex != 0) else {
        return refuse::reject(skb, &s.packet, ReplyPath::Tunnel(*node), DropReason::BackendDead);
    };
    // Also within a connection: where this node forgot it, its task still knows it, and resets what it does not know.
    match published::find_target(&s.packet) {
        Some(target) => published::create_forwarded_flow(skb, s, id, backend, target.port_be, node),
        None => refuse::reject(skb, &s.packet, ReplyPath::Tunnel(*node), DropReason::NoFlow),
    }
}

/// An answer to a request that this node forwarded.
#[inline(always)]
fn handle_reply(skb: Skb, s: &mut Scratch) -> Verdict {
    if s.packet.l4_kind == l4_kind::ICMP_ERROR {
        return icmp_error::forward_from_backend(skb, s);
    }
    if !track_fragments(&mut s.packet, zone::REPLY, &mut s.fragment_key) {
        return drop(DropReason::FragmentUnknown);
    }
    s.packet.write_reply_key(zone::HOST, &mut s.key);
    // SAFETY: read at once; at worst it names another link, which the packet would be no use on.
    if let Some(flow) = unsafe { FLOWS.get(&s.key) }
        && flow.action == Action::Request as u8
    {
        return send::to_client(skb, flow);
    }
    s.packet.write_key(zone::REPLY, &mut s.key);
    match lookup(&s.packet, &s.key) {
        Lookup::Hit(flow, backend) => apply::translate_and_send(skb, &s.packet, flow, backend),
        _ => drop(DropReason::NoFlow),
    }
}

/// A packet between tasks of a network.
#[inline(always)]
fn handle_overlay(skb: Skb, s: &mut Scratch, net: u32) -> Verdict {
    // Errors about a translated flow are translated; any other goes to its task like all else.
    if s.packet.l4_kind == l4_kind::ICMP_ERROR {
        return icmp_error::forward_from_task(skb, s, net)
            .unwrap_or_else(|| send::to_task_with_address(skb, net, &s.packet.dst));
    }
    let tracked = track_fragments(&mut s.packet, net, &mut s.fragment_key);
    if tracked {
        s.packet.write_key(net, &mut s.key);
        if let Lookup::Hit(flow, backend) = lookup(&s.packet, &s.key)
            && flow.action == Action::Task as u8
        {
            return apply::translate_and_send(skb, &s.packet, flow, backend);
        }
    }
    send::to_task_with_address(skb, net, &s.packet.dst)
}
