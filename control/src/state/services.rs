//! Services: checks their specs, and allocates their endpoints (VIPs, mesh ids) and published
//! ports.

use weft_model::{
    Applied, ClusterState, MAX_NETWORKS_PER_SERVICE, NetworkId, Rejection, ServiceId,
    command::ObjectKind,
    spec::{EndpointMode, NetworkAttachment, NodeNetwork, ServiceMode, ServiceSpec, TaskSpec},
    state::{Network, Service, ServiceEndpoint, UpdateState, UpdateStatus},
};

use super::{
    addresses::Allocator, check_version, dependencies, network_by_id, new_meta, not_found, ports, service_mut,
    updated_meta,
};

/// The largest ingress network (a /16) does not have enough addresses for the tasks of a larger
/// service.
const MAX_REPLICAS: u64 = 60_000;

/// The times of so many restarts of each slot are stored, if the restart policy has a window.
const MAX_ATTEMPTS_IN_WINDOW: u64 = 1_000;

pub(super) fn create(state: &mut ClusterState, id: ServiceId, spec: ServiceSpec) -> Result<Applied, Rejection> {
    if state.services.contains_key(&id) {
        return Err(Rejection::InUse { kind: ObjectKind::Service, id: id.to_string(), by: id.to_string() });
    }
    if let Some(other) = state.service_by_name(spec.name.as_str()) {
        return Err(Rejection::NameInUse {
            kind: ObjectKind::Service,
            name: spec.name.to_string(),
            by: other.id.to_string(),
        });
    }
    check(&spec)?;
    dependencies::check_files(state, &spec.task.container)?;
    let ports = ports::publish(state, &id, &spec.endpoint, &[])?;
    let mut allocator = Allocator::new(state);
    let endpoints = endpoints(state, &mut allocator, &spec, &[])?;
    allocator.finish().commit(state);
    let service = Service {
        id: id.clone(),
        meta: new_meta(state),
        spec,
        previous: None,
        task_version: state.index,
        endpoints,
        ports,
        update: None,
        removing: false,
    };
    state.services.insert(id.clone(), service);
    Ok(Applied::Service(id))
}

pub(super) fn update(
    state: &mut ClusterState,
    id: &ServiceId,
    version: u64,
    spec: ServiceSpec,
) -> Result<Applied, Rejection> {
    let current = visible_service(state, id)?;
    check_version(ObjectKind::Service, id, current.meta, version)?;
    let invalid = |why: &str| Err(Rejection::Invalid(why.to_owned()));
    if current.spec.name != spec.name {
        return invalid("renaming services is not supported: create another and remove this one");
    }
    if std::mem::discriminant(&current.spec.mode) != std::mem::discriminant(&spec.mode) {
        return invalid("service mode change is not allowed: create another service");
    }
    // A new spec ends an update that runs or is paused. If tasks differ from the new spec, the
    // orchestrator starts a new update.
    change_spec(state, id, spec, None)
}

pub(super) fn roll_back(
    state: &mut ClusterState,
    id: &ServiceId,
    version: u64,
    message: String,
    automatic: bool,
) -> Result<Applied, Rejection> {
    let current = visible_service(state, id)?;
    check_version(ObjectKind::Service, id, current.meta, version)?;
    let Some(previous) = current.previous.clone() else {
        return Err(Rejection::NothingToRollBack { id: id.to_string() });
    };
    let status =
        UpdateStatus { state: UpdateState::RollbackStarted, started_ms: state.now_ms, completed_ms: None, message };
    let applied = change_spec(state, id, previous, Some(status))?;
    if automatic {
        service_mut(state, id)?.previous = None;
    }
    Ok(applied)
}

/// Gives the service another spec, and allocates what the new spec needs.
fn change_spec(
    state: &mut ClusterState,
    id: &ServiceId,
    spec: ServiceSpec,
    update: Option<UpdateStatus>,
) -> Result<Applied, Rejection> {
    let current = visible_service(state, id)?;
    check(&spec)?;
    dependencies::check_files(state, &spec.task.container)?;
    let ports = ports::publish(state, id, &spec.endpoint, &current.ports)?;
    let mut allocator = Allocator::new(state);
    let endpoints = endpoints(state, &mut allocator, &spec, &current.endpoints)?;
    let meta = updated_meta(state, current.meta);
    let index = state.index;
    allocator.finish().commit(state);
    let service = service_mut(state, id)?;
    service.meta = meta;
    if service.spec.task != spec.task {
        service.task_version = index;
    }
    service.previous = Some(std::mem::replace(&mut service.spec, spec));
    service.endpoints = endpoints;
    service.ports = ports;
    service.update = update;
    drop_unused_endpoints(state, id);
    Ok(Applied::Service(id.clone()))
}

