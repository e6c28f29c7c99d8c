//! What a flow says is done to its packets.

use weft_ebpf_common::{Action, Backend, DropReason, Flow};

use crate::{
    counters::count,
    packet::{parse::Packet, rewrite::translate, send, skb::Skb},
    reply::refuse,
    verdict::{Verdict, drop},
};

/// Makes of a packet what its flow says and sends it on.
#[inline(always)]
pub fn go(skb: Skb, packet: &Packet, flow: &Flow, backend: Option<&Backend>) -> Verdict {
    if flow.action == Action::Request as u8
        && let Some(mtu) = send::too_small_tunnel(skb)
    {
        return refuse::too_big(skb, packet, mtu);
    }
    if translate(skb, packet, flow).is_err() {
        return drop(DropReason::Helper);
    }
    on(skb, flow, backend)
}

/// Sends a packet on that is what its flow says already.
#[inline(always)]
pub fn on(skb: Skb, flow: &Flow, backend: Option<&Backend>) -> Verdict {
    if let Some(backend) = backend {
        count(skb.len(), flow.backend);
        if flow.action == Action::LocalBackend as u8 {
            return send::to_task(skb, backend.ifindex, &backend.mac);
        }
        if flow.action == Action::Request as u8 {
            return send::request(skb, flow.backend, backend);
        }
        return send::overlay(skb, backend.net, &backend.node);
    }
    if flow.action == Action::Reply as u8 {
        send::reply(skb, &flow.node)
    } else if flow.action == Action::Client as u8 {
        send::to_client(skb, flow)
    } else if flow.action == Action::Link as u8 {
        send::to_neighbour(skb, flow.ifindex)
    } else {
        send::to_task_at(skb, flow.net, &flow.dst)
    }
}
