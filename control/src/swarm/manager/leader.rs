//! The leader's loop: writes what nodes report to the log, keeps the log's voters in line with the
//! managers in the cluster state, and decides which changes come next.
//!
//! The manager runtime runs it on every manager; it acts only while this manager leads. Reports,
//! acks and changes of the cluster state only wake the loop: each step compares everything again.
//! All decisions are made by pure code (`steps`, `voters`). The loop must not decide before all
//! entries of earlier terms are applied here, because its cluster state is not complete before.
//!
//! ```text
//!               elected, a quorum answers              all earlier entries are applied
//!   not leading ────────────────────────▶ confirming ─────────────────────────────────▶ leading
//!        ▲                                     │                                           │
//!        └─────────────────────────────────────┴───────────────────────────────────────────┘
//!                         the term ends, or no quorum answers for 3 s
//!
//!   leading:
//!        ┌─▶ read the cluster state and the LeaderView
//!        │        │
//!        │   observe: heartbeats and reports    ─┐
//!        │   reconcile_voters: voter flags       ├─ commands ─▶ write them to the log ──▶ again
//!        │        │ no commands                 ─┘
//!        │   orchestrate::decide ────────────────── commands ─▶ write them to the log ──▶ again
//!        │        │ no commands
//!        └── wait for a change, the next deadline, or 500 ms
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use openraft::{ChangeMembers, ServerState};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};
use weft_model::{ClusterState, Command, NodeId};

use super::{
    Manager,
    steps::{Next, Observed, Steps, heartbeat_timeout_ms},
    voters::{Members, VoterChange, flag_updates, next_change, ready_learners},
};
use crate::{
    codec, host,
    raft::{Metrics, ProposalId, Voters},
    swarm::{clock::monotonic_ms, liveness::LeaderView},
};

/// The pause between two steps. One step handles all changes during the pause.
const MIN_PAUSE: Duration = Duration::from_millis(3);
/// The pause before the other managers are asked again to confirm that this manager leads.
const CONFIRM_RETRY: Duration = Duration::from_millis(20);
/// The pause after a rejected command, so that a command that is always rejected cannot fill the
/// log.
const REJECTED_PAUSE: Duration = Duration::from_millis(250);
/// The longest wait between two steps. No event reports how far a learner has caught up.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// How often a leader looks whether its process was paused, as a part of the heartbeat timeout.
const ATTENTION_SHARE: u64 = 16;
const MIN_ATTENTION: Duration = Duration::from_millis(5);
const MAX_ATTENTION: Duration = Duration::from_millis(500);
/// If no quorum answered a leader for this long, another leader has probably been elected. This one
/// then ends its sessions, so that its nodes look for the new leader.
const QUORUM_LOST_MS: u64 = 3_000;
/// Largest encoded size of commands that the leader writes as one entry. Far below the limit of one
/// append, so that a follower gets it in time.
pub(super) const MAX_BATCH_BYTES: usize = 1 << 20;
/// If a change of the voters takes longer, the leader tries again.
const VOTER_CHANGE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a new manager that has caught up waits for the other new managers, so that all of them
/// begin to vote in one change. A node needs less than a second to start as a manager.
const LEARNERS_WAIT: Duration = Duration::from_secs(5);

/// Leads whenever this manager is elected, until `stop`.
pub(super) async fn run(manager: Manager, stop: CancellationToken) {
    let mut metrics = manager.inner.raft.metrics();
    loop {
        let term = tokio::select! {
            () = stop.cancelled() => return,
            elected = metrics.wait_for(|m| led_term(m).is_some()) => match elected {
                Ok(elected) => led_term(&elected),
                Err(_) => return,
            },
        };
        let Some(term) = term else { continue };
        let term_end = async {
            // An error means that the log has stopped, which ends the term too.
            let _ = metrics.wait_for(|m| led_term(m) != Some(term)).await;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = term_end => tracing::info!(term, "this manager no longer leads"),
            () = lead(&manager, term) => {}
        }
        manager.inner.tracker.end_term();
    }
}

/// The term in which this manager leads with a quorum.
fn led_term(metrics: &Metrics) -> Option<u64> {
    let leads = metrics.state == ServerState::Leader && metrics.running_state.is_ok();
    (leads && quorum_answers(metrics)).then_some(metrics.current_term)
}

/// Whether a quorum has answered this manager, if it leads.
pub(super) fn quorum_answers(metrics: &Metrics) -> bool {
    metrics.millis_since_quorum_ack.is_none_or(|age_ms| age_ms < QUORUM_LOST_MS)
}

async fn lead(manager: &Manager, term: u64) {
    while let Err(error) = manager.begin_to_lead().await {
        tracing::debug!(%error, "leadership is not confirmed yet, retrying");
        tokio::time::sleep(CONFIRM_RETRY).await;
    }
    tracing::info!(term, "this manager leads");
    let since_ms = manager.now_ms();
    manager.inner.tracker.start_term(term, since_ms);
    // In a task of its own, because a step can take long.
    let attention = AbortOnDropHandle::new(tokio::spawn(attend(manager.clone())));
    let leader = Leader { manager, steps: Steps::since(since_ms), voter_change: None, ready_since: None };
    leader.run().await;
    drop(attention);
}

