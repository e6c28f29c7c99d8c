//! Tasks: creation, assignment to a node, the changes of their states, and deletion.

use std::collections::BTreeMap;

use weft_model::{
    Applied, ClusterState, DualAddr, NetworkId, NodeId, Rejection, ServiceId, TaskId,
    command::ObjectKind,
    spec::ServiceMode,
    state::{Restarts, Slot, Task, TaskState, TaskStatus, Traffic},
};

use super::{addresses::Allocator, network_by_id, new_meta, not_found, services, task_mut};

/// The maximum length in bytes of a text in a node's report of a task. Longer texts are truncated.
const MAX_TEXT_LEN: usize = 1024;

/// The fields of [`weft_model::Command::CreateTask`].
#[derive(Debug)]
pub(super) struct NewTask {
    pub(super) id: TaskId,
    pub(super) service: ServiceId,
    pub(super) slot: Slot,
    pub(super) desired: TaskState,
    pub(super) not_before_ms: u64,
    pub(super) restarts: Restarts,
}

pub(super) fn create(state: &mut ClusterState, new: NewTask) -> Result<Applied, Rejection> {
    let NewTask { id, service, slot, desired, not_before_ms, restarts } = new;
    let Some(owner) = state.services.get(&service).filter(|s| !s.removing) else {
        return Err(not_found(ObjectKind::Service, &service));
    };
    if state.tasks.contains_key(&id) {
        return Err(Rejection::InUse { kind: ObjectKind::Task, id: id.to_string(), by: id.to_string() });
    }
    if !matches!(desired, TaskState::Ready | TaskState::Running) {
        return Err(Rejection::Invalid(format!("a task cannot begin with desired state {}", desired.as_str())));
    }
    let (label, node) = match (&slot, owner.spec.mode) {
        (Slot::Replica(nth), ServiceMode::Replicated { .. }) if *nth > 0 => (nth.to_string(), None),
        (Slot::Node(node), ServiceMode::Global) if state.nodes.contains_key(node) => (node.to_string(), Some(node)),
        _ => return Err(Rejection::Invalid(format!("service {} has no slot {slot:?}", owner.spec.name))),
    };
    let node = node.cloned();
    let task = Task {
        id: id.clone(),
        meta: new_meta(state),
        name: format!("{}.{label}.{id}", owner.spec.name),
        service,
        slot,
        spec: owner.spec.task.clone(),
        labels: Default::default(),
        version: owner.task_version,
        node,
        attachments: Vec::new(),
        desired,
        not_before_ms,
        restarts,
        status: TaskStatus {
            state: TaskState::Pending,
            since_ms: state.now_ms,
            message: "pending task scheduling".to_owned(),
            error: String::new(),
            exit_code: None,
            container: None,
            pid: None,
        },
        state_since_ms: state.now_ms,
        traffic: Traffic::None,
        traffic_index: state.index,
        traffic_since_ms: state.now_ms,
        stored_spec: None,
    };
    state.tasks.insert(id, task);
    Ok(Applied::Done)
}

/// Assigns a task to a node, and allocates an address on each of its networks.
pub(super) fn assign(
    state: &mut ClusterState,
    id: &TaskId,
    node: NodeId,
    reuse: &BTreeMap<NetworkId, DualAddr>,
) -> Result<Applied, Rejection> {
    let task = state.tasks.get(id).ok_or_else(|| not_found(ObjectKind::Task, id))?;
    if !state.nodes.contains_key(&node) {
        return Err(not_found(ObjectKind::Node, &node));
    }
    let waits = task.status.state < TaskState::Assigned && task.desired <= TaskState::Running;
    if !waits || task.node.as_ref().is_some_and(|fixed| *fixed != node) {
        return Err(Rejection::Invalid(format!(
            "task {id} cannot be assigned to node {node}: it has a node already, or it must stop"
        )));
    }
    let mut allocator = Allocator::new(state);
    let mut attachments = Vec::new();
    for network in services::task_networks(state, &task.spec) {
        let own = reuse.get(&network).copied();
        attachments.push(allocator.allocate_attachment(network_by_id(state, &network)?, task, own)?);
    }
    allocator.finish().commit(state);
    let now_ms = state.now_ms;
    let task = task_mut(state, id)?;
    task.node = Some(node);
    task.attachments = attachments;
    task.status.error = String::new();
    task.status.message = "scheduler assigned task to node".to_owned();
    set_state(task, TaskState::Assigned, now_ms, now_ms);
    Ok(Applied::Done)
}

/// Records why the task still has no node.
pub(super) fn delay(state: &mut ClusterState, id: &TaskId, error: String) -> Result<Applied, Rejection> {
    let task = task_mut(state, id)?;
    if task.status.state < TaskState::Assigned {
        task.status.error = error;
    }
    Ok(Applied::Done)
}

