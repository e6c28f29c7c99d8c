//! Containers that are no tasks, on attachable networks: their addresses, and their removal.
//!
//! A container gets an address when its node creates it or connects it to a network, and keeps it
//! until the node detaches it, says that it is gone, or is removed from the cluster.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{
    Applied, ClusterState, MAX_ATTACHED_PER_NODE, MAX_NETWORKS_PER_SERVICE, NetworkId, NodeId, Rejection, TaskId,
    command::{AttachContainer, ObjectKind, WantedLink},
    report::NodeReport,
    state::{AttachedContainer, ContainerIdentity},
};

use super::{addresses::Allocator, network_by_id, not_found};

/// How long an address is kept for a container that the engine has not connected yet, in
/// milliseconds.
const RESERVATION_MS: u64 = 60_000;
/// Longest name, alias or id of a container, in octets. A name of DNS is not longer.
const MAX_NAME: usize = 255;
/// Most aliases of a container on a network.
const MAX_ALIASES: usize = 64;

pub(super) fn attach(state: &mut ClusterState, attach: AttachContainer) -> Result<Applied, Rejection> {
    let AttachContainer { node, id, identity, networks, present, running } = attach;
    if !state.nodes.contains_key(&node) {
        return Err(not_found(ObjectKind::Node, &node));
    }
    check_texts(identity.as_ref(), &networks)?;
    let known = match state.attached.get(&id) {
        Some(known) if known.node != node => return Err(of_other_node(&id)),
        None if networks.is_empty() => return Err(not_found(ObjectKind::Container, &id)),
        known => known.cloned(),
    };
    if known.is_none() {
        check_room(state, &node, &id)?;
    }
    let mut container = known.unwrap_or_else(|| AttachedContainer {
        id: id.clone(),
        node,
        identity: None,
        links: Vec::new(),
        running: false,
        changed_index: 0,
    });
    let mut allocator = Allocator::new(state);
    for wanted in &networks {
        if let Some(link) = container.links.iter_mut().find(|link| link.network == wanted.network) {
            link.aliases.clone_from(&wanted.aliases);
            continue;
        }
        let network = network_by_id(state, &wanted.network)?;
        if !network.spec.attachable {
            return Err(Rejection::NotAttachable { network: network.spec.name.to_string() });
        }
        check_others(state, &container, &wanted.network)?;
        let index = (0..).find(|index| container.links.iter().all(|link| link.index != *index)).unwrap_or_default();
        container.links.push(allocator.allocate_link(network, wanted, index)?);
    }
    let changes = allocator.finish();
    for link in container.links.iter_mut().filter(|link| present.contains(&link.network)) {
        link.reserved_ms = None;
    }
    container.identity = identity.or(container.identity);
    changes.commit(state);
    if state.attached.get(&id) != Some(&container) {
        // Each of these changes is in the node's plan, so that the node acknowledges it.
        container.changed_index = state.index;
        state.attached.insert(id.clone(), container);
    }
    if let Some(container) = state.attached.get_mut(&id) {
        container.running = running.unwrap_or(container.running);
    }
    Ok(Applied::Done)
}

/// Frees the addresses of a container on these networks, and forgets a container without any.
pub(super) fn detach(
    state: &mut ClusterState,
    node: &NodeId,
    id: &TaskId,
    networks: &[NetworkId],
) -> Result<Applied, Rejection> {
    let Some(container) = state.attached.get(id) else { return Ok(Applied::Done) };
    if container.node != *node {
        return Err(of_other_node(id));
    }
    if !container.links.iter().any(|link| networks.contains(&link.network)) {
        return Ok(Applied::Done);
    }
    let mut allocator = Allocator::new(state);
    container.links.iter().filter(|link| networks.contains(&link.network)).for_each(|link| {
        allocator.free_link(link, node);
    });
    allocator.finish().commit(state);
    let index = state.index;
    if let Some(container) = state.attached.get_mut(id) {
        container.links.retain(|link| !networks.contains(&link.network));
        container.changed_index = index;
    }
    state.attached.retain(|_, container| !container.links.is_empty());
    Ok(Applied::Done)
}

/// Frees the addresses of all containers of a node that is being removed.
pub(super) fn remove_all(state: &mut ClusterState, node: &NodeId) {
    let mut allocator = Allocator::new(state);
    for container in state.attached.values().filter(|container| container.node == *node) {
        container.links.iter().for_each(|link| allocator.free_link(link, node));
    }
    allocator.finish().commit(state);
    state.attached.retain(|_, container| container.node != *node);
}

