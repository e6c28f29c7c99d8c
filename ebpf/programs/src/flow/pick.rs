//! Which backend a new flow gets.

use weft_ebpf_common::{Backend, SlotKey};

use crate::{
    counters::count_flow,
    maps::{BACKENDS, SERVICES, SLOTS},
    packet::skb::{cpu_id, random},
};

/// While user space rewrites the slots, one may name a backend that is gone: so many are tried.
const SLOT_ATTEMPTS: u32 = 4;

#[inline(always)]
pub fn find_backend(id: u64) -> Option<&'static Backend> {
    // SAFETY: written by user space only; deleted meanwhile, it stays memory of the map, at worst another entry by now.
    unsafe { BACKENDS.get(id) }
}

/// The next backend of a service, round robin. Every CPU goes round by itself, starting at its own slot, so none waits
/// for another.
#[inline(always)]
pub fn pick_backend(service: u32) -> Option<(u64, &'static Backend)> {
    // SAFETY: as in `find_backend`.
    let slots = unsafe { SERVICES.get(service) }?.slots;
    if slots == 0 {
        return None;
    }
    let start = match count_flow(service) {
        Some(flows) => (flows as u32).wrapping_add(cpu_id()),
        None => random(),
    };
    let mut attempts = 0;
    while attempts < SLOT_ATTEMPTS {
        let slot = start.wrapping_add(attempts) % slots;
        // SAFETY: as in `find_backend`.
        if let Some(&id) = unsafe { SLOTS.get(SlotKey { service, slot }) }
            && let Some(found) = find_backend(id)
            && found.takes_new()
        {
            return Some((id, found));
        }
        attempts += 1;
    }
    None
}