/// Raises the desired state. A smaller state has no effect: it comes from an older decision.
pub(super) fn set_desired(state: &mut ClusterState, id: &TaskId, desired: TaskState) -> Result<Applied, Rejection> {
    let task = task_mut(state, id)?;
    task.desired = task.desired.max(desired);
    Ok(Applied::Done)
}

/// Raises the traffic state. A smaller state has no effect.
pub(super) fn set_traffic(state: &mut ClusterState, id: &TaskId, traffic: Traffic) -> Result<Applied, Rejection> {
    let (index, now_ms) = (state.index, state.now_ms);
    let task = task_mut(state, id)?;
    if traffic > task.traffic {
        task.traffic = traffic;
        task.traffic_index = index;
        task.traffic_since_ms = now_ms;
    }
    Ok(Applied::Done)
}

/// Ends a task whose node is down or was removed.
pub(super) fn orphan(state: &mut ClusterState, id: &TaskId) -> Result<Applied, Rejection> {
    let now_ms = state.now_ms;
    let task = task_mut(state, id)?;
    if task.status.state.is_terminal() {
        return Ok(Applied::Done);
    }
    task.desired = task.desired.max(TaskState::Shutdown);
    task.status.message = "the node is down or was removed".to_owned();
    task.status.pid = None;
    set_state(task, TaskState::Orphaned, now_ms, now_ms);
    free_attachments(state, id);
    Ok(Applied::Done)
}

/// Deletes a task. Refused unless the task has ended or was never assigned.
pub(super) fn forget(state: &mut ClusterState, id: &TaskId) -> Result<Applied, Rejection> {
    let task = task_mut(state, id)?;
    if !task.status.state.is_terminal() && task.status.state >= TaskState::Assigned {
        let node = task.node.as_ref().map_or_else(String::new, ToString::to_string);
        return Err(Rejection::InUse { kind: ObjectKind::Task, id: id.to_string(), by: format!("node {node}") });
    }
    let service = task.service.clone();
    state.tasks.remove(id);
    services::drop_unused_endpoints(state, &service);
    Ok(Applied::Done)
}

/// Records the task states that a node reports. Reports about tasks of other nodes and about ended
/// tasks are outdated, and are ignored.
pub(super) fn report(
    state: &mut ClusterState,
    node: &NodeId,
    tasks: Vec<(TaskId, TaskStatus)>,
) -> Result<Applied, Rejection> {
    if !state.nodes.contains_key(node) {
        return Err(not_found(ObjectKind::Node, node));
    }
    let now_ms = state.now_ms;
    for (id, mut status) in tasks {
        let Some(task) = state.tasks.get_mut(&id).filter(|t| t.node.as_ref() == Some(node)) else { continue };
        let known = task.status.state;
        if !(TaskState::Accepted..=TaskState::Rejected).contains(&status.state) {
            continue;
        }
        status.state = interpret_state(task, &status);
        if known.is_terminal() || status.state < known {
            continue;
        }
        truncate(&mut status.message);
        truncate(&mut status.error);
        let (next, since_ms) = (status.state, status.since_ms);
        status.state = known;
        task.status = status;
        set_state(task, next, since_ms, now_ms);
        if next.is_terminal() {
            free_attachments(state, &id);
        }
    }
    Ok(Applied::Done)
}

/// The state to record for a reported state. If the task must stop, `Complete` and `Failed` are
/// recorded as `Shutdown`. If it must not stop, `Shutdown` is recorded as `Complete` or `Failed`,
/// depending on the exit code.
fn interpret_state(task: &Task, status: &TaskStatus) -> TaskState {
    match status.state {
        TaskState::Complete | TaskState::Failed if task.must_stop() => TaskState::Shutdown,
        TaskState::Shutdown if !task.must_stop() && status.exit_code == Some(0) => TaskState::Complete,
        TaskState::Shutdown if !task.must_stop() => TaskState::Failed,
        reported => reported,
    }
}

fn set_state(task: &mut Task, next: TaskState, since_ms: u64, now_ms: u64) {
    if task.status.state != next {
        task.state_since_ms = now_ms;
    }
    task.status.state = next;
    task.status.since_ms = since_ms;
}

/// Frees the addresses of an ended task.
fn free_attachments(state: &mut ClusterState, id: &TaskId) {
    let Some(task) = state.tasks.get(id) else { return };
    let service = task.service.clone();
    let mut allocator = Allocator::new(state);
    for attachment in &task.attachments {
        allocator.free_address(&attachment.network, attachment.addr, Some(task));
    }
    allocator.finish().commit(state);
    if let Some(task) = state.tasks.get_mut(id) {
        task.attachments = Vec::new();
    }
    services::drop_unused_endpoints(state, &service);
}

pub(super) fn truncate(text: &mut String) {
    if text.len() > MAX_TEXT_LEN {
        let end = (0..=MAX_TEXT_LEN).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
    }
}
