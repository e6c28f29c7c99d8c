//! The kernel's counters of dropped packets, summed over all CPUs. Pure.
//!
//! `kernel` reads them, `mesh` logs their changes.

use std::collections::BTreeMap;

use weft_ebpf_common::DropReason;

/// Dropped packets for each reason since the maps were created. The counters survive the daemon.
pub(crate) type Drops = BTreeMap<DropReason, u64>;

/// The packets that were dropped between two readings, by the name of the reason. A reason without
/// packets is left out.
pub(crate) fn dropped(before: &Drops, now: &Drops) -> BTreeMap<&'static str, u64> {
    now.iter()
        .map(|(reason, count)| (reason.name(), count.saturating_sub(before.get(reason).copied().unwrap_or_default())))
        .filter(|(_, packets)| *packets > 0)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_drops_are_returned() {
        let count = |no_task, spoofed| Drops::from([(DropReason::NoTask, no_task), (DropReason::Spoofed, spoofed)]);
        assert_eq!(dropped(&count(3, 1), &count(5, 1)), BTreeMap::from([("no-task", 2)]));
        assert_eq!(dropped(&Drops::new(), &count(0, 4)), BTreeMap::from([("spoofed", 4)]));
        assert!(dropped(&count(3, 1), &count(3, 1)).is_empty());
    }
}
