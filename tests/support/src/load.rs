//! Background load for the tests and the demo: clients that open new connections at a constant
//! rate, and count every failure.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use crate::{http, netns, speed::unscaled};

/// The pause between two requests of one worker. With [`WORKERS`] workers that is at most 400
/// connections a second, which leaves time for the nodes on a machine with few cores.
const PAUSE: Duration = Duration::from_millis(10);
const WORKERS: usize = 4;
/// The smallest number of connections a second of a normal machine ([`unscaled`]) that makes the
/// load meaningful.
const MIN_PER_S: u64 = 20;

/// Running clients. Each sends its requests to the targets in turn.
#[derive(Debug)]
pub struct Load {
    workers: Vec<(mpsc::Sender<()>, JoinHandle<Result<LoadReport>>)>,
}

/// The results of all clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadReport {
    pub requests: u64,
    pub errors: u64,
    /// How long after the start it happened, the target, and the error.
    pub first_error: Option<String>,
    pub by_task: BTreeMap<String, u64>,
    /// The connections for which a SYN was lost: how long each took, where to, and when since the
    /// start of the load.
    pub slow_connects: Vec<String>,
    /// From the start to the end of the load.
    pub duration: Duration,
}

impl Load {
    /// Starts clients in a network namespace.
    ///
    /// # Panics
    /// Without a target.
    pub fn start(netns: &Path, targets: &[SocketAddr]) -> Self {
        assert!(!targets.is_empty(), "a load needs a target");
        let workers = (0..WORKERS).map(|worker| {
            let (stop, stopped) = mpsc::channel();
            let (netns, targets) = (netns.to_owned(), targets.to_vec());
            let thread = thread::spawn(move || {
                netns::move_thread_to(&netns)?;
                Ok(run(worker, &targets, &stopped))
            });
            (stop, thread)
        });
        Self { workers: workers.collect() }
    }

    /// Lets the clients finish their current requests, and ends them.
    pub fn stop(self) -> Result<LoadReport> {
        let mut total = LoadReport::default();
        // Drops all senders before it waits, so that all clients stop at the same time.
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
        self.slow_connects.extend(other.slow_connects);
        self.duration = self.duration.max(other.duration);
        for (task, count) in other.by_task {
            *self.by_task.entry(task).or_default() += count;
        }
    }

    /// Checks that the load had a sufficient rate, no request failed, and no SYN was lost.
    ///
    /// # Panics
    /// When one of these conditions is false.
    #[track_caller]
    pub fn expect_no_errors(&self) {
        assert_eq!(self.errors, 0, "failed of {} requests; the first error: {:?}", self.requests, self.first_error);
        let enough = MIN_PER_S * unscaled(self.duration).as_secs().max(1);
        assert!(self.requests >= enough, "the clients made only {} requests in {:?}", self.requests, self.duration);
        assert!(self.slow_connects.is_empty(), "connecting took {:?}, in {:?}", self.slow_connects, self.duration);
    }
}

fn run(worker: usize, targets: &[SocketAddr], stopped: &mpsc::Receiver<()>) -> LoadReport {
    let start = Instant::now();
    let mut report = LoadReport::default();
    for target in targets.iter().cycle().skip(worker) {
        let sent = Instant::now();
        report.requests += 1;
        match http::get_timed(*target, "/", http::TIMEOUT) {
            Ok((reply, connected)) => {
                *report.by_task.entry(reply.name).or_default() += 1;
                if connected >= http::MAX_CONNECT_TIME {
                    report.slow_connects.push(format!("{connected:?} to {target} after {:?}", sent - start));
                }
            }
            Err(error) => {
                report.errors += 1;
                report.first_error.get_or_insert_with(|| format!("after {:?}, {target}: {error}", sent - start));
            }
        }
        // `Load::stop` drops the sender.
        match stopped.recv_timeout(PAUSE) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
        }
    }
    report.duration = start.elapsed();
    report
}
