//! Handlers of `node`: list, inspect, update and remove the nodes of the cluster.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::Value;
use weft_model::{ClusterState, Command, spec::Role, state::Node};

use super::{
    Api,
    body::JsonBody,
    cluster::ClusterHandle,
    error::ApiError,
    find,
    query::{Filters, Params},
    wire::{self, fields::Ignored},
};

pub(super) async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let cluster = api.cluster()?;
    let filters = Filters::read(&params, &["id", "label", "membership", "name", "node.label", "role"])?;
    let roles = filters.one_of("role", &["manager", "worker"])?;
    let memberships = filters.one_of("membership", &["accepted", "pending"])?;
    let state = Arc::clone(&cluster.state().borrow());
    let matches = |node: &&Node| {
        let role = if node.spec.role == Role::Manager { "manager" } else { "worker" };
        filters.any("id", |id| node.id.as_str().starts_with(id))
            && filters.any("name", |name| node.hostname.as_str().starts_with(name))
            && (roles.is_empty() || roles.iter().any(|wanted| wanted == role))
            && (memberships.is_empty() || memberships.iter().any(|wanted| wanted == "accepted"))
            && filters.labels("node.label", |key| node.spec.labels.get(key))
            && filters.labels("label", |key| node.description.as_ref().and_then(|d| d.engine_labels.get(key)))
    };
    Ok(Json(state.nodes.values().filter(matches).map(|node| show(&*cluster, &state, node)).collect()))
}

pub(super) async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let cluster = api.cluster()?;
    let state = Arc::clone(&cluster.state().borrow());
    Ok(Json(show(&*cluster, &state, find::node(&state, &id, api.node_id().as_ref())?)))
}

pub(super) async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    JsonBody(mut body): JsonBody,
) -> Result<(), ApiError> {
    let cluster = api.cluster()?;
    let version = params.version()?;
    let command = {
        let state = Arc::clone(&cluster.state().borrow());
        let node = find::node(&state, &id, api.node_id().as_ref())?;
        let mut ignored = Ignored::default();
        let spec = wire::node::read(&mut body, &node.spec, &mut ignored)?;
        ignored.log("node update");
        Command::UpdateNode { id: node.id.clone(), version, spec }
    };
    cluster.propose(command).await?;
    Ok(())
}

pub(super) async fn remove(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Result<(), ApiError> {
    let cluster = api.cluster()?;
    let id = find::node(&*api.state()?, &id, api.node_id().as_ref())?.id.clone();
    cluster.propose(Command::RemoveNode { id, force: params.flag("force") }).await?;
    Ok(())
}

fn show(cluster: &dyn ClusterHandle, state: &ClusterState, node: &Node) -> Value {
    let manager = wire::node::ManagerView {
        is_leader: cluster.leader().as_ref() == Some(&node.id),
        is_reachable: cluster.is_manager_reachable(&node.id),
    };
    wire::node::show(node, state.cluster.as_ref(), manager)
}
