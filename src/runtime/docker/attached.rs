//! Observes the containers that are no tasks and are on networks of the cluster. Users create and
//! remove them, through weft's API or the engine's own.
//!
//! [`super::DockerRuntime`] calls it in each pass of the agent. The engine's list of containers
//! does not say which endpoint is whose: that is in the options of the endpoints, which a container
//! is inspected for.
//!
//! Invariant: a pass never waits for a container that waits for the pass. While the engine starts
//! or connects a container, it answers no question about it. What it has said before is then used
//! for the links, but it is not reported: the leader would free the address of a link that was just
//! made.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::PoisonError,
    time::{Duration, Instant},
};

use bollard::{
    models::{ContainerInspectResponse, ContainerSummary, ContainerSummaryStateEnum, RestartPolicyNameEnum},
    query_parameters::ListContainersOptionsBuilder,
};
use futures_util::StreamExt as _;
use tokio::{
    sync::Semaphore,
    time::{sleep, timeout},
};
use tracing::{debug, warn};
use weft_model::{
    CONTAINER_OPTION, NetworkId, TaskId, error_chain,
    report::{AttachedReport, AttachedReports},
    state::ContainerIdentity,
};

use super::{
    container,
    engine::{Engine, INSPECT_TIMEOUT, INSPECTIONS, LIST_TIMEOUT, no_answer},
    error::engine_error,
    network,
};
use crate::runtime::{ObservedContainer, ObservedContainers, RETRY_BACKOFF, RuntimeError, TaskNetns};

/// How often weft tries to start a container whose start fails for another reason than weft.
const START_ATTEMPTS: u32 = 5;
/// Number of containers that weft starts at the same time.
const STARTS: usize = 16;
/// How long the engine has for a question about one container while it starts or connects any: it
/// may be this one.
const STARTING_TIMEOUT: Duration = Duration::from_millis(50);

/// What is known of one container.
#[derive(Debug)]
enum Answer {
    /// The engine has said it in this pass. `None`: the container does not exist, or is on no
    /// network of the cluster as weft connects it.
    New(Option<ObservedContainer>),
    /// The engine has not answered in this pass about the container with this id of its own, and
    /// has said this last. `None`: it has said nothing before.
    Old(String, Option<ObservedContainer>),
}

impl Engine {
    pub(super) async fn observe_attached(&self) -> Result<ObservedContainers, RuntimeError> {
        let listed_at = Instant::now();
        let (others, networks) = self.others().await?;
        let ids: BTreeSet<_> = others.iter().filter_map(|container| container.id.clone()).collect();
        self.known_attached().retain(|id, _| ids.contains(id));
        let observed: Vec<_> = futures_util::stream::iter(others)
            .map(|container| self.observe_other(container, &networks, listed_at))
            .buffered(INSPECTIONS)
            .collect()
            .await;
        Ok(self.with_starts(observed))
    }

    /// The containers that are no tasks and may be on networks of the cluster, and the ids of these
    /// networks by the names and ids that the engine has for them.
    async fn others(&self) -> Result<(Vec<ContainerSummary>, BTreeMap<String, NetworkId>), RuntimeError> {
        let docker = self.docker().await?;
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let listed = timeout(LIST_TIMEOUT, docker.list_containers(Some(options))).await;
        let listed = listed.map_err(|_| no_answer(LIST_TIMEOUT))?.map_err(engine_error("list containers"))?;
        let is_other = |listed: &ContainerSummary| container::identify(listed.labels.as_ref()).is_none();
        let mut others: Vec<_> = listed.into_iter().filter(is_other).collect();
        if others.is_empty() {
            return Ok((others, BTreeMap::new()));
        }
        let networks = network::names(&docker, &self.node).await?;
        others.retain(|container| names_of(container).any(|name| networks.contains_key(name)));
        Ok((others, networks))
    }

