//! The plan generations that the nodes have acknowledged.

use std::collections::BTreeMap;

use weft_model::{ClusterState, NodeId, state::NodeStatus};

/// The acknowledgements that the leader has received. They are kept in its memory only: a new
/// leader starts with none, and the nodes send theirs again when they connect to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acks {
    /// The newest plan generation that is in effect in the kernel of each node.
    pub acked: BTreeMap<NodeId, u64>,
    /// When this leader started to collect acknowledgements, in Unix milliseconds. Every wait for
    /// an acknowledgement starts at this time or later.
    pub since_ms: u64,
}

impl Acks {
    /// Whether the node has acknowledged a plan of this index or a newer one.
    pub(super) fn has_acked(&self, node: &NodeId, index: u64) -> bool {
        self.acked.get(node).is_some_and(|acked| *acked >= index)
    }

    pub(super) fn all_ready_acked(&self, state: &ClusterState, index: u64) -> bool {
        ready_nodes(state).all(|node| self.has_acked(node, index))
    }

    /// The newest generation that every ready node has acknowledged.
    pub(super) fn lowest_acked(&self, state: &ClusterState) -> u64 {
        ready_nodes(state).map(|node| self.acked.get(node).copied().unwrap_or(0)).min().unwrap_or(0)
    }
}

fn ready_nodes(state: &ClusterState) -> impl Iterator<Item = &NodeId> {
    state.nodes.values().filter(|n| n.status == NodeStatus::Ready).map(|n| &n.id)
}
