//! The agent's state of one task: the status that it reports, the step in progress, and when to
//! retry a failed step.
//!
//! [`super::Tasks`] owns one record for each task and calls its methods. Does no I/O.
//!
//! Invariant: a terminal status does not change any more, and no status changes to an earlier
//! state.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_model::{
    error_chain,
    state::{TaskState, TaskStatus},
};

use super::{
    next::{Step, initial_status, state_of_phase},
    run::FinishedStep,
};
use crate::{
    clock::now_ms,
    runtime::{ObservedTask, Phase, RETRY_BACKOFF, RuntimeError},
};

#[derive(Debug)]
pub(in crate::agent) struct TaskRecord {
    pub(in crate::agent) status: TaskStatus,
    /// The step in progress.
    pub(super) step: Option<Step>,
    /// The agent does not wait for the task's ports any more: the task listens, or the timeout is
    /// over.
    pub(super) listen_done: bool,
    /// This daemon has asked the runtime to stop the task.
    pub(super) stop_requested: bool,
    /// Cancels the step in progress.
    cancel: CancellationToken,
    backoff: Option<StepBackoff>,
}

/// A step that failed, and when it may be retried.
#[derive(Debug, Clone, Copy)]
struct StepBackoff {
    step: Step,
    /// Consecutive failures.
    failures: u32,
    retry_at: Instant,
}

impl TaskRecord {
    /// The record of a task before its first step.
    pub(in crate::agent) fn new() -> Self {
        Self {
            status: initial_status(now_ms()),
            step: None,
            listen_done: false,
            stop_requested: false,
            cancel: CancellationToken::new(),
            backoff: None,
        }
    }

    /// Records that a step starts. The returned token cancels it.
    pub(in crate::agent) fn begin_step(&mut self, step: Step) -> CancellationToken {
        self.step = Some(step);
        self.backoff = self.backoff.filter(|backoff| backoff.step == step);
        match step {
            Step::Prepare => self.advance(TaskState::Preparing),
            Step::Start => self.advance(TaskState::Starting),
            Step::Stop => self.stop_requested = true,
            Step::Listen | Step::Remove => {}
        }
        self.cancel = CancellationToken::new();
        self.cancel.clone()
    }

    /// Whether `step` failed and may not be retried yet at `now`.
    pub(super) fn is_backing_off(&self, step: Step, now: Instant) -> bool {
        self.backoff.is_some_and(|backoff| backoff.step == step && backoff.retry_at > now)
    }

    /// When the failed step may be retried. `None` if it may be retried at `now`, or if no step
    /// failed.
    pub(super) fn retry_at(&self, now: Instant) -> Option<Instant> {
        self.backoff.map(|backoff| backoff.retry_at).filter(|retry_at| *retry_at > now)
    }

    /// Cancels an image fetch, because the task is not wanted any more. Does not cancel
    /// any other step.
    pub(super) fn cancel_prepare(&self) {
        if self.step == Some(Step::Prepare) {
            self.cancel.cancel();
        }
    }

    /// Cancels the step in progress. Only an image fetch and a wait for ports end early.
    pub(super) fn cancel_step(&self) {
        self.cancel.cancel();
    }

    /// Updates the status to what the runtime shows.
    pub(super) fn update_from_runtime(&mut self, observed: Option<&ObservedTask>) {
        let Some(observed) = observed else { return };
        if self.status.state.is_terminal() {
            return;
        }
        self.status.container = Some(observed.container.clone());
        self.advance(state_of_phase(&observed.phase, self.listen_done, self.status.state));
        if let Phase::Running { pid, since_ms } = observed.phase {
            self.status.pid = Some(pid);
            // The runtime's own time, so that a restart of the daemon does not change it.
            self.status.since_ms = since_ms;
        }
    }

