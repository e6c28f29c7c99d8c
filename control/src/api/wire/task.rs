//! Tasks: the template of a service's tasks both ways, and a task as the API shows it.

use bollard_stubs::models as wire;
use serde_json::{Value, json};
use weft_model::{
    ClusterState, NetworkId,
    spec::{
        ContainerSpec, NetworkAttachment, Placement, Resources, RestartCondition, RestartPolicy, STOP_GRACE_MS,
        TaskSpec,
    },
    state::{Attachment, Slot, Task, TaskState},
};

use super::{
    count, date, json as to_json, list, millis, nanos, network, placement, service::labels, set, signed, text, version,
};
use crate::api::error::ApiError;

/// Reads a task template whose networks are ids already.
pub(super) fn read(template: wire::TaskSpec) -> Result<TaskSpec, ApiError> {
    Ok(TaskSpec {
        container: container(template.container_spec.unwrap_or_default())?,
        resources: resources(template.resources.unwrap_or_default())?,
        restart: restart(template.restart_policy)?,
        placement: read_placement(template.placement.unwrap_or_default())?,
        networks: networks(template.networks.unwrap_or_default())?,
        force_update: template.force_update.unwrap_or(0),
    })
}

pub(super) fn write(spec: &TaskSpec) -> wire::TaskSpec {
    wire::TaskSpec {
        container_spec: Some(container_to_wire(&spec.container)),
        resources: Some(resources_to_wire(&spec.resources)),
        restart_policy: Some(restart_to_wire(&spec.restart)),
        placement: Some(placement_to_wire(&spec.placement)),
        networks: (!spec.networks.is_empty()).then(|| spec.networks.iter().map(attachment_to_wire).collect()),
        force_update: Some(spec.force_update),
        runtime: Some("container".into()),
        ..Default::default()
    }
}

fn container(spec: wire::TaskSpecContainerSpec) -> Result<ContainerSpec, ApiError> {
    let image = spec.image.filter(|image| !image.is_empty()).ok_or_else(|| {
        ApiError::Invalid("TaskTemplate.ContainerSpec.Image is empty: name the image that the tasks run".into())
    })?;
    let env = spec.env.unwrap_or_default();
    if let Some(bad) = env.iter().find(|entry| entry.is_empty() || entry.starts_with('=')) {
        return Err(ApiError::Invalid(format!("invalid environment variable {bad:?}: want NAME=value")));
    }
    let some = |text: Option<String>| text.filter(|text| !text.is_empty());
    Ok(ContainerSpec {
        image,
        labels: spec.labels.unwrap_or_default().into_iter().collect(),
        command: spec.command.unwrap_or_default(),
        args: spec.args.unwrap_or_default(),
        env,
        dir: some(spec.dir),
        user: some(spec.user),
        hostname: some(spec.hostname),
        stop_signal: some(spec.stop_signal),
        stop_grace_ms: spec
            .stop_grace_period
            .map_or(Ok(STOP_GRACE_MS), |grace| millis("TaskTemplate.ContainerSpec.StopGracePeriod", grace))?,
        read_only: spec.read_only.unwrap_or(false),
        init: spec.init,
    })
}

fn container_to_wire(spec: &ContainerSpec) -> wire::TaskSpecContainerSpec {
    wire::TaskSpecContainerSpec {
        image: Some(spec.image.clone()),
        labels: (!spec.labels.is_empty()).then(|| labels(&spec.labels)),
        command: list(&spec.command),
        args: list(&spec.args),
        env: list(&spec.env),
        dir: spec.dir.clone(),
        user: spec.user.clone(),
        hostname: spec.hostname.clone(),
        stop_signal: spec.stop_signal.clone(),
        stop_grace_period: Some(nanos(spec.stop_grace_ms)),
        read_only: spec.read_only.then_some(true),
        init: spec.init,
        isolation: Some(wire::TaskSpecContainerSpecIsolationEnum::DEFAULT),
        ..Default::default()
    }
}

