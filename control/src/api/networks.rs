//! `network`: the cluster's overlay networks; those of the local container engine, if any, beside them.

use std::time::Duration;

use axum::{
    Json,
    body::Body,
    extract::{Path, Request, State},
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use tokio::time::timeout;
use weft_model::{
    ClusterState, Command, NetworkId, Rejection,
    state::{Network, Service},
};

use super::{
    Api, body,
    cluster::ClusterHandle,
    engine,
    error::ApiError,
    features, find,
    query::{Filters, Params},
    wire as convert,
};
use crate::swarm::{Membership, ProposeError};

/// How long a request to remove a network waits for the tasks of removed services: their stop grace, and some more.
const LEAVING: Duration = Duration::from_secs(30);

pub(super) async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let filters = Filters::read(&params, &["dangling", "driver", "id", "label", "name", "scope", "type"])?;
    let dangling = filters.flag("dangling")? == Some(true);
    let accepted = |network: &&Network| {
        filters.any("id", |id| network.id.as_str().starts_with(id))
            && filters.any("name", |name| network.spec.name.as_str().contains(name))
            && filters.any("driver", |driver| driver == "overlay")
            && filters.any("scope", |scope| scope == "swarm")
            && filters.any("type", |kind| kind == if network.ingress { "builtin" } else { "custom" })
            && !dangling
            && filters.labels("label", |key| network.spec.labels.get(key))
    };
    // Workers and nodes outside a cluster list what is theirs: clients ask for networks before they know.
    let mut listed: Vec<Value> = match api.state() {
        Ok(state) => {
            let networks = state.networks.values().filter(accepted);
            networks.map(|network| convert::network::show(&state, network, None, false)).collect()
        }
        Err(error) if api.node.engine.is_none() => return Err(error),
        Err(_) => Vec::new(),
    };
    if let Some(socket) = &api.node.engine {
        listed.extend(engine::networks(socket, params.text("filters")).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the container engine does not list its networks");
            Vec::new()
        }));
    }
    Ok(Json(listed))
}

pub(super) async fn create(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let (parts, bytes) = body::read(request).await?;
    let request = convert::parse(&bytes)?;
    if !convert::network::is_overlay(&request) {
        if api.node.engine.is_some() {
            return Ok(engine::pass_on(State(api), Request::from_parts(parts, Body::from(bytes)))
                .await
                .into_response());
        }
        let asked = "other networks than overlays on a node without a container engine";
        return Err(features::NETWORK_DRIVERS.refusal_of(asked));
    }
    let table = api.table()?;
    let spec = Box::new(convert::network::read(request)?);
    let id = NetworkId::from_random(rand::random());
    table.propose(Command::CreateNetwork { id: id.clone(), spec }).await?;
    Ok((StatusCode::CREATED, Json(json!({"Id": id.as_str(), "Warning": ""}))).into_response())
}

pub(super) async fn inspect(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    request: Request,
) -> Result<Response, ApiError> {
    let verbose = params.strict_flag("verbose")?;
    let local_only = !matches!(params.text("scope"), "" | "swarm");
    let found = if local_only { Err(missing(&id)) } else { show(&api, &id, verbose) };
    match found {
        Ok(shown) => Ok(Json(shown).into_response()),
        Err(_) if api.node.engine.is_some() => Ok(engine::pass_on(State(api), request).await.into_response()),
        Err(error) => Err(error),
    }
}

fn show(api: &Api, id: &str, verbose: bool) -> Result<Value, ApiError> {
    let state = api.state()?;
    let me = match api.member.membership() {
        Membership::Active { node, .. } => Some(node),
        _ => None,
    };
    Ok(convert::network::show(&state, find::network(&state, id)?, me.as_ref(), verbose))
}

fn missing(id: &str) -> ApiError {
    ApiError::NotFound { kind: weft_model::command::ObjectKind::Network, name: id.to_owned() }
}

pub(super) async fn remove(
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let found = api.state().and_then(|state| find::network(&state, &id).map(|network| network.id.clone()));
    match found {
        Ok(id) => {
            remove_when_left(&*api.table()?, id).await?;
            Ok(StatusCode::NO_CONTENT.into_response())
        }
        Err(_) if api.node.engine.is_some() => Ok(engine::pass_on(State(api), request).await.into_response()),
        Err(error) => Err(error),
    }
}

/// Removes a network; where only services that were removed themselves keep it, once their last tasks have left it:
/// `docker stack rm` removes both in one breath.
async fn remove_when_left(table: &dyn ClusterHandle, id: NetworkId) -> Result<(), ApiError> {
    let remove = || table.propose(Command::RemoveNetwork { id: id.clone() });
    if let Err(refused) = remove().await {
        let mut state = table.state();
        let in_use = matches!(&refused, ProposeError::Rejected(Rejection::InUse { .. }));
        if !in_use || is_wanted(&state.borrow(), &id) {
            return Err(refused.into());
        }
        let settled = state.wait_for(|state| is_wanted(state, &id) || !is_occupied(state, &id));
        // Too late or not, the table has the last word.
        drop(timeout(LEAVING, settled).await);
        remove().await?;
    }
    Ok(())
}

/// Whether any service's user wants it to be on the network.
fn is_wanted(state: &ClusterState, network: &NetworkId) -> bool {
    let wants = |service: &Service| service.spec.task.networks.iter().any(|attached| attached.network == *network);
    state.services.values().any(|service| !service.removing && wants(service))
}

/// Whether any service or task still has an address on the network.
fn is_occupied(state: &ClusterState, network: &NetworkId) -> bool {
    let services = state.services.values().flat_map(|service| &service.endpoints).map(|endpoint| &endpoint.network);
    let tasks = state.tasks.values().filter(|task| task.holds_addresses()).flat_map(|task| &task.attachments);
    services.chain(tasks.map(|attachment| &attachment.network)).any(|occupied| occupied == network)
}

pub(super) async fn prune(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    if api.node.engine.is_some() {
        return Ok(engine::pass_on(State(api), request).await.into_response());
    }
    Err(features::NETWORK_PRUNE.refusal())
}

/// Containers outside services cannot join the cluster's networks yet.
pub(super) async fn connect(
    State(api): State<Api>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    if api.state().is_ok_and(|state| find::network(&state, &id).is_ok()) {
        return Err(features::CONNECTED_CONTAINERS.refusal());
    }
    Ok(engine::pass_on(State(api), request).await.into_response())
}
