//! A manager: its log, its copy of the cluster state, and the leader's loop. The log is the model
//! of [`super::raft`]; everything that decides is the real code: `apply`, `LeaderView`, `Steps`,
//! `voters`, `Lease`, `Outgoing` and the cluster's clock.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    rc::Rc,
    sync::Arc,
};

use rand::{Rng, rngs::StdRng};
use weft_model::{
    Applied, ClusterState, Command, NodeId, NodePlan, NodeReport, Rejection, plan::PlanVersion, state::FEATURE_LEVEL,
};

use super::{
    raft::{Effect, Log, Payload, Raft, RaftMessage, next_membership},
    world::{Ctx, Packet, SessionBody, host_at},
};
use crate::{
    fixture::START_MS,
    plan::plan,
    raft::{Proposal, ProposalId, Replica, Voter, Voters},
    swarm::{
        clock::ClusterClock,
        dispatch::exchange::{Acked, Opening, Outgoing},
        liveness::{CertificateStatus, LeaderView, SessionId},
        manager::{
            lease::Lease,
            steps::{Next, Observed, Steps, heartbeat_timeout_ms},
            voters::{
                Members, VoterChange, check_demotion, flag_updates, is_demotion, keeps_quorum, may_be_member,
                next_change, ready_learners,
            },
        },
    },
};

/// As in `manager::leader`, in milliseconds.
const QUORUM_LOST_MS: u64 = 3_000;
const MAX_PAUSE_MS: u64 = 500;
const REJECTED_PAUSE_MS: u64 = 250;
const VOTER_CHANGE_MS: u64 = 10_000;
const LEARNERS_WAIT_MS: u64 = 5_000;
/// As in `manager::peers`.
const PING_MS: u64 = 1_000;
const PING_TIMEOUT_MS: u64 = 1_000;
const REACHABLE_MS: u64 = 2_250;
/// As in `manager::propose`.
const PROPOSE_MS: u64 = 10_000;
const PROPOSE_RETRY_MS: u64 = 100;

pub(super) type Outcome = (u64, Result<Applied, Rejection>);

/// A change that a user, or another manager, has asked this manager for.
#[derive(Debug)]
pub(super) struct Request {
    pub id: ProposalId,
    pub command: Command,
    pub deadline_ms: u64,
    /// The manager that has forwarded the request, and its number for it.
    from: Option<(usize, u64)>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Waiting {
        until_ms: u64,
    },
    /// A quorum must confirm that this manager leads.
    Confirming {
        asked_ms: u64,
        term: u64,
    },
    /// Asks which managers answer, before a demotion.
    Pinging {
        asked_ms: u64,
        term: u64,
    },
    Writing {
        index: u64,
        term: u64,
    },
    Forwarded {
        number: u64,
        leader: u64,
    },
}

impl Request {
    pub(super) fn of_user(id: ProposalId, command: Command, now_ms: u64) -> Self {
        let stage = Stage::Waiting { until_ms: now_ms };
        Self { id, command, deadline_ms: now_ms + PROPOSE_MS, from: None, stage }
    }
}

#[derive(Debug)]
struct Session {
    node: NodeId,
    id: SessionId,
    epoch: u64,
    outgoing: Outgoing,
    /// The index of the state that the last message was computed from.
    computed: Option<u64>,
    /// A plan that waits for the confirmation of a quorum.
    waiting: Option<NodePlan>,
}

/// A session that begins when a quorum has confirmed this leader.
#[derive(Debug)]
struct Unconfirmed {
    conn: u64,
    node: NodeId,
    acked: PlanVersion,
    report: NodeReport,
    asked_ms: u64,
}

#[derive(Debug)]
struct Leading {
    view: LeaderView,
    steps: Steps,
    lease: Lease,
    lease_asked_ms: Option<u64>,
    sessions: BTreeMap<u64, Session>,
    unconfirmed: Vec<Unconfirmed>,
    /// The entry that the loop waits for, and its commands.
    writing: Option<(u64, Vec<Command>)>,
    /// Commands of a rejected batch, which are written one by one.
    singles: VecDeque<Command>,
    silent_asked_ms: Option<u64>,
    pause_until_ms: u64,
    /// The cluster's time of the next step, and the monotonic time at which one is due anyway.
    wake_ms: Option<u64>,
    next_ms: u64,
    changed: bool,
    change: Option<(VoterChange, u64)>,
    /// When the other managers were asked whether they answer, before a demotion.
    demotion_asked_ms: Option<u64>,
    ready_since_ms: Option<u64>,
}

