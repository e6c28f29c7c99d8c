//! A machine with a daemon.

use rand::Rng;
use weft_model::{Command, spec::Role};

use super::super::{
    ctx::{Ctx, Packet},
    manager::Manager,
    node::Node,
    raft::Log,
};
use crate::raft::ProposalId;

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
    pub(super) paused: bool,
    /// A sync that began before the daemon was started last is forgotten.
    pub(super) life: u64,
    pub(super) wall_offset_ms: i64,
    pub(super) sync_ms: u64,
}

impl Host {
    /// Runs a manager if the node's plan says so, as `membership::role`.
    pub(super) fn reconcile_role(&mut self, ctx: &mut Ctx<'_>) {
        let Some((role, raft_id)) = self.node.published.as_ref().map(|plan| (plan.role, plan.raft_id)) else { return };
        let own = self.manager.as_ref().map(|manager| manager.raft.id);
        if role == Role::Worker {
            if self.manager.take().is_some() {
                ctx.trace(|| format!("{} is a worker now", self.node.id));
            }
            (self.log, self.lost_log) = (None, None);
            return;
        }
        let ended = own.or(self.lost_log).is_none_or(|own| raft_id > own);
        if ended && raft_id > 0 {
            ctx.trace(|| format!("{} starts a manager with Raft id {raft_id}", self.node.id));
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
