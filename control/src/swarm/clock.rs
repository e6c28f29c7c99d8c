//! The swarm module's clocks. Only this file reads a clock for decisions: code that decides takes
//! the time as a value.

use std::sync::{Mutex, PoisonError};

pub(super) use crate::host::{monotonic_ms, now_ms};

/// How much faster than real time the cluster's clock runs while the wall clock is ahead of it, in
/// percent.
const CATCH_UP_PERCENT: u64 = 10;
/// The clock counts from its last reading, unless that is newer than this. Shorter parts would be
/// lost by rounding.
const COUNT_FROM_MS: u64 = 1_000;

/// The clock from which a leader takes the time of its log entries. Delays of tasks and the monitor
/// times of updates are measured with it, so it never goes back, and a step of a machine's wall
/// clock must not end them early:
///
/// - The first reading in a process is the wall clock's: how long the cluster was off is not known
///   otherwise.
/// - Later readings advance with real time. While the wall clock is ahead, they advance by a tenth
///   faster.
/// - A manager that follows takes over the leader's time ([`Self::follow`]), so the next leader
///   continues where the last one stopped, whatever its own wall clock says.
#[derive(Debug, Default)]
pub(super) struct ClusterClock {
    last: Mutex<Option<Reading>>,
}

#[derive(Debug, Clone, Copy)]
struct Reading {
    /// The time that later readings count from, and when it was read.
    from_ms: u64,
    monotonic_ms: u64,
    /// The latest time that was returned.
    returned_ms: u64,
}

impl ClusterClock {
    /// The cluster's time in Unix milliseconds. `state_ms` is the time in the cluster state.
    pub(super) fn now_ms(&self, state_ms: u64) -> u64 {
        self.read(state_ms, now_ms(), monotonic_ms())
    }

    /// Takes over the time of the newest entry that another leader has written.
    pub(super) fn follow(&self, state_ms: u64) {
        self.continue_at(state_ms, monotonic_ms());
    }

    pub(super) fn continue_at(&self, state_ms: u64, monotonic_ms: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(Reading { from_ms: state_ms, monotonic_ms, returned_ms: state_ms });
    }

    pub(super) fn read(&self, state_ms: u64, wall_ms: u64, monotonic_ms: u64) -> u64 {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(reading) = last.as_mut().filter(|reading| reading.returned_ms >= state_ms) else {
            // The first reading, or an earlier leader was ahead.
            let now = if last.is_some() { state_ms } else { wall_ms.max(state_ms) };
            *last = Some(Reading { from_ms: now, monotonic_ms, returned_ms: now });
            return now;
        };
        let elapsed_ms = monotonic_ms.saturating_sub(reading.monotonic_ms);
        let steady_ms = reading.from_ms.saturating_add(elapsed_ms);
        let fastest_ms = steady_ms.saturating_add(elapsed_ms * CATCH_UP_PERCENT / 100);
        let now = wall_ms.clamp(steady_ms, fastest_ms).max(reading.returned_ms);
        reading.returned_ms = now;
        if elapsed_ms >= COUNT_FROM_MS {
            (reading.from_ms, reading.monotonic_ms) = (now, monotonic_ms);
        }
        now
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
    }

    #[test]
    fn a_step_of_the_wall_clock_makes_the_cluster_clock_a_tenth_faster_until_it_has_caught_up() {
        let clock = ClusterClock::default();
        assert_eq!(clock.read(0, 10_000, 0), 10_000);
        assert_eq!(clock.read(10_000, 3_610_100, 100), 10_110, "a step by an hour");
        let mut now = 0;
        for monotonic_ms in (200..=20_000).step_by(7) {
            let next = clock.read(0, 3_610_000 + monotonic_ms, monotonic_ms);
            assert!(next >= now, "it never goes back");
            now = next;
        }
        assert!((31_900..32_010).contains(&now), "{now}: 20 s and a tenth after 10,000");
        assert!(clock.read(0, 12_000, 20_001) >= now, "the wall clock is set back again");
        let clock = ClusterClock::default();
        clock.read(0, 10_000, 0);
        assert_eq!(clock.read(0, 15_000, 4_980), 15_000, "the wall clock runs a bit faster");
    }

    #[test]
    fn a_follower_continues_with_the_leaders_time() {
        let clock = ClusterClock::default();
        assert_eq!(clock.read(0, 9_000_000, 0), 9_000_000, "its own wall clock is ahead");
        clock.continue_at(10_000, 50);
        assert_eq!(clock.read(10_000, 9_000_100, 150), 10_110);
    }
}
