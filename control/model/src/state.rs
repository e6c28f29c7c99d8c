//! The Raft table: what the cluster decided, and what its nodes observed. Written only by `apply` (weft-control); every
//! layer below is a function of it. Ordered maps only, so that all replicas iterate alike.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    BackendId, DualAddr, Mac, MeshServiceId, NetworkId, NodeId, NodeName, ServiceId, TaskId, Vni,
    id::ClusterId,
    net::Subnets,
    report::NodeDescription,
    spec::{Availability, ClusterSpec, Labels, NetworkSpec, NodeSpec, PortSpec, Role, ServiceSpec, TaskSpec},
};

/// Layout of the serialized table and log: counted up when either changes incompatibly.
pub const STATE_VERSION: u32 = 1;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Raft index of the last command applied: the version of everything computed from the table.
    pub index: u64,
    /// The latest `now_ms` of a command: the table's clock. Never goes back.
    pub now_ms: u64,
    pub cluster: Option<Cluster>,
    pub nodes: BTreeMap<NodeId, Node>,
    pub networks: BTreeMap<NetworkId, Network>,
    pub services: BTreeMap<ServiceId, Service>,
    pub tasks: BTreeMap<TaskId, Task>,
    pub allocated: Allocations,
}

/// When an object came to be, when its user's spec last changed, and at which index: the version that an update names.
/// Tasks have no user: theirs are of their birth.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    pub version: u64,
    pub created_ms: u64,
    pub updated_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    pub id: ClusterId,
    pub meta: Meta,
    pub spec: ClusterSpec,
    /// PEM. Its SHA-256 is the digest in every join token.
    pub ca_cert_pem: String,
    /// The CA's private key (PKCS#8 DER), encrypted; only managers hold what opens it.
    pub ca_key_sealed: Vec<u8>,
    /// The secret part of the tokens, as base 36.
    pub worker_secret: String,
    pub manager_secret: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    /// Never reused: a node that joins again is another voter.
    pub raft_id: u64,
    pub spec: NodeSpec,
    pub hostname: NodeName,
    /// Reachable by every other node: control traffic and tunnels go here.
    pub addr: IpAddr,
    /// Where its node RPC listens.
    pub rpc_addr: SocketAddr,
    pub status: NodeStatus,
    /// Why it is in this status; empty where ready.
    pub message: String,
    /// `None` until it first reported.
    pub description: Option<NodeDescription>,
    /// Whether it is a voter now. Trails `spec.role`.
    pub voter: bool,
    /// Whether the log's membership may hold it, as voter or learner: from the moment it is made a manager until it is
    /// neither. As long as that is so it keeps its log, because changes of the membership may need its answer.
    pub in_raft_config: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeStatus {
    /// Joined, not heard of yet.
    Unknown,
    Ready,
    Down,
}

impl Node {
    /// Whether the scheduler may give it tasks.
    pub fn takes_tasks(&self) -> bool {
        self.status == NodeStatus::Ready && self.spec.availability == Availability::Active
    }

