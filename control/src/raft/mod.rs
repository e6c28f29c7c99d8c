//! The replicated log: openraft over one redb file and the node RPC.
//!
//! Owns what is logged, how it is stored and how it travels. It must not know what a command means ([`crate::state`]
//! does) nor who shall be a voter ([`crate::swarm`] does). openraft's own tasks do the work; [`Store`] writes on tokio's
//! blocking threads.

mod machine;
mod network;
mod store;

#[cfg(test)]
mod tests;

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use openraft::{Config, SnapshotPolicy, TokioRuntime};
use serde::{Deserialize, Serialize};
use weft_model::{Applied, Command, Entry, NodeId, Rejection};

pub use machine::Machine;
pub use network::{Network, receive_snapshot};
pub use store::{Store, StoreError};

/// How often the leader says that it lives.
const HEARTBEAT_MS: u64 = 250;
/// A voter that heard nothing for the longer of these, and then for a random time between them, stands for election:
/// a dead leader is replaced within 1.5 to 2 s, and four lost heartbeats disturb nobody.
const ELECTION_MIN_MS: u64 = 500;
const ELECTION_MAX_MS: u64 = 1_000;
/// A whole table must travel within this time.
const SNAPSHOT_TIMEOUT_MS: u64 = 30_000;
/// A snapshot is written each time the log grew by that many entries, and that many stay for voters that lag.
const SNAPSHOT_EVERY: u64 = 2_000;
const KEPT_ENTRIES: u64 = 1_000;
/// Entries in one append: at most some megabytes.
const MAX_APPEND: u64 = 128;

openraft::declare_raft_types!(
    /// What openraft needs to know of our types.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = Voter,
        Entry = openraft::Entry<TypeConfig>,
        SnapshotData = Vec<u8>,
        AsyncRuntime = TokioRuntime
);

/// A handle to the running log. Cheap to clone.
pub type Raft = openraft::Raft<TypeConfig>;
/// What openraft tells of itself.
pub type Metrics = openraft::RaftMetrics<u64, Voter>;
/// The part of it that changes rarely.
pub type ServerMetrics = openraft::metrics::RaftServerMetrics<u64, Voter>;
/// Who votes and who listens.
pub type Voters = openraft::Membership<u64, Voter>;

/// One log entry: a change that happens once, however often it is sent.
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

/// Drawn at random by whoever asks for the change, and the same in each of its tries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProposalId(pub u128);

impl ProposalId {
    pub fn random() -> Self {
        Self(rand::random())
    }
}

/// What applying an entry gave; nothing for openraft's own entries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reply(pub Option<Result<Applied, Rejection>>);

/// A manager as the log knows it: found by this before the table is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voter {
    pub node: NodeId,
    pub rpc_addr: SocketAddr,
}

/// Nobody: openraft's tests of the store ask for some value.
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

/// Starts the log of the voter `raft_id`.
pub async fn start(
    raft_id: u64,
    store: Store,
    machine: Machine,
    network: Network,
) -> Result<Raft, openraft::error::Fatal<u64>> {
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
        ..Config::default()
    };
    Raft::new(raft_id, Arc::new(config), network, store, machine).await
}
