//! Waiting for a condition, never for a time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(20);

/// Looks until `condition` answers with a value, and panics with its last objection when the deadline has passed.
#[track_caller]
pub fn eventually<T>(deadline: Duration, what: &str, condition: impl FnMut() -> Result<T, String>) -> T {
    match try_eventually(deadline, what, condition) {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// As [`eventually`], for code that reports instead of panicking.
pub fn try_eventually<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, String>,
) -> anyhow::Result<T> {
    let mut objection = String::new();
    let found = until(deadline, || condition().map_err(|new| objection = new).ok());
    found.with_context(|| format!("not within {deadline:?}: {what}: {objection}"))
}

/// Looks until `condition` answers with a value; nothing, when the deadline has passed.
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
