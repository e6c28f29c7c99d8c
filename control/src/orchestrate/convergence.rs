//! Decides which nodes do not converge: they send heartbeats, and do not acknowledge their plans,
//! for example because a layer of the node cannot be configured.
//!
//! Nothing waits for the acknowledgement of such a node, so that one broken node cannot slow down
//! the cluster: addresses come back, and tasks are handed over without it. It gets no new tasks. It
//! still runs its own tasks, and the addresses of those that have ended stay in quarantine until it
//! acknowledges their removal.
//!
//! ```text
//!               (1)              (2)                 (3)
//!   converged ──────▶ lagging ───────▶ catching up ───────▶ converged
//!                        ▲      (1)         │
//!                        └──────────────────┘
//!
//!   (1) it has not acknowledged a plan within 15 s
//!   (2) it has acknowledged the plan of step (1) or a newer one: from now on the cluster waits for
//!       its acknowledgements again
//!   (3) it has acknowledged the plan of step (2) or a newer one, so it has missed nothing
//! ```

use weft_model::{Command, command::Convergence, state::Node};

use super::Context;

/// A plan must be in effect on a node within this time. A large plan takes some seconds on a busy
/// machine.
pub(super) const CONVERGE_MS: u64 = 15_000;

/// The feature level from which on managers know the command.
const CONVERGENCE_LEVEL: u32 = 1;

pub(super) fn judge(ctx: &mut Context<'_>) {
    let state = ctx.state;
    if state.feature_level < CONVERGENCE_LEVEL {
        return;
    }
    for node in state.nodes.values().filter(|node| node.is_ready()) {
        if let Some(convergence) = next_stage(node, ctx) {
            ctx.propose(Command::SetConvergence { id: node.id.clone(), convergence });
        }
    }
}

fn next_stage(node: &Node, ctx: &mut Context<'_>) -> Option<Convergence> {
    if let Some(lag) = node.lag.as_ref().filter(|lag| ctx.acks.has_acked(&node.id, lag.index)) {
        return Some(if lag.catching_up { Convergence::Converged } else { Convergence::CatchingUp });
    }
    let behind = ctx.acks.behind.get(&node.id).filter(|_| node.gates_changes())?;
    let (since_ms, reason) = (behind.since_ms, reason(&behind.problem));
    ctx.is_due(since_ms.saturating_add(CONVERGE_MS)).then_some(Convergence::Lagging { reason })
}

fn reason(problem: &str) -> String {
    if problem.is_empty() {
        format!("the node has not acknowledged its plan for {} s", CONVERGE_MS / 1000)
    } else {
        problem.to_owned()
    }
}
