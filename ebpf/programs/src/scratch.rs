//! Per-CPU memory for the packet that a tc program handles, because the verifier allows only 512
//! bytes of stack.
//!
//! A hook takes it once with [`scratch`] and passes it on. The socket hooks must not use it. No
//! field is cleared between packets: code must write a field before it reads it.

use aya_ebpf::{macros::map, maps::PerCpuArray};
use weft_ebpf_common::{Flow, FlowKey, FragmentKey};

use crate::packet::parse::Packet;

/// The packet in progress, and the flows that are looked up or created for it.
#[repr(C)]
pub struct Scratch {
    /// The packet, as parsed.
    pub packet: Packet,
    /// Key of the packet's own flow entry.
    pub key: FlowKey,
    /// Value of the flow entry that is created for the packet.
    pub flow: Flow,
    /// Key of the flow entry that is created for the replies.
    pub reply_key: FlowKey,
    /// Value of the flow entry that is created for the replies.
    pub reply: Flow,
    /// Key of the packet's entry in `FRAGMENTS`.
    pub fragment_key: FragmentKey,
    /// The packet that an ICMP error quotes.
    pub quoted: Packet,
}

#[map]
static SCRATCH: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// The scratch memory of this CPU. Only for the tc hooks: they run in softirq context, one at a
/// time on a CPU. The array always has this entry, but the verifier requires that callers check for
/// `None`.
#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: the memory is per CPU and lives as long as the map. tc programs do not nest, so no
    // second program of this object runs on this CPU before the first has returned. Every bit
    // pattern is a valid `Scratch`.
    SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}
