//! What a node reports about itself. Only the node's agent writes reports, and the leader reads
//! them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{
    NetworkId, TaskId,
    plan::PlanVersion,
    state::{ContainerIdentity, TaskStatus},
    wireguard::NodeKey,
};

pub use crate::state::{EnginePlugin, NodeDescription};

/// The agent sends a report when one of its values has changed, and after it has connected to a new
/// leader.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The generation of the newest plan that is in effect on this node.
    pub acked: u64,
    /// The epoch of that plan.
    #[serde(default)]
    pub epoch: u64,
    /// The address at which other nodes reach this one. The session with the leader adds it. `None`
    /// at feature level 0.
    #[serde(default)]
    pub addr: Option<IpAddr>,
    /// Why the newest plan is not in effect. Empty while there is no known reason.
    #[serde(default)]
    pub problem: String,
    /// `None` until the agent has read the facts of the machine.
    pub description: Option<NodeDescription>,
    /// The WireGuard keys that this node holds and has configured a device for, oldest first.
    pub keys: Vec<NodeKey>,
    pub tasks: Vec<(TaskId, TaskStatus)>,
    /// The containers of this node that are no tasks and are on networks of the cluster, as its
    /// engine has them. `None` if the engine could not list them.
    #[serde(default)]
    pub attached: Option<AttachedReports>,
}

/// The engine's list of containers that are no tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedReports {
    /// Those of which the engine has said everything.
    pub containers: Vec<AttachedReport>,
    /// The engine's ids of the others: it has listed them, and has not answered the question about
    /// them.
    pub unanswered: Vec<String>,
}

/// A container that is no task, on networks of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachedReport {
    pub id: TaskId,
    pub identity: ContainerIdentity,
    pub networks: Vec<NetworkId>,
    pub running: bool,
}

impl NodeReport {
    /// The version of the newest plan that is in effect on this node.
    pub fn in_effect(&self) -> PlanVersion {
        PlanVersion { epoch: self.epoch, generation: self.acked }
    }
}
