//! Calls to the Docker engine about this node's containers.
//!
//! [`super::DockerRuntime`] calls it. It keeps no state: each call asks the engine.
//!
//! Invariant: no call touches a container without this node's label.

use std::{collections::BTreeMap, time::Duration};

use bollard::{
    Docker,
    errors::Error,
    models::{ContainerCreateBody, ContainerInspectResponse, ContainerSummary},
    query_parameters::{
        CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptions, WaitContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt, TryStreamExt};
use tokio::sync::watch;
use tracing::{debug, warn};
use weft_model::{NodeName, TaskId, error_chain, plan::TaskPlan};

use super::{
    container::{self, Part},
    error::{engine_error, http_status, message},
};
use crate::runtime::{ObservedTask, RETRY_BACKOFF, RuntimeConfig, RuntimeError};

/// Delay before the next request for events, after the connection ended.
const EVENTS_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Added to a task's grace period for the timeout of a stop request.
const STOP_MARGIN: Duration = Duration::from_secs(60);
/// Number of containers that are inspected at the same time.
const INSPECTIONS: usize = 16;

#[derive(Debug, Clone)]
pub(super) struct Engine {
    pub(super) docker: Docker,
    pub(super) node: NodeName,
    search: watch::Receiver<Vec<String>>,
}

impl Engine {
    pub(super) async fn connect(config: &RuntimeConfig) -> Result<Self, RuntimeError> {
        let host = format!("unix://{}", config.docker_socket.display());
        let unusable = |error: Error| RuntimeError::Engine {
            action: "use the Docker engine",
            reason: format!("{} (is dockerd running, and does it listen at {host}?)", message(&error)),
        };
        let docker = Docker::connect_with_host(&host).map_err(unusable)?;
        let docker = docker.negotiate_version().await.map_err(unusable)?;
        Ok(Self { docker, node: config.hostname.clone(), search: config.search.clone() })
    }

    /// Lists this node's containers, or those of one of its tasks.
    pub(super) async fn list(&self, task: Option<&TaskId>) -> Result<Vec<ContainerSummary>, RuntimeError> {
        let mut labels = vec![format!("{}={}", container::NODE_LABEL, self.node)];
        labels.extend(task.map(|task| format!("{}={task}", container::TASK_LABEL)));
        let filters = [("label", labels)].into_iter().collect();
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.docker.list_containers(Some(options)).await.map_err(engine_error("list containers"))
    }

    /// Finds one of a task's containers.
    pub(super) async fn find(
        &self,
        task: &TaskId,
        part: Part,
    ) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        for summary in self.list(Some(task)).await? {
            if let (Some(id), Some((_, found))) = (&summary.id, container::identify(summary.labels.as_ref()))
                && found == part
            {
                return self.inspect(id).await;
            }
        }
        Ok(None)
    }

    /// `None` if there is no such container.
    async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        match self.docker.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if http_status(&error) == Some(404) => Ok(None),
            Err(error) => Err(engine_error("inspect a container")(error)),
        }
    }

    /// Creates a container and returns its id.
    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, RuntimeError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let created = self.docker.create_container(Some(options), body).await;
        Ok(created.map_err(engine_error("create the container"))?.id)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let started = self.docker.start_container(id, None::<StartContainerOptions>).await;
        started.map_err(|error| RuntimeError::Start { reason: message(&error) })
    }

    /// Creates and starts a task's sandbox, unless it runs. First removes the containers of an
    /// earlier attempt.
    pub(super) async fn create_sandbox(&self, task: &TaskPlan) -> Result<(), RuntimeError> {
        if let Some(found) = self.find(&task.id, Part::Sandbox).await? {
            if container::is_running(&found) {
                return Ok(());
            }
            // The sandbox has no namespace any more, so the task's own container cannot run either.
            self.remove(&task.id).await?;
        }
        let body = container::sandbox(task, &self.node, &self.search.borrow());
        let id = self.create(&container::sandbox_name(task), body).await?;
        self.start(&id).await
    }

    /// Removes both containers of a task: first the task's own, then the sandbox. Idempotent.
    pub(super) async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
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
                Err(error) if http_status(&error) == Some(404) => {}
                // A removal of this container is in progress.
                Err(error) if http_status(&error) == Some(409) => self.wait_until_removed(&id).await?,
                Err(error) => return Err(engine_error("remove the container")(error)),
            }
        }
        Ok(())
    }

    async fn wait_until_removed(&self, id: &str) -> Result<(), RuntimeError> {
        let options = WaitContainerOptionsBuilder::default().condition("removed").build();
        match self.docker.wait_container(id, Some(options)).try_for_each(|_| async { Ok(()) }).await {
            Ok(()) | Err(Error::DockerContainerWaitError { .. }) => Ok(()),
            Err(error) if http_status(&error) == Some(404) => Ok(()),
            Err(error) => Err(engine_error("wait until the container is removed")(error)),
        }
    }

    /// Removes each sandbox that does not run and whose task has no container of its own.
    /// [`Engine::observe`] does not show such a task, so no later call would remove it.
    pub(super) async fn remove_dead_sandboxes(&self) -> Result<(), RuntimeError> {
        for task in container::dead_sandboxes(&self.list(None).await?) {
            match self.remove(&task).await {
                Ok(()) => debug!(%task, "removed dead sandbox of an earlier daemon"),
                Err(error) => warn!(%task, error = error_chain(&error), "cannot remove dead sandbox"),
            }
        }
        Ok(())
    }

    /// All tasks of this node that have a phase, in the order of their ids.
    pub(super) async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
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

    /// Observes one task by the ids of its containers.
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
            // A running task keeps the namespace even if its sandbox was killed.
            netns: sandbox.and_then(container::netns).or_else(|| own.and_then(container::netns)),
            container: own.or(sandbox).and_then(|c| c.id.clone()).unwrap_or_default(),
            task,
        }))
    }
}

