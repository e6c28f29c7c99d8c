//! Gives waiting tasks a node and its addresses, or writes down what is missing.

use weft_model::{
    ClusterState, Command, TaskId,
    state::{Task, TaskState},
};

use super::{Context, Work};
use crate::schedule::{self, Load};

pub(super) fn place(work: &mut Work<'_>) {
    let waiting = waiting(&work.table, &mut work.ctx);
    if waiting.is_empty() {
        return;
    }
    let mut load = Load::of(&work.table);
    for id in waiting {
        let Some(task) = work.table.tasks.get(&id).filter(|_| !work.is_full()) else { break };
        let task = task.clone();
        let placed = schedule::place(&work.table, &load, &task).and_then(|node| {
            let assigned = work.execute(Command::AssignTask { id: id.clone(), node: node.clone() });
            assigned.map(|_| load.add(&node, &task)).map_err(|refused| refused.to_string())
        });
        if let Err(error) = placed
            && error != task.status.error
        {
            work.must_execute(Command::DelayTask { id, error });
        }
    }
}

/// Tasks without a place, those that wait longest first.
fn waiting(state: &ClusterState, ctx: &mut Context<'_>) -> Vec<TaskId> {
    let waits = |t: &&Task| t.status.state < TaskState::Assigned && t.desired <= TaskState::Running;
    let mut waiting: Vec<_> = state.tasks.values().filter(waits).collect();
    // A node prepares what it gets at once, and what cannot be prepared would be rejected and replaced without pause.
    waiting.retain(|t| !follows_rejected(state, t) || ctx.due(t.not_before_ms));
    waiting.sort_by_key(|t| (t.meta.version, &t.id));
    waiting.into_iter().map(|t| t.id.clone()).collect()
}

/// Whether the last task that ended in this slot could not even be prepared.
fn follows_rejected(state: &ClusterState, task: &Task) -> bool {
    let ended = |t: &&Task| t.slot == task.slot && t.status.state.is_terminal();
    let last = state.tasks_of(&task.service).filter(ended).max_by_key(|t| (t.meta.version, &t.id));
    last.is_some_and(|t| t.status.state == TaskState::Rejected)
}
