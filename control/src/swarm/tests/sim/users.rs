//! The users of a run: they ask managers for changes, and remember what was confirmed.

use std::collections::BTreeMap;

use rand::{Rng, rngs::StdRng};
use weft_model::{
    ClusterState, Command, NetworkId, ServiceId,
    spec::{Availability, FailureAction, NodeSpec, Role, ServiceMode, ServiceSpec, UpdateConfig, UpdateOrder},
    state::Service,
};

use crate::{
    fixture::{service_spec, subnet_spec, tcp},
    raft::ProposalId,
};

/// The image whose tasks fail as soon as they have started.
pub(super) const BROKEN: &str = "broken";

/// So many tasks of each service fit into the smallest networks.
const MAX_REPLICAS: u64 = 3;

/// What became of the requests.
#[derive(Debug, Default)]
pub(super) struct Users {
    /// The confirmed changes, and the index that the answer contained.
    pub confirmed: BTreeMap<u128, u64>,
    pub asked: u64,
    pub unknown: u64,
    pub rejected: u64,
}

impl Users {
    pub(super) fn confirm(&mut self, id: ProposalId, index: u64) {
        self.confirmed.insert(id.0, index);
    }
}

fn update_config(rng: &mut StdRng) -> UpdateConfig {
    let actions = [FailureAction::Pause, FailureAction::Continue, FailureAction::Rollback];
    UpdateConfig {
        parallelism: rng.random_range(0..3),
        delay_ms: rng.random_range(0..2_000),
        on_failure: actions[rng.random_range(0..3)],
        monitor_ms: rng.random_range(0..4_000),
        max_failure_permille: 0,
        order: if rng.random_bool(0.5) { UpdateOrder::StopFirst } else { UpdateOrder::StartFirst },
    }
}

fn update(service: &Service, change: impl FnOnce(&mut ServiceSpec)) -> Command {
    let mut spec = service.spec.clone();
    change(&mut spec);
    Command::UpdateService { id: service.id.clone(), version: service.meta.version, spec: Box::new(spec) }
}

fn create_network(rng: &mut StdRng, ids: &mut StdRng) -> Command {
    // So small that addresses are used again.
    let (nth, prefix) = (rng.random_range(0..100), rng.random_range(27..=28));
    let mut spec = subnet_spec(&format!("net{nth}"), &format!("10.1.{nth}.0/{prefix}"));
    spec.encrypted = rng.random_bool(0.3);
    Command::CreateNetwork { id: NetworkId::from_random(ids.random()), spec: Box::new(spec) }
}