    pub fn is_manager(&self) -> bool {
        self.spec.role == Role::Manager
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    pub id: NetworkId,
    pub meta: Meta,
    pub spec: NetworkSpec,
    pub vni: Vni,
    pub subnets: Subnets,
    /// The built-in one: published ports of services that name no network; no names, no VIPs between services.
    pub ingress: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub id: ServiceId,
    pub meta: Meta,
    pub spec: ServiceSpec,
    /// What `service rollback` returns to.
    pub previous: Option<ServiceSpec>,
    /// The index at which `spec.task` last changed: tasks of an older one are outdated.
    pub task_version: u64,
    /// In the order of the spec's networks; after them those of networks that the spec named before, until no live task
    /// is on them any more.
    pub endpoints: Vec<ServiceEndpoint>,
    /// `spec.endpoint.ports` with every published port chosen.
    pub ports: Vec<PublishedPort>,
    pub update: Option<UpdateStatus>,
    /// `service rm` was asked: its name and ports are free, users see it no more; its tasks are drained and stopped, then it
    /// is forgotten.
    pub removing: bool,
}

/// A service on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServiceEndpoint {
    pub network: NetworkId,
    pub mesh: MeshServiceId,
    /// `None` for DNS round robin, and on the ingress network.
    pub vip: Option<DualAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedPort {
    pub spec: PortSpec,
    pub published: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpdateStatus {
    pub state: UpdateState,
    pub started_ms: u64,
    pub completed_ms: Option<u64>,
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateState {
    Updating,
    Paused,
    Completed,
    RollbackStarted,
    RollbackPaused,
    RollbackCompleted,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub id: TaskId,
    pub meta: Meta,
    pub service: ServiceId,
    /// `<service>.<slot>.<id>`, or `<service>.<node id>.<id>` for a global service.
    pub name: String,
    pub slot: Slot,
    /// Copied from the service when the task was made.
    pub spec: TaskSpec,
    pub labels: Labels,
    /// [`Service::task_version`] when the task was made.
    pub version: u64,
    /// Set once, by the scheduler, or at birth for a global service.
    pub node: Option<NodeId>,
    /// In the order of the spec's networks; allocated with its node, freed when the task has ended.
    pub attachments: Vec<Attachment>,
    /// What the task shall become. Only ever greater.
    pub desired: TaskState,
    /// Not started before this time: a restart's delay.
    pub not_before_ms: u64,
    /// How many restarts in a row led to this task (see [`crate::spec::RestartPolicy`]).
    pub attempts: u64,
    pub status: TaskStatus,
    /// The table's clock when `status.state` last changed; `status.since_ms` is the node's.
    pub state_since_ms: u64,
    pub traffic: Traffic,
    /// Index at which `traffic` last changed: a node that acked it knows of the change.
    pub traffic_index: u64,
    /// The table's clock when `traffic` last changed.
    pub traffic_since_ms: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Slot {
    /// Counted from 1.
    Replica(u64),
    Node(NodeId),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    pub network: NetworkId,
    pub addr: DualAddr,
    pub mac: Mac,
    pub backend: BackendId,
}

/// The life of a task, in order: a state is never followed by a smaller one. Names and order are Swarm's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum TaskState {
    New,
    Pending,
    Assigned,
    Accepted,
    Preparing,
    Ready,
    Starting,
    Running,
    /// Ended by itself, without error.
    Complete,
    /// Stopped as asked.
    Shutdown,
    /// Ended by itself, with an error.
    Failed,
    /// Could not be started.
    Rejected,
    /// Desired only: shut down, then forget.
    Remove,
    /// Its node was lost before it ended.
    Orphaned,
}

impl TaskState {
    /// Whether the task has ended, well or not.
    pub fn is_terminal(self) -> bool {
        self > Self::Running
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Pending => "pending",
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Complete => "complete",
            Self::Shutdown => "shutdown",
            Self::Failed => "failed",
            Self::Rejected => "rejected",
            Self::Remove => "remove",
            Self::Orphaned => "orphaned",
        }
    }
}

/// What was last observed of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskStatus {
    pub state: TaskState,
    pub since_ms: u64,
    pub message: String,
    /// Empty where nothing went wrong.
    pub error: String,
    pub exit_code: Option<i32>,
    pub container: Option<String>,
    pub pid: Option<u32>,
}

/// Where a task stands in the mesh's tables: the hand-over that loses no request. Only ever greater; each step but the
/// first two waits until every ready node acked the one before (or its time ran out).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Traffic {
    /// In no table: not running yet.
    None,
    /// In its own node's tables.
    Local,
    /// In every node's tables.
    Active,
    /// Takes no new flow anywhere, keeps the old ones.
    Draining,
    /// Every node knows that it drains: the task may be told to stop.
    Drained,
}

impl Task {
    /// Whether the task holds its addresses: other tasks may exchange packets with it.
    pub fn holds_addresses(&self) -> bool {
        !self.attachments.is_empty() && !self.status.state.is_terminal()
    }

    /// Whether it runs what its service asks for now. It may be older: an update that was taken back left it alone.
    pub fn is_current(&self, service: &Service) -> bool {
        self.spec == service.spec.task
    }

    /// Whether its runtime should have stopped it by now.
    pub fn must_stop(&self) -> bool {
        self.desired > TaskState::Running && matches!(self.traffic, Traffic::None | Traffic::Drained)
    }
}

/// What apply has given out and may not give out again. Which addresses are in use follows from tasks and services;
/// here stand only the counters and the freed addresses that wait.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocations {
    pub next_raft_id: u64,
    pub next_mesh_service: u32,
    pub next_backend: u64,
    pub next_vni: u32,
    /// Where the search for the next free address of a network goes on.
    pub cursors: BTreeMap<NetworkId, AddressCursor>,
    /// Freed addresses that may not be used yet: some node may still hold them.
    pub quarantine: Vec<FreedAddress>,
}

impl Default for Allocations {
    fn default() -> Self {
        Self {
            next_raft_id: 1,
            next_mesh_service: 1,
            next_backend: 1,
            next_vni: crate::FIRST_VNI,
            cursors: BTreeMap::new(),
            quarantine: Vec::new(),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressCursor {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FreedAddress {
    pub network: NetworkId,
    pub addr: DualAddr,
    pub freed_ms: u64,
    pub freed_index: u64,
}

impl ClusterState {
    /// Services that are being removed have no name any more. Case does not matter, as in DNS.
    pub fn service_by_name(&self, name: &str) -> Option<&Service> {
        self.services.values().find(|s| !s.removing && s.spec.name.as_str().eq_ignore_ascii_case(name))
    }

    pub fn network_by_name(&self, name: &str) -> Option<&Network> {
        self.networks.values().find(|n| n.spec.name.as_str().eq_ignore_ascii_case(name))
    }

    pub fn tasks_of(&self, service: &ServiceId) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(move |t| t.service == *service)
    }

    pub fn tasks_on(&self, node: &NodeId) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(move |t| t.node.as_ref() == Some(node))
    }
}
