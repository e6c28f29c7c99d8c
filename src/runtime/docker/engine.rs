//! Calls to the Docker engine about this node's containers.
//!
//! [`super::DockerRuntime`] calls it. It keeps no state: each call asks the engine.
//!
//! Invariant: no call touches a container without this node's label.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{self, Arc, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bollard::{
    Docker,
    errors::Error,
    models::{
        ContainerCreateBody, ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum, EndpointSettings,
    },
    query_parameters::{
        CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions, ListContainersOptionsBuilder,
        RemoveContainerOptionsBuilder, StartContainerOptions, StopContainerOptions, WaitContainerOptionsBuilder,
    },
};
use futures_util::{StreamExt, TryStreamExt};
use tokio::{
    sync::{Mutex, watch},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};
use weft_model::{
    NetworkId, NodeName, TASK_LABEL, TaskId, error_chain,
    plan::{NetworkPlan, TaskPlan},
};

use super::{
    container::{self, Part},
    error::{engine_error, http_status, message},
    network,
    plugin::starts::Starts,
};
use crate::runtime::{
    EngineFacts, ObservedContainer, ObservedTask, Phase, RETRY_BACKOFF, RuntimeConfig, RuntimeError, TaskFile,
    TaskNetns, files::FileStore, identity,
};

/// Delay before the next request for events, after the connection ended.
const EVENTS_RETRY_DELAY: Duration = Duration::from_secs(1);
/// Added to a task's grace period for the timeout of a stop request.
const STOP_MARGIN: Duration = Duration::from_secs(60);
/// The version of the API that connects a new container to several networks. Earlier ones connect
/// it to one.
const SEVERAL_NETWORKS_API: (usize, usize) = (1, 44);
/// How long the engine has for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the engine has for a question about one container. It does not answer while another
/// request holds the container, for example while files are copied from it.
pub(super) const INSPECT_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the engine has for its list of containers.
pub(super) const LIST_TIMEOUT: Duration = Duration::from_secs(10);
/// Number of containers that are inspected at the same time.
pub(super) const INSPECTIONS: usize = 16;

#[derive(Debug, Clone)]
pub(super) struct Engine {
    url: String,
    /// The client, as long as the engine answers. Another engine may come after it has ended, which
    /// may have another version.
    client: Arc<Mutex<Option<Docker>>>,
    pub(super) node: NodeName,
    search: watch::Receiver<Vec<String>>,
    pub(super) starts: Starts,
    /// Locked while docker networks are created and removed.
    creating_networks: Arc<Mutex<()>>,
    known: Arc<sync::Mutex<BTreeMap<TaskId, ObservedTask>>>,
    facts: Arc<sync::Mutex<EngineFacts>>,
    /// What the engine has said of each container that is no task, by the engine's id.
    pub(super) attached: Arc<sync::Mutex<BTreeMap<String, ObservedContainer>>>,
}

impl Engine {
    /// Does not connect yet: the engine may start later than weft.
    pub(super) fn new(config: &RuntimeConfig, starts: Starts) -> Self {
        Self {
            url: format!("unix://{}", config.docker_socket.display()),
            client: Arc::default(),
            node: config.hostname.clone(),
            search: config.search.clone(),
            starts,
            creating_networks: Arc::default(),
            known: Arc::default(),
            facts: Arc::default(),
            attached: Arc::default(),
        }
    }

