//! Runs the tasks of this node: creates their network namespaces, processes, files, limits and
//! logs, but not their links.
//!
//! The daemon calls [`open`] once. The agent then calls the runtime through [`Executor`], and the
//! control plane reads logs through [`LogSource`]. A runtime must not read the cluster state: it
//! gets a [`TaskPlan`] and reports the phase of the task.
//!
//! There are two runtimes:
//!
//! - [`process`]: processes of this machine in namespaces, each with a shim; needs no engine;
//! - [`docker`]: containers of the local Docker engine.
//!
//! Both use [`mod@reference`] (names of images), [`identity`] (the task's host name, variables and
//! resolver), [`files`] (the files with secrets and configs), [`mod@error`], and [`logs`] (which
//! records a reader requested). [`whoami`] is the
//! program of the built-in image `weft/whoami`, which both can run.
//!
//! Invariant that the agent relies on: the state of all tasks is outside of the daemon's memory, in
//! files or in the engine. After a restart of the daemon, a new runtime adopts all tasks.

pub(crate) mod process;
pub(crate) mod docker;
pub(crate) mod reference;
pub(crate) mod identity;
mod error;
pub(crate) mod files;
mod logs;
pub(crate) mod whoami;
#[cfg(test)]
pub(crate) mod fixture;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::OsString,
    net::Ipv4Addr,
    os::unix::net::UnixListener,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use tokio::sync::watch;
use weft_model::{
    Backoff, ContainerNetworks, LogSource, NetworkId, NodeName, NodePlan, TaskId,
    plan::{NetworkPlan, TaskPlan},
    report::{AttachedReports, EnginePlugin},
    spec::Labels,
    state::ContainerIdentity,
};

pub(crate) use self::{error::RuntimeError, files::TaskFile};

/// Delays before a retry. The agent uses them for failed calls to a runtime, and the docker runtime
/// for failed calls to its engine.
pub(crate) const RETRY_BACKOFF: Backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(30));

/// What a container engine says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct EngineFacts {
    pub(crate) labels: Labels,
    pub(crate) plugins: BTreeSet<EnginePlugin>,
}

/// The operations that the agent calls on a runtime. Calls for one task must not overlap. Calls for
/// different tasks may.
#[async_trait]
pub(crate) trait Executor: Send + Sync {
    /// Fetches the task's image if it is missing. Has no timeout of its own. Idempotent.
    /// Cancel-safe: a dropped call leaves nothing of the task behind.
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError>;

    /// Creates everything that the task needs before its process starts, including its network
    /// namespace, unless [`Executor::start`] makes that. `networks` has the task's networks, and
    /// `files` its secrets and configs. The image must have been fetched. Idempotent. If it fails,
    /// it removes what it created.
    async fn prepare(&self, task: &TaskPlan, networks: &[NetworkPlan], files: &[TaskFile]) -> Result<(), RuntimeError>;

    /// Starts the task's process in its namespace, and returns when the program runs. If the
    /// namespace is made in this call, it waits for [`Executor::connect`]. Idempotent. If the
    /// program cannot run, this is an error, and [`Executor::observe`] shows the task as exited.
    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError>;

    /// What is ready for the tasks and containers of `plan`: a start that waits for it goes on. A
    /// start of one that is not in `plan` fails. Called in each pass of the agent.
    fn connect(&self, _plan: Option<&NodePlan>, _ready: &Ready) {}

    /// Removes what the runtime has of networks that are not in `plan` any more, or of all networks
    /// if there is no plan. Returns `false` if tasks still use one of them.
    async fn remove_networks(&self, _plan: Option<&NodePlan>) -> Result<bool, RuntimeError> {
        Ok(true)
    }

    /// Begins to stop the task: stop signal, grace period, then SIGKILL, with the values of the
    /// plan that it was prepared with. Does not wait until the task has ended:
    /// [`Executor::observe`] shows that. Does nothing if the task does not run.
    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError>;

    /// Kills the task if it runs, and removes everything that the runtime created for it.
    /// Idempotent.
    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError>;

    /// All tasks on this node, in the order of their ids. Includes the tasks of an earlier daemon.
    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError>;

    /// What the container engine has said of itself when it was connected last. It is known once
    /// [`Executor::observe`] has succeeded. A runtime without an engine has nothing to say.
    fn engine_facts(&self) -> EngineFacts {
        EngineFacts::default()
    }

