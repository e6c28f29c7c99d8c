//! Services: the spec both ways, and a service as the API shows it.

use bollard_stubs::models as wire;
use serde_json::{Value, json};
use weft_model::{
    ClusterState, NetworkId, ServiceName, TaskId,
    spec::{
        EndpointMode, EndpointSpec, FailureAction, Labels, PortSpec, Protocol, ServiceMode, ServiceSpec, UpdateConfig,
        UpdateOrder,
    },
    state::{PublishedPort, Service, ServiceEndpoint, TaskState, UpdateState, UpdateStatus},
};

use super::{
    count, date, fields, json as to_json, millis, nanos, placement, set, signed, task, text, unsupported, version,
};
use crate::api::{error::ApiError, features};

/// Reads a spec. `resolve` finds a network by the name or id that the user gave.
pub(crate) fn read(
    mut body: Value,
    resolve: &dyn Fn(&str) -> Result<NetworkId, ApiError>,
) -> Result<ServiceSpec, ApiError> {
    // Nothing is read yet. What is wrong with a value is said below, unless `normalise` says it better.
    drop(fields::read::<wire::ServiceSpec>(&mut body));
    normalise(&mut body, resolve)?;
    let asked: wire::ServiceSpec = fields::read(&mut body)?;
    let template = asked.task_template.unwrap_or_default();
    let spec = ServiceSpec {
        name: asked.name.unwrap_or_default().parse::<ServiceName>()?,
        labels: asked.labels.unwrap_or_default().into_iter().collect(),
        mode: mode(asked.mode)?,
        update: update_config("UpdateConfig", asked.update_config)?,
        rollback: update_config("RollbackConfig", asked.rollback_config.as_ref().map(update_of_rollback))?,
        endpoint: endpoint(asked.endpoint_spec)?,
        task: task::read(template)?,
    };
    unsupported::refuse(&body, &to_json(write(&spec)))?;
    Ok(spec)
}

/// Brings what may be written in several ways into the one that [`write()`] uses.
fn normalise(body: &mut Value, resolve: &dyn Fn(&str) -> Result<NetworkId, ApiError>) -> Result<(), ApiError> {
    // Clients of API 1.24 name the networks beside the template.
    if let Some(networks) = body.as_object_mut().and_then(|b| b.remove("Networks")).filter(|n| !n.is_null()) {
        let template = &mut body["TaskTemplate"];
        if template.is_null() {
            *template = json!({});
        }
        if template["Networks"].is_null() {
            set(template, "Networks", networks);
        }
    }
    if let Some(networks) = body.pointer_mut("/TaskTemplate/Networks").and_then(Value::as_array_mut) {
        for network in networks {
            if let Some(target) = network["Target"].as_str() {
                let id = resolve(target)?;
                set(network, "Target", Value::String(id.into()));
            }
        }
    }
    for port in body.pointer("/EndpointSpec/Ports").and_then(Value::as_array).into_iter().flatten() {
        if let Some(mode) = port["PublishMode"].as_str().filter(|mode| !matches!(*mode, "" | "ingress")) {
            return Err(features::HOST_PORTS.refusal_of(&format!("mode={mode} ports")));
        }
    }
    if let Some(constraints) = body.pointer_mut("/TaskTemplate/Placement/Constraints").and_then(Value::as_array_mut) {
        for constraint in constraints {
            if let Some(text) = constraint.as_str() {
                *constraint = Value::String(placement::constraint_text(&placement::constraint(text)?));
            }
        }
    }
    Ok(())
}

pub(crate) fn write(spec: &ServiceSpec) -> wire::ServiceSpec {
    wire::ServiceSpec {
        name: Some(spec.name.to_string()),
        labels: Some(labels(&spec.labels)),
        task_template: Some(task::write(&spec.task)),
        mode: Some(match spec.mode {
            ServiceMode::Replicated { replicas } => wire::ServiceSpecMode {
                replicated: Some(wire::ServiceSpecModeReplicated { replicas: Some(signed(replicas)) }),
                ..Default::default()
            },
            ServiceMode::Global => wire::ServiceSpecMode { global: Some([].into()), ..Default::default() },
        }),
        update_config: Some(update_to_wire(&spec.update)),
        rollback_config: Some(rollback_of_update(&update_to_wire(&spec.rollback))),
        networks: None,
        endpoint_spec: Some(endpoint_to_wire(&spec.endpoint)),
    }
}