/// Hides the service, which frees its name and ports. The orchestrator then stops its tasks.
pub(super) fn remove(state: &mut ClusterState, id: &ServiceId) -> Result<Applied, Rejection> {
    visible_service(state, id)?;
    service_mut(state, id)?.removing = true;
    Ok(Applied::Service(id.clone()))
}

pub(super) fn forget(state: &mut ClusterState, id: &ServiceId) -> Result<Applied, Rejection> {
    let service = state.services.get(id).ok_or_else(|| not_found(ObjectKind::Service, id))?;
    if !service.removing {
        return Err(Rejection::Invalid(format!("service {id} was not removed")));
    }
    if let Some(task) = state.tasks_of(id).next() {
        return Err(Rejection::InUse {
            kind: ObjectKind::Service,
            id: id.to_string(),
            by: format!("task {}", task.id),
        });
    }
    let mut allocator = Allocator::new(state);
    for endpoint in &service.endpoints {
        if let Some(vip) = endpoint.vip {
            allocator.free_address(&endpoint.network, vip, None);
        }
    }
    allocator.finish().commit(state);
    state.services.remove(id);
    Ok(Applied::Done)
}

pub(super) fn set_update_status(
    state: &mut ClusterState,
    id: &ServiceId,
    version: u64,
    status: UpdateStatus,
) -> Result<Applied, Rejection> {
    let service = service_mut(state, id)?;
    check_version(ObjectKind::Service, id, service.meta, version)?;
    service.update = Some(status);
    Ok(Applied::Done)
}

/// Removes the endpoints of the service on networks that are no longer in its spec. An endpoint
/// stays while a live task is attached to the network or will be attached to it.
pub(super) fn drop_unused_endpoints(state: &mut ClusterState, id: &ServiceId) {
    let Some(service) = state.services.get(id) else { return };
    let is_used = |endpoint: &ServiceEndpoint| {
        spec_networks(&service.spec, state).any(|network| network.id == endpoint.network)
            || state
                .tasks_of(id)
                .filter(|t| !t.status.state.is_terminal())
                .any(|t| task_networks(state, &t.spec).contains(&endpoint.network))
    };
    let (endpoints, unused): (Vec<_>, Vec<_>) = service.endpoints.iter().cloned().partition(is_used);
    if unused.is_empty() {
        return;
    }
    let mut allocator = Allocator::new(state);
    for endpoint in unused {
        if let Some(vip) = endpoint.vip {
            allocator.free_address(&endpoint.network, vip, None);
        }
    }
    allocator.finish().commit(state);
    if let Some(service) = state.services.get_mut(id) {
        service.endpoints = endpoints;
    }
}

/// The service, unless it is being removed.
fn visible_service<'a>(state: &'a ClusterState, id: &ServiceId) -> Result<&'a Service, Rejection> {
    state.services.get(id).filter(|s| !s.removing).ok_or_else(|| not_found(ObjectKind::Service, id))
}

/// Makes the checks that do not need the cluster state.
fn check(spec: &ServiceSpec) -> Result<(), Rejection> {
    let invalid = |why: String| Err(Rejection::Invalid(why));
    if let ServiceMode::Replicated { replicas } = spec.mode
        && replicas > MAX_REPLICAS
    {
        return invalid(format!("{replicas} replicas are too many: use at most {MAX_REPLICAS}"));
    }
    if spec.update.max_failure_permille > 1000 || spec.rollback.max_failure_permille > 1000 {
        return invalid("the maximum failure ratio must be between 0 and 1".to_owned());
    }
    check_node_network(spec)?;
    let restart = &spec.task.restart;
    if restart.window_ms > 0 && restart.max_attempts > MAX_ATTEMPTS_IN_WINDOW {
        return invalid(format!(
            "{} restarts within a window are too many to count: use at most {MAX_ATTEMPTS_IN_WINDOW}, or no window",
            restart.max_attempts
        ));
    }
    let templates = spec.task.container.hostname.iter().chain(&spec.task.container.env);
    match templates.filter_map(|text| crate::plan::template::unknown(text)).next() {
        Some(unknown) => invalid(format!(
            "template {unknown} is not known: use {}",
            crate::plan::template::KNOWN.map(|(name, _)| format!("{{{{{name}}}}}")).join(", ")
        )),
        None => Ok(()),
    }
}

