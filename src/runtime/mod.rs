//! Runs tasks. Owns what is on this node because of a task, but its links: its network namespace, processes, files, limits and
//! logs. It must not know the cluster: it gets a [`TaskPlan`] and says what became of it.
//!
//! An [`Executor`] holds nothing in memory that it could not find again: a new one on the same directories, after a
//! crash, adopts every task. Two of them:
//!
//! - [`process`]: namespaced processes of this machine, each under a shim of its own; no engine needed;
//! - [`docker`]: containers of the local Docker engine.
//!
//! What is the same for both: [`mod@reference`] says what images are called, [`identity`] who a task is, [`mod@error`] what
//! may go wrong, [`logs`] which records a reader wants. [`whoami`] is the program of the
//! built-in image `weft/whoami`, which both can run.

pub(crate) mod process;
pub(crate) mod docker;
pub(crate) mod reference;
pub(crate) mod identity;
mod error;
mod logs;
pub(crate) mod whoami;
#[cfg(test)]
pub(crate) mod fixture;

use std::{ffi::OsString, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use async_trait::async_trait;
use tokio::sync::watch;
use weft_model::{Backoff, LogSource, NodeName, TaskId, plan::TaskPlan};

pub(crate) use self::error::RuntimeError;

/// Delays before a failed call to a runtime, or of a runtime to its engine, is retried.
pub(crate) const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// What the agent needs of a runtime. Calls for one task must not overlap; calls for different tasks may.
#[async_trait]
pub(crate) trait Executor: Send + Sync {
    /// Gets the task's image, unless it is there. Takes as long as it takes. Idempotent, and cancel-safe: dropped at any time, it
    /// leaves no trace of the task.
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError>;

    /// Of a task whose image is there: makes all that it needs but its process, its network namespace above all.
    /// Idempotent. Leaves nothing behind when it fails.
    async fn prepare(&self, task: &TaskPlan) -> Result<(), RuntimeError>;

    /// Starts its process in the prepared namespace; returns when the program runs. Idempotent. A program that cannot run
    /// is an error here and an ended task in [`Executor::observe`].
    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError>;

    /// Stop signal, grace, then kill, as its plan said when it was prepared. Returns when this has begun: the end shows in
    /// [`Executor::observe`]. Nothing happens to a task that does not run.
    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError>;

    /// Forgets a task and everything that it left, killing it first if it runs. Idempotent.
    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError>;

    /// Every task that exists on this node, those of an earlier daemon included, in the order of their ids.
    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError>;

    /// Rings when [`Executor::observe`] may answer differently.
    fn changed(&self) -> watch::Receiver<u64>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedTask {
    pub task: TaskId,
    pub phase: Phase,
    /// The task's network namespace, to be opened; `None` once it is gone.
    pub netns: Option<PathBuf>,
    /// How people find it: the container's id, or the task's.
    pub container: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Has its namespace, and no process yet.
    Prepared,
    Running {
        /// Of its first process, as this machine counts.
        pid: u32,
        since_ms: u64,
    },
    Exited(Exit),
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Exit {
    /// As a shell says it: 128 and the signal's number where a signal ended it.
    pub code: i32,
    pub at_ms: u64,
    /// What kept it from running, where that was not the program's own doing.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RuntimeKind {
    /// Namespaces and processes of this machine: needs no engine, and runs the images weft/whoami and host
    Process,
    /// Containers of this machine's Docker engine, of any image
    Docker,
}

impl RuntimeKind {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Process => "process",
            Self::Docker => "docker",
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct RuntimeConfig {
    pub kind: RuntimeKind,
    /// The node's directory for what does not survive a reboot; tasks live in `tasks/` beneath.
    pub run_dir: PathBuf,
    /// Names the node in cgroups and container labels: two daemons of one machine must not share it.
    pub hostname: NodeName,
    /// Where the Docker engine listens.
    pub docker_socket: PathBuf,
}

/// An open runtime, from its two sides.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub executor: Arc<dyn Executor>,
    pub logs: Arc<dyn LogSource>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

/// Opens the runtime, adopting the tasks that an earlier one left running.
pub(crate) async fn open(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
    Ok(match config.kind {
        RuntimeKind::Process => {
            let runtime = Arc::new(process::ProcessRuntime::open(&config).await?);
            Runtime { executor: runtime.clone(), logs: runtime }
        }
        RuntimeKind::Docker => {
            let runtime = Arc::new(docker::DockerRuntime::open(&config).await?);
            Runtime { executor: runtime.clone(), logs: runtime }
        }
    })
}

/// What weft runs itself as, inside tasks and beside them. `None`: an ordinary invocation. To be called first of all in
/// `main`, before any thread exists: a shim must be single-threaded.
pub(crate) fn internal(args: &[OsString]) -> Option<ExitCode> {
    let code = match args.get(1)?.to_str()? {
        process::SHIM_COMMAND => process::shim(&args[2..]),
        process::INIT_COMMAND => process::init(&args[2..]),
        docker::PAUSE_COMMAND => docker::pause(),
        whoami::COMMAND => whoami::main(),
        _ => return None,
    };
    Some(code)
}
