//! Reconciles one slot: creates a new task, starts a task that is held, or replaces the task of the
//! slot.
//!
//! A task on a node where it may not stay always ends, with the order `start-first` too: when the
//! new task serves, when it has failed, or when it has had no place for the monitor time.

use weft_model::state::{Service, Task, TaskState, Traffic};

use super::{
    super::{
        Context,
        restart::{self, Restart},
        slot_tasks::{SlotTasks, ended_by_itself},
    },
    can_be_placed, may_stay,
    rollout::{Replacement, Rollout},
    update,
};

/// How long a task may take to stop beyond its grace period. After that, the next task of the slot
/// starts although the old one has not ended.
const STOP_OVERRUN_MS: u64 = 60_000;

/// Creates the next task of an empty slot, starts a held task, and stops surplus tasks. A task that
/// must be replaced is added to `rollout`.
pub(super) fn reconcile_slot<'a>(
    service: &Service,
    slot: &SlotTasks<'a>,
    rollout: &mut Rollout<'a>,
    ctx: &mut Context<'_>,
) {
    // A task that ended by itself must not start again: a new task replaces it.
    for task in slot.tasks.iter().filter(|t| t.status.state.is_terminal() && t.desired <= TaskState::Running) {
        ctx.set_desired(task, TaskState::Shutdown);
    }
    let blocked = is_blocked(slot, ctx);
    if slot.live().next().is_none() {
        if let Some(restart) = slot.newest().and_then(|t| restart::after(service, t)) {
            let held = blocked || !ctx.is_due(restart.not_before_ms);
            let desired = if held { TaskState::Ready } else { TaskState::Running };
            ctx.create_task(service, slot.slot, desired, restart);
        }
        return;
    }
    for task in slot.live().filter(|t| t.desired < TaskState::Running) {
        if !blocked && ctx.is_due(task.not_before_ms) {
            ctx.set_desired(task, TaskState::Running);
        }
    }
    let state = ctx.state;
    let is_placed_well = |t: &Task| {
        let node = t.node.as_ref().and_then(|node| state.nodes.get(node));
        node.is_none_or(|node| may_stay(node, service))
    };
    let (current, outdated): (Vec<_>, Vec<_>) = slot.live().partition(|t| t.is_current(service) && is_placed_well(t));
    match (keep_best(&current, ctx), keep_best(&outdated, ctx)) {
        (Some(new), Some(old)) if new.traffic == Traffic::Active => ctx.stop_task(old, TaskState::Shutdown),
        (Some(new), Some(old)) if !is_placed_well(old) && has_no_place(service, new, ctx) => {
            ctx.stop_task(old, TaskState::Shutdown);
        }
        (None, Some(old)) if is_placed_well(old) => {
            let restart = next_attempt(service, slot, old).filter(|_| can_be_placed(slot.slot, service, state));
            rollout.outdated.extend(restart.map(|restart| Replacement { slot: slot.slot, old, restart }));
        }
        (None, Some(old)) if failed_attempt(service, slot, old).is_some() => ctx.stop_task(old, TaskState::Shutdown),
        (None, Some(old)) => {
            rollout.misplaced.push(Replacement { slot: slot.slot, old, restart: Restart::default() });
        }
        _ => {}
    }
}

/// Whether the scheduler has found no node for the new task within the monitor time of the update.
fn has_no_place(service: &Service, new: &Task, ctx: &mut Context<'_>) -> bool {
    let monitor_ms = update::config(service).monitor_ms;
    new.status.state < TaskState::Assigned && ctx.is_due(new.meta.created_ms.saturating_add(monitor_ms))
}

/// Keeps the task that has progressed furthest and stops the others. Returns the task that it
/// keeps.
fn keep_best<'a>(tasks: &[&'a Task], ctx: &mut Context<'_>) -> Option<&'a Task> {
    let best = tasks.iter().copied().max_by_key(|t| (t.traffic, t.status.state, &t.id))?;
    tasks.iter().filter(|t| t.id != best.id).for_each(|t| ctx.stop_task(t, TaskState::Shutdown));
    Some(best)
}

/// How the slot may start a new task while its old task still runs. `None`: the new spec was tried
/// in this slot, failed, and its restart policy allows no further attempt.
fn next_attempt(service: &Service, slot: &SlotTasks<'_>, old: &Task) -> Option<Restart> {
    let failed = failed_attempt(service, slot, old);
    failed.map_or(Some(Restart::default()), |failed| restart::after(service, failed))
}

/// The newest task of the slot, if it has the new spec and ended by itself while the old task still
/// runs.
fn failed_attempt<'a>(service: &Service, slot: &SlotTasks<'a>, old: &Task) -> Option<&'a Task> {
    slot.newest().filter(|t| t.id != old.id && t.is_current(service) && ended_by_itself(t))
}

/// Whether the next task of the slot has to wait until a stopping task has ended.
fn is_blocked(slot: &SlotTasks<'_>, ctx: &mut Context<'_>) -> bool {
    let mut blocked = false;
    for task in slot.stopping() {
        let node_must_stop = task.must_stop();
        let timeout_ms = task.spec.container.stop_grace_ms.saturating_add(STOP_OVERRUN_MS);
        let since_ms = task.traffic_since_ms.max(task.state_since_ms);
        blocked |= !node_must_stop || !ctx.is_due(since_ms.saturating_add(timeout_ms));
    }
    blocked
}
