//! Handlers of `network`: list, inspect, create, remove and prune networks. They answer for the
//! overlay networks of the cluster, and forward requests about other networks to the local
//! container engine.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Extension, Path, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use weft_model::{
    ClusterState, Command, NetworkId, Rejection,
    command::ObjectKind,
    spec::{NetworkSpec, NodeNetwork},
    state::Service,
};

use super::{
    Api, body,
    cluster::ClusterHandle,
    docker_networks::{self, DockerNetworks},
    engine,
    error::ApiError,
    features, find,
    query::{Filters, Params},
    version::ClientVersion,
    wire::{self, fields::Ignored, network::predefined},
};
use crate::swarm::ProposeError;

/// The feature level from which on managers know attachable networks.
const ATTACHABLE_LEVEL: u32 = 1;
/// How long the removal of a network waits at most for the tasks of removed services to release
/// their addresses. Three times the default stop grace period; if a task takes longer, the removal
/// is refused and can be repeated.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(30);
/// How long it waits if a container that is no task is on the network.
const CONTAINER_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) async fn list(
    State(api): State<Api>,
    Extension(client): Extension<ClientVersion>,
    params: Params,
) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = Filters::read(&params, &["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let is_dangling = filters.flag("dangling")? == Some(true);
    let matches = |id: &NetworkId, spec: &NetworkSpec| {
        filters.any("id", |text| id.as_str().starts_with(text))
            && filters.any("name", |name| spec.name.as_str().contains(name))
            && filters.any("driver", |driver| driver == if spec.config_only { "null" } else { "overlay" })
            && filters.any("scope", |scope| scope == "swarm")
            && filters.any("type", |kind| kind == if spec.ingress { "builtin" } else { "custom" })
            && !is_dangling
            && filters.labels("label", |key| spec.labels.get(key))
    };
    // Clients list networks before they know whether the node is a manager. So workers and nodes
    // outside a cluster answer with the networks of their engine, and as in Swarm with those of the
    // cluster that their containers are on.
    let mut listed: Vec<Value> = match api.state() {
        Ok(state) => {
            let networks = state.networks.values().filter(|n| matches(&n.id, &n.spec));
            let configurations = state.configurations.values().filter(|n| matches(&n.id, &n.spec));
            networks
                .map(|network| wire::network::show(&state, network, None, false))
                .chain(configurations.map(wire::network::show_configuration))
                .collect()
        }
        Err(error) if api.node.engine.is_none() => return Err(error),
        Err(_) => planned(&api).await.into_iter().filter(|shown| matches_shown(&filters, shown)).collect(),
    };
    if let Some(socket) = &api.node.engine {
        let local = docker_networks::networks_of_users(socket, params.text("filters"), client.0);
        listed.extend(local.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the networks of the container engine");
            Vec::new()
        }));
    }
    Ok(Json(listed))
}

pub(super) async fn create(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let (parts, bytes) = body::read(request).await?;
    let request = body::parse(&bytes)?;
    if !wire::network::is_overlay(&request) {
        if api.node.engine.is_some() {
            return engine::forward(State(api), Request::from_parts(parts, Body::from(bytes))).await;
        }
        let subject = "networks other than overlays on a node without a container engine";
        return Err(features::NETWORK_DRIVERS.refusal_of(subject));
    }
    let cluster = api.cluster()?;
    let mut ignored = Ignored::default();
    let spec = Box::new(wire::network::read(request, &mut ignored)?);
    if spec.attachable && api.state()?.feature_level < ATTACHABLE_LEVEL {
        let text = "not all managers know attachable networks: upgrade them, then try again";
        return Err(ApiError::Unavailable(text.to_owned()));
    }
    let id = NetworkId::from_random(crate::host::random());
    cluster.propose(Command::CreateNetwork { id: id.clone(), spec }).await?;
    let warning = ignored.warnings().collect::<Vec<_>>().join("; ");
    Ok((StatusCode::CREATED, Json(json!({"Id": id.as_str(), "Warning": warning}))).into_response())
}

