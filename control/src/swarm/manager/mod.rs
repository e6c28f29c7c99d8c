//! The parts that run only on managers: the log, the manager's copy of the cluster state, and the
//! leader's loop.
//!
//! [`Manager`] is the handle that the API and the rest of the swarm module use. Its methods are
//! spread over the files by purpose:
//! - `read`: reads the cluster state, and waits until it is current.
//! - `peers`: the other managers: which one leads, and which ones answer.
//! - `propose`: changes of the cluster state.
//! - `replication`: passes Raft messages of other managers to this manager's log.
//! - `signing`: certificates for nodes, signed by the cluster's authority.
//! - `lock`: whether managers are locked, and the key of this manager's log.
//! - `logs`: task logs, fetched from the node that runs the task.
//!
//! `digest` compares the state of this manager with that of the others.
//!
//! `leader` is the loop that runs while this manager leads, with its pure parts `steps`, `observe`
//! and `voters`. `runtime` opens the log, starts the tasks, and closes the log at the end.
//!
//! This module does not serve calls of nodes ([`super::dispatch`] does), and does not decide
//! whether this node is a manager ([`super::membership`] does).

pub(super) mod lease;
mod read;
mod peers;
pub(super) mod propose;
mod replication;
mod signing;
mod lock;
mod logs;
mod observe;
pub(super) mod voters;
pub(super) mod steps;
mod digest;
mod leader;
mod runtime;

#[cfg(test)]
mod tests;

use std::{collections::BTreeSet, fmt, sync::Arc};

use tokio::{
    sync::{Mutex, watch},
    time::Instant,
};
use weft_model::{ClusterState, LogSource, NodeId, id::ClusterId, state::StateDigest};

use self::lease::Lease;
use super::{clock::ClusterClock, liveness::NodeTracker};
use crate::{
    pki::Kek,
    raft::{Raft, Store},
    rpc::Peers,
};

pub(super) use runtime::{ManagerConfig, ManagerRuntime};
pub use signing::RotateError;
pub(super) use signing::SignError;

/// A manager's handle to the cluster state: reads it, changes it, and asks the other managers.
/// Cheap to clone.
///
/// A handle stays usable for reading after the manager has stopped (the node was demoted, left, or
/// its log failed): the state then no longer changes, and every proposal fails with
/// [`ProposeError::Unavailable`](super::ProposeError::Unavailable).
#[derive(Clone)]
pub struct Manager {
    inner: Arc<Inner>,
}

struct Inner {
    node: NodeId,
    cluster: ClusterId,
    keys: ManagerKeys,
    raft: Raft,
    store: Store,
    state: watch::Receiver<Arc<ClusterState>>,
    /// The digests that this manager has computed of its state.
    digests: watch::Receiver<Option<StateDigest>>,
    peers: Peers,
    tracker: NodeTracker,
    clock: ClusterClock,
    lease: Mutex<Lease>,
    /// The term in which this manager led when its log was opened, and the last index of the log
    /// then.
    led_until: Option<(u64, u64)>,
    /// Since when no leader with a quorum is known.
    leaderless_since: watch::Sender<Option<Instant>>,
    /// The other managers that answered the last ping.
    reachable: watch::Sender<BTreeSet<NodeId>>,
    /// The epoch of a cluster that was formed again without this manager.
    superseded: watch::Sender<Option<u64>>,
    logs: Arc<dyn LogSource>,
    /// While it is true, this manager waits before each change of the voters that it has chosen.
    #[cfg(test)]
    holds_voter_changes: watch::Sender<bool>,
}

/// What a manager needs and a worker must not have.
#[derive(Debug, Clone)]
pub(super) struct ManagerKeys {
    /// This manager's id in the Raft log. Never reused.
    pub raft_id: u64,
    /// Opens the key of the certificate authority, which is sealed in the cluster state.
    pub kek: Kek,
}

impl fmt::Debug for Manager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manager").field("node", &self.inner.node).finish_non_exhaustive()
    }
}

impl Manager {
    /// This node.
    pub fn node(&self) -> &NodeId {
        &self.inner.node
    }

    /// The cluster that this manager belongs to.
    pub fn cluster(&self) -> &ClusterId {
        &self.inner.cluster
    }

    /// The current Raft term, as far as this manager knows.
    pub(super) fn term(&self) -> u64 {
        self.inner.raft.metrics().borrow().current_term
    }

    pub(super) fn keys(&self) -> &ManagerKeys {
        &self.inner.keys
    }

    /// The sessions and reports of all nodes, while this manager leads.
    pub(super) fn tracker(&self) -> &NodeTracker {
        &self.inner.tracker
    }

    /// The time that a log entry of this manager would get now.
    pub(super) fn now_ms(&self) -> u64 {
        let state_ms = self.inner.state.borrow().now_ms;
        self.inner.clock.now_ms(state_ms)
    }
}
