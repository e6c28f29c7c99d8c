//! Rolling updates: a few slots at a time, watched for failure, paused or rolled back where too many fail. The wording of
//! its messages is Swarm's, which scripts look for.

use weft_model::{
    Command, TaskId,
    spec::{FailureAction, UpdateConfig},
    state::{Service, Task, TaskState, Traffic, UpdateState, UpdateStatus},
};

use super::{
    Context,
    service::Roll,
    slot::{SlotTasks, ended_by_itself},
};

/// What rules the service's update now.
pub(super) fn config(service: &Service) -> &UpdateConfig {
    match service.update.as_ref().map(|u| u.state) {
        Some(UpdateState::RollbackStarted | UpdateState::RollbackPaused) => &service.spec.rollback,
        _ => &service.spec.update,
    }
}

/// Takes the service's update a step further: begins, goes on, pauses, rolls back or completes it.
pub(super) fn advance<'a>(
    service: &Service,
    slots: impl Iterator<Item = &'a SlotTasks<'a>>,
    roll: &mut Roll<'_, '_>,
    ctx: &mut Context<'_>,
    commands: &mut Vec<Command>,
) {
    let Some(status) = service.update.as_ref().filter(|u| is_running(u.state)) else {
        let paused = |state| matches!(state, UpdateState::Paused | UpdateState::RollbackPaused);
        if !roll.outdated.is_empty() && !service.update.as_ref().is_some_and(|u| paused(u.state)) {
            commands.push(set_status(
                service,
                UpdateState::Updating,
                ctx.now_ms,
                None,
                "update in progress".to_owned(),
            ));
        }
        return;
    };
    let slots: Vec<_> = slots.collect();
    let config = config(service);
    let progress: Vec<_> = slots.iter().map(|slot| progress(service, status, config, slot, ctx)).collect();
    let failed: Vec<_> = progress.iter().filter_map(|p| p.failed.as_ref()).collect();
    let too_many = failed.len() as u64 * 1000 > roll.total as u64 * u64::from(config.max_failure_permille);
    if let Some(task) = failed.first().filter(|_| too_many && config.on_failure != FailureAction::Continue) {
        commands.push(fail(service, status, config, task));
        return;
    }
    let on_the_way = progress.iter().filter(|p| p.failed.is_none() && p.on_the_way).count();
    if !roll.outdated.is_empty() {
        next_batch(config, on_the_way, roll, ctx, commands);
    } else if !progress.iter().any(|p| p.failed.is_none() && p.watched) {
        commands.push(complete(service, status, ctx));
    }
}

fn is_running(state: UpdateState) -> bool {
    matches!(state, UpdateState::Updating | UpdateState::RollbackStarted)
}

/// Where one slot stands in the running update.
#[derive(Debug)]
struct Progress {
    /// A task of the new spec that failed while it was watched.
    failed: Option<TaskId>,
    /// Its new task does not serve yet, or serves for less than the delay between batches.
    on_the_way: bool,
    /// Its new task may still fail while it is watched.
    watched: bool,
}

fn progress(
    service: &Service,
    status: &UpdateStatus,
    config: &UpdateConfig,
    slot: &SlotTasks<'_>,
    ctx: &mut Context<'_>,
) -> Progress {
    let of_update = |t: &&&Task| t.version == service.task_version;
    let failed = slot.tasks.iter().filter(of_update).find(|t| has_failed(t, status, config)).map(|t| t.id.clone());
    let new = slot.live().find(|t| t.version == service.task_version && t.spec == service.spec.task);
    let serves_for = |period_ms: u64, task: &Task, ctx: &mut Context<'_>| {
        task.traffic == Traffic::Active && ctx.due(task.traffic_since_ms.saturating_add(period_ms))
    };
    Progress {
        failed,
        on_the_way: new.is_some_and(|t| !serves_for(config.delay_ms, t, ctx)),
        watched: new.is_some_and(|t| !serves_for(config.monitor_ms, t, ctx)),
    }
}

/// Ended by itself during this update, before it had served for as long as it is watched.
fn has_failed(task: &Task, status: &UpdateStatus, config: &UpdateConfig) -> bool {
    let served_ms =
        if task.traffic == Traffic::None { 0 } else { task.state_since_ms.saturating_sub(task.traffic_since_ms) };
    ended_by_itself(task)
        && task.desired != TaskState::Remove
        && task.state_since_ms >= status.started_ms
        && served_ms <= config.monitor_ms
}

/// Begins to replace as many slots as may be on their way at once; those that serve least come first.
fn next_batch(
    config: &UpdateConfig,
    on_the_way: usize,
    roll: &mut Roll<'_, '_>,
    ctx: &mut Context<'_>,
    commands: &mut Vec<Command>,
) {
    let at_once =
        if config.parallelism == 0 { usize::MAX } else { usize::try_from(config.parallelism).unwrap_or(usize::MAX) };
    let mut outdated = std::mem::take(&mut roll.outdated);
    outdated.sort_by_key(|o| (o.old.traffic == Traffic::Active, o.slot));
    let mut room = at_once.saturating_sub(on_the_way);
    for slot in outdated {
        if room == 0 {
            break;
        }
        room -= usize::from(roll.replace(&slot, config.order, ctx, commands));
    }
}

fn fail(service: &Service, status: &UpdateStatus, config: &UpdateConfig, task: &TaskId) -> Command {
    let because = format!("due to failure or early termination of task {task}");
    let paused = |state, message| set_status(service, state, status.started_ms, None, message);
    if status.state == UpdateState::RollbackStarted {
        return paused(UpdateState::RollbackPaused, format!("rollback paused {because}"));
    }
    if config.on_failure == FailureAction::Rollback && service.previous.is_some() {
        let message = format!("update rolled back {because}");
        return Command::RollbackService { id: service.id.clone(), version: service.meta.version, message };
    }
    paused(UpdateState::Paused, format!("update paused {because}"))
}

fn complete(service: &Service, status: &UpdateStatus, ctx: &Context<'_>) -> Command {
    let (state, message) = match status.state {
        UpdateState::RollbackStarted => (UpdateState::RollbackCompleted, "rollback completed"),
        _ => (UpdateState::Completed, "update completed"),
    };
    set_status(service, state, status.started_ms, Some(ctx.now_ms), message.to_owned())
}

fn set_status(
    service: &Service,
    state: UpdateState,
    started_ms: u64,
    completed_ms: Option<u64>,
    message: String,
) -> Command {
    let status = UpdateStatus { state, started_ms, completed_ms, message };
    Command::SetUpdateStatus { service: service.id.clone(), version: service.meta.version, status }
}
