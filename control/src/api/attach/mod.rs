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
//!
//! In reading order: `named` finds the networks that users name, `container` the containers,
//! `reserve` confirms and releases addresses, and `wanted` is what a request asks for.

mod named;
mod container;
mod reserve;
mod wanted;

use axum::{
    body::Body,
    extract::{Path, Request, State},
    http::{Uri, header, request::Parts},
    response::Response,
};
use serde::Deserialize;
use serde_json::Value;
use weft_model::{NetworkId, TaskId, state::ContainerIdentity};

pub(super) use self::container::Locks;
use self::{
    container::Container,
    named::{docker_network, resolve},
    reserve::{confirm, release},
    wanted::{Creation, Endpoint, Wanted, apply, rewrite},
};
use super::{Api, body, engine, error::ApiError, query::Params, wire::fields};

/// Largest answer of the engine to the creation of a container, in bytes.
const MAX_ANSWER: usize = 1 << 20;

/// The body of a request to connect or disconnect a container.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Connection {
    container: Option<String>,
    endpoint_config: Option<Endpoint>,
    force: bool,
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
    let Some(network) = resolve(&api, &network).await? else { return engine::forward(State(api), request).await };
    let (parts, mut body, mut connection) = read_connection(request).await?;
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

/// Disconnects a container from a network. Its address is free then. As in Docker, `Force` also
/// disconnects what is left of a container that the engine does not have any more.
pub(super) async fn disconnect(
    State(api): State<Api>,
    Path(network): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let Some(network) = resolve(&api, &network).await? else { return engine::forward(State(api), request).await };
    let (parts, body, connection) = read_connection(request).await?;
    let name = connection.container.as_deref().unwrap_or_default();
    let (container, _one_at_a_time) = match Container::lock(&api, name).await {
        Err(missing @ ApiError::NotFound { .. }) if connection.force => {
            let Some(id) = left_behind(&api, name, &network.id) else { return Err(missing) };
            api.member.detach(id, vec![network.id]).await?;
            return Ok(Response::default());
        }
        locked => locked?,
    };
    let docker_network = docker_network(&api, &network).await?;
    let parts = with_path(parts, &format!("/networks/{docker_network}/disconnect"))?;
    let response = forward(&api, parts, body.to_string()).await?;
    if let (true, Some(id)) = (response.status().is_success(), &container.id) {
        release(&api, id, vec![network.id]).await;
    }
    Ok(response)
}

/// The container of this node that has this name or id on the network, as the cluster knows it.
fn left_behind(api: &Api, name: &str, network: &NetworkId) -> Option<TaskId> {
    let plan = api.member.plan()?;
    let is_meant = |identity: &ContainerIdentity| {
        !name.is_empty() && (identity.name == name.trim_start_matches('/') || identity.container.starts_with(name))
    };
    let mut found = plan.attached.iter().filter(|container| {
        container.identity.as_ref().is_some_and(is_meant)
            && container.links.iter().any(|link| link.attachment.network == *network)
    });
    found.next().filter(|_| found.next().is_none()).map(|container| container.id.clone())
}

async fn read_connection(request: Request) -> Result<(Parts, Value, Connection), ApiError> {
    let (parts, bytes) = body::read(request).await?;
    let mut body = body::parse(&bytes)?;
    let connection = fields::read(&mut body)?;
    Ok((parts, body, connection))
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
