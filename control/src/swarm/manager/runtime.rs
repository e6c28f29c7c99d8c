//! A manager while it runs: opens its log, starts its tasks, and closes the log at the end.
//!
//! The membership module starts a [`ManagerRuntime`] when this node becomes a manager or resumes as
//! one, and stops it when the node is demoted, leaves or shuts down.

use std::{path::PathBuf, sync::Arc};

use tokio::{
    sync::{Mutex, watch},
    time::sleep,
};
use weft_model::{LogSource, NodeId, id::ClusterId};

use super::{
    Inner, Manager, ManagerKeys, digest, leader,
    peers::{follow_leader, track_reachability},
};
use crate::{
    pki::Credentials,
    raft::{self, Machine, Network, STAND_ASIDE, Start, Store},
    rpc::Peers,
    swarm::{clock::ClusterClock, error::SwarmError, liveness::NodeTracker, tasks::TaskGroup},
    vault::Vault,
};

/// The values from which a manager is started.
pub(in crate::swarm) struct ManagerConfig {
    pub node: NodeId,
    pub cluster: ClusterId,
    pub keys: ManagerKeys,
    pub log_path: PathBuf,
    /// Contains the key of the log.
    pub vault: Vault,
    /// For calls to other managers and to nodes.
    pub credentials: Credentials,
    /// The logs of this node's own tasks.
    pub logs: Arc<dyn LogSource>,
    pub start: Start,
}

/// A running manager. Dropping it without [`Self::stop`] leaves its tasks running.
#[derive(Debug)]
pub(in crate::swarm) struct ManagerRuntime {
    manager: Manager,
    tasks: TaskGroup,
}

impl ManagerRuntime {
    /// Opens the log, resumes where it stopped, and starts the tasks: the leader's loop, and the
    /// pings to the other managers. Does not wait for other managers.
    ///
    /// # Errors
    /// [`SwarmError::Storage`] if the log cannot be opened or read.
    pub(in crate::swarm) async fn start(config: ManagerConfig) -> Result<Self, SwarmError> {
        let ManagerConfig { node, cluster, keys, log_path, vault, credentials, logs, start } = config;
        let opened = log_path.clone();
        let store = crate::host::spawn_blocking(move || Store::open(&opened, &vault)).await;
        let store = store
            .map_err(|e| SwarmError::Internal { what: "open the log", reason: e.to_string() })?
            .map_err(|e| SwarmError::Storage { path: e.path, reason: e.reason })?;
        let unusable = |reason: String| SwarmError::Storage { path: log_path.clone(), reason };
        let machine = Machine::open(store.clone()).map_err(|e| unusable(e.to_string()))?;
        let (state, digests) = (machine.state(), machine.digests());
        let peers = Peers::new(credentials);
        let led_until = raft::led_until(keys.raft_id, &store).await.map_err(|e| unusable(e.to_string()))?;
        let network = Network::new(peers.clone(), keys.raft_id, state.clone());
        let raft = raft::start(keys.raft_id, store.clone(), machine, network, start)
            .await
            .map_err(|e| unusable(store.failure().unwrap_or_else(|| e.to_string())))?;
        let inner = Inner {
            node,
            cluster,
            keys,
            raft,
            store,
            state,
            digests,
            peers,
            tracker: NodeTracker::default(),
            clock: ClusterClock::default(),
            lease: Mutex::default(),
            led_until,
            leaderless_since: watch::Sender::default(),
            reachable: watch::Sender::default(),
            superseded: watch::Sender::default(),
            logs,
            #[cfg(test)]
            holds_voter_changes: watch::Sender::default(),
        };
        let runtime = Self { manager: Manager { inner: Arc::new(inner) }, tasks: TaskGroup::default() };
        let (manager, stop) = (runtime.manager.clone(), runtime.tasks.stop_token().clone());
        runtime.tasks.spawn_graceful(leader::run(manager, stop));
        runtime.tasks.spawn(track_reachability(runtime.manager.clone()));
        runtime.tasks.spawn(follow_leader(runtime.manager.clone()));
        runtime.tasks.spawn(digest::run(runtime.manager.clone()));
        if start == Start::AfterFailure {
            runtime.tasks.spawn(become_candidate(runtime.manager.clone()));
        }
        Ok(runtime)
    }

    pub(in crate::swarm) fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Resolves, with the reason, when the log has stopped because of an error, such as a full
    /// disk.
    pub(in crate::swarm) async fn wait_for_failure(&self) -> String {
        let inner = &self.manager.inner;
        let mut metrics = inner.raft.metrics();
        let stopped = metrics.wait_for(|m| m.running_state.is_err()).await;
        let reason = stopped.map_or_else(|e| e.to_string(), |m| format!("{:?}", m.running_state));
        inner.store.failure().unwrap_or(reason)
    }

    /// Resolves, with the epoch, when another manager answered that the cluster was formed again
    /// without this manager. This manager must then not continue: together with others it may have
    /// a quorum of the former log.
    pub(in crate::swarm) async fn wait_until_superseded(&self) -> u64 {
        let mut superseded = self.manager.inner.superseded.subscribe();
        let epoch = superseded.wait_for(Option::is_some).await.ok().and_then(|epoch| *epoch);
        match epoch {
            Some(epoch) => epoch,
            None => std::future::pending().await,
        }
    }

    /// Stops the tasks and the log, and resolves when the log's file is closed. Other holders of
    /// the [`Manager`] can still read the last cluster state.
    pub(in crate::swarm) async fn stop(self) {
        let Self { manager, tasks } = self;
        tasks.stop().await;
        if let Err(error) = manager.inner.raft.shutdown().await {
            tracing::warn!(%error, "the log did not stop cleanly");
        }
        manager.inner.store.close().await;
    }
}

/// Lets a manager that was started with [`Start::AfterFailure`] be a candidate: after
/// [`STAND_ASIDE`], or at once if there is no other voter.
async fn become_candidate(manager: Manager) {
    let raft = &manager.inner.raft;
    let mut metrics = raft.metrics();
    // The first metrics are empty: openraft has not read the log yet.
    let known = metrics.wait_for(|metrics| metrics.membership_config.voter_ids().next().is_some()).await;
    let Ok(is_alone) = known.map(|metrics| metrics.membership_config.voter_ids().count() == 1) else { return };
    if !is_alone {
        sleep(STAND_ASIDE).await;
    }
    raft.runtime_config().elect(true);
}
