//! What is known of the flow of a packet.

use weft_ebpf_common::{Action, Backend, Flow, FlowKey, flow_flags, zone};

use super::{insert::answer_key, pick::backend};
use crate::{
    maps::FLOWS,
    packet::{
        parse::{Packet, TCP_FIN, TCP_RST},
        skb::now_s,
    },
};

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
