//! Applies random commands, many of which are invalid, and checks that the cluster state stays
//! consistent and that the plan of each node depends only on the cluster state.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use proptest::prelude::*;
use weft_model::{
    ClusterState, Command, NetworkId, NodeId, NodePlan, ServiceId, TaskId,
    command::{AttachContainer, WantedLink},
    spec::{EndpointMode, NetworkSpec, NodeNetwork, ServiceMode},
    state::{NodeStatus, Restarts, Slot, TaskState, Traffic},
};

use crate::{
    fixture::{TestCluster, network_spec, observed, service_spec, subnet_spec, tcp},
    plan::plan,
};

const STATES: [TaskState; 8] = [
    TaskState::Ready,
    TaskState::Starting,
    TaskState::Running,
    TaskState::Complete,
    TaskState::Shutdown,
    TaskState::Failed,
    TaskState::Rejected,
    TaskState::Remove,
];
const TRAFFIC: [Traffic; 4] = [Traffic::Local, Traffic::Active, Traffic::Draining, Traffic::Drained];

/// Random numbers that choose a command and the objects that it is about.
type Draw = (u8, usize, usize, u64);

fn command(cluster: &mut TestCluster, (kind, which, other, number): Draw) -> Command {
    fn nth<'a, K: Clone + 'a>(keys: impl Iterator<Item = &'a K>, nth: usize, none: K) -> K {
        let keys: Vec<&K> = keys.collect();
        keys.get(nth % keys.len().max(1)).map_or(none, |key| (*key).clone())
    }
    let random = cluster.random();
    let state = &cluster.state;
    let node = nth(state.nodes.keys(), which, NodeId::from_random(0));
    let service = nth(state.services.keys(), which, ServiceId::from_random(0));
    let network = nth(state.networks.keys(), other, NetworkId::from_random(0));
    let task = nth(state.tasks.keys(), which, TaskId::from_random(0));
    let version = state.services.get(&service).map_or(0, |s| s.meta.version);
    match kind % 18 {
        0 => {
            let spec = match other % 3 {
                0 => NetworkSpec { attachable: true, ..network_spec(&format!("net{which}")) },
                1 => subnet_spec(&format!("net{which}"), "10.3.0.0/28"),
                _ => subnet_spec(&format!("net{which}"), &format!("10.{}.0.0/29", number % 8)),
            };
            Command::CreateNetwork { id: NetworkId::from_random(random), spec: Box::new(spec) }
        }
        1 => Command::RemoveNetwork { id: network },
        2 | 3 => {
            let second = nth(state.networks.keys(), which, NetworkId::from_random(0));
            let mut spec = service_spec(&format!("svc{which}"), number, &[&network, &second][..other % 3]);
            spec.endpoint.ports = vec![tcp(number.is_multiple_of(2).then_some(8000), 80)];
            Command::CreateService { id: ServiceId::from_random(random), spec: Box::new(spec) }
        }
        4 => {
            let Some(current) = state.services.get(&service) else { return Command::RemoveService { id: service } };
            let mut spec = current.spec.clone();
            spec.task.networks = service_spec("x", 1, &[&network][..other % 2]).task.networks.clone();
            spec.endpoint.mode = if number.is_multiple_of(3) { EndpointMode::Dnsrr } else { EndpointMode::Vip };
            if spec.endpoint.mode == EndpointMode::Dnsrr {
                spec.endpoint.ports.clear();
            }
            if spec.task.networks.is_empty() && spec.endpoint.ports.is_empty() {
                spec.task.node_network = number.is_multiple_of(2).then_some(NodeNetwork::Host);
            }
            spec.mode = ServiceMode::Replicated { replicas: number };
            Command::UpdateService { id: service, version, spec: Box::new(spec) }
        }
        5 => Command::RollbackService {
            id: service,
            version,
            message: String::new(),
            automatic: number.is_multiple_of(2),
        },
        6 if number == 0 => Command::RemoveService { id: service },
        6 => Command::ForgetService { id: service },
        7 | 8 => Command::CreateTask {
            id: TaskId::from_random(random),
            service,
            slot: Slot::Replica(number),
            desired: TaskState::Running,
            not_before_ms: 0,
            restarts: Restarts::default(),
        },
        9 | 10 => Command::AssignTask { id: task, node: nth(state.nodes.keys(), other, node), reuse: BTreeMap::new() },
        11 => Command::SetDesired { id: task, desired: STATES[other % STATES.len()] },
        12 => Command::SetTraffic { id: task, traffic: TRAFFIC[other % TRAFFIC.len()] },
        13 => {
            let node = state.tasks.get(&task).and_then(|t| t.node.clone()).unwrap_or(node);
            Command::ReportTasks { node, tasks: vec![(task, observed(STATES[other % STATES.len()], cluster.now_ms))] }
        }
        14 => match number {
            0 => Command::OrphanTask { id: task },
            1 => Command::RemoveNode { id: node, force: true },
            2 => Command::SetNodeStatus { id: node, status: NodeStatus::Down, message: String::new() },
            _ => Command::ForgetTask { id: task },
        },
        15 => {
            let links =
                [network].into_iter().map(|network| WantedLink { network, v4: None, v6: None, aliases: vec![] });
            let id = nth(state.attached.keys(), which, TaskId::from_random(random));
            let id = if number == 0 { id } else { TaskId::from_random(random) };
            let attach =
                AttachContainer { node, id, identity: None, networks: links.collect(), present: vec![], running: None };
            Command::AttachContainer(Box::new(attach))
        }
        16 => {
            let id = nth(state.attached.keys(), which, TaskId::from_random(0));
            let node = state.attached.get(&id).map_or(node, |container| container.node.clone());
            Command::DetachContainer { node, id, networks: vec![network] }
        }
        _ => {
            let owners = state.nodes.keys().map(|node| (node.clone(), state.index)).collect();
            Command::ReleaseAddresses { acked_index: state.index, owners }
        }
    }
}

