//! The docker runtime: tasks as containers of the local Docker engine.
//!
//! [`super::open`] creates it, and the agent calls it through [`Executor`]. Each task has two
//! containers: the sandbox, which has the network namespace, the host name and the resolver's
//! address, and the task's own container, which shares them. The task's own container is created
//! after the sandbox has its links, so no program of a task runs before its network is ready.
//!
//! All state is in the engine, as labels of containers. `weft.node` names the node that a container
//! belongs to. The runtime must not touch containers of other nodes or of other programs.
//!
//! In reading order: [`mod@error`] translates the engine's errors, [`image`] provides images,
//! [`container`] translates between plans and the engine's types, [`engine`] calls the engine,
//! [`logs`] reads logs.
//!
//! Tasks (tokio): one that reads the engine's events; one for each container that is being stopped;
//! one for each reader of a log.

mod error;
mod image;
mod container;
mod engine;
mod logs;

use std::process::ExitCode;

use async_trait::async_trait;
use futures_util::{StreamExt, stream::BoxStream};
use nix::sys::signal::{SigSet, Signal};
use tokio::sync::{Mutex, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use weft_model::{LogError, LogOptions, LogRecord, LogSource, TaskId, error_chain, plan::TaskPlan};

use self::{
    container::Part,
    engine::{Engine, stop_container, watch_events},
};
use super::{Executor, ObservedTask, Phase, RuntimeConfig, RuntimeError};

/// The hidden subcommand that runs as the only process of a sandbox.
pub(super) const PAUSE_COMMAND: &str = "__pause";
/// The default socket of the engine.
pub(crate) const SOCKET: &str = "/var/run/docker.sock";

/// Keeps a sandbox's network namespace alive until SIGTERM or SIGINT.
pub(super) fn pause() -> ExitCode {
    let end: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    match end.thread_block().and_then(|()| end.wait()) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pause: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The docker runtime of one node.
#[derive(Debug)]
pub(crate) struct DockerRuntime {
    engine: Engine,
    /// Locked while weft's own images are built, so that parallel calls build them once.
    images: Mutex<()>,
    changed: watch::Sender<u64>,
    _events: AbortOnDropHandle<()>,
}

impl DockerRuntime {
    /// Connects to the engine, and adopts the containers of an earlier daemon.
    pub(crate) async fn open(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let engine = Engine::connect(config).await?;
        let changed = watch::channel(0).0;
        let events = tokio::spawn(watch_events(engine.docker.clone(), engine.node.clone(), changed.clone()));
        let runtime = Self { engine, images: Mutex::new(()), changed, _events: AbortOnDropHandle::new(events) };
        runtime.engine.remove_dead_sandboxes().await?;
        Ok(runtime)
    }

    /// Wakes the agent, which then observes the tasks.
    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl Executor for DockerRuntime {
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        {
            let _one_at_a_time = self.images.lock().await;
            image::ensure_own_images(&self.engine.docker).await?;
        }
        image::ensure_image(&self.engine.docker, &task.container.image).await
    }

    async fn prepare(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        if let Err(error) = self.engine.create_sandbox(task).await {
            if let Err(error) = self.engine.remove(&task.id).await {
                warn!(task = %task.id, error = error_chain(&error), "cannot remove a task after its preparation failed");
            }
            return Err(error);
        }
        self.notify();
        Ok(())
    }

    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        let sandbox = self.engine.find(&task.id, Part::Sandbox).await?.and_then(|sandbox| sandbox.id);
        let sandbox = sandbox.ok_or(RuntimeError::NotPrepared)?;
        let id = match self.engine.find(&task.id, Part::Task).await? {
            Some(found) => match (container::phase(None, Some(&found)), found.id) {
                (Some(Phase::Prepared), Some(id)) => id,
                _ => return Ok(()),
            },
            None => self.engine.create(&task.name, container::task(task, &self.engine.node, &sandbox)).await?,
        };
        let started = self.engine.start(&id).await;
        self.notify();
        started
    }

    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let Some(found) = self.engine.find(task, Part::Task).await?.filter(container::is_running) else {
            return Ok(());
        };
        let grace = container::grace_period(&found);
        let Some(id) = found.id else { return Ok(()) };
        tokio::spawn(stop_container(self.engine.docker.clone(), grace, task.clone(), id));
        Ok(())
    }

    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.engine.remove(task).await?;
        self.notify();
        Ok(())
    }

    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        self.engine.observe().await
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl LogSource for DockerRuntime {
    fn logs(&self, task: &TaskId, options: &LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        let (sender, receiver) = tokio::sync::mpsc::channel(super::logs::STREAM_DEPTH);
        let (engine, task, options) = (self.engine.clone(), task.clone(), options.clone());
        tokio::spawn(async move {
            if let Err(error) = logs::read(&engine, &task, &options, &sender).await {
                warn!(%task, error = error_chain(&error), "cannot read the task's log");
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }
}
