//! Tasks as containers of the local Docker engine. Owns two containers for each: a sandbox, which holds the network
//! namespace, host name and resolver, and, once that is plumbed, the task's own, which shares them. So nothing of a task
//! runs before its network is there.
//!
//! The engine's labels are the memory: `weft.node` says whose a container is, and a node touches only its own. In reading
//! order: [`container`] says what is asked of the engine and what its answers mean, [`image`] gets images, [`logs`] reads.
//!
//! Tasks (tokio): one that listens for events; one for each container that is being stopped, or whose log is read.

mod container;
mod image;
mod logs;

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use async_trait::async_trait;
use bollard::{
    Docker,
    errors::Error,
    models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary},
    query_parameters::{
        CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptions, WaitContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt, TryStreamExt, stream::BoxStream};
use nix::sys::signal::{SigSet, Signal};
use tokio::sync::{Mutex, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};
use weft_model::{LogError, LogOptions, LogRecord, LogSource};
use weft_model::{NodeName, TaskId, plan::TaskPlan};

use super::{Executor, ObservedTask, Phase, RETRY_BACKOFF, RuntimeConfig, RuntimeError};
use crate::error_chain::error_chain;
use container::Part;

/// The hidden subcommand: the sandbox's only process.
pub(super) const PAUSE_COMMAND: &str = "__pause";
/// Where the engine listens unless told otherwise.
pub(crate) const SOCKET: &str = "/var/run/docker.sock";
/// Between two attempts to listen for events.
const EVENTS_RETRY: Duration = Duration::from_secs(1);
/// Beyond a task's grace, before an engine that has not stopped it is given up on.
const STOP_SLACK: Duration = Duration::from_secs(60);
/// Containers asked after at a time.
const INSPECTIONS: usize = 16;

/// Holds a network namespace open until it is told to end.
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
    docker: Docker,
    node: NodeName,
    /// Held while images of weft's own are made: once is enough.
    images: Mutex<()>,
    changed: watch::Sender<u64>,
    _events: AbortOnDropHandle<()>,
}

impl DockerRuntime {
    /// Finds the engine, and with it the containers of an earlier daemon.
    pub(crate) async fn open(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let host = format!("unix://{}", config.docker_socket.display());
        let unusable = |error: Error| RuntimeError::Engine {
            action: "use the Docker engine",
            reason: format!("{} (is dockerd running, and does it listen at {host}?)", reason(&error)),
        };
        let docker = Docker::connect_with_host(&host).map_err(unusable)?;
        let docker = docker.negotiate_version().await.map_err(unusable)?;
        let changed = watch::channel(0).0;
        let events = tokio::spawn(listen(docker.clone(), config.hostname.clone(), changed.clone()));
        let events = AbortOnDropHandle::new(events);
        let node = config.hostname.clone();
        let runtime = Self { docker, node, images: Mutex::new(()), changed, _events: events };
        runtime.clear_up().await?;
        Ok(runtime)
    }

    /// Removes the sandboxes that hold nothing: no task is seen in them, so nobody else would.
    async fn clear_up(&self) -> Result<(), RuntimeError> {
        for task in container::leftovers(&self.list(None).await?) {
            match self.erase(&task).await {
                Ok(()) => debug!(%task, "removed a sandbox that an earlier daemon left"),
                Err(error) => warn!(%task, error = error_chain(&error), "cannot remove a sandbox that holds nothing"),
            }
        }
        Ok(())
    }

    /// This node's containers, or those of one of its tasks.
    async fn list(&self, task: Option<&TaskId>) -> Result<Vec<ContainerSummary>, RuntimeError> {
        let mut labels = vec![format!("{}={}", container::NODE_LABEL, self.node)];
        labels.extend(task.map(|task| format!("{}={task}", container::TASK_LABEL)));
        let filters = [("label", labels)].into_iter().collect();
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.docker.list_containers(Some(options)).await.map_err(engine("list containers"))
    }

