//! Reads a log while Raft does not run, and writes a new one whose only voter is this manager:
//! after the quorum of the managers was lost, and from a backup. `swarm::membership` calls it.

use std::path::Path;

use openraft::{
    CommittedLeaderId, LogId, Membership, RaftLogReader, SnapshotMeta, StoredMembership, Vote,
    storage::{RaftLogStorage, RaftStateMachine},
};
use weft_model::ClusterState;

use super::{Machine, Store, Voter, machine::Replica};
use crate::{codec, vault::Vault};

/// The state that a new log begins with.
#[derive(Debug)]
pub struct Base {
    replica: Replica,
    /// The newest term that the former log knows.
    term: u64,
}

impl Base {
    /// Reads the log in `path`, and applies all its entries. An entry that the former leader had
    /// not confirmed is applied too: the leader may have confirmed it to a user without having told
    /// this manager.
    ///
    /// # Errors
    /// The reason, if the log cannot be opened, read or decoded.
    pub async fn read(path: &Path, vault: &Vault) -> Result<Self, String> {
        let mut store = Store::open(path, vault).map_err(|e| e.to_string())?;
        let base = Self::read_store(&mut store).await;
        store.close().await;
        base.map_err(|e| e.to_string())
    }

    async fn read_store(store: &mut Store) -> Result<Self, openraft::StorageError<u64>> {
        let mut machine = Machine::open(store.clone())?;
        let (applied, _) = machine.applied_state().await?;
        let next = applied.map_or(0, |last| last.index + 1);
        machine.apply(store.try_get_log_entries(next..).await?).await?;
        let replica = machine.into_replica();
        let voted = store.read_vote().await?.map_or(0, |vote| vote.leader_id.term);
        let logged = replica.last.map_or(0, |last| last.leader_id.term);
        Ok(Self { replica, term: voted.max(logged) })
    }

    /// The state of a backup, which was taken in the term `term`.
    pub fn from_backup(state: ClusterState, term: u64) -> Self {
        Self { replica: Replica { state: state.into(), ..Replica::default() }, term }
    }

    pub fn state_mut(&mut self) -> &mut ClusterState {
        std::sync::Arc::make_mut(&mut self.replica.state)
    }

    /// The log index of the first entry of the new log.
    pub fn next_index(&self) -> u64 {
        self.replica.last.map_or(0, |last| last.index).max(self.replica.state.index) + 1
    }

    /// Writes the new log to `path`: a snapshot at [`Self::next_index`] and the next term, with the
    /// voter `raft_id`.
    ///
    /// # Errors
    /// The reason, if the file cannot be written.
    pub async fn write(mut self, path: &Path, vault: &Vault, raft_id: u64, voter: Voter) -> Result<(), String> {
        let term = self.term + 1;
        let last = LogId::new(CommittedLeaderId::new(term, raft_id), self.next_index());
        let voters = Membership::new(vec![[raft_id].into()], std::collections::BTreeMap::from([(raft_id, voter)]));
        self.replica.last = Some(last);
        self.replica.voters = StoredMembership::new(Some(last), voters);
        let bytes = codec::encode(&codec::SNAPSHOT, &self.replica).map_err(|e| e.to_string())?;
        let meta = SnapshotMeta {
            last_log_id: Some(last),
            last_membership: self.replica.voters,
            snapshot_id: last.to_string(),
        };
        let mut store = Store::open(path, vault).map_err(|e| e.to_string())?;
        let write = async {
            store.save_vote(&Vote::new(term, raft_id)).await?;
            store.save_snapshot(&(meta, bytes)).await?;
            store.purge(last).await
        };
        let written: Result<(), openraft::StorageError<u64>> = write.await;
        store.close().await;
        written.map_err(|e| e.to_string())
    }
}

/// Whether the latest snapshot of the log in `path` has the voter `raft_id`.
///
/// # Errors
/// The reason, if the log cannot be opened or read.
pub async fn has_voter(path: &Path, vault: &Vault, raft_id: u64) -> Result<bool, String> {
    let store = Store::open(path, vault).map_err(|e| e.to_string())?;
    let snapshot = store.snapshot();
    store.close().await;
    let snapshot = snapshot.map_err(|e| e.to_string())?;
    Ok(snapshot.is_some_and(|(meta, _)| meta.last_membership.voter_ids().any(|id| id == raft_id)))
}
