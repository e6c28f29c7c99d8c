//! Applies random events in a random order. The simulator checks that they violate no invariant.
//! After the last event the cluster must converge to the specs of its services.

use proptest::prelude::*;
use weft_model::{
    Command, NetworkId, NodeId, ServiceId,
    spec::{Availability, FailureAction, NetworkSpec, ServiceMode, UpdateConfig, UpdateOrder},
    state::UpdateState,
};

use super::sim::{Delays, Sim};
use crate::fixture::{network_spec, service_spec, tcp};

#[derive(Debug, Clone, Copy)]
enum Event {
    Wait(u64),
    Scale { service: usize, replicas: u64 },
    Update { service: usize, update: UpdateConfig, image: u8 },
    Rollback { service: usize },
    MoveToNetwork { service: usize, network: usize },
    Drain { node: usize },
    Activate { node: usize },
    Pause { node: usize },
    // Publishes the first service at another port.
    Publish { port: u16 },
    // Another service publishes this port, if it is free.
    TakePort { port: u16 },
    Recreate { service: usize },
    ChangeLeader,
    // Only in clusters with faults.
    Break { service: usize },
    Crash { task: usize },
    Kill { node: usize },
    KillDaemon { node: usize },
    Block { node: usize },
    Revive { node: usize },
}

const SERVICES: usize = 2;
const NODES: usize = 3;

fn update() -> impl Strategy<Value = UpdateConfig> {
    let order = prop_oneof![Just(UpdateOrder::StopFirst), Just(UpdateOrder::StartFirst)];
    let action = prop_oneof![Just(FailureAction::Pause), Just(FailureAction::Continue), Just(FailureAction::Rollback)];
    (0..3_u64, 0..3_000_u64, 0..6_000_u64, order, action).prop_map(
        |(parallelism, delay_ms, monitor_ms, order, action)| UpdateConfig {
            parallelism,
            delay_ms,
            on_failure: action,
            monitor_ms,
            max_failure_permille: 0,
            order,
        },
    )
}

/// Requests of users, and a change of the leader.
fn user_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..8_000_u64).prop_map(Event::Wait),
        3 => (0..SERVICES, 0..6_u64).prop_map(|(service, replicas)| Event::Scale { service, replicas }),
        3 => (0..SERVICES, update(), 0..3_u8).prop_map(|(service, update, image)| Event::Update { service, update, image }),
        1 => (0..SERVICES).prop_map(|service| Event::Rollback { service }),
        1 => (0..SERVICES, 0..3_usize).prop_map(|(service, network)| Event::MoveToNetwork { service, network }),
        1 => (0..NODES).prop_map(|node| Event::Drain { node }),
        1 => (0..NODES).prop_map(|node| Event::Activate { node }),
        1 => (0..NODES).prop_map(|node| Event::Pause { node }),
        1 => (8080..8082_u16).prop_map(|port| Event::Publish { port }),
        1 => (8080..8082_u16).prop_map(|port| Event::TakePort { port }),
        1 => (0..SERVICES).prop_map(|service| Event::Recreate { service }),
        1 => Just(Event::ChangeLeader),
    ]
}

/// The events of [`user_event`], and failures of tasks and nodes.
fn any_event() -> impl Strategy<Value = Event> {
    prop_oneof![
        6 => user_event(),
        1 => (0..SERVICES).prop_map(|service| Event::Break { service }),
        1 => (0..20_usize).prop_map(|task| Event::Crash { task }),
        1 => (0..NODES).prop_map(|node| Event::Kill { node }),
        1 => (0..NODES).prop_map(|node| Event::KillDaemon { node }),
        1 => (0..NODES).prop_map(|node| Event::Block { node }),
        1 => (0..NODES).prop_map(|node| Event::Revive { node }),
    ]
}

pub(super) fn delays() -> impl Strategy<Value = Delays> {
    (0..3_000_u64, 0..2_000_u64, 0..4_000_u64, 0..1_000_u64)
        .prop_map(|(plan_ms, start_ms, stop_ms, report_ms)| Delays { plan_ms, start_ms, stop_ms, report_ms })
}

