//! How far one task has come, as far as this daemon has seen: what is reported of it, and what is being done.

use weft_model::state::{TaskState, TaskStatus};

use super::{
    steps::Finished,
    tasks::{self, Step},
};
use crate::{
    clock::now_ms,
    runtime::{ObservedTask, Phase, chain},
};

#[derive(Debug)]
pub(super) struct Progress {
    pub(super) status: TaskStatus,
    pub(super) in_flight: Option<Step>,
    /// It takes connections, or is given up waiting for.
    pub(super) listening: bool,
    pub(super) stopping: bool,
}

impl Progress {
    /// Of a task of which nothing is known yet.
    pub(super) fn new() -> Self {
        Self { status: tasks::accepted(now_ms()), in_flight: None, listening: false, stopping: false }
    }

    pub(super) fn begin(&mut self, step: Step) {
        self.in_flight = Some(step);
        match step {
            Step::Prepare => self.advance(TaskState::Preparing),
            Step::Start => self.advance(TaskState::Starting),
            Step::Stop => self.stopping = true,
            Step::Listen | Step::Remove => {}
        }
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
    pub(super) fn finish(&mut self, finished: &Finished) {
        if self.in_flight == Some(finished.step) {
            self.in_flight = None;
        }
        self.listening |= finished.step == Step::Listen;
        let Err(error) = &finished.outcome else { return };
        let error = chain(error);
        tracing::warn!(task = %finished.task, step = ?finished.step, error, "a step of a task failed");
        match finished.step {
            Step::Prepare => self.set(TaskState::Rejected, error, None),
            Step::Start => self.set(TaskState::Failed, error, None),
            Step::Stop => self.stopping = false,
            Step::Listen | Step::Remove => {}
        }
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
    use std::io;

    use weft_model::TaskId;

    use super::*;
    use crate::runtime::RuntimeError;

    fn finished(step: Step) -> Progress {
        let mut progress = Progress::new();
        progress.begin(step);
        let outcome = Err(RuntimeError::io("create", "/run/x")(io::Error::from(io::ErrorKind::PermissionDenied)));
        progress.finish(&Finished { task: TaskId::from_random(7), step, outcome });
        progress
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
