//! `node`: who is in the cluster, and what each may do.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::Value;
use weft_model::{Command, spec::Role, state::Node};

use super::{
    Api,
    body::WholeBody,
    cluster::ClusterHandle,
    error::ApiError,
    find,
    query::{Filters, Params},
    wire as convert,
};
use crate::swarm::Membership;

pub(super) async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let table = api.table()?;
    let filters = Filters::read(&params, &["id", "label", "membership", "name", "node.label", "role"])?;
    for role in filters.values("role") {
        if !matches!(role.as_str(), "manager" | "worker") {
            return Err(ApiError::Invalid(format!("invalid role filter '{role}': use manager or worker")));
        }
    }
    let state = std::sync::Arc::clone(&table.state().borrow());
    let accepted = |node: &&Node| {
        let role = if node.spec.role == Role::Manager { "manager" } else { "worker" };
        filters.any("id", |id| node.id.as_str().starts_with(id))
            && filters.any("name", |name| node.hostname.as_str().starts_with(name))
            && filters.any("role", |wanted| wanted == role)
            && filters.any("membership", |wanted| wanted == "accepted")
            && filters.labels("node.label", |key| node.spec.labels.get(key))
            && filters.labels("label", |key| node.description.as_ref().and_then(|d| d.engine_labels.get(key)))
    };
    Ok(Json(state.nodes.values().filter(accepted).map(|node| show(&*table, node)).collect()))
}

pub(super) async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let table = api.table()?;
    let state = std::sync::Arc::clone(&table.state().borrow());
    Ok(Json(show(&*table, find::node(&state, &id, me(&api).as_deref())?)))
}

pub(super) async fn update(
    State(api): State<Api>,
    Path(id): Path<String>,
    params: Params,
    WholeBody(body): WholeBody,
) -> Result<(), ApiError> {
    let table = api.table()?;
    let version = params.version()?;
    let command = {
        let state = std::sync::Arc::clone(&table.state().borrow());
        let node = find::node(&state, &id, me(&api).as_deref())?;
        let spec = convert::node::read(&mut convert::parse(&body)?, &node.spec)?;
        Command::UpdateNode { id: node.id.clone(), version, spec }
    };
    table.propose(command).await?;
    Ok(())
}

pub(super) async fn remove(State(api): State<Api>, Path(id): Path<String>, params: Params) -> Result<(), ApiError> {
    let table = api.table()?;
    let id = find::node(&*api.state()?, &id, me(&api).as_deref())?.id.clone();
    table.propose(Command::RemoveNode { id, force: params.flag("force") }).await?;
    Ok(())
}

fn me(api: &Api) -> Option<String> {
    match api.member.membership() {
        Membership::Active { node, .. } => Some(node.into()),
        _ => None,
    }
}

fn show(table: &dyn ClusterHandle, node: &Node) -> Value {
    let (leader, reachable) = table.standing(&node.id);
    let standing = convert::node::Standing { leader: leader.as_ref() == Some(&node.id), reachable };
    convert::node::show(node, standing)
}
