//! Published ports: how a new flow to one is made, at the node that it reaches and at the node of its backend.

use weft_ebpf_common::{
    Action, Addr, Backend, DropReason, Flow, FlowKey, HOST_NET, NetAddr, PortKey, PortTarget, zone,
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
        skb::{HelperError, Skb},
    },
    scratch::Scratch,
    verdict::{Verdict, drop},
};

/// Whether the address is one of this node's own.
#[inline(always)]
pub fn is_node_address(addr: &Addr) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { OWN.get(NetAddr { net: HOST_NET, addr: *addr }) }.is_some()
}

/// What is published at the packet's destination, which is an address of this node (or, in requests that another node
/// forwarded, of that one).
#[inline(always)]
pub fn find_target(packet: &Packet) -> Option<&'static PortTarget> {
    if packet.l4_kind != l4_kind::PORTS {
        return None;
    }
    find_port(packet.dport_be, packet.proto)
}

/// What is published at an address, or at every address.
#[inline(always)]
pub fn find_port(port_be: u16, proto: u8) -> Option<&'static PortTarget> {
    let key = PortKey { net: HOST_NET, port_be, proto, _pad: 0, addr: Addr::UNSPECIFIED };
    // SAFETY: entries are written by user space only; one that was removed meanwhile names a service of before.
    unsafe { PORTS.get(key) }
}

/// Where the answers go.
#[derive(Clone, Copy)]
pub enum Client {
    /// Out of the link where the request came in.
    Link,
    /// To the task of this network.
    Task(u32),
}

/// A new flow from a link or a task of this node: picks a backend and sends the packet. `None` where the service has no
/// backend.
#[inline(always)]
pub fn create_flow(skb: Skb, s: &mut Scratch, target: &PortTarget, client: Client) -> Option<Verdict> {
    let (id, backend) = pick_backend(target.service)?;
    insert::write_untranslated(&s.packet, &mut s.flow);
    s.flow.backend = id;
    s.flow.ifindex = skb.ifindex();
    let Ok(macs) = skb.macs() else { return Some(drop(DropReason::Helper)) };
    (s.flow.link_mac, s.flow.client_mac) = macs;
    if backend.ifindex != 0 {
        insert::write_reply(&s.packet, Action::Client, &mut s.reply);
        s.reply.ifindex = skb.ifindex();
        (s.reply.link_mac, s.reply.client_mac) = macs;
        if let Client::Task(net) = client {
            s.reply.action = Action::Task as u8;
            s.reply.net = net;
        }
        return Some(send_to_local_backend(skb, s, target.port_be, backend));
    }
    s.flow.action = Action::Request as u8;
    let inserted = match client {
        // Replies find the way out by the same entry, read backwards.
        Client::Link => FLOWS.insert(&s.key, &s.flow, 0).is_ok(),
        Client::Task(net) => {
            insert::write_reply(&s.packet, Action::Task, &mut s.reply);
            s.reply.net = net;
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

/// A client's packets may come another way than before: by another link, or from another router. The answers follow.
#[inline(always)]
pub fn update_client(
    skb: Skb,
    packet: &Packet,
    flow: &mut Flow,
    backend: &Backend,
    reply_key: &mut FlowKey,
) -> Result<(), HelperError> {
    let (link_mac, client_mac) = skb.macs()?;
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
        // SAFETY: a live element; whoever else writes these fields writes what another packet of this client says.
        if let Some(reply) = FLOWS.get_ptr_mut(&*reply_key).map(|reply| unsafe { &mut *reply })
            && reply.action == Action::Client as u8
        {
            update(reply);
        }
    }
    Ok(())
}

/// A new flow from the tunnel to a backend of this node, that `node` picked.
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
    insert::write_reply(&s.packet, Action::Reply, &mut s.reply);
    s.reply.node = *node;
    send_to_local_backend(skb, s, port_be, backend)
}

/// Translates to a backend of this node. The client's address is kept, but for one case: where it is the backend's own
/// (a task that dialled itself, or one of the same address on another network), no host would take the packet.
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