/// A task on a network of its node has no address to which the cluster could send packets.
fn check_node_network(spec: &ServiceSpec) -> Result<(), Rejection> {
    let Some(name) = spec.task.node_network.map(NodeNetwork::as_str) else { return Ok(()) };
    if !spec.task.networks.is_empty() {
        return Err(Rejection::Invalid(format!(
            "network {name} belongs to each node and cannot be combined with networks of the cluster: list it alone"
        )));
    }
    if !spec.endpoint.ports.is_empty() {
        let hint = match spec.task.node_network {
            Some(NodeNetwork::Host) => "leave the ports out, because its tasks listen on ports of their nodes",
            _ => "leave the ports out, or use a network of the cluster",
        };
        return Err(Rejection::Invalid(format!("a service on network {name} cannot publish ports: {hint}")));
    }
    Ok(())
}

/// The networks of the spec, in its order, or the ingress network if the spec lists none.
fn spec_networks<'a>(spec: &'a ServiceSpec, state: &'a ClusterState) -> impl Iterator<Item = &'a Network> {
    let ingress = state.networks.values().filter(|n| n.spec.ingress && spec.task.uses_ingress());
    spec.task.networks.iter().filter_map(|a| state.networks.get(&a.network)).chain(ingress)
}

/// Refuses networks that do not exist, are listed twice or overlap. Also refuses the ingress
/// network.
fn check_networks(state: &ClusterState, attachments: &[NetworkAttachment]) -> Result<(), Rejection> {
    if attachments.len() > MAX_NETWORKS_PER_SERVICE {
        return Err(Rejection::Invalid(format!(
            "a service can be on {MAX_NETWORKS_PER_SERVICE} networks at most, and this one lists {}",
            attachments.len()
        )));
    }
    for (nth, attachment) in attachments.iter().enumerate() {
        let network = network_by_id(state, &attachment.network)?;
        let name = &network.spec.name;
        if network.spec.ingress {
            return Err(Rejection::Invalid(format!(
                "network {name} cannot be chosen: services without a network option are attached to it"
            )));
        }
        for earlier in &attachments[..nth] {
            if earlier.network == attachment.network {
                return Err(Rejection::Invalid(format!("network {name} is listed twice: list it once")));
            }
            let first = network_by_id(state, &earlier.network)?;
            if first.subnets.overlap(&network.subnets) {
                return Err(Rejection::OverlappingNetworks {
                    first: first.spec.name.to_string(),
                    second: name.to_string(),
                });
            }
        }
    }
    Ok(())
}

/// The endpoints of a service with this spec. A network that the service is already on keeps its
/// mesh id and VIP. Endpoints on networks that are no longer in the spec are appended at the end,
/// until [`drop_unused_endpoints`] removes them.
fn endpoints(
    state: &ClusterState,
    allocator: &mut Allocator<'_>,
    spec: &ServiceSpec,
    current: &[ServiceEndpoint],
) -> Result<Vec<ServiceEndpoint>, Rejection> {
    check_networks(state, &spec.task.networks)?;
    if spec.task.uses_ingress() && !state.networks.values().any(|n| n.spec.ingress) {
        return Err(Rejection::Invalid(
            "the cluster has no ingress network for services without --network: choose a network with --network, or \
             create an ingress network with \"weft network create --ingress NAME\""
                .to_owned(),
        ));
    }
    let mut endpoints = Vec::new();
    for network in spec_networks(spec, state) {
        let known = current.iter().find(|e| e.network == network.id);
        let mesh = match known {
            Some(endpoint) => endpoint.mesh,
            None => allocator.allocate_mesh_service(),
        };
        let with_vip = spec.endpoint.mode == EndpointMode::Vip && !network.spec.ingress;
        let vip = match known.and_then(|e| e.vip) {
            Some(vip) if with_vip => Some(vip),
            Some(vip) => {
                allocator.free_address(&network.id, vip, None);
                None
            }
            None if with_vip => Some(allocator.allocate_address(network)?),
            None => None,
        };
        endpoints.push(ServiceEndpoint { network: network.id.clone(), mesh, vip });
    }
    let is_leaving = |e: &&ServiceEndpoint| !endpoints.iter().any(|kept: &ServiceEndpoint| kept.network == e.network);
    let leaving: Vec<_> = current.iter().filter(is_leaving).cloned().collect();
    endpoints.extend(leaving);
    Ok(endpoints)
}

/// The ids of the cluster's networks that a task with this spec is on.
pub(super) fn task_networks(state: &ClusterState, spec: &TaskSpec) -> Vec<NetworkId> {
    if spec.uses_ingress() {
        state.networks.values().filter(|n| n.spec.ingress).map(|n| n.id.clone()).collect()
    } else {
        spec.networks.iter().map(|a| a.network.clone()).collect()
    }
}
