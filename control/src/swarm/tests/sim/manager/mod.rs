//! A manager: its log, its copy of the cluster state, and what it does as the leader. The log is
//! the model of [`super::raft`]; everything that decides is the real code: `apply`, `LeaderView`,
//! `Steps`, `voters`, `Lease`, `Outgoing` and the cluster's clock.
//!
//! `peers` asks the other managers; `requests` is `manager::propose`, `sessions` is
//! `dispatch::sessions`, `term` is `manager::leader`, and `voters` is `manager::replication`.

mod peers;
mod requests;
mod sessions;
mod term;
mod voters;

use std::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    sync::Arc,
};

use rand::rngs::StdRng;
use weft_model::{Applied, ClusterState, Command, NodeId, Rejection};

use self::term::Term;
use super::{
    ctx::{Ctx, Packet, host_at},
    raft::{Effect, Log, Mark, Payload, Raft, RaftMessage},
    sabotage::Sabotage,
};
use crate::{
    fixture::START_MS,
    raft::{Proposal, ProposalId, Replica, Voters},
    swarm::{clock::ClusterClock, manager::voters::may_be_member},
};

pub(super) use self::requests::{Outcome, Request};

/// As in `manager::leader`, in milliseconds.
const QUORUM_LOST_MS: u64 = 3_000;

#[derive(Debug)]
pub(super) struct Manager {
    pub node: NodeId,
    pub raft: Raft,
    pub replica: Replica,
    pub applied: u64,
    clock: ClusterClock,
    /// The last term that it was elected in.
    elected: u64,
    term: Term,
    answered_ms: BTreeMap<NodeId, u64>,
    ping_ms: u64,
    requests: Vec<Request>,
    next_number: u64,
    results: BTreeMap<u64, (ProposalId, Result<Applied, Rejection>)>,
}

impl Manager {
    pub(super) fn open(node: NodeId, raft_id: u64, log: Log, now_ms: u64, rng: &mut StdRng) -> Self {
        let base = log.base.clone();
        let (replica, applied) = base.map_or_else(Default::default, |base| (base.replica.clone(), base.index));
        Self {
            node,
            raft: Raft::open(raft_id, log, now_ms, rng),
            replica,
            applied,
            clock: ClusterClock::default(),
            elected: 0,
            term: Term::Following,
            answered_ms: BTreeMap::new(),
            ping_ms: now_ms,
            requests: Vec::new(),
            next_number: 0,
            results: BTreeMap::new(),
        }
    }

    /// Whether the log of this voter may be lost: the others are a majority without it, and no
    /// other one is being removed.
    pub(super) fn can_lose(&self, raft_id: u64) -> bool {
        let Term::Leading { leading, .. } = &self.term else { return false };
        if leading.change.is_some() || leading.demotion_asked_ms.is_some() {
            return false;
        }
        let voters = self.raft.committed().filter(|(settled, _)| *settled).map(|(_, voters)| voters);
        voters.is_some_and(|voters| {
            let ids: BTreeSet<u64> = voters.voter_ids().collect();
            ids.contains(&raft_id) && ids.len() >= 3 && voters.get_joint_config().len() == 1
        })
    }

    pub(super) fn state(&self) -> &Arc<ClusterState> {
        &self.replica.state
    }

    pub(super) fn leads(&self) -> bool {
        matches!(self.term, Term::Leading { .. })
    }

    /// Since when this manager leads.
    pub(super) fn leads_since_ms(&self) -> Option<u64> {
        if let Term::Leading { leading, .. } = &self.term { Some(leading.since_ms) } else { None }
    }

    /// The nodes that have a session with this leader, or had one.
    pub(super) fn connected(&self) -> impl Iterator<Item = &NodeId> {
        let view = if let Term::Leading { leading, .. } = &self.term { Some(&leading.view) } else { None };
        view.into_iter().flat_map(|view| view.nodes.keys())
    }

    pub(super) fn submit(&mut self, request: Request) {
        self.requests.push(request);
    }

    fn cluster_ms(&self, ctx: &Ctx<'_>) -> u64 {
        self.clock.read(self.replica.state.now_ms, ctx.wall_ms, START_MS + ctx.now_ms)
    }

    pub(super) fn tick(&mut self, ctx: &mut Ctx<'_>) {
        let effects = self.raft.tick(ctx.now_ms, ctx.rng);
        self.perform(ctx, effects);
        self.ping(ctx);
        self.advance(ctx);
    }

    /// Everything that may follow from an event.
    fn advance(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(term) = self.raft.leads().filter(|term| *term != self.elected) {
            self.elected = term;
            ctx.elected(term, self.raft.id);
        }
        self.apply(ctx);
        self.follow_leader(ctx);
        self.run_term(ctx);
        self.run_requests(ctx);
        self.run_sessions(ctx);
    }

