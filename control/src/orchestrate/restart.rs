//! Decides whether a new task replaces the ended task of a slot, and when the new task may start.

use weft_model::{
    spec::RestartCondition,
    state::{Service, Task, TaskState},
};

use super::slot_tasks::ended_by_itself;

/// When the next task of a slot starts, and which attempt it is. The default is to start at once,
/// as the first attempt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Restart {
    /// The task may not start before this time, in Unix milliseconds.
    pub(super) not_before_ms: u64,
    /// The number of consecutive restarts before the task.
    pub(super) attempts: u64,
}

/// Decides whether and when a new task replaces `task`, the newest task of a slot that has no live
/// task. `None`: the task is not restarted.
///
/// The restart policy applies only to a task that ended by itself. If the task's node is down, or
/// if the leader stopped the task (to move it to another node, for example), it is replaced without
/// delay.
pub(super) fn after(service: &Service, task: &Task) -> Option<Restart> {
    if !ended_by_itself(task) {
        return Some(Restart { not_before_ms: 0, attempts: task.attempts });
    }
    let policy = &service.spec.task.restart;
    let not_before_ms = task.state_since_ms.saturating_add(policy.delay_ms);
    if task.spec != service.spec.task {
        return Some(Restart { not_before_ms, attempts: 0 });
    }
    let wanted = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => task.status.state != TaskState::Complete,
        RestartCondition::None => false,
    };
    // A task that ran for at least the window counts as a success: the count starts again.
    let lifetime_ms = task.state_since_ms.saturating_sub(task.meta.created_ms);
    let consecutive = if policy.window_ms > 0 && lifetime_ms >= policy.window_ms { 0 } else { task.attempts };
    let attempts = consecutive + 1;
    (wanted && (policy.max_attempts == 0 || attempts <= policy.max_attempts))
        .then_some(Restart { not_before_ms, attempts })
}
