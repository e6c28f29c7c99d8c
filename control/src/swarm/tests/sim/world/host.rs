//! A machine with a daemon.

use rand::Rng;
use weft_model::{Command, spec::Role};

use super::super::{
    ctx::{Ctx, Packet},
    faults::Unsynced,
    manager::Manager,
    node::Node,
    raft::Log,
};
use crate::raft::ProposalId;

/// A manager counts as one that answers for this long after it has died: a ping has 1 s.
const ANSWERED_MS: u64 = 1_200;

#[derive(Debug)]
pub(in crate::swarm::tests::sim) struct Host {
    pub node: Node,
    /// Runs only while the daemon runs.
    pub manager: Option<Manager>,
    /// The Raft id and the log on the disk, while no manager runs.
    pub(super) log: Option<(u64, Log)>,
    /// The log of this Raft id is lost.
    pub(super) lost_log: Option<u64>,
    pub(super) runs: bool,
    /// It continues in this tick, after a pause.
    pub(super) resumed: bool,
    /// A manager of a former cluster answers the sessions here.
    pub(super) former: bool,
    pub(super) paused: bool,
    /// A sync that began before the daemon was started last is forgotten.
    pub(super) life: u64,
    pub(super) wall_offset_ms: i64,
    /// How long a sync takes at least, and at most.
    pub(super) min_sync_ms: u64,
    pub(super) sync_ms: u64,
    /// The daemon is killed as soon as it has a vote, or anything else, that is not synced.
    pub(super) killed_before_sync: Option<Unsynced>,
    /// When the daemon ran last, and was not paused.
    pub(super) seen_ms: u64,
    /// Since when nothing disturbs the host: it runs, and exchanges packets with all others.
    pub calm_since_ms: u64,
}

impl Host {
    /// The Raft id of the manager, which may not run.
    pub(in crate::swarm::tests::sim) fn raft_id(&self) -> Option<u64> {
        self.manager.as_ref().map(|manager| manager.raft.id).or_else(|| self.log.as_ref().map(|(id, _)| *id))
    }

    /// Whether the daemon may have answered a ping that counts now.
    pub(in crate::swarm::tests::sim) fn has_answered(&self, now_ms: u64) -> bool {
        self.acts() || now_ms < self.seen_ms + ANSWERED_MS
    }

    pub(super) fn acts(&self) -> bool {
        self.runs && !self.paused
    }

    /// Runs a manager if the node's plan says so, as `membership::role`.
    pub(super) fn reconcile_role(&mut self, ctx: &mut Ctx<'_>) {
        if self.node.removed {
            return;
        }
        let Some((role, raft_id)) = self.node.published.as_ref().map(|plan| (plan.role, plan.raft_id)) else { return };
        let own = self.manager.as_ref().map(|manager| manager.raft.id);
        if role == Role::Worker {
            // The stored plan of a manager would begin a second log with its Raft id.
            if !self.node.has_stored_plan() {
                return;
            }
            if self.manager.take().is_some() {
                ctx.trace(|| format!("{} is a worker now", self.node.id));
            }
            (self.log, self.lost_log) = (None, None);
            return;
        }
        let ended = own.or(self.lost_log).is_none_or(|own| raft_id > own);
        // A stored plan of before the promotion would make a worker of it after a restart, and with
        // that remove a log that has voted.
        if ended && raft_id > 0 && self.node.has_stored_plan() {
            ctx.trace(|| format!("{} starts a manager with Raft id {raft_id}", self.node.id));
            ctx.new_log(raft_id);
            self.manager = Some(Manager::open(self.node.id.clone(), raft_id, Log::default(), ctx.now_ms, ctx.rng));
            self.lost_log = None;
        } else if let Some(former) = self.lost_log
            && ctx.now_ms.is_multiple_of(1_000)
        {
            // It asks any manager to replace the Raft id.
            let others: Vec<usize> = ctx.raft_hosts.values().copied().filter(|host| *host != ctx.host).collect();
            if !others.is_empty() {
                let to = others[ctx.rng.random_range(0..others.len())];
                let command = Command::ReplaceRaftId { node: self.node.id.clone(), raft_id: former };
                let id = ProposalId(ctx.ids.random());
                ctx.send(to, Packet::Propose { number: 0, id, command });
            }
        }
    }
}
