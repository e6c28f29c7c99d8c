//! Containers that are no tasks, on attachable networks of the cluster.

use serde::{Deserialize, Serialize};

use crate::{DualAddr, Mac, NetworkId, NodeId, TaskId};

/// A container of a node that a user has created, with its addresses on networks of the cluster. It
/// keeps them as long as the container exists, also while it is stopped and while its node is down.
/// Only its node attaches and detaches it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedContainer {
    /// Chosen by the node. On the node it is used like the id of a task.
    pub id: TaskId,
    pub node: NodeId,
    /// `None` while the engine of the node creates the container.
    pub identity: Option<ContainerIdentity>,
    /// In the order in which they were attached. Never empty.
    pub links: Vec<ContainerLink>,
    /// Its engine has started it, and it has not ended. Its names resolve only then.
    pub running: bool,
    /// The log index of the last change by the node that is in its plan. A report that does not
    /// contain the container says nothing if it is older.
    pub changed_index: u64,
}

/// How the engine of the node calls a container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerIdentity {
    /// The engine's id.
    pub container: String,
    /// Without a slash before it.
    pub name: String,
}

/// An attached container on one of its networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerLink {
    /// Which link of the container it is. A link keeps its number when others go.
    pub index: u32,
    pub network: NetworkId,
    pub addr: DualAddr,
    pub mac: Mac,
    /// Names of the container on this network, beside its own.
    pub aliases: Vec<String>,
    /// [`super::ClusterState::now_ms`] when the address was allocated. `None` once the engine of
    /// the node has connected the container to the network.
    pub reserved_ms: Option<u64>,
}

impl AttachedContainer {
    /// The name for messages to users: that of the container if it is known.
    pub fn label(&self) -> &str {
        self.identity.as_ref().map_or(self.id.as_str(), |identity| &identity.name)
    }
}