    /// What the engine that was connected last has said of itself.
    pub(super) fn facts(&self) -> EngineFacts {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The client of the engine. Connects if there is none, and agrees on the version of the API.
    pub(super) async fn docker(&self) -> Result<Docker, RuntimeError> {
        let mut client = self.client.lock().await;
        if let Some(docker) = &*client {
            return Ok(docker.clone());
        }
        let unusable = |error: Error| RuntimeError::Engine {
            action: "use the Docker engine",
            reason: format!("{} (is dockerd running, and does it listen at {}?)", message(&error), self.url),
        };
        let docker = Docker::connect_with_host(&self.url).map_err(unusable)?;
        let connect = async {
            let docker = docker.negotiate_version().await?;
            let info = docker.info().await?;
            Ok((docker, info))
        };
        let connected = timeout(CONNECT_TIMEOUT, connect).await.map_err(|_| no_answer(CONNECT_TIMEOUT))?;
        let (docker, info) = connected.map_err(unusable)?;
        if let Some(reason) = container::unfit(&info) {
            return Err(RuntimeError::Engine { action: "use the container engine", reason });
        }
        *self.facts.lock().unwrap_or_else(PoisonError::into_inner) = container::facts(&info);
        Ok(client.insert(docker).clone())
    }

    /// Forgets the client, after the connection to the engine has ended.
    async fn disconnect(&self) {
        self.client.lock().await.take();
    }

    /// Lists this node's containers, or those of one of its tasks.
    pub(super) async fn list(&self, task: Option<&TaskId>) -> Result<Vec<ContainerSummary>, RuntimeError> {
        let mut labels = vec![format!("{}={}", container::NODE_LABEL, self.node)];
        labels.extend(task.map(|task| format!("{TASK_LABEL}={task}")));
        let filters = [("label", labels)].into_iter().collect();
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        self.docker().await?.list_containers(Some(options)).await.map_err(engine_error("list containers"))
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
    pub(super) async fn inspect(&self, id: &str) -> Result<Option<ContainerInspectResponse>, RuntimeError> {
        match self.docker().await?.inspect_container(id, None::<InspectContainerOptions>).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if http_status(&error) == Some(404) => Ok(None),
            Err(error) => Err(engine_error("inspect a container")(error)),
        }
    }

    /// Creates a container and returns its id.
    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<String, RuntimeError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        let created = self.docker().await?.create_container(Some(options), body).await;
        Ok(created.map_err(engine_error("create the container"))?.id)
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), RuntimeError> {
        let started = self.docker().await?.start_container(id, None::<StartContainerOptions>).await;
        started.map_err(|error| RuntimeError::Start { reason: message(&error) })
    }

    /// Creates the task's container with its files, unless it exists.
    pub(super) async fn create_container(
        &self,
        task: &TaskPlan,
        networks: &[NetworkPlan],
        store: &FileStore,
        files: &[TaskFile],
    ) -> Result<(), RuntimeError> {
        if self.find(&task.id, Part::Task).await?.is_some() {
            return Ok(());
        }
        let docker = self.docker().await?;
        let networks = self.networks_of(task, networks).await?;
        let at_once =
            if network::has_api(&docker, SEVERAL_NETWORKS_API) { networks.len() } else { networks.len().min(1) };
        let (at_once, later) = networks.split_at(at_once);
        // The engine refuses to mount a file that does not exist.
        store.create(&task.id, files)?;
        let mounts = store.mounts(&task.id, files);
        let body = container::task(task, &self.node, &self.search.borrow(), at_once, &mounts);
        let id = self.create(&task.name, body).await?;
        for (docker_network, endpoint) in later {
            network::connect(&docker, &id, docker_network, endpoint.clone()).await?;
        }
        Ok(())
    }

    /// The docker networks of a task, in the order of its links. Creates those that are missing.
    async fn networks_of(
        &self,
        task: &TaskPlan,
        networks: &[NetworkPlan],
    ) -> Result<Vec<(String, EndpointSettings)>, RuntimeError> {
        // Two tasks at the same time must not create the same network twice.
        let _one_at_a_time = self.creating_networks.lock().await;
        let docker = self.docker().await?;
        let mut existing = network::list(&docker, &self.node).await?;
        let mut found = Vec::new();
        for (index, attachment) in (0..).zip(&task.attachments) {
            let id = match existing.get(&attachment.network) {
                Some(id) => id.clone(),
                None => {
                    let network = networks.iter().find(|network| network.id == attachment.network);
                    let network = network.ok_or(RuntimeError::NotPrepared)?;
                    let id = network::create(&docker, &self.node, network).await?;
                    existing.insert(network.id.clone(), id.clone());
                    id
                }
            };
            found.push((id, network::endpoint(&task.id, index, attachment)));
        }
        Ok(found)
    }

