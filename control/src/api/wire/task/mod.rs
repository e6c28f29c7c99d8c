//! Converts tasks: the task template of a service in both directions, and a task to JSON.

mod names;
mod files;
mod show;

use bollard_stubs::models;
use weft_model::{
    NetworkId,
    spec::{
        ContainerSpec, NetworkAttachment, NodeNetwork, Placement, Platform, Resources, RestartCondition, RestartPolicy,
        STOP_GRACE_MS, TaskSpec,
    },
};

use super::{
    network::predefined,
    placement,
    values::{count, labels, list, millis, nanos, signed},
};
use crate::api::error::ApiError;

pub(super) use names::normalise as normalise_names;
pub(crate) use show::show;

/// Reads a task template. The caller must replace the names of networks by ids before.
pub(super) fn read(template: models::TaskSpec) -> Result<TaskSpec, ApiError> {
    let (networks, node_network) = read_networks(template.networks.unwrap_or_default())?;
    Ok(TaskSpec {
        container: read_container(template.container_spec.unwrap_or_default())?.into(),
        resources: read_resources(template.resources.unwrap_or_default())?,
        restart: read_restart(template.restart_policy)?,
        placement: read_placement(template.placement.unwrap_or_default())?,
        networks,
        force_update: template.force_update.unwrap_or(0),
        // Credentials are in a header, and shown nowhere.
        registry_auth: None,
        node_network,
    })
}

pub(super) fn write(spec: &TaskSpec) -> models::TaskSpec {
    let node_network = spec.node_network.map(|network| models::NetworkAttachmentConfig {
        target: Some(predefined::id(network).to_string()),
        ..Default::default()
    });
    let networks: Vec<_> = spec.networks.iter().map(write_attachment).chain(node_network).collect();
    models::TaskSpec {
        container_spec: Some(write_container(&spec.container)),
        resources: Some(write_resources(&spec.resources)),
        restart_policy: Some(write_restart(&spec.restart)),
        placement: Some(write_placement(&spec.placement)),
        networks: (!networks.is_empty()).then_some(networks),
        force_update: Some(spec.force_update),
        runtime: Some("container".into()),
        ..Default::default()
    }
}

fn read_container(spec: models::TaskSpecContainerSpec) -> Result<ContainerSpec, ApiError> {
    let image = spec.image.filter(|image| !image.is_empty()).ok_or_else(|| {
        ApiError::Invalid("TaskTemplate.ContainerSpec.Image is empty: name the image that the tasks run".into())
    })?;
    let env = spec.env.unwrap_or_default();
    // An entry without `=` removes the variable of the image.
    if let Some(bad) = env.iter().find(|entry| entry.is_empty() || entry.starts_with('=') || entry.contains('\0')) {
        return Err(ApiError::Invalid(format!(
            "invalid environment variable {bad:?}: give NAME=value, or NAME to unset a variable of the image"
        )));
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
        dns: names::read_dns(spec.dns_config.unwrap_or_default())?,
        hosts: names::read_hosts(&spec.hosts.unwrap_or_default())?,
        secrets: files::read_secrets(spec.secrets.unwrap_or_default())?,
        configs: files::read_configs(spec.configs.unwrap_or_default())?,
    })
}

fn write_container(spec: &ContainerSpec) -> models::TaskSpecContainerSpec {
    models::TaskSpecContainerSpec {
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
        dns_config: Some(names::write_dns(&spec.dns)),
        hosts: names::write_hosts(&spec.hosts),
        secrets: list(&spec.secrets.iter().map(files::write_secret).collect::<Vec<_>>()),
        configs: list(&spec.configs.iter().map(files::write_config).collect::<Vec<_>>()),
        isolation: Some(models::TaskSpecContainerSpecIsolationEnum::DEFAULT),
        ..Default::default()
    }
}

