//! Commands: the only way to change the cluster state.
//!
//! The leader appends a command to the Raft log, and every replica applies it. Applying must give
//! the same result on all replicas, so a command contains everything that cannot be computed from
//! the cluster state: the leader's clock, random ids and secrets.
//!
//! A command is applied completely or refused with a [`Rejection`]. A refused command changes only
//! the index and the clock of the cluster state.

mod rejection;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use serde::{Deserialize, Serialize};

use crate::{
    DependencyId, DualAddr, NetworkId, NodeId, NodeName, ServiceId, TaskId, UnlockKey,
    id::ClusterId,
    spec::{Availability, ClusterSpec, DependencySpec, Labels, NetworkSpec, NodeSpec, Role, ServiceSpec},
    state::{
        ContainerIdentity, KeyStage, NodeDescription, NodeStatus, Restarts, RootRotation, Slot, StateDigest, TaskState,
        TaskStatus, Traffic, UpdateStatus,
    },
    wireguard::{NodeKey, PublicKey},
};

pub use rejection::{ObjectKind, Rejection};

/// How far a ready node puts its plans into effect.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Convergence {
    /// It has not acknowledged its plan for too long.
    Lagging { reason: String },
    /// It acknowledges its plans again.
    CatchingUp,
    /// It has acknowledged everything that the cluster did without it.
    Converged,
}

/// An entry of the Raft log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The leader's clock when it proposed the command, in Unix milliseconds.
    pub now_ms: u64,
    pub command: Command,
}

/// A change of the cluster state.
///
/// ```
/// use weft_model::{
///     Command, Entry, TaskId,
///     state::{TaskState, Traffic},
/// };
///
/// // The leader stops a task: nodes stop sending traffic to it before its own node stops it.
/// let id = TaskId::from_random(7);
/// let stop = Command::Batch(vec![
///     Command::SetDesired { id: id.clone(), desired: TaskState::Shutdown },
///     Command::SetTraffic { id, traffic: Traffic::Draining },
/// ]);
/// let entry = Entry { now_ms: 1_700_000_000_000, command: stop };
/// assert!(matches!(entry.command, Command::Batch(commands) if commands.len() == 2));
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Applies all commands, or none if one command is refused. Cannot contain another
    /// batch.
    Batch(Vec<Command>),

    // Requested by users. `version` is the version of the object that the user has seen
    // (`Meta::version`).
    InitCluster(Box<InitCluster>),
    UpdateCluster {
        version: u64,
        spec: ClusterSpec,
    },
    /// Replaces the secret of the join token for this role.
    RotateToken {
        role: Role,
        secret: String,
    },
    /// Adds a node, or changes the addresses of a node that is already a member.
    JoinNode(Box<JoinNode>),
    UpdateNode {
        id: NodeId,
        version: u64,
        spec: NodeSpec,
    },
    /// Removes a node that is down. `force` removes a node that is not down as well.
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
    /// Returns to the spec before the last update. The leader proposes this as well, when an update
    /// fails.
    RollbackService {
        id: ServiceId,
        version: u64,
        /// The reason, shown in the status of the update.
        message: String,
        /// Whether the leader rolls back, because the update failed. Then nothing can return to the
        /// failed spec. After a rollback by a user, the next rollback does.
        automatic: bool,
    },
    /// Hides the service and frees its name and ports. The leader deletes it with
    /// [`Command::ForgetService`] when its tasks have ended.
    RemoveService {
        id: ServiceId,
    },

    // Decided by the leader.
    SetNodeStatus {
        id: NodeId,
        status: NodeStatus,
        message: String,
    },
    /// Records whether the node votes in Raft.
    SetVoter {
        id: NodeId,
        voter: bool,
    },
    /// Records that the Raft membership no longer contains the node. Has no effect if the
    /// node is a manager again.
    ClearRaftConfig {
        id: NodeId,
    },
    /// Creates a task. A task of a global service has its node from the start. A task with
    /// `desired` `Ready` is prepared and then held, until the earlier tasks of the slot have ended
    /// and the clock has reached `not_before_ms`.
    CreateTask {
        id: TaskId,
        service: ServiceId,
        slot: Slot,
        desired: TaskState,
        not_before_ms: u64,
        restarts: Restarts,
    },
    /// Assigns a task to a node, and allocates its addresses.
    AssignTask {
        id: TaskId,
        node: NodeId,
        /// Addresses in quarantine that earlier tasks of the slot had, and that no node has in its
        /// maps any more. The task takes them again. On other networks it gets other addresses.
        #[serde(default)]
        reuse: BTreeMap<NetworkId, DualAddr>,
    },
    /// Records why a task could not be assigned: there is no suitable node or no free address.
    DelayTask {
        id: TaskId,
        error: String,
    },
    /// Raises the desired state of a task. A state that is not greater than the current one has no
    /// effect.
    SetDesired {
        id: TaskId,
        desired: TaskState,
    },
    /// Raises the traffic state of a task. A state that is not greater than the current one has no
    /// effect.
    SetTraffic {
        id: TaskId,
        traffic: Traffic,
    },
    /// Ends a task whose node is down or was removed.
    OrphanTask {
        id: TaskId,
    },
    /// Deletes a task that has ended or was never assigned.
    ForgetTask {
        id: TaskId,
    },
    /// Deletes a service that is being removed and has no tasks.
    ForgetService {
        id: ServiceId,
    },
    /// Refused if the service has changed since `version`: the status is about an older spec.
    SetUpdateStatus {
        service: ServiceId,
        version: u64,
        status: UpdateStatus,
    },
    /// Ends the quarantine of addresses that were freed at or before this log index, if their
    /// quarantine time is over, and if the nodes of their tasks have acknowledged it.
    ReleaseAddresses {
        /// Every converged node has acknowledged a plan of this index or a newer one.
        acked_index: u64,
        /// What the nodes have acknowledged whose tasks had these addresses.
        #[serde(default)]
        owners: BTreeMap<NodeId, u64>,
    },
    /// Asks a node for a new WireGuard key.
    RequestKey {
        node: NodeId,
    },
    /// Moves a WireGuard key of a node to a later stage. If it becomes active, the active key of
    /// the node becomes retiring.
    SetKeyStage {
        node: NodeId,
        key: PublicKey,
        stage: KeyStage,
    },
    /// Removes a withdrawn WireGuard key. Its node then deletes it.
    ForgetKey {
        node: NodeId,
        key: PublicKey,
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
    /// Records the WireGuard keys that a node holds. `acked` is the plan generation that was in
    /// effect on the node when it reported them: a missing key that an earlier plan contained is
    /// lost.
    ReportKeys {
        node: NodeId,
        keys: Vec<NodeKey>,
        acked: u64,
    },

    // Added later. A new command is the last one, because a command is stored by its number.
    /// Raises the feature level of the cluster. The leader proposes it once all managers support
    /// the level.
    SetFeatureLevel {
        level: u32,
    },
    /// Records that the node does not acknowledge its plans, that it does so again, or that it has
    /// converged.
    SetConvergence {
        id: NodeId,
        convergence: Convergence,
    },
    /// Gives a manager another Raft id, because the log of this one is lost. Has no effect if the
    /// node has another id already, or is no longer a manager.
    ReplaceRaftId {
        node: NodeId,
        raft_id: u64,
    },
    /// Records the digest that a manager has computed of its state. All managers compare it with
    /// their own.
    ReportDigest {
        node: NodeId,
        digest: StateDigest,
    },
    /// Requested by users. Changes the settings of the cluster and begins to replace its CA. A
    /// rotation that is not complete yet ends, and all nodes get certificates of the newer CA.
    RotateRoot {
        version: u64,
        spec: ClusterSpec,
        rotation: Box<RootRotation>,
    },
    /// Decided by the leader. Records that nodes trust the new CA and use certificates of it.
    /// `ca_cert_pem` is the certificate of that CA: nothing happens if another one is the new CA
    /// now. If all nodes are recorded then, the rotation is complete.
    SetRotated {
        nodes: Vec<NodeId>,
        ca_cert_pem: String,
    },
    /// Requested by users. Changes the settings of the cluster, and locks its managers with this
    /// key or, without one, does not lock them any more.
    SetUnlockKey {
        version: u64,
        spec: ClusterSpec,
        key: Option<UnlockKey>,
    },
    /// Requested by a node, for a container of its own that is no task.
    AttachContainer(Box<AttachContainer>),
    /// Requested by a node, or decided by the leader if the node has no such container any more.
    /// Frees the addresses of a container on these networks. Has no effect on others.
    DetachContainer {
        node: NodeId,
        id: TaskId,
        networks: Vec<NetworkId>,
    },
    /// Requested by users. Stores a secret or a config.
    CreateDependency {
        id: DependencyId,
        spec: Box<DependencySpec>,
    },
    /// Requested by users. Replaces the labels of a secret or a config.
    UpdateDependency {
        id: DependencyId,
        version: u64,
        labels: Labels,
    },
    /// Requested by users. Removes a secret or a config that no service uses.
    RemoveDependency {
        id: DependencyId,
    },
}

