//! Replicated services: as many numbered slots as the spec asks for.

use std::collections::BTreeMap;

use weft_model::{
    NodeId,
    state::{Service, Slot, TaskState},
};

use super::super::{Context, context::MAX_COMMANDS, restart::Restart, slot_tasks::SlotTasks};

/// Creates missing replicas and stops surplus ones. Removes the stopped slots from `slots`, and
/// returns how many slots the service should have.
pub(super) fn reconcile_replicated(
    service: &Service,
    slots: &mut BTreeMap<&Slot, SlotTasks<'_>>,
    replicas: u64,
    ctx: &mut Context<'_>,
) -> usize {
    let wanted = usize::try_from(replicas).unwrap_or(usize::MAX);
    for slot in surplus_slots(slots, slots.len().saturating_sub(wanted)) {
        if let Some(slot) = slots.remove(&slot) {
            slot.tasks.iter().for_each(|task| ctx.stop_task(task, TaskState::Remove));
        }
    }
    let missing = wanted.saturating_sub(slots.len()).min(MAX_COMMANDS);
    for slot in (1..).map(Slot::Replica).filter(|slot| !slots.contains_key(slot)).take(missing) {
        ctx.create_task(service, &slot, TaskState::Running, Restart::default());
    }
    wanted
}

/// Chooses `count` slots to stop: first slots without a running task, then slots on the nodes that
/// run the most tasks of the service. If several slots are equal, the highest slot number comes
/// first.
fn surplus_slots(slots: &BTreeMap<&Slot, SlotTasks<'_>>, count: usize) -> Vec<Slot> {
    let mut idle = Vec::new();
    let mut running = BTreeMap::<&NodeId, Vec<&Slot>>::new();
    for (slot, tasks) in slots {
        let node = tasks.live().find(|t| t.status.state == TaskState::Running).and_then(|t| t.node.as_ref());
        match node {
            Some(node) => running.entry(node).or_default().push(slot),
            None => idle.push(*slot),
        }
    }
    let mut surplus: Vec<Slot> = idle.into_iter().rev().take(count).cloned().collect();
    while surplus.len() < count {
        let fullest = running.values_mut().max_by_key(|slots| (slots.len(), slots.last().copied()));
        let Some(slot) = fullest.and_then(Vec::pop) else { break };
        surplus.push(slot.clone());
    }
    surplus
}
