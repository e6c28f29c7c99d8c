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
        for (task, count) in other.by_task {
            *self.by_task.entry(task).or_default() += count;
        }
    }

    /// Panics unless requests were made and none failed.
    #[track_caller]
    pub fn expect_no_errors(&self) {
        assert!(self.requests > 0, "the clients made no request");
        assert_eq!(self.errors, 0, "of {} requests; the first: {:?}", self.requests, self.first_error);
    }
}

fn run(worker: usize, targets: &[SocketAddr], stopped: &mpsc::Receiver<()>) -> LoadReport {
    let start = Instant::now();
    let mut report = LoadReport::default();
    for target in targets.iter().cycle().skip(worker) {
        let asked = Instant::now();
        report.requests += 1;
        match http::get(*target, "/") {
            Ok(reply) => *report.by_task.entry(reply.name).or_default() += 1,
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
    report
}