pub(super) fn labels(labels: &Labels) -> std::collections::HashMap<String, String> {
    labels.clone().into_iter().collect()
}

fn mode(mode: Option<wire::ServiceSpecMode>) -> Result<ServiceMode, ApiError> {
    let mode = mode.unwrap_or_default();
    if mode.replicated_job.is_some() {
        return Err(features::JOBS.refusal_at("Mode.ReplicatedJob"));
    }
    if mode.global_job.is_some() {
        return Err(features::JOBS.refusal_at("Mode.GlobalJob"));
    }
    match (mode.replicated, mode.global) {
        (Some(_), Some(_)) => {
            Err(ApiError::Invalid("Mode names both Replicated and Global: a service is one of them".into()))
        }
        (None, Some(_)) => Ok(ServiceMode::Global),
        (replicated, None) => {
            let replicas = replicated.and_then(|r| r.replicas);
            Ok(ServiceMode::Replicated {
                replicas: replicas.map_or(Ok(1), |r| count("Mode.Replicated.Replicas", Some(r)))?,
            })
        }
    }
}

/// The wire has one shape under two names.
fn update_of_rollback(config: &wire::ServiceSpecRollbackConfig) -> wire::ServiceSpecUpdateConfig {
    use wire::{
        ServiceSpecRollbackConfigFailureActionEnum as RA, ServiceSpecRollbackConfigOrderEnum as RO,
        ServiceSpecUpdateConfigFailureActionEnum as UA, ServiceSpecUpdateConfigOrderEnum as UO,
    };
    wire::ServiceSpecUpdateConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        failure_action: config.failure_action.map(|action| match action {
            RA::EMPTY => UA::EMPTY,
            RA::CONTINUE => UA::CONTINUE,
            RA::PAUSE => UA::PAUSE,
        }),
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        order: config.order.map(|order| match order {
            RO::EMPTY => UO::EMPTY,
            RO::STOP_FIRST => UO::STOP_FIRST,
            RO::START_FIRST => UO::START_FIRST,
        }),
    }
}

fn rollback_of_update(config: &wire::ServiceSpecUpdateConfig) -> wire::ServiceSpecRollbackConfig {
    use wire::{
        ServiceSpecRollbackConfigFailureActionEnum as RA, ServiceSpecRollbackConfigOrderEnum as RO,
        ServiceSpecUpdateConfigFailureActionEnum as UA, ServiceSpecUpdateConfigOrderEnum as UO,
    };
    wire::ServiceSpecRollbackConfig {
        parallelism: config.parallelism,
        delay: config.delay,
        failure_action: config.failure_action.map(|action| match action {
            UA::CONTINUE => RA::CONTINUE,
            UA::EMPTY | UA::PAUSE | UA::ROLLBACK => RA::PAUSE,
        }),
        monitor: config.monitor,
        max_failure_ratio: config.max_failure_ratio,
        order: config.order.map(|order| match order {
            UO::START_FIRST => RO::START_FIRST,
            UO::EMPTY | UO::STOP_FIRST => RO::STOP_FIRST,
        }),
    }
}

fn update_config(field: &str, config: Option<wire::ServiceSpecUpdateConfig>) -> Result<UpdateConfig, ApiError> {
    use wire::{ServiceSpecUpdateConfigFailureActionEnum as Action, ServiceSpecUpdateConfigOrderEnum as Order};
    let default = UpdateConfig::default();
    let Some(config) = config else { return Ok(default) };
    let ratio = config.max_failure_ratio.unwrap_or(0.0);
    if !(0.0..=1.0).contains(&ratio) {
        return Err(ApiError::Invalid(format!("{field}.MaxFailureRatio is {ratio}: give a number from 0 to 1")));
    }
    let max_failure_permille = permille(ratio);
    let honoured = f64::from(max_failure_permille) / 1_000.0;
    if (honoured - ratio).abs() > 1e-9 {
        let asked = format!("{field}.MaxFailureRatio {ratio}, the nearest that it can honour is {honoured}");
        return Err(features::FINE_RATIOS.refusal_of(&asked));
    }
    let monitor = config.monitor.unwrap_or(0);
    Ok(UpdateConfig {
        parallelism: count(&format!("{field}.Parallelism"), config.parallelism)?,
        delay_ms: millis(&format!("{field}.Delay"), config.delay.unwrap_or(0))?,
        on_failure: match config.failure_action {
            Some(Action::CONTINUE) => FailureAction::Continue,
            Some(Action::ROLLBACK) => FailureAction::Rollback,
            None | Some(Action::EMPTY | Action::PAUSE) => FailureAction::Pause,
        },
        monitor_ms: if monitor == 0 { default.monitor_ms } else { millis(&format!("{field}.Monitor"), monitor)? },
        max_failure_permille,
        order: match config.order {
            Some(Order::START_FIRST) => UpdateOrder::StartFirst,
            None | Some(Order::EMPTY | Order::STOP_FIRST) => UpdateOrder::StopFirst,
        },
    })
}

