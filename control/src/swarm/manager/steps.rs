//! Decides what the leader does next: a pure machine. It takes the cluster state, the leader's view
//! and the time, and returns the commands to write to the log. The leader's loop runs it, and the
//! simulation does.
//!
//! One step is [`Steps::observe`], which compares what the nodes report with the cluster state, and
//! then [`Steps::decide`]. Facts come before decisions: a step that writes facts decides nothing,
//! because a decision must be made from a state that contains them.

use weft_model::{ClusterState, Command, NodeId};

use super::observe::{DownLimit, LoggedReports, observe, set_down, supported_level};
use crate::{
    orchestrate::{self, Acks},
    swarm::liveness::LeaderView,
};

/// What a leader remembers between its steps.
#[derive(Debug)]
pub(in crate::swarm) struct Steps {
    logged: LoggedReports,
    acks: Acks,
    down_limit: DownLimit,
}

/// What the leader sees in its view.
#[derive(Debug, PartialEq)]
pub(in crate::swarm) enum Observed {
    /// All managers support a higher feature level. The command is written alone: managers of this
    /// level read the entry, and until it is applied no other entry may need the level.
    Raise(Command),
    /// Nodes are silent. A quorum must confirm that this manager leads before it sets them to down.
    Unconfirmed,
    Facts(Facts),
}

/// The commands that record what nodes report and which nodes are silent.
#[derive(Debug, Default, PartialEq)]
pub(in crate::swarm) struct Facts {
    commands: Vec<Command>,
    /// When to observe again, on the monotonic clock.
    wake_at_ms: Option<u64>,
}

/// What the leader does now.
#[derive(Debug, PartialEq)]
pub(in crate::swarm) enum Next {
    /// Write these commands to the log, then begin the next step.
    Write(Vec<Command>),
    /// Wait until something changes, or until this time on the cluster's clock.
    Idle { wake_at_ms: Option<u64> },
}

impl Steps {
    /// A manager that begins to lead at this time on the cluster's clock.
    pub(in crate::swarm) fn since(cluster_ms: u64) -> Self {
        Self { logged: LoggedReports::default(), acks: Acks::since(cluster_ms), down_limit: DownLimit::default() }
    }

    /// `confirmed`: a quorum has confirmed that this manager leads, after the first call of this
    /// step.
    pub(in crate::swarm) fn observe(
        &mut self,
        state: &ClusterState,
        view: &LeaderView,
        monotonic_ms: u64,
        confirmed: bool,
    ) -> Observed {
        if let Some(level) = supported_level(state, view).filter(|level| *level > state.feature_level) {
            tracing::info!(level, "all managers support a higher feature level");
            return Observed::Raise(Command::SetFeatureLevel { level });
        }
        let mut observed = observe(state, view, &self.logged, monotonic_ms);
        if !observed.silent.is_empty() && !confirmed {
            return Observed::Unconfirmed;
        }
        let (down, next_down_ms) = self.limit_down(state, observed.silent, monotonic_ms);
        observed.commands.extend(down);
        let wake_at_ms = [observed.wake_at_ms, next_down_ms].into_iter().flatten().min();
        Observed::Facts(Facts { commands: observed.commands, wake_at_ms })
    }

    /// `flags` are the commands that record the current voters. The times are on the cluster's
    /// clock and on the monotonic one.
    pub(in crate::swarm) fn decide(
        &mut self,
        state: &ClusterState,
        view: &LeaderView,
        facts: Facts,
        flags: Vec<Command>,
        (now_ms, monotonic_ms): (u64, u64),
        random: &mut dyn FnMut() -> u128,
    ) -> Next {
        let mut commands = facts.commands;
        commands.extend(flags);
        if !commands.is_empty() {
            self.logged.record(state, &commands, monotonic_ms);
            return Next::Write(commands);
        }
        update_acks(&mut self.acks, state, view, (now_ms, monotonic_ms));
        let decision = orchestrate::decide(state, now_ms, &self.acks, random);
        for rejection in &decision.refused {
            tracing::error!(%rejection, "the cluster state rejects the leader's decision: this is a bug");
        }
        if !decision.commands.is_empty() {
            return Next::Write(decision.commands);
        }
        let facts_wake = facts.wake_at_ms.map(|at| now_ms + at.saturating_sub(monotonic_ms));
        Next::Idle { wake_at_ms: [decision.wake_at_ms, facts_wake].into_iter().flatten().min() }
    }

    /// The commands for the silent nodes that go down now, and when the next one may, on the
    /// monotonic clock.
    fn limit_down(
        &mut self,
        state: &ClusterState,
        silent: Vec<NodeId>,
        monotonic_ms: u64,
    ) -> (Vec<Command>, Option<u64>) {
        let (count, timeout_ms) = (silent.len(), heartbeat_timeout_ms(state));
        let (down, next_ms) = self.down_limit.take(silent, state.nodes.len(), timeout_ms, monotonic_ms);
        if next_ms.is_some() && !down.is_empty() {
            tracing::error!(silent = count, down = down.len(), "many nodes are silent at once: some go down later");
        }
        (down.into_iter().map(|node| set_down(node, timeout_ms)).collect(), next_ms)
    }
}

/// The heartbeat timeout of the cluster.
pub(in crate::swarm) fn heartbeat_timeout_ms(state: &ClusterState) -> u64 {
    state.cluster.as_ref().map_or(u64::MAX, |cluster| cluster.spec.heartbeat_timeout_ms())
}

/// Updates the plan generation that each node's kernel holds, limited to the generation of `state`.
/// A node may have acked a later generation, because the leader reads the view after the state. But
/// no plan contains the changes that this step decides, so no ack may count for them.
///
/// After a pause of this process, all waits begin again, and what a node has reported counts only
/// once the leader has heard from it again: what arrived meanwhile is not read yet. The times are
/// on the cluster's clock and on the monotonic one.
pub(super) fn update_acks(
    acks: &mut Acks,
    state: &ClusterState,
    view: &LeaderView,
    (now_ms, monotonic_ms): (u64, u64),
) {
    let listening_ms = monotonic_ms.saturating_sub(view.listening_since_ms);
    acks.restart_waits(now_ms.saturating_sub(listening_ms));
    let current = view.nodes.iter().filter(|(_, liveness)| liveness.last_message_ms >= view.listening_since_ms);
    let acked = current.map(|(node, liveness)| (node.clone(), liveness.acked.min(state.index))).collect();
    let problem = |node: &NodeId| view.nodes.get(node).map_or_else(String::new, |l| l.report.problem.clone());
    acks.update(state, acked, now_ms, problem);
}