    /// The docker network of a network of the cluster. Creates it if it is missing.
    pub(super) async fn docker_network(&self, network: &NetworkPlan) -> Result<String, RuntimeError> {
        let _one_at_a_time = self.creating_networks.lock().await;
        let docker = self.docker().await?;
        match network::list(&docker, &self.node).await?.remove(&network.id) {
            Some(id) => Ok(id),
            None => network::create(&docker, &self.node, network).await,
        }
    }

    /// Removes the docker networks of networks that are not in `kept`. Returns `false` if
    /// containers use one of them.
    pub(super) async fn remove_networks(&self, kept: &BTreeSet<NetworkId>) -> Result<bool, RuntimeError> {
        let _one_at_a_time = self.creating_networks.lock().await;
        let (docker, mut are_removed) = (self.docker().await?, true);
        for (network, id) in network::list(&docker, &self.node).await? {
            if !kept.contains(&network) {
                are_removed &= network::remove(&docker, &id).await?;
            }
        }
        Ok(are_removed)
    }

    /// Removes the containers of a task. Idempotent.
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
            match self.docker().await?.remove_container(&id, Some(options)).await {
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
        match self.docker().await?.wait_container(id, Some(options)).try_for_each(|_| async { Ok(()) }).await {
            Ok(()) | Err(Error::DockerContainerWaitError { .. }) => Ok(()),
            Err(error) if http_status(&error) == Some(404) => Ok(()),
            Err(error) => Err(engine_error("wait until the container is removed")(error)),
        }
    }

    /// Removes each sandbox that does not run and whose task has no container of its own.
    /// [`Engine::observe`] does not show such a task, so no later call would remove it.
    async fn remove_dead_sandboxes(&self) -> Result<(), RuntimeError> {
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
        let mut tasks: BTreeMap<TaskId, BTreeMap<Part, Listed>> = BTreeMap::new();
        let listed_at = Instant::now();
        let listed = timeout(LIST_TIMEOUT, self.list(None)).await.map_err(|_| no_answer(LIST_TIMEOUT))?;
        for summary in listed? {
            if let (Some((task, part)), Some(id)) = (container::identify(summary.labels.as_ref()), summary.id) {
                tasks.entry(task).or_default().insert(part, Listed { id, state: summary.state });
            }
        }
        self.known().retain(|task, _| tasks.contains_key(task));
        futures_util::stream::iter(tasks)
            .map(|(task, parts)| self.observe_one(task, parts, listed_at))
            .buffered(INSPECTIONS)
            .try_filter_map(|observed| async { Ok(observed) })
            .try_collect()
            .await
    }

    /// Observes one task. The engine does not answer questions about a container that it starts, so
    /// such a task is as the list of containers says.
    async fn observe_one(
        &self,
        task: TaskId,
        parts: BTreeMap<Part, Listed>,
        listed_at: Instant,
    ) -> Result<Option<ObservedTask>, RuntimeError> {
        if parts.get(&Part::Task).is_some_and(|own| own.state == Some(ContainerSummaryStateEnum::RUNNING)) {
            self.starts.end_of_running(&task, listed_at);
        }
        tokio::select! {
            biased;
            () = self.starts.wait_until_started(&task) => {
                let container = parts.into_values().next().map(|own| own.id).unwrap_or_default();
                let netns = self.starts.netns(&task).unwrap_or(TaskNetns::Missing);
                let resolver = identity::CONTAINER_RESOLVER;
                Ok(Some(ObservedTask { task, phase: Phase::Prepared, netns, resolver, container }))
            }
            inspected = self.inspect_in_time(&task, &parts) => inspected,
        }
    }

    /// What the engine says of a task, or said of it last if it does not answer in time.
    async fn inspect_in_time(
        &self,
        task: &TaskId,
        parts: &BTreeMap<Part, Listed>,
    ) -> Result<Option<ObservedTask>, RuntimeError> {
        let Ok(inspected) = timeout(INSPECT_TIMEOUT, self.inspect_task(task, parts)).await else {
            let known = self.known().get(task).cloned();
            return known.map(Some).ok_or_else(|| no_answer(INSPECT_TIMEOUT));
        };
        let inspected = inspected?;
        match &inspected {
            Some(observed) => drop(self.known().insert(task.clone(), observed.clone())),
            None => drop(self.known().remove(task)),
        }
        Ok(inspected)
    }

