//! Rolling updates: replaces a few slots at a time and watches the new tasks. If too many new tasks
//! fail, the update pauses or rolls back. [`UpdateState`] shows the states and their transitions.
//!
//! The messages copy Swarm's wording, because scripts search for it.

use std::fmt;

use weft_model::{
    Command, TaskId,
    spec::{FailureAction, UpdateConfig},
    state::{Service, Task, TaskState, Traffic, UpdateState, UpdateStatus},
};

use super::{
    super::{
        Context,
        slot_tasks::{SlotTasks, ended_by_itself},
    },
    can_be_placed,
    rollout::Rollout,
};

/// How long a new task may have no place before it counts as failed, in milliseconds, if the update
/// config has a shorter monitor time. Without a limit, an update to a spec that no node can run
/// would never end. In this time a node restarts, and a freed address can be used again.
const PLACE_WAIT_MS: u64 = 60_000;

/// The config of the current update. During a rollback this is the rollback config.
pub(super) fn config(service: &Service) -> &UpdateConfig {
    match service.update.as_ref().map(|u| u.state) {
        Some(UpdateState::RollbackStarted | UpdateState::RollbackPaused) => &service.spec.rollback,
        _ => &service.spec.update,
    }
}

/// Advances the update of the service by one step: starts it, replaces the next tasks, pauses it,
/// rolls it back or completes it.
pub(super) fn advance<'a>(
    service: &Service,
    slots: impl Iterator<Item = &'a SlotTasks<'a>>,
    rollout: &mut Rollout<'_>,
    ctx: &mut Context<'_>,
) {
    let Some(status) = service.update.as_ref().filter(|u| is_running(u.state)) else {
        if !rollout.outdated.is_empty() && !service.update.as_ref().is_some_and(|u| is_paused(u.state)) {
            start(service, ctx);
        }
        return;
    };
    let config = config(service);
    let progress: Vec<_> = slots.map(|slot| progress(service, status, config, slot, ctx)).collect();
    let failed: Vec<_> = progress.iter().filter_map(|p| p.failed.as_ref()).collect();
    let too_many = failed.len() as u64 * 1000 > rollout.total as u64 * u64::from(config.max_failure_permille);
    if let Some(failure) = failed.first().filter(|_| too_many && config.on_failure != FailureAction::Continue) {
        return fail(service, status, config, failure, ctx);
    }
    let in_progress = progress.iter().filter(|p| p.failed.is_none() && p.in_progress).count();
    if !rollout.outdated.is_empty() {
        replace_next(config, in_progress, rollout, ctx);
    } else if !progress.iter().any(|p| p.failed.is_none() && p.watched) {
        complete(service, status, ctx);
    }
}

fn is_running(state: UpdateState) -> bool {
    matches!(state, UpdateState::Updating | UpdateState::RollbackStarted)
}

fn is_paused(state: UpdateState) -> bool {
    matches!(state, UpdateState::Paused | UpdateState::RollbackPaused)
}

/// How far the running update is in one slot.
#[derive(Debug)]
struct Progress {
    /// Why the update has failed in this slot.
    failed: Option<Failure>,
    /// The new task does not serve yet, or has served for less than the delay between two batches.
    in_progress: bool,
    /// The new task does not serve yet, or is still watched for failure.
    watched: bool,
}

/// Why the update has failed in a slot.
#[derive(Debug)]
enum Failure {
    /// A task of the new spec ended while it was watched.
    Ended(TaskId),
    /// A task of the new spec has had no place for too long, for this reason.
    NoPlace(TaskId, String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended(task) => write!(f, "due to failure or early termination of task {task}"),
            Self::NoPlace(task, reason) => write!(f, "because task {task} has no place: {reason}"),
        }
    }
}

