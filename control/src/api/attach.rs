//! Containers that are no tasks, on networks of the cluster: `docker run --network`, `docker
//! network connect` and `disconnect`.
//!
//! The engine of the node has a docker network for each network of the cluster that its containers
//! are on. A request that names a network of the cluster gets an address from the cluster state
//! first, and is then forwarded with the docker network, the address and the options by which
//! weft's network driver knows the endpoint. Requests about other networks are forwarded as they
//! are.
//!
//! ```text
//!   client               this module                engine                  cluster
//!     │ create, connect ──▶│ reserve ───────────────────────────────────────▶│ address
//!     │                    │ forward, rewritten ──────▶│                      │
//!     │                    │◀────────────── container ─│                      │
//!     │                    │ confirm: the engine's id and name ──────────────▶│ names
//!     │◀──── the answer ───│                                                  │
//! ```
//!
//! A reservation that is not confirmed, because this daemon or the engine has ended meanwhile, ends
//! by itself ([`crate::state`]), or is confirmed by what the node reports. The address is freed
//! when the node reports that the container is gone, so nothing here follows the removal of
//! containers.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{Uri, header, request::Parts},
    response::Response,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{
    sync,
    time::{Instant, sleep, timeout},
};
use weft_model::{
    CONTAINER_GATEWAY_OPTION, CONTAINER_LINK_OPTION, CONTAINER_OPTION, NetworkId, NodeId, NodePlan, Rejection,
    TASK_LABEL, TaskId,
    command::{AttachContainer, ObjectKind, WantedLink},
    plan::NetworkPlan,
    state::{ContainerIdentity, Network},
};

use super::{
    Api, body, docker_networks, engine,
    error::ApiError,
    features, find,
    query::{Params, encoded},
    wire::fields,
};
use crate::swarm::{ProposeError, SwarmError};

/// How long a request waits for an address that was freed a moment ago: that of a container which
/// another one replaces.
const QUARANTINE_TIMEOUT: Duration = Duration::from_secs(15);
/// How long it waits for an address that another container has: it may have been removed a moment
/// ago.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);
/// The pause before the next attempt. Each one costs a log entry.
const QUARANTINE_POLL: Duration = Duration::from_millis(500);
/// How long a request waits until the plan of this node has a network that was created a moment
/// ago.
const PLAN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a worker waits for a network that neither its plan nor its engine has.
const UNKNOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// The fewest characters of an id by which a network is found.
const SHORT_ID_LEN: usize = 12;
/// Largest answer of the engine to the creation of a container, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// The parts of a request to create a container that are about networks.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Creation {
    mac_address: Option<String>,
    host_config: Option<HostConfig>,
    networking_config: Option<NetworkingConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct HostConfig {
    network_mode: Option<String>,
    port_bindings: Option<Map<String, Value>>,
    publish_all_ports: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkingConfig {
    endpoints_config: Option<BTreeMap<String, Option<Endpoint>>>,
}

/// What a request says of a container on one network.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Endpoint {
    #[serde(rename = "IPAMConfig")]
    ipam_config: Option<Addresses>,
    links: Option<Vec<String>>,
    aliases: Option<Vec<String>>,
    mac_address: Option<String>,
    driver_opts: Option<Map<String, Value>>,
}

