//! Ingress of the VXLAN device. Every packet comes from a node of the cluster, or is dropped.

use aya_ebpf::{macros::classifier, programs::TcContext};
use weft_ebpf_common::{Action, Addr, DropReason, FIRST_NETWORK_VNI, HOST_NET, NetAddr, VNI_REPLY, VNI_REQUEST, zone};

use crate::{
    flow::{
        apply,
        fragments::follow_fragments,
        icmp_error,
        lookup::{self, Known},
        pick, published,
    },
    maps::{FLOWS, NODES},
    packet::{
        parse::{parse, shape},
        send,
        skb::Skb,
    },
    reply::refuse::{self, Way},
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
    if skb.is_tagged() {
        return drop(DropReason::Protocol);
    }
    match parse(skb, &mut s.packet) {
        Ok(true) => {}
        Ok(false) => return drop(DropReason::Protocol),
        Err(_) => return drop(DropReason::Malformed),
    }
    match source.vni {
        VNI_REQUEST => request(skb, s, &source.node),
        VNI_REPLY => reply(skb, s),
        net if net >= FIRST_NETWORK_VNI => overlay(skb, s, net),
        _ => drop(DropReason::UnknownNetwork),
    }
}

/// A packet to a published port of `node`, as that node got it.
#[inline(always)]
fn request(skb: Skb, s: &mut Scratch, node: &Addr) -> Verdict {
    let Some(id) = send::requested(skb) else { return drop(DropReason::Malformed) };
    if s.packet.shape == shape::ERROR {
        return icmp_error::from_client(skb, s);
    }
    if !follow_fragments(&mut s.packet, zone::REQUEST, &mut s.frag_key) {
        return drop(DropReason::FragmentUnknown);
    }
    s.packet.key(zone::REQUEST, &mut s.key);
    if let Known::Yes(flow, backend) = lookup::known(&s.packet, &s.key)
        && flow.backend == id
    {
        return apply::go(skb, &s.packet, flow, backend);
    }
    let Some(backend) = pick::backend(id).filter(|backend| backend.ifindex != 0) else {
        return refuse::packet(skb, &s.packet, Way::Node(*node), DropReason::BackendDead);
    };
    // Also within a connection: where this node forgot it, its task still knows it, and resets what it does not know.
    match published::target(&s.packet) {
        Some(target) => published::forwarded(skb, s, id, backend, target.port_be, node),
        None => refuse::packet(skb, &s.packet, Way::Node(*node), DropReason::NoFlow),
    }
}

/// An answer to a request that this node forwarded.
#[inline(always)]
fn reply(skb: Skb, s: &mut Scratch) -> Verdict {
    if s.packet.shape == shape::ERROR {
        return icmp_error::from_backend(skb, s);
    }
    if !follow_fragments(&mut s.packet, zone::REPLY, &mut s.frag_key) {
        return drop(DropReason::FragmentUnknown);
    }
    s.packet.reverse_key(zone::HOST, &mut s.key);
    // SAFETY: read at once; at worst it names another link, which the packet would be no use on.
    if let Some(flow) = unsafe { FLOWS.get(&s.key) }
        && flow.action == Action::Request as u8
    {
        return send::to_client(skb, flow);
    }
    s.packet.key(zone::REPLY, &mut s.key);
    match lookup::known(&s.packet, &s.key) {
        Known::Yes(flow, backend) => apply::go(skb, &s.packet, flow, backend),
        _ => drop(DropReason::NoFlow),
    }
}

/// A packet between tasks of a network.
#[inline(always)]
fn overlay(skb: Skb, s: &mut Scratch, net: u32) -> Verdict {
    // Errors about a translated flow are translated; any other goes to its task like all else.
    if s.packet.shape == shape::ERROR {
        return icmp_error::from_task(skb, s, net).unwrap_or_else(|| send::to_task_at(skb, net, &s.packet.dst));
    }
    let followed = follow_fragments(&mut s.packet, net, &mut s.frag_key);
    if followed {
        s.packet.key(net, &mut s.key);
        if let Known::Yes(flow, backend) = lookup::known(&s.packet, &s.key)
            && flow.action == Action::Task as u8
        {
            return apply::go(skb, &s.packet, flow, backend);
        }
    }
    send::to_task_at(skb, net, &s.packet.dst)
}
