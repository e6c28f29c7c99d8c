//! Groups of tasks that are stopped together.
//!
//! Every task of a membership runs in a group: the supervisor owns one for the membership, the
//! manager runtime one for the manager. The dispatcher gets a clone of the supervisor's group for
//! the sessions that nodes open. No other module starts a task that outlives the function that
//! started it.

use tokio::task::JoinHandle;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::host;

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

    /// Runs work that blocks, such as a write to the disk. It cannot be interrupted, so the group
    /// waits for it also if the task that waits for its result was dropped.
    pub(super) fn spawn_blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        let token = self.tracker.token();
        host::spawn_blocking(move || {
            let result = work();
            drop(token);
            result
        })
    }

    /// Cancelled when the group stops.
    pub(super) fn stop_token(&self) -> &CancellationToken {
        &self.stop
    }

    /// Stops all tasks, and returns when the last one, and all work that blocks, has ended.
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

    #[tokio::test]
    async fn stopping_a_group_waits_for_work_whose_task_was_dropped() {
        let group = TaskGroup::default();
        let (finish, finished) = std::sync::mpsc::channel::<()>();
        let work = group.spawn_blocking(move || finished.recv());
        group.spawn(async move { drop(work.await) });
        let mut stopping = std::pin::pin!(group.stop());
        let early = tokio::time::timeout(std::time::Duration::from_millis(50), &mut stopping).await;
        assert!(early.is_err(), "the work has not ended");
        drop(finish);
        stopping.await;
    }
}
