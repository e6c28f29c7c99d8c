//! Exponential backoff: how long a caller waits before it retries an operation that failed.
//!
//! The agent, the runtimes and the control plane use it for their retries. It is pure: the caller
//! counts the failures and waits.

use std::time::Duration;

/// Delays that double from `first` up to `max`.
///
/// ```
/// # use std::time::Duration;
/// # use weft_model::Backoff;
/// const RETRY: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
/// assert_eq!(RETRY.delay(1), Duration::from_millis(500));
/// assert_eq!(RETRY.delay(3), Duration::from_secs(2));
/// assert_eq!(RETRY.delay(100), Duration::from_secs(30));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    max: Duration,
}

impl Backoff {
    pub const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max }
    }

    /// The delay after `failures` consecutive failures, the last one included.
    pub fn delay(&self, failures: u32) -> Duration {
        let doublings = failures.saturating_sub(1).min(u32::BITS - 1);
        self.first.saturating_mul(1 << doublings).min(self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_the_maximum() {
        let backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));
        let delays: Vec<u128> = (1..=8).map(|failures| backoff.delay(failures).as_millis()).collect();
        assert_eq!(delays, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!(backoff.delay(0), Duration::from_millis(500));
        assert_eq!(backoff.delay(u32::MAX), Duration::from_secs(30));
    }
}
