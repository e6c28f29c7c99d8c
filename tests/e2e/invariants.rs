//! What is true of a cluster before and after every failure, checked from outside: no node is down
//! without a reason, each service has its tasks, no task runs twice, and no address is used twice.

use std::{
    collections::BTreeSet,
    fs,
    sync::mpsc::{self, RecvTimeoutError},
    thread::{self, JoinHandle},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use weft_lab::{Lab, Task, api, contract, eventually};

/// The time in which all nodes must be one cluster again.
const HEAL_TIMEOUT: Duration = Duration::from_secs(60);
/// The pause between two questions of a [`NodeWatch`].
const PAUSE: Duration = Duration::from_millis(20);

/// Asks a manager for the status of all nodes again and again, in the background.
pub(crate) struct NodeWatch {
    stop: mpsc::Sender<()>,
    thread: JoinHandle<Seen>,
}

#[derive(Default)]
struct Seen {
    answers: usize,
    /// The nodes that were down in at least one answer.
    down: BTreeSet<String>,
}

impl NodeWatch {
    pub(crate) fn start(via: &str) -> Self {
        let (stop, stopped) = mpsc::channel();
        let socket = contract::socket(via);
        let thread = thread::spawn(move || {
            let mut seen = Seen::default();
            loop {
                // A manager that is paused or has no leader may not answer.
                if let Ok(nodes) = api::node_statuses(&socket) {
                    seen.answers += 1;
                    seen.down.extend(nodes.into_iter().filter(|(_, status)| status == "down").map(|(name, _)| name));
                }
                match stopped.recv_timeout(PAUSE) {
                    Err(RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => return seen,
                }
            }
        });
        Self { stop, thread }
    }

    /// Ends the questions, and checks that exactly these nodes were down at some time.
    pub(crate) fn expect_down(self, expected: &[&str]) -> Result<()> {
        drop(self.stop);
        let seen = self.thread.join().ok().context("the watch of the nodes panicked")?;
        ensure!(seen.answers > 0, "the manager did not answer");
        let down: Vec<&str> = seen.down.iter().map(String::as_str).collect();
        let expected: BTreeSet<&str> = expected.iter().copied().collect();
        ensure!(down.iter().copied().eq(expected.iter().copied()), "{down:?} were down instead of {expected:?}");
        Ok(())
    }
}

/// Waits until all managers name the same leader, all nodes are ready, and all managers are
/// reachable.
pub(crate) fn one_cluster(lab: &Lab) -> Result<()> {
    let managers: Vec<String> = lab.nodes().take(lab.options().managers).collect();
    eventually(HEAL_TIMEOUT, "all managers have the same leader", || {
        let leaders: Result<BTreeSet<String>> = managers.iter().map(|node| lab.leader(node)).collect();
        match leaders {
            Ok(leaders) if leaders.len() == 1 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    lab.wait_ready("n1", lab.options().nodes)?;
    lab.wait_managers("n1", managers.len())
}

/// Waits until each of these services has its number of tasks, and exactly these tasks run. Returns
/// the tasks of the first service. The caller must name all services that the cluster has.
///
/// # Errors
/// When two tasks have the same address.
pub(crate) fn intact(lab: &Lab, services: &[(&str, usize)]) -> Result<Vec<Task>> {
    let mut all = Vec::new();
    for (service, replicas) in services {
        all.push(lab.wait_running("n1", service, *replicas)?);
    }
    let tasks: Vec<Task> = all.concat();
    only_these_run(lab, &tasks);
    let mut addrs = BTreeSet::new();
    for task in &tasks {
        for addr in &task.addrs {
            ensure!(addrs.insert(addr), "{} has an address that another task has: {addr:?}", task.name());
        }
    }
    all.into_iter().next().context("a service")
}

/// Waits until exactly these tasks run, each on its node and nowhere else.
fn only_these_run(lab: &Lab, tasks: &[Task]) {
    let planned: BTreeSet<(String, String)> = tasks.iter().map(|task| (task.node.clone(), task.id.clone())).collect();
    eventually(HEAL_TIMEOUT, "exactly the planned tasks run", || {
        let mut running = BTreeSet::new();
        for node in lab.nodes() {
            let ids = running_tasks(&node).map_err(|error| format!("{error:#}"))?;
            running.extend(ids.into_iter().map(|id| (node.clone(), id)));
        }
        let wrong: Vec<_> = running.symmetric_difference(&planned).collect();
        if wrong.is_empty() { Ok(()) } else { Err(format!("they run and are not planned, or the reverse: {wrong:?}")) }
    });
}

/// The ids of the tasks that run on a node. Those that have ended are kept for a while.
pub(crate) fn running_tasks(node: &str) -> Result<BTreeSet<String>> {
    let dir = contract::run_dir(node).join("tasks");
    let entries = fs::read_dir(&dir).with_context(|| format!("cannot list {}", dir.display()))?;
    let mut running = BTreeSet::new();
    for entry in entries {
        let path = entry?.path();
        if path.join("running.json").exists() && !path.join("exit.json").exists() {
            running.extend(path.file_name().map(|id| id.to_string_lossy().into_owned()));
        }
    }
    Ok(running)
}
