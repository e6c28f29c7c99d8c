//! The plan generations that the nodes have acknowledged, and since when they are behind.

use std::collections::BTreeMap;

use weft_model::{ClusterState, NodeId, state::Node};

/// The acknowledgements that the leader has received. They are kept in its memory only: a new
/// leader starts with none, and the nodes send theirs again when they connect to it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acks {
    /// The newest plan generation that is in effect in the kernel of each node that the leader has
    /// heard from.
    pub acked: BTreeMap<NodeId, u64>,
    /// Since when this leader collects acknowledgements without a pause, in Unix milliseconds.
    /// Every wait for an acknowledgement starts at this time or later.
    pub since_ms: u64,
    /// The ready nodes that have not acknowledged the newest generation.
    pub behind: BTreeMap<NodeId, Behind>,
}

/// A generation that a node has not acknowledged yet.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Behind {
    pub generation: u64,
    /// Since when this generation exists, in Unix milliseconds.
    pub since_ms: u64,
    /// Why it is not in effect on the node, as the node has reported it.
    pub problem: String,
}

impl Acks {
    /// A leader that starts at this time.
    pub fn since(since_ms: u64) -> Self {
        Self { since_ms, ..Self::default() }
    }

    /// Makes every wait start at this time or later.
    pub fn restart_waits(&mut self, since_ms: u64) {
        self.since_ms = self.since_ms.max(since_ms);
        for behind in self.behind.values_mut() {
            behind.since_ms = behind.since_ms.max(since_ms);
        }
    }

    /// Takes the acknowledgements that the leader has now. `problem` is what a node has reported to
    /// prevent one. Must be called for each cluster state that a decision is made from.
    pub fn update(
        &mut self,
        state: &ClusterState,
        acked: BTreeMap<NodeId, u64>,
        now_ms: u64,
        problem: impl Fn(&NodeId) -> String,
    ) {
        self.acked = acked;
        let is_ready = |node: &NodeId| state.nodes.get(node).is_some_and(Node::is_ready);
        let mut behind = std::mem::take(&mut self.behind);
        behind.retain(|node, behind| is_ready(node) && !self.has_acked(node, behind.generation));
        for node in state.nodes.keys().filter(|node| is_ready(node) && !self.has_acked(node, state.index)) {
            let new = || Behind { generation: state.index, since_ms: now_ms, problem: String::new() };
            behind.entry(node.clone()).or_insert_with(new).problem = problem(node);
        }
        self.behind = behind;
    }

    /// Whether the leader knows what has become of the tasks of this node.
    pub(super) fn has_heard_from(&self, node: &NodeId) -> bool {
        self.acked.contains_key(node)
    }

    /// Whether the node has acknowledged a plan of this index or a newer one.
    pub(super) fn has_acked(&self, node: &NodeId, index: u64) -> bool {
        self.acked.get(node).is_some_and(|acked| *acked >= index)
    }

    /// Whether every node that the cluster waits for has acknowledged a plan of this index or a
    /// newer one.
    pub(super) fn all_acked(&self, state: &ClusterState, index: u64) -> bool {
        gating_nodes(state).all(|node| self.has_acked(node, index))
    }

    /// The newest generation that every node that the cluster waits for has acknowledged.
    pub(super) fn lowest_acked(&self, state: &ClusterState) -> u64 {
        gating_nodes(state).map(|node| self.acked.get(node).copied().unwrap_or(0)).min().unwrap_or(0)
    }

    /// The newest generation that each of these nodes has acknowledged.
    pub(super) fn of<'a>(&self, nodes: impl Iterator<Item = &'a NodeId>) -> BTreeMap<NodeId, u64> {
        nodes.filter_map(|node| Some((node.clone(), *self.acked.get(node)?))).collect()
    }
}

fn gating_nodes(state: &ClusterState) -> impl Iterator<Item = &NodeId> {
    state.nodes.values().filter(|n| n.gates_changes()).map(|n| &n.id)
}
