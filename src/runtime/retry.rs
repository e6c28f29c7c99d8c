//! How long to wait before something that failed is tried again. A pure function: who waits is the caller.

use std::time::Duration;

/// After the first failure.
const FIRST: Duration = Duration::from_millis(500);
/// After many.
const LONGEST: Duration = Duration::from_secs(30);

/// The wait after so many failures in a row, the last one included: it doubles until it is long enough.
pub(crate) fn after(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(u32::BITS - 1);
    FIRST.saturating_mul(1 << doublings).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_up_to_a_bound() {
        let waits: Vec<u128> = (1..=8).map(|failures| after(failures).as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 16_000, 30_000, 30_000]);
        assert_eq!((after(0), after(u32::MAX)), (FIRST, LONGEST));
    }
}
