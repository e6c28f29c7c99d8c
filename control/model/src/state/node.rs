//! Nodes: their settings, and what the leader and the agents observe.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use super::{Meta, NodeKeys};
use crate::{
    NodeId, NodeName,
    spec::{Availability, Labels, NodeSpec, Role},
    wireguard::EncryptionSupport,
};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Node {
    pub id: NodeId,
    pub meta: Meta,
    /// The manager's id in Raft, or 0 if the node is a worker. Never reused: each promotion gives a
    /// new one, because the node's earlier log was removed with its earlier id. Nodes that joined
    /// at feature level 0 may have an id as workers.
    pub raft_id: u64,
    pub spec: NodeSpec,
    pub hostname: NodeName,
    /// The address at which all other nodes reach this node. Control traffic uses it.
    pub addr: IpAddr,
    /// The address at which the tunnels of this node end. The same as `addr`, unless the user has
    /// chosen another one (`--data-path-addr`).
    pub tunnel_addr: IpAddr,
    /// The address and port at which the node's RPC server listens.
    pub rpc_addr: SocketAddr,
    pub status: NodeStatus,
    /// Why the node has this status. Empty if it is ready.
    pub message: String,
    /// `Some` if the node is ready, but has not put its plans into effect for too long.
    #[serde(default)]
    pub lag: Option<Lag>,
    /// `None` until the node has sent its first report.
    pub description: Option<NodeDescription>,
    pub keys: NodeKeys,
    /// Whether the node votes in Raft now. The leader changes it some time after `spec.role`
    /// changed.
    pub voter: bool,
    /// Whether the Raft membership may contain the node, as a voter or a learner: true from the
    /// moment when the node becomes a manager until the membership no longer contains it. During
    /// this time the node keeps its Raft log, because membership changes may need its vote.
    pub in_raft_config: bool,
    /// Whether the node uses a certificate of the new CA, while the CA is being replaced.
    #[serde(default)]
    pub rotated: bool,
}

/// Whether the leader receives heartbeats from a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeStatus {
    /// The node has joined and has not reported yet.
    Unknown,
    /// The node sends heartbeats and has sent its description.
    Ready,
    /// The node has missed too many heartbeats.
    Down,
}

/// A node that does not converge: it sends heartbeats, and does not acknowledge its plans. It gets
/// no new tasks, and nothing waits for its acknowledgement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lag {
    /// Why, as far as the node has reported it.
    pub reason: String,
    /// The node has reached its next stage when it has acknowledged a plan of this log index.
    pub index: u64,
    /// Whether it acknowledges plans again. Then the cluster waits for its acknowledgements, but
    /// its plan may still be older than what the cluster has done without it.
    pub catching_up: bool,
}

/// The properties of the node's machine. The node's agent reads them, and the scheduler uses them
/// to place tasks. They change rarely.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeDescription {
    pub os: String,
    pub arch: String,
    /// CPUs, in billionths of a CPU.
    pub nano_cpus: u64,
    pub memory_bytes: u64,
    /// The version of weft.
    pub version: String,
    /// `process` or `docker`.
    pub runtime: String,
    pub engine_labels: Labels,
    /// The global addresses of the node's links, without the links that weft created.
    pub addresses: Vec<IpAddr>,
    /// The destinations of the node's routes, without the default routes. No network may overlap
    /// them.
    pub routes: Vec<IpNetwork>,
    pub encryption: EncryptionSupport,
    /// The plugins of the container engine.
    #[serde(default)]
    pub plugins: BTreeSet<EnginePlugin>,
}

/// A plugin of a container engine, built-in ones included.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EnginePlugin {
    /// `Authorization`, `Log`, `Network` or `Volume`.
    pub kind: String,
    pub name: String,
}

impl Node {
    /// Whether the scheduler may assign tasks to the node.
    pub fn takes_tasks(&self) -> bool {
        self.has_converged() && self.spec.availability == Availability::Active
    }

    pub fn is_ready(&self) -> bool {
        self.status == NodeStatus::Ready
    }

    /// Whether the cluster waits for the acknowledgements of the node: it is ready and puts its
    /// plans into effect.
    pub fn gates_changes(&self) -> bool {
        self.is_ready() && self.lag.as_ref().is_none_or(|lag| lag.catching_up)
    }

    /// Whether the node is ready and has missed no change.
    pub fn has_converged(&self) -> bool {
        self.is_ready() && self.lag.is_none()
    }

    /// Whether the node has described itself as able to encrypt.
    pub fn can_encrypt(&self) -> bool {
        self.description.as_ref().is_some_and(|machine| machine.encryption.is_available())
    }

    pub fn is_manager(&self) -> bool {
        self.spec.role == Role::Manager
    }
}
