//! Inserting a new flow and the flow of its replies into `FLOWS`.
//!
//! `create_flow` of the other modules calls this: it fills `Scratch` with the functions `write_*`,
//! then calls [`insert_pair`].
//!
//! Two flows must not have the same reply key, or the replies of one would go to the other. If the
//! key is taken, the new flow gets another source port:
//!
//! ```text
//! key        C:40000 -> N:8080             value      C:40000 -> T:80     flow
//! reply key  T:80    -> C:40000            value      N:8080  -> C:40000  flow of the replies
//!                           |
//!                           taken by another flow: C:40000 becomes C:random in flow and reply key
//! ```

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

/// Flag of an insertion that fails if the key exists.
const NO_EXIST: u64 = BPF_NOEXIST as u64;
/// Number of random ports that are tried before a flow is refused.
const PORT_ATTEMPTS: u32 = 16;
/// A flow of datagrams without a packet for this time may lose its port to another flow. RFC 4787,
/// REQ-5, requires at least two minutes.
const DATAGRAM_IDLE_S: u32 = 120;
/// A connection to the outside without an answer for this time may lose its port to another flow.
const CONNECTION_UNANSWERED_S: u32 = 60;
/// A connection to the outside that was closed this long ago may lose its port to another flow.
const CONNECTION_CLOSED_S: u32 = 8;
/// The same for a connection to a task. Linux remembers a connection that it closed first for 60 s
/// (TIME_WAIT; RFC 9293, 3.3.2). In this time it accepts a new connection of the same ports only if
/// its timestamps are later (RFC 7323, 5.5; RFC 6191), but a client's timestamps start elsewhere
/// for each address that it connects to. The SYN would be lost.
const TIME_WAIT_S: u32 = 60;
/// So many ports are tried before one is taken from a connection in TIME_WAIT. A SYN that may be
/// lost is better than no connection.
const TIME_WAIT_ATTEMPTS: u32 = PORT_ATTEMPTS / 2;
/// First port of the range that a flow gets a port from if its own is taken.
const FIRST_UNPRIVILEGED_PORT: u16 = 1024;

/// Writes the value of a flow that does not translate its packets. The caller then sets what
/// changes.
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

/// Writes the value of the flow for the replies to this packet. It restores the addresses that the
/// sender of the packet used: a reply must come from where the packet was sent to.
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

/// Writes the key in `zone` of the replies to packets that `flow` has translated.
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

/// Which source port a new flow gets.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SourcePort {
    /// Its own, or a random one if its own is taken.
    Keep,
    /// A random one of the range that is reserved for egress.
    EgressRange,
}

/// Inserts `s.reply` with the key `s.reply_key`, then `s.flow` with the key `s.key`. If another
/// flow has the reply key, `s.flow` first gets another source port. False if no port is free.
#[inline(always)]
pub fn insert_pair(s: &mut Scratch, source_port: SourcePort) -> bool {
    if source_port == SourcePort::EgressRange {
        assign_random_port(s, source_port);
    }
    let mut attempts = 0;
    while attempts < PORT_ATTEMPTS {
        let keeps_closed = source_port == SourcePort::Keep && attempts < TIME_WAIT_ATTEMPTS;
        let closed_s = if keeps_closed { TIME_WAIT_S } else { CONNECTION_CLOSED_S };
        if FLOWS.insert(&s.reply_key, &s.reply, NO_EXIST).is_ok()
            || (is_reply_key_reusable(s, closed_s) && replace_reply_entry(s))
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
    // Do not overwrite the entry: if two CPUs replace it at the same time, one of the insertions
    // must fail.
    let _ = FLOWS.remove(&s.reply_key);
    FLOWS.insert(&s.reply_key, &s.reply, NO_EXIST).is_ok()
}

#[inline(always)]
fn assign_random_port(s: &mut Scratch, source_port: SourcePort) {
    let first = if source_port == SourcePort::EgressRange { EGRESS_FIRST_PORT } else { FIRST_UNPRIVILEGED_PORT };
    // Multiply and shift: evenly distributed over the range, without a division.
    let span = u32::from(u16::MAX - first) + 1;
    let port = first + (((random() >> 16) * span) >> 16) as u16;
    s.flow.sport_be = port.to_be();
    s.reply_key.dport_be = port.to_be();
}

/// Whether `s.reply_key` may be taken from the flow that has it: that flow is the new one itself,
/// is closed for `closed_s`, or was idle for too long.
#[inline(always)]
fn is_reply_key_reusable(s: &Scratch, closed_s: u32) -> bool {
    // SAFETY: the entry is read at once. If it is outdated, one more port is tried, or a port is
    // reused a moment early.
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
            || holder.flags & flow_flags::FIN != 0 && quiet_s > closed_s
            || holder.flags & flow_flags::UNANSWERED != 0 && quiet_s > CONNECTION_UNANSWERED_S
    } else {
        holder.last_seen_s != 0 && quiet_s > DATAGRAM_IDLE_S
    }
}
