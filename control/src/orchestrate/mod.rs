//! Decides what to change next: a pure function of the table, the time and what the nodes acked. Run by the leader
//! whenever one of them changed, and at the time that it asked for.
//!
//! It works on a copy of the table, to which it applies each command before it looks again: so one call goes as far as
//! it can without hearing from a node, what it returns is accepted by the table that it saw, and a second call on the
//! result has nothing to add. In reading order: `service` and `slot` (how many tasks, which), `update`, `restart`,
//! `traffic` (the hand-over that loses no request), `placement` (who runs them, by [`crate::schedule`]), `reaper`.

mod placement;
mod reaper;
mod restart;
mod service;
mod slot;
mod traffic;
mod update;

#[cfg(test)]
mod tests;

use std::{borrow::Cow, collections::BTreeMap};

use weft_model::{
    Applied, ClusterState, Command, NodeId, Rejection, TaskId,
    state::{NodeStatus, TaskState},
};

use crate::state::execute;

/// Commands of one decision at most: one entry of the log, well below the size of a message.
pub const MAX_COMMANDS: usize = 512;
/// Looks of one decision at most: creation, placement, traffic and their like follow each other within a few.
const MAX_ROUNDS: usize = 16;
/// How long a hand-over waits for the nodes' acks.
pub const ACK_WAIT_MS: u64 = 5_000;

/// What the leader knows of the nodes' kernels; in its memory only, and sent to it again after each reconnect.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Acks {
    /// The newest plan generation that each node's kernel holds.
    pub acked: BTreeMap<NodeId, u64>,
    /// When this leader began: no wait for an ack is older.
    pub since_ms: u64,
}

impl Acks {
    fn holds(&self, node: &NodeId, index: u64) -> bool {
        self.acked.get(node).is_some_and(|acked| *acked >= index)
    }

    fn all_ready_hold(&self, state: &ClusterState, index: u64) -> bool {
        ready(state).all(|node| self.holds(node, index))
    }

    /// The newest generation that every ready node's kernel holds.
    fn lowest(&self, state: &ClusterState) -> u64 {
        ready(state).map(|node| self.acked.get(node).copied().unwrap_or(0)).min().unwrap_or(0)
    }
}

fn ready(state: &ClusterState) -> impl Iterator<Item = &NodeId> {
    state.nodes.values().filter(|n| n.status == NodeStatus::Ready).map(|n| &n.id)
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decision {
    /// To be proposed in this order: nothing, one command, or one batch.
    pub commands: Vec<Command>,
    /// When to decide again although nothing changed.
    pub wake_at_ms: Option<u64>,
    /// Why decisions were dropped that did not fit the very table that they were made from: each is a defect, to be
    /// logged.
    pub refused: Vec<Rejection>,
}

/// What the leader should change in the table now.
pub fn decide(state: &ClusterState, now_ms: u64, acks: &Acks, random: &mut dyn FnMut() -> u128) -> Decision {
    let now_ms = now_ms.max(state.now_ms);
    let ctx = Context { now_ms, wake_at_ms: None, acks, random };
    let mut work = Work { table: Cow::Borrowed(state), commands: Vec::new(), refused: Vec::new(), ctx };
    if state.cluster.is_none() {
        return Decision::default();
    }
    for _ in 0..MAX_ROUNDS {
        let before = work.commands.len();
        work.ctx.wake_at_ms = None;
        work.phase(|state, _| lost_nodes(state));
        work.phase(service::reconcile);
        work.phase(traffic::hand_over);
        placement::place(&mut work);
        work.phase(|state, _| reaper::reap(state));
        work.phase(reaper::release);
        if work.commands.len() == before {
            let wake_at_ms = work.ctx.wake_at_ms;
            return work.into_decision(wake_at_ms);
        }
        if work.is_full() {
            break;
        }
    }
    work.into_decision(Some(now_ms))
}

/// What decisions depend on beside the table.
struct Context<'a> {
    now_ms: u64,
    wake_at_ms: Option<u64>,
    acks: &'a Acks,
    random: &'a mut dyn FnMut() -> u128,
}

impl Context<'_> {
    /// Whether this time has come; if not, it is a time to decide again.
    fn due(&mut self, at_ms: u64) -> bool {
        if self.now_ms >= at_ms {
            return true;
        }
        self.wake_at_ms = Some(self.wake_at_ms.map_or(at_ms, |wake| wake.min(at_ms)));
        false
    }

    fn new_task(&mut self) -> TaskId {
        TaskId::from_random((self.random)())
    }
}

/// The table as it will be, and the commands that make it so.
struct Work<'a> {
    table: Cow<'a, ClusterState>,
    commands: Vec<Command>,
    refused: Vec<Rejection>,
    ctx: Context<'a>,
}

impl Work<'_> {
    fn is_full(&self) -> bool {
        self.commands.len() >= MAX_COMMANDS
    }

    fn phase(&mut self, decide: impl FnOnce(&ClusterState, &mut Context<'_>) -> Vec<Command>) {
        for command in decide(&self.table, &mut self.ctx) {
            if self.is_full() {
                break;
            }
            self.must_execute(command);
        }
    }

    fn must_execute(&mut self, command: Command) {
        if let Err(refused) = self.execute(command) {
            self.refused.push(refused);
        }
    }

    /// Applies the command to the copy, and keeps it if it was accepted.
    fn execute(&mut self, command: Command) -> Result<Applied, Rejection> {
        if let Cow::Borrowed(state) = self.table {
            let mut copy = state.clone();
            copy.index += 1;
            copy.now_ms = self.ctx.now_ms;
            self.table = Cow::Owned(copy);
        }
        let applied = execute(self.table.to_mut(), command.clone())?;
        self.commands.push(command);
        Ok(applied)
    }

    fn into_decision(self, wake_at_ms: Option<u64>) -> Decision {
        let commands = if self.commands.len() > 1 { vec![Command::Batch(self.commands)] } else { self.commands };
        Decision { commands, wake_at_ms, refused: self.refused }
    }
}

/// Tasks of nodes that are down or gone are as if they had ended.
fn lost_nodes(state: &ClusterState) -> Vec<Command> {
    let lost = |node: &NodeId| state.nodes.get(node).is_none_or(|n| n.status == NodeStatus::Down);
    let placed = state.tasks.values().filter(|t| t.status.state >= TaskState::Assigned);
    placed
        .filter(|t| !t.status.state.is_terminal() && t.node.as_ref().is_some_and(lost))
        .map(|t| Command::OrphanTask { id: t.id.clone() })
        .collect()
}
