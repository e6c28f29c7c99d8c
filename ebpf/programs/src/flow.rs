//! Flows: what becomes of a packet whose flow is known, and how the replies of two flows are told apart.

use weft_ebpf_common::{Action, Backend, DropReason, EGRESS_FIRST_PORT, Flow, FlowKey, flow_flags, zone};

use crate::{
    drops::{count, drop},
    maps::{FLOWS, Scratch},
    packet::{Packet, TCP, TCP_FIN, TCP_RST},
    pick::backend,
    refuse,
    rewrite::translate,
    send,
    skb::{Skb, Verdict, now_s, random},
};

/// `BPF_NOEXIST`: an insertion fails where the key is taken.
const NEW_ONLY: u64 = 1;
/// How many ports are tried before a flow is refused.
const PORT_TRIES: u32 = 16;
/// A translated datagram flow that was quiet for so long may lose its port to another.
/// RFC 4787, REQ-5, wants two minutes at least.
const IDLE_S: u32 = 120;
/// A connection to the outside that nobody answered in such a time may lose its port to another.
const UNANSWERED_S: u32 = 60;
/// A connection whose other end closed it so long ago may too.
const CLOSED_S: u32 = 8;
/// First port that a flow gets whose own is taken.
const FIRST_PORT: u16 = 1024;

/// What is known of a packet's flow.
pub enum Known {
    /// Nothing, or nothing that counts any more.
    No,
    /// It goes on. The backend is there where the flow has one and goes towards it.
    Yes(&'static mut Flow, Option<&'static Backend>),
    /// Its backend is gone.
    Dead,
}

/// Looks a packet up by its key, and notes what it says of its connection.
#[inline(always)]
pub fn known(packet: &Packet, key: &FlowKey) -> Known {
    let Some(flow) = FLOWS.get_ptr_mut(key) else { return Known::No };
    // SAFETY: a live element. Other CPUs may write `flags` and `seen_s` at the same time; both survive a lost update.
    let flow = unsafe { &mut *flow };
    let closed = flow.flags & (flow_flags::FIN | flow_flags::RST) != 0;
    if flow.backend == 0 {
        if packet.is_syn() && closed {
            if flow.action == Action::Link as u8 {
                // The same ports again, but the port that the node gave may be another connection's by now.
                return Known::No;
            }
            // What was true of the old connection may not be of this one.
            flow.flags = 0;
        }
        note(packet, flow);
        return Known::Yes(flow, None);
    }
    let found = backend(flow.backend);
    if packet.is_syn() && (closed || found.is_none_or(|backend| !backend.takes_new())) {
        return Known::No;
    }
    let Some(found) = found else {
        return if packet.is_tcp() { Known::Dead } else { Known::No };
    };
    note(packet, flow);
    Known::Yes(flow, Some(found))
}

/// [`Backend`] as the programs ask it.
pub trait TakesNew {
    fn takes_new(&self) -> bool;
}

impl TakesNew for Backend {
    #[inline(always)]
    fn takes_new(&self) -> bool {
        self.flags & weft_ebpf_common::backend_flags::DRAINING == 0
    }
}

#[inline(always)]
fn note(packet: &Packet, flow: &mut Flow) {
    if packet.is_tcp() {
        if flow.flags & flow_flags::UNANSWERED != 0 {
            flow.flags &= !flow_flags::UNANSWERED;
        }
        if packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
            let fin = if packet.tcp_flags & TCP_FIN != 0 { flow_flags::FIN } else { 0 };
            let rst = if packet.tcp_flags & TCP_RST != 0 { flow_flags::RST } else { 0 };
            flow.flags |= fin | rst;
            flow.seen_s = now_s();
        }
    } else if flow.seen_s != 0 {
        flow.seen_s = now_s();
    }
}

/// A task closes its connection to the outside. The entry for the answers is the one that holds the node's port, so it has
/// to know.
#[inline(always)]
pub fn note_answers(packet: &Packet, flow: &Flow, back_key: &mut FlowKey) {
    if !packet.is_tcp() || packet.tcp_flags & (TCP_FIN | TCP_RST) == 0 || flow.action != Action::Link as u8 {
        return;
    }
    answer_key(zone::HOST, packet.proto, flow, back_key);
    // SAFETY: as in `known`.
    if let Some(back) = FLOWS.get_ptr_mut(&*back_key).map(|back| unsafe { &mut *back }) {
        note(packet, back);
    }
}

/// Makes of a packet what its flow says and sends it on.
#[inline(always)]
pub fn go(skb: Skb, packet: &Packet, flow: &Flow, backend: Option<&Backend>) -> Verdict {
    if flow.action == Action::Request as u8
        && let Some(mtu) = send::too_small_tunnel(skb)
    {
        return refuse::too_big(skb, packet, mtu);
    }
    if translate(skb, packet, flow).is_err() {
        return drop(DropReason::Helper);
    }
    on(skb, flow, backend)
}