    /// Starts the containers that the engine has tried to start before it answered, as their
    /// restart policies ask, and could not because of weft. Docker does the same for containers on
    /// Swarm's networks. Returns when all of them run or are not to be started any more.
    pub(super) async fn start_refused(self) {
        let mut failures = 0;
        let others = loop {
            match self.others().await {
                Ok((others, _)) => break others,
                Err(error) => warn!(error = error_chain(&error), "cannot list containers to start, retrying"),
            }
            failures += 1;
            sleep(RETRY_BACKOFF.delay(failures)).await;
        };
        let ids = others.into_iter().filter_map(|container| container.id);
        let slots = Semaphore::new(STARTS);
        futures_util::stream::iter(ids).for_each_concurrent(None, |id| self.start_one_refused(id, &slots)).await;
    }

    /// Waits between the attempts without one of the `slots`, so that others are started meanwhile.
    async fn start_one_refused(&self, id: String, slots: &Semaphore) {
        let mut starts = 0;
        for failures in 0.. {
            if failures > 0 {
                sleep(RETRY_BACKOFF.delay(failures)).await;
            }
            // Never an error: nothing closes them.
            let Ok(_slot) = slots.acquire().await else { return };
            let inspected = timeout(INSPECT_TIMEOUT, self.inspect(&id)).await;
            let found = match inspected.unwrap_or_else(|_| Err(no_answer(INSPECT_TIMEOUT))) {
                Ok(Some(found)) => found,
                Ok(None) => return,
                Err(error) => {
                    debug!(container = id, error = error_chain(&error), "cannot inspect a container to start");
                    continue;
                }
            };
            if !is_to_start(&found, starts) {
                return;
            }
            starts += 1;
            // A request whose connection to weft ends would fail for a reason that does not name
            // weft, so it goes on when this future is dropped.
            let (engine, container) = (self.clone(), id.clone());
            match tokio::spawn(async move { engine.start(&container).await }).await {
                Ok(Ok(())) | Err(_) => return,
                Ok(Err(error)) => {
                    warn!(container = id, error = error_chain(&error), "cannot start a container on the cluster");
                }
            }
        }
    }

    /// Observes one container of a list that was requested at `listed_at`.
    async fn observe_other(
        &self,
        listed: ContainerSummary,
        networks: &BTreeMap<String, NetworkId>,
        listed_at: Instant,
    ) -> Answer {
        let id = listed.id.clone().unwrap_or_default();
        let is_running = listed.state == Some(ContainerSummaryStateEnum::RUNNING);
        let last_known = || self.known_attached().get(&id).cloned();
        let old = || Answer::Old(id.clone(), last_known());
        if is_running
            && let Some(mut known) = last_known()
            && let Some(netns) = self.starts.end_of_running(&known.id, listed_at)
        {
            // The engine may not say it: it answers nothing while it connects another network.
            known.netns = TaskNetns::At(netns);
            self.known_attached().insert(id.clone(), known);
        }
        let known = last_known().map(|known| known.id);
        let held = async {
            match &known {
                Some(known) => self.starts.wait_until_held(known).await,
                None => std::future::pending().await,
            }
        };
        let any_held = async {
            self.starts.wait_until_any_is_held().await;
            sleep(STARTING_TIMEOUT).await;
        };
        let inspected = tokio::select! {
            biased;
            () = held => return old(),
            inspected = self.inspect(&id) => match inspected {
                Ok(inspected) => inspected,
                // It may run on: an engine that ends can leave its containers running.
                Err(error) => {
                    debug!(container = id, error = error_chain(&error), "cannot observe a container on the cluster");
                    return old();
                }
            },
            () = any_held => return old(),
            () = sleep(INSPECT_TIMEOUT) => return old(),
        };
        let observed = inspected.and_then(|inspected| read(&inspected, networks));
        match &observed {
            Some(observed) => {
                if is_running {
                    self.starts.end_of_running(&observed.id, listed_at);
                }
                self.known_attached().insert(id, observed.clone());
            }
            None => drop(self.known_attached().remove(&id)),
        }
        Answer::New(observed)
    }

