//! Compares two cluster states and returns the events that clients get for the difference. Pure.
//!
//! The handler of `events` and [`super::history`] call it for each new cluster state, so it must be
//! fast for states that hardly differ.

use std::collections::BTreeMap;

use bollard_stubs::models::{EventActor, EventMessage, EventMessageScopeEnum, EventMessageTypeEnum as Type};
use weft_model::{
    ClusterState, NodeName,
    spec::{Availability, DependencyKind, Role, ServiceMode},
    state::{Network, Node, NodeStatus, Service, UpdateState},
};

type Attributes = Vec<(String, String)>;

/// The events for all differences between `before` and `after`. Their time is that of `after`.
pub(super) fn events(before: &ClusterState, after: &ClusterState) -> Vec<EventMessage> {
    let event = |kind: Type, action: &str, id: &str, attributes: Attributes| EventMessage {
        typ: Some(kind),
        action: Some(action.to_owned()),
        actor: Some(EventActor { id: Some(id.to_owned()), attributes: Some(attributes.into_iter().collect()) }),
        scope: Some(EventMessageScopeEnum::SWARM),
        time: i64::try_from(after.now_ms / 1_000).ok(),
        time_nano: i64::try_from(after.now_ms).ok().and_then(|ms| ms.checked_mul(1_000_000)),
    };
    let networks = compare(&before.networks, &after.networks).filter_map(|(id, presence)| {
        let (action, network) = match presence {
            Presence::After(network) => ("create", network),
            Presence::Before(network) => ("remove", network),
            Presence::Both(..) => return None,
        };
        Some(event(Type::NETWORK, action, id.as_str(), network_attributes(network)))
    });
    let configurations = compare(&before.configurations, &after.configurations).filter_map(|(id, presence)| {
        let (action, configuration) = match presence {
            Presence::After(configuration) => ("create", configuration),
            Presence::Before(configuration) => ("remove", configuration),
            Presence::Both(..) => return None,
        };
        let attributes = vec![("name".into(), configuration.spec.name.to_string()), ("type".into(), "null".into())];
        Some(event(Type::NETWORK, action, id.as_str(), attributes))
    });
    let dependencies = compare(&before.dependencies, &after.dependencies).filter_map(|(id, presence)| {
        let (action, found) = match presence {
            Presence::After(found) => ("create", found),
            Presence::Before(found) => ("remove", found),
            Presence::Both(old, new) if old.meta.version != new.meta.version => ("update", new),
            Presence::Both(..) => return None,
        };
        let kind = match found.spec.kind {
            DependencyKind::Secret => Type::SECRET,
            DependencyKind::Config => Type::CONFIG,
        };
        Some(event(kind, action, id.as_str(), vec![("name".into(), found.spec.name.to_string())]))
    });
    let services = compare(&before.services, &after.services).filter_map(|(id, presence)| {
        let (action, attributes) = match presence {
            Presence::After(service) if !service.removing => ("create", service_attributes(service)),
            Presence::Before(service) if !service.removing => ("remove", service_attributes(service)),
            // Clients get the event `remove` when the removal of a service begins.
            Presence::Both(old, new) if new.removing && !old.removing => ("remove", service_attributes(old)),
            Presence::Both(old, new)
                if !new.removing
                    && (old.meta.version != new.meta.version || update_state(old) != update_state(new)) =>
            {
                ("update", changed_attributes(&service_attributes(old), service_attributes(new)))
            }
            _ => return None,
        };
        Some(event(Type::SERVICE, action, id.as_str(), attributes))
    });
    let nodes = compare(&before.nodes, &after.nodes).filter_map(|(id, presence)| {
        let (action, attributes) = match presence {
            Presence::After(node) => ("create", node_attributes(node)),
            Presence::Before(node) => ("remove", node_attributes(node)),
            Presence::Both(old, new) if shown(old) != shown(new) => {
                ("update", changed_attributes(&node_attributes(old), node_attributes(new)))
            }
            Presence::Both(..) => return None,
        };
        Some(event(Type::NODE, action, id.as_str(), attributes))
    });
    let mut events: Vec<_> = nodes.collect();
    events.extend(networks);
    events.extend(configurations);
    events.extend(dependencies);
    events.extend(services);
    events
}

