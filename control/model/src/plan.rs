//! What one node must make true: a function of the table and the node. Each layer of the node takes the part that it
//! owns; none of them sees the table. Lists are in the order of their ids, so equal plans compare equal.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    BackendId, DualAddr, Mac, MeshServiceId, NetworkId, NetworkName, NodeId, NodeName, ServiceId, ServiceName, TaskId,
    Vni,
    id::ClusterId,
    net::Subnets,
    spec::{ContainerSpec, Labels, Protocol, Resources, Role},
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodePlan {
    /// Raft index of the table that this was computed from; acked once the kernel holds it.
    pub generation: u64,
    pub cluster: ClusterId,
    pub node: NodeId,
    pub hostname: NodeName,
    /// Trails a promotion or demotion: the node renews its certificate for this role.
    pub role: Role,
    /// This node's own address in the cluster: its end of the tunnels.
    pub addr: IpAddr,
    pub managers: Vec<ManagerPlan>,
    /// How often to say that this node is alive.
    pub heartbeat_ms: u64,
    /// Every other node of the cluster, down or not: the trusted tunnel endpoints.
    pub peers: Vec<PeerPlan>,
    /// Every network. Cheap, and a published port may lead to any.
    pub networks: Vec<NetworkPlan>,
    /// Every service, once for each network that it is on.
    pub services: Vec<ServicePlan>,
    pub ports: Vec<PortPlan>,
    /// Every address of a live task in the cluster, local ones included: where to send a packet for it.
    pub endpoints: Vec<EndpointPlan>,
    /// This node's tasks.
    pub tasks: Vec<TaskPlan>,
}

impl NodePlan {
    /// The plan of a worker of a cluster that has no services: a base that callers fill in.
    ///
    /// # Panics
    /// Never: the host name it sets is valid.
    pub fn empty(node: NodeId, addr: IpAddr) -> Self {
        Self {
            generation: 1,
            cluster: ClusterId::from_random(1),
            node,
            hostname: "n1".parse().expect("a valid node name"),
            role: Role::Worker,
            addr,
            managers: Vec::new(),
            heartbeat_ms: 5_000,
            peers: Vec::new(),
            networks: Vec::new(),
            services: Vec::new(),
            ports: Vec::new(),
            endpoints: Vec::new(),
            tasks: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManagerPlan {
    pub node: NodeId,
    pub rpc_addr: SocketAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerPlan {
    pub node: NodeId,
    pub addr: IpAddr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkPlan {
    pub id: NetworkId,
    pub name: NetworkName,
    pub vni: Vni,
    pub subnets: Subnets,
    /// Names have AAAA records.
    pub ipv6: bool,
    /// No way out to the outside.
    pub internal: bool,
    /// The built-in one: no names, and its tasks cannot reach each other.
    pub ingress: bool,
}

/// A service on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServicePlan {
    pub mesh: MeshServiceId,
    pub service: ServiceId,
    pub name: ServiceName,
    pub aliases: Vec<String>,
    pub network: NetworkId,
    /// `None`: the name resolves to the tasks' addresses.
    pub vip: Option<DualAddr>,
    /// `service rm` was asked: its flows go on, but neither its name nor its aliases resolve any more (another service may
    /// have the same name already).
    pub removing: bool,
    /// Those that this node may know now: another node's task is missing until its own node delivers to it.
    pub backends: Vec<BackendPlan>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackendPlan {
    pub id: BackendId,
    pub task: TaskId,
    /// The task's name, which resolves too.
    pub task_name: String,
    pub node: NodeId,
    pub addr: DualAddr,
    /// Keeps its flows, takes no new one, and no name resolves to it.
    pub draining: bool,
}

/// A port of every address of this node, balanced over the service's backends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortPlan {
    pub port: u16,
    pub protocol: Protocol,
    /// The service on the network of its tasks' eth0.
    pub mesh: MeshServiceId,
    pub target: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointPlan {
    pub network: NetworkId,
    pub task: TaskId,
    pub node: NodeId,
    pub addr: DualAddr,
    pub mac: Mac,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskPlan {
    pub id: TaskId,
    pub service: ServiceId,
    pub service_name: ServiceName,
    /// `<service>.<slot>.<id>`: the container's name.
    pub name: String,
    /// Templates expanded.
    pub container: ContainerSpec,
    pub resources: Resources,
    /// What the cluster labels the container with (`com.docker.swarm.…`), beside the container's own labels.
    pub labels: Labels,
    /// In the spec's order: the first is eth0 and holds the default route.
    pub attachments: Vec<AttachmentPlan>,
    pub desired: TaskGoal,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachmentPlan {
    pub network: NetworkId,
    pub vni: Vni,
    pub subnets: Subnets,
    pub addr: DualAddr,
    pub mac: Mac,
}

/// What the runtime shall do with a task. A task that is in no plan any more is stopped at once and removed; one that has
/// ended stays in the plan, to be stopped, as long as it is in the history, so that its logs can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskGoal {
    /// Prepare it, and hold it there.
    Ready,
    Run,
    Stop,
}
