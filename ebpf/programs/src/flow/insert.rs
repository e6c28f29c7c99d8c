//! How a new flow is entered, and how the replies of two flows are told apart.

use aya_ebpf::bindings::BPF_NOEXIST;
use weft_ebpf_common::{Action, EGRESS_FIRST_PORT, Flow, FlowKey, flow_flags};

use crate::{
    maps::FLOWS,
    packet::{
        parse::{Packet, TCP},
        skb::{now_s, random},
    },
    scratch::Scratch,
};

/// An insertion fails if the key exists.
const NO_EXIST: u64 = BPF_NOEXIST as u64;
/// How many ports are tried before a flow is refused.
const PORT_ATTEMPTS: u32 = 16;
/// A translated datagram flow that was quiet for so long may lose its port to another.
/// RFC 4787, REQ-5, wants two minutes at least.
const DATAGRAM_IDLE_S: u32 = 120;
/// A connection to the outside that nobody answered in such a time may lose its port to another.
const CONNECTION_UNANSWERED_S: u32 = 60;
/// A connection whose other end closed it so long ago may too.
const CONNECTION_CLOSED_S: u32 = 8;
/// First port that a flow gets whose own is taken.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// Writes the value of a flow that changes nothing about its packets.
#[inline(always)]
pub fn write_untranslated(packet: &Packet, flow: &mut Flow) {
    *flow = Flow {
        src: packet.src,
        dst: packet.dst,
        sport_be: packet.sport_be,
        dport_be: packet.dport_be,
        ..Flow::default()
    };
}

/// Writes the value of the flow that turns answers to this packet reply: they come from where it was sent to.
#[inline(always)]
pub fn write_reply(packet: &Packet, action: Action, reply: &mut Flow) {
    *reply = Flow {
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
pub fn write_reply_key(zone: u32, proto: u8, flow: &Flow, key: &mut FlowKey) {
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
pub enum SourcePort {
    /// Its own if that is free, else any.
    Keep,
    /// One of the range that is kept for egress.
    EgressRange,
}

/// Enters `s.reply` under `s.reply_key`, the key of the answers to `s.flow`. Where another flow's answers have that key,
/// `s.flow` gets another source port. Then enters `s.flow` under `s.key`. False where no port is free.
#[inline(always)]
pub fn insert_pair(s: &mut Scratch, source_port: SourcePort) -> bool {
    if source_port == SourcePort::EgressRange {
        assign_random_port(s, source_port);
    }
    let mut attempts = 0;
    while attempts < PORT_ATTEMPTS {
        if FLOWS.insert(&s.reply_key, &s.reply, NO_EXIST).is_ok()
            || (is_reply_key_reusable(s) && replace_reply_entry(s))
        {
            return FLOWS.insert(&s.key, &s.flow, 0).is_ok();
        }
        assign_random_port(s, source_port);
        attempts += 1;
    }
    false
}

#[inline(always)]
fn replace_reply_entry(s: &Scratch) -> bool {
    // Not over it: of two who replace it at once, one must see that it lost.
    let _ = FLOWS.remove(&s.reply_key);
    FLOWS.insert(&s.reply_key, &s.reply, NO_EXIST).is_ok()
}

#[inline(always)]
fn assign_random_port(s: &mut Scratch, source_port: SourcePort) {
    let first = if source_port == SourcePort::EgressRange { EGRESS_FIRST_PORT } else { FIRST_UNPRIVILEGED_PORT };
    // Multiply and shift: evenly over the range, without a division.
    let span = u32::from(u16::MAX - first) + 1;
    let port = first + (((random() >> 16) * span) >> 16) as u16;
    s.flow.sport_be = port.to_be();
    s.reply_key.dport_be = port.to_be();
}

/// Whether the flow that holds `s.reply_key` has no more use for it.
#[inline(always)]
fn is_reply_key_reusable(s: &Scratch) -> bool {
    // SAFETY: read at once; a stale answer costs one more try, or a port that was about to be free.
    let Some(holder) = (unsafe { FLOWS.get(&s.reply_key) }) else { return true };
    let reply = &s.reply;
    let same = holder.src == reply.src
        && holder.dst == reply.dst
        && holder.sport_be == reply.sport_be
        && holder.dport_be == reply.dport_be
        && holder.net == reply.net;
    if same {
        return true;
    }
    let quiet_s = now_s().wrapping_sub(holder.last_seen_s);
    if s.reply_key.proto == TCP {
        holder.flags & flow_flags::RST != 0
            || holder.flags & flow_flags::FIN != 0 && quiet_s > CONNECTION_CLOSED_S
            || holder.flags & flow_flags::UNANSWERED != 0 && quiet_s > CONNECTION_UNANSWERED_S
    } else {
        holder.last_seen_s != 0 && quiet_s > DATAGRAM_IDLE_S
    }
}
