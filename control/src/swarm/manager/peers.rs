//! The other managers: which one leads, and which ones answer.

use std::{collections::BTreeSet, net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use weft_model::{Command, NodeId, Rejection};

use super::{
    Manager,
    leader::quorum_answers,
    voters::{check_absence, check_demotion, is_demotion, keeps_quorum, may_be_member},
};
use crate::{
    raft::{ServerMetrics, Voter},
    rpc::pb::{PingRequest, quorum_client::QuorumClient},
};

/// The pause between two pings, if all managers answered.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// The pause if a manager did not answer: it may have just started.
const PING_RETRY: Duration = Duration::from_millis(250);
/// How long a manager has to answer a ping.
const PING_TIMEOUT: Duration = Duration::from_secs(1);

impl Manager {
    /// The node that leads, as far as this manager knows. `None` during an election.
    pub fn leader(&self) -> Option<NodeId> {
        self.leading_voter().map(|voter| voter.node)
    }

    /// Whether this manager leads, as far as it knows: another manager may have been elected
    /// meanwhile.
    pub fn is_leader(&self) -> bool {
        self.leader().as_ref() == Some(&self.inner.node)
    }

    /// Whether `node` is this manager, or another manager that answered the last ping, which was at
    /// most about 2 s ago.
    pub fn manager_reachable(&self, node: &NodeId) -> bool {
        *node == self.inner.node || self.inner.reachable.borrow().contains(node)
    }

    /// The leader according to this manager's log, with its address. `None` during an election.
    pub(in crate::swarm) fn leading_voter(&self) -> Option<Voter> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        metrics.current_leader.and_then(|id| metrics.membership_config.membership().get_node(&id).cloned())
    }

    /// A channel to the leader. `None` if there is no leader or this manager leads.
    pub(in crate::swarm) fn leader_channel(&self) -> Option<Channel> {
        let voter = self.leading_voter().filter(|voter| voter.node != self.inner.node)?;
        self.inner.peers.channel(voter.rpc_addr, &voter.node)
    }

    /// The nodes that vote.
    pub(super) fn voter_nodes(&self) -> BTreeSet<NodeId> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        let voters = metrics.membership_config.membership();
        voters.voter_ids().filter_map(|id| voters.get_node(&id)).map(|voter| voter.node.clone()).collect()
    }

    /// The other voters and learners.
    pub(in crate::swarm) fn other_managers(&self) -> Vec<(NodeId, SocketAddr)> {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        let nodes = metrics.membership_config.membership().nodes();
        nodes.filter(|(id, _)| **id != self.inner.keys.raft_id).map(|(_, v)| (v.node.clone(), v.rpc_addr)).collect()
    }

    /// Whether a Raft message of this caller may be accepted. See [`may_be_member`].
    pub(in crate::swarm) fn may_be_member(&self, node: &NodeId, raft_id: u64) -> bool {
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        let state = self.inner.state.borrow();
        may_be_member(&state, metrics.membership_config.membership(), node, raft_id)
    }

    /// Refuses a demotion after which the swarm would have no quorum. Asks the other managers
    /// whether they answer, for at most 1 s.
    pub(in crate::swarm) async fn check_demotion(&self, command: &Command) -> Result<(), Rejection> {
        if !is_demotion(&self.inner.state.borrow(), command) {
            return Ok(());
        }
        let answering = self.answering_now().await;
        check_demotion(&self.inner.state.borrow(), command, |node| answering.contains(node))
    }

    /// Refuses to do without this node, if it is a manager and the swarm would have no quorum. Asks
    /// the other managers whether they answer, for at most 1 s.
    pub(in crate::swarm) async fn check_absence(&self, node: &NodeId) -> Result<(), Rejection> {
        let answering = self.answering_now().await;
        check_absence(&self.inner.state.borrow(), node, |node| answering.contains(node))
    }

    /// This manager, and the others that answer within 1 s.
    async fn answering_now(&self) -> BTreeSet<NodeId> {
        let mut answering = self.ping_others().await.answering;
        answering.insert(self.inner.node.clone());
        answering
    }

    /// Whether a majority of the voters without `removed` answers now.
    pub(super) async fn quorum_remains(&self, removed: &BTreeSet<u64>) -> bool {
        let answering = self.ping_others().await.answering;
        let metrics = self.inner.raft.server_metrics();
        let metrics = metrics.borrow();
        keeps_quorum(metrics.membership_config.membership(), removed, self.inner.keys.raft_id, &answering)
    }

    async fn ping_others(&self) -> Pinged {
        let pings = self.other_managers().into_iter().map(|(node, addr)| {
            let channel = self.inner.peers.channel(addr, &node);
            async move {
                let mut client = QuorumClient::new(channel?);
                let answer = timeout(PING_TIMEOUT, client.ping(PingRequest {})).await;
                Some((node, answer.ok()?.ok()?.into_inner().epoch))
            }
        });
        let answers = join_all(pings).await;
        let complete = answers.iter().all(Option::is_some);
        let newest = answers.iter().flatten().map(|(_, epoch)| *epoch).max().unwrap_or(0);
        if newest > self.inner.state.borrow().epoch {
            self.inner.superseded.send_replace(Some(newest));
        }
        Pinged { answering: answers.into_iter().flatten().map(|(node, _)| node).collect(), complete }
    }
}

/// The result of one round of pings.
struct Pinged {
    answering: BTreeSet<NodeId>,
    /// Whether all managers answered.
    complete: bool,
}

/// Pings the other managers, at intervals and when their set changes, and records which ones
/// answer. Runs until it is dropped.
pub(super) async fn track_reachability(manager: Manager) {
    let mut metrics = manager.inner.raft.server_metrics();
    let mut members = BTreeSet::new();
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = sleep(pause) => {}
            _ = metrics.wait_for(|now| raft_ids(now) != members) => {}
        }
        members = raft_ids(&metrics.borrow());
        let Pinged { answering: reachable, complete } = manager.ping_others().await;
        pause = if complete { PING_INTERVAL } else { PING_RETRY };
        manager.inner.reachable.send_if_modified(|known| {
            let changed = *known != reachable;
            *known = reachable;
            changed
        });
    }
}

/// Records since when no leader with a quorum is known, and takes over the clock of the leader that
/// this manager follows. Runs until it is dropped.
pub(super) async fn follow_leader(manager: Manager) {
    let inner = &manager.inner;
    let (mut metrics, mut states) = (inner.raft.metrics(), manager.state());
    loop {
        let (leader, answered, silent_ms) = {
            let now = metrics.borrow_and_update();
            (now.current_leader, quorum_answers(&now), now.millis_since_quorum_ack.unwrap_or(0))
        };
        let leads = leader == Some(inner.keys.raft_id);
        let leaderless = leader.is_none() || (leads && !answered);
        inner.leaderless_since.send_if_modified(|since| {
            let changed = since.is_some() != leaderless;
            // A leader without a quorum has been none since its followers answered last.
            let silent = Duration::from_millis(if leads { silent_ms } else { 0 });
            let now = Instant::now();
            *since = if leaderless { since.or_else(|| now.checked_sub(silent).or(Some(now))) } else { None };
            changed
        });
        if leader.is_some() && !leads {
            inner.clock.follow(states.borrow_and_update().now_ms);
        }
        tokio::select! {
            changed = metrics.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

fn raft_ids(metrics: &ServerMetrics) -> BTreeSet<u64> {
    metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect()
}
