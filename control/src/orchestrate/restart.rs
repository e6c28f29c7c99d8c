//! What follows on a slot whose task has ended: another one, when, or none.

use weft_model::{
    spec::RestartCondition,
    state::{Service, Task, TaskState},
};

use super::slot::ended_by_itself;

/// When the next task of a slot may start, and how many restarts in a row led to it. By default at once, and none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Again {
    pub(super) not_before_ms: u64,
    pub(super) attempts: u64,
}

/// Judges the newest task of a slot that has no live one. `None`: it ended for good.
///
/// Only a task's own end is a matter of its restart policy. One that was lost with its node or told to end (it moves away,
/// say) is replaced without delay.
pub(super) fn after(service: &Service, task: &Task) -> Option<Again> {
    if !ended_by_itself(task) {
        return Some(Again { not_before_ms: 0, attempts: task.attempts });
    }
    let policy = &service.spec.task.restart;
    let not_before_ms = task.state_since_ms.saturating_add(policy.delay_ms);
    if task.spec != service.spec.task {
        return Some(Again { not_before_ms, attempts: 0 });
    }
    let wanted = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => task.status.state != TaskState::Complete,
        RestartCondition::None => false,
    };
    // A task that lived as long as the window was a success: counting begins anew.
    let lived_ms = task.state_since_ms.saturating_sub(task.meta.created_ms);
    let in_a_row = if policy.window_ms > 0 && lived_ms >= policy.window_ms { 0 } else { task.attempts };
    let attempts = in_a_row + 1;
    (wanted && (policy.max_attempts == 0 || attempts <= policy.max_attempts))
        .then_some(Again { not_before_ms, attempts })
}
