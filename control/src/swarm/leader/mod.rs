//! The leader's work: log what nodes report, keep the log's voters in line with the table's managers, and decide what
//! changes next. One loop, run while this manager leads; everything that happens only wakes it.

mod observe;
mod voters;

#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use openraft::{ChangeMembers, ServerState};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use weft_model::{ClusterState, Command};

use self::{
    observe::{LoggedReports, observe},
    voters::VoterChange,
};
use super::{Manager, clock::monotonic_ms, desk::LeaderView};
use crate::{
    orchestrate::{self, Acks},
    raft::{Metrics, ProposalId, Raft},
};

/// Pause between two looks: what happens meanwhile is dealt with in one.
const MIN_PAUSE: Duration = Duration::from_millis(3);
/// Pause between two questions to the others whether this manager leads.
const CONFIRM_RETRY: Duration = Duration::from_millis(20);
/// Pause after a refusal, so that a command that the table does not take cannot fill the log.
const REJECTED_PAUSE: Duration = Duration::from_millis(250);
/// Looks happen at least that often: a learner's progress rings nothing.
const MAX_PAUSE: Duration = Duration::from_millis(500);
/// A look that comes so much later than planned means that this process was suspended.
const SUSPENDED: Duration = Duration::from_secs(2);
/// A leader that no quorum answered for so long has likely been replaced: its nodes should look for the new one.
const QUORUM_LOST_MS: u64 = 3_000;
/// A change of voters that takes longer is tried again.
const VOTER_CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// Leads whenever this manager is elected, until `stop`.
pub(super) async fn run(manager: Manager, stop: CancellationToken) {
    let mut metrics = manager.inner().raft.metrics();
    loop {
        let term = tokio::select! {
            () = stop.cancelled() => return,
            elected = metrics.wait_for(|m| led_term(m).is_some()) => match elected {
                Ok(elected) => led_term(&elected),
                Err(_) => return,
            },
        };
        let Some(term) = term else { continue };
        let lost = async {
            // An error means that the log has stopped: that is the end, too.
            let _ = metrics.wait_for(|m| led_term(m) != Some(term)).await;
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = lost => tracing::info!(term, "no longer the leader"),
            () = lead(&manager, term) => {}
        }
        manager.inner().tracker.end_term();
    }
}

/// The term in which this manager leads with a quorum behind it.
fn led_term(metrics: &Metrics) -> Option<u64> {
    let leads = metrics.state == ServerState::Leader && metrics.running_state.is_ok();
    let answered = metrics.millis_since_quorum_ack.is_none_or(|age_ms| age_ms < QUORUM_LOST_MS);
    (leads && answered).then_some(metrics.current_term)
}

async fn lead(manager: &Manager, term: u64) {
    let raft = &manager.inner().raft;
    // The table is complete once everything before this term is applied; until then this manager must not decide.
    while let Err(error) = raft.ensure_linearizable().await {
        tracing::debug!(%error, "not confirmed as the leader yet");
        tokio::time::sleep(CONFIRM_RETRY).await;
    }
    tracing::info!(term, "this manager leads");
    manager.inner().tracker.start_term(term, manager.now_ms());
    Leader { manager, logged: LoggedReports::default(), voter_change: None }.run().await;
}

struct Leader<'a> {
    manager: &'a Manager,
    logged: LoggedReports,
    /// The change of voters that is under way.
    voter_change: Option<JoinHandle<()>>,
}

/// How a look ended.
enum StepOutcome {
    /// All is as it shall be until then (the table's clock), if nothing happens.
    Idle { wake_at_ms: Option<u64> },
    /// Something was changed: look again.
    Changed,
    /// The table refused something.
    Rejected,
    /// The log takes nothing any more.
    Stopped,
}