fn progress(
    service: &Service,
    status: &UpdateStatus,
    config: &UpdateConfig,
    slot: &SlotTasks<'_>,
    ctx: &mut Context<'_>,
) -> Progress {
    let of_update = |t: &&&Task| t.version == service.task_version;
    let ended = slot.tasks.iter().filter(of_update).find(|t| has_failed(t, status, config)).map(|t| t.id.clone());
    // A new task that waits for its paused node is not part of the update.
    let is_new = |t: &&Task| t.version == service.task_version && t.spec == service.spec.task;
    let new = slot.live().filter(is_new).find(|t| is_placed(t) || can_be_placed(slot.slot, service, ctx.state));
    let unplaced = new.filter(|t| {
        let since_ms = t.meta.created_ms.max(status.started_ms);
        !is_placed(t) && ctx.is_due(since_ms.saturating_add(config.monitor_ms.max(PLACE_WAIT_MS)))
    });
    let unplaced = unplaced.map(|t| Failure::NoPlace(t.id.clone(), t.status.error.clone()));
    // A new leader, and one that was paused, may not know yet that the task has ended.
    let has_served_for = |period_ms: u64, task: &Task, ctx: &mut Context<'_>| {
        task.traffic == Traffic::Active
            && task.node.as_ref().is_some_and(|node| ctx.acks.has_heard_from(node))
            && ctx.is_due(task.traffic_since_ms.saturating_add(period_ms))
    };
    Progress {
        failed: ended.map(Failure::Ended).or(unplaced),
        in_progress: new.is_some_and(|t| !has_served_for(config.delay_ms, t, ctx)),
        watched: new.is_some_and(|t| !has_served_for(config.monitor_ms, t, ctx)),
    }
}

/// Whether the task has a node.
fn is_placed(task: &Task) -> bool {
    task.status.state >= TaskState::Assigned
}

/// Whether the task ended by itself during this update, before or while it was watched.
fn has_failed(task: &Task, status: &UpdateStatus, config: &UpdateConfig) -> bool {
    let served_ms =
        if task.traffic == Traffic::None { 0 } else { task.state_since_ms.saturating_sub(task.traffic_since_ms) };
    ended_by_itself(task)
        && task.desired != TaskState::Remove
        && task.state_since_ms >= status.started_ms
        && served_ms <= config.monitor_ms
}

/// Starts to replace as many slots as the parallelism allows. Slots that do not serve come first.
fn replace_next(config: &UpdateConfig, in_progress: usize, rollout: &mut Rollout<'_>, ctx: &mut Context<'_>) {
    let parallelism =
        if config.parallelism == 0 { usize::MAX } else { usize::try_from(config.parallelism).unwrap_or(usize::MAX) };
    let mut outdated = std::mem::take(&mut rollout.outdated);
    outdated.sort_by_key(|o| (o.old.traffic == Traffic::Active, o.slot));
    let mut available = parallelism.saturating_sub(in_progress);
    for replacement in outdated {
        if available == 0 {
            break;
        }
        available -= usize::from(rollout.replace(&replacement, config.order, ctx));
    }
}

fn start(service: &Service, ctx: &mut Context<'_>) {
    let status = UpdateStatus {
        state: UpdateState::Updating,
        started_ms: ctx.now_ms,
        completed_ms: None,
        message: "update in progress".to_owned(),
    };
    ctx.set_update_status(service, status);
}

/// Pauses the update, or rolls it back. If the previous spec is refused, the rollback is paused
/// before it has begun. The previous spec is kept, so that a user can roll back later.
fn fail(service: &Service, status: &UpdateStatus, config: &UpdateConfig, cause: &Failure, ctx: &mut Context<'_>) {
    let paused = |state, message| UpdateStatus { state, started_ms: status.started_ms, completed_ms: None, message };
    let (id, version) = (service.id.clone(), service.meta.version);
    if status.state == UpdateState::Updating
        && config.on_failure == FailureAction::Rollback
        && service.previous.is_some()
    {
        let message = format!("update rolled back {cause}");
        let roll_back = Command::RollbackService { id: id.clone(), version, message, automatic: true };
        let status = paused(UpdateState::RollbackPaused, format!("rollback paused: the update failed {cause}"));
        ctx.propose_or(roll_back, move |refused| {
            let message = format!("{}; cannot roll back: {refused}", status.message);
            Command::SetUpdateStatus { service: id, version, status: UpdateStatus { message, ..status } }
        });
        return;
    }
    let status = if status.state == UpdateState::RollbackStarted {
        paused(UpdateState::RollbackPaused, format!("rollback paused {cause}"))
    } else {
        paused(UpdateState::Paused, format!("update paused {cause}"))
    };
    ctx.set_update_status(service, status);
}

fn complete(service: &Service, status: &UpdateStatus, ctx: &mut Context<'_>) {
    let (state, message) = match status.state {
        UpdateState::RollbackStarted => (UpdateState::RollbackCompleted, "rollback completed"),
        _ => (UpdateState::Completed, "update completed"),
    };
    let (started_ms, completed_ms) = (status.started_ms, Some(ctx.now_ms));
    ctx.set_update_status(service, UpdateStatus { state, started_ms, completed_ms, message: message.to_owned() });
}
