//! The swarm module's clocks. Only this file reads a clock for decisions: code that decides takes
//! the time as a value.

use std::{
    sync::{Mutex, OnceLock, PoisonError},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

/// The wall clock, in Unix milliseconds.
pub(super) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

/// Milliseconds since the first call in this process. Unlike the wall clock, it never jumps.
pub(super) fn monotonic_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// The clock from which a leader takes the time of its log entries. It returns the latest of three
/// times: the time in the cluster state, the wall clock, and its own last reading plus the time
/// that has passed since. So time in the cluster state advances even if this machine's wall clock
/// is set back, or if an earlier leader's wall clock was ahead.
#[derive(Debug, Default)]
pub(super) struct ClusterClock {
    last: Mutex<Reading>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Reading {
    cluster_ms: u64,
    /// When it was read.
    monotonic_ms: u64,
}

impl ClusterClock {
    /// The cluster's time in Unix milliseconds. It is ahead of real time if a leader's wall clock
    /// was ahead. `state_ms` is the time in the cluster state.
    pub(super) fn now_ms(&self, state_ms: u64) -> u64 {
        self.read(state_ms, now_ms(), monotonic_ms())
    }

    fn read(&self, state_ms: u64, wall_ms: u64, monotonic_ms: u64) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed_ms = monotonic_ms.saturating_sub(last.monotonic_ms);
        let cluster_ms = (last.cluster_ms + elapsed_ms).max(wall_ms).max(state_ms);
        *last = Reading { cluster_ms, monotonic_ms };
        cluster_ms
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_clock_advances_while_the_wall_clock_is_behind() {
        let clock = ClusterClock::default();
        assert_eq!(clock.read(0, 10_000, 5), 10_000, "the wall clock's time");
        assert_eq!(clock.read(7_200_000, 10_100, 105), 7_200_000, "an earlier leader was two hours ahead");
        assert_eq!(clock.read(7_200_000, 10_200, 205), 7_200_100, "the clock advances from there");
        assert_eq!(clock.read(7_200_100, 4_000, 305), 7_200_200, "also if the wall clock is set back");
        assert_eq!(clock.read(7_200_200, 9_000_000, 405), 9_000_000, "until the wall clock is ahead again");
    }
}
