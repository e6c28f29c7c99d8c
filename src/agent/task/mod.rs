//! The tasks of this node: which step each one needs next, and the steps in progress.
//!
//! [`super::reconcile`] calls [`Tasks`] in each pass. A step is one call to the runtime, or the
//! wait for a task's ports. It runs in the background, so that a slow task does not delay the
//! others. In reading order: [`files`] has the secrets and configs of a task (pure), [`next`]
//! chooses a step (pure), [`record`] keeps the agent's state of a task, [`listening`] waits for
//! ports, [`run`] runs a step.
//!
//! The life of a task on its node. Steps are in brackets, and the state that the node reports is on
//! the right:
//!
//! ```text
//!   the plan lists the task with the goal Ready or Run           Accepted
//!       │
//!   [Prepare]  fetch the image, create the network namespace     Preparing
//!       │  ├── failed ─────────────────────────────────────────▶ Rejected
//!       ▼
//!   prepared, waits for its links, the data plane, its resolver  Ready
//!       │      and for the goal Run
//!   [Start]    start the program                                 Starting
//!       │  ├── failed ─────────────────────────────────────────▶ Failed
//!       ▼
//!   [Listen]   wait for its published TCP ports, 5 s at most     Starting
//!       │
//!       ▼
//!   running                                                      Running
//!       │  ├── the program exits by itself, with 0 ────────────▶ Complete
//!       │  ├── the program exits by itself, with another code ─▶ Failed
//!       │  goal Stop
//!   [Stop]     stop signal, grace period, SIGKILL
//!       ▼
//!   exited                                                       Shutdown
//!       │  the plan does not list the task any more
//!   [Remove]   remove all that the runtime keeps of the task
//! ```
//!
//! There are two exceptions. If a task is only prepared when its goal becomes Stop, its next step
//! is \[Remove\]. If the plan no longer lists a task, its next step is \[Remove\] in any state.
//!
//! Invariants that others rely on: a reported state never changes to an earlier one, and a task has
//! at most one call to the runtime at a time. Only \[Listen\] may still be in progress when another
//! step starts.
//!
//! Tasks (tokio): one for each step in progress.

mod files;
mod next;
mod record;
mod listening;
mod run;

use std::{
    collections::{BTreeMap, BTreeSet},
    future,
    sync::Arc,
};

use tokio::{
    task::{JoinError, JoinSet},
    time::Instant,
};
use weft_model::{
    NodePlan, TaskId,
    plan::{NetworkPlan, TaskGoal, TaskPlan},
    state::{TaskState, TaskStatus},
};

use self::{
    files::Files,
    listening::ListenCheck,
    next::{Next, TaskView},
    run::StepCall,
};
pub(super) use self::{next::Step, record::TaskRecord, run::FinishedStep};
use crate::runtime::{Executor, ObservedTask};

/// The point of a pass at which steps are started.
#[derive(Debug, Clone, Copy)]
pub(super) enum PassPoint<'a> {
    /// Before the links of the plan are made. Only [`Step::Prepare`] may start: it needs nothing of
    /// the network, and the links of a new task need what it makes.
    BeforeLinks,
    /// After all layers.
    End {
        /// The tasks whose links, data plane and resolver are ready.
        network_ready: &'a BTreeSet<TaskId>,
    },
}

impl PassPoint<'_> {
    fn may_start(self, step: Step) -> bool {
        matches!(self, Self::End { .. }) || step == Step::Prepare
    }

    fn is_network_ready(self, task: &TaskId) -> bool {
        matches!(self, Self::End { network_ready } if network_ready.contains(task))
    }
}

/// All tasks of this node.
pub(super) struct Tasks {
    executor: Arc<dyn Executor>,
    /// The agent's state of each task between two passes. A new agent rebuilds it from the plan and
    /// the runtime.
    pub(super) records: BTreeMap<TaskId, TaskRecord>,
    /// The steps in progress.
    pub(super) steps: JoinSet<FinishedStep>,
    /// The runtime has not listed its tasks yet under this daemon, but is expected to.
    pub(super) awaits_list: bool,
}

impl Tasks {
    pub(super) fn new(executor: Arc<dyn Executor>) -> Self {
        Self { executor, records: BTreeMap::new(), steps: JoinSet::new(), awaits_list: true }
    }

    /// Creates a record for each task of the plan or the runtime, and drops the records of tasks in
    /// neither.
    pub(super) fn track(&mut self, plan: &NodePlan, observed: &BTreeMap<TaskId, ObservedTask>) {
        let planned: BTreeSet<&TaskId> = plan.tasks.iter().map(|t| &t.id).collect();
        self.records.retain(|id, record| planned.contains(id) || observed.contains_key(id) || record.step.is_some());
        for id in planned.into_iter().chain(observed.keys()) {
            self.records.entry(id.clone()).or_insert_with(TaskRecord::new);
        }
    }