fn read_resources(resources: models::TaskSpecResources) -> Result<Resources, ApiError> {
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

fn write_resources(resources: &Resources) -> models::TaskSpecResources {
    let some = |value: u64| (value != 0).then(|| signed(value));
    models::TaskSpecResources {
        limits: Some(models::Limit {
            nano_cpus: some(resources.limit_nano_cpus),
            memory_bytes: some(resources.limit_memory_bytes),
            pids: some(resources.limit_pids),
        }),
        reservations: Some(models::ResourceObject {
            nano_cpus: some(resources.reserve_nano_cpus),
            memory_bytes: some(resources.reserve_memory_bytes),
            generic_resources: None,
        }),
        ..Default::default()
    }
}

fn read_restart(policy: Option<models::TaskSpecRestartPolicy>) -> Result<RestartPolicy, ApiError> {
    use models::TaskSpecRestartPolicyConditionEnum as C;
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

fn write_restart(policy: &RestartPolicy) -> models::TaskSpecRestartPolicy {
    use models::TaskSpecRestartPolicyConditionEnum as C;
    models::TaskSpecRestartPolicy {
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

fn read_placement(given: models::TaskSpecPlacement) -> Result<Placement, ApiError> {
    let descriptor = |preference: models::TaskSpecPlacementPreferences| {
        placement::read_spread(&preference.spread.and_then(|s| s.spread_descriptor).unwrap_or_default())
    };
    Ok(Placement {
        constraints: given
            .constraints
            .unwrap_or_default()
            .iter()
            .map(|text| placement::read_constraint(text))
            .collect::<Result<_, _>>()?,
        spread: given.preferences.unwrap_or_default().into_iter().map(descriptor).collect::<Result<_, _>>()?,
        max_replicas_per_node: count("TaskTemplate.Placement.MaxReplicas", given.max_replicas)?,
        platforms: given
            .platforms
            .unwrap_or_default()
            .into_iter()
            .map(|platform| Platform {
                os: platform.os.unwrap_or_default(),
                arch: platform.architecture.unwrap_or_default(),
            })
            .collect(),
    })
}

fn write_placement(spec: &Placement) -> models::TaskSpecPlacement {
    let preference = |attribute| models::TaskSpecPlacementPreferences {
        spread: Some(models::TaskSpecPlacementSpread {
            spread_descriptor: Some(placement::write_attribute(attribute)),
        }),
    };
    let constraints: Vec<_> = spec.constraints.iter().map(placement::write_constraint).collect();
    let preferences: Vec<_> = spec.spread.iter().map(preference).collect();
    models::TaskSpecPlacement {
        constraints: list(&constraints),
        preferences: list(&preferences),
        max_replicas: (spec.max_replicas_per_node != 0).then(|| signed(spec.max_replicas_per_node)),
        platforms: list(&spec.platforms.iter().map(write_platform).collect::<Vec<_>>()),
    }
}

fn write_platform(platform: &Platform) -> models::Platform {
    let some = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
    models::Platform { architecture: some(&platform.arch), os: some(&platform.os) }
}

/// The networks of the cluster, and the network of the nodes.
fn read_networks(
    attachments: Vec<models::NetworkAttachmentConfig>,
) -> Result<(Vec<NetworkAttachment>, Option<NodeNetwork>), ApiError> {
    let mut networks: Vec<NetworkAttachment> = Vec::with_capacity(attachments.len());
    let mut node_network = None;
    for attachment in attachments {
        let target = attachment.target.unwrap_or_default();
        let network: NetworkId = target
            .parse()
            .map_err(|_| ApiError::Invalid("a network attachment has no network: give its Target".into()))?;
        if networks.iter().any(|other| other.network == network) {
            return Err(ApiError::Invalid(format!("network {network} is attached twice: attach it once")));
        }
        let aliases = attachment.aliases.unwrap_or_default();
        if let Some(network) = predefined::of_id(&target) {
            check_node_network(network, node_network, &aliases)?;
            node_network = Some(network);
            continue;
        }
        if let Some(bad) = aliases.iter().find(|alias| !is_alias(alias)) {
            return Err(ApiError::Invalid(format!(
                "invalid network alias {bad:?}: use letters, digits, '-', '_' and '.', at most 63 between dots"
            )));
        }
        networks.push(NetworkAttachment { network, aliases });
    }
    if let Some(network) = node_network.filter(|_| !networks.is_empty()) {
        return Err(listed_with_others(network));
    }
    Ok((networks, node_network))
}

/// Checks an attachment to a network of the nodes. `earlier` is such a network that is attached
/// already.
fn check_node_network(network: NodeNetwork, earlier: Option<NodeNetwork>, aliases: &[String]) -> Result<(), ApiError> {
    let name = network.as_str();
    if earlier == Some(network) {
        return Err(ApiError::Invalid(format!("network {name} is attached twice: attach it once")));
    }
    if earlier.is_some() {
        return Err(listed_with_others(network));
    }
    if !aliases.is_empty() {
        return Err(ApiError::Invalid(format!(
            "network-scoped aliases are only supported for networks of the cluster, and network {name} has no names: \
             leave the aliases out"
        )));
    }
    Ok(())
}

fn listed_with_others(network: NodeNetwork) -> ApiError {
    ApiError::Invalid(format!(
        "network {} belongs to each node and cannot be combined with other networks: list it alone",
        network.as_str()
    ))
}

/// Whether the alias can be a name in DNS (RFC 1035, section 2.3.4). Underscores are allowed too.
fn is_alias(alias: &str) -> bool {
    alias.len() <= 253
        && alias.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
        })
}

fn write_attachment(attachment: &NetworkAttachment) -> models::NetworkAttachmentConfig {
    models::NetworkAttachmentConfig {
        target: Some(attachment.network.to_string()),
        aliases: list(&attachment.aliases),
        driver_opts: None,
    }
}
