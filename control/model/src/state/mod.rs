//! The cluster state: what users have requested, what the leader has decided, and what the nodes
//! have reported.
//!
//! The managers replicate this state with Raft. Only `apply` in weft-control changes it, by
//! applying a [`Command`](crate::Command). The plans of the nodes, the decisions of the leader and
//! the answers of the API are computed from it.
//!
//! All replicas must compute the same result from the same state. So every collection here is
//! ordered (`BTreeMap`, `Vec`): all replicas iterate over it in the same order.

mod cluster;
mod keys;
mod node;
mod network;
mod service;
mod task;
mod task_map;
mod attached;
mod dependency;
mod allocations;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    DependencyId, NetworkId, NodeId, ServiceId, Shared, TaskId,
    spec::{DependencyKind, TaskSpec},
};

pub use allocations::{Allocations, FreedAddress, NetworkAddresses};
pub use attached::{AttachedContainer, ContainerIdentity, ContainerLink};
pub use cluster::{Cluster, EarlierTimeout, ManagerLock, RootRotation};
pub use dependency::Dependency;
pub use keys::{KeyRecord, KeyStage, NodeKeys};
pub use network::{Network, NetworkConfiguration};
pub use node::{EnginePlugin, Lag, Node, NodeDescription, NodeStatus};
pub use service::{PublishedPort, Service, ServiceEndpoint, UpdateState, UpdateStatus};
pub use task::{Attachment, Restarts, Slot, Task, TaskState, TaskStatus, Traffic};
pub use task_map::TaskMap;

/// The feature level of this release. It increases with every release that adds a command, or a
/// field of the state, of plans or of messages. The cluster has the level of its oldest manager
/// ([`ClusterState::feature_level`]), and what needs a higher level is neither written to the log
/// nor sent before.
pub const FEATURE_LEVEL: u32 = 1;

/// The replicated state of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterState {
    /// Raft log index of the last applied command. It is the version of everything that is computed
    /// from this state.
    pub index: u64,
    /// The greatest `now_ms` of all applied commands, in Unix milliseconds. `apply` uses it as its
    /// clock. Never decreases.
    pub now_ms: u64,
    /// `None` before the cluster is initialised.
    pub cluster: Option<Cluster>,
    pub nodes: BTreeMap<NodeId, Node>,
    pub networks: BTreeMap<NetworkId, Network>,
    pub configurations: BTreeMap<NetworkId, NetworkConfiguration>,
    pub services: BTreeMap<ServiceId, Service>,
    pub tasks: TaskMap,
    pub allocated: Allocations,
    /// The latest digest of the state that each manager has computed, by node.
    #[serde(default)]
    pub digests: BTreeMap<NodeId, StateDigest>,
    /// Increases each time that the cluster is formed again from one copy of its state, because its
    /// managers have lost their quorum: then it is the time in Unix milliseconds, or one more than
    /// before if that is greater. So the same copy can be used twice. Plans of a greater epoch
    /// replace all plans of a smaller one.
    #[serde(default)]
    pub epoch: u64,
    /// What all managers of the cluster support. Never decreases.
    #[serde(default)]
    pub feature_level: u32,
    /// In a stored state, the specs of the tasks, each of them once. Empty in memory.
    #[serde(default)]
    pub specs: Vec<Shared<TaskSpec>>,
    /// The containers on attachable networks that are no tasks, by the ids that their nodes chose.
    #[serde(default)]
    pub attached: BTreeMap<TaskId, AttachedContainer>,
    /// The secrets and the configs.
    #[serde(default)]
    pub dependencies: BTreeMap<DependencyId, Dependency>,
}

/// A digest of the whole state at one log entry, with what the log's state machine stores beside
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateDigest {
    pub index: u64,
    pub sha256: [u8; 32],
}

/// Version and times of an object. For a task these are the values at its creation, because users
/// cannot change a task.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Raft log index at which the spec of the object last changed, by a user or by an automatic
    /// rollback. An update request must contain it.
    pub version: u64,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// When a user last changed the object, in Unix milliseconds.
    pub updated_ms: u64,
}

impl ClusterState {
    /// The service with this name, compared without regard to case, as in DNS. Services that are
    /// being removed are not found.
    pub fn service_by_name(&self, name: &str) -> Option<&Service> {
        self.services.values().find(|s| !s.removing && s.spec.name.as_str().eq_ignore_ascii_case(name))
    }

    /// Whether nodes need WireGuard keys.
    pub fn has_encrypted_network(&self) -> bool {
        self.networks.values().any(|network| network.spec.encrypted)
    }

    /// The network with this name, compared without regard to case.
    pub fn network_by_name(&self, name: &str) -> Option<&Network> {
        self.networks.values().find(|n| n.spec.name.as_str().eq_ignore_ascii_case(name))
    }

    /// The configuration-only network with this name, compared without regard to case.
    pub fn configuration_by_name(&self, name: &str) -> Option<&NetworkConfiguration> {
        self.configurations.values().find(|n| n.spec.name.as_str().eq_ignore_ascii_case(name))
    }

    /// The secret or the config with this name, compared without regard to case, as in Swarm.
    pub fn dependency_by_name(&self, kind: DependencyKind, name: &str) -> Option<&Dependency> {
        let mut of_kind = self.dependencies.values().filter(|dependency| dependency.spec.kind == kind);
        of_kind.find(|dependency| dependency.spec.name.as_str().eq_ignore_ascii_case(name))
    }

    pub fn tasks_of(&self, service: &ServiceId) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(move |t| t.service == *service)
    }

    pub fn tasks_on(&self, node: &NodeId) -> impl Iterator<Item = &Task> {
        self.tasks.values().filter(move |t| t.node.as_ref() == Some(node))
    }
}
