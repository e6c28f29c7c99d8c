//! Passes Raft messages of other managers to this manager's log. `dispatch::quorum` calls these
//! methods after it has checked the caller.

use std::collections::BTreeMap;

use openraft::{
    Snapshot, Vote,
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
};

#[cfg(test)]
use {
    openraft::{EntryPayload, RaftLogReader as _},
    weft_model::Command,
};

use super::Manager;
use crate::raft::{TypeConfig, Voter};

/// All methods fail, with the reason, if this manager's log has stopped.
impl Manager {
    /// Makes `voters` the first voters of a log that is empty. It also fails if the log is not
    /// empty.
    pub(in crate::swarm) async fn initialize_log(&self, voters: BTreeMap<u64, Voter>) -> Result<(), String> {
        self.inner.raft.initialize(voters).await.map_err(|error| error.to_string())
    }

    /// Entries from the leader.
    pub(in crate::swarm) async fn append_entries(
        &self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> Result<AppendEntriesResponse<u64>, String> {
        self.inner.raft.append_entries(request).await.map_err(|error| error.to_string())
    }

    /// A candidate's request for this manager's vote.
    pub(in crate::swarm) async fn vote(&self, request: VoteRequest<u64>) -> Result<VoteResponse<u64>, String> {
        self.inner.raft.vote(request).await.map_err(|error| error.to_string())
    }

    /// A snapshot of the cluster state from the leader, which replaces the state here.
    pub(in crate::swarm) async fn install_snapshot(
        &self,
        vote: Vote<u64>,
        snapshot: Snapshot<TypeConfig>,
    ) -> Result<SnapshotResponse<u64>, String> {
        self.inner.raft.install_full_snapshot(vote, snapshot).await.map_err(|error| error.to_string())
    }
}

/// Access to the log for tests.
#[cfg(test)]
impl Manager {
    pub(in crate::swarm) async fn stop_log(&self) {
        self.inner.raft.shutdown().await.expect("the log stops");
    }

    /// Lets openraft's task panic.
    pub(in crate::swarm) async fn panic_log(&self) {
        self.inner.raft.external_request(|_| panic!("a test lets the log panic"));
        let mut metrics = self.inner.raft.metrics();
        while metrics.changed().await.is_ok() {}
    }

    pub(super) async fn hold_voter_change(&self) {
        let _ = self.inner.holds_voter_changes.subscribe().wait_for(|holds| !holds).await;
    }

    /// Holds the changes of the voters that this manager begins from now on, or releases them.
    pub(in crate::swarm) fn hold_voter_changes(&self, holds: bool) {
        self.inner.holds_voter_changes.send_replace(holds);
    }

    /// Whether a change of the voters waits.
    pub(in crate::swarm) fn has_held_voter_change(&self) -> bool {
        self.inner.holds_voter_changes.receiver_count() > 0
    }

    /// The commands in this log, from this index on.
    pub(in crate::swarm) async fn commands_from(&self, index: u64) -> Vec<Command> {
        let entries = self.inner.store.clone().try_get_log_entries(index..).await.expect("the log is readable");
        let command = |entry: openraft::Entry<TypeConfig>| match entry.payload {
            EntryPayload::Normal(proposal) => Some(proposal.entry.command),
            _ => None,
        };
        entries.into_iter().filter_map(command).collect()
    }

    pub(in crate::swarm) fn last_index(&self) -> u64 {
        self.inner.raft.metrics().borrow().last_log_index.unwrap_or(0)
    }

    /// Damages the state of this manager with the next entry.
    pub(in crate::swarm) fn damage_state(&self) {
        self.inner.store.damage_state();
    }

    pub(in crate::swarm) fn log_is_running(&self) -> bool {
        self.inner.raft.metrics().borrow().running_state.is_ok()
    }

    pub(in crate::swarm) fn log_metrics(&self) -> String {
        self.inner.raft.metrics().borrow().to_string()
    }

    pub(in crate::swarm) fn has_entries(&self) -> bool {
        self.inner.raft.metrics().borrow().last_log_index.is_some()
    }

    /// Waits until this log has an entry, and returns the index of the last one.
    pub(in crate::swarm) async fn wait_for_entries(&self) -> u64 {
        let mut metrics = self.inner.raft.metrics();
        let filled = metrics.wait_for(|now| now.last_log_index.is_some()).await;
        filled.expect("the log runs").last_log_index.expect("an entry")
    }

    /// Waits until this log has a leader that is one of `managers`, and returns its raft id.
    pub(in crate::swarm) async fn wait_for_leader(&self, managers: &[u64]) -> u64 {
        let mut metrics = self.inner.raft.server_metrics();
        let elected = metrics.wait_for(|now| now.current_leader.is_some_and(|id| managers.contains(&id))).await;
        elected.expect("the log runs").current_leader.expect("an elected leader")
    }
}