fn resources(resources: wire::TaskSpecResources) -> Result<Resources, ApiError> {
    let limits = resources.limits.unwrap_or_default();
    let reserved = resources.reservations.unwrap_or_default();
    Ok(Resources {
        limit_nano_cpus: count("TaskTemplate.Resources.Limits.NanoCPUs", limits.nano_cpus)?,
        limit_memory_bytes: count("TaskTemplate.Resources.Limits.MemoryBytes", limits.memory_bytes)?,
        limit_pids: count("TaskTemplate.Resources.Limits.Pids", limits.pids)?,
        reserve_nano_cpus: count("TaskTemplate.Resources.Reservations.NanoCPUs", reserved.nano_cpus)?,
        reserve_memory_bytes: count("TaskTemplate.Resources.Reservations.MemoryBytes", reserved.memory_bytes)?,
    })
}

fn resources_to_wire(resources: &Resources) -> wire::TaskSpecResources {
    let some = |value: u64| (value != 0).then(|| signed(value));
    wire::TaskSpecResources {
        limits: Some(wire::Limit {
            nano_cpus: some(resources.limit_nano_cpus),
            memory_bytes: some(resources.limit_memory_bytes),
            pids: some(resources.limit_pids),
        }),
        reservations: Some(wire::ResourceObject {
            nano_cpus: some(resources.reserve_nano_cpus),
            memory_bytes: some(resources.reserve_memory_bytes),
            generic_resources: None,
        }),
        ..Default::default()
    }
}

fn restart(policy: Option<wire::TaskSpecRestartPolicy>) -> Result<RestartPolicy, ApiError> {
    use wire::TaskSpecRestartPolicyConditionEnum as C;
    let default = RestartPolicy::default();
    let Some(policy) = policy else { return Ok(default) };
    Ok(RestartPolicy {
        condition: match policy.condition {
            None | Some(C::EMPTY | C::ANY) => RestartCondition::Any,
            Some(C::NONE) => RestartCondition::None,
            Some(C::ON_FAILURE) => RestartCondition::OnFailure,
        },
        delay_ms: policy
            .delay
            .map_or(Ok(default.delay_ms), |delay| millis("TaskTemplate.RestartPolicy.Delay", delay))?,
        max_attempts: count("TaskTemplate.RestartPolicy.MaxAttempts", policy.max_attempts)?,
        window_ms: millis("TaskTemplate.RestartPolicy.Window", policy.window.unwrap_or(0))?,
    })
}

fn restart_to_wire(policy: &RestartPolicy) -> wire::TaskSpecRestartPolicy {
    use wire::TaskSpecRestartPolicyConditionEnum as C;
    wire::TaskSpecRestartPolicy {
        condition: Some(match policy.condition {
            RestartCondition::None => C::NONE,
            RestartCondition::OnFailure => C::ON_FAILURE,
            RestartCondition::Any => C::ANY,
        }),
        delay: Some(nanos(policy.delay_ms)),
        max_attempts: Some(signed(policy.max_attempts)),
        window: (policy.window_ms != 0).then(|| nanos(policy.window_ms)),
    }
}

fn read_placement(given: wire::TaskSpecPlacement) -> Result<Placement, ApiError> {
    let descriptor = |preference: wire::TaskSpecPlacementPreferences| {
        placement::spread(&preference.spread.and_then(|s| s.spread_descriptor).unwrap_or_default())
    };
    Ok(Placement {
        constraints: given
            .constraints
            .unwrap_or_default()
            .iter()
            .map(|text| placement::constraint(text))
            .collect::<Result<_, _>>()?,
        spread: given.preferences.unwrap_or_default().into_iter().map(descriptor).collect::<Result<_, _>>()?,
        max_replicas_per_node: count("TaskTemplate.Placement.MaxReplicas", given.max_replicas)?,
    })
}

fn placement_to_wire(spec: &Placement) -> wire::TaskSpecPlacement {
    let preference = |attribute| wire::TaskSpecPlacementPreferences {
        spread: Some(wire::TaskSpecPlacementSpread { spread_descriptor: Some(placement::attribute_text(attribute)) }),
    };
    let constraints: Vec<_> = spec.constraints.iter().map(placement::constraint_text).collect();
    let preferences: Vec<_> = spec.spread.iter().map(preference).collect();
    wire::TaskSpecPlacement {
        constraints: list(&constraints),
        preferences: list(&preferences),
        max_replicas: (spec.max_replicas_per_node != 0).then(|| signed(spec.max_replicas_per_node)),
        platforms: None,
    }
}

