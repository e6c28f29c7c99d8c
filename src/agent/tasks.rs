//! What to do next with one task: a pure function of its goal, of what the runtime shows and of what was reported.
//!
//! Owns the life of a task on its node. Must not touch the runtime: the agent carries the steps out.

use weft_model::{
    plan::TaskGoal,
    state::{TaskState, TaskStatus},
};

use crate::runtime::{Exit, Phase};

/// One call to the runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Prepare,
    Start,
    /// Wait until it takes connections.
    Listen,
    Stop,
    Remove,
}

/// What is known of a task when the next step is chosen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    /// `None`: the plan does not hold the task any more.
    pub goal: Option<TaskGoal>,
    /// `None`: the runtime does not know the task.
    pub phase: Option<&'a Phase>,
    /// Its links are made and the mesh delivers to them.
    pub plumbed: bool,
    /// The plan sends traffic to it, so it once ran.
    pub has_run: bool,
    /// It takes connections, or is given up waiting for.
    pub listening: bool,
    /// It was told to stop by this daemon.
    pub stopping: bool,
    pub reported: TaskState,
}

/// What follows from a [`View`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Next {
    Wait,
    Do(Step),
    /// The task has ended: nothing more to do than to say so.
    Ended(Ending),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub state: TaskState,
    pub error: String,
    pub exit_code: Option<i32>,
}

impl Ending {
    fn new(state: TaskState, error: &str) -> Self {
        Self { state, error: error.to_owned(), exit_code: None }
    }
}

pub(crate) fn next(view: View<'_>) -> Next {
    let Some(goal) = view.goal else {
        return if view.phase.is_some() { Next::Do(Step::Remove) } else { Next::Wait };
    };
    if view.reported.is_terminal() {
        let runs = matches!(view.phase, Some(Phase::Running { .. }));
        return if runs && !view.stopping { Next::Do(Step::Stop) } else { Next::Wait };
    }
    match (goal, view.phase) {
        (TaskGoal::Stop, None) => Next::Ended(Ending::new(TaskState::Shutdown, "")),
        (TaskGoal::Stop, Some(Phase::Prepared)) => Next::Do(Step::Remove),
        (TaskGoal::Stop, Some(Phase::Running { .. })) if view.stopping => Next::Wait,
        (TaskGoal::Stop, Some(Phase::Running { .. })) => Next::Do(Step::Stop),
        (_, None) if view.has_run => {
            Next::Ended(Ending::new(TaskState::Failed, "task lost: the node restarted or the task was removed by hand"))
        }
        (_, None) => Next::Do(Step::Prepare),
        (TaskGoal::Run, Some(Phase::Prepared)) if view.plumbed => Next::Do(Step::Start),
        (TaskGoal::Run, Some(Phase::Running { .. })) if !view.listening => Next::Do(Step::Listen),
        (_, Some(Phase::Prepared | Phase::Running { .. })) => Next::Wait,
        (goal, Some(Phase::Exited(exit))) => Next::Ended(ending(goal, exit)),
    }
}

/// An exit is a shutdown where it was asked for, else it is the task's own doing.
fn ending(goal: TaskGoal, exit: &Exit) -> Ending {
    let (state, error) = match (goal, exit.code, &exit.error) {
        (TaskGoal::Stop, _, _) => (TaskState::Shutdown, String::new()),
        (_, _, Some(error)) => (TaskState::Failed, error.clone()),
        (_, 0, None) => (TaskState::Complete, String::new()),
        (_, code, None) => (TaskState::Failed, format!("task: non-zero exit ({code})")),
    };
    Ending { state, error, exit_code: Some(exit.code) }
}

/// The status that a phase alone shows; never less than what was reported.
pub(crate) fn observed(phase: &Phase, listening: bool, reported: TaskState) -> TaskState {
    let shown = match phase {
        Phase::Prepared => TaskState::Ready,
        Phase::Running { .. } if !listening => TaskState::Starting,
        Phase::Running { .. } => TaskState::Running,
        Phase::Exited(_) => reported,
    };
    shown.max(reported)
}