    fn perform(&mut self, ctx: &mut Ctx<'_>, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Send(to, message) => self.send_raft(ctx, to, message),
                Effect::Sync(mark, then) => {
                    let early = |(_, message): &(u64, RaftMessage)| {
                        let votes = matches!(message, RaftMessage::VoteReply { .. });
                        ctx.does(Sabotage::ReplyBeforeSync) || votes && ctx.does(Sabotage::VoteBeforeSync)
                    };
                    let (early, then) = then.into_iter().partition(early);
                    ctx.sync(mark, then);
                    self.reply(ctx, early);
                }
            }
        }
    }

    /// A sync of the log has ended.
    pub(super) fn synced(&mut self, ctx: &mut Ctx<'_>, mark: Mark, then: Vec<(u64, RaftMessage)>) {
        let effects = self.raft.synced(mark, ctx.now_ms);
        self.perform(ctx, effects);
        self.reply(ctx, then);
        self.advance(ctx);
    }

    fn reply(&mut self, ctx: &mut Ctx<'_>, replies: Vec<(u64, RaftMessage)>) {
        for (to, message) in replies {
            if to == self.raft.id {
                let effects = self.raft.receive(to, message, ctx.now_ms, ctx.rng);
                self.perform(ctx, effects);
            } else {
                self.send_raft(ctx, to, message);
            }
        }
    }

    fn send_raft(&self, ctx: &mut Ctx<'_>, to: u64, message: RaftMessage) {
        let known = self.raft.effective().and_then(|voters| voters.get_node(&to));
        // A voter that has no entry yet answers the caller, whose address it does not know.
        let host = known.map(|voter| host_at(voter.rpc_addr)).or_else(|| ctx.raft_hosts.get(&to).copied());
        if let Some(host) = host {
            ctx.send(host, Packet::Raft { source: self.raft.id, target: to, message });
        }
    }

    pub(super) fn receive_raft(
        &mut self,
        ctx: &mut Ctx<'_>,
        caller: &NodeId,
        (source, target): (u64, u64),
        message: RaftMessage,
    ) {
        let none = Voters::default();
        let is_reply = matches!(message, RaftMessage::VoteReply { .. } | RaftMessage::AppendReply { .. });
        let member = may_be_member(&self.replica.state, self.raft.effective().unwrap_or(&none), caller, source);
        if target != self.raft.id || (!is_reply && !member) {
            return;
        }
        let effects = self.raft.receive(source, message, ctx.now_ms, ctx.rng);
        self.perform(ctx, effects);
        self.advance(ctx);
    }

    fn apply(&mut self, ctx: &mut Ctx<'_>) {
        if let Some(base) = self.raft.log.base.clone().filter(|base| base.index > self.applied) {
            ctx.trace(|| format!("{} loads a snapshot at {}", self.node, base.index));
            (self.replica, self.applied) = (base.replica.clone(), base.index);
            ctx.loads(base.index, &self.replica.state);
        }
        let before = self.applied;
        while self.applied < self.raft.commit {
            self.applied += 1;
            let index = self.applied;
            let entry = Rc::clone(self.raft.log.get(index).expect("a committed entry"));
            if let Payload::Normal(proposal) = &entry.payload {
                let result = match ctx.known(index, &entry, &self.replica) {
                    Some((known, state)) => {
                        self.replica.adopt(proposal.id, known.is_new, state, known.applied.clone());
                        known.applied.clone()
                    }
                    None => {
                        let mut applied = proposal.clone();
                        if ctx.does(Sabotage::ApplyTwice) {
                            applied.id = ProposalId(index.into());
                        }
                        self.replica.apply(index, applied)
                    }
                };
                self.results.insert(index, (proposal.id, result));
            }
            ctx.committed(index, entry, &mut self.replica);
        }
        if self.applied >= self.raft.log.base_index() + ctx.snapshot_every {
            let mut replica = self.replica.clone();
            if ctx.does(Sabotage::ForgetOutcomes) {
                replica.forget_outcomes();
            }
            self.raft.log.compact(self.applied, &replica);
        }
        if self.applied > before
            && let Term::Leading { leading, .. } = &mut self.term
        {
            leading.changed = true;
        }
    }

    /// As `manager::peers::follow_leader`.
    fn follow_leader(&mut self, ctx: &Ctx<'_>) {
        if self.raft.leader.is_some_and(|leader| leader != self.raft.id) {
            self.clock.continue_at(self.replica.state.now_ms, START_MS + ctx.now_ms);
        }
    }

    /// The term in which this manager leads with a quorum.
    fn led_term(&self, now_ms: u64) -> Option<u64> {
        let asked_ms = self.raft.quorum_asked_ms(now_ms)?;
        // openraft counts from the election before the first answer.
        let fresh = asked_ms == 0 || now_ms < asked_ms + QUORUM_LOST_MS;
        self.raft.leads().filter(|_| fresh)
    }

    /// Asks the other voters whether this manager leads.
    fn ask_quorum(&mut self, ctx: &mut Ctx<'_>) -> u64 {
        let effects = self.raft.broadcast(ctx.now_ms);
        self.perform(ctx, effects);
        ctx.now_ms
    }

    /// Whether a quorum has confirmed this leader since it was asked.
    fn is_confirmed(&self, asked_ms: u64, now_ms: u64) -> bool {
        self.raft.quorum_asked_ms(now_ms).is_some_and(|at_ms| at_ms >= asked_ms)
    }

    fn propose(&mut self, ctx: &mut Ctx<'_>, id: ProposalId, command: Command) -> Option<u64> {
        let proposal = Proposal::new(id, self.cluster_ms(ctx), command);
        let (index, effects) = self.raft.propose(Payload::Normal(proposal), ctx.now_ms)?;
        self.perform(ctx, effects);
        Some(index)
    }
}
