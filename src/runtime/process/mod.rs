//! The process runtime: tasks as processes of this machine in namespaces of their own, without a
//! container engine.
//!
//! [`super::open`] creates it, and the agent calls it through [`Executor`]. Each task has a
//! directory ([`dir`]) and, once it is started, a shim ([`mod@shim`]): a small process of weft that
//! starts the container with libcontainer, writes the task's log and waits for its end. The shims
//! outlive the daemon.
//!
//! The runtime must not keep the state of a task in memory. The files of the task's directory are
//! its state, and [`read_phase`] computes the phase from them:
//!
//! ```text
//!  phase      newest file of the task    event that leads to the next file
//!
//!  (none)     no record.json
//!                 │  prepare: the daemon writes record.json last
//!                 ▼
//!  Prepared   record.json
//!                 │  start: the daemon starts a shim, which claims the task with shim.json
//!                 ▼
//!  Prepared   shim.json ──────────────────────────────┐
//!                 │  the program runs:                │  the program cannot start:
//!                 │  the shim writes running.json     │  the shim writes the reason
//!                 ▼                                   │
//!  Running    running.json                            │
//!                 │  the program exits:               │
//!                 │  the shim writes the exit code    │
//!                 ▼                                   │
//!  Exited     exit.json ◀─────────────────────────────┘
//! ```
//!
//! If the shim dies before it writes `exit.json`, the daemon kills the task and writes the file. A
//! task can be removed in each phase, which deletes its directory. If a directory has no
//! `record.json`, its preparation was interrupted: the next daemon, or the next attempt to prepare
//! the task, deletes the directory.
//!
//! In reading order: [`dir`] holds the files that the daemon and the shim share; [`image`],
//! [`user`] and [`bundle`] compute the container of a task; [`kernel`] wraps the system calls;
//! [`phase`] and [`task_dirs`] read and change the directories for the daemon; [`logs`] writes and
//! reads the output of tasks; [`mod@init`] and [`program`] run inside a task, and [`mod@shim`] is
//! its parent process.
//!
//! Tasks (tokio): one for each shim, which waits for its end; one for each reader of a log.

mod dir;
mod image;
mod user;
mod bundle;
mod kernel;
mod phase;
mod task_dirs;
mod logs;
mod init;
mod program;
mod shim;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use nix::sys::signal::Signal;
use tokio::{io::AsyncReadExt, process::Command, sync::watch};
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};
use weft_model::{
    LogError, LogOptions, LogRecord, LogSource, TaskId, error_chain,
    plan::{NetworkPlan, TaskPlan},
};

use self::{
    dir::TaskDir,
    image::Image,
    kernel::{
        cgroup,
        proc::{Process, ProcessId},
    },
    phase::read_phase,
    task_dirs::TaskDirs,
};
use super::{Executor, Exit, ObservedTask, Phase, RuntimeConfig, RuntimeError, TaskFile};

pub(super) use init::{COMMAND as INIT_COMMAND, main as init};

