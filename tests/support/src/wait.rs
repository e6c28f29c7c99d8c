//! Waits until a condition is true, with a deadline. The lab and the tests call it; no other code
//! may sleep for a fixed time.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::Context as _;

use crate::speed::scaled;

/// The time between two checks of a condition.
const POLL: Duration = Duration::from_millis(20);

/// Checks `condition` until it returns `Ok`. The deadline is for a normal machine ([`scaled`]).
///
/// # Panics
/// After the deadline, with the last error of the condition.
#[track_caller]
pub fn eventually<T>(deadline: Duration, what: &str, condition: impl FnMut() -> Result<T, String>) -> T {
    match try_eventually(deadline, what, condition) {
        Ok(value) => value,
        Err(error) => panic!("{error}"),
    }
}

/// Like [`eventually`], but returns an error after the deadline.
pub fn try_eventually<T>(
    deadline: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T, String>,
) -> anyhow::Result<T> {
    let mut last_error = String::new();
    let found = poll(deadline, || condition().map_err(|error| last_error = error).ok());
    found.with_context(|| format!("not within {:?}: {what}: {last_error}", scaled(deadline)))
}

/// Checks `condition` until it returns a value. `None` after the deadline, which is for a normal
/// machine ([`scaled`]).
pub(crate) fn poll<T>(deadline: Duration, mut condition: impl FnMut() -> Option<T>) -> Option<T> {
    let (start, deadline) = (Instant::now(), scaled(deadline));
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

#[expect(clippy::disallowed_methods, reason = "the only place that polls: the pause between two checks")]
fn pause() {
    thread::sleep(POLL);
}
