//! The hand-over that loses no request. A task enters its own node's tables when it runs, every node's once its own delivers
//! to it; it leaves all of them, as a draining backend, before it is told to stop. Each step waits until the nodes hold
//! the one before: ready nodes only, and [`ACK_WAIT_MS`] at most, which a new leader grants anew.

use weft_model::{
    ClusterState, Command,
    state::{Task, TaskState, Traffic},
};

use super::{ACK_WAIT_MS, Context};

pub(super) fn hand_over(state: &ClusterState, ctx: &mut Context<'_>) -> Vec<Command> {
    let mut commands = Vec::new();
    for task in state.tasks.values().filter(|t| t.node.is_some() && !t.status.state.is_terminal()) {
        if let Some(traffic) = next(state, task, ctx) {
            commands.push(Command::SetTraffic { id: task.id.clone(), traffic });
        }
    }
    commands
}

/// The step that this task may take now.
fn next(state: &ClusterState, task: &Task, ctx: &mut Context<'_>) -> Option<Traffic> {
    let stays = task.desired <= TaskState::Running;
    match task.traffic {
        Traffic::None if stays && task.status.state == TaskState::Running => Some(Traffic::Local),
        Traffic::Local if stays => {
            let own = task.node.as_ref().is_some_and(|node| ctx.acks.holds(node, task.traffic_index));
            (own || waited(task, ctx)).then_some(Traffic::Active)
        }
        Traffic::Local | Traffic::Active if !stays => Some(Traffic::Draining),
        Traffic::Draining => {
            let all = ctx.acks.all_ready_hold(state, task.traffic_index);
            (all || waited(task, ctx)).then_some(Traffic::Drained)
        }
        Traffic::None | Traffic::Local | Traffic::Active | Traffic::Drained => None,
    }
}

fn waited(task: &Task, ctx: &mut Context<'_>) -> bool {
    let since_ms = task.traffic_since_ms.max(ctx.acks.since_ms);
    ctx.due(since_ms.saturating_add(ACK_WAIT_MS))
}