#[derive(Debug, Default, Deserialize)]
struct Addresses {
    #[serde(rename = "IPv4Address", default)]
    v4: Option<String>,
    #[serde(rename = "IPv6Address", default)]
    v6: Option<String>,
    #[serde(rename = "LinkLocalIPs", default)]
    link_local: Option<Vec<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Connection {
    container: Option<String>,
    endpoint_config: Option<Endpoint>,
}

/// Requests that connect and disconnect one container wait for each other. Two that run at once
/// would give the container two ids, or the one that fails would free the address of the other.
#[derive(Debug, Default)]
pub(super) struct Locks(Mutex<BTreeMap<String, Weak<sync::Mutex<()>>>>);

impl Locks {
    /// The lock of the container with this id in the engine.
    fn of(&self, container: &str) -> Arc<sync::Mutex<()>> {
        // Each change is complete before anything can panic.
        let mut locks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        locks.retain(|_, lock| lock.strong_count() > 0);
        let known = locks.get(container).and_then(Weak::upgrade);
        known.unwrap_or_else(|| {
            let lock = Arc::default();
            locks.insert(container.to_owned(), Arc::downgrade(&lock));
            lock
        })
    }
}

/// Refuses a body whose parts are not the objects that they must be. Lists would be read as
/// structures by their order.
fn check_objects(body: &Value, parts: &[&str]) -> Result<(), ApiError> {
    let is_wrong = |part: &&&str| body.pointer(part).is_some_and(|value| !value.is_object() && !value.is_null());
    match parts.iter().find(is_wrong) {
        Some(part) => {
            Err(ApiError::Invalid(format!("invalid JSON: {} must be an object", part.trim_start_matches('/'))))
        }
        None => Ok(()),
    }
}

/// Creates a container. If the request names networks of the cluster, the container gets an address
/// on each of them.
pub(super) async fn create(State(api): State<Api>, params: Params, request: Request) -> Result<Response, ApiError> {
    if api.node.engine.is_none() {
        return engine::forward(State(api), request).await;
    }
    let (parts, bytes) = body::read(request).await?;
    // A body that is no JSON is refused by the engine.
    let Ok(mut body) = body::parse(&bytes) else { return forward(&api, parts, bytes).await };
    let creation: Creation = fields::read(&mut body)?;
    check_objects(&body, &["", "/HostConfig", "/NetworkingConfig", "/NetworkingConfig/EndpointsConfig"])?;
    let Some(mut wanted) = Wanted::of_creation(&api, &creation).await? else {
        return forward(&api, parts, bytes).await;
    };
    let id = TaskId::from_random(crate::host::random());
    let gateway = wanted.others == 0;
    let endpoints = wanted.attach(&api, &id, None, gateway).await?;
    rewrite(&mut body, &wanted, endpoints);
    let networks: Vec<NetworkId> = wanted.networks.iter().map(|wanted| wanted.plan.id.clone()).collect();
    let answered = forward(&api, parts, body.to_string()).await;
    let created = match answered? {
        response if response.status().is_success() => response,
        refusal => {
            release(&api, &id, networks).await;
            return Ok(refusal);
        }
    };
    let (parts, answer) = created.into_parts();
    let answer = axum::body::to_bytes(answer, MAX_ANSWER).await.map_err(|e| ApiError::Unavailable(e.to_string()))?;
    let container = serde_json::from_slice::<Value>(&answer).ok();
    let container = container.as_ref().and_then(|created| created["Id"].as_str()).unwrap_or_default().to_owned();
    if let Err(error) = confirm(&api, &id, &container, params.text("name"), networks.clone()).await {
        engine::delete(&api, &format!("/containers/{container}?force=1&v=1")).await?;
        release(&api, &id, networks).await;
        return Err(error);
    }
    Ok(Response::from_parts(parts, Body::from(answer)))
}

/// Connects a container to one more network.
pub(super) async fn connect(
    State(api): State<Api>,
    Path(network): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let Some(network) = resolve(&api, &network).await? else {
        refuse_hidden(&api, &network).await?;
        return engine::forward(State(api), request).await;
    };
    let (parts, bytes) = body::read(request).await?;
    let mut body = body::parse(&bytes)?;
    let mut connection: Connection = fields::read(&mut body)?;
    check_objects(&body, &["", "/EndpointConfig"])?;
    let (container, _one_at_a_time) =
        Container::lock(&api, connection.container.as_deref().unwrap_or_default()).await?;
    let docker_network = docker_network(&api, &network).await?;
    if container.is_on(&docker_network, network.name.as_str()) {
        let (name, network) = (&container.identity.name, &network.name);
        let text = format!("endpoint with name {name} already exists in network {network}");
        return Err(ApiError::Forbidden(text));
    }
    let endpoint = connection.endpoint_config.take().unwrap_or_default();
    let mut wanted = Wanted { networks: Vec::new(), others: container.others };
    wanted.add(String::new(), network.clone(), &endpoint, docker_network.clone())?;
    let id = container.id.clone().unwrap_or_else(|| TaskId::from_random(crate::host::random()));
    let gateway = container.others == 0;
    let mut endpoints = wanted.attach(&api, &id, Some(container.identity.clone()), gateway).await?;
    let settings = body.as_object_mut().map(|body| body.entry("EndpointConfig").or_insert(Value::Null));
    if let (Some(settings), Some(endpoint)) = (settings, endpoints.pop()) {
        apply(settings, &endpoint);
    }
    let parts = with_path(parts, &format!("/networks/{docker_network}/connect"))?;
    let answered = forward(&api, parts, body.to_string()).await;
    let networks = vec![network.id];
    // If the connection to the engine has failed, the container may be connected.
    let response = answered?;
    if response.status().is_success() {
        let ContainerIdentity { container, name } = container.identity;
        confirm(&api, &id, &container, &name, networks).await?;
    } else {
        release(&api, &id, networks).await;
    }
    Ok(response)
}

/// Disconnects a container from a network. Its address is free then.
pub(super) async fn disconnect(
    State(api): State<Api>,
    Path(network): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let Some(network) = resolve(&api, &network).await? else {
        refuse_hidden(&api, &network).await?;
        return engine::forward(State(api), request).await;
    };
    let (parts, bytes) = body::read(request).await?;
    let mut body = body::parse(&bytes)?;
    let connection: Connection = fields::read(&mut body)?;
    let (container, _one_at_a_time) =
        Container::lock(&api, connection.container.as_deref().unwrap_or_default()).await?;
    let docker_network = docker_network(&api, &network).await?;
    let parts = with_path(parts, &format!("/networks/{docker_network}/disconnect"))?;
    let response = forward(&api, parts, bytes).await?;
    if let (true, Some(id)) = (response.status().is_success(), &container.id) {
        release(&api, id, vec![network.id]).await;
    }
    Ok(response)
}

/// The networks of the cluster that a request names.
struct Wanted {
    networks: Vec<WantedNetwork>,
    /// How many networks of the engine's own the container is on.
    others: usize,
}

struct WantedNetwork {
    /// The name that the request has for the network.
    key: String,
    plan: NetworkPlan,
    link: WantedLink,
    docker_network: String,
}

/// The settings of one endpoint that the cluster chooses.
struct Settings {
    addresses: Value,
    options: Value,
}

impl Wanted {
    /// `None` if the request names no network of the cluster.
    async fn of_creation(api: &Api, creation: &Creation) -> Result<Option<Self>, ApiError> {
        let none = HostConfig::default();
        let host = creation.host_config.as_ref().unwrap_or(&none);
        let mode = host.network_mode.as_deref().unwrap_or_default();
        let endpoints = creation.networking_config.as_ref().and_then(|config| config.endpoints_config.as_ref());
        let mut wanted = Self { networks: Vec::new(), others: 0 };
        let mut mode_is_cluster = false;
        let default = Endpoint::default();
        let given = endpoints.into_iter().flatten().map(|(key, endpoint)| (key.as_str(), endpoint.as_ref()));
        // Beside chosen endpoints, a mode that the engine would replace by them does not count.
        let has_endpoints = endpoints.is_some_and(|endpoints| !endpoints.is_empty());
        let is_listed = endpoints.is_some_and(|endpoints| endpoints.contains_key(mode));
        let mode_alone = (!(is_listed || has_endpoints && is_builtin(mode))).then_some((mode, None));
        for (key, endpoint) in given.chain(mode_alone) {
            match resolve(api, key).await? {
                Some(network) => {
                    mode_is_cluster |= key == mode;
                    let docker_network = docker_network(api, &network).await?;
                    wanted.add(key.to_owned(), network, endpoint.unwrap_or(&default), docker_network)?;
                }
                None => {
                    refuse_hidden(api, key).await?;
                    wanted.others += 1;
                }
            }
        }
        if wanted.networks.is_empty() {
            return Ok(None);
        }
        if mode_is_cluster && creation.mac_address.as_ref().is_some_and(|mac| !mac.is_empty()) {
            return Err(features::CHOSEN_MACS.refusal());
        }
        let publishes = host.publish_all_ports == Some(true)
            || host.port_bindings.as_ref().is_some_and(|bindings| !bindings.is_empty());
        if wanted.others == 0 && publishes {
            return Err(features::CONTAINER_PORTS.refusal());
        }
        Ok(Some(wanted))
    }