    /// What the engine has said of each task last.
    fn known(&self) -> MutexGuard<'_, BTreeMap<TaskId, ObservedTask>> {
        // Each change is complete before anything can panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn inspect_task(
        &self,
        task: &TaskId,
        parts: &BTreeMap<Part, Listed>,
    ) -> Result<Option<ObservedTask>, RuntimeError> {
        let mut found = BTreeMap::new();
        for (part, listed) in parts {
            found.extend(self.inspect(&listed.id).await?.map(|container| (*part, container)));
        }
        let sandbox = found.get(&Part::Sandbox);
        let own = found.get(&Part::Task);
        Ok(container::phase(sandbox, own).map(|phase| {
            // A running task keeps the namespace even if its sandbox was killed.
            let netns = sandbox.and_then(container::netns).or_else(|| own.and_then(container::netns));
            ObservedTask {
                phase,
                netns: netns.map_or(TaskNetns::Missing, TaskNetns::At),
                resolver: if sandbox.is_some() { identity::RESOLVER } else { identity::CONTAINER_RESOLVER },
                container: own.or(sandbox).and_then(|c| c.id.clone()).unwrap_or_default(),
                task: task.clone(),
            }
        }))
    }
}

pub(super) fn no_answer(limit: Duration) -> RuntimeError {
    let reason = format!("it does not answer within {} s: see its log", limit.as_secs());
    RuntimeError::Engine { action: "use the Docker engine", reason }
}

/// A container in the engine's list.
struct Listed {
    id: String,
    state: Option<ContainerSummaryStateEnum>,
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

/// Notifies the agent at each event of this node's containers. Waits for an engine that does not
/// run. Never returns.
pub(super) async fn watch_events(engine: Engine, changed: watch::Sender<u64>) {
    let mut is_waiting = false;
    loop {
        match engine.docker().await {
            Ok(docker) => {
                if std::mem::take(&mut is_waiting) {
                    info!("the Docker engine answers");
                }
                if let Err(error) = engine.remove_dead_sandboxes().await {
                    warn!(error = error_chain(&error), "cannot remove dead sandboxes of an earlier daemon");
                }
                engine.starts.set_engine_answers(true);
                // It ends with the connection: the engine may start the containers itself.
                let starting = AbortOnDropHandle::new(tokio::spawn(engine.clone().start_refused()));
                follow_events(&docker, &changed).await;
                drop(starting);
                engine.starts.set_engine_answers(false);
                engine.disconnect().await;
            }
            Err(error) if !is_waiting => {
                is_waiting = true;
                warn!(error = error_chain(&error), "waiting for the Docker engine");
            }
            Err(_) => {}
        }
        tokio::time::sleep(EVENTS_RETRY_DELAY).await;
    }
}

/// The events after which a task or another container can have another state or other networks.
/// Others, such as those of health checks, are frequent.
const EVENTS: [&str; 9] = ["create", "start", "die", "pause", "unpause", "rename", "destroy", "connect", "disconnect"];

/// Notifies the agent until the connection ends. Any container can be on networks of the cluster.
async fn follow_events(docker: &Docker, changed: &watch::Sender<u64>) {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let filters = [("type", texts(&["container", "network"])), ("event", texts(&EVENTS))].into_iter().collect();
    let mut events = std::pin::pin!(docker.events(Some(EventsOptionsBuilder::default().filters(&filters).build())));
    // The engine does not repeat events that happened before, so the agent must observe the tasks
    // again.
    changed.send_modify(|count| *count += 1);
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => debug!(action = event.action, "docker event"),
            Err(error) => return warn!(error = message(&error), "cannot read events from the Docker engine, retrying"),
        }
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
        let (requests, ()) = timeout(LIMIT, both).await.expect("the second request succeeds");
        assert_eq!(requests.len(), 2);
        assert!(
            requests.iter().all(|line| line.starts_with("POST ") && line.contains("/containers/c1/stop")),
            "{requests:?}"
        );
    }
}
