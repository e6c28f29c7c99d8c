//! Flows to VIPs.
//!
//! `hooks::task_out` calls this. Most connections to a VIP need no such flow, because `hooks::sock`
//! replaces the VIP when the socket is opened. This is for packets that bypass the socket hooks,
//! such as those of raw sockets or of namespaces inside a task.

use weft_ebpf_common::{Action, DropReason, NetAddr};

use super::{
    apply,
    insert::{self, SourcePort},
    pick::pick_backend,
};
use crate::{
    maps::VIPS,
    packet::{parse::Packet, skb::Skb},
    scratch::Scratch,
    verdict::{Verdict, drop},
};

/// The id of the service whose VIP on network `net` is the packet's destination.
#[inline(always)]
pub fn find_service(net: u32, packet: &Packet) -> Option<u32> {
    // SAFETY: only user space writes this map. If it deletes the entry meanwhile, the memory still
    // belongs to the map and holds at worst another entry.
    unsafe { VIPS.get(NetAddr { net, addr: packet.dst }) }.copied()
}

/// Creates a flow from a task of network `net`: chooses a backend and sends the packet. `None` if
/// the service has no backend that takes new flows.
#[inline(always)]
pub fn create_flow(skb: Skb, s: &mut Scratch, net: u32, service: u32) -> Option<Verdict> {
    let (id, backend) = pick_backend(service)?;
    insert::write_untranslated(&s.packet, &mut s.flow);
    s.flow.backend = id;
    s.flow.dst = if s.packet.v4 { backend.v4 } else { backend.v6 };
    s.flow.action = if backend.ifindex != 0 { Action::LocalBackend } else { Action::Overlay } as u8;
    if s.flow.dst == s.packet.src {
        // The task itself is the backend. It sees the VIP as the other end, in both directions.
        s.flow.src = s.packet.dst;
    }
    insert::write_reply(&s.packet, Action::Task, &mut s.reply);
    s.reply.net = net;
    insert::write_reply_key(net, s.packet.proto, &s.flow, &mut s.reply_key);
    if !insert::insert_pair(s, SourcePort::Keep) {
        return Some(drop(DropReason::PortsExhausted));
    }
    Some(apply::translate_and_send(skb, &s.packet, &s.flow, Some(backend)))
}
