//! Carrying out the step that [`super::tasks`] chose for a task: one call to the runtime, or the wait for its ports.
//!
//! Owns no state. Tasks (tokio): the agent runs each step in one of its own.

use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio_util::sync::CancellationToken;
use weft_model::{TaskId, plan::TaskPlan};

use super::{listening, tasks::Step};
use crate::runtime::{Executor, RuntimeError};

/// How long an image may take to come. Past this its registry hangs, or somebody had better bring it closer.
const FETCH_LIMIT: Duration = Duration::from_secs(30 * 60);

/// A step of one task, with all that it takes.
pub(super) struct Call {
    pub(super) executor: Arc<dyn Executor>,
    pub(super) step: Step,
    pub(super) task: TaskId,
    /// `None`: the plan does not hold the task any more.
    pub(super) plan: Option<TaskPlan>,
    /// Cuts short what may be: getting an image, and waiting for ports.
    pub(super) abort: CancellationToken,
    pub(super) ears: Ears,
}

/// Where to listen for a task that has started.
pub(super) struct Ears {
    pub(super) pid: Option<u32>,
    pub(super) ports: Vec<u16>,
}

pub(super) struct Finished {
    pub(super) task: TaskId,
    pub(super) step: Step,
    pub(super) outcome: Result<(), RuntimeError>,
}

impl Call {
    /// Always comes back: a panic is this step's failure, and nobody else's.
    pub(super) async fn carry_out(self) -> Finished {
        let (task, step) = (self.task.clone(), self.step);
        let outcome = AssertUnwindSafe(self.ask()).catch_unwind().await;
        Finished { task, step, outcome: outcome.unwrap_or(Err(RuntimeError::Panicked)) }
    }

    async fn ask(self) -> Result<(), RuntimeError> {
        match (self.step, self.plan) {
            (Step::Listen, _) => {
                if let Some(pid) = self.ears.pid {
                    // Cut short, nobody asks any more.
                    self.abort.run_until_cancelled(listening::wait(pid, &self.ears.ports)).await;
                }
                Ok(())
            }
            (Step::Prepare, Some(plan)) => {
                fetch(&*self.executor, &plan, &self.abort, FETCH_LIMIT).await?;
                self.executor.prepare(&plan).await
            }
            (Step::Start, Some(plan)) => self.executor.start(&plan).await,
            (Step::Stop, _) => self.executor.stop(&self.task).await,
            (_, _) => self.executor.remove(&self.task).await,
        }
    }
}

/// Gets a task's image within `limit`, unless that is cut short.
async fn fetch(
    executor: &dyn Executor,
    plan: &TaskPlan,
    abort: &CancellationToken,
    limit: Duration,
) -> Result<(), RuntimeError> {
    let late = |_| RuntimeError::Image {
        image: plan.container.image.clone(),
        reason: format!("it did not come within {limit:?}"),
    };
    let fetched = abort.run_until_cancelled(tokio::time::timeout(limit, executor.fetch(plan))).await;
    fetched.ok_or(RuntimeError::Unwanted)?.map_err(late)?
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio::sync::watch;

    use super::*;
    use crate::runtime::{ObservedTask, fixture};

    const LIMIT: Duration = Duration::from_secs(10);

    /// Never gets an image, refuses to stop, and panics at anything else.
    struct Broken;

    #[async_trait]
    impl Executor for Broken {
        async fn fetch(&self, _: &TaskPlan) -> Result<(), RuntimeError> {
            std::future::pending().await
        }

        async fn prepare(&self, _: &TaskPlan) -> Result<(), RuntimeError> {
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

    fn call(step: Step, plan: Option<TaskPlan>) -> Call {
        let (executor, task, abort) = (Arc::new(Broken), TaskId::from_random(7), CancellationToken::new());
        Call { executor, step, task, plan, abort, ears: Ears { pid: None, ports: vec![] } }
    }

    #[tokio::test]
    async fn getting_an_image_can_be_cut_short() {
        let call = call(Step::Prepare, Some(fixture::task(|_| ())));
        let abort = call.abort.clone();
        abort.cancel();
        let prepared = tokio::time::timeout(LIMIT, call.carry_out()).await.unwrap();
        assert!(matches!(prepared.outcome, Err(RuntimeError::Unwanted)));
    }

    #[tokio::test]
    async fn getting_an_image_has_a_bound() {
        let (plan, abort) = (fixture::task(|_| ()), CancellationToken::new());
        let fetched = fetch(&Broken, &plan, &abort, Duration::from_millis(1));
        let outcome = tokio::time::timeout(LIMIT, fetched).await.unwrap();
        assert!(matches!(outcome, Err(RuntimeError::Image { image, .. }) if image == plan.container.image));
    }

    #[tokio::test]
    async fn a_panic_fails_the_step() {
        let finish = async |step| call(step, None).carry_out().await;
        let removed = finish(Step::Remove).await;
        assert_eq!((removed.task, removed.step), (TaskId::from_random(7), Step::Remove));
        assert!(matches!(removed.outcome, Err(RuntimeError::Panicked)));
        assert!(matches!(finish(Step::Stop).await.outcome, Err(RuntimeError::NotPrepared)));
        assert!(finish(Step::Listen).await.outcome.is_ok());
    }
}