pub(super) async fn inspect(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> Result<Response, ApiError> {
    let verbose = params.strict_flag("verbose")?;
    let local_only = !matches!(params.text("scope"), "" | "swarm");
    let found = if local_only {
        Err(ApiError::NotFound { kind: ObjectKind::Network, name: id.clone() })
    } else {
        show(&api, &id, verbose, params.text("scope") == "swarm")
    };
    match found {
        Ok(mut shown) => {
            show_containers(&api, &mut shown).await;
            Ok(Json(shown).into_response())
        }
        Err(error) if api.node.engine.is_some() => {
            if !local_only
                && api.state().is_err()
                && let Some(shown) = find_planned(&api, &id).await?
            {
                return Ok(Json(shown).into_response());
            }
            if docker_networks::hides(&api, &id).await? {
                return Err(error);
            }
            engine::forward(State(api), request).await
        }
        // As in Swarm, a node that is no manager has only the networks of its containers. `docker
        // inspect` goes on to other objects.
        Err(error @ (ApiError::NotInSwarm | ApiError::Worker)) => {
            Err(ApiError::Missing(format!("no such network: {id} ({error})")))
        }
        Err(error) => Err(error),
    }
}

/// Replaces the tasks that the cluster state has on this node by the containers that the engine has
/// on the network.
async fn show_containers(api: &Api, shown: &mut Value) {
    let Some(id) = shown["Id"].as_str().and_then(|id| id.parse::<NetworkId>().ok()) else { return };
    let read = async {
        let networks = DockerNetworks::of(api).await?;
        let Some(network) = networks.of_network(&id) else { return Ok(None) };
        docker_networks::inspect(api, &network.docker_id).await
    };
    match read.await {
        Ok(Some(mut found)) => {
            let mut containers = found["Containers"].take();
            if shown["EnableIPv6"] == false {
                for (_, container) in containers.as_object_mut().into_iter().flatten() {
                    wire::set(container, "IPv6Address", json!(""));
                }
            }
            wire::set(shown, "Containers", containers);
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "cannot read a network of the container engine"),
    }
}

/// The networks of the cluster that containers of this worker are on, as its plan has them.
async fn planned(api: &Api) -> Vec<Value> {
    let Some(plan) = api.member.plan() else { return Vec::new() };
    let networks = DockerNetworks::of(api).await.unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot list the networks of the container engine");
        DockerNetworks::default()
    });
    let planned = plan.networks.iter().filter(|network| networks.of_network(&network.id).is_some());
    planned.map(wire::network::show_planned).collect()
}

/// The network of the cluster that a user of this worker names, with its containers.
async fn find_planned(api: &Api, text: &str) -> Result<Option<Value>, ApiError> {
    let networks = DockerNetworks::of(api).await?;
    let Some(found) = networks.named(text) else { return Ok(None) };
    let Some(plan) = api.member.plan() else { return Ok(None) };
    let Some(planned) = plan.networks.iter().find(|network| network.id == found.network) else { return Ok(None) };
    let mut shown = wire::network::show_planned(planned);
    show_containers(api, &mut shown).await;
    Ok(Some(shown))
}

/// Whether a network in the form of `GET /networks` matches the filters.
fn matches_shown(filters: &Filters, shown: &Value) -> bool {
    let text = |key: &str| shown[key].as_str().unwrap_or_default();
    let kind = if shown["Ingress"] == true { "builtin" } else { "custom" };
    filters.any("id", |id| text("Id").starts_with(id))
        && filters.any("name", |name| text("Name").contains(name))
        && filters.any("driver", |driver| driver == text("Driver"))
        && filters.any("scope", |scope| scope == text("Scope"))
        && filters.any("type", |wanted| wanted == kind)
        && !filters.flag("dangling").is_ok_and(|flag| flag == Some(true))
        // Workers do not know the labels.
        && filters.values("label").is_empty()
}

fn show(api: &Api, id: &str, verbose: bool, of_swarm: bool) -> Result<Value, ApiError> {
    let state = api.state()?;
    if let Some(network) = node_network(api, &state, id, of_swarm) {
        return Ok(predefined::show(&state, network, api.node_id().as_ref()));
    }
    match find::network(&state, id) {
        Ok(network) => Ok(wire::network::show(&state, network, api.node_id().as_ref(), verbose)),
        Err(missing) => match find::configuration(&state, id) {
            Ok(configuration) => Ok(wire::network::show_configuration(configuration)),
            Err(_) => Err(missing),
        },
    }
}

/// The network of the nodes that a client asks for, by its id in the cluster. By its name, a client
/// asks for the network of this node's engine, if it has one, unless it asks for networks
/// `of_swarm` only. The docker client does that to find the networks of a service.
fn node_network(api: &Api, state: &ClusterState, text: &str, of_swarm: bool) -> Option<NodeNetwork> {
    let by_name = || predefined::find(text).filter(|_| of_swarm || api.node.engine.is_none());
    predefined::of_id(text).or_else(by_name).filter(|_| state.network_by_name(text).is_none())
}

