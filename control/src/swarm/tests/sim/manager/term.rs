//! The terms in which this manager leads, and the leader's loop.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use weft_model::{
    ClusterState, Command, NodeId,
    state::{Node, NodeStatus},
};

use super::{
    super::{ctx::Ctx, sabotage::Sabotage},
    Manager,
    sessions::{Session, Unconfirmed},
    voters::Inputs,
};
use crate::{
    raft::{ProposalId, Voters},
    state::QUARANTINE_MS,
    swarm::{
        liveness::LeaderView,
        manager::{
            lease::Lease,
            steps::{Next, Observed, Steps, heartbeat_timeout_ms},
            voters::VoterChange,
        },
    },
};
use rand::Rng;

/// As in `manager::leader`, in milliseconds.
const MIN_PAUSE_MS: u64 = 3;
const MAX_PAUSE_MS: u64 = 500;
const REJECTED_PAUSE_MS: u64 = 250;

#[derive(Debug)]
pub(super) struct Leading {
    pub(super) since_ms: u64,
    pub(super) view: LeaderView,
    pub(super) steps: Steps,
    pub(super) lease: Lease,
    pub(super) lease_asked_ms: Option<u64>,
    pub(super) sessions: BTreeMap<u64, Session>,
    /// The connection of the newest session of each node.
    pub(super) newest: BTreeMap<NodeId, u64>,
    pub(super) unconfirmed: Vec<Unconfirmed>,
    /// The entry that the loop waits for, and its commands.
    pub(super) writing: Option<(u64, Vec<Command>)>,
    /// Commands of a rejected batch, which are written one by one.
    pub(super) singles: VecDeque<Command>,
    pub(super) silent_asked_ms: Option<u64>,
    pub(super) pause_until_ms: u64,
    /// The cluster's time of the next step, and the monotonic time at which one is due anyway.
    pub(super) wake_ms: Option<u64>,
    pub(super) next_ms: u64,
    pub(super) changed: bool,
    pub(super) change: Option<(VoterChange, u64)>,
    /// What the last decision about the voters was made from, if there was nothing to change.
    pub(super) unchanged: Option<Inputs>,
    /// When the other managers were asked whether they answer, before a demotion.
    pub(super) demotion_asked_ms: Option<u64>,
    pub(super) ready_since_ms: Option<u64>,
}

#[derive(Debug)]
pub(super) enum Term {
    Following,
    Confirming { term: u64, asked_ms: u64 },
    Leading { term: u64, leading: Box<Leading> },
}

impl Manager {
    pub(super) fn run_term(&mut self, ctx: &mut Ctx<'_>) {
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
                    since_ms: ctx.now_ms,
                    newest: BTreeMap::new(),
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
                    unchanged: None,
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
    pub(super) fn take_leading(&mut self) -> Option<(u64, Box<Leading>)> {
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

    /// One step of the leader's loop, as `manager::leader`.
    fn step(&mut self, ctx: &mut Ctx<'_>, leading: &mut Leading) {
        // The attention task runs every 500 ms at most.
        if !ctx.does(Sabotage::IgnorePauses) {
            leading.view.attend(ctx.now_ms, heartbeat_timeout_ms(&self.replica.state));
        }
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
        if ctx.does(Sabotage::ReleaseEarly)
            && let Some(command) = release_early(&state, &leading.view, cluster_ms)
        {
            return self.write(ctx, leading, vec![command]);
        }
        let mut observed = leading.steps.observe(&state, &leading.view, now_ms, ctx.does(Sabotage::AssumeSilence));
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
        // One step handles all changes during the pause, and during the work of this one.
        leading.pause_until_ms = now_ms + ctx.rng.random_range(MIN_PAUSE_MS..=MIN_PAUSE_MS + ctx.step_ms);
        let facts = match observed {
            Observed::Facts(facts) => facts,
            Observed::Raise(command) => return self.write(ctx, leading, vec![command]),
            Observed::Unconfirmed => return,
        };
        let flags = self.reconcile_voters(ctx, leading, &state);
        let mut random = || ctx.ids.random::<u128>();
        match leading.steps.decide(&state, &leading.view, facts, flags, (cluster_ms, now_ms), &mut random) {
            Next::Write(commands) => {
                self.check_down(ctx, leading, &commands);
                self.write(ctx, leading, commands);
            }
            Next::Idle { wake_at_ms } => leading.wake_ms = wake_at_ms,
        }
    }

    /// Shows the checks which nodes this leader sets to down.
    fn check_down(&self, ctx: &mut Ctx<'_>, leading: &Leading, commands: &[Command]) {
        for command in commands {
            if let Command::SetNodeStatus { id, status: NodeStatus::Down, .. } = command {
                let connected = leading.newest.get(id).is_some_and(|conn| leading.sessions.contains_key(conn));
                let timeout_ms = heartbeat_timeout_ms(&self.replica.state);
                let voters = self.raft.effective().into_iter().flat_map(Voters::voter_ids).collect();
                ctx.sets_down(id, connected.then_some(timeout_ms), voters);
            }
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
}

/// Ends the quarantine of addresses as if the nodes of their tasks had acked it.
fn release_early(state: &ClusterState, view: &LeaderView, cluster_ms: u64) -> Option<Command> {
    let acked = |node: &Node| view.nodes.get(&node.id).map_or(0, |liveness| liveness.acked);
    let acked_index = state.nodes.values().filter(|node| node.gates_changes()).map(acked).min()?;
    let freed = state.allocated.quarantine.iter();
    let freed = freed.filter(|f| f.freed_index <= acked_index && f.freed_ms + QUARANTINE_MS <= cluster_ms);
    let owners: BTreeMap<NodeId, u64> = freed.filter_map(|freed| Some((freed.node.clone()?, state.index))).collect();
    (!owners.is_empty()).then_some(Command::ReleaseAddresses { acked_index, owners })
}
