//! The replicated log: openraft on one redb file and the node RPC.
//!
//! `swarm::manager` starts it on managers and proposes changes to it. This module owns the log
//! entries, how they are stored, encrypted on the disk, and how they are sent. It must not know
//! what a command means ([`crate::state`] does) nor choose the voters ([`crate::swarm`] does).
//! Other modules rely on two invariants: an entry is on disk before it is confirmed, and a proposal
//! is applied at most once.
//!
//! openraft's own tasks do the work; [`Store`] writes on tokio's blocking threads.

mod seal;
mod store;
mod machine;
mod network;
mod reform;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

#[cfg(not(test))]
use openraft::TokioRuntime as Runtime;
use openraft::{Config, SnapshotPolicy, StorageError, storage::RaftLogStorage as _};
use serde::{Deserialize, Serialize};
use weft_model::{Applied, Command, Entry, NodeId, Rejection};

#[cfg(test)]
use crate::fixture::simulated::runtime::Runtime;
use crate::host;

pub use machine::Machine;
pub(crate) use machine::Replica;
#[cfg(test)]
pub(crate) use machine::sample_snapshot;
pub(crate) use network::SnapshotHeader;
pub use network::{Network, receive_snapshot};
pub use reform::{Base, has_voter};
pub(crate) use store::LogEntry;
pub use store::{Store, StoreError};

/// Interval of the leader's heartbeats to the other voters.
const HEARTBEAT_MS: u64 = 250;
/// A voter becomes a candidate after it received no heartbeat for the longer of these times plus a
/// random time between the two. So a failed leader is replaced within 1.5 to 2 s, and three lost
/// heartbeats in a row cause no election.
const ELECTION_MIN_MS: u64 = 500;
const ELECTION_MAX_MS: u64 = 1_000;
/// What no user can change, in the units of Swarm's settings. A tick is the interval of heartbeats.
pub(crate) const SETTINGS: Settings = Settings {
    snapshot_interval: SNAPSHOT_EVERY,
    kept_entries: KEPT_ENTRIES,
    heartbeat_ticks: 1,
    election_ticks: (ELECTION_MAX_MS + ELECTION_MIN_MS) / HEARTBEAT_MS,
};

/// See [`SETTINGS`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    /// Number of entries between two snapshots.
    pub(crate) snapshot_interval: u64,
    /// Number of entries that stay in the log after a snapshot.
    pub(crate) kept_entries: u64,
    pub(crate) heartbeat_ticks: u64,
    /// The shortest time without a heartbeat after which a voter becomes a candidate.
    pub(crate) election_ticks: u64,
}

/// How long a manager whose log has failed is no candidate after each start. The other managers
/// need at most 2 s to elect one of them, and as long again if they vote for different ones.
pub const STAND_ASIDE: Duration = Duration::from_secs(5);
/// Time limit for sending a whole snapshot.
const SNAPSHOT_TIMEOUT_MS: u64 = 30_000;
/// Number of entries between two snapshots, and number of entries that stay in the log after a
/// snapshot. A voter that lags behind by fewer entries does not need the snapshot.
const SNAPSHOT_EVERY: u64 = 2_000;
const KEPT_ENTRIES: u64 = 1_000;
/// Limit of entries in one append request.
const MAX_APPEND: u64 = 128;

openraft::declare_raft_types!(
    /// openraft's type parameters.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = Voter,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Vec<u8>,
        AsyncRuntime = Runtime
);

/// A handle to the running Raft instance. Cheap to clone.
pub type Raft = openraft::Raft<TypeConfig>;
/// openraft's metrics.
pub type Metrics = openraft::RaftMetrics<u64, Voter>;
/// The part of openraft's metrics that changes rarely: state, term, leader, voters.
pub type ServerMetrics = openraft::metrics::RaftServerMetrics<u64, Voter>;
/// The Raft configuration: voters and learners.
pub type Voters = openraft::Membership<u64, Voter>;

/// A log entry: a change that is applied once, even if it is sent several times.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    pub id: ProposalId,
    pub entry: Entry,
}

impl Proposal {
    pub fn new(id: ProposalId, now_ms: u64, command: Command) -> Self {
        Self { id, entry: Entry { now_ms, command } }
    }
}

/// Identifies a change. The proposer chooses a random id and uses the same id in each retry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalId(pub u128);

impl ProposalId {
    pub fn random() -> Self {
        Self(host::random())
    }
}

/// The result of applying an entry; `None` for openraft's own entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply(pub Option<Result<Applied, Rejection>>);

/// A manager in the Raft configuration, with the address that other managers use before they have
/// the cluster state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voter {
    pub node: NodeId,
    pub rpc_addr: SocketAddr,
}

/// Not a real manager: openraft's test suite for the store needs a default value.
impl Default for Voter {
    fn default() -> Self {
        Self { node: NodeId::from_random(0), rpc_addr: (Ipv4Addr::UNSPECIFIED, 0).into() }
    }
}

impl fmt::Display for Voter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.node, self.rpc_addr)
    }
}

/// How Raft starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A manager that led continues to lead.
    Resume,
    /// The log has stopped because of an error, which may not be over. This manager does not lead
    /// at once, and is no candidate until [`STAND_ASIDE`] has passed: each time it would stop
    /// again, and until then its heartbeats would keep the other managers from an election.
    AfterFailure,
}

/// The term in which this manager led when its log was closed, and the last index of the log.
/// `None` if it did not lead. openraft continues to lead with it, and forgets up to which index the
/// log was confirmed before. That is this index at most.
///
/// # Errors
/// If the store cannot be read.
pub async fn led_until(raft_id: u64, store: &Store) -> Result<Option<(u64, u64)>, StorageError<u64>> {
    let mut store = store.clone();
    let vote = store.read_vote().await?;
    let led = vote.filter(|vote| vote.is_committed() && vote.leader_id().voted_for() == Some(raft_id));
    let last = store.get_log_state().await?.last_log_id;
    Ok(led.map(|vote| (vote.leader_id().term, last.map_or(0, |id| id.index))))
}

/// Starts Raft as the voter `raft_id`.
///
/// # Errors
/// If the store cannot be read or written.
pub async fn start(
    raft_id: u64,
    store: Store,
    machine: Machine,
    network: Network,
    how: Start,
) -> Result<Raft, openraft::error::Fatal<u64>> {
    if how == Start::AfterFailure {
        store.resign();
    }
    let config = Config {
        cluster_name: "weft".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MIN_MS,
        election_timeout_max: ELECTION_MAX_MS,
        install_snapshot_timeout: SNAPSHOT_TIMEOUT_MS,
        max_payload_entries: MAX_APPEND,
        replication_lag_threshold: SNAPSHOT_EVERY + KEPT_ENTRIES,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_EVERY),
        max_in_snapshot_log_to_keep: KEPT_ENTRIES,
        enable_elect: how == Start::Resume,
        ..Config::default()
    };
    Raft::new(raft_id, Arc::new(config), network, store, machine).await
}