pub(super) async fn remove(
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let found = api.state().and_then(|state| {
        if let Some(network) = node_network(&api, &state, &id, false) {
            return Err(ApiError::Forbidden(format!(
                "network {} ({}) is a swarm predefined network and cannot be removed",
                predefined::id(network),
                network.as_str()
            )));
        }
        let network = find::network(&state, &id).map(|network| network.id.clone());
        network.or_else(|missing| find::configuration(&state, &id).map(|found| found.id.clone()).map_err(|_| missing))
    });
    match found {
        Ok(id) => {
            remove_when_released(&*api.cluster()?, id).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Err(error @ ApiError::Forbidden(_)) => Err(error),
        Err(error) if api.node.engine.is_some() => {
            if docker_networks::hides(&api, &id).await? {
                return Err(error);
            }
            engine::forward(State(api), request).await
        }
        Err(error) => Err(error),
    }
}

/// Removes a network. If only removed services still use it, it waits until their last tasks have
/// released their addresses: `docker stack rm` removes the services and immediately after that the
/// networks.
async fn remove_when_released(cluster: &dyn ClusterHandle, id: NetworkId) -> Result<(), ApiError> {
    let remove = || cluster.propose(Command::RemoveNetwork { id: id.clone() });
    if let Err(error) = remove().await {
        let mut state = cluster.state();
        let in_use = matches!(&error, ProposeError::Rejected(Rejection::InUse { .. }));
        if !in_use || is_used_by_a_service(&state.borrow(), &id) {
            return Err(error.into());
        }
        // The node of a container that was removed a moment ago is about to say so.
        let attached = is_used_by_a_container(&state.borrow(), &id);
        let limit = if attached { CONTAINER_TIMEOUT } else { RELEASE_TIMEOUT };
        let settled = state.wait_for(|state| is_used_by_a_service(state, &id) || !has_addresses_in_use(state, &id));
        // The result of the wait does not matter, not even a timeout: the second attempt decides
        // whether the network can be removed.
        drop(timeout(limit, settled).await);
        remove().await?;
    }
    Ok(())
}

/// Whether a service that is not being removed is attached to the network.
fn is_used_by_a_service(state: &ClusterState, network: &NetworkId) -> bool {
    let is_ingress = state.networks.get(network).is_some_and(|network| network.spec.ingress);
    let uses = |service: &Service| {
        let task = &service.spec.task;
        task.networks.iter().any(|attached| attached.network == *network) || (task.uses_ingress() && is_ingress)
    };
    state.services.values().any(|service| !service.removing && uses(service))
}

/// Whether a container that is no task is on the network.
fn is_used_by_a_container(state: &ClusterState, network: &NetworkId) -> bool {
    state.attached.values().flat_map(|container| &container.links).any(|link| link.network == *network)
}

/// Whether a service, a task or another container holds an address on the network.
fn has_addresses_in_use(state: &ClusterState, network: &NetworkId) -> bool {
    let services = state.services.values().flat_map(|service| &service.endpoints).map(|endpoint| &endpoint.network);
    let tasks = state.tasks.values().filter(|task| task.holds_addresses()).flat_map(|task| &task.attachments);
    services.chain(tasks.map(|attachment| &attachment.network)).any(|used| used == network)
        || is_used_by_a_container(state, network)
}

/// Removes unused networks: those of the cluster, if this node is a manager, and those of the
/// engine. As in Docker, the ingress network stays.
pub(super) async fn prune(State(api): State<Api>, params: Params, request: Request) -> Result<Response, ApiError> {
    let filters = Filters::read(&params, &["label", "label!", "until"])?;
    let until_ms = filters.values("until").iter().map(|text| until(text)).collect::<Result<Vec<_>, _>>()?;
    let matches = |spec: &NetworkSpec, created_ms: u64| {
        let labels = &spec.labels;
        let refused = |wanted: &str| match wanted.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|have| have == value),
            None => labels.contains_key(wanted),
        };
        filters.labels("label", |key| labels.get(key))
            && !filters.values("label!").iter().any(|wanted| refused(wanted))
            && until_ms.iter().all(|until_ms| created_ms <= *until_ms)
    };
    let mut deleted = Vec::new();
    match api.cluster() {
        Ok(cluster) => {
            let state = cluster.state().borrow().clone();
            let networks = state.networks.values().filter(|n| !n.spec.ingress && matches(&n.spec, n.meta.created_ms));
            let unused = networks.filter(|network| !is_used_by_a_service(&state, &network.id));
            for network in unused.filter(|network| !has_addresses_in_use(&state, &network.id)) {
                match cluster.propose(Command::RemoveNetwork { id: network.id.clone() }).await {
                    Ok(_) => deleted.push(Value::from(network.spec.name.as_str())),
                    // Somebody uses it, or has removed it, meanwhile.
                    Err(ProposeError::Rejected(Rejection::InUse { .. } | Rejection::NotFound { .. })) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Err(error) if api.node.engine.is_none() => return Err(error),
        Err(_) => {}
    }
    if api.node.engine.is_some() {
        let answer = docker_networks::forward_prune(api, request).await?;
        if !answer.status().is_success() {
            return Ok(answer);
        }
        let (_, of_engine) = engine::read_json(answer.into_body()).await?;
        deleted.extend(of_engine["NetworksDeleted"].as_array().cloned().unwrap_or_default());
    }
    Ok(Json(json!({ "NetworksDeleted": deleted })).into_response())
}

/// The time of a filter: an age such as `24h`, or a time.
fn until(text: &str) -> Result<u64, ApiError> {
    let invalid = || {
        let text = format!("invalid filter 'until={text}': give an age like 24h or a time like 2026-01-02T15:04:05Z");
        ApiError::Invalid(text)
    };
    if let Ok(age) = text.parse::<jiff::SignedDuration>() {
        let age = u64::try_from(age.as_millis()).map_err(|_| invalid())?;
        return Ok(crate::host::now_ms().saturating_sub(age));
    }
    let params = Params::from_iter([("until".to_owned(), text.to_owned())]);
    params.time_ms("until").ok().flatten().ok_or_else(invalid)
}
