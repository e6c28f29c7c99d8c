//! Virtual addresses, packet by packet: for what bypasses the socket hooks.

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

/// The service whose virtual address the packet is for.
#[inline(always)]
pub fn find_service(net: u32, packet: &Packet) -> Option<u32> {
    // SAFETY: written by user space only; deleted meanwhile, it stays memory of the map, at worst another entry by now.
    unsafe { VIPS.get(NetAddr { net, addr: packet.dst }) }.copied()
}

/// A new flow of a task of network `net`. `None` where the service has no backend.
#[inline(always)]
pub fn create_flow(skb: Skb, s: &mut Scratch, net: u32, service: u32) -> Option<Verdict> {
    let (id, backend) = pick_backend(service)?;
    insert::write_untranslated(&s.packet, &mut s.flow);
    s.flow.backend = id;
    s.flow.dst = if s.packet.v4 { backend.v4 } else { backend.v6 };
    s.flow.action = if backend.ifindex != 0 { Action::LocalBackend } else { Action::Overlay } as u8;
    if s.flow.dst == s.packet.src {
        // The task picked itself: it sees the virtual address as the other end, in both directions.
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
