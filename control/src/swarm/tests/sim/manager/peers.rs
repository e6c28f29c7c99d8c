//! Which other managers answer.

use std::collections::BTreeSet;

use weft_model::NodeId;

use super::{
    super::ctx::{Ctx, Packet, host_at},
    Manager,
};
use crate::raft::Voters;

/// As in `manager::peers`.
const PING_MS: u64 = 1_000;
const PING_TIMEOUT_MS: u64 = 1_000;
const REACHABLE_MS: u64 = 2_250;

impl Manager {
    pub(super) fn ping(&mut self, ctx: &mut Ctx<'_>) {
        if ctx.now_ms < self.ping_ms {
            return;
        }
        self.ping_ms = ctx.now_ms + PING_MS;
        self.ping_others(ctx);
    }

    pub(super) fn ping_others(&self, ctx: &mut Ctx<'_>) -> u64 {
        for host in self.others() {
            ctx.send(host, Packet::Ping);
        }
        ctx.now_ms
    }

    /// The managers that have answered since they were asked, once all have or the time is over.
    pub(super) fn answered_since(&self, asked_ms: u64, now_ms: u64) -> Option<BTreeSet<NodeId>> {
        let answered = self.answered_ms.iter().filter(|(_, at_ms)| **at_ms > asked_ms);
        let answered: BTreeSet<NodeId> = answered.map(|(node, _)| node.clone()).collect();
        let is_over = now_ms >= asked_ms + PING_TIMEOUT_MS || answered.len() >= self.others().len();
        is_over.then_some(answered)
    }

    /// The hosts of the other members of the log.
    fn others(&self) -> Vec<usize> {
        let members = self.raft.effective().into_iter().flat_map(Voters::nodes);
        members.filter(|(id, _)| **id != self.raft.id).map(|(_, voter)| host_at(voter.rpc_addr)).collect()
    }

    pub(super) fn answering(&self, now_ms: u64) -> BTreeSet<NodeId> {
        let recent = self.answered_ms.iter().filter(|(_, at_ms)| now_ms < **at_ms + REACHABLE_MS);
        recent.map(|(node, _)| node.clone()).collect()
    }

    pub(in crate::swarm::tests::sim) fn pong(&mut self, now_ms: u64, node: &NodeId) {
        self.answered_ms.insert(node.clone(), now_ms);
    }
}
