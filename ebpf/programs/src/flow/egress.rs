//! Egress: how a task's packets to the outside get the node's address, and their answers find back.

use aya_ebpf::maps::lpm_trie::Key;
use weft_ebpf_common::{Action, CONTROL_PORT, DropReason, HOST_NET, NetAddr, TUNNEL_PORT, flow_flags, zone};

use super::{
    apply,
    insert::{self, Ports},
    published,
};
use crate::{
    maps::{NODES, ROUTES},
    packet::{
        parse::{Packet, shape},
        skb::{Skb, now_s},
    },
    scratch::Scratch,
    verdict::{Verdict, drop},
};

/// Bits of a whole key: network and address.
const WHOLE_KEY: u32 = (size_of::<NetAddr>() * 8) as u32;

/// Ports that belong to the nodes. A node trusts its peers' tunnel packets by their source, and translation would give
/// a task's packets just that source: so none may go to any tunnel port at all.
#[inline(always)]
pub fn is_node_port(packet: &Packet) -> bool {
    if packet.shape != shape::PORTS {
        return false;
    }
    let port = u16::from_be(packet.dport_be);
    if packet.is_udp() && port == TUNNEL_PORT {
        return true;
    }
    if !packet.is_tcp() || port != CONTROL_PORT {
        return false;
    }
    // SAFETY: the value is not looked at.
    unsafe { NODES.get(NetAddr { net: HOST_NET, addr: packet.dst }) }.is_some() || published::is_own(&packet.dst)
}

/// A new flow of a task of network `net`, to anything that is not of its network. `None` where no port is free.
#[inline(always)]
pub fn new(skb: Skb, s: &mut Scratch, net: u32) -> Option<Verdict> {
    let translatable = s.packet.shape == shape::PORTS || s.packet.shape == shape::ECHO_REQUEST;
    if !translatable {
        return Some(drop(DropReason::Protocol));
    }
    let Some(route) = ROUTES.get(Key::new(WHOLE_KEY, NetAddr { net: HOST_NET, addr: s.packet.dst })) else {
        return Some(drop(DropReason::NoRoute));
    };
    // As addresses stand in keys, an IPv6 default route covers IPv4, too.
    if route.source.is_v4() != s.packet.v4 {
        return Some(drop(DropReason::NoRoute));
    }
    insert::unchanged(&s.packet, &mut s.flow);
    s.flow.src = route.source;
    s.flow.ifindex = route.ifindex;
    s.flow.action = Action::Link as u8;
    insert::restored(&s.packet, Action::Task, &mut s.back);
    s.back.net = net;
    let now_s = now_s();
    s.back.seen_s = now_s;
    if s.packet.is_tcp() {
        s.back.flags = flow_flags::UNANSWERED;
    } else {
        s.flow.seen_s = now_s;
    }
    insert::answer_key(zone::HOST, s.packet.proto, &s.flow, &mut s.back_key);
    insert::enter(s, Ports::Egress).then(|| apply::go(skb, &s.packet, &s.flow, None))
}