    /// One of a task's containers.
    async fn find(&self, task: &TaskId, part: Part) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        for summary in self.list(Some(task)).await? {
            if let (Some(id), Some((_, found))) = (&summary.id, container::identify(summary.labels.as_ref()))
                && found == part
            {
                return self.inspect(id).await;
            }
        }
        Ok(None)
    }

    /// `None`: it is gone.
    async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if status(&error) == Some(404) => Ok(None),
            Err(error) => Err(engine("inspect a container")(error)),
        }
    }

    async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, RuntimeError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let created =
            self.docker.create_container(Some(options), body).await.map_err(engine("create the container"))?;
        Ok(created.id)
    }

    async fn start_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.docker
            .start_container(id, None::<StartContainerOptions>)
            .await
            .map_err(|error| RuntimeError::Start { reason: reason(&error) })
    }

    async fn make_sandbox(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        if let Some(found) = self.find(&task.id, Part::Sandbox).await? {
            if container::is_running(&found) {
                return Ok(());
            }
            // Cut short, or ended behind our back: its namespace is gone, and the task's container with it.
            self.erase(&task.id).await?;
        }
        let id = self.create(&container::sandbox_name(task), container::sandbox(task, &self.node)).await?;
        self.start_container(&id).await
    }

    /// Removes both containers of a task, its own first.
    async fn erase(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let mut parts: Vec<_> = self
            .list(Some(task))
            .await?
            .into_iter()
            .filter_map(|summary| Some((container::identify(summary.labels.as_ref())?.1, summary.id?)))
            .collect();
        parts.sort();
        for (_, id) in parts {
            let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
            match self.docker.remove_container(&id, Some(options)).await {
                Ok(()) => {}
                Err(error) if status(&error) == Some(404) => {}
                // Somebody is removing it already.
                Err(error) if status(&error) == Some(409) => self.removed(&id).await?,
                Err(error) => return Err(engine("remove the container")(error)),
            }
        }
        Ok(())
    }

    /// Waits until a container is gone.
    async fn removed(&self, id: &str) -> Result<(), RuntimeError> {
        let options = WaitContainerOptionsBuilder::default().condition("removed").build();
        match self.docker.wait_container(id, Some(options)).try_for_each(|_| async { Ok(()) }).await {
            Ok(()) | Err(Error::DockerContainerWaitError { .. }) => Ok(()),
            Err(error) if status(&error) == Some(404) => Ok(()),
            Err(error) => Err(engine("wait for a container's end")(error)),
        }
    }

    /// What there is of one task, from its containers' ids.
    async fn observe_one(
        &self,
        task: TaskId,
        parts: BTreeMap<Part, String>,
    ) -> Result<Option<ObservedTask>, RuntimeError> {
        let mut found = BTreeMap::new();
        for (part, id) in parts {
            found.extend(self.inspect(&id).await?.map(|container| (part, container)));
        }
        let sandbox = found.get(&Part::Sandbox);
        let own = found.get(&Part::Task);
        Ok(container::phase(sandbox, own).map(|phase| ObservedTask {
            phase,
            // A task that runs holds the namespace even where its sandbox was killed.
            netns: sandbox.and_then(container::netns).or_else(|| own.and_then(container::netns)),
            container: own.or(sandbox).and_then(|c| c.id.clone()).unwrap_or_default(),
            task,
        }))
    }

    fn bump(&self) {
        self.changed.send_modify(|count| *count += 1);
    }
}

/// Has the engine stop a container, again and again where it fails to, until it is stopped or gone.
async fn stop_container(docker: &Docker, task: &TaskId, id: &str) {
    for failures in 1.. {
        // Signal and grace are the container's own.
        match docker.stop_container(id, None::<StopContainerOptions>).await {
            Ok(()) => return,
            Err(error) if matches!(status(&error), Some(304 | 404)) => return,
            Err(error) => warn!(%task, error = reason(&error), "the engine did not stop the task; trying again"),
        }
        tokio::time::sleep(RETRY_BACKOFF.delay(failures)).await;
    }
}

/// Rings at every event of this node's containers.
async fn listen(docker: Docker, node: NodeName, changed: watch::Sender<u64>) {
    let label = format!("{}={node}", container::NODE_LABEL);
    let filters = [("type", vec!["container".to_owned()]), ("label", vec![label])].into_iter().collect();
    let options = EventsOptionsBuilder::default().filters(&filters).build();
    loop {
        let mut events = std::pin::pin!(docker.events(Some(options.clone())));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => debug!(action = event.action, "docker event"),
                Err(error) => {
                    warn!(error = reason(&error), "no events from the Docker engine; trying again");
                    break;
                }
            }
            changed.send_modify(|count| *count += 1);
        }
        tokio::time::sleep(EVENTS_RETRY).await;
        // Whatever happened meanwhile was not heard.
        changed.send_modify(|count| *count += 1);
    }
}

#[async_trait]
impl Executor for DockerRuntime {
    async fn fetch(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        {
            let _one_at_a_time = self.images.lock().await;
            image::provide_own(&self.docker).await?;
        }
        image::provide(&self.docker, &task.container.image).await
    }