fn networks(attachments: Vec<wire::NetworkAttachmentConfig>) -> Result<Vec<NetworkAttachment>, ApiError> {
    let mut networks: Vec<NetworkAttachment> = Vec::with_capacity(attachments.len());
    for attachment in attachments {
        let target = attachment.target.unwrap_or_default();
        let network: NetworkId =
            target.parse().map_err(|_| ApiError::Invalid("a network attachment names no network".into()))?;
        if networks.iter().any(|other| other.network == network) {
            return Err(ApiError::Invalid(format!("network {network} is attached twice: attach it once")));
        }
        let aliases = attachment.aliases.unwrap_or_default();
        if let Some(bad) = aliases.iter().find(|alias| !is_alias(alias)) {
            return Err(ApiError::Invalid(format!(
                "invalid network alias {bad:?}: use letters, digits, '-', '_' and '.', at most 63 between dots"
            )));
        }
        networks.push(NetworkAttachment { network, aliases });
    }
    Ok(networks)
}

/// Whether it can be a name in DNS.
fn is_alias(alias: &str) -> bool {
    alias.len() <= 253
        && alias.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}

fn attachment_to_wire(attachment: &NetworkAttachment) -> wire::NetworkAttachmentConfig {
    wire::NetworkAttachmentConfig {
        target: Some(attachment.network.to_string()),
        aliases: list(&attachment.aliases),
        driver_opts: None,
    }
}

/// A task as `GET /tasks/{id}` shows it.
pub(crate) fn show(state: &ClusterState, task: &Task) -> Value {
    let mut shown = to_json(wire::Task {
        id: Some(task.id.to_string()),
        version: version(&task.meta),
        created_at: date(task.meta.created_ms),
        updated_at: date(task.meta.updated_ms),
        name: Some(task.name.clone()),
        labels: Some(labels(&task.labels)),
        spec: Some(write(&task.spec)),
        service_id: Some(task.service.to_string()),
        slot: match task.slot {
            Slot::Replica(slot) => Some(signed(slot)),
            Slot::Node(_) => None,
        },
        node_id: task.node.as_ref().map(ToString::to_string),
        assigned_generic_resources: None,
        status: Some(wire::TaskStatus {
            timestamp: date(task.status.since_ms),
            state: Some(task_state(task.status.state)),
            message: text(&task.status.message),
            err: text(&task.status.error),
            container_status: Some(wire::ContainerStatus {
                container_id: task.status.container.clone(),
                pid: task.status.pid.map(i64::from),
                exit_code: task.status.exit_code.map(i64::from),
            }),
            port_status: Some(wire::PortStatus::default()),
        }),
        desired_state: Some(task_state(task.desired)),
        job_iteration: None,
    });
    let attachments: Vec<_> = task.attachments.iter().map(|a| show_attachment(state, a)).collect();
    set(&mut shown, "NetworksAttachments", Value::Array(attachments));
    shown
}

fn show_attachment(state: &ClusterState, attachment: &Attachment) -> Value {
    let network = state.networks.get(&attachment.network);
    let prefix = network.map_or((32, 128), |n| (n.subnets.v4.prefix(), n.subnets.v6.prefix()));
    // Every task has both, whether or not the network's names have IPv6 addresses.
    let addresses = [format!("{}/{}", attachment.addr.v4, prefix.0), format!("{}/{}", attachment.addr.v6, prefix.1)];
    json!({
        "Network": network.map_or_else(|| json!({"ID": attachment.network.as_str()}), network::show_cluster_network),
        "Addresses": addresses,
    })
}

fn task_state(state: TaskState) -> wire::TaskState {
    match state {
        TaskState::New => wire::TaskState::NEW,
        TaskState::Pending => wire::TaskState::PENDING,
        TaskState::Assigned => wire::TaskState::ASSIGNED,
        TaskState::Accepted => wire::TaskState::ACCEPTED,
        TaskState::Preparing => wire::TaskState::PREPARING,
        TaskState::Ready => wire::TaskState::READY,
        TaskState::Starting => wire::TaskState::STARTING,
        TaskState::Running => wire::TaskState::RUNNING,
        TaskState::Complete => wire::TaskState::COMPLETE,
        TaskState::Shutdown => wire::TaskState::SHUTDOWN,
        TaskState::Failed => wire::TaskState::FAILED,
        TaskState::Rejected => wire::TaskState::REJECTED,
        TaskState::Remove => wire::TaskState::REMOVE,
        TaskState::Orphaned => wire::TaskState::ORPHANED,
    }
}