/// Attaches a container to networks, or records what the engine of the node says of one that is
/// attached. On networks that it is on already it keeps its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachContainer {
    pub node: NodeId,
    pub id: TaskId,
    /// `None`: not known yet, or as before.
    pub identity: Option<ContainerIdentity>,
    pub networks: Vec<WantedLink>,
    /// The networks to which the engine has connected the container.
    pub present: Vec<NetworkId>,
    /// `None`: as before.
    pub running: Option<bool>,
}

/// What a container wants to have on one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedLink {
    pub network: NetworkId,
    /// `None`: the cluster chooses.
    pub v4: Option<Ipv4Addr>,
    /// `None`: the cluster chooses.
    pub v6: Option<Ipv6Addr>,
    pub aliases: Vec<String>,
}

/// Creates the cluster, with its first manager and its ingress network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct InitCluster {
    pub id: ClusterId,
    pub spec: ClusterSpec,
    pub tunnel_port: u16,
    /// See [`crate::state::Cluster`] for the certificate, the key and the secrets.
    pub ca_cert_pem: String,
    pub ca_key_sealed: Vec<u8>,
    pub worker_secret: String,
    pub manager_secret: String,
    /// The id of the ingress network.
    pub ingress: NetworkId,
    /// The first manager.
    pub node: JoinNode,
    /// The feature level of the new cluster: that of its first manager.
    #[serde(default)]
    pub feature_level: u32,
    /// The key that managers need after a restart. `None` if they are not locked.
    #[serde(default)]
    pub unlock_key: Option<UnlockKey>,
}

/// See [`crate::state::Node`] for the fields.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JoinNode {
    pub id: NodeId,
    pub hostname: NodeName,
    pub role: Role,
    pub addr: IpAddr,
    pub tunnel_addr: IpAddr,
    pub rpc_addr: SocketAddr,
    pub availability: Availability,
    /// The certificate of the CA that the node trusts, because its join token names it. The node
    /// becomes a member only if it is that of the cluster. Empty for a member that moves.
    #[serde(default)]
    pub ca_cert_pem: String,
}

/// The object that an accepted command has created or changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Applied {
    Done,
    Node(NodeId),
    Network(NetworkId),
    Service(ServiceId),
}
