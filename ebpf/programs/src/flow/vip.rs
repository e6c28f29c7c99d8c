//! Virtual addresses, packet by packet: for what bypasses the socket hooks.

use weft_ebpf_common::{Action, DropReason, NetAddr};

use super::{
    apply,
    insert::{self, Ports},
    pick::pick,
};
use crate::{
    maps::VIPS,
    packet::{parse::Packet, skb::Skb},
    scratch::Scratch,
    verdict::{Verdict, drop},
};

/// The service whose virtual address the packet is for.
#[inline(always)]
pub fn service(net: u32, packet: &Packet) -> Option<u32> {
    // SAFETY: written by user space only; deleted meanwhile, it stays memory of the map, at worst another entry by now.
    unsafe { VIPS.get(NetAddr { net, addr: packet.dst }) }.copied()
}

/// A new flow of a task of network `net`. `None` where the service has no backend.
#[inline(always)]
pub fn new(skb: Skb, s: &mut Scratch, net: u32, service: u32) -> Option<Verdict> {
    let (id, backend) = pick(service)?;
    insert::unchanged(&s.packet, &mut s.flow);
    s.flow.backend = id;
    s.flow.dst = if s.packet.v4 { backend.v4 } else { backend.v6 };
    s.flow.action = if backend.ifindex != 0 { Action::LocalBackend } else { Action::Overlay } as u8;
    if s.flow.dst == s.packet.src {
        // The task picked itself: it sees the virtual address as the other end, in both directions.
        s.flow.src = s.packet.dst;
    }
    insert::restored(&s.packet, Action::Task, &mut s.back);
    s.back.net = net;
    insert::answer_key(net, s.packet.proto, &s.flow, &mut s.back_key);
    if !insert::enter(s, Ports::Own) {
        return Some(drop(DropReason::PortsExhausted));
    }
    Some(apply::go(skb, &s.packet, &s.flow, Some(backend)))
}