/// A cluster with a replicated and a global service, to which events are applied.
struct Scenario {
    sim: Sim,
    services: Vec<ServiceId>,
    /// A service without tasks, which publishes a port that the first service may need.
    port_taker: Option<ServiceId>,
    nodes: Vec<NodeId>,
    networks: Vec<NetworkId>,
}

impl Scenario {
    fn new(delays: &[Delays]) -> Self {
        let mut sim = Sim::new(NODES - 1);
        sim.broken_images.insert("broken".to_owned());
        let nodes = sim.node_ids();
        for (node, delays) in nodes.iter().zip(delays) {
            sim.set_delays(node, *delays);
        }
        let data = NetworkSpec { encrypted: true, ..network_spec("data") };
        let networks: Vec<_> = [network_spec("app"), data].map(|spec| sim.cluster.add_network(spec)).into();
        let mut web = service_spec("web", 3, &[&networks[0]]);
        web.endpoint.ports.push(tcp(Some(8080), 80));
        let mut agent = service_spec("agent", 0, &[]);
        agent.mode = ServiceMode::Global;
        let services = vec![sim.create(web), sim.create(agent)];
        sim.settle();
        Self { sim, services, port_taker: None, nodes, networks }
    }

    fn apply(&mut self, event: Event) {
        let sim = &mut self.sim;
        match event {
            Event::Wait(duration_ms) => sim.run(duration_ms),
            Event::Scale { service, replicas } => self.update(service, |spec| {
                if matches!(spec.mode, ServiceMode::Replicated { .. }) {
                    spec.mode = ServiceMode::Replicated { replicas };
                }
            }),
            Event::Update { service, update, image } => self.update(service, |spec| {
                spec.update = update;
                spec.task.container.image = format!("image{image}");
            }),
            Event::MoveToNetwork { service, network } => {
                let network = self.networks.get(network).into_iter();
                let networks = service_spec("x", 1, &network.collect::<Vec<_>>()).task.networks.clone();
                self.update(service, |spec| spec.task.networks = networks);
            }
            Event::Break { service } => {
                sim.fault_injected = true;
                self.update(service, |spec| spec.task.container.image = "broken".to_owned());
            }
            Event::Rollback { service } => {
                let service = &sim.state().services[&self.services[service]];
                let (id, version) = (service.id.clone(), service.meta.version);
                let command = Command::RollbackService { id, version, message: String::new(), automatic: false };
                // There may be no previous spec, or its port may belong to another service.
                _ = sim.cluster.apply(command);
                sim.settle();
            }
            Event::Publish { port } => {
                _ = sim.cluster.update(&self.services[0], |spec| spec.endpoint.ports = vec![tcp(Some(port), 80)]);
                sim.settle();
            }
            Event::TakePort { port } => {
                self.free_port();
                let mut spec = service_spec("taker", 0, &[]);
                spec.endpoint.ports.push(tcp(Some(port), 80));
                self.port_taker = self.sim.cluster.service(spec).ok();
                self.sim.settle();
            }
            Event::Drain { node } => self.set_availability(node, Availability::Drain),
            Event::Pause { node } => self.set_availability(node, Availability::Pause),
            Event::Activate { node } => self.set_availability(node, Availability::Active),
            Event::Recreate { service } => {
                let id = self.services[service].clone();
                let spec = sim.state().services[&id].spec.clone();
                sim.submit(Command::RemoveService { id });
                self.services[service] = sim.create(spec);
            }
            Event::ChangeLeader => sim.change_leader(),
            Event::Crash { task } => {
                let tasks: Vec<_> = sim.state().tasks.keys().cloned().collect();
                if let Some(task) = tasks.get(task % tasks.len().max(1)) {
                    sim.crash(task);
                }
            }
            Event::Kill { node } => sim.kill_node(&self.nodes[node]),
            Event::KillDaemon { node } => sim.kill_daemon(&self.nodes[node]),
            Event::Block { node } => sim.block_node(&self.nodes[node]),
            Event::Revive { node } => sim.revive_node(&self.nodes[node]),
        }
    }

