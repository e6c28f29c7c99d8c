//! A cluster state for the tests of this crate: a cluster of one manager, and short methods that
//! add nodes, networks, services and tasks to it. It checks that each refused command changes only
//! the index and the clock of the cluster state.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    str::FromStr,
};

use ipnetwork::IpNetwork;
use weft_model::{
    Applied, ClusterState, Command, DEFAULT_TUNNEL_PORT, Entry, NetworkId, NodeId, Rejection, ServiceId, TaskId,
    command::{InitCluster, JoinNode},
    id::ClusterId,
    report::NodeDescription,
    spec::{
        Availability, ClusterSpec, ContainerSpec, NetworkAttachment, NetworkSpec, NodeSpec, PortSpec, Protocol, Role,
        ServiceMode, ServiceSpec, SubnetSpec,
    },
    state::{Cluster, FEATURE_LEVEL, Network, Node, NodeStatus, Restarts, Slot, TaskState, TaskStatus},
    wireguard::EncryptionSupport,
};

use crate::state::apply;

/// When the test cluster is created, in Unix milliseconds.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

#[derive(Debug, Clone)]
pub(crate) struct TestCluster {
    pub(crate) state: ClusterState,
    pub(crate) now_ms: u64,
    next_random: u128,
}

impl TestCluster {
    /// The state before a cluster is initialised.
    pub(crate) fn empty() -> Self {
        Self { state: ClusterState::default(), now_ms: START_MS, next_random: 1 }
    }

    /// A cluster whose first manager, `n1`, is ready.
    pub(crate) fn new() -> Self {
        let mut cluster = Self::empty();
        let init = cluster.init();
        let id = init.node.id.clone();
        cluster.ok(Command::InitCluster(Box::new(init)));
        cluster.ready(&id, &[]);
        cluster
    }

    /// The command that initialises the cluster with the manager `n1`.
    pub(crate) fn init(&mut self) -> InitCluster {
        InitCluster {
            id: ClusterId::from_random(self.random()),
            spec: ClusterSpec::default(),
            tunnel_port: DEFAULT_TUNNEL_PORT,
            ca_cert_pem: String::new(),
            ca_key_sealed: Vec::new(),
            worker_secret: "worker".to_owned(),
            manager_secret: "manager".to_owned(),
            ingress: NetworkId::from_random(self.random()),
            node: self.joining("n1", Role::Manager),
            feature_level: FEATURE_LEVEL,
            unlock_key: None,
        }
    }