/// A task of which nothing is known but that it is planned here.
pub(crate) fn accepted(now_ms: u64) -> TaskStatus {
    TaskStatus {
        state: TaskState::Accepted,
        since_ms: now_ms,
        message: TaskState::Accepted.as_str().to_owned(),
        error: String::new(),
        exit_code: None,
        container: None,
        pid: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RUNNING: Phase = Phase::Running { pid: 7, since_ms: 1 };

    fn view(goal: Option<TaskGoal>, phase: Option<&Phase>) -> View<'_> {
        View {
            goal,
            phase,
            plumbed: true,
            has_run: false,
            listening: true,
            stopping: false,
            reported: TaskState::Accepted,
        }
    }

    #[track_caller]
    fn check(view: View<'_>, want: &Next) {
        assert_eq!(next(view), *want);
    }

    #[test]
    fn a_planned_task_is_prepared_plumbed_then_started() {
        check(view(Some(TaskGoal::Run), None), &Next::Do(Step::Prepare));
        check(View { plumbed: false, ..view(Some(TaskGoal::Run), Some(&Phase::Prepared)) }, &Next::Wait);
        check(view(Some(TaskGoal::Run), Some(&Phase::Prepared)), &Next::Do(Step::Start));
        check(view(Some(TaskGoal::Run), Some(&RUNNING)), &Next::Wait);
    }

    #[test]
    fn a_started_task_runs_once_it_listens() {
        let deaf = View { listening: false, ..view(Some(TaskGoal::Run), Some(&RUNNING)) };
        check(deaf, &Next::Do(Step::Listen));
        assert_eq!(observed(&RUNNING, false, TaskState::Starting), TaskState::Starting);
        assert_eq!(observed(&RUNNING, true, TaskState::Starting), TaskState::Running);
        check(View { goal: Some(TaskGoal::Stop), ..deaf }, &Next::Do(Step::Stop));
    }

    #[test]
    fn a_task_that_shall_only_be_ready_is_held_there() {
        check(view(Some(TaskGoal::Ready), None), &Next::Do(Step::Prepare));
        check(view(Some(TaskGoal::Ready), Some(&Phase::Prepared)), &Next::Wait);
    }

    #[test]
    fn a_task_is_told_to_stop_once() {
        check(view(Some(TaskGoal::Stop), Some(&RUNNING)), &Next::Do(Step::Stop));
        check(View { stopping: true, ..view(Some(TaskGoal::Stop), Some(&RUNNING)) }, &Next::Wait);
        let exited = Phase::Exited(Exit { code: 143, at_ms: 2, error: None });
        let shutdown = Ending { state: TaskState::Shutdown, error: String::new(), exit_code: Some(143) };
        check(view(Some(TaskGoal::Stop), Some(&exited)), &Next::Ended(shutdown));
    }

    #[test]
    fn a_task_that_ran_and_is_gone_has_failed() {
        let lost = View { has_run: true, ..view(Some(TaskGoal::Run), None) };
        assert!(matches!(next(lost), Next::Ended(Ending { state: TaskState::Failed, .. })));
    }

    #[test]
    fn a_task_in_no_plan_is_removed() {
        check(view(None, Some(&RUNNING)), &Next::Do(Step::Remove));
        check(view(None, None), &Next::Wait);
    }

    #[test]
    fn an_ended_task_is_left_alone() {
        let ended = View { reported: TaskState::Failed, ..view(Some(TaskGoal::Run), None) };
        check(ended, &Next::Wait);
    }

    #[test]
    fn an_exit_by_itself_is_complete_or_failed() {
        let exit = |code, error: Option<&str>| Phase::Exited(Exit { code, at_ms: 2, error: error.map(str::to_owned) });
        for (phase, state, error) in [
            (exit(0, None), TaskState::Complete, ""),
            (exit(3, None), TaskState::Failed, "task: non-zero exit (3)"),
            (exit(127, Some("no such file")), TaskState::Failed, "no such file"),
        ] {
            let Next::Ended(ending) = next(view(Some(TaskGoal::Run), Some(&phase))) else { panic!("not ended") };
            assert_eq!((ending.state, ending.error.as_str()), (state, error));
        }
    }
}