    fn update(&mut self, service: usize, change: impl FnOnce(&mut weft_model::spec::ServiceSpec)) {
        self.sim.cluster.update_service(&self.services[service], change);
        self.sim.settle();
    }

    fn free_port(&mut self) {
        if let Some(id) = self.port_taker.take() {
            self.sim.submit(Command::RemoveService { id });
        }
    }

    fn set_availability(&mut self, node: usize, availability: Availability) {
        let node = &self.sim.state().nodes[&self.nodes[node]];
        let (id, version, mut spec) = (node.id.clone(), node.meta.version, node.spec.clone());
        spec.availability = availability;
        self.sim.submit(Command::UpdateNode { id, version, spec });
    }

    /// Checks that every update ends, completed or paused, although some nodes take no tasks and
    /// some specs cannot run.
    fn check_updates_end(&mut self) {
        let runs = |state: UpdateState| matches!(state, UpdateState::Updating | UpdateState::RollbackStarted);
        self.sim.run_until_within(900_000, "every update to end", |sim| {
            // A removed service stays until its last task has ended. On a stuck node none ends.
            let services = sim.state().services.values().filter(|s| !s.removing);
            services.filter_map(|s| s.update.as_ref()).all(|update| !runs(update.state))
        });
    }

    /// Checks that drained nodes are empty, whether the tasks have another place or not.
    fn check_drained_nodes_are_empty(&mut self) {
        self.sim.run_until_within(900_000, "the drained nodes to be empty", |sim| {
            let drained = sim.state().nodes.values().filter(|n| n.spec.availability == Availability::Drain);
            drained.filter(|n| n.has_converged()).all(|n| sim.task_processes(&n.id).is_empty())
        });
    }

    /// Repairs all nodes and images, and checks that the services then converge to their specs, and
    /// that the cluster state stops changing.
    fn check_convergence(mut self) {
        self.check_updates_end();
        self.check_drained_nodes_are_empty();
        self.free_port();
        for node in 0..NODES {
            self.apply(Event::Revive { node });
            self.apply(Event::Activate { node });
        }
        for service in 0..SERVICES {
            self.update(service, |spec| {
                spec.update = UpdateConfig::default();
                spec.task.container.image = "last".to_owned();
            });
        }
        let services = self.services.clone();
        self.sim.run_until("the services to match their specs", |sim| {
            services.iter().all(|id| {
                let service = &sim.state().services[id];
                let wanted = match service.spec.mode {
                    ServiceMode::Replicated { replicas } => usize::try_from(replicas).expect("a small number"),
                    ServiceMode::Global => NODES,
                };
                let active = sim.active(id);
                let live = sim.state().tasks_of(id).filter(|t| !t.status.state.is_terminal()).count();
                let updated = service.update.as_ref().is_none_or(|u| u.state == UpdateState::Completed);
                updated
                    && active.len() == wanted
                    && live == wanted
                    && active.iter().all(|t| t.spec == service.spec.task)
            })
        });
        self.sim.run(40_000);
        assert_eq!(self.sim.state().services.len(), SERVICES);
        assert!(
            self.sim.state().services.values().all(|s| s.endpoints.len() == 1),
            "an endpoint on a former network is left"
        );
        assert!(self.sim.state().allocated.quarantine.is_empty());
        let index = self.sim.state().index;
        self.sim.run(20_000);
        assert_eq!(self.sim.state().index, index, "the cluster state does not stop changing");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn clusters_without_faults_lose_no_request_and_converge(
        delays in prop::collection::vec(delays(), NODES),
        events in prop::collection::vec(user_event(), 1..20),
    ) {
        let mut scenario = Scenario::new(&delays);
        for event in events {
            scenario.apply(event);
        }
        scenario.check_convergence();
    }

    #[test]
    fn clusters_with_faults_converge(
        delays in prop::collection::vec(delays(), NODES),
        events in prop::collection::vec(any_event(), 1..25),
    ) {
        let mut scenario = Scenario::new(&delays);
        for event in events {
            scenario.apply(event);
        }
        scenario.check_convergence();
    }
}