/// Notices pauses of this process, until it is dropped.
async fn attend(manager: Manager) {
    loop {
        let timeout_ms = heartbeat_timeout_ms(&manager.inner.state.borrow());
        manager.inner.tracker.attend(timeout_ms);
        let pause = Duration::from_millis(timeout_ms / ATTENTION_SHARE);
        tokio::time::sleep(pause.clamp(MIN_ATTENTION, MAX_ATTENTION)).await;
    }
}

struct Leader<'a> {
    manager: &'a Manager,
    steps: Steps,
    /// The change of the voters that runs, or ran last.
    voter_change: Option<AbortOnDropHandle<()>>,
    /// Since when at least one new manager has caught up and does not vote.
    ready_since: Option<Instant>,
}

/// How a step ended.
enum StepOutcome {
    /// There is nothing to do, unless something changes, until this time on the cluster's clock.
    Idle { wake_at_ms: Option<u64> },
    /// Commands were applied.
    Changed,
    /// At least one command was rejected.
    Rejected,
    /// The log accepts no more entries, or the term has ended.
    Stopped,
}

impl Leader<'_> {
    async fn run(mut self) {
        let mut states = self.manager.state();
        let mut tracked = self.manager.inner.tracker.changes();
        loop {
            let state = states.borrow_and_update().clone();
            tracked.mark_unchanged();
            let pause = match self.step(&state).await {
                StepOutcome::Stopped => return,
                StepOutcome::Changed => MIN_PAUSE,
                StepOutcome::Rejected => REJECTED_PAUSE,
                StepOutcome::Idle { wake_at_ms } => {
                    let wait = wake_at_ms
                        .map_or(MAX_PAUSE, |at| Duration::from_millis(at.saturating_sub(self.manager.now_ms())));
                    let wake = Instant::now() + wait.clamp(MIN_PAUSE, MAX_PAUSE);
                    tokio::select! {
                        _ = states.changed() => {}
                        _ = tracked.changed() => {}
                        () = sleep_until(wake) => {}
                    }
                    MIN_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn step(&mut self, state: &Arc<ClusterState>) -> StepOutcome {
        let Some((view, mut observed)) = self.observe(state, false) else { return StepOutcome::Stopped };
        if matches!(observed, Observed::Unconfirmed) {
            // Another manager may lead since then, and have heard from these nodes. While a quorum
            // answers, messages of the nodes arrive too.
            if let Err(reason) = self.manager.confirm_leadership().await {
                tracing::debug!(reason, "no quorum confirms that nodes are silent");
                return StepOutcome::Idle { wake_at_ms: None };
            }
            let Some((_, again)) = self.observe(state, true) else { return StepOutcome::Stopped };
            observed = again;
        }
        let facts = match observed {
            Observed::Facts(facts) => facts,
            Observed::Raise(command) => return self.write_commands(vec![command]).await,
            Observed::Unconfirmed => return StepOutcome::Idle { wake_at_ms: None },
        };
        let Some(flags) = self.reconcile_voters(state).await else {
            return StepOutcome::Stopped;
        };
        let (now_ms, monotonic_ms) = (self.manager.now_ms(), monotonic_ms());
        match self.steps.decide(state, &view, facts, flags, (now_ms, monotonic_ms), &mut host::random) {
            Next::Write(commands) => self.write_commands(commands).await,
            Next::Idle { wake_at_ms } => StepOutcome::Idle { wake_at_ms },
        }
    }

    /// `None` if this manager no longer leads.
    fn observe(&mut self, state: &ClusterState, confirmed: bool) -> Option<(LeaderView, Observed)> {
        let tracker = &self.manager.inner.tracker;
        tracker.attend(heartbeat_timeout_ms(state));
        let view = tracker.view()?;
        let observed = self.steps.observe(state, &view, monotonic_ms(), confirmed);
        Some((view, observed))
    }

    /// Writes the commands in as few log entries as their size allows.
    async fn write_commands(&self, commands: Vec<Command>) -> StepOutcome {
        let mut outcome = StepOutcome::Changed;
        for batch in batches(commands, MAX_BATCH_BYTES) {
            match self.write_batch(batch).await {
                StepOutcome::Changed => {}
                StepOutcome::Rejected => outcome = StepOutcome::Rejected,
                stopped => return stopped,
            }
        }
        outcome
    }

    /// Writes the commands as one log entry. If that is rejected, writes each command as an entry
    /// of its own, so that one rejected command does not block the others.
    async fn write_batch(&self, mut commands: Vec<Command>) -> StepOutcome {
        let batch = if commands.len() == 1 { commands.remove(0) } else { Command::Batch(commands) };
        match self.manager.write(ProposalId::random(), batch.clone()).await {
            Err(error) if error.concerns_only_the_command() => tracing::debug!(%error, "commands cannot be written"),
            Err(error) => {
                tracing::warn!(%error, "the leader cannot write to its log");
                return StepOutcome::Stopped;
            }
            Ok((_, Ok(_))) => return StepOutcome::Changed,
            Ok((_, Err(rejection))) => tracing::debug!(%rejection, "commands were rejected: the state has changed"),
        }
        let Command::Batch(commands) = batch else {
            return StepOutcome::Rejected;
        };
        for command in commands {
            match self.manager.write(ProposalId::random(), command).await {
                // In a cluster with managers of an earlier release, the command waits for their
                // upgrade.
                Err(error) if error.concerns_only_the_command() => {
                    tracing::debug!(%error, "one command of a batch cannot be written");
                }
                Err(error) => {
                    tracing::warn!(%error, "the leader cannot write to its log");
                    return StepOutcome::Stopped;
                }
                Ok((_, Ok(_))) => {}
                Ok((_, Err(rejection))) => tracing::debug!(%rejection, "one command of a batch was rejected"),
            }
        }
        StepOutcome::Rejected
    }

    /// Starts the next change of the voters, if one is due and none runs. Returns the commands that
    /// record the current voters in the cluster state, or `None` if the log has stopped.
    ///
    /// The flags follow the committed membership: until then another leader may undo it.
    async fn reconcile_voters(&mut self, state: &ClusterState) -> Option<Vec<Command>> {
        let inner = &self.manager.inner;
        let read = inner.raft.with_raft_state(|raft| {
            let (effective, committed) = (raft.membership_state.effective(), raft.membership_state.committed());
            (effective.log_id() == committed.log_id(), committed.membership().clone())
        });
        let (settled, voters) = read.await.ok()?;
        if settled && !self.is_changing_voters() {
            let change = self.next_voter_change(state, &voters);
            let manager = self.manager;
            self.voter_change =
                change.map(|change| AbortOnDropHandle::new(tokio::spawn(change_voters(manager.clone(), change))));
        }
        Some(flag_updates(state, &voters, !settled || self.is_changing_voters()))
    }

    fn next_voter_change(&mut self, state: &ClusterState, voters: &Voters) -> Option<VoterChange> {
        let inner = &self.manager.inner;
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow();
        let replicated: BTreeMap<u64, u64> =
            metrics.replication.iter().flatten().filter_map(|(id, at)| at.map(|at| (*id, at.index))).collect();
        let answering: BTreeSet<NodeId> = inner.reachable.borrow().clone();
        let members = Members {
            voters,
            replicated: &replicated,
            last: metrics.last_log_index.unwrap_or(0),
            me: inner.keys.raft_id,
            answering: &answering,
            wait_for_all: true,
        };
        if ready_learners(state, members).is_empty() {
            self.ready_since = None;
            return next_change(state, members);
        }
        let waited = self.ready_since.get_or_insert_with(Instant::now).elapsed();
        next_change(state, Members { wait_for_all: waited < LEARNERS_WAIT, ..members })
    }

    fn is_changing_voters(&self) -> bool {
        self.voter_change.as_ref().is_some_and(|change| !change.is_finished())
    }
}

async fn change_voters(manager: Manager, change: VoterChange) {
    #[cfg(test)]
    manager.hold_voter_change().await;
    if let VoterChange::Demote { raft_ids } = &change
        && !manager.quorum_remains(raft_ids).await
    {
        tracing::warn!(?change, "not changing the voters: too few of the remaining ones answer");
        return;
    }
    tracing::info!(?change, "changing the voters");
    let raft = &manager.inner.raft;
    let changed = async {
        let (members, retain) = match change.clone() {
            VoterChange::FinishJoint => (ChangeMembers::AddVoterIds([].into()), false),
            VoterChange::Readdress { members } => (ChangeMembers::SetNodes(members), true),
            VoterChange::AddLearners { learners } => (ChangeMembers::AddNodes(learners), true),
            VoterChange::Promote { raft_ids } => (ChangeMembers::AddVoterIds(raft_ids), true),
            VoterChange::Demote { raft_ids } => (ChangeMembers::RemoveVoters(raft_ids), false),
            VoterChange::RemoveLearners { raft_ids } => (ChangeMembers::RemoveNodes(raft_ids), true),
        };
        raft.change_membership(members, retain).await
    };
    match timeout(VOTER_CHANGE_TIMEOUT, changed).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(?change, %error, "cannot change the voters, retrying"),
        Err(_) => tracing::warn!(?change, "changing the voters timed out, retrying: too few managers answer"),
    }
}

/// Splits commands, in their order, so that no part is larger than `max_bytes` when it is encoded,
/// unless it is a single command.
pub(super) fn batches(commands: Vec<Command>, max_bytes: usize) -> Vec<Vec<Command>> {
    let mut batches: Vec<Vec<Command>> = Vec::new();
    let mut room = 0;
    for command in commands {
        let size = codec::encode(&codec::COMMAND, &command).map_or(max_bytes, |bytes| bytes.len());
        match batches.last_mut() {
            Some(batch) if size <= room => {
                room -= size;
                batch.push(command);
            }
            _ => {
                room = max_bytes.saturating_sub(size);
                batches.push(vec![command]);
            }
        }
    }
    batches
}