    /// The containers that are no tasks and are on networks of the cluster. A runtime without an
    /// engine has none.
    async fn observe_attached(&self) -> Result<ObservedContainers, RuntimeError> {
        Ok(ObservedContainers { complete: true, ..ObservedContainers::default() })
    }

    /// Notifies when the result of [`Executor::observe`] may have changed.
    fn changed(&self) -> watch::Receiver<u64>;
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ObservedTask {
    pub task: TaskId,
    pub phase: Phase,
    pub netns: TaskNetns,
    /// The address of the task's resolver in its network namespace.
    pub resolver: Ipv4Addr,
    /// The container's id, as the user sees it. The task's id if the runtime has no containers.
    pub container: String,
}

/// What the agent has connected.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ready {
    /// The tasks and containers that are being started, whose links, data plane and resolver are
    /// ready. With the names of the task sides that wait in the node's namespace, in the order of
    /// the links.
    pub handed_over: BTreeMap<TaskId, Vec<String>>,
    /// The running containers that are no tasks and that have all links that the plan has.
    pub in_place: BTreeSet<TaskId>,
}

/// The containers that are no tasks, as far as they are on networks of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ObservedContainers {
    /// All of which the engine has ever said something, and those that it starts.
    pub containers: Vec<ObservedContainer>,
    /// What the engine has said now. It does not answer questions about a container that it starts.
    pub report: AttachedReports,
    /// Whether something is known of all that the engine has listed.
    pub complete: bool,
}

/// A container that is no task.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ObservedContainer {
    /// Its id in the cluster state.
    pub id: TaskId,
    pub identity: ContainerIdentity,
    pub networks: Vec<NetworkId>,
    pub netns: TaskNetns,
}

/// The network namespace of a task.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum TaskNetns {
    /// It does not exist: [`Executor::start`] makes it, or the task has ended.
    Missing,
    /// A start that is in progress waits for the links of the task.
    Starting {
        /// The path of the namespace, if it exists already.
        netns: Option<PathBuf>,
        /// [`Executor::connect`] has named the task as ready.
        connected: bool,
    },
    /// It exists, at this path.
    At(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) enum Phase {
    /// The task has no process yet.
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
    /// The node's name in control groups and container labels. Two daemons on one machine must have
    /// different names.
    pub hostname: NodeName,
    /// Socket of the Docker engine.
    pub docker_socket: PathBuf,
    /// Where the docker runtime listens for the engine's calls to its network driver.
    pub plugin_socket: PathBuf,
    /// The socket at this path, if the service manager has opened it.
    pub plugin_listener: Option<Arc<UnixListener>>,
    /// This machine's search domains (resolv.conf(5)). A task gets those of the time when it is
    /// prepared.
    pub search: watch::Receiver<Vec<String>>,
}

/// An open runtime, through its interfaces.
#[derive(Clone)]
pub(crate) struct Runtime {
    pub executor: Arc<dyn Executor>,
    pub logs: Arc<dyn LogSource>,
    /// `None` if the runtime connects no containers that are no tasks.
    pub networks: Option<Arc<dyn ContainerNetworks>>,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

/// Opens the runtime, and adopts the tasks of an earlier daemon.
///
/// # Errors
/// If the run directory or the socket of the network driver cannot be used.
pub(crate) async fn open(config: RuntimeConfig) -> Result<Runtime, RuntimeError> {
    Ok(match config.kind {
        RuntimeKind::Process => {
            let runtime = Arc::new(process::ProcessRuntime::open(&config).await?);
            Runtime { executor: runtime.clone(), logs: runtime, networks: None }
        }
        RuntimeKind::Docker => {
            let runtime = Arc::new(docker::DockerRuntime::open(&config)?);
            Runtime { executor: runtime.clone(), logs: runtime.clone(), networks: Some(runtime) }
        }
    })
}

/// Runs a hidden subcommand. weft starts itself with these subcommands, as a process of a task or
/// as its shim. `None` if `args` do not start with a hidden subcommand.
///
/// `main` must call it before anything else, while there is only one thread: a shim must be
/// single-threaded.
pub(crate) fn internal(args: &[OsString]) -> Option<ExitCode> {
    let code = match args.get(1)?.to_str()? {
        process::SHIM_COMMAND => process::shim(&args[2..]),
        process::INIT_COMMAND => process::init(&args[2..]),
        whoami::COMMAND => whoami::main(),
        _ => return None,
    };
    Some(code)
}
