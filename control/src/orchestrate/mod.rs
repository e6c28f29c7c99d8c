//! Decides which commands the leader proposes next: a pure function of the cluster state, the time
//! and the plan generations that the nodes have acknowledged.
//!
//! The leader ([`crate::swarm`]) calls [`decide`] when one of these inputs changes, and at the time
//! that the last decision returned ([`Decision::wake_at_ms`]). This module does no I/O, reads no
//! clock, and does not change the cluster state that the caller passes.
//!
//! The leader relies on two properties:
//!
//! - The cluster state that a decision was made from accepts every command of the decision.
//! - A decision contains all commands that are possible before a node acts or reports. When its
//!   commands have been applied, a second call at the same time returns no commands. The exception
//!   is a decision that reached its limit of commands or rounds: it sets `wake_at_ms` to now.
//!
//! [`decide`] runs the parts below in rounds. Each part reads the cluster state and proposes
//! commands in a `Context`. A `Preview` applies these commands to a copy of the cluster state
//! before the next part reads it. The decision is complete when a round adds no command. In reading
//! order:
//!
//! - `acks`, `slot_tasks`, `restart`, `context` and `preview`: types and functions that the parts
//!   use;
//! - `orphans`: ends the tasks of nodes that are down or were removed;
//! - `service`: how many tasks a service has, and which tasks must be replaced;
//! - `convergence`: which nodes do not put their plans into effect;
//! - `traffic`: when nodes may send traffic to a task, and when the task may stop;
//! - `keys`: when WireGuard keys are replaced, and when nodes use them;
//! - `placement`: which node runs a task, chosen by [`crate::schedule`];
//! - `reaper`: deletes old tasks and removed services, and ends the quarantine of addresses.

mod acks;
mod slot_tasks;
mod restart;
mod context;
mod preview;
mod orphans;
mod service;
mod convergence;
mod traffic;
mod keys;
mod placement;
mod reaper;

#[cfg(test)]
mod tests;

use context::Context;
use preview::Preview;
use weft_model::{ClusterState, Command, Rejection};

pub use acks::{Acks, Behind};
pub(crate) use traffic::ACK_WAIT_MS;

/// The maximum number of rounds in one decision. A few rounds are enough to create a task, to place
/// it and to start its traffic.
const MAX_ROUNDS: usize = 16;

/// What the leader should do now.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    /// The commands to propose, in this order: none, one command, or one [`Command::Batch`].
    pub commands: Vec<Command>,
    /// When to decide again even if nothing changes, in Unix milliseconds.
    pub wake_at_ms: Option<u64>,
    /// Why commands of this decision were refused and dropped, although the decision was made from
    /// the same cluster state. Each refusal is a bug in this module. The leader logs them.
    pub refused: Vec<Rejection>,
}

/// Decides what the leader should change in the cluster state now.
///
/// `now_ms` is the leader's clock in Unix milliseconds. `random` returns random bits for new ids.
pub fn decide(state: &ClusterState, now_ms: u64, acks: &Acks, random: &mut dyn FnMut() -> u128) -> Decision {
    if state.cluster.is_none() {
        return Decision::default();
    }
    let now_ms = now_ms.max(state.now_ms);
    let mut preview = Preview::new(state, now_ms, acks, random);
    for _ in 0..MAX_ROUNDS {
        let before = preview.len();
        preview.start_round();
        preview.run(orphans::orphan_tasks);
        preview.run(service::reconcile);
        preview.run(convergence::judge);
        preview.run(traffic::advance);
        preview.run(keys::advance);
        placement::place_tasks(&mut preview);
        preview.run(reaper::delete_ended);
        preview.run(reaper::release_addresses);
        if preview.len() == before {
            return preview.into_decision();
        }
        if preview.is_full() {
            break;
        }
    }
    Decision { wake_at_ms: Some(now_ms), ..preview.into_decision() }
}