    /// Chooses the next step of each task and starts it in the background, if it may start at this
    /// point of the pass.
    pub(super) fn start_next_steps(
        &mut self,
        plan: &NodePlan,
        observed: &BTreeMap<TaskId, ObservedTask>,
        point: PassPoint<'_>,
        now: Instant,
    ) {
        let plans: BTreeMap<&TaskId, &TaskPlan> = plan.tasks.iter().map(|t| (&t.id, t)).collect();
        // A task becomes a backend only after it ran. Plans of an earlier release say it only so.
        let backends: BTreeSet<&TaskId> =
            plan.services.iter().flat_map(|s| &s.backends).map(|backend| &backend.task).collect();
        for (id, record) in &mut self.records {
            let planned = plans.get(id).copied();
            let seen = observed.get(id);
            // The task has run before, perhaps under an earlier daemon, so the agent does not wait
            // for its ports again.
            let has_run = backends.contains(id) || planned.is_some_and(|task| task.has_run);
            record.listen_done |= has_run;
            record.update_from_runtime(seen);
            if planned.is_none_or(|task| task.desired == TaskGoal::Stop) {
                record.cancel_prepare();
            }
            // The wait for ports does not delay the next step, which may be Stop.
            if record.step.is_some_and(|step| step != Step::Listen) {
                continue;
            }
            // Only the preparation of a task needs its files.
            let unprepared = planned.filter(|_| seen.is_none());
            let files = unprepared.map_or_else(Files::default, |task| files::of(plan, task));
            let view = TaskView {
                goal: planned.map(|t| t.desired),
                phase: seen.map(|o| &o.phase),
                awaits_list: self.awaits_list,
                network_ready: planned.is_some() && point.is_network_ready(id),
                has_run,
                listen_done: record.listen_done || record.step == Some(Step::Listen),
                files: &files,
                stop_requested: record.stop_requested,
                reported: record.status.state,
            };
            match next::next(view) {
                Next::Wait => {}
                Next::Run(step) if !point.may_start(step) || record.is_backing_off(step, now) => {}
                Next::End(end) => record.set_status(end.state, end.error, end.exit_code),
                Next::Run(step) => {
                    let cancel = record.begin_step(step);
                    let ports = planned.map(|task| listening::expected_ports(plan, task)).unwrap_or_default();
                    let call = StepCall {
                        executor: Arc::clone(&self.executor),
                        step,
                        task: id.clone(),
                        plan: planned.cloned(),
                        networks: planned.map(|task| networks_of(plan, task)).unwrap_or_default(),
                        files: files.complete(),
                        cancel,
                        listen_check: ListenCheck { pid: record.status.pid, ports },
                    };
                    self.steps.spawn(call.run());
                }
            }
        }
    }

    /// Waits until a step has finished, and records the outcomes of all finished steps.
    /// Cancel-safe. Never returns if no step is in progress.
    pub(super) async fn step_finished(&mut self) {
        match self.steps.join_next().await {
            Some(finished) => {
                self.finish_step(finished);
                while let Some(finished) = self.steps.try_join_next() {
                    self.finish_step(finished);
                }
            }
            None => future::pending().await,
        }
    }

    pub(super) fn finish_step(&mut self, finished: Result<FinishedStep, JoinError>) {
        // Never an error: the agent aborts no step, and a step catches its own panics.
        let Ok(finished) = finished else { return };
        if let Some(record) = self.records.get_mut(&finished.task) {
            record.finish_step(&finished, Instant::now());
        }
    }

    /// Cancels the steps that can be cancelled, and waits until all steps have finished.
    pub(super) async fn cancel_steps(&mut self) {
        self.records.values().for_each(TaskRecord::cancel_step);
        while let Some(finished) = self.steps.join_next().await {
            self.finish_step(finished);
        }
    }

    /// The earliest time after `now` at which a failed step may be retried. `None` if there is
    /// none.
    pub(super) fn next_retry(&self, now: Instant) -> Option<Instant> {
        self.records.values().filter_map(|record| record.retry_at(now)).min()
    }

    /// The states of the plan's tasks, for the report.
    pub(super) fn statuses(&self, plan: &NodePlan) -> Vec<(TaskId, TaskStatus)> {
        let planned: BTreeSet<&TaskId> = plan.tasks.iter().map(|t| &t.id).collect();
        let records = self.records.iter().filter(|(id, _)| planned.contains(id));
        records.map(|(id, record)| (id.clone(), record.status.clone())).collect()
    }

    /// All planned tasks that should run have failed, for this reason.
    pub(super) fn fail_all(&mut self, plan: &NodePlan, reason: &str) {
        self.track(plan, &BTreeMap::new());
        let wanted = plan.tasks.iter().filter(|task| task.desired != TaskGoal::Stop);
        for task in wanted {
            if let Some(record) = self.records.get_mut(&task.id).filter(|record| !record.status.state.is_terminal()) {
                record.set_status(TaskState::Failed, reason.to_owned(), None);
            }
        }
    }

    /// Drops all records, after the runtime removed all tasks.
    pub(super) fn clear(&mut self) {
        self.records.clear();
    }
}

/// The networks of a task.
fn networks_of(plan: &NodePlan, task: &TaskPlan) -> Vec<NetworkPlan> {
    let is_attached = |network: &&NetworkPlan| task.attachments.iter().any(|a| a.network == network.id);
    plan.networks.iter().filter(is_attached).cloned().collect()
}
