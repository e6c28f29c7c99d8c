//! The state machine: applies committed entries to the cluster state, publishes each new state, and
//! writes snapshots. openraft calls it. Applying an entry must depend on nothing but the entry and
//! the state, so that all managers get the same state.
#![expect(clippy::result_large_err, reason = "openraft's error type")]

use std::{collections::VecDeque, sync::Arc};

use openraft::{
    EntryPayload, LogId, OptionalSend, RaftSnapshotBuilder, Snapshot, SnapshotMeta, StorageError, StoredMembership,
    storage::RaftStateMachine,
};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use weft_model::{Applied, ClusterState, Rejection, state::StateDigest};

use super::{
    Proposal, ProposalId, Reply, Store, TypeConfig, Voter,
    store::{read_failed, write_failed},
};
use crate::{codec, host};

type Failure = StorageError<u64>;

/// Limit of remembered outcomes. A proposer that got no answer repeats its proposal, and gets the
/// outcome of the first one. Proposers retry for some seconds, in which a cluster makes far fewer
/// changes.
const MAX_OUTCOMES: usize = 4_096;

/// Number of entries between two digests of the state.
const DIGEST_EVERY: u64 = 1_000;

/// The cluster state, and the position in the log up to which it was applied.
#[derive(Debug)]
pub struct Machine {
    store: Store,
    replica: Replica,
    published: watch::Sender<Arc<ClusterState>>,
    digests: watch::Sender<Option<StateDigest>>,
}

/// Everything computed from the log up to one position: the content of a snapshot.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Replica {
    pub(super) last: Option<LogId<u64>>,
    pub(super) voters: StoredMembership<u64, Voter>,
    #[serde(with = "crate::state::stored")]
    pub(crate) state: Arc<ClusterState>,
    pub(super) outcomes: VecDeque<Outcome>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Outcome {
    id: ProposalId,
    result: Result<Applied, Rejection>,
}

impl Machine {
    /// Loads the latest snapshot. openraft then applies the later entries of the log.
    ///
    /// # Errors
    /// If the store cannot be read, or the snapshot was written by another version.
    pub fn open(store: Store) -> Result<Self, Failure> {
        let replica = match store.snapshot()? {
            Some((_, bytes)) => codec::decode::<Replica>(&codec::SNAPSHOT, &bytes).map_err(read_failed)?,
            None => Replica::default(),
        };
        let published = watch::Sender::new(replica.state.clone());
        Ok(Self { store, replica, published, digests: watch::Sender::default() })
    }

    /// The digest of the state at the last entry whose index is a multiple of 1,000, of those that
    /// were applied since the start.
    pub fn digests(&self) -> watch::Receiver<Option<StateDigest>> {
        self.digests.subscribe()
    }

    /// Computes the digest of the current state on a blocking thread: a large state takes a while,
    /// and the next entries must not wait for it.
    fn publish_digest(&self, index: u64) {
        let (digests, replica) = (self.digests.clone(), self.replica.clone());
        host::spawn_blocking(move || match replica.digest(index) {
            Ok(digest) => {
                digests.send_if_modified(|latest| {
                    let newer = latest.is_none_or(|latest| latest.index < index);
                    if newer {
                        *latest = Some(digest);
                    }
                    newer
                });
            }
            Err(error) => tracing::error!(%error, index, "cannot compute the digest of the state"),
        });
    }

    pub(super) fn into_replica(self) -> Replica {
        self.replica
    }

    /// The cluster state as applied here. Notifies its receivers of every change.
    pub fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        self.published.subscribe()
    }
}

impl Replica {
    /// Managers of different releases compute the same digest: that of the record that the
    /// cluster's feature level has.
    pub(crate) fn digest(&self, index: u64) -> Result<StateDigest, codec::CodecError> {
        let bytes = codec::encode_at(&codec::SNAPSHOT, self.state.feature_level, self)?;
        Ok(StateDigest { index, sha256: Sha256::digest(bytes).into() })
    }

    /// Applies a proposal, unless it was applied before: then the result is that of the first time.
    pub(crate) fn apply(&mut self, index: u64, proposal: Proposal) -> Result<Applied, Rejection> {
        let state = Arc::make_mut(&mut self.state);
        if let Some(known) = self.outcomes.iter().find(|outcome| outcome.id == proposal.id) {
            state.index = index;
            return known.result.clone();
        }
        let result = crate::state::apply(state, index, proposal.entry);
        if self.outcomes.len() == MAX_OUTCOMES {
            self.outcomes.pop_front();
        }
        self.outcomes.push_back(Outcome { id: proposal.id, result: result.clone() });
        result
    }
}

