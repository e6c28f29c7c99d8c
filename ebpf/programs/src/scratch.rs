//! Per-CPU memory for what is too large for the stack.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use weft_ebpf_common::{Flow, FlowKey, FragmentKey};

use crate::packet::parse::Packet;

/// Room for what is too large for the stack.
#[repr(C)]
pub struct Scratch {
    pub packet: Packet,
    /// The packet's own key.
    pub key: FlowKey,
    /// A flow under construction, and the key and value of its replies.
    pub flow: Flow,
    pub reply_key: FlowKey,
    pub reply: Flow,
    pub fragment_key: FragmentKey,
    /// The packet that an ICMP error quotes.
    pub quoted: Packet,
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// This CPU's scratch room. For the tc hooks only: they run in softirq context, one at a time on a CPU.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: per-CPU memory that lives as long as the map; no second program of this object runs on this CPU before
    // the first returned, since tc programs do not nest. Every bit pattern is a valid `Scratch`.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}
