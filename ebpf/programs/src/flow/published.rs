//! Flows to published ports. This is where the backend of a published port is chosen.
//!
//! A flow is created twice if its backend is on another node: at the ingress node, which chooses
//! the backend ([`create_flow`], from `uplink_in` or `task_out`), and at the node of the backend
//! ([`create_forwarded_flow`], from `tunnel_in`). The walk of such a packet is drawn in `hooks`.
//!
//! | Entry at | Key | Value | Action |
//! |---|---|---|---|
//! | ingress node, backend elsewhere | client to node | unchanged | `Request` |
//! | node of the backend | client to node | client to task | `LocalBackend` |
//! | node of the backend, for replies | task to client | node to client | `Reply` |
//! | the same, if it is the ingress node | task to client | node to client | `Client` |
//!
//! The client's address is not translated, so that the task sees it. At the ingress node, replies
//! of another node's backend find the `Request` entry by their reversed key, so most such flows
//! need only one entry there.

use weft_ebpf_common::{
    Action, Addr, Backend, DropReason, Flow, FlowKey, HOST_NET, NetAddr, PortKey, PortTarget, flow_flags, zone,
};

use super::{
    apply,
    insert::{self, SourcePort},
    pick::pick_backend,
};
use crate::{
    maps::{FLOWS, OWN, PORTS},
    packet::{
        parse::{Packet, l4_kind},
        skb::{HelperError, Macs, Skb},
    },
    scratch::Scratch,
    verdict::{Verdict, drop},
};

/// Whether the address is one of this node's own.
#[inline(always)]
pub fn is_node_address(addr: &Addr) -> bool {
    // SAFETY: the value is not read.
    unsafe { OWN.get(NetAddr { net: HOST_NET, addr: *addr }) }.is_some()
}

/// The target of the published port that the packet goes to. The caller has checked that its
/// destination is an address of this node, or that the ingress node has sent it.
#[inline(always)]
pub fn find_target(packet: &Packet) -> Option<&'static PortTarget> {
    if packet.l4_kind != l4_kind::PORTS {
        return None;
    }
    find_port(packet.dport_be, packet.proto)
}

/// The target of a published port. Ports are published on every address of the node.
#[inline(always)]
pub fn find_port(port_be: u16, proto: u8) -> Option<&'static PortTarget> {
    let key = PortKey { net: HOST_NET, port_be, proto, _pad: 0, addr: Addr::UNSPECIFIED };
    // SAFETY: only user space writes this map. If it deletes the entry meanwhile, the memory still
    // belongs to the map and holds at worst another entry.
    unsafe { PORTS.get(key) }
}

/// Where the client of a published port is, and so where replies go.
#[derive(Clone, Copy)]
pub enum Client {
    /// Outside: replies leave by the link that the request came in by.
    Link,
    /// A task of this node, on the network with this VNI.
    Task(u32),
}

/// Creates a flow at the ingress node: chooses a backend and sends the packet. `None` if the
/// service has no backend that takes new flows of the packet's family.
#[inline(always)]
pub fn create_flow(skb: Skb, s: &mut Scratch, target: &PortTarget, client: Client) -> Option<Verdict> {
    let (id, backend) = pick_backend(target.service)?;
    if s.packet.v4 && backend.v4.is_unspecified() {
        // The network has no IPv4, and a flow never changes its family.
        return None;
    }
    insert::write_untranslated(&s.packet, &mut s.flow);
    s.flow.backend = id;
    s.flow.ifindex = skb.ifindex();
    s.flow.flags = encryption_flag(backend);
    let Ok(macs) = skb.macs() else { return Some(drop(DropReason::Helper)) };
    (s.flow.link_mac, s.flow.client_mac) = (macs.dst, macs.src);
    if backend.ifindex != 0 {
        insert::write_reply(&s.packet, Action::Client, &mut s.reply);
        s.reply.ifindex = skb.ifindex();
        (s.reply.link_mac, s.reply.client_mac) = (macs.dst, macs.src);
        if let Client::Task(net) = client {
            s.reply.action = Action::Task as u8;
            s.reply.net = net;
        }
        return Some(send_to_local_backend(skb, s, target.port_be, backend));
    }
    s.flow.action = Action::Request as u8;
    let inserted = match client {
        // Replies find this entry by their reversed key, so they need none of their own.
        Client::Link => FLOWS.insert(&s.key, &s.flow, 0).is_ok(),
        Client::Task(net) => {
            insert::write_reply(&s.packet, Action::Task, &mut s.reply);
            s.reply.net = net;
            s.reply.flags = encryption_flag(backend);
            insert::write_reply_key(zone::REPLY, s.packet.proto, &s.flow, &mut s.reply_key);
            insert::insert_pair(s, SourcePort::Keep)
        }
    };
    Some(if inserted {
        apply::translate_and_send(skb, &s.packet, &s.flow, Some(backend))
    } else {
        drop(DropReason::PortsExhausted)
    })
}