    /// The command by which a node joins.
    pub(crate) fn joining(&mut self, hostname: &str, role: Role) -> JoinNode {
        let host = u8::try_from(self.state.nodes.len() + 1).expect("fewer than 255 nodes");
        let addr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, host));
        JoinNode {
            id: NodeId::from_random(self.random()),
            hostname: parse(hostname),
            role,
            availability: Availability::Active,
            addr,
            tunnel_addr: addr,
            rpc_addr: SocketAddr::new(addr, 2377),
        }
    }

    /// Bits for a new id. They are not random, but never repeat.
    pub(crate) fn random(&mut self) -> u128 {
        self.next_random += 1;
        self.next_random
    }

    /// Applies a command at the next index.
    pub(crate) fn apply(&mut self, command: Command) -> Result<Applied, Rejection> {
        let before = self.state.clone();
        let index = before.index + 1;
        let applied = apply(&mut self.state, index, Entry { now_ms: self.now_ms, command });
        if applied.is_err() {
            let unchanged = ClusterState { index, now_ms: self.state.now_ms, ..before };
            assert_eq!(self.state, unchanged, "a refused command changed the cluster state");
        }
        applied
    }

    /// Applies a command that must be accepted.
    pub(crate) fn ok(&mut self, command: Command) -> Applied {
        match self.apply(command) {
            Ok(applied) => applied,
            Err(refused) => panic!("refused: {refused}"),
        }
    }

    /// Adds a worker that is ready and has these routes.
    pub(crate) fn node(&mut self, hostname: &str, routes: &[&str]) -> NodeId {
        let join = self.joining(hostname, Role::Worker);
        let id = join.id.clone();
        self.ok(Command::JoinNode(Box::new(join)));
        self.ready(&id, routes);
        id
    }

    pub(crate) fn first_node(&self) -> NodeId {
        self.state.nodes.values().find(|n| n.raft_id == 1).expect("the first manager").id.clone()
    }

    pub(crate) fn node_named(&self, hostname: &str) -> &Node {
        self.state.nodes.values().find(|n| n.hostname.as_str() == hostname).expect("a node with this host name")
    }

    pub(crate) fn settings(&self) -> &Cluster {
        self.state.cluster.as_ref().expect("an initialised cluster")
    }

    pub(crate) fn ingress(&self) -> &Network {
        self.state.network_by_name("ingress").expect("the ingress network")
    }

    /// Records the description of a node, with these routes, and sets its status to ready.
    pub(crate) fn ready(&mut self, id: &NodeId, routes: &[&str]) {
        self.ok(Command::DescribeNode { node: id.clone(), description: Box::new(description(routes)) });
        self.status(id, NodeStatus::Ready);
    }

    pub(crate) fn status(&mut self, id: &NodeId, status: NodeStatus) {
        self.ok(Command::SetNodeStatus { id: id.clone(), status, message: String::new() });
    }

    /// Creates a network, which may be refused.
    pub(crate) fn network(&mut self, spec: NetworkSpec) -> Result<NetworkId, Rejection> {
        let id = NetworkId::from_random(self.random());
        self.apply(Command::CreateNetwork { id: id.clone(), spec: Box::new(spec) }).map(|_| id)
    }

    /// Creates a network.
    pub(crate) fn add_network(&mut self, spec: NetworkSpec) -> NetworkId {
        self.network(spec).expect("the network is created")
    }

    /// Creates a service, which may be refused.
    pub(crate) fn service(&mut self, spec: ServiceSpec) -> Result<ServiceId, Rejection> {
        let id = ServiceId::from_random(self.random());
        self.apply(Command::CreateService { id: id.clone(), spec: Box::new(spec) }).map(|_| id)
    }

    /// Creates a service.
    pub(crate) fn add_service(&mut self, spec: ServiceSpec) -> ServiceId {
        self.service(spec).expect("the service is created")
    }

    /// Changes the spec of a service, which may be refused.
    pub(crate) fn update(&mut self, id: &ServiceId, change: impl FnOnce(&mut ServiceSpec)) -> Result<(), Rejection> {
        let service = &self.state.services[id];
        let (version, mut spec) = (service.meta.version, service.spec.clone());
        change(&mut spec);
        self.apply(Command::UpdateService { id: id.clone(), version, spec: Box::new(spec) }).map(|_| ())
    }

    /// Changes the spec of a service.
    pub(crate) fn update_service(&mut self, id: &ServiceId, change: impl FnOnce(&mut ServiceSpec)) {
        self.update(id, change).expect("the service is updated");
    }

    /// Changes the spec of a node.
    pub(crate) fn update_node(&mut self, hostname: &str, change: impl FnOnce(&mut NodeSpec)) {
        let node = self.node_named(hostname);
        let (id, version, mut spec) = (node.id.clone(), node.meta.version, node.spec.clone());
        change(&mut spec);
        self.ok(Command::UpdateNode { id, version, spec });
    }

    /// Creates a task in a slot of a service.
    pub(crate) fn task(&mut self, service: &ServiceId, slot: u64) -> TaskId {
        let id = TaskId::from_random(self.random());
        self.ok(Command::CreateTask {
            id: id.clone(),
            service: service.clone(),
            slot: Slot::Replica(slot),
            desired: TaskState::Running,
            not_before_ms: 0,
            restarts: Restarts::default(),
        });
        id
    }

    /// Creates a task in a slot of a service, which runs on this node.
    pub(crate) fn running_task(&mut self, service: &ServiceId, slot: u64, node: &NodeId) -> TaskId {
        let id = self.task(service, slot);
        self.ok(Command::AssignTask { id: id.clone(), node: node.clone(), reuse: BTreeMap::new() });
        self.observe(&id, TaskState::Running);
        id
    }

    /// Applies a report of this state from the task's node.
    pub(crate) fn observe(&mut self, id: &TaskId, state: TaskState) {
        let node = self.state.tasks[id].node.clone().expect("a task with a node");
        let tasks = vec![(id.clone(), observed(state, self.now_ms))];
        self.ok(Command::ReportTasks { node, tasks });
    }
}

/// Parses text that is valid.
pub(crate) fn parse<T: FromStr<Err: Debug>>(text: &str) -> T {
    text.parse().expect("valid text")
}

/// A node's report of a task in this state.
pub(crate) fn observed(state: TaskState, since_ms: u64) -> TaskStatus {
    TaskStatus {
        state,
        since_ms,
        message: state.as_str().to_owned(),
        error: String::new(),
        exit_code: state.is_terminal().then_some(i32::from(state == TaskState::Failed)),
        container: None,
        pid: None,
    }
}

/// A node with 4 CPUs, 8 GiB and these routes.
pub(crate) fn description(routes: &[&str]) -> NodeDescription {
    NodeDescription {
        os: "linux".to_owned(),
        arch: "x86_64".to_owned(),
        nano_cpus: 4_000_000_000,
        memory_bytes: 8 << 30,
        version: "0.1.0".to_owned(),
        runtime: "process".to_owned(),
        engine_labels: Default::default(),
        addresses: Vec::new(),
        routes: routes.iter().map(|r| parse::<IpNetwork>(r)).collect(),
        encryption: EncryptionSupport::Kernel,
    }
}

pub(crate) fn network_spec(name: &str) -> NetworkSpec {
    NetworkSpec::new(parse(name))
}

/// A network with this subnet.
pub(crate) fn subnet_spec(name: &str, subnet: &str) -> NetworkSpec {
    NetworkSpec { v4: vec![SubnetSpec::new(parse(subnet))], ..network_spec(name) }
}

/// A service of `replicas` tasks on these networks.
pub(crate) fn service_spec(name: &str, replicas: u64, networks: &[&NetworkId]) -> ServiceSpec {
    let attach = |network: &&NetworkId| NetworkAttachment { network: (*network).clone(), aliases: Vec::new() };
    let mut spec = ServiceSpec::new(parse(name), ContainerSpec::new("weft/whoami"));
    spec.mode = ServiceMode::Replicated { replicas };
    spec.task.networks = networks.iter().map(attach).collect();
    spec
}

pub(crate) fn tcp(published: Option<u16>, target: u16) -> PortSpec {
    PortSpec { protocol: Protocol::Tcp, target, published }
}
