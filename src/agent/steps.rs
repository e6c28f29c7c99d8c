//! Carrying out the step that [`super::tasks`] chose for a task: one call to the runtime, or the wait for its ports.
//!
//! Owns no state. Tasks (tokio): the agent runs each step in one of its own.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt as _;
use weft_model::{TaskId, plan::TaskPlan};

use super::{listening, tasks::Step};
use crate::runtime::{Executor, RuntimeError};

/// A step of one task, with all that it takes.
pub(super) struct Call {
    pub(super) executor: Arc<dyn Executor>,
    pub(super) step: Step,
    pub(super) task: TaskId,
    /// `None`: the plan does not hold the task any more.
    pub(super) plan: Option<TaskPlan>,
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
                    listening::wait(pid, &self.ears.ports).await;
                }
                Ok(())
            }
            (Step::Prepare, Some(plan)) => self.executor.prepare(&plan).await,
            (Step::Start, Some(plan)) => self.executor.start(&plan).await,
            (Step::Stop, _) => self.executor.stop(&self.task).await,
            (_, _) => self.executor.remove(&self.task).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio::sync::watch;

    use super::*;
    use crate::runtime::ObservedTask;

    /// Refuses to stop, and panics at anything else.
    struct Broken;

    #[async_trait]
    impl Executor for Broken {
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

    #[tokio::test]
    async fn a_panic_fails_the_step() {
        let finish = async |step| {
            let (executor, task) = (Arc::new(Broken), TaskId::from_random(7));
            let call = Call { executor, step, task, plan: None, ears: Ears { pid: None, ports: vec![] } };
            call.carry_out().await
        };
        let removed = finish(Step::Remove).await;
        assert_eq!((removed.task, removed.step), (TaskId::from_random(7), Step::Remove));
        assert!(matches!(removed.outcome, Err(RuntimeError::Panicked)));
        assert!(matches!(finish(Step::Stop).await.outcome, Err(RuntimeError::NotPrepared)));
        assert!(finish(Step::Listen).await.outcome.is_ok());
    }
}
