//! Chooses the next step of one task, from its goal in the plan, its phase in the runtime and the
//! state reported so far.
//!
//! [`super::Tasks`] calls [`next`] in each pass. Pure: it must not call the runtime. The diagram in
//! [`super`] shows the whole life of a task.

use weft_model::{
    plan::TaskGoal,
    state::{TaskState, TaskStatus},
};

use super::files::Files;
use crate::runtime::{Exit, Phase};

/// One call to the runtime, or the wait for the task's ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::agent) enum Step {
    Prepare,
    Start,
    /// Wait until the task accepts connections.
    Listen,
    Stop,
    Remove,
}

/// The inputs of the choice of the next step.
#[derive(Debug, Clone, Copy)]
pub(super) struct TaskView<'a> {
    /// `None` if the plan does not list the task any more.
    pub(super) goal: Option<TaskGoal>,
    /// `None` if the runtime has no such task.
    pub(super) phase: Option<&'a Phase>,
    /// The runtime may have the task, and has not said so yet under this daemon.
    pub(super) awaits_list: bool,
    /// The task's links and resolver are ready, and the data plane delivers packets to it.
    pub(super) network_ready: bool,
    /// The plan says so, or sends traffic to the task.
    pub(super) has_run: bool,
    /// The step [`Step::Listen`] is in progress or has finished.
    pub(super) listen_done: bool,
    /// What the plan has of the task's secrets and configs.
    pub(super) files: &'a Files,
    /// This daemon has already asked the runtime to stop the task.
    pub(super) stop_requested: bool,
    pub(super) reported: TaskState,
}

/// What to do with a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    Wait,
    Run(Step),
    /// The task has ended: report this end, and do not call the runtime any more.
    End(TaskEnd),
}

/// The final state of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TaskEnd {
    pub(super) state: TaskState,
    pub(super) error: String,
    pub(super) exit_code: Option<i32>,
}

impl TaskEnd {
    /// The end of a task that has no exit code.
    fn without_exit(state: TaskState, error: &str) -> Self {
        Self { state, error: error.to_owned(), exit_code: None }
    }
}

pub(super) fn next(view: TaskView<'_>) -> Next {
    let Some(goal) = view.goal else {
        return if view.phase.is_some() { Next::Run(Step::Remove) } else { Next::Wait };
    };
    if view.reported.is_terminal() {
        let runs = matches!(view.phase, Some(Phase::Running { .. }));
        return if runs && !view.stop_requested { Next::Run(Step::Stop) } else { Next::Wait };
    }
    match (goal, view.phase) {
        (TaskGoal::Stop, None) => Next::End(TaskEnd::without_exit(TaskState::Shutdown, "")),
        (TaskGoal::Stop, Some(Phase::Prepared)) => Next::Run(Step::Remove),
        (TaskGoal::Stop, Some(Phase::Running { .. })) if view.stop_requested => Next::Wait,
        (TaskGoal::Stop, Some(Phase::Running { .. })) => Next::Run(Step::Stop),
        (_, None) if view.has_run => {
            let error = "the task no longer exists on its node: the node restarted, or the task was removed by hand";
            Next::End(TaskEnd::without_exit(TaskState::Failed, error))
        }
        (_, None) if view.awaits_list => Next::Wait,
        (_, None) => match view.files {
            Files::Complete(_) => Next::Run(Step::Prepare),
            Files::Awaited => Next::Wait,
            Files::Missing(error) => Next::End(TaskEnd::without_exit(TaskState::Rejected, error)),
        },
        (TaskGoal::Run, Some(Phase::Prepared)) if view.network_ready => Next::Run(Step::Start),
        (TaskGoal::Run, Some(Phase::Running { .. })) if !view.listen_done => Next::Run(Step::Listen),
        (_, Some(Phase::Prepared | Phase::Running { .. })) => Next::Wait,
        (goal, Some(Phase::Exited(exit))) => Next::End(end_of_exit(goal, exit)),
    }
}

/// The end of a task that has exited: Shutdown if its goal is Stop; otherwise Complete or Failed,
/// depending on the exit code and the error.
fn end_of_exit(goal: TaskGoal, exit: &Exit) -> TaskEnd {
    let (state, error) = match (goal, exit.code, &exit.error) {
        (TaskGoal::Stop, _, _) => (TaskState::Shutdown, String::new()),
        (_, _, Some(error)) => (TaskState::Failed, error.clone()),
        (_, 0, None) => (TaskState::Complete, String::new()),
        (_, code, None) => (TaskState::Failed, format!("task: non-zero exit ({code})")),
    };
    TaskEnd { state, error, exit_code: Some(exit.code) }
}

/// The state to report for a phase. Never earlier than `reported`.
pub(super) fn state_of_phase(phase: &Phase, listen_done: bool, reported: TaskState) -> TaskState {
    let state = match phase {
        Phase::Prepared => TaskState::Ready,
        Phase::Running { .. } if !listen_done => TaskState::Starting,
        Phase::Running { .. } => TaskState::Running,
        Phase::Exited(_) => reported,
    };
    state.max(reported)
}

