//! Handlers of `task`: list and inspect the tasks of services, including tasks that have ended.

use axum::{
    Json,
    extract::{Path, State},
};
use serde_json::Value;
use weft_model::{
    ClusterState, NodeId, ServiceId,
    state::{Task, TaskState},
};

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
    let wanted = Wanted::read(&state, &filters, api.node_id().as_ref())?;
    let tasks = state.tasks.values().filter(|task| matches(&state, &filters, &wanted, task));
    Ok(Json(tasks.map(|task| wire::task::show(&state, task)).collect()))
}

/// The filters whose values are checked, and replaced by ids, before they are compared.
struct Wanted {
    states: Vec<String>,
    services: Vec<ServiceId>,
    nodes: Vec<NodeId>,
}

impl Wanted {
    /// As in moby (`daemon/cluster/tasks.go`), a filter names a service or a node by its id, its
    /// name or a prefix of its id.
    ///
    /// # Errors
    /// If there is no such service or node, or no such state.
    fn read(state: &ClusterState, filters: &Filters, local: Option<&NodeId>) -> Result<Self, ApiError> {
        let services = filters.values("service").iter();
        let nodes = filters.values("node").iter();
        Ok(Self {
            states: filters.one_of("desired-state", &TaskState::ALL.map(TaskState::as_str))?,
            services: services
                .map(|text| Ok(find::service(state, text)?.id.clone()))
                .collect::<Result<_, ApiError>>()?,
            nodes: nodes.map(|text| Ok(find::node(state, text, local)?.id.clone())).collect::<Result<_, ApiError>>()?,
        })
    }
}

/// Whether the task matches the filters.
fn matches(state: &ClusterState, filters: &Filters, wanted: &Wanted, task: &Task) -> bool {
    let service = state.services.get(&task.service);
    let is_current = service.is_some_and(|service| task.is_current(service));
    filters.any("id", |id| task.id.as_str().starts_with(id))
        && filters.any("name", |name| task.name.starts_with(name))
        && (wanted.states.is_empty() || wanted.states.iter().any(|state| task.desired.as_str() == state))
        && filters.any("runtime", |runtime| runtime == "container")
        // As in moby: the filter asks for current tasks whatever its value is.
        && (is_current || filters.values("_up-to-date").is_empty())
        && (wanted.services.is_empty() || wanted.services.contains(&task.service))
        && (wanted.nodes.is_empty() || task.node.as_ref().is_some_and(|node| wanted.nodes.contains(node)))
        && filters.labels("label", |key| service.and_then(|s| s.spec.labels.get(key)).or_else(|| task.labels.get(key)))
}

pub(super) async fn inspect(State(api): State<Api>, Path(id): Path<String>) -> Result<Json<Value>, ApiError> {
    let state = api.state()?;
    Ok(Json(wire::task::show(&state, find::task(&state, &id)?)))
}