fn plan_of(state: &ClusterState, node: &NodeId) -> NodePlan {
    plan(state, node).expect("the plan of a member")
}

fn check(state: &ClusterState) {
    let mut taken = BTreeSet::new();
    let mut take = |network: &NetworkId, addr: weft_model::DualAddr| {
        let subnets = &state.networks[network].subnets;
        for ip in addr.ips() {
            let (_, gateway) = subnets.containing(ip).expect("each address is in a subnet of its network");
            assert_ne!(ip, gateway);
            assert!(taken.insert((network.clone(), ip)), "{ip} was allocated twice");
        }
    };
    for (network, vip) in state.services.values().flat_map(|s| &s.endpoints).filter_map(|e| Some((&e.network, e.vip?)))
    {
        take(network, vip);
    }
    for task in state.tasks.values() {
        assert!(state.services.contains_key(&task.service));
        assert!(task.attachments.is_empty() || !task.status.state.is_terminal(), "an ended task holds addresses");
        task.attachments.iter().for_each(|a| take(&a.network, a.addr));
    }
    for container in state.attached.values() {
        assert!(state.nodes.contains_key(&container.node) && !container.links.is_empty());
        container.links.iter().for_each(|link| take(&link.network, link.addr));
    }
    state.allocated.quarantine.iter().for_each(|f| take(&f.network, f.addr));
    assert!(state.allocated.addresses.keys().eq(state.networks.keys()));
    for (id, addresses) in &state.allocated.addresses {
        let v4 = addresses.used_v4.iter().copied().map(IpAddr::V4);
        let used: BTreeSet<IpAddr> = v4.chain(addresses.used_v6.iter().copied().map(IpAddr::V6)).collect();
        let subnets = &state.networks[id].subnets;
        let never = subnets.iter().flat_map(|(range, gateway)| {
            [Some(range.network()), Some(gateway), range.is_ipv4().then(|| range.broadcast())]
        });
        let allocated = taken.iter().filter(|(network, _)| network == id).map(|(_, ip)| *ip);
        assert_eq!(used, never.flatten().chain(allocated).collect(), "used addresses of network {id}");
    }

    let visible = || state.services.values().filter(|s| !s.removing);
    let ports: Vec<_> = visible().flat_map(|s| &s.ports).map(|p| (p.published, p.spec.protocol)).collect();
    assert_eq!(ports.iter().collect::<BTreeSet<_>>().len(), ports.len(), "a port has two owners");
    let vnis: BTreeSet<_> = state.networks.values().map(|n| n.vni).collect();
    assert_eq!(vnis.len(), state.networks.len(), "a VNI has two networks");

    for node in state.nodes.keys() {
        let later = ClusterState { index: state.index + 1, now_ms: state.now_ms + 1, ..state.clone() };
        let (first, mut second) = (plan_of(state, node), plan_of(&later, node));
        assert_eq!(second.generation, first.generation + 1);
        second.generation = first.generation;
        assert_eq!(first, second, "a plan depends on the time");
        for backend in first.services.iter().flat_map(|s| &s.backends) {
            let known = first.endpoints.iter().any(|e| e.task == backend.task && e.addr == backend.addr);
            assert!(known, "a backend without an endpoint");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_commands_keep_the_cluster_state_consistent(draws in prop::collection::vec((any::<u8>(), 0..12_usize, 0..12_usize, 0..5_u64), 1..200)) {
        let mut cluster = TestCluster::new();
        cluster.node("n2", &[]);
        cluster.node("n3", &["10.5.0.0/16"]);
        let mut backends = 0;
        for draw in draws {
            cluster.now_ms += 5_000;
            let command = command(&mut cluster, draw);
            let _refused = cluster.apply(command).is_err();
            check(&cluster.state);
            prop_assert!(cluster.state.allocated.next_backend >= backends);
            backends = cluster.state.allocated.next_backend;
        }
    }
}