/// The status of a task that the plan lists and that has had no step yet.
pub(super) fn initial_status(now_ms: u64) -> TaskStatus {
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

    static NO_FILES: Files = Files::Complete(Vec::new());
    const RUNNING: Phase = Phase::Running { pid: 7, since_ms: 1 };

    fn view(goal: Option<TaskGoal>, phase: Option<&Phase>) -> TaskView<'_> {
        TaskView {
            goal,
            phase,
            awaits_list: false,
            network_ready: true,
            has_run: false,
            listen_done: true,
            files: &NO_FILES,
            stop_requested: false,
            reported: TaskState::Accepted,
        }
    }

    #[track_caller]
    fn check(view: TaskView<'_>, want: &Next) {
        assert_eq!(next(view), *want);
    }

    #[test]
    fn a_planned_task_is_prepared_then_waits_for_its_network_then_starts() {
        check(view(Some(TaskGoal::Run), None), &Next::Run(Step::Prepare));
        check(TaskView { network_ready: false, ..view(Some(TaskGoal::Run), Some(&Phase::Prepared)) }, &Next::Wait);
        check(view(Some(TaskGoal::Run), Some(&Phase::Prepared)), &Next::Run(Step::Start));
        check(view(Some(TaskGoal::Run), Some(&RUNNING)), &Next::Wait);
    }

    #[test]
    fn a_task_that_the_runtime_may_have_is_not_prepared_until_it_has_listed_its_tasks() {
        let new = TaskView { awaits_list: true, ..view(Some(TaskGoal::Run), None) };
        check(new, &Next::Wait);
        check(TaskView { files: &Files::Missing("removed".to_owned()), ..new }, &Next::Wait);
        assert!(matches!(next(TaskView { has_run: true, ..new }), Next::End(_)), "its namespace is gone");
    }

    #[test]
    fn a_task_is_prepared_once_the_plan_has_its_secrets() {
        let new = view(Some(TaskGoal::Run), None);
        check(TaskView { files: &Files::Awaited, ..new }, &Next::Wait);
        let missing = Files::Missing("secret key was removed".to_owned());
        let rejected = TaskEnd::without_exit(TaskState::Rejected, "secret key was removed");
        check(TaskView { files: &missing, ..new }, &Next::End(rejected));
        // A task that is prepared has its files.
        for files in [&Files::Awaited, &missing] {
            check(TaskView { files, ..view(Some(TaskGoal::Run), Some(&Phase::Prepared)) }, &Next::Run(Step::Start));
            check(TaskView { files, ..view(Some(TaskGoal::Run), Some(&RUNNING)) }, &Next::Wait);
        }
    }

    #[test]
    fn a_started_task_counts_as_running_once_it_listens() {
        let not_listening = TaskView { listen_done: false, ..view(Some(TaskGoal::Run), Some(&RUNNING)) };
        check(not_listening, &Next::Run(Step::Listen));
        assert_eq!(state_of_phase(&RUNNING, false, TaskState::Starting), TaskState::Starting);
        assert_eq!(state_of_phase(&RUNNING, true, TaskState::Starting), TaskState::Running);
        check(TaskView { goal: Some(TaskGoal::Stop), ..not_listening }, &Next::Run(Step::Stop));
    }

    #[test]
    fn a_task_with_the_goal_ready_is_prepared_and_not_started() {
        check(view(Some(TaskGoal::Ready), None), &Next::Run(Step::Prepare));
        check(view(Some(TaskGoal::Ready), Some(&Phase::Prepared)), &Next::Wait);
    }

    #[test]
    fn a_task_is_stopped_once() {
        check(view(Some(TaskGoal::Stop), Some(&RUNNING)), &Next::Run(Step::Stop));
        check(TaskView { stop_requested: true, ..view(Some(TaskGoal::Stop), Some(&RUNNING)) }, &Next::Wait);
        let exited = Phase::Exited(Exit { code: 143, at_ms: 2, error: None });
        let shutdown = TaskEnd { state: TaskState::Shutdown, error: String::new(), exit_code: Some(143) };
        check(view(Some(TaskGoal::Stop), Some(&exited)), &Next::End(shutdown));
    }

    #[test]
    fn a_task_that_ran_and_is_missing_has_failed() {
        let missing = TaskView { has_run: true, ..view(Some(TaskGoal::Run), None) };
        assert!(matches!(next(missing), Next::End(TaskEnd { state: TaskState::Failed, .. })));
    }

    #[test]
    fn a_task_that_the_plan_does_not_list_is_removed() {
        check(view(None, Some(&RUNNING)), &Next::Run(Step::Remove));
        check(view(None, None), &Next::Wait);
    }

    #[test]
    fn a_task_that_has_ended_needs_no_step() {
        let ended = TaskView { reported: TaskState::Failed, ..view(Some(TaskGoal::Run), None) };
        check(ended, &Next::Wait);
    }

    #[test]
    fn an_exit_without_a_request_is_complete_or_failed() {
        let exit = |code, error: Option<&str>| Phase::Exited(Exit { code, at_ms: 2, error: error.map(str::to_owned) });
        for (phase, state, error) in [
            (exit(0, None), TaskState::Complete, ""),
            (exit(3, None), TaskState::Failed, "task: non-zero exit (3)"),
            (exit(127, Some("no such file")), TaskState::Failed, "no such file"),
        ] {
            let Next::End(end) = next(view(Some(TaskGoal::Run), Some(&phase))) else { panic!("the task has exited") };
            assert_eq!((end.state, end.error.as_str()), (state, error));
        }
    }
}
