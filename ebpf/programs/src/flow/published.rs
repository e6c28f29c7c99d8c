//! Published ports: how a new flow to one is made, at the node that it reaches and at the node of its backend.

use weft_ebpf_common::{
    Action, Addr, Backend, DropReason, Flow, FlowKey, HOST_NET, NetAddr, PortKey, PortTarget, zone,
};

use super::{
    apply,
    insert::{self, Ports},
    pick::pick,
};
use crate::{
    maps::{FLOWS, OWN, PORTS},
    packet::{
        parse::{Packet, shape},
        skb::{Refused, Skb},
    },
    scratch::Scratch,
    verdict::{Verdict, drop},
};

/// Whether the address is one of this node's own.
#[inline(always)]
pub fn is_own(addr: &Addr) -> bool {
    // SAFETY: the value is not looked at.
    unsafe { OWN.get(NetAddr { net: HOST_NET, addr: *addr }) }.is_some()
}

/// What is published at the packet's destination, which is an address of this node (or, in requests that another node
/// forwarded, of that one).
#[inline(always)]
pub fn target(packet: &Packet) -> Option<&'static PortTarget> {
    if packet.shape != shape::PORTS {
        return None;
    }
    at(&packet.dst, packet.dport_be, packet.proto)
}

/// What is published at an address, or at every address.
#[inline(always)]
pub fn at(addr: &Addr, port_be: u16, proto: u8) -> Option<&'static PortTarget> {
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
pub fn new(skb: Skb, s: &mut Scratch, target: &PortTarget, client: Client) -> Option<Verdict> {
    let (id, backend) = pick(target.service)?;
    insert::unchanged(&s.packet, &mut s.flow);
    s.flow.backend = id;
    s.flow.ifindex = skb.ifindex();
    let Ok(macs) = skb.macs() else { return Some(drop(DropReason::Helper)) };
    (s.flow.link_mac, s.flow.client_mac) = macs;
    if backend.ifindex != 0 {
        insert::restored(&s.packet, Action::Client, &mut s.back);
        s.back.ifindex = skb.ifindex();
        (s.back.link_mac, s.back.client_mac) = macs;
        if let Client::Task(net) = client {
            s.back.action = Action::Task as u8;
            s.back.net = net;
        }
        return Some(local(skb, s, target.port_be, backend));
    }
    s.flow.action = Action::Request as u8;
    let entered = match client {
        // Replies find the way out by the same entry, read backwards.
        Client::Link => FLOWS.insert(&s.key, &s.flow, 0).is_ok(),
        Client::Task(net) => {
            insert::restored(&s.packet, Action::Task, &mut s.back);
            s.back.net = net;
            insert::answer_key(zone::REPLY, s.packet.proto, &s.flow, &mut s.back_key);
            insert::enter(s, Ports::Own)
        }
    };
    Some(if entered { apply::go(skb, &s.packet, &s.flow, Some(backend)) } else { drop(DropReason::PortsExhausted) })
}

/// A client's packets may come another way than before: by another link, or from another router. The answers follow.
#[inline(always)]
pub fn follow_client(
    skb: Skb,
    packet: &Packet,
    flow: &mut Flow,
    backend: &Backend,
    back_key: &mut FlowKey,
) -> Result<(), Refused> {
    let (link_mac, client_mac) = skb.macs()?;
    if flow.client_mac == client_mac && flow.link_mac == link_mac && flow.ifindex == skb.ifindex() {
        return Ok(());
    }
    let changed = |flow: &mut Flow| {
        flow.ifindex = skb.ifindex();
        flow.client_mac = client_mac;
        flow.link_mac = link_mac;
    };
    changed(flow);
    if flow.action == Action::LocalBackend as u8 {
        insert::answer_key(backend.net, packet.proto, flow, back_key);
        // SAFETY: a live element; whoever else writes these fields writes what another packet of this client says.
        if let Some(back) = FLOWS.get_ptr_mut(&*back_key).map(|back| unsafe { &mut *back })
            && back.action == Action::Client as u8
        {
            changed(back);
        }
    }
    Ok(())
}

/// A new flow from the tunnel to a backend of this node, that `node` picked.
#[inline(always)]
pub fn forwarded(skb: Skb, s: &mut Scratch, id: u64, backend: &Backend, port_be: u16, node: &Addr) -> Verdict {
    insert::unchanged(&s.packet, &mut s.flow);
    s.flow.backend = id;
    s.flow.node = *node;
    insert::restored(&s.packet, Action::Reply, &mut s.back);
    s.back.node = *node;
    local(skb, s, port_be, backend)
}

/// Translates to a backend of this node. The client's address is kept, but for one case: where it is the backend's own
/// (a task that dialled itself, or one of the same address on another network), no host would take the packet.
#[inline(always)]
fn local(skb: Skb, s: &mut Scratch, port_be: u16, backend: &Backend) -> Verdict {
    s.flow.action = Action::LocalBackend as u8;
    s.flow.dst = if s.packet.v4 { backend.v4 } else { backend.v6 };
    s.flow.dport_be = port_be;
    if s.flow.src == s.flow.dst {
        s.flow.src = s.packet.dst;
    }
    insert::answer_key(backend.net, s.packet.proto, &s.flow, &mut s.back_key);
    if !insert::enter(s, Ports::Own) {
        return drop(DropReason::PortsExhausted);
    }
    apply::go(skb, &s.packet, &s.flow, Some(backend))
}