/// The hidden subcommand: `__shim TASK-DIR RUN-DIR`.
pub(super) const SHIM_COMMAND: &str = "__shim";
/// The longest time that a shim may take to start its task.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Runs the shim of a task. The caller must not have started a thread yet.
pub(super) fn shim(args: &[OsString]) -> ExitCode {
    let [dir, run_dir] = args else {
        eprintln!("{SHIM_COMMAND} is for weft's own use: it takes a task's directory and the node's run directory");
        return ExitCode::FAILURE;
    };
    match shim::run(&TaskDir::new(dir), Path::new(run_dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{}", error_chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The process runtime of one node.
#[derive(Debug, Clone)]
pub(crate) struct ProcessRuntime {
    run_dir: PathBuf,
    tasks: TaskDirs,
    changed: watch::Sender<u64>,
}

impl ProcessRuntime {
    /// Adopts the tasks in the run directory, and removes those whose preparation was interrupted.
    pub(crate) async fn open(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let tasks = TaskDirs::open(&config.run_dir, config.hostname.clone(), config.search.clone())?;
        let runtime = Self { run_dir: config.run_dir.clone(), tasks, changed: watch::channel(0).0 };
        for (task, dir) in runtime.tasks.list()? {
            match dir.record()? {
                None => runtime.tasks.remove(&task)?,
                Some(_) => {
                    let shim = dir.shim()?.map(ProcessId::open).transpose();
                    let shim = shim.map_err(RuntimeError::io("find the shim of", dir.path()))?.flatten();
                    debug!(%task, running = shim.is_some(), "adopted task");
                    if let Some(shim) = shim {
                        runtime.watch_shim(task, shim);
                    }
                }
            }
        }
        Ok(runtime)
    }

    /// Notifies the agent when the shim of an adopted task ends.
    fn watch_shim(&self, task: TaskId, shim: Process) {
        let changed = self.changed.clone();
        tokio::spawn(async move {
            if let Err(error) = shim.ended().await {
                warn!(%task, %error, "cannot watch the task's shim");
            }
            notify(&changed);
        });
    }

    /// Runs `work` on a thread that may block.
    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&TaskDirs) -> Result<T, RuntimeError> + Send + 'static,
    ) -> Result<T, RuntimeError> {
        let tasks = self.tasks.clone();
        let done = tokio::task::spawn_blocking(move || work(&tasks)).await;
        done.map_err(RuntimeError::kernel("run a blocking call"))?
    }

    /// Starts the shim of a prepared task, and waits until the task's program runs or has failed to
    /// start.
    async fn spawn_shim(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let dir = self.tasks.dir(task);
        let errors = dir.join("shim.err");
        let errors = dir::create_private_file(&errors).map_err(RuntimeError::io("create", &errors))?;
        let mut shim = Command::new("/proc/self/exe")
            .arg(SHIM_COMMAND)
            .args([dir.path(), &self.run_dir])
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .map_err(RuntimeError::kernel("start a shim"))?;
        let stdout = shim.stdout.take();
        let (changed, id) = (self.changed.clone(), task.clone());
        tokio::spawn(async move {
            if let Err(error) = shim.wait().await {
                warn!(task = %id, %error, "cannot watch the task's shim");
            }
            notify(&changed);
        });
        if let Some(mut stdout) = stdout {
            // The shim writes nothing. It closes the pipe when the program runs or has failed to
            // start.
            let closed = tokio::time::timeout(START_TIMEOUT, stdout.read_to_end(&mut Vec::new())).await;
            closed
                .map_err(|_| RuntimeError::Start { reason: format!("not started after {START_TIMEOUT:?}") })?
                .map_err(RuntimeError::kernel("wait for a shim"))?;
        }
        Ok(())
    }
}

/// Wakes the agent, which then observes the tasks.
fn notify(changed: &watch::Sender<u64>) {
    changed.send_modify(|count| *count += 1);
}

#[async_trait]
impl Executor for ProcessRuntime {
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        Image::find(&task.container.image).map(drop)
    }

    async fn prepare(
        &self,
        task: &TaskPlan,
        _networks: &[NetworkPlan],
        files: &[TaskFile],
    ) -> Result<(), RuntimeError> {
        let (task, files) = (task.clone(), files.to_vec());
        self.run_blocking(move |tasks| tasks.prepare(&task, &files)).await?;
        notify(&self.changed);
        Ok(())
    }

    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        let dir = self.tasks.dir(&task.id);
        if dir.record()?.is_none() {
            return Err(RuntimeError::NotPrepared);
        }
        if dir.shim()?.is_none() {
            self.spawn_shim(&task.id).await?;
            notify(&self.changed);
        }
        match self.run_blocking(move |_| read_phase(&dir, cgroup::remove)).await? {
            Phase::Exited(Exit { error: Some(reason), .. }) => Err(RuntimeError::Start { reason }),
            _ => Ok(()),
        }
    }

    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let dir = self.tasks.dir(task);
        let shim = dir.shim()?.map(ProcessId::open).transpose();
        if let Some(shim) = shim.map_err(RuntimeError::kernel("find a shim"))?.flatten() {
            shim.signal(Signal::SIGTERM).map_err(RuntimeError::kernel("signal a shim"))?;
        }
        Ok(())
    }

    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let task = task.clone();
        self.run_blocking(move |tasks| tasks.remove(&task)).await?;
        notify(&self.changed);
        Ok(())
    }

    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        self.run_blocking(TaskDirs::observe).await
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl LogSource for ProcessRuntime {
    fn logs(&self, task: &TaskId, options: &LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        let dir = self.tasks.dir(task);
        match dir.record() {
            Ok(Some(_)) => {}
            Ok(None) => return Err(LogError::NoSuchTask(task.clone())),
            Err(error) => return Err(LogError::Unreadable { task: task.clone(), reason: error_chain(&error) }),
        }
        let (sender, receiver) = tokio::sync::mpsc::channel(super::logs::STREAM_DEPTH);
        let (task, options) = (task.clone(), options.clone());
        tokio::spawn(async move {
            if let Err(error) = logs::read(dir, options, sender).await {
                warn!(%task, %error, "cannot read the task's log");
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }
}
