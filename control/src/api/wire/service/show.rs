//! Converts a service to JSON.

use bollard_stubs::models;
use serde_json::Value;
use weft_model::{
    ClusterState, TaskId,
    spec::{EndpointMode, ServiceMode},
    state::{PublishedPort, Service, ServiceEndpoint, TaskState, UpdateState, UpdateStatus},
};

use super::endpoint;
use crate::api::wire::{
    network,
    values::{date, set, text, to_json, version},
};

/// What an answer with a service has beside what all have.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Options {
    /// The numbers of the service's tasks.
    pub(crate) status: bool,
    /// The defaults of the parts of the spec that the user has left out.
    pub(crate) defaults: bool,
    /// The networks also beside the task template, where clients of API 1.24 look for them.
    pub(crate) networks_twice: bool,
}

/// A service in the form of `GET /services/{id}`.
pub(crate) fn show(state: &ClusterState, service: &Service, options: Options) -> Value {
    let mut shown = to_json(models::Service {
        id: Some(service.id.to_string()),
        version: version(&service.meta),
        created_at: date(service.meta.created_ms),
        updated_at: date(service.meta.updated_ms),
        spec: None,
        endpoint: Some(show_endpoint(state, service)),
        update_status: service.update.as_ref().map(update_status),
        service_status: options.status.then(|| count_tasks(state, service)),
        job_status: None,
    });
    let spec = &service.spec;
    let mut spec = if options.defaults { to_json(super::write(spec)) } else { super::write_as_sent(spec) };
    if let Some(networks) = spec.pointer("/TaskTemplate/Networks").filter(|_| options.networks_twice).cloned() {
        set(&mut spec, "Networks", networks);
    }
    set(&mut shown, "Spec", spec);
    if let Some(previous) = &service.previous {
        set(&mut shown, "PreviousSpec", super::write_as_sent(previous));
    }
    shown
}

fn show_endpoint(state: &ClusterState, service: &Service) -> models::ServiceEndpoint {
    let vip = |endpoint: &ServiceEndpoint| {
        let network = state.networks.get(&endpoint.network)?;
        Some(models::ServiceEndpointVirtualIps {
            network_id: Some(endpoint.network.to_string()),
            addr: Some(network::with_prefix(network, endpoint.vip?.first())),
        })
    };
    let ports = |port: &PublishedPort| endpoint::write_port(&port.spec, Some(port.published));
    // As in Swarm, the network of the nodes is in this list without an address.
    let on_node = service.spec.task.node_network.filter(|_| service.spec.endpoint.mode == EndpointMode::Vip);
    let on_node = on_node.map(|network| models::ServiceEndpointVirtualIps {
        network_id: Some(network::predefined::id(network).to_string()),
        addr: None,
    });
    let on_ingress = ingress_vip(state, service);
    let virtual_ips: Vec<_> =
        on_ingress.into_iter().chain(service.endpoints.iter().filter_map(vip)).chain(on_node).collect();
    models::ServiceEndpoint {
        spec: Some(endpoint::write(&service.spec.endpoint)),
        ports: (!service.ports.is_empty()).then(|| service.ports.iter().map(ports).collect()),
        virtual_ips: (!virtual_ips.is_empty()).then_some(virtual_ips),
    }
}

/// The VIP on the ingress network of a service that publishes ports. In Swarm, that is an address
/// of the ingress network that leads to all its tasks. Here, the VIP on its first network does. A
/// service without networks has none, and is reached by its published ports: at each node.
fn ingress_vip(state: &ClusterState, service: &Service) -> Option<models::ServiceEndpointVirtualIps> {
    let ingress = network::ingress_of(state, service)?;
    let first = service.endpoints.iter().find_map(|endpoint| Some((endpoint, endpoint.vip?)));
    let addr = match first {
        Some((endpoint, vip)) => network::with_prefix(state.networks.get(&endpoint.network)?, vip.first()),
        None => {
            let node = state.nodes.values().find(|node| node.is_ready())?.addr;
            format!("{node}/{}", if node.is_ipv4() { 32 } else { 128 })
        }
    };
    Some(models::ServiceEndpointVirtualIps { network_id: Some(ingress.id.to_string()), addr: Some(addr) })
}

fn update_status(status: &UpdateStatus) -> models::ServiceUpdateStatus {
    use models::ServiceUpdateStatusStateEnum as S;
    models::ServiceUpdateStatus {
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

/// The numbers of tasks that `service ls` prints in the column REPLICAS.
fn count_tasks(state: &ClusterState, service: &Service) -> models::ServiceServiceStatus {
    let wanted = |id: &TaskId| state.tasks.get(id).is_some_and(|t| t.desired <= TaskState::Running);
    let live = || state.tasks_of(&service.id).filter(|t| wanted(&t.id));
    let running = live().filter(|t| t.status.state == TaskState::Running).count() as u64;
    let desired = match service.spec.mode {
        ServiceMode::Replicated { replicas } => replicas,
        ServiceMode::Global => live().count() as u64,
    };
    models::ServiceServiceStatus {
        running_tasks: Some(running),
        desired_tasks: Some(desired),
        completed_tasks: Some(0),
    }
}