/// Asks the engine to stop a container, and repeats the request until the container is stopped or
/// removed.
///
/// Each request waits up to the container's grace period. The stop signal and the grace period are
/// part of the container.
pub(super) async fn stop_container(docker: Docker, grace: Duration, task: TaskId, id: String) {
    let docker = docker.with_timeout(grace + STOP_MARGIN);
    for failures in 1.. {
        match docker.stop_container(&id, None::<StopContainerOptions>).await {
            Ok(()) => return,
            Err(error) if matches!(http_status(&error), Some(304 | 404)) => return,
            Err(error) => warn!(%task, error = message(&error), "the engine cannot stop the task, retrying"),
        }
        tokio::time::sleep(RETRY_BACKOFF.delay(failures)).await;
    }
}

/// Notifies the agent at each event of this node's containers. Never returns.
pub(super) async fn watch_events(docker: Docker, node: NodeName, changed: watch::Sender<u64>) {
    let label = format!("{}={node}", container::NODE_LABEL);
    let filters = [("type", vec!["container".to_owned()]), ("label", vec![label])].into_iter().collect();
    let options = EventsOptionsBuilder::default().filters(&filters).build();
    loop {
        let mut events = std::pin::pin!(docker.events(Some(options.clone())));
        while let Some(event) = events.next().await {
            match event {
                Ok(event) => debug!(action = event.action, "docker event"),
                Err(error) => {
                    warn!(error = message(&error), "cannot read events from the Docker engine, retrying");
                    break;
                }
            }
            changed.send_modify(|count| *count += 1);
        }
        tokio::time::sleep(EVENTS_RETRY_DELAY).await;
        // The engine does not repeat events that happened meanwhile, so the agent must observe the
        // tasks again.
        changed.send_modify(|count| *count += 1);
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
    };

    use super::*;

    /// Longer than any response of this test takes.
    const LIMIT: Duration = Duration::from_secs(10);

    /// An engine that sends these responses, one after the other. Returns the first lines of the
    /// requests.
    async fn serve_responses(listener: UnixListener, responses: &[&str]) -> Vec<String> {
        let mut requests = Vec::new();
        for response in responses {
            let (mut stream, _) = listener.accept().await.expect("the client connects");
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(stream.read_u8().await.expect("the client sends a whole request"));
            }
            let request = String::from_utf8(request).expect("a request in UTF-8");
            requests.push(request.lines().next().unwrap_or_default().to_owned());
            let response = format!("HTTP/1.1 {response}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(response.as_bytes()).await.expect("the client reads the response");
        }
        requests
    }

    #[tokio::test]
    async fn a_stop_request_that_failed_is_repeated() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let socket = tmp.path().join("engine.sock");
        let listener = UnixListener::bind(&socket).expect("a free path");
        let docker = Docker::connect_with_host(&format!("unix://{}", socket.display())).expect("a valid address");
        let responses = ["500 Internal Server Error", "204 No Content"];
        let engine = serve_responses(listener, &responses);
        let stop = stop_container(docker, Duration::ZERO, TaskId::from_random(7), "c1".to_owned());
        let both = async { tokio::join!(engine, stop) };
        let (requests, ()) = tokio::time::timeout(LIMIT, both).await.expect("the second request succeeds");
        assert_eq!(requests.len(), 2);
        assert!(
            requests.iter().all(|line| line.starts_with("POST ") && line.contains("/containers/c1/stop")),
            "{requests:?}"
        );
    }
}
