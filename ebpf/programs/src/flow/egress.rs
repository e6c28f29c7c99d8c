//! Egress: packets of a task to hosts outside of the cluster get the node's address as their source
//! (SNAT).
//!
//! `hooks::task_out` calls this.
//!
//! ```text
//! task T:5000 -> X:443   task_out    source becomes node N:61234    -> X:443
//! X:443 -> N:61234       uplink_in   destination becomes T:5000     -> task
//! ```
//!
//! The source port comes from a range that the node's own sockets do not use by default
//! (`EGRESS_FIRST_PORT`), so that a reply is never taken for a packet of the node.

use aya_ebpf::maps::lpm_trie::Key;
use weft_ebpf_common::{
    Action, Addr, CONTROL_PORT, Config, DropReason, HOST_NET, MAX_WIREGUARD_LINKS, NetAddr, Route, flow_flags, zone,
};

use super::{
    apply,
    insert::{self, SourcePort},
    published,
};
use crate::{
    maps::{ROUTES, config},
    packet::{
        parse::{Packet, l4_kind},
        send,
        skb::{Skb, now_s},
    },
    scratch::Scratch,
    verdict::{Verdict, drop},
};

/// Prefix length of a whole `ROUTES` key, in bits: network and address.
const KEY_BITS: u32 = (size_of::<NetAddr>() * 8) as u32;

/// Whether the packet goes to a port that belongs to the nodes themselves. A node trusts tunnel
/// packets by their source address. Egress would give a task's packet the address of this node, so
/// a task must not send to the tunnel port of any host.
#[inline(always)]
pub fn is_node_port(packet: &Packet) -> bool {
    if packet.l4_kind != l4_kind::PORTS {
        return false;
    }
    let port_be = packet.dport_be;
    if packet.is_udp() {
        // A node without a configuration is in no cluster, and has no task.
        let Some(config) = config() else { return true };
        return port_be == config.tunnel_port_be || is_wireguard_port(config, &packet.dst, port_be);
    }
    packet.is_tcp()
        && port_be == CONTROL_PORT.to_be()
        && (send::find_node(&packet.dst).is_some() || published::is_node_address(&packet.dst))
}

/// Whether a node of the cluster, this one or another, has a WireGuard link at the port.
#[inline(always)]
fn is_wireguard_port(config: &Config, addr: &Addr, port_be: u16) -> bool {
    // A cluster without encrypted networks pays nothing for this check.
    if port_be == 0 || config.wireguard_ports_be == [0; MAX_WIREGUARD_LINKS] {
        return false;
    }
    match send::find_node(addr) {
        Some(node) => node.wireguard_ports_be[0] == port_be || node.wireguard_ports_be[1] == port_be,
        None => {
            (config.wireguard_ports_be[0] == port_be || config.wireguard_ports_be[1] == port_be)
                && published::is_node_address(addr)
        }
    }
}

/// The route of the node to an address, or with another network than [`HOST_NET`], the subnet of
/// the network that contains the address.
#[inline(always)]
pub fn find_route(net: u32, addr: &Addr) -> Option<&'static Route> {
    ROUTES.get(Key::new(KEY_BITS, NetAddr { net, addr: *addr }))
}

/// Creates a flow from a task of network `net` to a host outside of its network, and sends the
/// packet. `None` if no port is free.
#[inline(always)]
pub fn create_flow(skb: Skb, s: &mut Scratch, net: u32) -> Option<Verdict> {
    let translatable = s.packet.l4_kind == l4_kind::PORTS || s.packet.l4_kind == l4_kind::ECHO_REQUEST;
    if !translatable {
        return Some(drop(DropReason::Protocol));
    }
    let Some(route) = find_route(HOST_NET, &s.packet.dst) else {
        return Some(drop(DropReason::NoRoute));
    };
    // Keys hold IPv4 addresses as v4-mapped IPv6 addresses, so an IPv6 default route matches them
    // too.
    if route.source.is_v4() != s.packet.v4 {
        return Some(drop(DropReason::NoRoute));
    }
    insert::write_untranslated(&s.packet, &mut s.flow);
    s.flow.src = route.source;
    s.flow.ifindex = route.ifindex;
    s.flow.action = Action::Link as u8;
    insert::write_reply(&s.packet, Action::Task, &mut s.reply);
    s.reply.net = net;
    let now_s = now_s();
    s.reply.last_seen_s = now_s;
    if s.packet.is_tcp() {
        s.reply.flags = flow_flags::UNANSWERED;
    } else {
        s.flow.last_seen_s = now_s;
    }
    insert::write_reply_key(zone::HOST, s.packet.proto, &s.flow, &mut s.reply_key);
    insert::insert_pair(s, SourcePort::EgressRange).then(|| apply::translate_and_send(skb, &s.packet, &s.flow, None))
}
