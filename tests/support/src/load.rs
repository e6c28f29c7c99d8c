//! Clients that go on opening new connections in the background, at a steady pace, and count every failure.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{http, netns};

/// Between two requests of one worker: with [`WORKERS`] of them, 400 connections a second. Steady, so that a machine with
/// few cores is not kept busy by its own test.
const PACE: Duration = Duration::from_millis(10);
const WORKERS: usize = 4;
/// Connections in a second below which the clients were not busy enough to prove anything, on a slow machine too.
const MIN_PER_S: u64 = 20;
/// A connection that takes longer lost its SYN: the kernel sends it again after a second (RFC 6298, section 2).
const SLOWEST_CONNECT: Duration = Duration::from_millis(900);

/// Running clients. Each goes round the targets.
#[derive(Debug)]
pub struct Load {
    workers: Vec<(mpsc::Sender<()>, JoinHandle<Result<LoadReport>>)>,
}

/// What the clients saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    pub requests: u64,
    pub errors: u64,
    /// When after the start, from where, and what.
    pub first_error: Option<String>,
    pub by_task: BTreeMap<String, u64>,
    /// The longest that a connection took to stand.
    pub slowest_connect: Duration,
    pub lasted: Duration,
}

impl Load {
    pub fn start(netns: &Path, targets: &[SocketAddr]) -> Self {
        assert!(!targets.is_empty(), "a load needs a target");
        let workers = (0..WORKERS).map(|worker| {
            let (stop, stopped) = mpsc::channel();
            let (netns, targets) = (netns.to_owned(), targets.to_vec());
            let thread = thread::spawn(move || {
                netns::enter(&netns)?;
                Ok(run(worker, &targets, &stopped))
            });
            (stop, thread)
        });
        Self { workers: workers.collect() }
    }

    /// Ends the clients after the requests under way.
    pub fn stop(self) -> Result<LoadReport> {
        let mut total = LoadReport::default();
        // All told to stop before any is waited for.
        let threads: Vec<_> = self.workers.into_iter().map(|(_stop, thread)| thread).collect();
        for thread in threads {
            let report = thread.join().ok().context("a client panicked")??;
            total.add(report);
        }
        Ok(total)
    }
}

impl LoadReport {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.first_error = self.first_error.take().or(other.first_error);
        self.slowest_connect = self.slowest_connect.max(other.slowest_connect);
        self.lasted = self.lasted.max(other.lasted);
        for (task, count) in other.by_task {
            *self.by_task.entry(task).or_default() += count;
        }
    }

    /// Panics unless the clients were busy, no request failed, and no connection had to be tried again.
    #[track_caller]
    pub fn expect_no_errors(&self) {
        assert_eq!(self.errors, 0, "of {} requests; the first: {:?}", self.requests, self.first_error);
        let enough = MIN_PER_S * self.lasted.as_secs().max(1);
        assert!(self.requests >= enough, "the clients made only {} requests in {:?}", self.requests, self.lasted);
        assert!(self.slowest_connect < SLOWEST_CONNECT, "a connection took {:?}", self.slowest_connect);
    }
}

fn run(worker: usize, targets: &[SocketAddr], stopped: &mpsc::Receiver<()>) -> LoadReport {
    let start = Instant::now();
    let mut report = LoadReport::default();
    for target in targets.iter().cycle().skip(worker) {
        let asked = Instant::now();
        report.requests += 1;
        match http::get_timed(*target, "/", http::PATIENCE) {
            Ok((reply, connected)) => {
                *report.by_task.entry(reply.name).or_default() += 1;
                report.slowest_connect = report.slowest_connect.max(connected);
            }
            Err(error) => {
                report.errors += 1;
                report.first_error.get_or_insert_with(|| format!("after {:?}, {target}: {error}", asked - start));
            }
        }
        // The dropped sender is the signal.
        match stopped.recv_timeout(PACE) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    report.lasted = start.elapsed();
    report
}
