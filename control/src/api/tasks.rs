//! Handlers of `task`: list and inspect the tasks of services, including tasks that have ended.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::Value;
use weft_model::{ClusterState, state::Task};

use super::{
    Api,
    error::ApiError,
    find,
    query::{Filters, Params},
    wire,
};

const FILTERS: &[&str] = &["_up-to-date", "desired-state", "id", "label", "name", "node", "runtime", "service"];

pub(super) async fn list(State(api): State<Api>, params: Params) -> Result<Json<Vec<Value>>, ApiError> {
    let state = api.state()?;
    let filters = Filters::read(&params, FILTERS)?;
    for wanted in filters.values("desired-state") {
        if !matches!(wanted.as_str(), "running" | "shutdown" | "accepted" | "ready") {
            return Err(ApiError::Invalid(format!(
                "invalid desired-state filter '{wanted}': use running, shutdown, accepted or ready"
            )));
        }
    }
    let up_to_date = filters.flag("_up-to-date")?;
    let tasks = state.tasks.values().filter(|task| matches(&state, &filters, up_to_date, task));
    Ok(Json(tasks.map(|task| wire::task::show(&state, task)).collect()))
}

/// Whether the task matches the filters. `up_to_date` is the value of the filter `_up-to-date`.
fn matches(state: &ClusterState, filters: &Filters, up_to_date: Option<bool>, task: &Task) -> bool {
    let service = state.services.get(&task.service);
    let node = task.node.as_ref().and_then(|node| state.nodes.get(node));
    let is_current = service.is_some_and(|service| task.is_current(service));
    filters.any("id", |id| task.id.as_str().starts_with(id))
        && filters.any("name", |name| task.name.starts_with(name))
        && filters.any("desired-state", |wanted| task.desired.as_str() == wanted)
        && filters.any("runtime", |runtime| runtime == "container")
        && up_to_date.is_none_or(|wanted| wanted == is_current)
        && filters.any("service", |wanted| {
            task.service.as_str() == wanted || service.is_some_and(|s| !s.removing && s.spec.name.as_str() == wanted)
        })
        && filters.any("node", |wanted| node.is_some_and(|n| n.id.as_str() == wanted || n.hostname.as_str() == wanted))
        && filters.labels("label", |key| service.and_then(|s| s.spec.labels.get(key)).or_else(|| task.labels.get(key)))
}

pub(super) async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let state = api.state()?;
    Ok(Json(wire::task::show(&state, find::task(&state, &id)?)))
}
