//! How the programs count. All counters are per CPU, so that counting needs no atomic operation.
//!
//! `verdict` counts dropped packets, `flow::pick` new flows, and `hooks::names_out` answers. No
//! other code writes to a counter map. A missing entry is not an error: the event is then not
//! counted.

use weft_ebpf_common::DropReason;

use crate::maps::{DROPS, NAME_ANSWERS, SERVICE_STATS};

/// Counts a dropped packet.
#[inline(always)]
pub fn count_drop(reason: DropReason) {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: the pointer is to this CPU's value in a per-CPU map.
        unsafe { *count += 1 };
    }
}

/// Counts a question about a name that was answered.
#[inline(always)]
pub fn count_answer() {
    if let Some(count) = NAME_ANSWERS.get_ptr_mut(0) {
        // SAFETY: the pointer is to this CPU's value in a per-CPU map.
        unsafe { *count += 1 };
    }
}

/// Counts a new flow of a service, and returns how many flows this CPU had counted before it.
/// `None` if user space has no counter for the service.
#[inline(always)]
pub fn count_flow(service: u32) -> Option<u64> {
    let stats = SERVICE_STATS.get_ptr_mut(service)?;
    // SAFETY: the pointer is to this CPU's value in a per-CPU map.
    let flows = unsafe { &mut (*stats).flows };
    let before = *flows;
    *flows += 1;
    Some(before)
}