/// Sends a packet on that is what its flow says already.
#[inline(always)]
pub fn on(skb: Skb, flow: &Flow, backend: Option<&Backend>) -> Verdict {
    if let Some(backend) = backend {
        count(skb, flow.backend);
        if flow.action == Action::LocalBackend as u8 {
            return send::to_task(skb, backend.ifindex, &backend.mac);
        }
        if flow.action == Action::Request as u8 {
            return send::request(skb, flow.backend, backend);
        }
        return send::overlay(skb, backend.net, &backend.node);
    }
    if flow.action == Action::Reply as u8 {
        send::reply(skb, &flow.node)
    } else if flow.action == Action::Client as u8 {
        send::to_client(skb, flow)
    } else if flow.action == Action::Link as u8 {
        send::to_neighbour(skb, flow.ifindex)
    } else {
        send::to_task_at(skb, flow.net, &flow.dst)
    }
}

/// Writes the value of a flow that changes nothing about its packets.
#[inline(always)]
pub fn unchanged(packet: &Packet, flow: &mut Flow) {
    *flow = Flow {
        src: packet.src,
        dst: packet.dst,
        sport_be: packet.sport_be,
        dport_be: packet.dport_be,
        ..Flow::default()
    };
}

/// Writes the value of the flow that turns answers to this packet back: they come from where it was sent to.
#[inline(always)]
pub fn restored(packet: &Packet, action: Action, back: &mut Flow) {
    *back = Flow {
        src: packet.dst,
        dst: packet.src,
        sport_be: packet.dport_be,
        dport_be: packet.sport_be,
        action: action as u8,
        ..Flow::default()
    };
}

/// Writes the key of the answers to `flow`'s packets, as seen in `zone`.
#[inline(always)]
pub fn answer_key(zone: u32, proto: u8, flow: &Flow, key: &mut FlowKey) {
    key.zone = zone;
    key.src = flow.dst;
    key.dst = flow.src;
    key.sport_be = flow.dport_be;
    key.dport_be = flow.sport_be;
    key.proto = proto;
    key._pad = [0; 3];
}

/// Which ports a flow may get.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ports {
    /// Its own if that is free, else any.
    Own,
    /// One of the range that is kept for egress.
    Egress,
}

/// Enters `s.back` under `s.back_key`, the key of the answers to `s.flow`. Where another flow's answers have that key,
/// `s.flow` gets another source port. Then enters `s.flow` under `s.key`. False where no port is free.
#[inline(always)]
pub fn enter(s: &mut Scratch, ports: Ports) -> bool {
    if ports == Ports::Egress {
        take_port(s, ports);
    }
    let mut tries = 0;
    while tries < PORT_TRIES {
        if FLOWS.insert(&s.back_key, &s.back, NEW_ONLY).is_ok() || (may_replace(s) && replace(s)) {
            return FLOWS.insert(&s.key, &s.flow, 0).is_ok();
        }
        take_port(s, ports);
        tries += 1;
    }
    false
}

#[inline(always)]
fn replace(s: &Scratch) -> bool {
    // Not over it: of two who replace it at once, one must see that it lost.
    let _ = FLOWS.remove(&s.back_key);
    FLOWS.insert(&s.back_key, &s.back, NEW_ONLY).is_ok()
}

#[inline(always)]
fn take_port(s: &mut Scratch, ports: Ports) {
    let first = if ports == Ports::Egress { EGRESS_FIRST_PORT } else { FIRST_PORT };
    // Multiply and shift: evenly over the range, without a division.
    let span = u32::from(u16::MAX - first) + 1;
    let port = first + (((random() >> 16) * span) >> 16) as u16;
    s.flow.sport_be = port.to_be();
    s.back_key.dport_be = port.to_be();
}

/// Whether the flow that holds `s.back_key` has no more use for it.
#[inline(always)]
fn may_replace(s: &Scratch) -> bool {
    // SAFETY: read at once; a stale answer costs one more try, or a port that was about to be free.
    let Some(holder) = (unsafe { FLOWS.get(&s.back_key) }) else { return true };
    let back = &s.back;
    let same = holder.src == back.src
        && holder.dst == back.dst
        && holder.sport_be == back.sport_be
        && holder.dport_be == back.dport_be
        && holder.net == back.net;
    if same {
        return true;
    }
    let quiet_s = now_s().wrapping_sub(holder.seen_s);
    if s.back_key.proto == TCP {
        holder.flags & flow_flags::RST != 0
            || holder.flags & flow_flags::FIN != 0 && quiet_s > CLOSED_S
            || holder.flags & flow_flags::UNANSWERED != 0 && quiet_s > UNANSWERED_S
    } else {
        holder.seen_s != 0 && quiet_s > IDLE_S
    }
}