    /// Records the outcome of a step.
    pub(super) fn finish_step(&mut self, finished: &FinishedStep, now: Instant) {
        if self.step == Some(finished.step) {
            self.step = None;
        }
        self.listen_done |= finished.step == Step::Listen;
        let previous = self.backoff.filter(|backoff| backoff.step == finished.step);
        let Err(error) = &finished.outcome else {
            self.backoff = self.backoff.filter(|backoff| backoff.step != finished.step);
            return;
        };
        if matches!(error, RuntimeError::Cancelled) {
            return;
        }
        let error = error_chain(error);
        tracing::warn!(task = %finished.task, step = ?finished.step, error, "task step failed");
        match finished.step {
            Step::Prepare => self.set_status(TaskState::Rejected, error, None),
            Step::Start => self.set_status(TaskState::Failed, error, None),
            Step::Stop => self.stop_requested = false,
            Step::Listen | Step::Remove => {}
        }
        let failures = previous.map_or(0, |backoff| backoff.failures).saturating_add(1);
        self.backoff =
            Some(StepBackoff { step: finished.step, failures, retry_at: now + RETRY_BACKOFF.delay(failures) });
    }

    pub(super) fn set_status(&mut self, state: TaskState, error: String, exit_code: Option<i32>) {
        self.status.state = state;
        self.status.since_ms = now_ms();
        self.status.message = state.as_str().to_owned();
        self.status.error = error;
        self.status.exit_code = exit_code;
    }

    fn advance(&mut self, state: TaskState) {
        if state > self.status.state {
            self.set_status(state, String::new(), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use weft_model::TaskId;

    use super::*;

    fn fail(record: &mut TaskRecord, step: Step, now: Instant) {
        record.begin_step(step);
        let outcome = Err(RuntimeError::io("create", "/run/x")(io::Error::from(io::ErrorKind::PermissionDenied)));
        record.finish_step(&FinishedStep { task: TaskId::from_random(7), step, outcome }, now);
    }

    fn failed(step: Step) -> TaskRecord {
        let mut record = TaskRecord::new();
        fail(&mut record, step, Instant::now());
        record
    }

    #[test]
    fn the_delay_grows_with_each_failure_of_the_same_step() {
        let (mut record, now) = (TaskRecord::new(), Instant::now());
        let wait = |record: &TaskRecord| record.retry_at(now).expect("a failed step waits") - now;
        fail(&mut record, Step::Remove, now);
        let first = wait(&record);
        assert!(record.is_backing_off(Step::Remove, now) && !record.is_backing_off(Step::Remove, now + first));
        assert!(!record.is_backing_off(Step::Stop, now), "another step does not wait");
        fail(&mut record, Step::Remove, now);
        assert_eq!(wait(&record), first * 2);
        for _ in 0..100 {
            fail(&mut record, Step::Remove, now);
        }
        assert!(wait(&record) <= Duration::from_secs(30));
        fail(&mut record, Step::Stop, now);
        assert_eq!(wait(&record), first, "failures of another step do not count");
    }

    #[test]
    fn a_step_that_succeeds_is_not_delayed() {
        let (mut record, now) = (TaskRecord::new(), Instant::now());
        fail(&mut record, Step::Stop, now);
        record.begin_step(Step::Stop);
        record.finish_step(&FinishedStep { task: TaskId::from_random(7), step: Step::Stop, outcome: Ok(()) }, now);
        assert_eq!(record.retry_at(now), None);
    }

    #[test]
    fn only_an_image_fetch_is_cancelled_and_that_is_not_a_failure() {
        let mut record = TaskRecord::new();
        let cancel = record.begin_step(Step::Prepare);
        record.cancel_prepare();
        assert!(cancel.is_cancelled());
        let (task, step) = (TaskId::from_random(7), Step::Prepare);
        record.finish_step(&FinishedStep { task, step, outcome: Err(RuntimeError::Cancelled) }, Instant::now());
        assert_eq!((record.status.state, record.step), (TaskState::Preparing, None));
        let cancel = record.begin_step(Step::Remove);
        record.cancel_prepare();
        assert!(!cancel.is_cancelled());
    }

    #[test]
    fn a_failed_step_is_reported_with_its_cause() {
        for (step, state) in [(Step::Prepare, TaskState::Rejected), (Step::Start, TaskState::Failed)] {
            let status = failed(step).status;
            assert_eq!((status.state, &*status.error), (state, "cannot create /run/x: permission denied"));
        }
    }

    #[test]
    fn a_stop_request_that_failed_is_sent_again() {
        let record = failed(Step::Stop);
        assert!(!record.stop_requested && record.step.is_none());
        assert_eq!(record.status.state, TaskState::Accepted);
    }
}
