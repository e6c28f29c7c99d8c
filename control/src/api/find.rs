//! Finds the object that a user means by a text. The text is the whole id, the name, or a beginning
//! of the id that no other object has. They are tried in this order.

use weft_model::{
    ClusterState, NodeId, TaskId,
    command::ObjectKind,
    state::{Network, Node, Service, Task},
};

use super::error::ApiError;

/// The object of `all` that `text` means.
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

/// A service. A service that is being removed is not found.
pub(super) fn service<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Service, ApiError> {
    let all = state.services.values().filter(|service| !service.removing);
    find_one(ObjectKind::Service, text, &all, |s| s.id.as_str(), |s| s.spec.name.as_str())
}

pub(super) fn network<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Network, ApiError> {
    find_one(ObjectKind::Network, text, &state.networks.values(), |n| n.id.as_str(), |n| n.spec.name.as_str())
}

/// A node; `self` is the local one.
pub(super) fn node<'a>(state: &'a ClusterState, text: &str, local: Option<&NodeId>) -> Result<&'a Node, ApiError> {
    let text = if text == "self" { local.map_or(text, NodeId::as_str) } else { text };
    find_one(ObjectKind::Node, text, &state.nodes.values(), |n| n.id.as_str(), |n| n.hostname.as_str())
}

/// A task. Its name is the name of its container.
pub(super) fn task<'a>(state: &'a ClusterState, text: &str) -> Result<&'a Task, ApiError> {
    if let Some(task) = text.parse::<TaskId>().ok().and_then(|id| state.tasks.get(&id)) {
        return Ok(task);
    }
    find_one(ObjectKind::Task, text, &state.tasks.values(), |t| t.id.as_str(), |t| t.name.as_str())
}
