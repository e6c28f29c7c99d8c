//! Reads the clock of this machine, in the units that the cluster state and the reports use. The
//! agent and the process runtime call it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since the Unix epoch. Zero if the clock is set to an earlier time.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    u64::try_from(now().as_millis()).unwrap_or(u64::MAX)
}
