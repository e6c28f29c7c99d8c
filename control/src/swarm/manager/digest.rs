//! Compares the digests of the managers' states, and stops a manager whose state differs.
//!
//! Every manager computes a digest of its state at every 1,000th log entry, and writes it to the
//! log. All managers see all digests. A manager whose digest differs from the one that a majority
//! of the voters has computed at the same entry has applied something else than the others: a
//! damaged disk or memory, or a bug in weft. It stops, so it answers no reads and is never elected.
//! If no digest has a majority, it is unknown which state is correct: the managers log an error.

use std::collections::{BTreeMap, BTreeSet};

use weft_model::{Command, NodeId, state::StateDigest};

use super::Manager;
use crate::raft::ProposalId;

/// What a comparison says about this manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// A majority has the same digest, or too few voters have reported one.
    NoObjection,
    /// A majority has another digest.
    Differs,
    /// All voters have reported, and no digest has a majority.
    Undecided,
}

/// Compares `own` with what the voters have reported for the same entry.
fn compare(digests: &BTreeMap<NodeId, StateDigest>, voters: &BTreeSet<NodeId>, own: StateDigest) -> Verdict {
    let mut counts = BTreeMap::<_, usize>::new();
    for digest in voters.iter().filter_map(|voter| digests.get(voter)).filter(|digest| digest.index == own.index) {
        *counts.entry(digest.sha256).or_default() += 1;
    }
    let reported: usize = counts.values().sum();
    match counts.iter().find(|(_, count)| **count > voters.len() / 2) {
        Some((digest, _)) if *digest != own.sha256 => Verdict::Differs,
        None if reported == voters.len() && counts.len() > 1 => Verdict::Undecided,
        _ => Verdict::NoObjection,
    }
}

/// Reports this manager's digests, and compares them. Runs until it is dropped or this manager has
/// to stop.
pub(super) async fn run(manager: Manager) {
    let mut own = manager.inner.digests.clone();
    let mut states = manager.state();
    let (mut reported, mut complained) = (0, 0);
    loop {
        let digest = *own.borrow_and_update();
        let state = states.borrow_and_update().clone();
        if let Some(digest) = digest {
            match compare(&state.digests, &manager.voter_nodes(), digest) {
                Verdict::NoObjection => {}
                Verdict::Differs => return stop(&manager, digest.index).await,
                Verdict::Undecided if complained < digest.index => {
                    complained = digest.index;
                    tracing::error!(
                        index = digest.index,
                        "the managers' states differ, and no state has a majority: make a backup on each manager"
                    );
                }
                Verdict::Undecided => {}
            }
            if reported < digest.index && state.feature_level >= 1 {
                let command = Command::ReportDigest { node: manager.inner.node.clone(), digest };
                match manager.submit(ProposalId::random(), command).await {
                    Ok(_) => reported = digest.index,
                    Err(error) => tracing::debug!(%error, "cannot report the digest of the state"),
                }
            }
        }
        tokio::select! {
            changed = own.changed() => if changed.is_err() { return },
            changed = states.changed() => if changed.is_err() { return },
        }
    }
}

async fn stop(manager: &Manager, index: u64) {
    let reason = format!(
        "the state of this manager differs from that of the other managers at entry {index}: stop the daemon, remove \
         its data directory, remove this node from the swarm, then join it again"
    );
    tracing::error!(index, "{reason}");
    if let Err(error) = manager.inner.store.mark_unusable(reason).await {
        tracing::error!(%error, "cannot mark the log as unusable");
    }
    if let Err(error) = manager.inner.raft.shutdown().await {
        tracing::warn!(%error, "the log did not stop cleanly");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manager_stops_only_if_a_majority_has_another_digest_of_the_same_entry() {
        let node = NodeId::from_random;
        let digest = |index, byte| StateDigest { index, sha256: [byte; 32] };
        let check = |digests: &[(u128, u64, u8)], voters: &[u128], own: StateDigest, expected: Verdict| {
            let digests = digests.iter().map(|(id, index, byte)| (node(*id), digest(*index, *byte))).collect();
            assert_eq!(compare(&digests, &voters.iter().copied().map(node).collect(), own), expected);
        };
        let own = digest(1_000, 7);
        check(&[], &[1, 2, 3], own, Verdict::NoObjection);
        check(&[(1, 1_000, 7), (2, 1_000, 7), (3, 1_000, 9)], &[1, 2, 3], own, Verdict::NoObjection);
        check(&[(1, 1_000, 9), (2, 1_000, 9), (3, 1_000, 7)], &[1, 2, 3], own, Verdict::Differs);
        // One of three is no majority, and digests of other entries and of former voters do not
        // count.
        check(&[(1, 1_000, 9), (3, 1_000, 7)], &[1, 2, 3], own, Verdict::NoObjection);
        check(&[(1, 2_000, 9), (2, 1_000, 9), (3, 1_000, 7)], &[1, 2, 3], own, Verdict::NoObjection);
        check(&[(1, 1_000, 9), (4, 1_000, 9), (5, 1_000, 9)], &[1, 2, 3], own, Verdict::NoObjection);
        check(&[(1, 1_000, 9), (2, 1_000, 7)], &[1, 2], own, Verdict::Undecided);
        check(&[(1, 1_000, 9), (2, 1_000, 8), (3, 1_000, 7)], &[1, 2, 3], own, Verdict::Undecided);
    }
}