/// The containers of the node that are not on networks any more, as it says, with these networks. A
/// report is about what the node had when the plan was in effect that the report acknowledges. So
/// one that is older than the last change of a container says nothing about it, and neither does
/// one for which the engine has not answered about this container.
pub(crate) fn gone(state: &ClusterState, node: &NodeId, report: &NodeReport) -> Vec<(TaskId, Vec<NetworkId>)> {
    let Some(attached) = report.attached.as_ref().filter(|_| report.epoch == state.epoch) else { return Vec::new() };
    let of_node = || state.attached.values().filter(|container| container.node == *node);
    let engine_ids: BTreeSet<&str> = of_node().filter_map(engine_id).collect();
    let unanswered: BTreeSet<&str> = attached.unanswered.iter().map(String::as_str).collect();
    let any_is_unknown = unanswered.iter().any(|id| !engine_ids.contains(id));
    let found: BTreeMap<_, _> = attached.containers.iter().map(|found| (&found.id, &found.networks)).collect();
    let is_reserved = |since_ms: u64| state.now_ms.saturating_sub(since_ms) < RESERVATION_MS;
    of_node()
        .filter(|container| report.acked >= container.changed_index)
        .filter(|container| {
            let may_be_unanswered = engine_id(container).map_or(any_is_unknown, |id| unanswered.contains(id));
            found.contains_key(&container.id) || !may_be_unanswered
        })
        .filter_map(|container| {
            let has = |network: &NetworkId| found.get(&container.id).is_some_and(|found| found.contains(network));
            let links = container.links.iter().filter(|link| !link.reserved_ms.is_some_and(is_reserved));
            let gone: Vec<_> = links.map(|link| &link.network).filter(|network| !has(network)).cloned().collect();
            (!gone.is_empty()).then(|| (container.id.clone(), gone))
        })
        .collect()
}

/// `None` while the engine creates the container.
fn engine_id(container: &AttachedContainer) -> Option<&str> {
    Some(container.identity.as_ref()?.container.as_str())
}

/// The container for messages to users.
pub(super) fn describe(state: &ClusterState, container: &AttachedContainer) -> String {
    let node = state.nodes.get(&container.node).map_or(container.node.as_str(), |node| node.hostname.as_str());
    format!("container {} on node {node}", container.label())
}

fn of_other_node(id: &TaskId) -> Rejection {
    Rejection::Invalid(format!("container {id} belongs to another node"))
}

fn check_room(state: &ClusterState, node: &NodeId, id: &TaskId) -> Result<(), Rejection> {
    if state.tasks.contains_key(id) {
        return Err(Rejection::Invalid(format!("{id} is the id of a task")));
    }
    if state.attached.values().filter(|container| container.node == *node).count() >= MAX_ATTACHED_PER_NODE {
        return Err(Rejection::Invalid(format!(
            "the node has {MAX_ATTACHED_PER_NODE} containers on networks of the cluster, which is the limit: remove some"
        )));
    }
    Ok(())
}

/// Checks the network against those that the container is on.
fn check_others(state: &ClusterState, container: &AttachedContainer, id: &NetworkId) -> Result<(), Rejection> {
    let network = network_by_id(state, id)?;
    if container.links.len() >= MAX_NETWORKS_PER_SERVICE {
        return Err(Rejection::Invalid(format!(
            "a container can be on {MAX_NETWORKS_PER_SERVICE} networks of the cluster at most"
        )));
    }
    for link in &container.links {
        let other = network_by_id(state, &link.network)?;
        if other.subnets.overlap(&network.subnets) {
            return Err(Rejection::Invalid(format!(
                "networks {} and {} have overlapping subnets: one container cannot be on both",
                other.spec.name, network.spec.name
            )));
        }
    }
    Ok(())
}

fn check_texts(identity: Option<&ContainerIdentity>, networks: &[WantedLink]) -> Result<(), Rejection> {
    let names = identity.into_iter().flat_map(|identity| [&identity.container, &identity.name]);
    let mut texts = names.chain(networks.iter().flat_map(|wanted| &wanted.aliases));
    if texts.any(|text| text.is_empty() || text.len() > MAX_NAME) {
        return Err(Rejection::Invalid(format!("a name of a container has 1 to {MAX_NAME} octets")));
    }
    if networks.iter().any(|wanted| wanted.aliases.len() > MAX_ALIASES) {
        return Err(Rejection::Invalid(format!("a container has {MAX_ALIASES} aliases on a network at most")));
    }
    let repeats =
        |(nth, wanted): (usize, &WantedLink)| networks[..nth].iter().any(|earlier| earlier.network == wanted.network);
    if networks.iter().enumerate().any(repeats) {
        return Err(Rejection::Invalid("a network is listed twice: list it once".to_owned()));
    }
    Ok(())
}
