//! Counters. Each is per CPU, so adding needs no atomics.

use weft_ebpf_common::DropReason;

use crate::maps::{DROPS, SERVICE_STATS};

#[inline(always)]
pub fn count_drop(reason: DropReason) {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a live element of a per-CPU map.
        unsafe { *count += 1 };
    }
}

/// Counts a new flow of a service, and returns how many this CPU had counted before it. `None` where the service is not
/// counted.
#[inline(always)]
pub fn count_flow(service: u32) -> Option<u64> {
    let stats = SERVICE_STATS.get_ptr_mut(service)?;
    // SAFETY: a live element of a per-CPU map.
    let flows = unsafe { &mut (*stats).flows };
    let before = *flows;
    *flows += 1;
    Some(before)
}
