//! Counters. Each is per CPU, so adding needs no atomics.

use weft_ebpf_common::{DropReason, Traffic};

use crate::maps::{BACKEND_STATS, DROPS};

#[inline(always)]
pub fn count_drop(reason: DropReason) {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a live element of a per-CPU map.
        unsafe { *count += 1 };
    }
}

/// Counts a packet of `bytes` bytes towards a backend.
#[inline(always)]
pub fn count(bytes: u32, backend: u64) {
    if let Some(traffic) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: a live element of a per-CPU map.
        unsafe { add(&mut *traffic, bytes) };
    }
}

#[inline(always)]
fn add(traffic: &mut Traffic, bytes: u32) {
    traffic.packets += 1;
    traffic.bytes += u64::from(bytes);
}
