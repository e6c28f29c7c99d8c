//! Applying a flow to a packet: translating it and sending it to where the flow says.
//!
//! The hooks call this for packets of known flows, and `create_flow` of the other modules for the
//! first packet of a flow. It changes no flow.

use weft_ebpf_common::{Action, Backend, DropReason, Flow};

use crate::{
    packet::{
        parse::Packet,
        rewrite::translate,
        send::{self, RemoteNode},
        skb::Skb,
    },
    reply::refuse::{self, ReplyPath},
    verdict::{Verdict, drop},
};

/// Translates a packet as its flow says, and sends it. `backend` is the flow's backend if the flow
/// goes to one.
#[inline(always)]
pub fn translate_and_send(skb: Skb, packet: &Packet, flow: &Flow, backend: Option<&Backend>) -> Verdict {
    if flow.action == Action::Request as u8
        && let Some(backend) = backend
        && let Some(mtu) = send::exceeded_tunnel_mtu(skb, backend)
    {
        return refuse::reject_too_big(skb, packet, mtu, ReplyPath::IncomingLink);
    }
    if (flow.action == Action::Client as u8 || flow.action == Action::Link as u8)
        && let Some(mtu) = send::exceeded_uplink_mtu(skb, packet, flow.ifindex)
    {
        return refuse::reject_too_big(skb, packet, mtu, ReplyPath::IncomingLink);
    }
    if translate(skb, packet, flow).is_err() {
        return drop(DropReason::Helper);
    }
    send(skb, flow, backend)
}

/// Sends a packet that needs no translation, or has been translated, to where its flow says.
#[inline(always)]
pub fn send(skb: Skb, flow: &Flow, backend: Option<&Backend>) -> Verdict {
    if let Some(backend) = backend {
        if flow.action == Action::LocalBackend as u8 {
            return send::to_task(skb, backend.ifindex, &backend.mac);
        }
        if flow.action == Action::Request as u8 {
            return send::to_backend_node(skb, flow.backend, backend);
        }
        let node = RemoteNode { addr: backend.node, encrypt: backend.is_encrypted() };
        return send::to_task_node(skb, backend.net, &node);
    }
    if flow.action == Action::Reply as u8 {
        send::to_ingress_node(skb, &RemoteNode { addr: flow.node, encrypt: flow.is_encrypted() })
    } else if flow.action == Action::Client as u8 {
        send::to_client(skb, flow)
    } else if flow.action == Action::Link as u8 {
        send::to_neighbour(skb, flow.ifindex)
    } else {
        send::to_task_with_address(skb, flow.net, &flow.dst)
    }
}
