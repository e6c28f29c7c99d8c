//! Converts a task to JSON.

use bollard_stubs::models;
use serde_json::{Value, json};
use weft_model::{
    ClusterState,
    spec::{ContainerSpec, TaskSpec},
    state::{Attachment, Slot, Task, TaskState},
};

use crate::api::wire::{
    left_out, network,
    values::{date, labels, set, signed, text, to_json, version},
};

/// A task in the form of `GET /tasks/{id}`.
pub(crate) fn show(state: &ClusterState, task: &Task) -> Value {
    let mut shown = to_json(models::Task {
        id: Some(task.id.to_string()),
        version: version(&task.meta),
        created_at: date(task.meta.created_ms),
        updated_at: date(task.meta.updated_ms),
        name: Some(task.name.clone()),
        labels: Some(labels(&task.labels)),
        spec: None,
        service_id: Some(task.service.to_string()),
        slot: match task.slot {
            Slot::Replica(slot) => Some(signed(slot)),
            Slot::Node(_) => None,
        },
        node_id: task.node.as_ref().map(ToString::to_string),
        assigned_generic_resources: None,
        status: Some(models::TaskStatus {
            timestamp: date(task.status.since_ms),
            state: Some(task_state(task.status.state)),
            message: text(&task.status.message),
            err: text(&task.status.error),
            container_status: Some(models::ContainerStatus {
                container_id: task.status.container.clone(),
                pid: task.status.pid.map(i64::from),
                exit_code: task.status.exit_code.map(i64::from),
            }),
            port_status: Some(models::PortStatus::default()),
        }),
        desired_state: Some(task_state(task.desired)),
        job_iteration: None,
    });
    set(&mut shown, "Spec", spec(state, task));
    let on_node = task.spec.node_network.filter(|_| network::predefined::is_attached(task));
    let on_node = on_node
        .map(|network| json!({"Network": network::predefined::show_attached(state, network), "Addresses": null}));
    let attached = task.attachments.iter().map(|a| show_attachment(state, a));
    let attachments: Vec<_> = on_ingress(state, task).into_iter().chain(attached).chain(on_node).collect();
    set(&mut shown, "NetworksAttachments", Value::Array(attachments));
    shown
}

/// The spec as the user has sent it. A task knows only what it has. What the user has left out is
/// in the spec of its service, which may be newer: then a value that differs from the default is
/// shown.
fn spec(state: &ClusterState, task: &Task) -> Value {
    let mut shown = to_json(super::write(&task.spec));
    if let Some(service) = state.services.get(&task.service) {
        let default = TaskSpec::new(ContainerSpec::new(&task.spec.container.image));
        left_out::hide(&mut shown, left_out::TASK, &service.spec.left_out, &to_json(super::write(&default)));
    }
    shown
}

/// The ingress network, for a task whose service publishes ports and has networks of its own. In
/// Swarm, such a task has an address of the ingress network too. Here, its published ports lead to
/// its address on its first network, so that is what reaches it.
fn on_ingress(state: &ClusterState, task: &Task) -> Option<Value> {
    let ingress = network::ingress_of(state, state.services.get(&task.service)?)?;
    let first = task.attachments.first()?;
    let is_shown = task.attachments.iter().any(|attachment| attachment.network == ingress.id);
    (!is_shown).then(|| {
        json!({
            "Network": network::show_attached(ingress),
            "Addresses": addresses(state, first),
        })
    })
}

fn show_attachment(state: &ClusterState, attachment: &Attachment) -> Value {
    let network = state.networks.get(&attachment.network);
    json!({
        "Network": network.map_or_else(|| json!({"ID": attachment.network.as_str()}), network::show_attached),
        "Addresses": addresses(state, attachment),
    })
}

fn addresses(state: &ClusterState, attachment: &Attachment) -> Vec<String> {
    // While the network is removed, its spec is not known any more.
    state.networks.get(&attachment.network).map_or_else(
        || attachment.addr.ips().map(|ip| ip.to_string()).collect(),
        |network| network::shown_addresses(network, attachment.addr).collect(),
    )
}

fn task_state(state: TaskState) -> models::TaskState {
    match state {
        TaskState::New => models::TaskState::NEW,
        TaskState::Pending => models::TaskState::PENDING,
        TaskState::Assigned => models::TaskState::ASSIGNED,
        TaskState::Accepted => models::TaskState::ACCEPTED,
        TaskState::Preparing => models::TaskState::PREPARING,
        TaskState::Ready => models::TaskState::READY,
        TaskState::Starting => models::TaskState::STARTING,
        TaskState::Running => models::TaskState::RUNNING,
        TaskState::Complete => models::TaskState::COMPLETE,
        TaskState::Shutdown => models::TaskState::SHUTDOWN,
        TaskState::Failed => models::TaskState::FAILED,
        TaskState::Rejected => models::TaskState::REJECTED,
        TaskState::Remove => models::TaskState::REMOVE,
        TaskState::Orphaned => models::TaskState::ORPHANED,
    }
}
