//! Decides whether a new task replaces the ended task of a slot, and when the new task may start.

use std::time::Duration;

use weft_model::{
    Backoff,
    spec::RestartCondition,
    state::{Restarts, Service, Task, TaskState, Traffic},
};

use super::slot_tasks::ended_by_itself;

/// A task that served for less than this time, in milliseconds, has ended at once.
const AT_ONCE_MS: u64 = 10_000;

/// The minimum delays before the restarts of a slot whose tasks end at once, from the second one.
/// Each task costs log entries, addresses and work of its node, so a loop must slow down even if
/// the restart policy has no delay.
const AT_ONCE: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));

/// When the next task of a slot starts, and the restarts before it. The default is to start at
/// once, as the first task of a spec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Restart {
    /// The task may not start before this time, in Unix milliseconds.
    pub(super) not_before_ms: u64,
    pub(super) restarts: Restarts,
}

/// Decides whether and when a new task replaces `task`, the newest task of a slot that has no live
/// task. `None`: the task is not restarted.
///
/// The restart policy applies only to a task that ended by itself. If the task's node is down, or
/// if the leader stopped the task (to move it to another node, for example), it is replaced without
/// delay.
pub(super) fn after(service: &Service, task: &Task) -> Option<Restart> {
    if !ended_by_itself(task) {
        return Some(Restart { not_before_ms: 0, restarts: task.restarts.clone() });
    }
    let policy = &service.spec.task.restart;
    let ended_ms = task.state_since_ms;
    if !task.is_current(service) {
        let not_before_ms = ended_ms.saturating_add(policy.delay_ms);
        return Some(Restart { not_before_ms, restarts: Restarts::default() });
    }
    let wanted = match policy.condition {
        RestartCondition::Any => true,
        RestartCondition::OnFailure => task.status.state != TaskState::Complete,
        RestartCondition::None => false,
    };
    let Restarts { total, ended_at_once, mut recent_ms } = task.restarts.clone();
    recent_ms.retain(|at_ms| at_ms.saturating_add(policy.window_ms) > ended_ms);
    let counted = if policy.window_ms > 0 { recent_ms.len() as u64 } else { total };
    if !wanted || (policy.max_attempts > 0 && counted >= policy.max_attempts) {
        return None;
    }
    if policy.window_ms > 0 && policy.max_attempts > 0 {
        recent_ms.push(ended_ms);
    }
    let ended_at_once = if has_ended_at_once(task) { ended_at_once.saturating_add(1) } else { 0 };
    let delay_ms = policy.delay_ms.max(min_delay_ms(ended_at_once, task.status.state));
    Some(Restart {
        not_before_ms: ended_ms.saturating_add(delay_ms),
        restarts: Restarts { total: total.saturating_add(1), ended_at_once, recent_ms },
    })
}

/// The delay before a restart, at least, after so many tasks in a row that ended at once. A program
/// that completes may be meant to run again and again: its delay does not grow.
fn min_delay_ms(ended_at_once: u32, last: TaskState) -> u64 {
    let doublings = if last == TaskState::Complete { ended_at_once.min(2) } else { ended_at_once };
    match doublings.checked_sub(1) {
        None | Some(0) => 0,
        Some(nth) => u64::try_from(AT_ONCE.delay(nth).as_millis()).unwrap_or(u64::MAX),
    }
}

/// Whether the task ended before it served, or soon after.
fn has_ended_at_once(task: &Task) -> bool {
    task.traffic == Traffic::None || task.state_since_ms.saturating_sub(task.traffic_since_ms) < AT_ONCE_MS
}

#[cfg(test)]
mod tests {
    use weft_model::{ServiceId, TaskId};

    use super::*;
    use crate::fixture::{START_MS, TestCluster, service_spec};

