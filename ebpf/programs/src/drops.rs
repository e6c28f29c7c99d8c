//! Counters. Each is per CPU, so adding needs no atomics.

use weft_ebpf_common::{DropReason, Traffic};

use crate::{
    maps::{BACKEND_STATS, DROPS},
    skb::{DROP, Skb, Verdict},
};

/// Drops the packet, for a reason that users can see.
#[inline(always)]
pub fn drop(reason: DropReason) -> Verdict {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a live element of a per-CPU map.
        unsafe { *count += 1 };
    }
    DROP
}

/// Counts a packet towards a backend.
#[inline(always)]
pub fn count(skb: Skb, backend: u64) {
    if let Some(traffic) = BACKEND_STATS.get_ptr_mut(backend) {
        // SAFETY: a live element of a per-CPU map.
        unsafe { add(&mut *traffic, skb.len()) };
    }
}

#[inline(always)]
fn add(traffic: &mut Traffic, bytes: u32) {
    traffic.packets += 1;
    traffic.bytes += u64::from(bytes);
}
