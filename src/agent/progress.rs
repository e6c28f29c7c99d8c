//! How far one task has come, as far as this daemon has seen: what is reported of it, and what is being done.

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use weft_model::state::{TaskState, TaskStatus};

use super::{
    steps::Finished,
    tasks::{self, Step},
};
use crate::{
    clock::now_ms,
    error_chain::error_chain,
    runtime::{ObservedTask, Phase, RETRY_BACKOFF, RuntimeError},
};

#[derive(Debug)]
pub(super) struct Progress {
    pub(super) status: TaskStatus,
    pub(super) in_flight: Option<Step>,
    /// It takes connections, or is given up waiting for.
    pub(super) listening: bool,
    pub(super) stopping: bool,
    /// Of the step in flight.
    abort: CancellationToken,
    rest: Option<Rest>,
}

/// A step that failed, and is not to be tried again yet.
#[derive(Debug, Clone, Copy)]
struct Rest {
    step: Step,
    /// In a row.
    failures: u32,
    until: Instant,
}

impl Progress {
    /// Of a task of which nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            status: tasks::accepted(now_ms()),
            in_flight: None,
            listening: false,
            stopping: false,
            abort: CancellationToken::new(),
            rest: None,
        }
    }

    /// Returns what cuts the step short.
    pub(super) fn begin(&mut self, step: Step) -> CancellationToken {
        self.in_flight = Some(step);
        self.rest = self.rest.filter(|rest| rest.step == step);
        match step {
            Step::Prepare => self.advance(TaskState::Preparing),
            Step::Start => self.advance(TaskState::Starting),
            Step::Stop => self.stopping = true,
            Step::Listen | Step::Remove => {}
        }
        self.abort = CancellationToken::new();
        self.abort.clone()
    }

    /// Whether `step` failed so lately that it is not to be tried yet.
    pub(super) fn rests(&self, step: Step, now: Instant) -> bool {
        self.rest.is_some_and(|rest| rest.step == step && rest.until > now)
    }

    /// Until when a step rests, if one does.
    pub(super) fn resting(&self, now: Instant) -> Option<Instant> {
        self.rest.map(|rest| rest.until).filter(|until| *until > now)
    }

    /// The task is not wanted any more: nor is its image.
    pub(super) fn cut_fetching_short(&self) {
        if self.in_flight == Some(Step::Prepare) {
            self.abort.cancel();
        }
    }

    /// The step in flight ends as soon as it can.
    pub(super) fn cut_short(&self) {
        self.abort.cancel();
    }

    /// Takes over what the runtime shows.
    pub(super) fn see(&mut self, seen: Option<&ObservedTask>) {
        let Some(seen) = seen else { return };
        if self.status.state.is_terminal() {
            return;
        }
        self.status.container = Some(seen.container.clone());
        self.advance(tasks::observed(&seen.phase, self.listening, self.status.state));
        if let Phase::Running { pid, since_ms } = seen.phase {
            self.status.pid = Some(pid);
            // The same after a restart of the daemon: nothing happened to the task.
            self.status.since_ms = since_ms;
        }
    }

    /// What became of a step that was begun.
    pub(super) fn finish(&mut self, finished: &Finished, now: Instant) {
        if self.in_flight == Some(finished.step) {
            self.in_flight = None;
        }
        self.listening |= finished.step == Step::Listen;
        let before = self.rest.filter(|rest| rest.step == finished.step);
        let Err(error) = &finished.outcome else {
            self.rest = self.rest.filter(|rest| rest.step != finished.step);
            return;
        };
        if matches!(error, RuntimeError::Unwanted) {
            return;
        }
        let error = error_chain(error);
        tracing::warn!(task = %finished.task, step = ?finished.step, error, "a step of a task failed");
        match finished.step {
            Step::Prepare => self.set(TaskState::Rejected, error, None),
            Step::Start => self.set(TaskState::Failed, error, None),
            Step::Stop => self.stopping = false,
            Step::Listen | Step::Remove => {}
        }
        let failures = before.map_or(0, |rest| rest.failures).saturating_add(1);
        self.rest = Some(Rest { step: finished.step, failures, until: now + RETRY_BACKOFF.delay(failures) });
    }

    pub(super) fn set(&mut self, state: TaskState, error: String, exit_code: Option<i32>) {
        self.status.state = state;
        self.status.since_ms = now_ms();
        self.status.message = state.as_str().to_owned();
        self.status.error = error;
        self.status.exit_code = exit_code;
    }

    fn advance(&mut self, state: TaskState) {
        if state > self.status.state {
            self.set(state, String::new(), None);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{io, time::Duration};

    use weft_model::TaskId;

    use super::*;
    use crate::runtime::RuntimeError;

    fn fail(progress: &mut Progress, step: Step, now: Instant) {
        progress.begin(step);
        let outcome = Err(RuntimeError::io("create", "/run/x")(io::Error::from(io::ErrorKind::PermissionDenied)));
        progress.finish(&Finished { task: TaskId::from_random(7), step, outcome }, now);
    }

    fn finished(step: Step) -> Progress {
        let mut progress = Progress::new();
        fail(&mut progress, step, Instant::now());
        progress
    }

    #[test]
    fn what_fails_again_rests_longer() {
        let (mut progress, now) = (Progress::new(), Instant::now());
        let wait = |progress: &Progress| progress.resting(now).unwrap() - now;
        fail(&mut progress, Step::Remove, now);
        let first = wait(&progress);
        assert!(progress.rests(Step::Remove, now) && !progress.rests(Step::Remove, now + first));
        assert!(!progress.rests(Step::Stop, now), "another step need not wait for it");
        fail(&mut progress, Step::Remove, now);
        assert_eq!(wait(&progress), first * 2);
        for _ in 0..100 {
            fail(&mut progress, Step::Remove, now);
        }
        assert!(wait(&progress) <= Duration::from_secs(30));
        fail(&mut progress, Step::Stop, now);
        assert_eq!(wait(&progress), first, "another step's failures are its own");
    }

    #[test]
    fn what_succeeds_does_not_rest() {
        let (mut progress, now) = (Progress::new(), Instant::now());
        fail(&mut progress, Step::Stop, now);
        progress.begin(Step::Stop);
        progress.finish(&Finished { task: TaskId::from_random(7), step: Step::Stop, outcome: Ok(()) }, now);
        assert_eq!(progress.resting(now), None);
    }

    #[test]
    fn an_unwanted_image_is_not_fetched_and_no_failure() {
        let mut progress = Progress::new();
        let abort = progress.begin(Step::Prepare);
        progress.cut_fetching_short();
        assert!(abort.is_cancelled());
        let (task, step) = (TaskId::from_random(7), Step::Prepare);
        progress.finish(&Finished { task, step, outcome: Err(RuntimeError::Unwanted) }, Instant::now());
        assert_eq!((progress.status.state, progress.in_flight), (TaskState::Preparing, None));
        let abort = progress.begin(Step::Remove);
        progress.cut_fetching_short();
        assert!(!abort.is_cancelled());
    }

    #[test]
    fn a_failed_step_shows_with_its_cause() {
        for (step, state) in [(Step::Prepare, TaskState::Rejected), (Step::Start, TaskState::Failed)] {
            let status = finished(step).status;
            assert_eq!((status.state, &*status.error), (state, "cannot create /run/x: permission denied"));
        }
    }

    #[test]
    fn a_task_that_could_not_be_told_to_stop_is_told_again() {
        let progress = finished(Step::Stop);
        assert!(!progress.stopping && progress.in_flight.is_none());
        assert_eq!(progress.status.state, TaskState::Accepted);
    }
}
