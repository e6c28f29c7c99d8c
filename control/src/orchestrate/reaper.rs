//! Forgets what is over: tasks past the history limit, services whose last task has gone, the quarantine of addresses.

use std::collections::BTreeMap;

use weft_model::{
    ClusterState, Command,
    state::{Slot, Task, TaskState},
};

use super::{
    Context,
    slot::{SlotTasks, group},
};
use crate::state::QUARANTINE_MS;

pub(super) fn reap(state: &ClusterState) -> Vec<Command> {
    let mut tasks = BTreeMap::<_, Vec<&Task>>::new();
    for task in state.tasks.values() {
        tasks.entry(&task.service).or_default().push(task);
    }
    let mut commands = Vec::new();
    for (service, tasks) in &tasks {
        let removing = state.services.get(service).is_none_or(|s| s.removing);
        for slot in group(tasks).values() {
            let over = over(state, slot, removing);
            commands.extend(over.into_iter().map(|t| Command::ForgetTask { id: t.id.clone() }));
        }
    }
    let services = state.services.values().filter(|s| s.removing && !tasks.contains_key(&s.id));
    commands.extend(services.map(|s| Command::ForgetService { id: s.id.clone() }));
    commands
}

/// The tasks of this slot that nobody needs to know of any more.
fn over<'a>(state: &ClusterState, slot: &SlotTasks<'a>, removing: bool) -> Vec<&'a Task> {
    let gone = matches!(slot.slot, Slot::Node(node) if !state.nodes.contains_key(node));
    let limit = state.cluster.as_ref().map_or(0, |c| c.spec.task_history_limit as usize);
    let (mut over, mut history) = (Vec::new(), Vec::new());
    for task in &slot.tasks {
        let ended = task.status.state.is_terminal();
        let never_placed = task.status.state < TaskState::Assigned && task.desired > TaskState::Running;
        if never_placed || (ended && (removing || gone || task.desired == TaskState::Remove)) {
            over.push(*task);
        } else if ended {
            history.push(*task);
        }
    }
    // What follows on a slot's newest task is judged by that task.
    if history.last().is_some_and(|last| slot.newest().is_some_and(|newest| newest.id == last.id)) {
        history.pop();
        let surplus = (history.len() + 1).saturating_sub(limit.max(1));
        over.extend(history.into_iter().take(surplus));
    } else {
        let surplus = history.len().saturating_sub(limit);
        over.extend(history.into_iter().take(surplus));
    }
    over
}

/// Addresses whose quarantine is over: every ready node's kernel has lost them, and their time has passed.
pub(super) fn release(state: &ClusterState, ctx: &mut Context<'_>) -> Vec<Command> {
    let acked_index = ctx.acks.lowest(state);
    let lost = state.allocated.quarantine.iter().filter(|freed| freed.freed_index <= acked_index);
    let free_at_ms = lost.map(|freed| freed.freed_ms.saturating_add(QUARANTINE_MS)).min();
    match free_at_ms {
        Some(at_ms) if ctx.due(at_ms) => vec![Command::ReleaseAddresses { acked_index }],
        _ => Vec::new(),
    }
}