impl Leader<'_> {
    async fn run(mut self) {
        let mut state = self.manager.state();
        let mut tracker = self.manager.inner().tracker.changes();
        loop {
            let table = state.borrow_and_update().clone();
            tracker.mark_unchanged();
            let pause = match self.step(&table).await {
                StepOutcome::Stopped => return,
                StepOutcome::Changed => MIN_PAUSE,
                StepOutcome::Rejected => REJECTED_PAUSE,
                StepOutcome::Idle { wake_at_ms } => {
                    let wait = wake_at_ms
                        .map_or(MAX_PAUSE, |at| Duration::from_millis(at.saturating_sub(self.manager.now_ms())));
                    let wake = Instant::now() + wait.clamp(MIN_PAUSE, MAX_PAUSE);
                    tokio::select! {
                        _ = state.changed() => {}
                        _ = tracker.changed() => {}
                        () = sleep_until(wake) => {}
                    }
                    if Instant::now() > wake + SUSPENDED {
                        self.manager.inner().tracker.restart_deadlines();
                    }
                    MIN_PAUSE
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn step(&mut self, state: &Arc<ClusterState>) -> StepOutcome {
        let Some(view) = self.manager.inner().tracker.view() else {
            return StepOutcome::Stopped;
        };
        let observed = observe(state, &view, &self.logged, monotonic_ms());
        let mut facts = observed.commands;
        facts.extend(self.reconcile_voters(state));
        if !facts.is_empty() {
            self.logged.record(state, &facts);
            return self.write_commands(facts).await;
        }
        let acks = acks(state, &view);
        let decision = orchestrate::decide(state, self.manager.now_ms(), &acks, &mut rand::random);
        for rejection in &decision.refused {
            tracing::error!(%rejection, "a decision that the table does not take: this is a defect");
        }
        if !decision.commands.is_empty() {
            return self.write_commands(decision.commands).await;
        }
        let observed_wake = observed.wake_at_ms.map(|at| self.manager.now_ms() + at.saturating_sub(monotonic_ms()));
        let wake_at_ms = [decision.wake_at_ms, observed_wake].into_iter().flatten().min();
        StepOutcome::Idle { wake_at_ms }
    }

    /// Logs the commands as one entry; where one of them is refused, each for itself, so that it does not hold up the
    /// others.
    async fn write_commands(&self, mut commands: Vec<Command>) -> StepOutcome {
        let batch = if commands.len() == 1 { commands.remove(0) } else { Command::Batch(commands) };
        match self.manager.write(ProposalId::random(), batch.clone()).await {
            Err(error) => {
                tracing::warn!(%error, "the leader cannot write its log");
                return StepOutcome::Stopped;
            }
            Ok((_, Ok(_))) => return StepOutcome::Changed,
            Ok((_, Err(rejection))) => tracing::debug!(%rejection, "the table changed meanwhile"),
        }
        let Command::Batch(commands) = batch else {
            return StepOutcome::Rejected;
        };
        for command in commands {
            match self.manager.write(ProposalId::random(), command).await {
                Err(error) => {
                    tracing::warn!(%error, "the leader cannot write its log");
                    return StepOutcome::Stopped;
                }
                Ok((_, Ok(_))) => {}
                Ok((_, Err(rejection))) => tracing::debug!(%rejection, "one change of the leader's was refused"),
            }
        }
        StepOutcome::Rejected
    }

    /// Begins the next change of voters, if one is due, and returns what to note in the table.
    fn reconcile_voters(&mut self, state: &ClusterState) -> Vec<Command> {
        let inner = self.manager.inner();
        let metrics = inner.raft.metrics();
        let metrics = metrics.borrow();
        let membership = metrics.membership_config.membership();
        if self.voter_change.as_ref().is_none_or(JoinHandle::is_finished) {
            let replicated: BTreeMap<u64, u64> =
                metrics.replication.iter().flatten().filter_map(|(id, at)| at.map(|at| (*id, at.index))).collect();
            let last = metrics.last_log_index.unwrap_or(0);
            let step = voters::next_change(state, membership, &replicated, last, inner.raft_id);
            self.voter_change = step.map(|step| tokio::spawn(change_voters(inner.raft.clone(), step)));
        }
        voters::flag_updates(state, membership, self.voter_change.as_ref().is_some_and(|step| !step.is_finished()))
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        if let Some(step) = &self.voter_change {
            step.abort();
        }
    }
}

async fn change_voters(raft: Raft, step: VoterChange) {
    tracing::info!(?step, "changing the voters");
    let change = async {
        match step.clone() {
            VoterChange::FinishJoint => raft.change_membership(ChangeMembers::AddVoterIds([].into()), false).await,
            VoterChange::AddLearner { raft_id, voter } => raft.add_learner(raft_id, voter, false).await,
            VoterChange::Promote { raft_id } => {
                raft.change_membership(ChangeMembers::AddVoterIds([raft_id].into()), true).await
            }
            VoterChange::Demote { raft_id } => {
                raft.change_membership(ChangeMembers::RemoveVoters([raft_id].into()), false).await
            }
            VoterChange::RemoveLearner { raft_id } => {
                raft.change_membership(ChangeMembers::RemoveNodes([raft_id].into()), true).await
            }
        }
    };
    match timeout(VOTER_CHANGE_TIMEOUT, change).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(?step, %error, "cannot change the voters: trying again"),
        Err(_) => tracing::warn!(?step, "changing the voters takes long: too few managers answer"),
    }
}

/// What the nodes' kernels hold of this table. A node that acked a later one, which this look does not see yet, holds this one
/// at most: what this look changes is in no plan that it can have.
fn acks(state: &ClusterState, view: &LeaderView) -> Acks {
    let acked = view.nodes.iter().map(|(node, liveness)| (node.clone(), liveness.acked.min(state.index))).collect();
    Acks { acked, since_ms: view.since_cluster_ms }
}
