//! Ends the tasks of nodes that are down or were removed. Such a node can no longer report that its
//! tasks have ended.

use weft_model::{
    Command, NodeId,
    state::{NodeStatus, TaskState},
};

use super::Context;

pub(super) fn orphan_tasks(ctx: &mut Context<'_>) {
    let state = ctx.state;
    let is_lost = |node: &NodeId| state.nodes.get(node).is_none_or(|n| n.status == NodeStatus::Down);
    let placed = state.tasks.values().filter(|t| t.status.state >= TaskState::Assigned);
    for task in placed.filter(|t| !t.status.state.is_terminal() && t.node.as_ref().is_some_and(is_lost)) {
        ctx.propose(Command::OrphanTask { id: task.id.clone() });
    }
}
