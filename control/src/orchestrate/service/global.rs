//! Global services: one slot for each node that may run the service.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::state::{Node, NodeStatus, Service, Slot, TaskState};

use super::{
    super::{Context, context::MAX_COMMANDS, restart::Restart, slot_tasks::SlotTasks},
    may_stay,
};

/// Creates a task on each eligible node that has none, and stops tasks on nodes that are down or
/// may not run the service. Leaves the slots to reconcile in `slots`, and returns how many these
/// are.
pub(super) fn reconcile_global(
    service: &Service,
    slots: &mut BTreeMap<&Slot, SlotTasks<'_>>,
    ctx: &mut Context<'_>,
) -> usize {
    let state = ctx.state;
    let mut covered = BTreeSet::new();
    slots.retain(|slot, tasks| {
        let Slot::Node(id) = slot else { return true };
        let node = state.nodes.get(id);
        let keeps = node.is_some_and(|n| n.status != NodeStatus::Down && may_stay(n, service));
        if !keeps {
            tasks.live().for_each(|task| ctx.stop_task(task, TaskState::Shutdown));
            return false;
        }
        covered.insert(id.clone());
        // A node that takes no new tasks keeps the one that it has. When that one ends, the node
        // gets no other.
        tasks.live().next().is_some() || node.is_some_and(Node::takes_tasks)
    });
    let open = state.nodes.values().filter(|n| n.takes_tasks() && may_stay(n, service) && !covered.contains(&n.id));
    for node in open.take(MAX_COMMANDS) {
        ctx.create_task(service, &Slot::Node(node.id.clone()), TaskState::Running, Restart::default());
    }
    slots.len()
}
