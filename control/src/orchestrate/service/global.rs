//! Global services: one slot for each node that may run the service.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::state::{NodeStatus, Service, Slot, TaskState};

use super::{
    super::{Context, context::MAX_COMMANDS, restart::Restart, slot_tasks::SlotTasks},
    may_stay, takes_tasks_of,
};

/// Creates a task on each eligible node that has none, and stops tasks on nodes that are down or
/// may not run the service. Keeps in `slots` only the slots that must be reconciled, and returns
/// their number.
pub(super) fn reconcile_global(
    service: &Service,
    slots: &mut BTreeMap<&Slot, SlotTasks<'_>>,
    ctx: &mut Context<'_>,
) -> usize {
    let state = ctx.state;
    let mut with_slot = BTreeSet::new();
    slots.retain(|slot, tasks| {
        let Slot::Node(id) = slot else { return true };
        let node = state.nodes.get(id);
        let keeps = node.is_some_and(|n| n.status != NodeStatus::Down && may_stay(n, service));
        if !keeps {
            tasks.live().for_each(|task| ctx.stop_task(task, TaskState::Shutdown));
            return false;
        }
        with_slot.insert(id.clone());
        // A node that takes no new tasks keeps its task, and is skipped by updates. When this task
        // ends, the node gets no new one.
        tasks.live().next().is_some() || node.is_some_and(|node| takes_tasks_of(node, service))
    });
    let without_slot = state
        .nodes
        .values()
        .filter(|n| takes_tasks_of(n, service) && may_stay(n, service) && !with_slot.contains(&n.id));
    for node in without_slot.take(MAX_COMMANDS) {
        ctx.create_task(service, &Slot::Node(node.id.clone()), TaskState::Running, Restart::default());
    }
    slots.len()
}
