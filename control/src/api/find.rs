//! Finds an object by the text that a user gave. The text may be the whole id, the name, or a
//! prefix of the id that only one object has. They are tried in this order.
//!
//! The handlers call it for each `{id}` in a path and for each name in a body.

use weft_model::{
    ClusterState, NodeId, TaskId,
    command::ObjectKind,
    spec::DependencyKind,
    state::{Dependency, Network, NetworkConfiguration, Node, Service, Task},
};

use super::error::ApiError;

/// Finds the object in `all` by id, name or unique prefix of the id.
fn find_one<'a, T>(
    kind: ObjectKind,
    text: &str,
    all: &(impl Iterator<Item = &'a T> + Clone),
    id: impl Fn(&T) -> &str,
    name: impl Fn(&T) -> &str,
) -> Result<&'a T, ApiError> {
    let missing = || ApiError::NotFound { kind, name: text.to_owned() };
    if text.is_empty() {
        return Err(missing());
    }
    if let Some(found) = all.clone().find(|object| id(object) == text) {
        return Ok(found);
    }
    let matches = |accepts: &dyn Fn(&T) -> bool| -> Result<Option<&'a T>, ApiError> {
        let mut found = all.clone().filter(|object| accepts(object));
        let first = found.next();
        match found.count() {
            0 => Ok(first),
            more => Err(ApiError::Ambiguous { kind, name: text.to_owned(), matches: more + 1 }),
        }
    };
    if let Some(named) = matches(&|object| name(object) == text)? {
        return Ok(named);
    }
    matches(&|object| id(object).starts_with(text))?.ok_or_else(missing)
}

/// Finds a service. A service that is being removed is not found.
pub(super) fn service<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Service, ApiError> {
    let all = state.services.values().filter(|service| !service.removing);
    find_one(ObjectKind::Service, text, &all, |s| s.id.as_str(), |s| s.spec.name.as_str())
}

/// Finds a secret or a config. The words of the error are Swarm's.
pub(super) fn dependency<'a>(
    state: &'a ClusterState,
    kind: DependencyKind,
    text: &str,
) -> Result<&'a Dependency, ApiError> {
    let all = state.dependencies.values().filter(|found| found.spec.kind == kind);
    let found = find_one(kind.into(), text, &all, |d| d.id.as_str(), |d| d.spec.name.as_str());
    found.map_err(|error| match error {
        ApiError::NotFound { kind, name } => ApiError::Missing(format!("{kind} {name} not found")),
        other => other,
    })
}

pub(super) fn network<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Network, ApiError> {
    find_one(ObjectKind::Network, text, &state.networks.values(), |n| n.id.as_str(), |n| n.spec.name.as_str())
}

/// Finds a configuration-only network.
pub(super) fn configuration<'a>(state: &'a ClusterState, text: &str) -> Result<&'a NetworkConfiguration, ApiError> {
    let all = state.configurations.values();
    find_one(ObjectKind::Network, text, &all, |n| n.id.as_str(), |n| n.spec.name.as_str())
}

/// Finds a node. The text `self` means the local node.
pub(super) fn node<'a>(state: &'a ClusterState, text: &str, local: Option<&NodeId>) -> Result<&'a Node, ApiError> {
    let text = if text == "self" { local.map_or(text, NodeId::as_str) } else { text };
    find_one(ObjectKind::Node, text, &state.nodes.values(), |n| n.id.as_str(), |n| n.hostname.as_str())
}

/// Finds a task. The name of a task is the name of its container.
pub(super) fn task<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Task, ApiError> {
    if let Some(task) = text.parse::<TaskId>().ok().and_then(|id| state.tasks.get(&id)) {
        return Ok(task);
    }
    find_one(ObjectKind::Task, text, &state.tasks.values(), |t| t.id.as_str(), |t| t.name.as_str())
}
