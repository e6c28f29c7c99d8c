//! Deletes what is no longer needed: ended tasks beyond the history limit, removed services without
//! tasks, and quarantined addresses that may be used again.

use weft_model::{
    ClusterState, Command,
    state::{Slot, Task, TaskState},
};

use super::{
    Context,
    slot_tasks::{SlotTasks, group_by_service, group_by_slot},
};
use crate::state::release_at_ms;

/// Deletes ended tasks and removed services.
pub(super) fn delete_ended(ctx: &mut Context<'_>) {
    let state = ctx.state;
    let tasks = group_by_service(state);
    for (service, tasks) in &tasks {
        let removing = state.services.get(service).is_none_or(|s| s.removing);
        for slot in group_by_slot(tasks).values() {
            for task in obsolete_tasks(state, slot, removing) {
                ctx.propose(Command::ForgetTask { id: task.id.clone() });
            }
        }
    }
    for service in state.services.values().filter(|s| s.removing && !tasks.contains_key(&s.id)) {
        ctx.propose(Command::ForgetService { id: service.id.clone() });
    }
}

/// The tasks of a slot that are neither needed for a decision nor kept as history.
fn obsolete_tasks<'a>(state: &ClusterState, slot: &SlotTasks<'a>, removing: bool) -> Vec<&'a Task> {
    let node_is_gone = matches!(slot.slot, Slot::Node(node) if !state.nodes.contains_key(node));
    let limit = state.cluster.as_ref().map_or(0, |c| c.spec.task_history_limit as usize);
    let (mut obsolete, mut history) = (Vec::new(), Vec::new());
    for task in &slot.tasks {
        let ended = task.status.state.is_terminal();
        let never_placed = task.status.state < TaskState::Assigned && task.desired > TaskState::Running;
        if never_placed || (ended && (removing || node_is_gone || task.desired == TaskState::Remove)) {
            obsolete.push(*task);
        } else if ended {
            history.push(*task);
        }
    }
    // The newest task of a slot is kept even with a limit of zero: the decision whether the slot
    // gets another task depends on it.
    if history.last().is_some_and(|last| slot.newest().is_some_and(|newest| newest.id == last.id)) {
        history.pop();
        let surplus = (history.len() + 1).saturating_sub(limit.max(1));
        obsolete.extend(history.into_iter().take(surplus));
    } else {
        let surplus = history.len().saturating_sub(limit);
        obsolete.extend(history.into_iter().take(surplus));
    }
    obsolete
}

/// Ends the quarantine of addresses that no node can have in its kernel any more.
pub(super) fn release_addresses(ctx: &mut Context<'_>) {
    let state = ctx.state;
    let acked_index = ctx.acks.lowest_acked(state);
    let quarantine = &state.allocated.quarantine;
    let owners = ctx.acks.of(quarantine.iter().filter_map(|freed| freed.node.as_ref()));
    let free_at_ms = quarantine.iter().filter_map(|freed| release_at_ms(state, freed, acked_index, &owners)).min();
    if free_at_ms.is_some_and(|at_ms| ctx.is_due(at_ms)) {
        ctx.propose(Command::ReleaseAddresses { acked_index, owners });
    }
}
