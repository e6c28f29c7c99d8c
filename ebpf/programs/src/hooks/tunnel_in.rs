//! `tunnel_in`: packets from other nodes, at the VXLAN device.
//!
//! ```text
//! source is no node of the cluster          -> drop
//! source is a key, but not from WireGuard   -> drop
//! encrypted network, but sent in clear      -> drop
//! VNI_REQUEST  to a published port          -> to the backend that the ingress node chose
//! VNI_REPLY    reply to such a packet       -> to the client, outside or a task of this node
//!              too big for that link        -> drop, ICMP error to the backend
//! network      between tasks of a network   -> to the task of this node
//! ```
//!
//! The program never passes a packet to the node's stack: nothing else uses the VXLAN device. It
//! trusts what nodes of the cluster send.
//!
//! A packet counts as encrypted if `wireguard_in` has marked it and its source is the address of a
//! WireGuard key. The entry of the task or backend that it leads to, or of its flow, says whether
//! it had to be.

use aya_ebpf::{macros::classifier, programs::TcContext};
use weft_ebpf_common::{Action, DropReason, FIRST_NETWORK_VNI, VNI_REPLY, VNI_REQUEST, WIREGUARD_MARK, zone};

use crate::{
    flow::{
        apply,
        fragments::track_fragments,
        icmp_error,
        lookup::{Lookup, lookup},
        pick, published,
    },
    maps::FLOWS,
    packet::{
        parse::{l4_kind, parse},
        send::{self, RemoteNode},
        skb::Skb,
    },
    reply::refuse::{self, ReplyPath},
    scratch::{Scratch, scratch},
    verdict::{Verdict, drop},
};

/// Entry point: a packet from another node.
#[classifier]
// A function that is not inlined has a symbol. Its name would contain a hash of the build folder,
// so other folders would build other objects.
#[inline(always)]
pub fn tunnel_in(context: TcContext) -> i32 {
    let skb = Skb::with_ethernet(context.skb.skb);
    let (Some(s), Some(source)) = (scratch(), skb.tunnel_source()) else { return drop(DropReason::Helper) };
    let Some(node) = send::find_node(&source.addr) else { return drop(DropReason::UntrustedNode) };
    if node.is_key() && skb.mark() != WIREGUARD_MARK {
        return drop(DropReason::KeyAddress);
    }
    let node = RemoteNode { addr: node.addr, encrypt: node.is_key() };
    if skb.has_vlan_tag() {
        return drop(DropReason::Protocol);
    }
    match parse(skb, &mut s.packet) {
        Ok(true) => {}
        Ok(false) => return drop(DropReason::Protocol),
        Err(_) => return drop(DropReason::Malformed),
    }
    match source.vni {
        VNI_REQUEST => handle_request(skb, s, &node),
        VNI_REPLY => handle_reply(skb, s, &node),
        net if net >= FIRST_NETWORK_VNI => handle_overlay(skb, s, net, &node),
        _ => drop(DropReason::UnknownNetwork),
    }
}

/// Handles a packet to a published port of `node`, the ingress node, which has sent it unchanged.
/// Answers are encrypted if the packet was.
#[inline(always)]
fn handle_request(skb: Skb, s: &mut Scratch, node: &RemoteNode) -> Verdict {
    let Some(id) = send::requested_backend(skb) else { return drop(DropReason::Malformed) };
    if s.packet.l4_kind == l4_kind::ICMP_ERROR {
        return icmp_error::forward_from_client(skb, s, node.encrypt);
    }
    if !track_fragments(&mut s.packet, zone::REQUEST, &mut s.fragment_key) {
        return drop(DropReason::FragmentUnknown);
    }
    s.packet.write_key(zone::REQUEST, &mut s.key);
    if let Lookup::Hit(flow, backend) = lookup(&s.packet, &s.key)
        && flow.backend == id
    {
        if flow.is_encrypted() && !node.encrypt {
            return drop(DropReason::Unencrypted);
        }
        return apply::translate_and_send(skb, &s.packet, flow, backend);
    }
    let Some(backend) = pick::find_backend(id).filter(|backend| backend.ifindex != 0) else {
        return refuse::reject(skb, &s.packet, ReplyPath::Tunnel(*node), DropReason::BackendDead);
    };
    if backend.is_encrypted() && !node.encrypt {
        return drop(DropReason::Unencrypted);
    }
    // This creates a flow also for a packet in the middle of a TCP connection: the flow may have
    // been evicted while the task still has the connection. If the task does not have it, the task
    // answers with a reset.
    match published::find_target(&s.packet) {
        Some(target) => published::create_forwarded_flow(skb, s, id, backend, target.port_be, &node.addr),
        None => refuse::reject(skb, &s.packet, ReplyPath::Tunnel(*node), DropReason::NoFlow),
    }
}

/// Handles a reply to a packet that this node, as the ingress node, has sent to a backend on
/// `node`.
#[inline(always)]
fn handle_reply(skb: Skb, s: &mut Scratch, node: &RemoteNode) -> Verdict {
    if s.packet.l4_kind == l4_kind::ICMP_ERROR {
        return icmp_error::forward_from_backend(skb, s, node.encrypt);
    }
    if !track_fragments(&mut s.packet, zone::REPLY, &mut s.fragment_key) {
        return drop(DropReason::FragmentUnknown);
    }
    s.packet.write_reply_key(zone::HOST, &mut s.key);
    // SAFETY: the entry is read at once. If another CPU replaces it meanwhile, the packet at worst
    // leaves by another link, where no host accepts it.
    if let Some(flow) = unsafe { FLOWS.get(&s.key) }
        && flow.action == Action::Request as u8
    {
        if flow.is_encrypted() && !node.encrypt {
            return drop(DropReason::Unencrypted);
        }
        return match send::exceeded_uplink_mtu(skb, &s.packet, flow.ifindex) {
            None => send::to_client(skb, flow),
            // The backend's node translates the error like one that a router has sent here.
            Some(mtu) => match pick::find_backend(flow.backend) {
                Some(backend) => refuse::reject_too_big(skb, &s.packet, mtu, ReplyPath::Backend(flow.backend, backend)),
                None => drop(DropReason::TooBig),
            },
        };
    }
    s.packet.write_key(zone::REPLY, &mut s.key);
    match lookup(&s.packet, &s.key) {
        Lookup::Hit(flow, _) if flow.is_encrypted() && !node.encrypt => drop(DropReason::Unencrypted),
        Lookup::Hit(flow, backend) => apply::translate_and_send(skb, &s.packet, flow, backend),
        _ => drop(DropReason::NoFlow),
    }
}

/// Handles a packet between tasks of the network `net`, which came from a task on `node`.
#[inline(always)]
fn handle_overlay(skb: Skb, s: &mut Scratch, net: u32, node: &RemoteNode) -> Verdict {
    // No flow changes the destination of such a packet: it is the address of a task in any case.
    let Some(task) = send::find_task(net, &s.packet.dst).filter(|task| task.ifindex != 0) else {
        return drop(DropReason::NoTask);
    };
    if task.is_encrypted() && !node.encrypt {
        return drop(DropReason::Unencrypted);
    }
    // An ICMP error about a flow is translated. Any other error goes to its task like other
    // packets.
    if s.packet.l4_kind == l4_kind::ICMP_ERROR {
        return icmp_error::forward_from_task(skb, s, net)
            .unwrap_or_else(|| send::to_task(skb, task.ifindex, &task.mac));
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
    send::to_task(skb, task.ifindex, &task.mac)
}
