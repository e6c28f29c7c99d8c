//! Finding backends, and choosing the one for a new flow.
//!
//! `published`, `vip` and `hooks::sock` call [`pick_backend`] for a new flow. `lookup`,
//! `icmp_error` and the hooks call [`find_backend`] for a flow that has a backend.
//!
//! User space fills the slots 0 to `Service::slots` - 1 of a service with the backends that take
//! new flows. The id of a backend is never used again, so an id that `BACKENDS` does not have is
//! that of a dead backend.

use weft_ebpf_common::{Backend, SlotKey};

use crate::{
    counters::count_flow,
    maps::{BACKENDS, SERVICES, SLOTS},
    packet::skb::{cpu_id, random},
};

/// Number of slots that are tried. A slot may have a dead backend while user space rewrites the
/// slots.
const SLOT_ATTEMPTS: u32 = 4;

/// The backend with an id. `None` if it is dead.
#[inline(always)]
pub fn find_backend(id: u64) -> Option<&'static Backend> {
    // SAFETY: only user space writes this map. If it deletes the entry meanwhile, the memory still
    // belongs to the map and holds at worst another entry.
    unsafe { BACKENDS.get(id) }
}

/// Chooses the next backend of a service, round robin, and returns its id too. `None` if no backend
/// takes new flows. Each CPU counts for itself and starts at its own slot, so that no CPU waits for
/// another.
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
