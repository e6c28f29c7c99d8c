//! A table to test with: a cluster of one manager, and short ways to make it grow. Every command that it applies is
//! checked: a refused one changes nothing but the table's index and clock.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnetwork::IpNetwork;
use weft_model::{
    Applied, ClusterState, Command, Entry, NetworkId, NodeId, Rejection, ServiceId, TaskId,
    command::{InitCluster, JoinNode},
    id::ClusterId,
    report::NodeDescription,
    spec::{
        Availability, ClusterSpec, ContainerSpec, EndpointMode, EndpointSpec, NetworkAttachment, NetworkSpec,
        Placement, PortSpec, Protocol, Resources, RestartPolicy, Role, ServiceMode, ServiceSpec, SubnetSpec, TaskSpec,
        UpdateConfig,
    },
    state::{NodeStatus, Slot, TaskState, TaskStatus},
};

use crate::state::apply;

/// When the tests' cluster was made.
pub(crate) const START_MS: u64 = 1_700_000_000_000;

#[derive(Debug, Clone)]
pub(crate) struct TestCluster {
    pub(crate) state: ClusterState,
    pub(crate) now_ms: u64,
    next_random: u128,
}

impl TestCluster {
    /// No cluster yet.
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

    pub(crate) fn init(&mut self) -> InitCluster {
        InitCluster {
            id: ClusterId::from_random(self.random()),
            spec: ClusterSpec::default(),
            ca_cert_pem: String::new(),
            ca_key_sealed: Vec::new(),
            worker_secret: "worker".to_owned(),
            manager_secret: "manager".to_owned(),
            ingress: NetworkId::from_random(self.random()),
            node: self.joining("n1", Role::Manager),
        }
    }

    pub(crate) fn joining(&mut self, hostname: &str, role: Role) -> JoinNode {
        let host = u8::try_from(self.state.nodes.len() + 1).unwrap();
        let addr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, host));
        JoinNode {
            id: NodeId::from_random(self.random()),
            hostname: hostname.parse().unwrap(),
            role,
            availability: Availability::Active,
            addr,
            rpc_addr: SocketAddr::new(addr, 2377),
        }
    }

    pub(crate) fn random(&mut self) -> u128 {
        self.next_random += 1;
        self.next_random
    }

    pub(crate) fn apply(&mut self, command: Command) -> Result<Applied, Rejection> {
        let before = self.state.clone();
        let index = before.index + 1;
        let applied = apply(&mut self.state, index, Entry { now_ms: self.now_ms, command });
        if applied.is_err() {
            let unchanged = ClusterState { index, now_ms: self.state.now_ms, ..before };
            assert_eq!(self.state, unchanged, "a refused command changed the cluster");
        }
        applied
    }

    pub(crate) fn ok(&mut self, command: Command) -> Applied {
        match self.apply(command) {
            Ok(applied) => applied,
            Err(refused) => panic!("refused: {refused}"),
        }
    }

    /// A worker that is ready and has these routes.
    pub(crate) fn node(&mut self, hostname: &str, routes: &[&str]) -> NodeId {
        let join = self.joining(hostname, Role::Worker);
        let id = join.id.clone();
        self.ok(Command::JoinNode(Box::new(join)));
        self.ready(&id, routes);
        id
    }

    pub(crate) fn first_node(&self) -> NodeId {
        self.state.nodes.values().find(|n| n.raft_id == 1).unwrap().id.clone()
    }

    pub(crate) fn ready(&mut self, id: &NodeId, routes: &[&str]) {
        self.ok(Command::DescribeNode { node: id.clone(), description: Box::new(description(routes)) });
        self.status(id, NodeStatus::Ready);
    }

    pub(crate) fn status(&mut self, id: &NodeId, status: NodeStatus) {
        self.ok(Command::SetNodeStatus { id: id.clone(), status, message: String::new() });
    }

    pub(crate) fn network(&mut self, spec: NetworkSpec) -> Result<NetworkId, Rejection> {
        let id = NetworkId::from_random(self.random());
        self.apply(Command::CreateNetwork { id: id.clone(), spec: Box::new(spec) }).map(|_| id)
    }

    pub(crate) fn service(&mut self, spec: ServiceSpec) -> Result<ServiceId, Rejection> {
        let id = ServiceId::from_random(self.random());
        self.apply(Command::CreateService { id: id.clone(), spec: Box::new(spec) }).map(|_| id)
    }

    /// The service's spec, changed.
    pub(crate) fn update(&mut self, id: &ServiceId, change: impl FnOnce(&mut ServiceSpec)) -> Result<(), Rejection> {
        let service = &self.state.services[id];
        let (version, mut spec) = (service.meta.version, service.spec.clone());
        change(&mut spec);
        self.apply(Command::UpdateService { id: id.clone(), version, spec: Box::new(spec) }).map(|_| ())
    }

    /// A new task of this service.
    pub(crate) fn task(&mut self, service: &ServiceId, slot: u64) -> TaskId {
        let id = TaskId::from_random(self.random());
        self.ok(Command::CreateTask {
            id: id.clone(),
            service: service.clone(),
            slot: Slot::Replica(slot),
            desired: TaskState::Running,
            not_before_ms: 0,
            attempts: 0,
        });
        id
    }

    /// A new task of this service that runs on this node.
    pub(crate) fn running_task(&mut self, service: &ServiceId, slot: u64, node: &NodeId) -> TaskId {
        let id = self.task(service, slot);
        self.ok(Command::AssignTask { id: id.clone(), node: node.clone() });
        self.observe(&id, TaskState::Running);
        id
    }

    /// The task's node reports this state.
    pub(crate) fn observe(&mut self, id: &TaskId, state: TaskState) {
        let node = self.state.tasks[id].node.clone().unwrap();
        let tasks = vec![(id.clone(), observed(state, self.now_ms))];
        self.ok(Command::ReportTasks { node, tasks });
    }
}

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

/// A machine of 4 CPUs and 8 GiB.
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
        routes: routes.iter().map(|r| r.parse::<IpNetwork>().unwrap()).collect(),
    }
}

pub(crate) fn network_spec(name: &str) -> NetworkSpec {
    NetworkSpec {
        name: name.parse().unwrap(),
        labels: Default::default(),
        v4: None,
        v6: None,
        ipv6: false,
        internal: false,
    }
}

/// A network with this subnet.
pub(crate) fn subnet_spec(name: &str, subnet: &str) -> NetworkSpec {
    let v4 = SubnetSpec { subnet: subnet.parse().unwrap(), gateway: None, ip_range: None };
    NetworkSpec { v4: Some(v4), ..network_spec(name) }
}

/// A service of `replicas` tasks on these networks.
pub(crate) fn service_spec(name: &str, replicas: u64, networks: &[&NetworkId]) -> ServiceSpec {
    let attach = |network: &&NetworkId| NetworkAttachment { network: (*network).clone(), aliases: Vec::new() };
    ServiceSpec {
        name: name.parse().unwrap(),
        labels: Default::default(),
        task: TaskSpec {
            container: ContainerSpec::new("weft/whoami"),
            resources: Resources::default(),
            restart: RestartPolicy::default(),
            placement: Placement::default(),
            networks: networks.iter().map(attach).collect(),
            force_update: 0,
        },
        mode: ServiceMode::Replicated { replicas },
        update: UpdateConfig::default(),
        rollback: UpdateConfig::default(),
        endpoint: EndpointSpec { mode: EndpointMode::Vip, ports: Vec::new() },
    }
}

pub(crate) fn tcp(published: Option<u16>, target: u16) -> PortSpec {
    PortSpec { protocol: Protocol::Tcp, target, published }
}