#[derive(Debug)]
enum Term {
    Following,
    Confirming { term: u64, asked_ms: u64 },
    Leading { term: u64, leading: Box<Leading> },
}

#[derive(Debug)]
pub(super) struct Manager {
    pub node: NodeId,
    pub raft: Raft,
    pub replica: Replica,
    pub applied: u64,
    clock: ClusterClock,
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
            term: Term::Following,
            answered_ms: BTreeMap::new(),
            ping_ms: now_ms,
            requests: Vec::new(),
            next_number: 0,
            results: BTreeMap::new(),
        }
    }

    /// Whether the log of this voter may be lost: the others are a majority without it.
    pub(super) fn can_lose(&self, raft_id: u64) -> bool {
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

    /// What this leader believes that the nodes have acked.
    pub(super) fn acks(&self) -> impl Iterator<Item = (&NodeId, u64)> {
        let view = if let Term::Leading { leading, .. } = &self.term { Some(&leading.view) } else { None };
        view.into_iter().flat_map(|view| view.nodes.iter().map(|(node, liveness)| (node, liveness.acked)))
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
                Effect::Sync(mark, then) => ctx.sync(mark, then),
            }
        }
    }

    /// A sync of the log has ended.
    pub(super) fn synced(&mut self, ctx: &mut Ctx<'_>, mark: super::raft::Mark, then: Vec<(u64, RaftMessage)>) {
        let effects = self.raft.synced(mark, ctx.now_ms);
        self.perform(ctx, effects);
        for (to, message) in then {
            if to == self.raft.id {
                let effects = self.raft.receive(to, message, ctx.now_ms, ctx.rng);
                self.perform(ctx, effects);
            } else {
                self.send_raft(ctx, to, message);
            }
        }
        self.advance(ctx);
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
            (self.replica, self.applied) = (base.replica.clone(), base.index);
        }
        let before = self.applied;
        while self.applied < self.raft.commit {
            self.applied += 1;
            let index = self.applied;
            let entry = Rc::clone(self.raft.log.get(index).expect("a committed entry"));
            if let Payload::Normal(proposal) = &entry.payload {
                let result = self.replica.apply(index, proposal.clone());
                self.results.insert(index, (proposal.id, result));
            }
            ctx.committed(index, entry, &self.replica);
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

    fn ping(&mut self, ctx: &mut Ctx<'_>) {
        if ctx.now_ms < self.ping_ms {
            return;
        }
        self.ping_ms = ctx.now_ms + PING_MS;
        self.ping_others(ctx);
    }

    fn ping_others(&self, ctx: &mut Ctx<'_>) -> u64 {
        for host in self.others() {
            ctx.send(host, Packet::Ping);
        }
        ctx.now_ms
    }

    /// The managers that have answered since they were asked, once all have or the time is over.
    fn answered_since(&self, asked_ms: u64, now_ms: u64) -> Option<BTreeSet<NodeId>> {
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

    pub(super) fn pong(&mut self, now_ms: u64, node: &NodeId) {
        self.answered_ms.insert(node.clone(), now_ms);
    }

    fn answering(&self, now_ms: u64) -> BTreeSet<NodeId> {
        let recent = self.answered_ms.iter().filter(|(_, at_ms)| now_ms < **at_ms + REACHABLE_MS);
        recent.map(|(node, _)| node.clone()).collect()
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

    fn run_term(&mut self, ctx: &mut Ctx<'_>) {
        let led = self.led_term(ctx.now_ms);
        let known = match &self.term {
            Term::Following => None,
            Term::Confirming { term, .. } | Term::Leading { term, .. } => Some(*term),
        };
        if known.is_some() && known != led {
            self.end_term(ctx);
        }
        match (&self.term, led) {
            (Term::Following, Some(term)) => {
                let asked_ms = self.ask_quorum(ctx);
                self.term = Term::Confirming { term, asked_ms };
            }
            (Term::Confirming { term, asked_ms }, Some(_))
                if self.is_confirmed(*asked_ms, ctx.now_ms) && self.applied >= self.raft.first_of_term() =>
            {
                let (term, since_ms) = (*term, self.cluster_ms(ctx));
                ctx.trace(|| format!("{} leads in term {term}", self.node));
                let leading = Leading {
                    view: LeaderView::since(ctx.now_ms, since_ms),
                    steps: Steps::since(since_ms),
                    lease: Lease::default(),
                    lease_asked_ms: None,
                    sessions: BTreeMap::new(),
                    unconfirmed: Vec::new(),
                    writing: None,
                    singles: VecDeque::new(),
                    silent_asked_ms: None,
                    pause_until_ms: 0,
                    wake_ms: None,
                    next_ms: 0,
                    changed: true,
                    change: None,
                    demotion_asked_ms: None,
                    ready_since_ms: None,
                };
                self.term = Term::Leading { term, leading: Box::new(leading) };
            }
            _ => {}
        }
        if let Some((term, mut leading)) = self.take_leading() {
            self.step(ctx, &mut leading);
            self.term = Term::Leading { term, leading };
        }
    }

    /// Takes what this manager knows as the leader, to call methods of both.
    fn take_leading(&mut self) -> Option<(u64, Box<Leading>)> {
        match std::mem::replace(&mut self.term, Term::Following) {
            Term::Leading { term, leading } => Some((term, leading)),
            other => {
                self.term = other;
                None
            }
        }
    }

    fn end_term(&mut self, ctx: &mut Ctx<'_>) {
        let ended = self.take_leading();
        self.term = Term::Following;
        if let Some((term, leading)) = ended {
            ctx.trace(|| format!("{} no longer leads in term {term}", self.node));
            let sessions = leading.sessions.iter().map(|(conn, session)| (*conn, &session.node));
            let waiting = leading.unconfirmed.iter().map(|session| (session.conn, &session.node));
            for (conn, node) in sessions.chain(waiting) {
                self.redirect(ctx, conn, node);
            }
        }
    }

    fn redirect(&self, ctx: &mut Ctx<'_>, conn: u64, node: &NodeId) {
        let leader = self.raft.leader.filter(|leader| *leader != self.raft.id);
        let leader = leader.and_then(|id| Some(host_at(self.raft.effective()?.get_node(&id)?.rpc_addr)));
        ctx.send_to_node(node, Packet::Session(conn, SessionBody::Redirect(leader)));
    }

    /// One step of the leader's loop, as `manager::leader`.
    fn step(&mut self, ctx: &mut Ctx<'_>, leading: &mut Leading) {
        // The attention task runs every 500 ms at most.
        leading.view.attend(ctx.now_ms, heartbeat_timeout_ms(&self.replica.state));
        if let Some((index, commands)) = &leading.writing {
            if self.applied < *index {
                return;
            }
            let rejected = self.results.get(index).is_some_and(|(_, result)| result.is_err());
            if rejected && commands.len() > 1 {
                leading.singles = commands.iter().cloned().collect();
            }
            if rejected {
                leading.pause_until_ms = ctx.now_ms + REJECTED_PAUSE_MS;
            }
            (leading.writing, leading.changed) = (None, true);
        }
        if let Some(command) = leading.singles.pop_front() {
            return self.write(ctx, leading, vec![command]);
        }
        let (now_ms, cluster_ms) = (ctx.now_ms, self.cluster_ms(ctx));
        let due = leading.changed || now_ms >= leading.next_ms || leading.wake_ms.is_some_and(|at| cluster_ms >= at);
        if !due || now_ms < leading.pause_until_ms {
            return;
        }
        let state = Arc::clone(&self.replica.state);
        let mut observed = leading.steps.observe(&state, &leading.view, now_ms, false);
        if observed == Observed::Unconfirmed {
            let asked_ms = match leading.silent_asked_ms {
                Some(asked_ms) => asked_ms,
                None => self.ask_quorum(ctx),
            };
            leading.silent_asked_ms = Some(asked_ms);
            // While it waits, nothing else is done.
            if !self.is_confirmed(asked_ms, now_ms) {
                return;
            }
            leading.silent_asked_ms = None;
            observed = leading.steps.observe(&state, &leading.view, now_ms, true);
        }
        leading.silent_asked_ms = None;
        (leading.changed, leading.next_ms) = (false, now_ms + MAX_PAUSE_MS);
        let facts = match observed {
            Observed::Facts(facts) => facts,
            Observed::Raise(command) => return self.write(ctx, leading, vec![command]),
            Observed::Unconfirmed => return,
        };
        let flags = self.reconcile_voters(ctx, leading, &state);
        let mut random = || ctx.ids.random::<u128>();
        match leading.steps.decide(&state, &leading.view, facts, flags, (cluster_ms, now_ms), &mut random) {
            Next::Write(commands) => self.write(ctx, leading, commands),
            Next::Idle { wake_at_ms } => leading.wake_ms = wake_at_ms,
        }
    }

    fn write(&mut self, ctx: &mut Ctx<'_>, leading: &mut Leading, commands: Vec<Command>) {
        let command = match <[Command; 1]>::try_from(commands.clone()) {
            Ok([command]) => command,
            Err(commands) => Command::Batch(commands),
        };
        let id = ProposalId(ctx.ids.random());
        let index = self.propose(ctx, id, command);
        leading.writing = index.map(|index| (index, commands));
    }

    fn propose(&mut self, ctx: &mut Ctx<'_>, id: ProposalId, command: Command) -> Option<u64> {
        let proposal = Proposal::new(id, self.cluster_ms(ctx), command);
        let (index, effects) = self.raft.propose(Payload::Normal(proposal), ctx.now_ms)?;
        self.perform(ctx, effects);
        Some(index)
    }

    fn reconcile_voters(&mut self, ctx: &mut Ctx<'_>, leading: &mut Leading, state: &ClusterState) -> Vec<Command> {
        let Some((settled, voters)) = self.raft.committed() else { return Vec::new() };
        let voters = voters.clone();
        let joint = voters.get_joint_config().len() > 1;
        let finished = |(change, until_ms): &mut (VoterChange, u64)| {
            ctx.now_ms >= *until_ms || (settled && !joint && !matches!(change, VoterChange::FinishJoint))
        };
        leading.change.take_if(finished);
        if settled && joint {
            // The second half of a change; or an earlier leader has begun one.
            let last = voters.get_joint_config().last().cloned().unwrap_or_default();
            let retain = matches!(leading.change, Some((VoterChange::Promote { .. }, _)));
            self.change_membership(ctx, next_membership(&voters, &last, retain));
        } else if settled && leading.change.is_none() {
            leading.change = self.next_change(ctx, leading, state, &voters);
        }
        flag_updates(state, &voters, !settled || leading.change.is_some())
    }

    fn next_change(
        &mut self,
        ctx: &mut Ctx<'_>,
        leading: &mut Leading,
        state: &ClusterState,
        voters: &Voters,
    ) -> Option<(VoterChange, u64)> {
        let (replicated, answering) = (self.raft.replicated(), self.answering(ctx.now_ms));
        let members = Members {
            voters,
            replicated: &replicated,
            last: self.raft.log.last(),
            me: self.raft.id,
            answering: &answering,
            wait_for_all: true,
        };
        let change = if ready_learners(state, members).is_empty() {
            leading.ready_since_ms = None;
            next_change(state, members)
        } else {
            let since_ms = *leading.ready_since_ms.get_or_insert(ctx.now_ms);
            next_change(state, Members { wait_for_all: ctx.now_ms < since_ms + LEARNERS_WAIT_MS, ..members })
        }?;
        if let VoterChange::Demote { raft_ids } = &change {
            let asked_ms = match leading.demotion_asked_ms {
                Some(asked_ms) => asked_ms,
                None => self.ping_others(ctx),
            };
            leading.demotion_asked_ms = Some(asked_ms);
            let answered = self.answered_since(asked_ms, ctx.now_ms)?;
            leading.demotion_asked_ms = None;
            if !keeps_quorum(voters, raft_ids, self.raft.id, &answered) {
                return None;
            }
        }
        ctx.trace(|| format!("{} changes the voters: {change:?}", self.node));
        let mut nodes: BTreeMap<u64, Voter> = voters.nodes().map(|(id, voter)| (*id, voter.clone())).collect();
        let mut ids: BTreeSet<u64> = voters.voter_ids().collect();
        let next = match &change {
            VoterChange::FinishJoint => return None,
            VoterChange::Readdress { members } | VoterChange::AddLearners { learners: members } => {
                nodes.extend(members.clone());
                Voters::new(vec![ids], nodes)
            }
            VoterChange::RemoveLearners { raft_ids } => {
                nodes.retain(|id, _| !raft_ids.contains(id));
                Voters::new(vec![ids], nodes)
            }
            VoterChange::Promote { raft_ids } => {
                ids.extend(raft_ids);
                next_membership(voters, &ids, true)
            }
            VoterChange::Demote { raft_ids } => {
                ids.retain(|id| !raft_ids.contains(id));
                next_membership(voters, &ids, false)
            }
        };
        self.change_membership(ctx, next);
        Some((change, ctx.now_ms + VOTER_CHANGE_MS))
    }

    fn change_membership(&mut self, ctx: &mut Ctx<'_>, voters: Voters) {
        if let Some((_, effects)) = self.raft.propose(Payload::Membership(voters), ctx.now_ms) {
            self.perform(ctx, effects);
        }
    }

    /// As `manager::propose`: tries until there is an outcome.
    fn run_requests(&mut self, ctx: &mut Ctx<'_>) {
        for mut request in std::mem::take(&mut self.requests) {
            if ctx.now_ms >= request.deadline_ms {
                ctx.unknown(request.id);
                continue;
            }
            if let Some(outcome) = self.run_request(ctx, &mut request) {
                match request.from {
                    None => ctx.outcome(request.id, outcome),
                    Some((host, number)) => ctx.send(host, Packet::Proposed { number, outcome: Some(outcome) }),
                }
            } else if request.from.is_some() && matches!(request.stage, Stage::Waiting { .. }) {
                // Only the first manager tries again.
                let Some((host, number)) = request.from else { continue };
                ctx.send(host, Packet::Proposed { number, outcome: None });
            } else {
                self.requests.push(request);
            }
        }
    }

    fn run_request(&mut self, ctx: &mut Ctx<'_>, request: &mut Request) -> Option<Outcome> {
        let retry = Stage::Waiting { until_ms: ctx.now_ms + PROPOSE_RETRY_MS };
        match request.stage {
            Stage::Waiting { until_ms } if ctx.now_ms >= until_ms => {
                request.stage = retry;
                if let Some(term) = self.raft.leads() {
                    let asked_ms = self.ask_quorum(ctx);
                    request.stage = Stage::Confirming { asked_ms, term };
                } else if let Some(leader) = self.raft.leader.filter(|_| request.from.is_none())
                    && let Some(voter) = self.raft.effective().and_then(|voters| voters.get_node(&leader))
                {
                    self.next_number += 1;
                    let (number, command) = (self.next_number, request.command.clone());
                    ctx.send(host_at(voter.rpc_addr), Packet::Propose { number, id: request.id, command });
                    request.stage = Stage::Forwarded { number, leader };
                }
            }
            Stage::Confirming { asked_ms, term } => {
                if self.raft.leads() != Some(term) {
                    request.stage = retry;
                } else if self.is_confirmed(asked_ms, ctx.now_ms) && self.applied >= self.raft.first_of_term() {
                    if is_demotion(&self.replica.state, &request.command) {
                        request.stage = Stage::Pinging { asked_ms: self.ping_others(ctx), term };
                        return None;
                    }
                    let index = self.propose(ctx, request.id, request.command.clone());
                    request.stage = index.map_or(retry, |index| Stage::Writing { index, term });
                }
            }
            Stage::Pinging { asked_ms, term } => {
                let answered = self.answered_since(asked_ms, ctx.now_ms)?;
                let reachable = |node: &NodeId| *node == self.node || answered.contains(node);
                let state = &self.replica.state;
                if let Err(rejection) = check_demotion(state, &request.command, reachable) {
                    return Some((state.index, Err(rejection)));
                }
                let index = self.propose(ctx, request.id, request.command.clone());
                request.stage = index.map_or(retry, |index| Stage::Writing { index, term });
            }
            Stage::Writing { index, term } => {
                if self.applied >= index {
                    match self.results.get(&index).filter(|(id, _)| *id == request.id) {
                        Some((_, result)) => return Some((index, result.clone())),
                        None => request.stage = retry,
                    }
                } else if self.raft.leads() != Some(term) {
                    request.stage = retry;
                }
            }
            Stage::Forwarded { leader, .. } if self.raft.leader != Some(leader) => request.stage = retry,
            Stage::Waiting { .. } | Stage::Forwarded { .. } => {}
        }
        None
    }

    /// Another manager forwards a request.
    pub(super) fn receive_request(
        &mut self,
        ctx: &mut Ctx<'_>,
        from: usize,
        number: u64,
        id: ProposalId,
        command: Command,
    ) {
        let stage = Stage::Waiting { until_ms: ctx.now_ms };
        let mut request =
            Request { id, command, deadline_ms: ctx.now_ms + PROPOSE_MS, from: Some((from, number)), stage };
        if self.raft.leads().is_none() {
            return ctx.send(from, Packet::Proposed { number, outcome: None });
        }
        self.run_request(ctx, &mut request);
        self.requests.push(request);
        self.advance(ctx);
    }

    pub(super) fn receive_outcome(&mut self, ctx: &mut Ctx<'_>, number: u64, outcome: Option<Outcome>) {
        let forwarded = |r: &Request| matches!(r.stage, Stage::Forwarded { number: n, .. } if n == number);
        let Some(position) = self.requests.iter().position(forwarded) else { return };
        match outcome {
            Some(outcome) => ctx.outcome(self.requests.remove(position).id, outcome),
            None => self.requests[position].stage = Stage::Waiting { until_ms: ctx.now_ms + PROPOSE_RETRY_MS },
        }
    }

    /// A node opens a session, as `dispatch::sessions`.
    pub(super) fn open_session(
        &mut self,
        ctx: &mut Ctx<'_>,
        conn: u64,
        node: &NodeId,
        acked: PlanVersion,
        report: NodeReport,
    ) {
        if !self.leads() {
            return self.redirect(ctx, conn, node);
        }
        let known = acked_of(acked);
        let state = Arc::clone(&self.replica.state);
        let opening = known.opening(&state, node);
        let Term::Leading { leading, .. } = &mut self.term else { return };
        if opening == Opening::FormerCluster {
            ctx.send_to_node(node, Packet::Session(conn, SessionBody::Refused { removed: false }));
            return;
        }
        let timeout_ms = heartbeat_timeout_ms(&state);
        if opening == Opening::Member && !leading.view.may_begin_session(node, ctx.now_ms, timeout_ms) {
            ctx.send_to_node(node, Packet::Session(conn, SessionBody::Refused { removed: false }));
            return;
        }
        if opening == Opening::Unknown || known.is_later((state.epoch, state.index)) {
            let session = Unconfirmed { conn, node: node.clone(), acked, report, asked_ms: ctx.now_ms };
            leading.unconfirmed.push(session);
            self.ask_quorum(ctx);
            return;
        }
        begin_session(ctx, leading, &state, conn, node, acked, report);
        self.advance(ctx);
    }

    pub(super) fn receive_message(
        &mut self,
        ctx: &mut Ctx<'_>,
        conn: u64,
        acked: PlanVersion,
        report: Option<NodeReport>,
    ) {
        let index = self.replica.state.index;
        let Term::Leading { leading, .. } = &mut self.term else { return };
        let Some(session) = leading.sessions.get(&conn) else { return };
        let acked = acked_of(acked).counts_as((session.epoch, index));
        let (view, node, id) = (&mut leading.view, session.node.clone(), session.id);
        match view.record_message(&node, id, ctx.now_ms, acked, report, CertificateStatus::default()) {
            Some(changed) => leading.changed |= changed,
            None => self.close_session(ctx, conn),
        }
    }

    fn close_session(&mut self, ctx: &mut Ctx<'_>, conn: u64) {
        if let Term::Leading { leading, .. } = &mut self.term
            && let Some(session) = leading.sessions.remove(&conn)
        {
            self.redirect(ctx, conn, &session.node);
        }
    }

    /// The connection has ended.
    pub(super) fn closed(&mut self, conn: u64) {
        if let Term::Leading { leading, .. } = &mut self.term {
            leading.sessions.remove(&conn);
            leading.unconfirmed.retain(|session| session.conn != conn);
        }
    }

    /// Sends each node its plan, after a quorum has confirmed this leader.
    fn run_sessions(&mut self, ctx: &mut Ctx<'_>) {
        let Some((term, mut leading)) = self.take_leading() else { return };
        if let Some(asked_ms) = leading.lease_asked_ms.filter(|asked_ms| self.is_confirmed(*asked_ms, ctx.now_ms)) {
            leading.lease.confirm(asked_ms);
            leading.lease_asked_ms = None;
        }
        self.confirm_sessions(ctx, &mut leading);
        let state = Arc::clone(&self.replica.state);
        let mut removed = Vec::new();
        let Leading { sessions, lease, lease_asked_ms, .. } = &mut *leading;
        for (conn, session) in sessions {
            if session.waiting.is_none() && session.computed != Some(state.index) {
                session.computed = Some(state.index);
                session.waiting = plan(&state, &session.node);
                if session.waiting.is_none() {
                    removed.push(*conn);
                }
            }
            if session.waiting.is_none() {
                continue;
            }
            if lease.holds(ctx.now_ms) {
                let Some(plan) = session.waiting.take() else { continue };
                ctx.sends_plan(term, &plan);
                let message = session.outgoing.next(plan);
                ctx.send_to_node(&session.node, Packet::Session(*conn, SessionBody::Plan(message)));
            } else if lease_asked_ms.is_none() {
                *lease_asked_ms = Some(self.ask_quorum(ctx));
            }
        }
        for conn in removed {
            if let Some(session) = leading.sessions.remove(&conn) {
                let (node, asked_ms) = (session.node, self.ask_quorum(ctx));
                let (acked, report) = Default::default();
                leading.unconfirmed.push(Unconfirmed { conn, node, acked, report, asked_ms });
            }
        }
        self.term = Term::Leading { term, leading };
    }

    fn confirm_sessions(&self, ctx: &mut Ctx<'_>, leading: &mut Leading) {
        let state = &self.replica.state;
        for session in std::mem::take(&mut leading.unconfirmed) {
            if !self.is_confirmed(session.asked_ms, ctx.now_ms) {
                leading.unconfirmed.push(session);
                continue;
            }
            let Unconfirmed { conn, node, acked, report, .. } = session;
            if acked_of(acked).opening(state, &node) == Opening::Unknown {
                ctx.send_to_node(&node, Packet::Session(conn, SessionBody::Refused { removed: true }));
            } else {
                if acked_of(acked).is_later((state.epoch, state.index)) {
                    ctx.violation(format!("{node} has acked {acked:?}, and the state is at {}", state.index));
                }
                begin_session(ctx, leading, state, conn, &node, acked, report);
            }
        }
    }
}

fn acked_of(version: PlanVersion) -> Acked {
    Acked { epoch: version.epoch, generation: version.generation, level: FEATURE_LEVEL }
}

fn begin_session(
    ctx: &mut Ctx<'_>,
    leading: &mut Leading,
    state: &ClusterState,
    conn: u64,
    node: &NodeId,
    acked: PlanVersion,
    report: NodeReport,
) {
    let acked = acked_of(acked).counts_as((state.epoch, state.index));
    let report = NodeReport { acked, ..report };
    let id = leading.view.begin_session(node, ctx.now_ms, report, FEATURE_LEVEL, CertificateStatus::default());
    let (outgoing, epoch) = (Outgoing::default(), state.epoch);
    let session = Session { node: node.clone(), id, epoch, outgoing, computed: None, waiting: None };
    // The node's earlier sessions end at their next message.
    leading.sessions.insert(conn, session);
    leading.changed = true;
}