    /// Adds what is known of the starts that are in progress.
    fn with_starts(&self, observed: Vec<Answer>) -> ObservedContainers {
        let mut complete = true;
        let (mut containers, mut report) = (Vec::new(), AttachedReports::default());
        for answer in observed {
            let known = match answer {
                Answer::New(found) => {
                    report.containers.extend(found.as_ref().map(as_reported));
                    found
                }
                Answer::Old(id, known) => {
                    complete &= known.is_some();
                    report.unanswered.push(id);
                    known
                }
            };
            containers.extend(known);
        }
        let running = containers.iter().filter_map(|container| match &container.netns {
            TaskNetns::At(netns) => Some((container.id.clone(), netns.clone())),
            _ => None,
        });
        self.starts.set_running(running.collect());
        for id in self.starts.containers() {
            let Some(netns) = self.starts.netns(&id) else { continue };
            match containers.iter_mut().find(|container| container.id == id) {
                Some(container) => container.netns = netns,
                None => {
                    complete = false;
                    let identity = ContainerIdentity { container: String::new(), name: String::new() };
                    containers.push(ObservedContainer { id, identity, networks: Vec::new(), netns });
                }
            }
        }
        ObservedContainers { containers, report, complete }
    }

    /// What the engine has said of each container last, by the engine's id.
    fn known_attached(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, ObservedContainer>> {
        // Each change is complete before anything can panic.
        self.attached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether weft starts the container, after it has tried this many times.
fn is_to_start(found: &ContainerInspectResponse, starts: u32) -> bool {
    was_refused(found) || (is_down(found) && (1..START_ATTEMPTS).contains(&starts))
}

/// Whether the engine should have started the container, and weft did not connect it. The errors of
/// the driver and of a missing driver name weft.
fn was_refused(found: &ContainerInspectResponse) -> bool {
    let error = found.state.as_ref().and_then(|state| state.error.as_deref()).unwrap_or_default();
    is_down(found) && error.contains("weft")
}

/// Whether the container does not run, and its engine starts it again.
fn is_down(found: &ContainerInspectResponse) -> bool {
    let policy = found.host_config.as_ref().and_then(|config| config.restart_policy.as_ref()?.name);
    let starts = !matches!(policy, None | Some(RestartPolicyNameEnum::EMPTY | RestartPolicyNameEnum::NO));
    starts && !container::is_running(found)
}

/// The names and ids of networks that the list has for a container.
fn names_of(container: &ContainerSummary) -> impl Iterator<Item = &str> {
    let mode = container.host_config.as_ref().and_then(|config| config.network_mode.as_deref());
    let networks = container.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
    let endpoints = networks.into_iter().flatten();
    let names = endpoints.flat_map(|(name, endpoint)| [Some(name.as_str()), endpoint.network_id.as_deref()]);
    names.chain([mode]).flatten()
}

fn as_reported(found: &ObservedContainer) -> AttachedReport {
    AttachedReport {
        id: found.id.clone(),
        identity: found.identity.clone(),
        networks: found.networks.clone(),
        running: found.netns != TaskNetns::Missing,
    }
}

/// Reads the endpoints of a container. `networks` has the ids of the cluster's networks by the
/// names and ids that the engine has for them.
fn read(inspected: &ContainerInspectResponse, networks: &BTreeMap<String, NetworkId>) -> Option<ObservedContainer> {
    let endpoints = inspected.network_settings.as_ref()?.networks.as_ref()?;
    let attached = endpoints.iter().filter_map(|(name, endpoint)| {
        let id: TaskId = endpoint.driver_opts.as_ref()?.get(CONTAINER_OPTION)?.parse().ok()?;
        let by_id = endpoint.network_id.as_ref().and_then(|network| networks.get(network));
        Some((id, by_id.or_else(|| networks.get(name))?.clone()))
    });
    let mut attached: Vec<(TaskId, NetworkId)> = attached.collect();
    attached.sort();
    let id = attached.first()?.0.clone();
    let name = inspected.name.as_deref().unwrap_or_default().trim_start_matches('/').to_owned();
    Some(ObservedContainer {
        identity: ContainerIdentity { container: inspected.id.clone()?, name },
        networks: attached.into_iter().filter(|(owner, _)| *owner == id).map(|(_, network)| network).collect(),
        netns: container::netns(inspected).map_or(TaskNetns::Missing, TaskNetns::At),
        id,
    })
}

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use axum::{
        Router,
        extract::State,
        http::{StatusCode, Uri},
        response::Response,
    };
    use bollard::models::{ContainerState, EndpointSettings, HostConfig, NetworkSettings, RestartPolicy};
    use serde_json::{Value, json};
    use tokio::{
        net::UnixListener,
        sync::{Mutex, watch},
    };
    use tokio_util::task::AbortOnDropHandle;
    use weft_model::NETWORK_LABEL;

    use super::{super::plugin::starts::Starts, *};
    use crate::runtime::{RuntimeConfig, RuntimeKind};

    /// An engine with one running container. It has this status and body for a question about it.
    type Inspection = Arc<Mutex<(StatusCode, Value)>>;

    async fn answer(State((network, inspection)): State<(NetworkId, Inspection)>, uri: Uri) -> Response<String> {
        let (status, body) = match uri.path() {
            path if path.ends_with("/version") => (StatusCode::OK, json!({ "ApiVersion": "1.48" })),
            path if path.ends_with("/info") => (StatusCode::OK, json!({ "Plugins": { "Network": ["overlay"] } })),
            path if path.ends_with("/networks") => {
                let labels = json!({ NETWORK_LABEL: network.to_string() });
                (StatusCode::OK, json!([{ "Id": "d1", "Name": "app", "Labels": labels }]))
            }
            path if path.ends_with("/containers/json") => {
                let settings = json!({ "Networks": { "app": { "NetworkID": "d1" } } });
                (StatusCode::OK, json!([{ "Id": "c0ffee", "State": "running", "NetworkSettings": settings }]))
            }
            path if path.ends_with("/containers/c0ffee/json") => inspection.lock().await.clone(),
            path => (StatusCode::NOT_FOUND, json!({ "message": path })),
        };
        respond(status, &body)
    }

    fn respond(status: StatusCode, body: &Value) -> Response<String> {
        let response = Response::builder().status(status).header("content-type", "application/json");
        response.body(body.to_string()).expect("a valid response")
    }

    fn engine(dir: &Path, network: &NetworkId, inspection: &Inspection) -> (Engine, AbortOnDropHandle<()>) {
        serve(dir, Router::new().fallback(answer).with_state((network.clone(), Arc::clone(inspection))))
    }

    /// Serves an engine in this directory, and connects to it.
    fn serve(dir: &Path, routes: Router) -> (Engine, AbortOnDropHandle<()>) {
        let docker_socket = dir.join("engine.sock");
        let listener = UnixListener::bind(&docker_socket).expect("a free path");
        let served = tokio::spawn(async move { axum::serve(listener, routes).await.expect("the socket works") });
        let config = RuntimeConfig {
            kind: RuntimeKind::Docker,
            run_dir: dir.to_owned(),
            hostname: "n1".parse().expect("a valid node name"),
            docker_socket,
            plugin_socket: dir.join("weft.sock"),
            plugin_listener: None,
            search: watch::channel(Vec::new()).1,
        };
        (Engine::new(&config, Starts::new(watch::Sender::default())), AbortOnDropHandle::new(served))
    }

    /// The answer for the container `id`, which runs in the namespace of this process.
    fn running(id: &TaskId) -> (StatusCode, Value) {
        let options = json!({ CONTAINER_OPTION: id.to_string() });
        let networks = json!({ "app": { "NetworkID": "d1", "DriverOpts": options } });
        let state = json!({ "Running": true, "Pid": std::process::id() });
        let body = json!({
            "Id": "c0ffee", "Name": "/shell", "State": state, "NetworkSettings": { "Networks": networks },
        });
        (StatusCode::OK, body)
    }

    #[tokio::test]
    async fn what_the_engine_said_before_a_start_is_not_reported() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let (id, network) = (TaskId::from_random(1), NetworkId::from_random(2));
        let inspection = Inspection::new(Mutex::new(running(&id)));
        let (engine, _served) = engine(tmp.path(), &network, &inspection);
        let before = engine.observe_attached().await.expect("the engine answers");
        assert!(before.complete);
        assert_eq!(before.containers[0].networks, std::slice::from_ref(&network));
        let identity = ContainerIdentity { container: "c0ffee".to_owned(), name: "shell".to_owned() };
        let reported = AttachedReport { id: id.clone(), identity, networks: vec![network], running: true };
        assert_eq!(before.report, AttachedReports { containers: vec![reported], unanswered: Vec::new() });
        let unanswered = AttachedReports { containers: Vec::new(), unanswered: vec!["c0ffee".to_owned()] };

        let starting = engine.starts.begin(&id);
        let meanwhile = engine.observe_attached().await.expect("the engine answers");
        assert_eq!(meanwhile.containers[0].networks, before.containers[0].networks, "the links are kept");
        assert_eq!(meanwhile.report, unanswered, "the start may connect another network");
        drop(starting);
        assert_eq!(engine.observe_attached().await.expect("the engine answers"), before);

        // The engine holds the container.
        let held = inspection.lock().await;
        let held_back = engine.observe_attached().await.expect("the engine answers");
        assert_eq!(held_back, ObservedContainers { report: unanswered, ..before });
        drop(held);
    }

    fn endpoint(network_id: &str, owner: Option<&TaskId>) -> EndpointSettings {
        EndpointSettings {
            network_id: Some(network_id.to_owned()),
            driver_opts: owner.map(|owner| [(CONTAINER_OPTION.to_owned(), owner.to_string())].into()),
            ..EndpointSettings::default()
        }
    }

    #[tokio::test]
    async fn a_container_runs_where_it_was_started_until_the_engine_says_more() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let (id, network) = (TaskId::from_random(1), NetworkId::from_random(2));
        let mut created = running(&id);
        created.1["State"] = json!({ "Running": false, "Pid": 0 });
        let inspection = Inspection::new(Mutex::new(created));
        let (engine, _served) = engine(tmp.path(), &network, &inspection);
        let created = engine.observe_attached().await.expect("the engine answers");
        assert_eq!(created.containers[0].netns, TaskNetns::Missing);

        let netns = std::path::PathBuf::from("/proc/self/ns/net");
        engine.starts.begin_of_user(&id, netns.clone());
        // The engine connects the container to another network, and answers nothing until then.
        let held = inspection.lock().await;
        let connecting = engine.observe_attached().await.expect("the engine answers");
        assert_eq!(connecting.containers[0].netns, TaskNetns::At(netns));
        assert_eq!(connecting.report.unanswered, ["c0ffee"]);
        drop(held);
    }

