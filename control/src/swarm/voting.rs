//! A manager's log while it runs: opened, served, led and closed together.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_model::NodeId;

use super::{
    Manager, SwarmError, clock::ClusterClock, desk::NodeTracker, home::ManagerKeys, leader, manager::Inner, node::Node,
};
use crate::{
    raft::{self, Machine, Network, ServerMetrics, Store},
    rpc::{
        Peers,
        pb::{PingRequest, quorum_client::QuorumClient},
    },
};

/// How often managers are asked whether they are there, and how long they have to answer.
const PING_INTERVAL: Duration = Duration::from_secs(1);
/// The pause where one of them did not answer: it may only just have begun.
const PING_RETRY: Duration = Duration::from_millis(250);
const PING_TIMEOUT: Duration = Duration::from_secs(1);

/// A manager's running log.
#[derive(Debug)]
pub(super) struct ManagerRuntime {
    manager: Manager,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl ManagerRuntime {
    /// Opens the log and resumes where it stopped.
    pub(super) async fn start(node: &Node, keys: ManagerKeys) -> Result<Self, SwarmError> {
        let path = node.store().log_path();
        let opened = path.clone();
        let store = tokio::task::spawn_blocking(move || Store::open(&opened)).await;
        let store = store
            .map_err(|e| SwarmError::Internal { what: "open the log", reason: e.to_string() })?
            .map_err(|e| SwarmError::Storage { path: e.path, reason: e.reason })?;
        let unusable = |reason: String| SwarmError::Storage { path: path.clone(), reason };
        let machine = Machine::open(store.clone()).map_err(|e| unusable(e.to_string()))?;
        let state = machine.state();
        let peers = Peers::new(node.credentials().client());
        let network = Network::new(peers.clone(), keys.raft_id);
        let raft = raft::start(keys.raft_id, store.clone(), machine, network)
            .await
            .map_err(|e| unusable(store.failure().unwrap_or_else(|| e.to_string())))?;
        let manager = Manager::new(Inner {
            node: node.record().node.clone(),
            cluster: node.record().cluster.clone(),
            raft_id: keys.raft_id,
            raft,
            store,
            state,
            kek: keys.kek,
            peers,
            tracker: NodeTracker::default(),
            clock: ClusterClock::default(),
            reachable: watch::Sender::default(),
            logs: node.logs().clone(),
        });
        let runtime = Self { manager, stop: CancellationToken::new(), tasks: TaskTracker::new() };
        runtime.tasks.spawn(leader::run(runtime.manager.clone(), runtime.stop.clone()));
        runtime.tasks.spawn(track_reachability(runtime.manager.clone(), runtime.stop.clone()));
        Ok(runtime)
    }

    pub(super) fn manager(&self) -> &Manager {
        &self.manager
    }

    /// Returns when the log has stopped by itself, with the reason.
    pub(super) async fn wait_for_failure(&self) -> String {
        let mut metrics = self.manager.inner().raft.metrics();
        let stopped = metrics.wait_for(|m| m.running_state.is_err()).await;
        let reason = stopped.map_or_else(|e| e.to_string(), |m| format!("{:?}", m.running_state));
        self.manager.inner().store.failure().unwrap_or(reason)
    }

    /// Stops the log, and returns when its file is closed. Whoever else holds the manager may go on reading the table as
    /// it was.
    pub(super) async fn stop(self) {
        let Self { manager, stop, tasks } = self;
        stop.cancel();
        tasks.close();
        tasks.wait().await;
        if let Err(error) = manager.inner().raft.shutdown().await {
            tracing::warn!(%error, "the log did not stop well");
        }
        manager.inner().store.close().await;
    }
}

/// Notes which managers answer.
async fn track_reachability(manager: Manager, stop: CancellationToken) {
    let mut metrics = manager.inner().raft.server_metrics();
    let mut members = BTreeSet::new();
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(pause) => {}
            _ = metrics.wait_for(|now| raft_ids(now) != members) => {}
        }
        members = raft_ids(&metrics.borrow());
        let asked = manager.other_managers().into_iter().map(|(node, addr)| {
            let channel = manager.inner().peers.channel(addr, &node);
            async move {
                let mut client = QuorumClient::new(channel?);
                let answer = timeout(PING_TIMEOUT, client.ping(PingRequest {})).await;
                matches!(answer, Ok(Ok(_))).then_some(node)
            }
        });
        let answered = tokio::select! {
            () = stop.cancelled() => return,
            answered = join_all(asked) => answered,
        };
        pause = if answered.iter().all(Option::is_some) { PING_INTERVAL } else { PING_RETRY };
        let reachable: BTreeSet<NodeId> = answered.into_iter().flatten().collect();
        manager.inner().reachable.send_if_modified(|known| {
            let changed = *known != reachable;
            *known = reachable;
            changed
        });
    }
}

fn raft_ids(metrics: &ServerMetrics) -> BTreeSet<u64> {
    metrics.membership_config.membership().nodes().map(|(id, _)| *id).collect()
}