/// A change that a user asks for who sees this state.
pub(super) fn choose(state: &ClusterState, rng: &mut StdRng, ids: &mut StdRng) -> Option<Command> {
    let services: Vec<&Service> = state.services.values().filter(|service| !service.removing).collect();
    let networks: Vec<NetworkId> = state.networks.values().filter(|n| !n.spec.ingress).map(|n| n.id.clone()).collect();
    let nodes: Vec<_> = state.nodes.values().collect();
    let service = if services.is_empty() { None } else { Some(services[rng.random_range(0..services.len())]) };
    let node = nodes[rng.random_range(0..nodes.len())];
    let kind = rng.random_range(0..21);
    Some(match kind {
        _ if networks.is_empty() && rng.random_bool(0.3) => create_network(rng, ids),
        0 if networks.len() < 3 => create_network(rng, ids),
        1 if !networks.is_empty() => {
            Command::RemoveNetwork { id: networks[rng.random_range(0..networks.len())].clone() }
        }
        2..5 if services.len() < 3 => {
            let is_global = rng.random_bool(0.25);
            // A task on each node needs more addresses than the smallest networks have.
            let large = |id: &&NetworkId| state.networks[*id].subnets.v4.iter().all(|v4| v4.range.prefix() <= 27);
            let on = networks.iter().filter(|id| !is_global || large(id));
            let on: Vec<&NetworkId> = on.take(rng.random_range(0..=2)).collect();
            let name = format!("service{}", rng.random_range(0..4));
            let mut spec = service_spec(&name, rng.random_range(0..4), &on);
            if rng.random_bool(0.5) {
                spec.endpoint.ports.push(tcp(Some(rng.random_range(8080..8083)), 80));
            }
            if is_global {
                spec.mode = ServiceMode::Global;
            }
            spec.update = update_config(rng);
            Command::CreateService { id: ServiceId::from_random(ids.random()), spec: Box::new(spec) }
        }
        5 => Command::RemoveService { id: service?.id.clone() },
        6..9 => update(service?, |spec| {
            if matches!(spec.mode, ServiceMode::Replicated { .. }) {
                spec.mode = ServiceMode::Replicated { replicas: rng.random_range(0..5) };
            }
        }),
        9..12 => {
            let image =
                if rng.random_bool(0.15) { BROKEN.to_owned() } else { format!("image{}", rng.random_range(0..5)) };
            let config = update_config(rng);
            update(service?, |spec| {
                spec.task.container.image = image;
                spec.update = config;
            })
        }
        12 => {
            let service = service?;
            let (id, version) = (service.id.clone(), service.meta.version);
            Command::RollbackService { id, version, message: String::new(), automatic: false }
        }
        13..15 => {
            let availability = [Availability::Active, Availability::Drain, Availability::Pause][rng.random_range(0..3)];
            let spec = NodeSpec { availability, ..node.spec.clone() };
            Command::UpdateNode { id: node.id.clone(), version: node.meta.version, spec }
        }
        16 => {
            let removable = node.spec.role == Role::Worker && nodes.len() > 3;
            return removable.then(|| Command::RemoveNode { id: node.id.clone(), force: rng.random_bool(0.5) });
        }
        15 => {
            let role = if node.is_manager() { Role::Worker } else { Role::Manager };
            let spec = NodeSpec { role, ..node.spec.clone() };
            Command::UpdateNode { id: node.id.clone(), version: node.meta.version, spec }
        }
        _ => {
            let cluster = state.cluster.as_ref()?;
            let mut spec = cluster.spec.clone();
            spec.labels.insert("label".to_owned(), rng.random_range(0..1_000).to_string());
            Command::UpdateCluster { version: cluster.meta.version, spec }
        }
    })
}

/// A new image for a service, whose tasks are all replaced at once.
pub(super) fn replace_tasks(state: &ClusterState, rng: &mut StdRng) -> Option<Command> {
    let services: Vec<&Service> = state.services.values().filter(|service| !service.removing).collect();
    if services.is_empty() {
        return None;
    }
    Some(update(services[rng.random_range(0..services.len())], |spec| {
        spec.task.container.image = format!("image{}", rng.random_range(0..1_000));
        spec.update = UpdateConfig { parallelism: 0, order: UpdateOrder::StartFirst, ..UpdateConfig::default() };
    }))
}

/// The next change on the way to a state in which every spec can be met: all nodes take tasks, and
/// all images run. `None` if there is nothing to change.
pub(super) fn repair(state: &ClusterState) -> Option<Command> {
    if let Some(node) = state.nodes.values().find(|node| node.spec.availability != Availability::Active) {
        let spec = NodeSpec { availability: Availability::Active, ..node.spec.clone() };
        return Some(Command::UpdateNode { id: node.id.clone(), version: node.meta.version, spec });
    }
    let mut services = state.services.values().filter(|service| !service.removing);
    let broken = services.find(|service| service.spec.task.container.image != "last")?;
    Some(update(broken, |spec| {
        spec.task.container.image = "last".to_owned();
        if let ServiceMode::Replicated { replicas } = &mut spec.mode {
            *replicas = (*replicas).min(MAX_REPLICAS);
        }
        spec.update = UpdateConfig { parallelism: 0, monitor_ms: 500, ..UpdateConfig::default() };
    }))
}

/// The change of the heartbeat interval.
pub(super) fn heartbeat(state: &ClusterState, heartbeat_ms: u64) -> Option<Command> {
    let cluster = state.cluster.as_ref()?;
    let mut spec = cluster.spec.clone();
    spec.heartbeat_ms = heartbeat_ms;
    Some(Command::UpdateCluster { version: cluster.meta.version, spec })
}
