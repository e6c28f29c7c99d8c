//! What is known of the flow of a packet.

use weft_ebpf_common::{Action, Backend, Flow, FlowKey, flow_flags, zone};

use super::{insert::write_reply_key, pick::find_backend};
use crate::{
    maps::FLOWS,
    packet::{
        parse::{Packet, TCP_FIN, TCP_RST},
        skb::now_s,
    },
};

/// What is known of a packet's flow.
pub enum Lookup {
    /// Nothing, or nothing that counts any more.
    Miss,
    /// It goes on. The backend is there where the flow has one and goes towards it.
    Hit(&'static mut Flow, Option<&'static Backend>),
    /// Its backend is gone.
    BackendDead,
}

/// Looks a packet up by its key, and notes what it says of its connection.
#[inline(always)]
pub fn lookup(packet: &Packet, key: &FlowKey) -> Lookup {
    let Some(flow) = FLOWS.get_ptr_mut(key) else { return Lookup::Miss };
    // SAFETY: a live element. Other CPUs may write `flags` and `last_seen_s` at the same time; both survive a lost update.
    let flow = unsafe { &mut *flow };
    let closed = flow.flags & (flow_flags::FIN | flow_flags::RST) != 0;
    if flow.backend == 0 {
        if packet.is_syn() && closed {
            if flow.action == Action::Link as u8 {
                // The same ports again, but the port that the node gave may be another connection's by now.
                return Lookup::Miss;
            }
            // What was true of the old connection may not be of this one.
            flow.flags = 0;
        }
        track_state(packet, flow);
        return Lookup::Hit(flow, None);
    }
    let found = find_backend(flow.backend);
    if packet.is_syn() && (closed || found.is_none_or(|backend| !backend.takes_new())) {
        return Lookup::Miss;
    }
    let Some(found) = found else {
        return if packet.is_tcp() { Lookup::BackendDead } else { Lookup::Miss };
    };
    track_state(packet, flow);
    Lookup::Hit(flow, Some(found))
}

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
        }
    } else if flow.last_seen_s != 0 {
        flow.last_seen_s = now_s();
    }
}

/// A task closes its connection to the outside. The entry for the answers is the one that holds the node's port, so it has
/// to know.
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