#[cfg(test)]
impl Replica {
    /// The number of remembered outcomes.
    pub(crate) fn outcomes(&self) -> usize {
        self.outcomes.len()
    }

    pub(crate) fn forget_outcomes(&mut self) {
        self.outcomes.clear();
    }

    /// Takes what another replica with the same state and the same outcomes has computed from the
    /// next proposal. `is_new`: the proposal was not applied before.
    pub(crate) fn adopt(
        &mut self,
        id: ProposalId,
        is_new: bool,
        state: &Arc<ClusterState>,
        result: Result<Applied, Rejection>,
    ) {
        self.state = Arc::clone(state);
        if is_new {
            if self.outcomes.len() == MAX_OUTCOMES {
                self.outcomes.pop_front();
            }
            self.outcomes.push_back(Outcome { id, result });
        }
    }
}

impl RaftStateMachine<TypeConfig> for Machine {
    type SnapshotBuilder = SnapshotWriter;

    async fn applied_state(&mut self) -> Result<(Option<LogId<u64>>, StoredMembership<u64, Voter>), Failure> {
        Ok((self.replica.last, self.replica.voters.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Reply>, Failure>
    where
        I: IntoIterator<Item = openraft::Entry<TypeConfig>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut replies = Vec::new();
        #[cfg(test)]
        if self.store.takes_damage() {
            Arc::make_mut(&mut self.replica.state).cluster.as_mut().expect("a cluster").manager_secret.push('x');
        }
        for entry in entries {
            self.replica.last = Some(entry.log_id);
            replies.push(Reply(match entry.payload {
                EntryPayload::Blank => None,
                EntryPayload::Normal(proposal) => Some(self.replica.apply(entry.log_id.index, proposal)),
                EntryPayload::Membership(voters) => {
                    self.replica.voters = StoredMembership::new(Some(entry.log_id), voters);
                    None
                }
            }));
            if entry.log_id.index % DIGEST_EVERY == 0 {
                self.publish_digest(entry.log_id.index);
            }
        }
        if !Arc::ptr_eq(&self.published.borrow(), &self.replica.state) {
            self.published.send_replace(self.replica.state.clone());
        }
        Ok(replies)
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotWriter {
        SnapshotWriter { store: self.store.clone(), replica: self.replica.clone() }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Vec<u8>>, Failure> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta<u64, Voter>,
        snapshot: Box<Vec<u8>>,
    ) -> Result<(), Failure> {
        let replica = codec::decode::<Replica>(&codec::SNAPSHOT, &snapshot).map_err(read_failed)?;
        self.store.save_snapshot(&(meta.clone(), *snapshot)).await?;
        self.replica = replica;
        self.published.send_replace(self.replica.state.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<TypeConfig>>, Failure> {
        let snapshot = self.store.snapshot()?;
        Ok(snapshot.map(|(meta, bytes)| Snapshot { meta, snapshot: Box::new(bytes) }))
    }
}

/// Writes the state at one position of the log, while the state machine continues to apply entries.
#[derive(Debug)]
pub struct SnapshotWriter {
    store: Store,
    replica: Replica,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotWriter {
    async fn build_snapshot(&mut self) -> Result<Snapshot<TypeConfig>, Failure> {
        let replica = self.replica.clone();
        let meta = SnapshotMeta {
            last_log_id: replica.last,
            last_membership: replica.voters.clone(),
            snapshot_id: replica.last.map(|last| last.to_string()).unwrap_or_default(),
        };
        let encoded =
            host::spawn_blocking(move || codec::encode(&codec::SNAPSHOT, &replica)).await.map_err(write_failed)?;
        let bytes = encoded.map_err(write_failed)?;
        self.store.save_snapshot(&(meta.clone(), bytes.clone())).await?;
        Ok(Snapshot { meta, snapshot: Box::new(bytes) })
    }
}

/// A snapshot's content for the golden files.
#[cfg(test)]
pub(crate) fn sample_snapshot(
    last: Option<LogId<u64>>,
    voters: StoredMembership<u64, Voter>,
    state: ClusterState,
) -> Replica {
    let outcome = |n, result| Outcome { id: ProposalId(n), result };
    let refused = Rejection::Invalid("text".to_owned());
    let outcomes = [outcome(7, Ok(Applied::Done)), outcome(u128::MAX, Err(refused))].into();
    Replica { last, voters, state: Arc::new(state), outcomes }
}
