//! Runs one step of a task: one call to the runtime, or the wait for the task's ports.
//!
//! [`super::Tasks`] chooses the step and spawns [`StepCall::run`]. This module keeps no state.
//!
//! Invariant: a panic in a step becomes the error of that step, and affects no other task.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use weft_model::{
    TaskId,
    plan::{NetworkPlan, TaskPlan},
};

use super::{listening::ListenCheck, next::Step};
use crate::runtime::{Executor, RuntimeError, TaskFile};

/// How long the fetch of an image may take. If it takes longer, the registry hangs or is too slow.
const FETCH_TIMEOUT: Duration = Duration::from_secs(30 * 60);

/// A step of one task, with its arguments.
pub(super) struct StepCall {
    pub(super) executor: Arc<dyn Executor>,
    pub(super) step: Step,
    pub(super) task: TaskId,
    /// `None` if the plan does not list the task any more.
    pub(super) plan: Option<TaskPlan>,
    /// The networks of the task.
    pub(super) networks: Vec<NetworkPlan>,
    /// The secrets and configs of the task, if it is being prepared.
    pub(super) files: Vec<TaskFile>,
    /// Ends an image fetch or a wait for ports early. Other calls run to their end.
    pub(super) cancel: CancellationToken,
    pub(super) listen_check: ListenCheck,
}

pub(in crate::agent) struct FinishedStep {
    pub(in crate::agent) task: TaskId,
    pub(in crate::agent) step: Step,
    pub(in crate::agent) outcome: Result<(), RuntimeError>,
}

impl StepCall {
    pub(super) async fn run(self) -> FinishedStep {
        let (task, step) = (self.task.clone(), self.step);
        let outcome = AssertUnwindSafe(self.call()).catch_unwind().await;
        FinishedStep { task, step, outcome: outcome.unwrap_or(Err(RuntimeError::Panicked)) }
    }

    async fn call(self) -> Result<(), RuntimeError> {
        match (self.step, self.plan) {
            (Step::Listen, _) => {
                // The outcome does not matter if the check was cancelled: the task is being
                // removed.
                self.cancel.run_until_cancelled(self.listen_check.run()).await;
                Ok(())
            }
            (Step::Prepare, Some(plan)) => {
                fetch_image(&*self.executor, &plan, &self.cancel, FETCH_TIMEOUT).await?;
                self.executor.prepare(&plan, &self.networks, &self.files).await
            }
            (Step::Start, Some(plan)) => self.executor.start(&plan).await,
            (Step::Stop, _) => self.executor.stop(&self.task).await,
            (_, _) => self.executor.remove(&self.task).await,
        }
    }
}

/// Fetches a task's image.
///
/// # Errors
/// [`RuntimeError::Cancelled`] after `cancel`, and [`RuntimeError::Image`] after `timeout`.
async fn fetch_image(
    executor: &dyn Executor,
    plan: &TaskPlan,
    cancel: &CancellationToken,
    timeout: Duration,
) -> Result<(), RuntimeError> {
    let timed_out = |_| RuntimeError::Image {
        image: plan.container.image.clone(),
        reason: format!("not complete after {timeout:?}"),
    };
    let fetched = cancel.run_until_cancelled(tokio::time::timeout(timeout, executor.fetch(plan))).await;
    fetched.ok_or(RuntimeError::Cancelled)?.map_err(timed_out)?
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio::sync::watch;

    use super::*;
    use crate::runtime::{ObservedTask, fixture};

    const LIMIT: Duration = Duration::from_secs(10);

    /// Never completes a fetch, refuses to stop, and panics in all other calls.
    struct Broken;

    #[async_trait]
    impl Executor for Broken {
        async fn fetch(&self, _: &TaskPlan) -> Result<(), RuntimeError> {
            std::future::pending().await
        }

        async fn prepare(&self, _: &TaskPlan, _: &[NetworkPlan], _: &[TaskFile]) -> Result<(), RuntimeError> {
            panic!("prepare")
        }

        async fn start(&self, _: &TaskPlan) -> Result<(), RuntimeError> {
            panic!("start")
        }

        async fn stop(&self, _: &TaskId) -> Result<(), RuntimeError> {
            Err(RuntimeError::NotPrepared)
        }

        async fn remove(&self, _: &TaskId) -> Result<(), RuntimeError> {
            panic!("remove")
        }

        async fn observe(&self) -> Result<Vec<ObservedTask>, RuntimeError> {
            panic!("observe")
        }

        fn changed(&self) -> watch::Receiver<u64> {
            watch::channel(0).1
        }
    }

    fn call(step: Step, plan: Option<TaskPlan>) -> StepCall {
        let (executor, task, cancel) = (Arc::new(Broken), TaskId::from_random(7), CancellationToken::new());
        StepCall {
            executor,
            step,
            task,
            plan,
            networks: vec![],
            files: vec![],
            cancel,
            listen_check: ListenCheck { pid: None, ports: vec![] },
        }
    }

    #[tokio::test]
    async fn an_image_fetch_can_be_cancelled() {
        let call = call(Step::Prepare, Some(fixture::task(|_| ())));
        call.cancel.cancel();
        let prepared = tokio::time::timeout(LIMIT, call.run()).await.expect("a cancelled step returns");
        assert!(matches!(prepared.outcome, Err(RuntimeError::Cancelled)));
    }

    #[tokio::test]
    async fn an_image_fetch_has_a_timeout() {
        let (plan, cancel) = (fixture::task(|_| ()), CancellationToken::new());
        let fetched = fetch_image(&Broken, &plan, &cancel, Duration::from_millis(1));
        let outcome = tokio::time::timeout(LIMIT, fetched).await.expect("the fetch returns after its timeout");
        assert!(matches!(outcome, Err(RuntimeError::Image { image, .. }) if image == plan.container.image));
    }

    #[tokio::test]
    async fn a_panic_fails_only_its_own_step() {
        let finish = async |step| call(step, None).run().await;
        let removed = finish(Step::Remove).await;
        assert_eq!((removed.task, removed.step), (TaskId::from_random(7), Step::Remove));
        assert!(matches!(removed.outcome, Err(RuntimeError::Panicked)));
        assert!(matches!(finish(Step::Stop).await.outcome, Err(RuntimeError::NotPrepared)));
        assert!(finish(Step::Listen).await.outcome.is_ok());
    }
}
