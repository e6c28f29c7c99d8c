//! Decides when nodes start and stop sending traffic to a task. The order of the steps ensures that
//! no request is lost.
//!
//! Other nodes send new flows to a task only after its own node can deliver them. The task's node
//! stops it only after no node sends new flows to it. These are the steps ([`Traffic`]), and the
//! condition of each step:
//!
//! ```text
//!   None ───(1)──▶ Local ───(2)──▶ Active ───(3)──▶ Draining ───(4)──▶ Drained
//!                    │                                 ▲
//!                    └───────────────(3)───────────────┘
//!
//!   (1) the task is running
//!   (2) the task's own node has acknowledged the plan with Local
//!   (3) the desired state is Shutdown or Remove
//!   (4) every node that the cluster waits for has acknowledged the plan with Draining
//! ```
//!
//! The waits (2) and (4) end after [`ACK_WAIT_MS`] at the latest, so that a node that does not
//! acknowledge cannot block a service. A new leader starts these waits again, because it has no
//! acknowledgements yet. A task never returns to an earlier step. Its node may stop it only in the
//! steps `None` and `Drained` ([`Task::must_stop`]).

use weft_model::state::{Task, TaskState, Traffic};

use super::Context;

/// The maximum time that a step waits for acknowledgements.
pub(crate) const ACK_WAIT_MS: u64 = 5_000;

/// Moves every placed task to its next step if the condition of this step holds.
pub(super) fn advance(ctx: &mut Context<'_>) {
    let state = ctx.state;
    for task in state.tasks.values().filter(|t| t.node.is_some() && !t.status.state.is_terminal()) {
        if let Some(traffic) = next_step(task, ctx) {
            ctx.set_traffic(task, traffic);
        }
    }
}

fn next_step(task: &Task, ctx: &mut Context<'_>) -> Option<Traffic> {
    let stays = task.desired <= TaskState::Running;
    match task.traffic {
        Traffic::None if stays && task.status.state == TaskState::Running => Some(Traffic::Local),
        Traffic::Local if stays => {
            let own = task.node.as_ref().is_some_and(|node| ctx.acks.has_acked(node, task.traffic_index));
            (own || ack_wait_is_over(task, ctx)).then_some(Traffic::Active)
        }
        Traffic::Local | Traffic::Active if !stays => Some(Traffic::Draining),
        Traffic::Draining => {
            let all = ctx.acks.all_acked(ctx.state, task.traffic_index);
            (all || ack_wait_is_over(task, ctx)).then_some(Traffic::Drained)
        }
        Traffic::None | Traffic::Local | Traffic::Active | Traffic::Drained => None,
    }
}

fn ack_wait_is_over(task: &Task, ctx: &mut Context<'_>) -> bool {
    let since_ms = task.traffic_since_ms.max(ctx.acks.since_ms);
    ctx.is_due(since_ms.saturating_add(ACK_WAIT_MS))
}
