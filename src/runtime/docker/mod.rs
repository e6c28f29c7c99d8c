//! The docker runtime: tasks as containers of the local Docker engine.
//!
//! [`super::open`] creates it, and the agent calls it through [`Executor`]. A task is one
//! container, on docker networks whose driver is weft ([`plugin`]): the engine starts the program
//! of a container only when the agent has made its links.
//!
//! All state is in the engine, as labels of containers and networks, except the files with secrets
//! and configs, which the engine mounts. `weft.node` names the node that they belong to. The
//! runtime must not touch those of other nodes or of other programs.
//!
//! In reading order: [`mod@error`] translates the engine's errors, [`image`] provides images,
//! [`plugin`] is called by the engine, [`network`] has the docker networks, [`container`]
//! translates between plans and the engine's types, [`engine`] calls the engine, [`attached`]
//! observes containers that are no tasks, [`logs`] reads logs.
//!
//! Tasks (tokio): one that reads the engine's events; one that listens for the engine's calls; one
//! for each container that is being stopped or that waits for its namespace; one that starts the
//! containers that weft did not connect, as long as the connection to the engine lasts, and one for
//! each of these starts; one for each reader of a log.

mod error;
mod image;
pub(crate) mod plugin;
mod network;
mod container;
mod engine;
mod attached;
mod logs;

use async_trait::async_trait;
use futures_util::{FutureExt as _, StreamExt, future::BoxFuture, stream::BoxStream};
use tokio::sync::{Mutex, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;
use weft_model::{
    ContainerNetworks, LogError, LogOptions, LogRecord, LogSource, NodePlan, TaskId, error_chain,
    plan::{NetworkPlan, TaskPlan},
};

use self::{
    container::Part,
    engine::{Engine, stop_container, watch_events},
    plugin::starts::Starts,
};
use super::{
    EngineFacts, Executor, ObservedContainers, ObservedTask, Phase, Ready, RuntimeConfig, RuntimeError, TaskFile,
    files::FileStore,
};

/// The default socket of the engine.
pub(crate) const SOCKET: &str = "/var/run/docker.sock";

/// The docker runtime of one node.
#[derive(Debug)]
pub(crate) struct DockerRuntime {
    engine: Engine,
    /// Locked while weft's own image is built, so that parallel calls build it once.
    images: Mutex<()>,
    files: FileStore,
    changed: watch::Sender<u64>,
    _events: AbortOnDropHandle<()>,
    _plugin: AbortOnDropHandle<()>,
}

impl DockerRuntime {
    /// Serves the network driver, and follows the engine as soon as it answers. The containers of
    /// an earlier daemon are adopted.
    pub(crate) fn open(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let changed = watch::channel(0).0;
        let starts = Starts::new(changed.clone());
        // The engine asks the plugin when it starts, so the plugin must not wait for the engine.
        let socket = &config.plugin_socket;
        let listener = match &config.plugin_listener {
            Some(listener) => listener.try_clone(),
            None => plugin::bind(socket),
        };
        let plugin = listener.and_then(|listener| plugin::serve(listener, starts.clone()));
        let plugin = plugin.map_err(RuntimeError::io("listen on", socket))?;
        let plugin = AbortOnDropHandle::new(tokio::spawn(plugin));
        let engine = Engine::new(config, starts);
        let events = tokio::spawn(watch_events(engine.clone(), changed.clone()));
        let events = AbortOnDropHandle::new(events);
        let files = FileStore::new(&config.run_dir);
        Ok(Self { engine, images: Mutex::new(()), files, changed, _events: events, _plugin: plugin })
    }

    /// Removes the containers and the files of a task.
    async fn remove_all(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.engine.remove(task).await?;
        self.files.remove(task)
    }

    /// Wakes the agent, which then observes the tasks.
    fn notify(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl Executor for DockerRuntime {
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        let docker = self.engine.docker().await?;
        {
            let _one_at_a_time = self.images.lock().await;
            image::ensure_own_image(&docker).await?;
        }
        image::ensure_image(&docker, &task.container.image, task.registry_auth.as_ref()).await
    }

    async fn prepare(&self, task: &TaskPlan, networks: &[NetworkPlan], files: &[TaskFile]) -> Result<(), RuntimeError> {
        let preparing = self.files.prepare(&task.id);
        let created = self.engine.create_container(task, networks, &self.files, files).await;
        drop(preparing);
        if let Err(error) = created {
            if let Err(error) = self.remove_all(&task.id).await {
                warn!(task = %task.id, error = error_chain(&error), "cannot remove a task after its preparation failed");
            }
            return Err(error);
        }
        self.notify();
        Ok(())
    }

    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        let found = self.engine.find(&task.id, Part::Task).await?.ok_or(RuntimeError::NotPrepared)?;
        let (Some(Phase::Prepared), Some(id)) = (container::phase(None, Some(&found)), &found.id) else {
            return Ok(());
        };
        let starting = self.engine.starts.begin(&task.id);
        let started = self.engine.start(id).await;
        drop(starting);
        self.notify();
        started
    }

    fn connect(&self, plan: Option<&NodePlan>, ready: &Ready) {
        self.engine.starts.connect(plan, ready);
    }

    async fn observe_attached(&self) -> Result<ObservedContainers, RuntimeError> {
        self.engine.observe_attached().await
    }

    async fn remove_networks(&self, plan: Option<&NodePlan>) -> Result<bool, RuntimeError> {
        let networks = plan.into_iter().flat_map(|plan| &plan.networks);
        self.engine.remove_networks(&networks.map(|network| network.id.clone()).collect()).await
    }

    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let Some(found) = self.engine.find(task, Part::Task).await?.filter(container::is_running) else {
            return Ok(());
        };
        let grace = container::grace_period(&found);
        let Some(id) = found.id else { return Ok(()) };
        tokio::spawn(stop_container(self.engine.docker().await?, grace, task.clone(), id));
        Ok(())
    }

    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.remove_all(task).await?;
        self.notify();
        Ok(())
    }

    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        let with_files = self.files.list();
        let observed = self.engine.observe().await?;
        // The engine mounts the files when it starts a container, and a task is started once.
        let lasting = observed.iter().filter(|task| !matches!(task.phase, Phase::Exited(_)));
        self.files.remove_unused(&with_files, &lasting.map(|observed| &observed.task).collect());
        Ok(observed)
    }

    fn engine_facts(&self) -> EngineFacts {
        self.engine.facts()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl ContainerNetworks for DockerRuntime {
    fn docker_network<'a>(&'a self, network: &'a NetworkPlan) -> BoxFuture<'a, Result<String, String>> {
        let found = self.engine.docker_network(network);
        found.map(|found| found.map_err(|error| error_chain(&error))).boxed()
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
