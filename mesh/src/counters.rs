//! What the kernel counted, summed over all CPUs.

use std::collections::BTreeMap;

use weft_ebpf_common::DropReason;

/// Packets that were not let through, by reason, since the maps were made: they survive the daemon.
pub(crate) type Drops = BTreeMap<DropReason, u64>;

/// What was not let through between two counts, by reason as users know it; reasons without a packet are left out.
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
    fn only_what_was_dropped_since_is_told() {
        let count = |no_task, spoofed| Drops::from([(DropReason::NoTask, no_task), (DropReason::Spoofed, spoofed)]);
        assert_eq!(dropped(&count(3, 1), &count(5, 1)), BTreeMap::from([("no-task", 2)]));
        assert_eq!(dropped(&Drops::new(), &count(0, 4)), BTreeMap::from([("spoofed", 4)]));
        assert!(dropped(&count(3, 1), &count(3, 1)).is_empty());
    }
}