/// `ratio` is from 0 to 1.
fn permille(ratio: f64) -> u32 {
    (ratio * 1_000.0).round() as u32
}

fn update_to_wire(config: &UpdateConfig) -> wire::ServiceSpecUpdateConfig {
    use wire::{ServiceSpecUpdateConfigFailureActionEnum as Action, ServiceSpecUpdateConfigOrderEnum as Order};
    wire::ServiceSpecUpdateConfig {
        parallelism: Some(signed(config.parallelism)),
        delay: Some(nanos(config.delay_ms)),
        failure_action: Some(match config.on_failure {
            FailureAction::Pause => Action::PAUSE,
            FailureAction::Continue => Action::CONTINUE,
            FailureAction::Rollback => Action::ROLLBACK,
        }),
        monitor: Some(nanos(config.monitor_ms)),
        max_failure_ratio: Some(f64::from(config.max_failure_permille) / 1_000.0),
        order: Some(match config.order {
            UpdateOrder::StopFirst => Order::STOP_FIRST,
            UpdateOrder::StartFirst => Order::START_FIRST,
        }),
    }
}

fn endpoint(spec: Option<wire::EndpointSpec>) -> Result<EndpointSpec, ApiError> {
    let spec = spec.unwrap_or_default();
    let mode = match spec.mode {
        Some(wire::EndpointSpecModeEnum::DNSRR) => EndpointMode::Dnsrr,
        None | Some(wire::EndpointSpecModeEnum::EMPTY | wire::EndpointSpecModeEnum::VIP) => EndpointMode::Vip,
    };
    let ports: Vec<PortSpec> = spec
        .ports
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .map(|(i, config)| port(i, &config))
        .collect::<Result<_, _>>()?;
    for (i, port) in ports.iter().enumerate() {
        let twice = |other: &PortSpec| other.published == port.published && other.protocol == port.protocol;
        if let Some(published) = port.published
            && ports[..i].iter().any(twice)
        {
            return Err(ApiError::Invalid(format!(
                "port {published}/{} is published twice in this service: publish it once",
                port.protocol.as_str()
            )));
        }
    }
    Ok(EndpointSpec { mode, ports })
}

fn port(i: usize, config: &wire::EndpointPortConfig) -> Result<PortSpec, ApiError> {
    use wire::EndpointPortConfigProtocolEnum as P;
    let protocol = match config.protocol {
        None | Some(P::EMPTY | P::TCP) => Protocol::Tcp,
        Some(P::UDP) => Protocol::Udp,
        Some(P::SCTP) => {
            return Err(features::SCTP_PORTS.refusal());
        }
    };
    let target = port_number(&format!("EndpointSpec.Ports[{i}].TargetPort"), config.target_port.unwrap_or(0))?
        .ok_or_else(|| {
            ApiError::Invalid(format!(
                "EndpointSpec.Ports[{i}].TargetPort is 0: give the port that the task listens on, 1 to 65535"
            ))
        })?;
    let published = port_number(&format!("EndpointSpec.Ports[{i}].PublishedPort"), config.published_port.unwrap_or(0))?;
    Ok(PortSpec { protocol, target, published })
}

/// `None` for zero.
fn port_number(field: &str, port: i64) -> Result<Option<u16>, ApiError> {
    u16::try_from(port)
        .map(|port| (port != 0).then_some(port))
        .map_err(|_| ApiError::Invalid(format!("{field} is {port}: a port is a number from 1 to 65535")))
}

