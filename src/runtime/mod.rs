//! Runs the tasks of this node: their network namespaces, processes, files, limits and logs, but
//! not their links.
//!
//! The daemon calls [`open`] once. The agent then calls the runtime through [`Executor`], and the
//! control plane reads logs through [`LogSource`]. A runtime must not know the cluster: it gets a
//! [`TaskPlan`] and shows the phase of the task.
//!
//! There are two runtimes:
//!
//! - [`process`]: processes of this machine in namespaces, each with a shim; needs no engine;
//! - [`docker`]: containers of the local Docker engine.
//!
//! Both share [`mod@reference`] (names of images), [`identity`] (what a task sees of itself),
//! [`mod@error`], and [`logs`] (which records a reader wants). [`whoami`] is the program of the
//! built-in image `weft/whoami`, which both can run.
//!
//! Invariant that the agent relies on: a runtime keeps nothing only in memory. After a restart of
//! the daemon a new runtime on the same directories adopts all tasks.

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

/// Delays before a failed call is retried: of the agent to a runtime, and of a runtime to its
/// engine.
pub(crate) const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// What the agent needs of a runtime. Calls for one task must not overlap. Calls for different
/// tasks may.
#[async_trait]
pub(crate) trait Executor: Send + Sync {
    /// Fetches the task's image if it is missing. Has no timeout of its own. Idempotent.
    /// Cancel-safe: a dropped call leaves nothing of the task behind.
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError>;

    /// Creates all that the task needs before its process, above all its network namespace. The
    /// image must have been fetched. Idempotent. Leaves nothing behind if it fails.
    async fn prepare(&self, task: &TaskPlan) -> Result<(), RuntimeError>;

    /// Starts the task's process in the prepared namespace, and returns when the program runs.
    /// Idempotent. If the program cannot run, this is an error, and [`Executor::observe`] shows the
    /// task as exited.
    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError>;

    /// Begins to stop the task: stop signal, grace period, then SIGKILL, with the values of the
    /// plan that it was prepared with. Does not wait for the end, which [`Executor::observe`]
    /// shows. Does nothing if the task does not run.
    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError>;

    /// Kills the task if it runs, and removes all that is left of it. Idempotent.
    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError>;

    /// All tasks on this node, those of an earlier daemon included, in the order of their ids.
    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError>;

    /// Notifies when the result of [`Executor::observe`] may have changed.
    fn changed(&self) -> watch::Receiver<u64>;
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObservedTask {
    pub task: TaskId,
    pub phase: Phase,
    /// Path of the task's network namespace. `None` once it is gone.
    pub netns: Option<PathBuf>,
    /// The container's id for the user; the task's id if the runtime has no containers.
    pub container: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The network namespace exists, and no process yet.
    Prepared,
    Running {
        /// Pid of the task's first process, in the machine's PID namespace.
        pid: u32,
        /// Unix milliseconds.
        since_ms: u64,
    },
    Exited(Exit),
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Exit {
    /// The exit code, or 128 plus the number of the signal that ended the task.
    pub code: i32,
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Why the task ended, if the cause was not the program itself.
    pub error: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RuntimeKind {
    /// Namespaces and processes of this machine: needs no engine, and runs the images weft/whoami
    /// and host
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
    /// The node's directory for files that need not survive a reboot. Tasks are in its `tasks/`.
    pub run_dir: PathBuf,
    /// Names the node in control groups and container labels. Two daemons on one machine must not
    /// share it.
    pub hostname: NodeName,
    /// Socket of the Docker engine.
    pub docker_socket: PathBuf,
}

/// An open runtime, through its two interfaces.
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

/// Opens the runtime, and adopts the tasks of an earlier daemon.
///
/// # Errors
/// If the run directory cannot be used, or the engine cannot be reached.
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

/// Runs the hidden subcommands that weft starts itself with, inside tasks and beside them. `None`
/// if `args` name none of them.
///
/// `main` must call it before anything else, while there is only one thread: a shim must be
/// single-threaded.
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
