//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Looks until `condition` answers with a value, and panics with its last objection when the deadline has passed.
#[track_caller]
pub fn eventually<T>(deadline: Duration, what: &str, mut condition: impl FnMut() -> Result<T, String>) -> T {
    let start = Instant::now();
    loop {
        let objection = match condition() {
            Ok(value) => return value,
            Err(objection) => objection,
        };
        if start.elapsed() >= deadline {
            panic!("not within {deadline:?}: {what}: {objection}");
        }
        pause();
    }
}

/// As [`eventually`], for code that reports instead of panicking.
pub(crate) fn until<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return Some(value);
        }
        if start.elapsed() >= deadline {
            return None;
        }
        pause();
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that polls: between two looks at a bounded condition")]
fn pause() {
    thread::sleep(POLL);
}
