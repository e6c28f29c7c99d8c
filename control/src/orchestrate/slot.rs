//! One slot of a service and its tasks: the present ones, those on their way out, those that ended.

use std::collections::BTreeMap;

use weft_model::{
    Command,
    state::{Service, Slot, Task, TaskState, Traffic},
};

use super::{Context, restart::Again};

/// All tasks of one slot, oldest first.
#[derive(Debug)]
pub(super) struct SlotTasks<'a> {
    pub(super) slot: &'a Slot,
    pub(super) tasks: Vec<&'a Task>,
}

impl<'a> SlotTasks<'a> {
    /// Those that shall run, and have not ended.
    pub(super) fn live(&self) -> impl Iterator<Item = &'a Task> {
        self.tasks.iter().copied().filter(|t| is_live(t))
    }

    /// Those that were told to end, and have not yet.
    pub(super) fn stopping(&self) -> impl Iterator<Item = &'a Task> {
        self.tasks.iter().copied().filter(|t| !t.status.state.is_terminal() && t.desired > TaskState::Running)
    }

    pub(super) fn newest(&self) -> Option<&'a Task> {
        self.tasks.last().copied()
    }

    /// Whether the service still has this slot. One whose last task ended for good is kept; one that was scaled away is
    /// free.
    pub(super) fn is_occupied(&self) -> bool {
        self.live().next().is_some() || self.newest().is_some_and(|t| t.desired != TaskState::Remove)
    }
}

pub(super) fn is_live(task: &Task) -> bool {
    !task.status.state.is_terminal() && task.desired <= TaskState::Running
}

/// Ended, and nobody had asked for it.
pub(super) fn ended_by_itself(task: &Task) -> bool {
    matches!(task.status.state, TaskState::Complete | TaskState::Failed | TaskState::Rejected)
}

/// A service's tasks by their slots.
pub(super) fn group<'a>(tasks: &[&'a Task]) -> BTreeMap<&'a Slot, SlotTasks<'a>> {
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

/// A new task for a slot: at once, or held until the time has come and those before it have ended.
pub(super) fn create(
    service: &Service,
    slot: &Slot,
    desired: TaskState,
    again: Again,
    ctx: &mut Context<'_>,
) -> Command {
    Command::CreateTask {
        id: ctx.new_task(),
        service: service.id.clone(),
        slot: slot.clone(),
        desired,
        not_before_ms: again.not_before_ms,
        attempts: again.attempts,
    }
}

/// Has a task end: out of the mesh's tables first.
pub(super) fn end(task: &Task, desired: TaskState, commands: &mut Vec<Command>) {
    if task.desired < desired {
        commands.push(Command::SetDesired { id: task.id.clone(), desired });
    }
    if !task.status.state.is_terminal() && matches!(task.traffic, Traffic::Local | Traffic::Active) {
        commands.push(Command::SetTraffic { id: task.id.clone(), traffic: Traffic::Draining });
    }
}
