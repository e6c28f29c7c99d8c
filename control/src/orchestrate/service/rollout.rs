//! Replaces the tasks of one service, within the parallelism of its update config. A service with
//! several slots keeps at least one task serving; one with a single slot does so only with the
//! order `start-first`.

use weft_model::{
    spec::UpdateOrder,
    state::{Service, Slot, Task, TaskState, Traffic},
};

use super::super::{Context, restart::Restart, slot_tasks::is_live};

/// A slot whose task has to be replaced.
#[derive(Debug)]
pub(super) struct Replacement<'a> {
    pub(super) slot: &'a Slot,
    pub(super) old: &'a Task,
    /// How the new task starts.
    pub(super) restart: Restart,
}

/// The replacements of one service in one round.
pub(super) struct Rollout<'a> {
    service: &'a Service,
    /// How many slots the service should have.
    pub(super) total: usize,
    /// Slots whose task has an outdated spec.
    pub(super) outdated: Vec<Replacement<'a>>,
    /// Slots whose task is on a node where it may not stay.
    pub(super) misplaced: Vec<Replacement<'a>>,
    /// How many tasks receive new flows from every node and are not being stopped.
    serving: usize,
    /// Whether a new task is starting and has not failed so far.
    starting: bool,
}

impl<'a> Rollout<'a> {
    pub(super) fn new(service: &'a Service, tasks: &[&'a Task], total: usize) -> Self {
        let live = || tasks.iter().filter(|t| is_live(t));
        let is_starting = |t: &&&Task| {
            t.traffic < Traffic::Active && t.is_current(service) && t.restarts.total == 0 && t.status.error.is_empty()
        };
        Self {
            service,
            total,
            outdated: Vec::new(),
            misplaced: Vec::new(),
            serving: live().filter(|t| t.traffic == Traffic::Active).count(),
            starting: live().any(|t| is_starting(&t)),
        }
    }

    /// Starts to replace the task of a slot, and returns whether it did.
    ///
    /// With [`UpdateOrder::StopFirst`] it does nothing if this would stop the last serving task
    /// while another task is starting: a later round replaces the task. So during an update of a
    /// service with more than one slot, at least one task always serves, unless the new tasks fail.
    pub(super) fn replace(&mut self, replacement: &Replacement<'_>, order: UpdateOrder, ctx: &mut Context<'_>) -> bool {
        let Replacement { slot, old, ref restart } = *replacement;
        if order == UpdateOrder::StartFirst {
            let due = ctx.is_due(restart.not_before_ms);
            let desired = if due { TaskState::Running } else { TaskState::Ready };
            ctx.create_task(self.service, slot, desired, restart.clone());
            self.starting = true;
            return true;
        }
        let serves = old.traffic == Traffic::Active;
        if serves && self.total > 1 && self.serving <= 1 && self.starting {
            return false;
        }
        self.serving -= usize::from(serves);
        self.starting = true;
        ctx.stop_task(old, TaskState::Shutdown);
        ctx.create_task(self.service, slot, TaskState::Ready, restart.clone());
        true
    }
}
