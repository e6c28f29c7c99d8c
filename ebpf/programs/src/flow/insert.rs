//! How a new flow is entered, and how the replies of two flows are told apart.

use weft_ebpf_common::{Action, EGRESS_FIRST_PORT, Flow, FlowKey, flow_flags};

use crate::{
    maps::FLOWS,
    packet::{
        parse::{Packet, TCP},
        skb::{now_s, random},
    },
    scratch::Scratch,
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
