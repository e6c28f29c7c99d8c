//! Reads the cluster state, and waits until the state on this node is current.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};
use weft_model::{ClusterState, spec::Role};

use super::Manager;
use crate::{
    pki::JoinToken,
    rpc::pb::{ConfirmedRequest, quorum_client::QuorumClient},
    swarm::clock::monotonic_ms,
};

/// How long a reader waits until this manager has applied the index that the leader confirms.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// Longer than an election takes: 1.5 to 2 s (`raft`).
const QUORUM_LOST: Duration = Duration::from_secs(3);
/// The pause before the leader is asked again.
const RETRY: Duration = Duration::from_millis(100);

impl Manager {
    /// The cluster state as applied on this node. The receiver sees every change, or only the
    /// latest of several.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.inner.state.clone()
    }

    /// Resolves with `true` as soon as the cluster state here contains every change that any
    /// manager confirmed before this call, so that a reader sees what was written before. Resolves
    /// with `false` if the state here may be old: after 2 s if no leader confirmed its log index or
    /// this manager has not applied that index, and at once if the quorum has been missing for
    /// longer than an election takes.
    pub async fn catch_up(&self) -> bool {
        if self.has_lost_quorum() {
            return false;
        }
        let deadline = Instant::now() + CATCH_UP_TIMEOUT;
        while Instant::now() < deadline {
            if let Ok(Some(index)) = timeout_at(deadline, self.leader_confirmed_index()).await {
                let applied = self.inner.raft.wait(Some(deadline.saturating_duration_since(Instant::now())));
                return applied.applied_index_at_least(Some(index), "a reader waits").await.is_ok();
            }
            tokio::time::sleep_until((Instant::now() + RETRY).min(deadline)).await;
        }
        false
    }

    /// Whether no leader with a quorum has been known for longer than an election takes.
    fn has_lost_quorum(&self) -> bool {
        self.inner.leaderless_since.borrow().is_some_and(|since| since.elapsed() > QUORUM_LOST)
    }

    /// Asks the leader, which may be this manager, up to which index its log is confirmed.
    async fn leader_confirmed_index(&self) -> Option<u64> {
        if self.is_leader() {
            return self.confirm_leadership().await.ok();
        }
        let reply = QuorumClient::new(self.leader_channel()?).confirmed(ConfirmedRequest {}).await.ok()?;
        Some(reply.into_inner().index)
    }

    /// Asks the other voters whether this manager leads. Returns the index up to which its log is
    /// confirmed.
    ///
    /// # Errors
    /// The reason, if this manager does not lead or no quorum answers.
    pub(in crate::swarm) async fn confirm_leadership(&self) -> Result<u64, String> {
        // The term may end while the others are asked. Their answers are for the term of before.
        let term = self.term();
        let (confirmed, _) = self.inner.raft.get_read_log_id().await.map_err(|error| error.to_string())?;
        Ok(confirmed.map_or(0, |id| id.index).max(self.confirmed_before(term)))
    }

    /// The greatest index that may have been confirmed before this manager's log was opened, if
    /// this manager leads since then without an election. After an election, openraft confirms an
    /// entry of the new term first.
    fn confirmed_before(&self, term: u64) -> u64 {
        self.inner.led_until.filter(|(led, _)| term <= *led).map_or(0, |(_, index)| index)
    }

    /// Resolves when this manager leads, and has applied what was confirmed before.
    ///
    /// # Errors
    /// The reason, if this manager does not lead or no quorum answers.
    pub(super) async fn begin_to_lead(&self) -> Result<(), String> {
        let index = self.confirm_leadership().await?;
        let applied = self.inner.raft.wait(None).applied_index_at_least(Some(index), "the leader catches up").await;
        applied.map(drop).map_err(|error| error.to_string())
    }

    /// Makes sure that no other manager leads: a quorum has confirmed this leader within the last
    /// [`LEASE_MS`](super::lease::LEASE_MS), or does so now. Calls that wait at the same time share
    /// one confirmation.
    ///
    /// # Errors
    /// The reason, if this manager does not lead or no quorum answers.
    pub(in crate::swarm) async fn confirm_lease(&self) -> Result<(), String> {
        let mut lease = self.inner.lease.lock().await;
        let asked_ms = monotonic_ms();
        if lease.holds(asked_ms) {
            return Ok(());
        }
        self.confirm_leadership().await?;
        lease.confirm(asked_ms);
        Ok(())
    }

    /// Waits until the cluster state here has reached `index`. Returns `false` if `deadline` passes
    /// before.
    pub(in crate::swarm) async fn wait_for_index(&self, index: u64, deadline: Instant) -> bool {
        let mut state = self.inner.state.clone();
        matches!(timeout_at(deadline, state.wait_for(|state| state.index >= index)).await, Ok(Ok(_)))
    }

    /// The current join token of a role, `SWMTKN-1-…`. Empty if the cluster state has not reached
    /// this manager yet.
    pub fn join_token(&self, role: Role) -> String {
        let state = self.inner.state.borrow();
        state.cluster.as_ref().map_or_else(String::new, |cluster| {
            let secret = match role {
                Role::Worker => &cluster.worker_secret,
                Role::Manager => &cluster.manager_secret,
            };
            JoinToken::new(&cluster.ca_cert_pem, secret).to_string()
        })
    }
}
