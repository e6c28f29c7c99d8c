//! The kernel's counters of dropped packets, summed over all CPUs. Pure.
//!
//! `kernel` reads them, `mesh` logs their changes.

use std::collections::BTreeMap;

use weft_ebpf_common::DropReason;

/// Dropped packets for each reason since the maps were created. The counters survive the daemon.
pub(crate) type Drops = BTreeMap<DropReason, u64>;

/// The packets that were dropped between two readings, by the name of the reason. A reason without
/// packets is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NewDrops {
    /// Packets that were not encrypted and had to be. An attack or a fault is behind them, except
    /// while a node gets its first key.
    pub(crate) unencrypted: BTreeMap<&'static str, u64>,
    /// All others.
    pub(crate) others: BTreeMap<&'static str, u64>,
}

pub(crate) fn dropped(before: &Drops, now: &Drops) -> NewDrops {
    let mut new = NewDrops::default();
    for (reason, count) in now {
        let packets = count.saturating_sub(before.get(reason).copied().unwrap_or_default());
        if packets > 0 {
            let of_kind = if reason.protects_encryption() { &mut new.unencrypted } else { &mut new.others };
            of_kind.insert(reason.name(), packets);
        }
    }
    new
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_drops_are_returned() {
        let count = |no_task, forged| Drops::from([(DropReason::NoTask, no_task), (DropReason::Unencrypted, forged)]);
        let new = |others: &[(&'static str, u64)], unencrypted: &[(&'static str, u64)]| NewDrops {
            others: others.iter().copied().collect(),
            unencrypted: unencrypted.iter().copied().collect(),
        };
        assert_eq!(dropped(&count(3, 1), &count(5, 1)), new(&[("no-task", 2)], &[]));
        assert_eq!(dropped(&Drops::new(), &count(0, 4)), new(&[], &[("unencrypted", 4)]));
        assert_eq!(dropped(&count(3, 1), &count(3, 1)), NewDrops::default());
    }
}
