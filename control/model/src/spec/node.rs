//! Settings of a node (`node update`).

use serde::{Deserialize, Serialize};

use super::Labels;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeSpec {
    pub name: Option<String>,
    pub labels: Labels,
    pub role: Role,
    pub availability: Availability,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Role {
    Worker,
    Manager,
}

/// Whether a node runs tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Availability {
    /// The node gets new tasks.
    Active,
    /// The node keeps its tasks and gets no new ones.
    Pause,
    /// The tasks of the node are moved to other nodes.
    Drain,
}
