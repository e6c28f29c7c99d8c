//! Groups of tasks that are stopped together.
//!
//! Every task of a membership runs in a group: the supervisor owns one for the membership, the
//! manager runtime one for the manager. The dispatcher gets a clone of the supervisor's group for
//! the sessions that nodes open. No other module starts a task that outlives the function that
//! started it.

use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// Tasks that are stopped together. Cheap to clone: clones share the tasks.
#[derive(Debug, Clone, Default)]
pub(super) struct TaskGroup {
    stop: CancellationToken,
    tracker: TaskTracker,
}

impl TaskGroup {
    /// Runs `task` until it ends or the group stops. If the group stops, the task is dropped at the
    /// `.await` where it waits.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tracker.spawn(async move {
            stop.run_until_cancelled(task).await;
        });
    }

    /// Runs a task that has something to close before it ends. The task itself must end when
    /// [`Self::stop_token`] is cancelled.
    pub(super) fn spawn_graceful(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.tracker.spawn(task);
    }

    /// Cancelled when the group stops.
    pub(super) fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Stops all tasks, and returns when the last one has ended.
    pub(super) async fn stop(&self) {
        self.stop.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn stopping_a_group_drops_plain_tasks_and_waits_for_graceful_ones() {
        let group = TaskGroup::default();
        group.spawn(std::future::pending());
        let (stop, closed) = (group.stop_token().clone(), TaskTracker::new());
        let token = closed.token();
        group.spawn_graceful(async move {
            stop.cancelled().await;
            tokio::task::yield_now().await;
            drop(token);
        });
        group.stop().await;
        assert!(closed.is_empty(), "the graceful task dropped its token before it ended");
    }
}
