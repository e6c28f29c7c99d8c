//! The only way to change the table. A command carries everything that apply may not find out by itself: the leader's
//! clock, random ids, secrets. Apply answers each with what it did or why it refused; a refused command changes nothing
//! but the table's index and clock.

use std::net::{IpAddr, SocketAddr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{
    NetworkId, NodeId, NodeName, ServiceId, TaskId,
    id::ClusterId,
    report::NodeDescription,
    spec::{Availability, ClusterSpec, NetworkSpec, NodeSpec, Role, ServiceSpec},
    state::{NodeStatus, Slot, TaskState, TaskStatus, Traffic, UpdateStatus},
};

/// What the Raft log holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The leader's clock when it proposed, in Unix milliseconds.
    pub now_ms: u64,
    pub command: Command,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// All of them or, at the first refusal, none.
    Batch(Vec<Command>),

    // Asked by users.
    InitCluster(Box<InitCluster>),
    UpdateCluster {
        version: u64,
        spec: ClusterSpec,
    },
    RotateToken {
        role: Role,
        secret: String,
    },
    JoinNode(Box<JoinNode>),
    UpdateNode {
        id: NodeId,
        version: u64,
        spec: NodeSpec,
    },
    RemoveNode {
        id: NodeId,
        force: bool,
    },
    CreateNetwork {
        id: NetworkId,
        spec: Box<NetworkSpec>,
    },
    RemoveNetwork {
        id: NetworkId,
    },
    CreateService {
        id: ServiceId,
        spec: Box<ServiceSpec>,
    },
    UpdateService {
        id: ServiceId,
        version: u64,
        spec: Box<ServiceSpec>,
    },
    /// Back to the spec before the last update.
    RollbackService {
        id: ServiceId,
        version: u64,
        /// Why, as the update's status tells it.
        message: String,
    },
    RemoveService {
        id: ServiceId,
    },

    // Decided by the leader.
    SetNodeStatus {
        id: NodeId,
        status: NodeStatus,
        message: String,
    },
    SetVoter {
        id: NodeId,
        voter: bool,
    },
    /// The log's membership does not hold this node any more. Changes nothing where it was made a manager again meanwhile.
    ClearRaftConfig {
        id: NodeId,
    },
    /// With its node for a global service, else without. Desired `Ready`: held back until the slot's old task has ended and
    /// its time has come.
    CreateTask {
        id: TaskId,
        service: ServiceId,
        slot: Slot,
        desired: TaskState,
        not_before_ms: u64,
        attempts: u64,
    },
    /// Gives it its addresses too.
    AssignTask {
        id: TaskId,
        node: NodeId,
    },
    /// Why the scheduler finds no node, or no address, for it.
    DelayTask {
        id: TaskId,
        error: String,
    },
    SetDesired {
        id: TaskId,
        desired: TaskState,
    },
    SetTraffic {
        id: TaskId,
        traffic: Traffic,
    },
    /// Its node is lost: it is as if it had ended.
    OrphanTask {
        id: TaskId,
    },
    ForgetTask {
        id: TaskId,
    },
    ForgetService {
        id: ServiceId,
    },
    /// Of the service as this version has it: what was seen of an earlier one says nothing of the next.
    SetUpdateStatus {
        service: ServiceId,
        version: u64,
        status: UpdateStatus,
    },
    /// Addresses freed at or before this index may be used again once their time is over.
    ReleaseAddresses {
        acked_index: u64,
    },

    // Reported by nodes.
    ReportTasks {
        node: NodeId,
        tasks: Vec<(TaskId, TaskStatus)>,
    },
    DescribeNode {
        node: NodeId,
        description: Box<NodeDescription>,
    },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitCluster {
    pub id: ClusterId,
    pub spec: ClusterSpec,
    pub ca_cert_pem: String,
    pub ca_key_sealed: Vec<u8>,
    pub worker_secret: String,
    pub manager_secret: String,
    pub ingress: NetworkId,
    /// The first manager.
    pub node: JoinNode,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinNode {
    pub id: NodeId,
    pub hostname: NodeName,
    pub role: Role,
    pub addr: IpAddr,
    pub rpc_addr: SocketAddr,
    pub availability: Availability,
}

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    Done,
    Node(NodeId),
    Network(NetworkId),
    Service(ServiceId),
}

/// Why a command changed nothing. The text is what users read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("this cluster is already initialised")]
    AlreadyInitialised,
    #[error("no cluster yet: run `weft swarm init` or `weft swarm join`")]
    NotInitialised,
    #[error("no such {kind}: {id}")]
    NotFound { kind: ObjectKind, id: String },
    #[error("{kind} name {name} is in use by {by}: choose another or remove that one")]
    NameInUse { kind: ObjectKind, name: String, by: String },
    #[error(
        "update out of sequence: {kind} {id} is at version {current}, the request was for {given}; read it again and retry"
    )]
    OutOfSequence { kind: ObjectKind, id: String, current: u64, given: u64 },
    #[error("port {port}/{protocol} is already published by service {by}: choose another port or remove that service")]
    PortInUse { port: u16, protocol: String, by: String },
    #[error("port {port}/{protocol} is reserved for the cluster itself: choose another port")]
    PortReserved { port: u16, protocol: String },
    #[error("no free port left in 30000-32767: name one with --publish published=PORT,target=PORT")]
    NoFreePort,
    #[error("subnet {subnet} overlaps with route {route} on node {node}: choose another subnet")]
    SubnetOverlapsRoute { subnet: IpNetwork, route: IpNetwork, node: String },
    #[error("networks {first} and {second} have overlapping subnets: one service cannot be on both")]
    OverlappingNetworks { first: String, second: String },
    #[error("no subnet left in the address pool {pool}: name one with --subnet")]
    PoolExhausted { pool: IpNetwork },
    #[error("no address left in network {network} ({subnet}): remove services or use a larger subnet")]
    AddressesExhausted { network: String, subnet: IpNetwork },
    #[error("{kind} {id} is in use by {by}: remove that first")]
    InUse { kind: ObjectKind, id: String, by: String },
    #[error("node {id} is a manager: demote it first (`weft node demote`)")]
    NodeIsManager { id: String },
    #[error("node {id} is not down: stop it or let it leave first, or use --force")]
    NodeNotDown { id: String },
    #[error("{id} is the last manager: promote another node first")]
    LastManager { id: String },
    #[error("service {id} has no earlier spec to roll back to")]
    NothingToRollBack { id: String },
    #[error("{0}")]
    Invalid(String),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    Cluster,
    Node,
    Network,
    Service,
    Task,
}

impl std::fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Network => "network",
            Self::Service => "service",
            Self::Task => "task",
        })
    }
}
