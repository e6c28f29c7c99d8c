//! The tasks of one slot of a service: live tasks, stopping tasks and ended tasks.

use std::collections::BTreeMap;

use weft_model::{
    ClusterState, ServiceId,
    state::{Slot, Task, TaskState},
};

/// All tasks of one slot, oldest first.
#[derive(Debug)]
pub(super) struct SlotTasks<'a> {
    pub(super) slot: &'a Slot,
    pub(super) tasks: Vec<&'a Task>,
}

impl<'a> SlotTasks<'a> {
    /// The tasks for which [`is_live`] holds.
    pub(super) fn live(&self) -> impl Iterator<Item = &'a Task> {
        self.tasks.iter().copied().filter(|t| is_live(t))
    }

    /// The tasks that must stop and have not ended yet.
    pub(super) fn stopping(&self) -> impl Iterator<Item = &'a Task> {
        self.tasks.iter().copied().filter(|t| !t.status.state.is_terminal() && t.desired > TaskState::Running)
    }

    pub(super) fn newest(&self) -> Option<&'a Task> {
        self.tasks.last().copied()
    }

    /// Whether the service still uses this slot. A slot whose last task ended and is not restarted
    /// is still used. A slot that scaling down has removed is not.
    pub(super) fn is_occupied(&self) -> bool {
        self.live().next().is_some() || self.newest().is_some_and(|t| t.desired != TaskState::Remove)
    }
}

/// Whether the task should run and has not ended.
pub(super) fn is_live(task: &Task) -> bool {
    !task.status.state.is_terminal() && task.desired <= TaskState::Running
}

/// Whether the task exited or failed to start. False for a task that the leader stopped.
pub(super) fn ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

pub(super) fn group_by_service(state: &ClusterState) -> BTreeMap<&ServiceId, Vec<&Task>> {
    let mut services = BTreeMap::<_, Vec<_>>::new();
    for task in state.tasks.values() {
        services.entry(&task.service).or_default().push(task);
    }
    services
}

/// Groups the tasks of one service by their slots.
pub(super) fn group_by_slot<'a>(tasks: &[&'a Task]) -> BTreeMap<&'a Slot, SlotTasks<'a>> {
    let mut slots = BTreeMap::new();
    for task in tasks {
        let slot = slots.entry(&task.slot).or_insert_with(|| SlotTasks { slot: &task.slot, tasks: Vec::new() });
        slot.tasks.push(*task);
    }
    for slot in slots.values_mut() {
        slot.tasks.sort_by_key(|t| (t.meta.version, &t.id));
    }
    slots
}