fn port_to_wire(spec: &PortSpec, published: Option<u16>) -> wire::EndpointPortConfig {
    wire::EndpointPortConfig {
        name: None,
        protocol: Some(match spec.protocol {
            Protocol::Tcp => wire::EndpointPortConfigProtocolEnum::TCP,
            Protocol::Udp => wire::EndpointPortConfigProtocolEnum::UDP,
        }),
        target_port: Some(i64::from(spec.target)),
        published_port: published.map(i64::from),
        publish_mode: Some(wire::EndpointPortConfigPublishModeEnum::INGRESS),
    }
}

fn endpoint_to_wire(spec: &EndpointSpec) -> wire::EndpointSpec {
    wire::EndpointSpec {
        mode: Some(match spec.mode {
            EndpointMode::Vip => wire::EndpointSpecModeEnum::VIP,
            EndpointMode::Dnsrr => wire::EndpointSpecModeEnum::DNSRR,
        }),
        ports: (!spec.ports.is_empty()).then(|| spec.ports.iter().map(|p| port_to_wire(p, p.published)).collect()),
    }
}

/// A service as `GET /services/{id}` shows it; with how many of its tasks run where `status` is asked.
pub(crate) fn show(state: &ClusterState, service: &Service, status: bool) -> Value {
    let mut shown = to_json(wire::Service {
        id: Some(service.id.to_string()),
        version: version(&service.meta),
        created_at: date(service.meta.created_ms),
        updated_at: date(service.meta.updated_ms),
        spec: Some(write(&service.spec)),
        endpoint: Some(show_endpoint(state, service)),
        update_status: service.update.as_ref().map(update_status),
        service_status: status.then(|| count_tasks(state, service)),
        job_status: None,
    });
    if let Some(previous) = &service.previous {
        set(&mut shown, "PreviousSpec", to_json(write(previous)));
    }
    shown
}

fn show_endpoint(state: &ClusterState, service: &Service) -> wire::ServiceEndpoint {
    let vip = |endpoint: &ServiceEndpoint| {
        let prefix = state.networks.get(&endpoint.network)?.subnets.v4.prefix();
        Some(wire::ServiceEndpointVirtualIps {
            network_id: Some(endpoint.network.to_string()),
            addr: Some(format!("{}/{prefix}", endpoint.vip?.v4)),
        })
    };
    let ports = |port: &PublishedPort| port_to_wire(&port.spec, Some(port.published));
    let virtual_ips: Vec<_> = service.endpoints.iter().filter_map(vip).collect();
    wire::ServiceEndpoint {
        spec: Some(endpoint_to_wire(&service.spec.endpoint)),
        ports: (!service.ports.is_empty()).then(|| service.ports.iter().map(ports).collect()),
        virtual_ips: (!virtual_ips.is_empty()).then_some(virtual_ips),
    }
}

fn update_status(status: &UpdateStatus) -> wire::ServiceUpdateStatus {
    use wire::ServiceUpdateStatusStateEnum as S;
    wire::ServiceUpdateStatus {
        state: Some(match status.state {
            UpdateState::Updating => S::UPDATING,
            UpdateState::Paused => S::PAUSED,
            UpdateState::Completed => S::COMPLETED,
            UpdateState::RollbackStarted => S::ROLLBACK_STARTED,
            UpdateState::RollbackPaused => S::ROLLBACK_PAUSED,
            UpdateState::RollbackCompleted => S::ROLLBACK_COMPLETED,
        }),
        started_at: date(status.started_ms),
        completed_at: status.completed_ms.and_then(date),
        message: text(&status.message),
    }
}

/// What the REPLICAS column says.
fn count_tasks(state: &ClusterState, service: &Service) -> wire::ServiceServiceStatus {
    let wanted = |id: &TaskId| state.tasks.get(id).is_some_and(|t| t.desired <= TaskState::Running);
    let live = || state.tasks_of(&service.id).filter(|t| wanted(&t.id));
    let running = live().filter(|t| t.status.state == TaskState::Running).count() as u64;
    let desired = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::Global => live().count() as u64,
    };
    wire::ServiceServiceStatus { running_tasks: Some(running), desired_tasks: Some(desired), completed_tasks: Some(0) }
}
