//! How long a leader may rely on the last confirmation of a quorum. Pure.

/// How long a confirmation of the quorum counts, in milliseconds. For 1 s after a voter has heard
/// from the leader, it votes for no other one (`raft`).
pub(in crate::swarm) const LEASE_MS: u64 = 500;

/// The last confirmation of a quorum that this manager leads.
#[derive(Debug, Clone, Default)]
pub(in crate::swarm) struct Lease {
    /// When the quorum was asked, on the monotonic clock.
    asked_ms: Option<u64>,
}

impl Lease {
    /// Whether no other manager leads.
    pub(in crate::swarm) fn holds(&self, monotonic_ms: u64) -> bool {
        self.asked_ms.is_some_and(|asked_ms| monotonic_ms.saturating_sub(asked_ms) < LEASE_MS)
    }

    /// A quorum that was asked at this time has confirmed this leader.
    pub(in crate::swarm) fn confirm(&mut self, asked_ms: u64) {
        self.asked_ms = Some(asked_ms);
    }
}