/// The flag of a flow whose packets between nodes must be encrypted, if the backend's network is.
#[inline(always)]
fn encryption_flag(backend: &Backend) -> u8 {
    if backend.is_encrypted() { flow_flags::ENCRYPTED } else { 0 }
}

/// Notes the link and the neighbour that a client's packet came from, because replies go there. A
/// client's packets may start to come by another link or router.
#[inline(always)]
pub fn update_client(
    skb: Skb,
    packet: &Packet,
    flow: &mut Flow,
    backend: &Backend,
    reply_key: &mut FlowKey,
) -> Result<(), HelperError> {
    let Macs { dst: link_mac, src: client_mac } = skb.macs()?;
    if flow.client_mac == client_mac && flow.link_mac == link_mac && flow.ifindex == skb.ifindex() {
        return Ok(());
    }
    let update = |flow: &mut Flow| {
        flow.ifindex = skb.ifindex();
        flow.client_mac = client_mac;
        flow.link_mac = link_mac;
    };
    update(flow);
    if flow.action == Action::LocalBackend as u8 {
        insert::write_reply_key(backend.net, packet.proto, flow, reply_key);
        // SAFETY: the pointer is to a live element. Another CPU may write the same fields at the
        // same time, for another packet of this client; either value is right.
        if let Some(reply) = FLOWS.get_ptr_mut(&*reply_key).map(|reply| unsafe { &mut *reply })
            && reply.action == Action::Client as u8
        {
            update(reply);
        }
    }
    Ok(())
}

/// Creates a flow at the node of the backend, for a packet that the ingress node `node` has sent
/// here.
#[inline(always)]
pub fn create_forwarded_flow(
    skb: Skb,
    s: &mut Scratch,
    id: u64,
    backend: &Backend,
    port_be: u16,
    node: &Addr,
) -> Verdict {
    insert::write_untranslated(&s.packet, &mut s.flow);
    s.flow.backend = id;
    s.flow.node = *node;
    s.flow.flags = encryption_flag(backend);
    insert::write_reply(&s.packet, Action::Reply, &mut s.reply);
    s.reply.node = *node;
    s.reply.flags = encryption_flag(backend);
    send_to_local_backend(skb, s, port_be, backend)
}

/// Inserts the flow to a backend of this node, and sends the packet. The client's address stays,
/// except if it is also the backend's (a task that connects to itself, or one with the same address
/// on another network): no host accepts a packet from its own address.
#[inline(always)]
fn send_to_local_backend(skb: Skb, s: &mut Scratch, port_be: u16, backend: &Backend) -> Verdict {
    s.flow.action = Action::LocalBackend as u8;
    s.flow.dst = if s.packet.v4 { backend.v4 } else { backend.v6 };
    s.flow.dport_be = port_be;
    if s.flow.src == s.flow.dst {
        s.flow.src = s.packet.dst;
    }
    insert::write_reply_key(backend.net, s.packet.proto, &s.flow, &mut s.reply_key);
    if !insert::insert_pair(s, SourcePort::Keep) {
        return drop(DropReason::PortsExhausted);
    }
    apply::translate_and_send(skb, &s.packet, &s.flow, Some(backend))
}