    #[tokio::test]
    async fn a_pass_does_not_wait_for_a_container_that_the_engine_connects() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let (id, network) = (TaskId::from_random(1), NetworkId::from_random(2));
        let inspection = Inspection::new(Mutex::new(running(&id)));
        let (engine, _served) = engine(tmp.path(), &network, &inspection);
        let before = engine.observe_attached().await.expect("the engine answers");
        let held = inspection.lock().await;
        let observed = tokio::select! {
            biased;
            () = engine.starts.connect_running(&id) => unreachable!("no link is made"),
            observed = timeout(INSPECT_TIMEOUT / 2, engine.observe_attached()) => observed,
        };
        let observed = observed.expect("in time").expect("the engine lists");
        assert_eq!((observed.containers, observed.report.unanswered.len()), (before.containers.clone(), 1));
        drop(held);
        assert_eq!(engine.observe_attached().await.expect("the engine answers"), before);
    }

    #[tokio::test]
    async fn a_container_is_kept_while_the_engine_cannot_say_anything_of_it() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let (id, network) = (TaskId::from_random(1), NetworkId::from_random(2));
        let inspection = Inspection::new(Mutex::new((StatusCode::INTERNAL_SERVER_ERROR, json!({}))));
        let (engine, _served) = engine(tmp.path(), &network, &inspection);
        let observe = async |status, body| {
            *inspection.lock().await = (status, body);
            engine.observe_attached().await.expect("the engine answers")
        };
        let failed = || (StatusCode::INTERNAL_SERVER_ERROR, json!({ "message": "the engine ends" }));
        let unknown = observe(failed().0, failed().1).await;
        let unanswered = AttachedReports { containers: Vec::new(), unanswered: vec!["c0ffee".to_owned()] };
        assert_eq!(unknown, ObservedContainers { report: unanswered.clone(), ..ObservedContainers::default() });
        let known = observe(running(&id).0, running(&id).1).await;
        assert!(known.complete && known.containers.len() == 1, "{known:?}");
        let kept = observe(failed().0, failed().1).await;
        assert_eq!(kept, ObservedContainers { report: unanswered, ..known });
        let gone = observe(StatusCode::NOT_FOUND, json!({ "message": "no such container" })).await;
        assert_eq!(gone, ObservedContainers { complete: true, ..ObservedContainers::default() });
    }

    #[test]
    fn a_container_is_known_by_the_options_of_its_endpoints() {
        let (id, app, other) = (TaskId::from_random(1), NetworkId::from_random(2), NetworkId::from_random(3));
        let networks = [("d1", &app), ("app", &app), ("d2", &other), ("other", &other)];
        let networks = networks.map(|(name, network)| (name.to_owned(), network.clone())).into();
        let inspected = |pid, endpoints: Vec<(&str, EndpointSettings)>| ContainerInspectResponse {
            id: Some("c0ffee".to_owned()),
            name: Some("/shell".to_owned()),
            state: Some(ContainerState { pid: Some(pid), ..ContainerState::default() }),
            network_settings: Some(NetworkSettings {
                networks: Some(endpoints.into_iter().map(|(name, endpoint)| (name.to_owned(), endpoint)).collect()),
                ..NetworkSettings::default()
            }),
            ..ContainerInspectResponse::default()
        };
        // An engine names the network of a container that was never started as the request did.
        let endpoints =
            vec![("app", endpoint("d1", Some(&id))), ("d2", endpoint("", Some(&id))), ("bridge", endpoint("d3", None))];
        let found = read(&inspected(7, endpoints), &networks).expect("an attached container");
        assert_eq!((found.id, found.networks), (id.clone(), vec![app, other]));
        assert_eq!(found.identity, ContainerIdentity { container: "c0ffee".to_owned(), name: "shell".to_owned() });
        assert_eq!(found.netns, TaskNetns::At("/proc/7/ns/net".into()));
        assert_eq!(read(&inspected(7, vec![("bridge", endpoint("d3", None))]), &networks), None);
        let stopped = read(&inspected(0, vec![("app", endpoint("", Some(&id)))]), &networks);
        assert_eq!(stopped.expect("an attached container").netns, TaskNetns::Missing);
    }

    #[test]
    fn a_container_that_weft_did_not_connect_is_started_again_if_its_policy_says_so() {
        use RestartPolicyNameEnum::{ALWAYS, NO, UNLESS_STOPPED};
        let check = |policy, error: &str, running, refused| {
            let restart_policy = Some(RestartPolicy { name: Some(policy), maximum_retry_count: None });
            let error = Some(error.to_owned());
            let found = ContainerInspectResponse {
                state: Some(ContainerState { running: Some(running), error, ..ContainerState::default() }),
                host_config: Some(HostConfig { restart_policy, ..HostConfig::default() }),
                ..ContainerInspectResponse::default()
            };
            assert_eq!(was_refused(&found), refused, "{found:?}");
        };
        check(ALWAYS, "the engine starts: weft starts this container again", false, true);
        check(UNLESS_STOPPED, "dial unix /run/docker/plugins/weft.sock: connect: no such file", false, true);
        check(ALWAYS, "", false, false);
        check(ALWAYS, "", true, false);
        check(NO, "weft did not connect the container", false, false);
    }

    #[test]
    fn a_start_that_weft_refuses_is_repeated_as_long_as_that_lasts() {
        let check = |error: &str, starts, want| {
            let restart_policy =
                Some(RestartPolicy { name: Some(RestartPolicyNameEnum::ALWAYS), ..Default::default() });
            let found = ContainerInspectResponse {
                state: Some(ContainerState { error: Some(error.to_owned()), ..ContainerState::default() }),
                host_config: Some(HostConfig { restart_policy, ..HostConfig::default() }),
                ..ContainerInspectResponse::default()
            };
            assert_eq!(is_to_start(&found, starts), want, "{error:?} after {starts}");
        };
        check("weft did not connect the container", 0, true);
        check("weft did not connect the container", 100, true);
        // A user has stopped it.
        check("", 0, false);
        check("port is already allocated", 1, true);
        check("port is already allocated", START_ATTEMPTS, false);
    }

    #[tokio::test]
    async fn a_container_that_cannot_be_started_does_not_delay_another() {
        let tmp = tempfile::tempdir().expect("a temporary directory");
        let network = NetworkId::from_random(2);
        let state = (network, Inspection::new(Mutex::new((StatusCode::NOT_FOUND, json!({})))));
        let started = watch::Sender::new(Vec::new());
        let routes = Router::new().fallback({
            let started = started.clone();
            async move |uri: Uri| {
                let path = uri.path();
                if path.ends_with("/containers/json") {
                    let settings = json!({ "Networks": { "app": { "NetworkID": "d1" } } });
                    let container = |id| json!({ "Id": id, "State": "exited", "NetworkSettings": settings });
                    respond(StatusCode::OK, &json!([container("bad"), container("good")]))
                } else if let Some(path) = path.strip_suffix("/start") {
                    let id = path.rsplit('/').next().unwrap_or_default().to_owned();
                    let status = if id == "good" { StatusCode::NO_CONTENT } else { StatusCode::INTERNAL_SERVER_ERROR };
                    started.send_modify(|started| started.push(id));
                    respond(status, &json!({ "message": "weft did not connect the container" }))
                } else if path.ends_with("/bad/json") || path.ends_with("/good/json") {
                    let host = json!({ "RestartPolicy": { "Name": "always" } });
                    let error = "weft did not connect the container";
                    respond(StatusCode::OK, &json!({ "State": { "Error": error }, "HostConfig": host }))
                } else {
                    answer(State(state.clone()), uri).await
                }
            }
        });
        let (engine, _served) = serve(tmp.path(), routes);
        let _starting = AbortOnDropHandle::new(tokio::spawn(engine.start_refused()));
        let mut started = started.subscribe();
        let both = started.wait_for(|started: &Vec<String>| started.len() >= 3);
        let started =
            timeout(Duration::from_secs(10), both).await.expect("in time").expect("the sender exists").clone();
        assert_eq!(started[..2].iter().collect::<BTreeSet<_>>().len(), 2, "both at first: {started:?}");
        assert_eq!(started[2], "bad", "it is tried again");
    }
}
