//! Egress: how a task's packets to the outside get the node's address, and their answers find back.

use aya_ebpf::maps::lpm_trie::Key;
use weft_ebpf_common::{Action, CONTROL_PORT, DropReason, HOST_NET, NetAddr, TUNNEL_PORT, flow_flags, zone};

use super::{
    apply,
    insert::{self, SourcePort},
    published,
};
use crate::{
    maps::{NODES, ROUTES},
    packet::{
        parse::{Packet, l4_kind},
        skb::{Skb, now_s},
    },
    scratch::Scratch,
    verdict::{Verdict, drop},
};

/// Bits of a whole key: network and address.
const KEY_BITS: u32 = (size_of::<NetAddr>() * 8) as u32;

/// SourcePort that belong to the nodes. A node trusts its peers' tunnel packets by their source, and translation would give
/// a task's packets just that source: so none may go to any tunnel port at all.
#[inline(always)]
pub fn is_node_port(packet: &Packet) -> bool {
    if packet.l4_kind != l4_kind::PORTS {
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
    unsafe { NODES.get(NetAddr { net: HOST_NET, addr: packet.dst }) }.is_some()
        || published::is_node_address(&packet.dst)
}

/// A new flow of a task of network `net`, to anything that is not of its network. `None` where no port is free.
#[inline(always)]
pub fn create_flow(skb: Skb, s: &mut Scratch, net: u32) -> Option<Verdict> {
    let translatable = s.packet.l4_kind == l4_kind::PORTS || s.packet.l4_kind == l4_kind::ECHO_REQUEST;
    if !translatable {
        return Some(drop(DropReason::Protocol));
    }
    let Some(route) = ROUTES.get(Key::new(KEY_BITS, NetAddr { net: HOST_NET, addr: s.packet.dst })) else {
        return Some(drop(DropReason::NoRoute));
    };
    // As addresses stand in keys, an IPv6 default route covers IPv4, too.
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