    fn add(
        &mut self,
        key: String,
        plan: NetworkPlan,
        endpoint: &Endpoint,
        docker_network: String,
    ) -> Result<(), ApiError> {
        let is_given = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|list| !list.is_empty());
        if is_given(&endpoint.links) {
            return Err(features::CONTAINER_LINKS.refusal());
        }
        if endpoint.mac_address.as_ref().is_some_and(|mac| !mac.is_empty()) {
            return Err(features::CHOSEN_MACS.refusal());
        }
        if endpoint.driver_opts.as_ref().is_some_and(|options| !options.is_empty()) {
            return Err(features::ENDPOINT_OPTIONS.refusal());
        }
        let none = Addresses::default();
        let addresses = endpoint.ipam_config.as_ref().unwrap_or(&none);
        if is_given(&addresses.link_local) {
            return Err(features::LINK_LOCAL_ADDRESSES.refusal());
        }
        let link = WantedLink {
            network: plan.id.clone(),
            v4: parse(addresses.v4.as_deref(), "IPv4")?,
            v6: parse(addresses.v6.as_deref(), "IPv6")?,
            aliases: endpoint.aliases.clone().unwrap_or_default(),
        };
        self.networks.push(WantedNetwork { key, plan, link, docker_network });
        Ok(())
    }

