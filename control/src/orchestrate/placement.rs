//! Assigns waiting tasks to nodes, or records why a task cannot be placed.

use std::collections::BTreeMap;

use weft_model::{
    ClusterState, Command, DualAddr, NetworkId, ServiceId, TaskId,
    state::{Slot, Task, TaskState},
};

use super::{Context, Preview};
use crate::{
    schedule::{self, Load},
    state::slot_may_reuse,
};

/// Places the tasks one by one, because each assignment uses resources and addresses that are then
/// not available for the next task.
pub(super) fn place_tasks(preview: &mut Preview<'_>) {
    let waiting = preview.run(waiting_tasks);
    if waiting.is_empty() {
        return;
    }
    let mut load = Load::of(preview.state());
    let mut reusable = preview.run(reusable_addresses);
    for id in waiting {
        let Some(task) = preview.state().tasks.get(&id).filter(|_| !preview.is_full()) else { break };
        let task = task.clone();
        let placed = schedule::place(preview.state(), &load, &task).and_then(|node| {
            let reuse = reusable.remove(&(task.service.clone(), task.slot.clone())).unwrap_or_default();
            let assigned = preview.execute(Command::AssignTask { id: id.clone(), node: node.clone(), reuse });
            assigned.map(|_| load.add(&node, &task)).map_err(|refused| refused.to_string())
        });
        if let Err(error) = placed
            && error != task.status.error
        {
            preview.execute_or_report(Command::DelayTask { id, error });
        }
    }
}

/// The tasks that have no node yet, in the order in which they were created.
fn waiting_tasks(ctx: &mut Context<'_>) -> Vec<TaskId> {
    let state = ctx.state;
    let waits = |t: &&Task| t.status.state < TaskState::Assigned && t.desired <= TaskState::Running;
    let mut waiting: Vec<_> = state.tasks.values().filter(waits).collect();
    if waiting.is_empty() {
        return Vec::new();
    }
    // A node prepares a task as soon as it is assigned. Without this delay, a task that cannot be
    // prepared would be rejected and replaced repeatedly without a pause.
    let last_ended = last_ended(state);
    let follows_rejected =
        |t: &Task| last_ended.get(&(&t.service, &t.slot)).is_some_and(|last| last.status.state == TaskState::Rejected);
    waiting.retain(|t| !follows_rejected(t) || ctx.is_due(t.not_before_ms));
    waiting.sort_by_key(|t| (t.meta.version, &t.id));
    waiting.into_iter().map(|t| t.id.clone()).collect()
}

/// The addresses in quarantine that the next task of each slot may take again, one on each network.
/// A slot whose tasks fail at once thus needs two addresses at most, if the nodes acknowledge the
/// end of one task before the next one ends.
fn reusable_addresses(ctx: &mut Context<'_>) -> BTreeMap<(ServiceId, Slot), BTreeMap<NetworkId, DualAddr>> {
    let state = ctx.state;
    let quarantine = &state.allocated.quarantine;
    let acked_index = ctx.acks.lowest_acked(state);
    let owners = ctx.acks.of(quarantine.iter().filter_map(|freed| freed.node.as_ref()));
    let mut slots = BTreeMap::<_, BTreeMap<_, _>>::new();
    for freed in quarantine.iter().filter(|freed| slot_may_reuse(state, freed, acked_index, &owners)) {
        if let Some(slot) = &freed.slot {
            slots.entry(slot.clone()).or_default().insert(freed.network.clone(), freed.addr);
        }
    }
    slots
}

/// The last task that has ended in each slot. All slots are computed at once, because a search for
/// each waiting task would take time that grows with the square of the number of tasks.
fn last_ended(state: &ClusterState) -> BTreeMap<(&ServiceId, &Slot), &Task> {
    let mut last = BTreeMap::<_, &Task>::new();
    for task in state.tasks.values().filter(|t| t.status.state.is_terminal()) {
        let newest = last.entry((&task.service, &task.slot)).or_insert(task);
        if (newest.meta.version, &newest.id) < (task.meta.version, &task.id) {
            *newest = task;
        }
    }
    last
}
