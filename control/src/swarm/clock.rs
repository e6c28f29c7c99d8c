//! The clocks, in one place: everything that decides gets the time as a value.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// Unix milliseconds.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

/// Milliseconds that never jump, since some moment in this process's life.
pub(super) fn monotonic_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// The table's clock, as this manager goes on with it where it leads: never behind the table, the wall clock or itself,
/// and never at rest. A wall clock that steps back, or an earlier leader whose clock was ahead, does not stop it.
#[derive(Debug, Default)]
pub(super) struct ClusterClock {
    /// What it last said, and when (steady).
    last: Mutex<(u64, u64)>,
}

impl ClusterClock {
    /// Unix milliseconds, more or less. `cluster_ms` is the table's own time.
    pub(super) fn now_ms(&self, cluster_ms: u64) -> u64 {
        self.at(cluster_ms, now_ms(), monotonic_ms())
    }

    fn at(&self, cluster_ms: u64, wall_ms: u64, monotonic_ms: u64) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let (said, when) = *last;
        let now = (said + monotonic_ms.saturating_sub(when)).max(wall_ms).max(cluster_ms);
        *last = (now, monotonic_ms);
        now
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_where_the_wall_clock_is_behind() {
        let clock = ClusterClock::default();
        assert_eq!(clock.at(0, 10_000, 5), 10_000, "the wall clock's time");
        assert_eq!(clock.at(7_200_000, 10_100, 105), 7_200_000, "an earlier leader was two hours ahead");
        assert_eq!(clock.at(7_200_000, 10_200, 205), 7_200_100, "and from there it goes on");
        assert_eq!(clock.at(7_200_100, 4_000, 305), 7_200_200, "also where the wall clock steps back");
        assert_eq!(clock.at(7_200_200, 9_000_000, 405), 9_000_000, "until the wall clock is ahead again");
    }
}