/// Which of the two cluster states has an object.
enum Presence<'a, T> {
    Before(&'a T),
    After(&'a T),
    Both(&'a T, &'a T),
}

/// All objects of both states. The objects that only the earlier state has come first.
fn compare<'a, K: Ord, T>(
    before: &'a BTreeMap<K, T>,
    after: &'a BTreeMap<K, T>,
) -> impl Iterator<Item = (&'a K, Presence<'a, T>)> {
    let removed = before.iter().filter(|(id, _)| !after.contains_key(*id)).map(|(id, old)| (id, Presence::Before(old)));
    let present =
        after.iter().map(|(id, new)| (id, before.get(id).map_or(Presence::After(new), |old| Presence::Both(old, new))));
    removed.chain(present)
}

/// The attributes of an update event: `name`, and `key.old` and `key.new` for each attribute that
/// differs.
fn changed_attributes(old: &Attributes, new: Attributes) -> Attributes {
    let mut attributes = Attributes::new();
    for (key, value) in new {
        if key == "name" {
            attributes.push((key, value));
            continue;
        }
        let earlier = old.iter().find(|(k, _)| *k == key).map(|(_, v)| v.clone()).unwrap_or_default();
        if earlier != value {
            attributes.push((format!("{key}.old"), earlier));
            attributes.push((format!("{key}.new"), value));
        }
    }
    attributes
}

fn network_attributes(network: &Network) -> Attributes {
    vec![("name".into(), network.spec.name.to_string()), ("type".into(), "overlay".into())]
}

fn update_state(service: &Service) -> Option<UpdateState> {
    service.update.as_ref().map(|update| update.state)
}

fn service_attributes(service: &Service) -> Attributes {
    let mut attributes = vec![
        ("name".into(), service.spec.name.to_string()),
        ("image".into(), service.spec.task.container.image.clone()),
    ];
    if let ServiceMode::Replicated { replicas } = service.spec.mode {
        attributes.push(("replicas".into(), replicas.to_string()));
    }
    if let Some(state) = update_state(service) {
        let state = match state {
            UpdateState::Updating => "updating",
            UpdateState::Paused => "paused",
            UpdateState::Completed => "completed",
            UpdateState::RollbackStarted => "rollback_started",
            UpdateState::RollbackPaused => "rollback_paused",
            UpdateState::RollbackCompleted => "rollback_completed",
        };
        attributes.push(("updatestate".into(), state.into()));
    }
    attributes
}

/// What the attributes of a node follow from.
fn shown(node: &Node) -> (&NodeName, NodeStatus, Availability, Role) {
    (&node.hostname, node.status, node.spec.availability, node.spec.role)
}

fn node_attributes(node: &Node) -> Attributes {
    let status = match node.status {
        NodeStatus::Unknown => "unknown",
        NodeStatus::Ready => "ready",
        NodeStatus::Down => "down",
    };
    let availability = match node.spec.availability {
        Availability::Active => "active",
        Availability::Pause => "pause",
        Availability::Drain => "drain",
    };
    let role = if node.spec.role == Role::Manager { "manager" } else { "worker" };
    vec![
        ("name".into(), node.hostname.to_string()),
        ("state".into(), status.into()),
        ("availability".into(), availability.into()),
        ("role".into(), role.into()),
    ]
}

#[cfg(test)]
mod tests {
    use weft_model::{Command, spec::Labels};

    use super::*;
    use crate::fixture::TestCluster;

    #[test]
    fn secrets_have_events_for_each_change() {
        let mut cluster = TestCluster::new();
        let mut states = vec![cluster.state.clone()];
        let id = cluster.add_secret("key", "x").id;
        states.push(cluster.state.clone());
        let version = cluster.state.dependencies[&id].meta.version;
        cluster.ok(Command::UpdateDependency { id: id.clone(), version, labels: Labels::new() });
        states.push(cluster.state.clone());
        cluster.ok(Command::RemoveDependency { id: id.clone() });
        states.push(cluster.state.clone());
        for (change, action) in states.windows(2).zip(["create", "update", "remove"]) {
            let events = events(&change[0], &change[1]);
            let [event] = &events[..] else { panic!("{action}: {events:?}") };
            let actor = event.actor.clone().expect("an actor");
            let name = actor.attributes.and_then(|mut attributes| attributes.remove("name"));
            assert_eq!((event.typ, event.action.as_deref()), (Some(Type::SECRET), Some(action)));
            assert_eq!((actor.id.as_deref(), name.as_deref()), (Some(id.as_str()), Some("key")));
        }
    }
}