    async fn prepare(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        if let Err(error) = self.make_sandbox(task).await {
            if let Err(error) = self.erase(&task.id).await {
                warn!(task = %task.id, error = error_chain(&error), "cannot clear up after a failure");
            }
            return Err(error);
        }
        self.bump();
        Ok(())
    }

    async fn start(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        let sandbox = self.find(&task.id, Part::Sandbox).await?.and_then(|sandbox| sandbox.id);
        let sandbox = sandbox.ok_or(RuntimeError::NotPrepared)?;
        let id = match self.find(&task.id, Part::Task).await? {
            Some(found) => match (container::phase(None, Some(&found)), found.id) {
                (Some(Phase::Prepared), Some(id)) => id,
                _ => return Ok(()),
            },
            None => self.create(&task.name, container::task(task, &self.node, &sandbox)).await?,
        };
        let started = self.start_container(&id).await;
        self.bump();
        started
    }

    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let Some(found) = self.find(task, Part::Task).await?.filter(container::is_running) else { return Ok(()) };
        let Some(id) = found.id.clone() else { return Ok(()) };
        let docker = self.docker.clone().with_timeout(container::grace(&found) + STOP_SLACK);
        let task = task.clone();
        tokio::spawn(async move { stop_container(&docker, &task, &id).await });
        Ok(())
    }

    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.erase(task).await?;
        self.bump();
        Ok(())
    }

    async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
        let mut tasks: BTreeMap<TaskId, BTreeMap<Part, String>> = BTreeMap::new();
        for summary in self.list(None).await? {
            if let (Some((task, part)), Some(id)) = (container::identify(summary.labels.as_ref()), summary.id) {
                tasks.entry(task).or_default().insert(part, id);
            }
        }
        futures_util::stream::iter(tasks)
            .map(|(task, parts)| self.observe_one(task, parts))
            .buffered(INSPECTIONS)
            .try_filter_map(|observed| async { Ok(observed) })
            .try_collect()
            .await
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}

impl LogSource for DockerRuntime {
    fn logs(&self, task: &TaskId, options: &LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        let (sender, receiver) = tokio::sync::mpsc::channel(super::logs::STREAM_DEPTH);
        let (docker, node, task, options) = (self.docker.clone(), self.node.clone(), task.clone(), options.clone());
        tokio::spawn(async move {
            if let Err(error) = logs::read(&docker, &node, &task, &options, &sender).await {
                warn!(%task, error = reason(&error), "cannot read the log");
            }
        });
        Ok(ReceiverStream::new(receiver).boxed())
    }
}

fn engine(action: &'static str) -> impl FnOnce(Error) -> RuntimeError {
    move |error| RuntimeError::Engine { action, reason: reason(&error) }
}

/// What the engine itself said, if it is the engine that speaks.
fn reason(error: &Error) -> String {
    match error {
        Error::DockerResponseServerError { message, .. } => message.trim().to_owned(),
        Error::DockerStreamError { error } => error.trim().to_owned(),
        other => other.to_string(),
    }
}

/// HTTP status of the engine's refusal.
fn status(error: &Error) -> Option<u16> {
    match error {
        Error::DockerResponseServerError { status_code, .. } => Some(*status_code),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    use super::*;

    /// No answer takes as long.
    const LIMIT: Duration = Duration::from_secs(10);

    /// An engine that gives these answers, one after the other. Returns what it was asked, by first lines.
    async fn engine_of(listener: UnixListener, answers: &[&str]) -> Vec<String> {
        let mut asked = Vec::new();
        for answer in answers {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.unwrap());
            }
            let request = String::from_utf8(request).unwrap();
            asked.push(request.lines().next().unwrap_or_default().to_owned());
            let answer = format!("HTTP/1.1 {answer}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        asked
    }

    #[tokio::test]
    async fn a_stop_that_failed_is_tried_again() {
        let tmp = tempfile::tempdir().unwrap();
        let socket = tmp.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let docker = Docker::connect_with_host(&format!("unix://{}", socket.display())).unwrap();
        let task = TaskId::from_random(7);
        let answers = ["500 Internal Server Error", "204 No Content"];
        let engine = engine_of(listener, &answers);
        let both = async { tokio::join!(engine, stop_container(&docker, &task, "c1")) };
        let (asked, ()) = tokio::time::timeout(LIMIT, both).await.unwrap();
        assert_eq!(asked.len(), 2);
        assert!(
            asked.iter().all(|line| line.starts_with("POST ") && line.contains("/containers/c1/stop")),
            "{asked:?}"
        );
    }
}
