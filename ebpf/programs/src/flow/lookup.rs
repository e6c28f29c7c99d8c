//! Looking up the flow of a packet, and tracking the state of flows.
//!
//! The hooks call [`lookup()`] for each packet that has a flow key.
//!
//! weft tracks only what it needs to reuse ports and to accept new connections on old keys. It does
//! not validate TCP sequence numbers; the hosts at both ends do.
//!
//! ```text
//! first TCP packet to the outside
//!             |
//!        UNANSWERED --- no answer for 60 s ------------------> port may be reused
//!             | answer
//!             v
//!           open ------ datagrams to the outside: idle 120 s -> port may be reused
//!             | FIN or RST
//!             v
//!          closed ----- at once after RST -------------------> port may be reused
//!             |  |      without a packet for 8 s after FIN
//!             |  |      (60 s if it was to a task)
//!             |  |
//!             |  +----- other packets: still half open, the time starts again
//!             |
//!             +-------- SYN: a new connection with the same key, to another backend
//!                       (to the same one right after RST: see `is_repeated`)
//! ```
//!
//! All other flows start as open.

use weft_ebpf_common::{Action, Backend, Flow, FlowKey, flow_flags, zone};

use super::{insert::write_reply_key, pick::find_backend};
use crate::{
    maps::FLOWS,
    packet::{
        parse::{Packet, TCP_FIN, TCP_RST},
        skb::now_s,
    },
};

/// A SYN within this time after an RST repeats the SYN before it.
const REPEATED_SYN_S: u32 = 1;

/// Result of a lookup.
pub enum Lookup {
    /// The packet has no flow, or starts a new connection with the key of an old one.
    Miss,
    /// The packet's flow, and its backend if the flow goes to one.
    Hit(&'static mut Flow, Option<&'static Backend>),
    /// The packet is of a TCP connection whose backend no longer exists.
    BackendDead,
}

/// Looks up the flow of a packet by its key, and tracks the state of the flow.
#[inline(always)]
pub fn lookup(packet: &Packet, key: &FlowKey) -> Lookup {
    let Some(flow) = FLOWS.get_ptr_mut(key) else { return Lookup::Miss };
    // SAFETY: the pointer is to a live element. Other CPUs may write `flags` and `last_seen_s` at
    // the same time; a lost update of these does no harm.
    let flow = unsafe { &mut *flow };
    let closed = flow.flags & (flow_flags::FIN | flow_flags::RST) != 0;
    if flow.backend == 0 {
        if packet.is_syn() && closed {
            if flow.action == Action::Link as u8 {
                // A new connection with the same ports. The port that the old one got may belong to
                // another flow now.
                return Lookup::Miss;
            }
            // A new connection with the same key: forget the state of the old one.
            flow.flags &= flow_flags::ENCRYPTED;
        }
        track_state(packet, flow);
        return Lookup::Hit(flow, None);
    }
    let found = find_backend(flow.backend);
    if packet.is_syn() {
        if closed && !is_repeated(flow) || found.is_none_or(|backend| !backend.takes_new()) {
            return Lookup::Miss;
        }
        flow.flags &= flow_flags::ENCRYPTED;
    }
    let Some(found) = found else {
        return if packet.is_tcp() { Lookup::BackendDead } else { Lookup::Miss };
    };
    track_state(packet, flow);
    Lookup::Hit(flow, Some(found))
}

/// Whether a SYN for this flow repeats one that the client has just sent. A task that remembers an
/// old connection of the same ports (TIME_WAIT) answers a SYN with an ACK, the client ends the old
/// connection with an RST (RFC 9293, 3.10.7.3), and Linux repeats its SYN after some milliseconds.
/// Another backend could remember such a connection too, and the client would repeat its SYN only
/// after a second.
#[inline(always)]
fn is_repeated(flow: &Flow) -> bool {
    flow.flags & flow_flags::RST != 0 && now_s().wrapping_sub(flow.last_seen_s) <= REPEATED_SYN_S
}

/// Writes into a flow what a packet says about its state.
#[inline(always)]
fn track_state(packet: &Packet, flow: &mut Flow) {
    if packet.is_tcp() {
        if flow.flags & flow_flags::UNANSWERED != 0 {
            flow.flags &= !flow_flags::UNANSWERED;
        }
        if packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
            let fin = if packet.tcp_flags & TCP_FIN != 0 { flow_flags::FIN } else { 0 };
            let rst = if packet.tcp_flags & TCP_RST != 0 { flow_flags::RST } else { 0 };
            flow.flags |= fin | rst;
            flow.last_seen_s = now_s();
        } else if flow.flags & flow_flags::FIN != 0 {
            // One end may send data for a long time after the other has closed.
            flow.last_seen_s = now_s();
        }
    } else if flow.last_seen_s != 0 {
        flow.last_seen_s = now_s();
    }
}

/// Tracks the end of a connection to the outside also in the flow of its replies, if the task
/// closes it. That entry occupies the node's port.
#[inline(always)]
pub fn track_reply_entry(packet: &Packet, flow: &Flow, reply_key: &mut FlowKey) {
    if !packet.is_tcp() || packet.tcp_flags & (TCP_FIN | TCP_RST) == 0 || flow.action != Action::Link as u8 {
        return;
    }
    write_reply_key(zone::HOST, packet.proto, flow, reply_key);
    // SAFETY: as in `lookup`.
    if let Some(reply) = FLOWS.get_ptr_mut(&*reply_key).map(|reply| unsafe { &mut *reply }) {
        track_state(packet, reply);
    }
}
