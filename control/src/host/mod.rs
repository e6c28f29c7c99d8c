//! What a node takes from its machine: the clocks, random numbers, threads for work that blocks,
//! and TCP ([`net`]).
//!
//! Every module of this crate that needs one of these calls this module, so that a test can run
//! whole nodes on a simulated machine (`fixture::simulated`). Outside of tests each function is a
//! thin call of the standard library, rand or tokio. This module must not decide anything.

pub(crate) mod net;

use std::{
    ops::Range,
    sync::OnceLock,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use rand::{
    Rng,
    distr::{Distribution, StandardUniform},
};
use rustls::{pki_types::UnixTime, time_provider::TimeProvider};
use tokio::task::JoinHandle;

#[cfg(test)]
use crate::fixture::simulated;

/// The wall clock, in Unix milliseconds.
pub(crate) fn now_ms() -> u64 {
    #[cfg(test)]
    if let Some(host) = simulated::current() {
        return host.wall_ms();
    }
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_millis() as u64)
}

/// Milliseconds since some moment before the first call in this process. Unlike the wall clock, it
/// never jumps.
pub(crate) fn monotonic_ms() -> u64 {
    static START: OnceLock<Instant> = OnceLock::new();
    #[cfg(test)]
    if let Some(host) = simulated::current() {
        return host.now().as_millis() as u64;
    }
    START.get_or_init(Instant::now).elapsed().as_millis() as u64
}

/// The wall clock, by which certificates are checked.
#[derive(Debug)]
pub(crate) struct WallClock;

impl TimeProvider for WallClock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_millis(now_ms())))
    }
}

/// A random value, for ids and secrets.
pub(crate) fn random<T>() -> T
where
    StandardUniform: Distribution<T>,
{
    #[cfg(test)]
    if let Some(host) = simulated::current() {
        return host.with_rng(Rng::random);
    }
    rand::rng().random()
}

/// A random number of this range.
pub(crate) fn random_range(range: Range<f64>) -> f64 {
    #[cfg(test)]
    if let Some(host) = simulated::current() {
        return host.with_rng(|rng| rng.random_range(range));
    }
    rand::rng().random_range(range)
}

/// Runs work that blocks, such as a write to the disk, on a thread of its own. It cannot be
/// interrupted.
pub(crate) fn spawn_blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    #[cfg(test)]
    if let Some(host) = simulated::current() {
        return host.spawn_blocking(work);
    }
    tokio::task::spawn_blocking(work)
}