    /// Attaches the container to the networks. Returns the settings of the endpoints, in the order
    /// of the networks.
    async fn attach(
        &mut self,
        api: &Api,
        id: &TaskId,
        identity: Option<ContainerIdentity>,
        gateway: bool,
    ) -> Result<Vec<Settings>, ApiError> {
        let networks: Vec<_> = self.networks.iter().map(|wanted| wanted.link.clone()).collect();
        // The swarm replaces the node by this one.
        let node = NodeId::from_random(0);
        let attach = AttachContainer { node, id: id.clone(), identity, networks, present: Vec::new() };
        let began = Instant::now();
        let deadline = began + QUARANTINE_TIMEOUT;
        loop {
            match api.member.attach(attach.clone()).await {
                Ok(()) => break,
                Err(SwarmError::Change(ProposeError::Rejected(Rejection::AddressInQuarantine { .. })))
                    if Instant::now() < deadline =>
                {
                    sleep(QUARANTINE_POLL).await;
                }
                // The node of a container that was removed a moment ago is about to say so.
                Err(SwarmError::Change(ProposeError::Rejected(Rejection::AddressInUse { .. })))
                    if began.elapsed() < RELEASE_TIMEOUT =>
                {
                    sleep(QUARANTINE_POLL).await;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let plan = api.member.plans().borrow().clone();
        let attached = plan.as_ref().and_then(|plan| plan.attached.iter().find(|container| container.id == *id));
        let links = attached.map(|container| container.links.as_slice()).unwrap_or_default();
        let settings = self.networks.iter().filter_map(|wanted| {
            let link = links.iter().find(|link| link.attachment.network == wanted.plan.id)?;
            let addr = link.attachment.addr;
            let mut options = Map::new();
            options.insert(CONTAINER_OPTION.to_owned(), id.to_string().into());
            options.insert(CONTAINER_LINK_OPTION.to_owned(), link.index.to_string().into());
            if gateway {
                options.insert(CONTAINER_GATEWAY_OPTION.to_owned(), "1".into());
            }
            let mut addresses = json!({ "IPv6Address": addr.v6.to_string() });
            if let Some(v4) = addr.v4 {
                addresses["IPv4Address"] = v4.to_string().into();
            }
            Some(Settings { addresses, options: Value::Object(options) })
        });
        let settings: Vec<_> = settings.collect();
        if settings.len() == self.networks.len() {
            return Ok(settings);
        }
        let networks = self.networks.iter().map(|wanted| wanted.plan.id.clone()).collect();
        release(api, id, networks).await;
        Err(ApiError::Unavailable("the plan of this node has changed: try again".to_owned()))
    }
}

/// A container of the engine.
struct Container {
    identity: ContainerIdentity,
    /// The names and ids of its networks.
    networks: Vec<String>,
    /// How many networks of the engine's own it is on.
    others: usize,
    /// Its id in the cluster state, if it is on a network of the cluster.
    id: Option<TaskId>,
    is_task: bool,
}

impl Container {
    async fn find(api: &Api, name: &str) -> Result<Self, ApiError> {
        let missing = || ApiError::NotFound { kind: ObjectKind::Container, name: name.to_owned() };
        let path = format!("/containers/{}/json", encoded(name));
        let found = engine::find(api, &path).await?.filter(|_| !name.is_empty()).ok_or_else(missing)?;
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let endpoints = found["NetworkSettings"]["Networks"].as_object();
        let owner = |endpoint: &Value| endpoint["DriverOpts"][CONTAINER_OPTION].as_str()?.parse::<TaskId>().ok();
        let mut container = Self {
            identity: ContainerIdentity {
                container: text(&found["Id"]),
                name: text(&found["Name"]).trim_start_matches('/').to_owned(),
            },
            networks: Vec::new(),
            others: 0,
            id: None,
            is_task: found["Config"]["Labels"].get(TASK_LABEL).is_some(),
        };
        for (name, endpoint) in endpoints.into_iter().flatten() {
            container.networks.extend([name.clone(), text(&endpoint["NetworkID"])]);
            match owner(endpoint) {
                Some(owner) => container.id = Some(owner),
                None => container.others += 1,
            }
        }
        Ok(container)
    }

    /// Finds a container that is no task, for a request that changes its networks. While a request
    /// holds the guard, the others for this container wait.
    async fn lock(api: &Api, name: &str) -> Result<(Self, sync::OwnedMutexGuard<()>), ApiError> {
        let container = Self::find(api, name).await?;
        let guard = api.attaching.of(&container.identity.container).lock_owned().await;
        // What it is on may have changed meanwhile.
        let container = Self::find(api, &container.identity.container).await?;
        container.refuse_task()?;
        Ok((container, guard))
    }

    fn is_on(&self, docker_network: &str, name: &str) -> bool {
        self.networks.iter().any(|network| network == docker_network || (network == name && self.id.is_some()))
    }

    fn refuse_task(&self) -> Result<(), ApiError> {
        if !self.is_task {
            return Ok(());
        }
        Err(ApiError::Forbidden(format!(
            "container {} is a task: change the networks of its service (service update --network-add, --network-rm)",
            self.identity.name
        )))
    }
}

/// The network of the cluster with this name or id. `None` if there is none, and for the engine's
/// own networks.
async fn resolve(api: &Api, text: &str) -> Result<Option<NetworkPlan>, ApiError> {
    if is_builtin(text) || api.node_id().is_none() {
        return Ok(None);
    }
    let mut plans = api.member.plans();
    if let Some(cluster) = api.member.cluster() {
        cluster.catch_up().await;
        let state = cluster.state().borrow().clone();
        let is_named = |network: &&Network| network.spec.name.as_str() == text || text.len() >= SHORT_ID_LEN;
        let Some(network) = find::network(&state, text).ok().filter(is_named) else { return Ok(None) };
        // The plan has what the runtime needs, a moment after the state.
        let has = |plan: &Option<Arc<NodePlan>>| {
            plan.as_ref().is_some_and(|plan| plan.networks.iter().any(|planned| planned.id == network.id))
        };
        let waited = timeout(PLAN_TIMEOUT, plans.wait_for(has)).await;
        let plan = waited.ok().and_then(Result::ok).and_then(|plan| plan.clone());
        let planned = plan.and_then(|plan| plan.networks.iter().find(|planned| planned.id == network.id).cloned());
        return planned
            .map(Some)
            .ok_or_else(|| ApiError::Unavailable(format!("this node does not know network {text} yet: try again")));
    }
    // A worker knows the networks of its plan.
    let find = |plan: &Option<Arc<NodePlan>>| {
        let networks = || plan.iter().flat_map(|plan| &plan.networks);
        let named = networks().find(|network| network.id.as_str() == text || network.name.as_str() == text);
        let by_prefix = || {
            let mut found = networks().filter(|n| text.len() >= SHORT_ID_LEN && n.id.as_str().starts_with(text));
            found.next().filter(|_| found.next().is_none())
        };
        named.or_else(by_prefix).cloned()
    };
    let known = find(&plans.borrow());
    if known.is_some() || docker_networks::inspect(api, text).await?.is_some() {
        return Ok(known);
    }
    // The network may have been created a moment ago.
    let waited = timeout(UNKNOWN_TIMEOUT, plans.wait_for(|plan| find(plan).is_some())).await;
    Ok(waited.ok().and_then(Result::ok).and_then(|plan| find(&plan)))
}

/// Refuses the name or the id of a docker network that stands for one of the cluster.
async fn refuse_hidden(api: &Api, text: &str) -> Result<(), ApiError> {
    if is_builtin(text) || !docker_networks::hides(api, text).await? {
        return Ok(());
    }
    Err(ApiError::NotFound { kind: ObjectKind::Network, name: text.to_owned() })
}

/// Whether this is the mode of a container that is on no network that a user has created.
fn is_builtin(text: &str) -> bool {
    matches!(text, "" | "default" | "bridge" | "host" | "none") || text.starts_with("container:")
}

/// The docker network of a network of the cluster.
async fn docker_network(api: &Api, network: &NetworkPlan) -> Result<String, ApiError> {
    let Some(networks) = api.node.networks.as_ref().filter(|_| api.node.engine.is_some()) else {
        return Err(features::CONNECTED_CONTAINERS.refusal());
    };
    networks.docker_network(network).await.map_err(ApiError::Unavailable)
}

/// Records how the engine calls the container, and that it is on the networks. If no manager
/// answers, the node's next report says so.
///
/// # Errors
/// If the cluster refuses it.
async fn confirm(api: &Api, id: &TaskId, container: &str, name: &str, present: Vec<NetworkId>) -> Result<(), ApiError> {
    let name = match name.trim_start_matches('/') {
        "" => Container::find(api, container).await?.identity.name,
        name => name.to_owned(),
    };
    let identity = Some(ContainerIdentity { container: container.to_owned(), name });
    let node = NodeId::from_random(0);
    let attach = AttachContainer { node, id: id.clone(), identity, networks: Vec::new(), present };
    match api.member.attach(attach).await {
        Err(error @ SwarmError::Change(ProposeError::Rejected(_))) => Err(error.into()),
        Err(error) => {
            tracing::warn!(container = %id, %error, "cannot confirm the networks of a container now");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// Frees the addresses of a container. If that fails, they are freed after what the node reports.
async fn release(api: &Api, id: &TaskId, networks: Vec<NetworkId>) {
    if let Err(error) = api.member.detach(id.clone(), networks).await {
        tracing::warn!(container = %id, %error, "cannot free the addresses of a container now");
    }
}

/// Replaces the names of the cluster's networks by the docker networks, and adds the settings.
fn rewrite(body: &mut Value, wanted: &Wanted, settings: Vec<Settings>) {
    if body["NetworkingConfig"]["EndpointsConfig"].is_null() {
        if body["NetworkingConfig"].is_null() {
            body["NetworkingConfig"] = json!({});
        }
        body["NetworkingConfig"]["EndpointsConfig"] = json!({});
    }
    for (wanted, settings) in wanted.networks.iter().zip(settings) {
        if body["HostConfig"]["NetworkMode"] == wanted.key.as_str() {
            body["HostConfig"]["NetworkMode"] = wanted.docker_network.as_str().into();
        }
        let Some(endpoints) = body["NetworkingConfig"]["EndpointsConfig"].as_object_mut() else { continue };
        let mut endpoint = endpoints.remove(&wanted.key).unwrap_or(Value::Null);
        apply(&mut endpoint, &settings);
        endpoints.insert(wanted.docker_network.clone(), endpoint);
    }
}

fn apply(endpoint: &mut Value, settings: &Settings) {
    if !endpoint.is_object() {
        *endpoint = json!({});
    }
    endpoint["IPAMConfig"] = settings.addresses.clone();
    endpoint["DriverOpts"] = settings.options.clone();
}

fn parse<T: std::str::FromStr>(text: Option<&str>, family: &str) -> Result<Option<T>, ApiError> {
    match text {
        None | Some("") => Ok(None),
        Some(text) => text.parse().map(Some).map_err(|_| ApiError::Invalid(format!("{text} is no {family} address"))),
    }
}

fn with_path(mut parts: Parts, path: &str) -> Result<Parts, ApiError> {
    parts.uri = path.parse::<Uri>().map_err(|error| ApiError::Invalid(format!("invalid path: {error}")))?;
    Ok(parts)
}

/// Forwards a request with this body.
async fn forward(api: &Api, mut parts: Parts, body: impl Into<axum::body::Bytes>) -> Result<Response, ApiError> {
    let bytes = body.into();
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.insert(header::CONTENT_LENGTH, bytes.len().into());
    engine::forward(State(api.clone()), Request::from_parts(parts, Body::from(bytes))).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_container_has_a_lock_while_a_request_holds_it() {
        let locks = Locks::default();
        let (one, again, other) = (locks.of("one"), locks.of("one"), locks.of("other"));
        assert!(Arc::ptr_eq(&one, &again) && !Arc::ptr_eq(&one, &other));
        drop((one, again));
        drop(locks.of("other"));
        assert_eq!(locks.0.lock().expect("no panic").keys().collect::<Vec<_>>(), ["other"]);
    }
}
