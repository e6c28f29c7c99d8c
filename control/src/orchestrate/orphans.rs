//! Ends the tasks of nodes that are down or were removed. Such a node can no longer report that its
//! tasks have ended. Of a node that does not converge, it ends the tasks that do not run yet:
//! another node starts them.

use weft_model::{
    Command, NodeId,
    state::{NodeStatus, Task, TaskState},
};

use super::Context;

pub(super) fn orphan_tasks(ctx: &mut Context<'_>) {
    let state = ctx.state;
    let is_lost = |node: &NodeId| state.nodes.get(node).is_none_or(|n| n.status == NodeStatus::Down);
    let placed = state.tasks.values().filter(|t| t.status.state >= TaskState::Assigned);
    let waits_in_vain = |task: &Task, node: &NodeId| {
        let lags = state.nodes.get(node).is_some_and(|n| n.is_ready() && !n.gates_changes());
        lags && task.status.state < TaskState::Running
    };
    let ends = |task: &Task| task.node.as_ref().is_some_and(|node| is_lost(node) || waits_in_vain(task, node));
    for task in placed.filter(|t| !t.status.state.is_terminal() && ends(t)) {
        ctx.propose(Command::OrphanTask { id: task.id.clone() });
    }
}