    /// A cluster with a service, whose restart policy was changed, and an ended task of it.
    fn ended(change: impl FnOnce(&mut weft_model::spec::RestartPolicy)) -> (TestCluster, ServiceId, TaskId) {
        let mut cluster = TestCluster::new();
        let mut spec = service_spec("web", 1, &[]);
        change(&mut spec.task.restart);
        let service = cluster.add_service(spec);
        let node = cluster.first_node();
        let task = cluster.running_task(&service, 1, &node);
        cluster.observe(&task, TaskState::Failed);
        (cluster, service, task)
    }

    #[test]
    fn restarts_of_tasks_that_end_at_once_slow_down() {
        let delays = |delay_ms: u64, state: TaskState, served_ms: u64| -> Vec<u64> {
            let (cluster, service, id) = ended(|policy| policy.delay_ms = delay_ms);
            let service = &cluster.state.services[&service];
            let mut task = cluster.state.tasks[&id].clone();
            (task.status.state, task.traffic) = (state, Traffic::Active);
            task.traffic_since_ms = task.state_since_ms - served_ms;
            let next = |_| {
                let restart = after(service, &task).expect("a restart");
                task.restarts = restart.restarts;
                restart.not_before_ms - task.state_since_ms
            };
            (0..9).map(next).collect()
        };
        let failing = [0, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000];
        assert_eq!(delays(0, TaskState::Failed, 0), failing);
        assert_eq!(delays(0, TaskState::Rejected, 9_999), failing);
        assert_eq!(delays(5_000, TaskState::Failed, 0), failing.map(|ms| ms.max(5_000)));
        assert_eq!(delays(0, TaskState::Failed, 10_000), [0; 9]);
        assert_eq!(delays(0, TaskState::Complete, 0), [0, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000]);
        assert_eq!(delays(90_000, TaskState::Failed, 0), [90_000; 9]);
    }

    #[test]
    fn only_restarts_within_the_window_count() {
        let (cluster, service, id) = ended(|policy| (policy.max_attempts, policy.window_ms) = (2, 60_000));
        let service = &cluster.state.services[&service];
        let mut task = cluster.state.tasks[&id].clone();
        // Each task fails this many seconds after the one before it, however long it ran.
        let allowed = [10, 10, 10, 41, 1, 1, 60].map(|seconds| {
            task.state_since_ms += seconds * 1_000;
            let restart = after(service, &task);
            if let Some(restart) = &restart {
                task.restarts = restart.restarts.clone();
            }
            restart.is_some()
        });
        assert!(task.state_since_ms > START_MS);
        // The third has two restarts within a minute before it. The fourth has only one: the first
        // was 61 s before. The fifth has two.
        assert_eq!(allowed, [true, true, false, true, false, false, true]);
        assert!(task.restarts.recent_ms.len() <= 2, "{:?}", task.restarts);
    }

    #[test]
    fn without_a_window_all_restarts_of_the_spec_count() {
        let (mut cluster, service, id) = ended(|policy| policy.max_attempts = 2);
        let mut task = cluster.state.tasks[&id].clone();
        for allowed in [true, true, false] {
            task.state_since_ms += 86_400_000;
            let restart = after(&cluster.state.services[&service], &task);
            assert_eq!(restart.is_some(), allowed);
            task.restarts = restart.map_or(task.restarts, |restart| restart.restarts);
        }
        cluster.update_service(&service, |spec| spec.task.force_update += 1);
        let restart = after(&cluster.state.services[&service], &task).expect("a restart");
        assert_eq!(restart.restarts, Restarts::default());
    }

    #[test]
    fn a_moved_task_keeps_its_restarts() {
        let (cluster, service, id) = ended(|_| {});
        let mut task = cluster.state.tasks[&id].clone();
        task.status.state = TaskState::Orphaned;
        task.restarts = Restarts { total: 3, ended_at_once: 2, recent_ms: vec![START_MS] };
        let restart = after(&cluster.state.services[&service], &task).expect("a replacement");
        assert_eq!(restart, Restart { not_before_ms: 0, restarts: task.restarts });
    }
}
