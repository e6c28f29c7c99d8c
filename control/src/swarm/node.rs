//! A member's shared parts: what all of its tasks need, and how they are started and stopped.

use std::{
    collections::BTreeMap,
    fmt,
    future::Future,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use weft_model::{LogSource, NodePlan, NodeReport};

use super::{
    Manager, Membership, SwarmConfig, SwarmError,
    home::{MembershipStore, Record},
    role, serve, session,
    voting::ManagerRuntime,
};
use crate::{
    pki::{Credentials, Identity, PkiError},
    rpc::{self, Bound, Limits},
};

/// What outlives a membership: the ends that callers hold.
#[derive(Debug, Clone)]
pub(super) struct NodeChannels {
    pub membership: watch::Sender<Membership>,
    pub plans: watch::Sender<Option<Arc<NodePlan>>>,
    pub reports: watch::Sender<NodeReport>,
    pub manager: watch::Sender<Option<Manager>>,
}

impl Default for NodeChannels {
    fn default() -> Self {
        Self {
            membership: watch::Sender::new(Membership::None),
            plans: watch::Sender::new(None),
            reports: watch::Sender::new(NodeReport::default()),
            manager: watch::Sender::new(None),
        }
    }
}

/// One membership while the daemon runs.
pub(super) struct Node {
    config: SwarmConfig,
    store: MembershipStore,
    record: Record,
    credentials: Credentials,
    channels: NodeChannels,
    /// Generation of the plan on the disk, or of the last that the disk did not take.
    stored_generation: watch::Sender<u64>,
    issues: Mutex<BTreeMap<HealthIssue, String>>,
    stop: CancellationToken,
    /// Ends the session before the rest.
    leaving: CancellationToken,
    tasks: TaskTracker,
}

/// What can keep a member from acting as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HealthIssue {
    /// The cluster does not know it any more.
    Removed,
    /// A manager's log cannot be written.
    Log,
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("record", &self.record).finish_non_exhaustive()
    }
}

impl Node {
    pub(super) fn new(
        config: SwarmConfig,
        store: MembershipStore,
        record: Record,
        identity: Identity,
        channels: NodeChannels,
    ) -> Result<Arc<Self>, SwarmError> {
        let credentials = Credentials::new(Arc::new(identity)).map_err(internal)?;
        let stored_generation = channels.plans.borrow().as_ref().map_or(0, |plan| plan.generation);
        Ok(Arc::new(Self {
            config,
            store,
            record,
            credentials,
            channels,
            stored_generation: watch::Sender::new(stored_generation),
            issues: Mutex::default(),
            stop: CancellationToken::new(),
            leaving: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    /// Starts the tasks: the node RPC's server, the session with the leader, the keeper of the role, and the one that
    /// writes plans to the disk. A manager's log may run already.
    pub(super) fn run(self: &Arc<Self>, bound: Bound, runtime: Option<ManagerRuntime>) {
        self.publish_membership();
        let routes = serve::routes(self.clone());
        self.tasks.spawn(rpc::serve(bound, self.credentials.server(), routes, Limits::default(), self.stop.clone()));
        let (node, leaving) = (self.clone(), self.leaving.clone());
        self.spawn(async move {
            leaving.run_until_cancelled(session::run(node)).await;
        });
        self.spawn(store_plans(self.clone()));
        // Not cancelled: it has a log to close.
        self.tasks.spawn(role::run(self.clone(), runtime));
    }

    /// Stops everything, and returns when it has ended.
    pub(super) async fn shutdown(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Nothing is reported from now on.
    pub(super) fn end_session(&self) {
        self.leaving.cancel();
    }

    /// Runs `task` until it ends or the node stops.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    pub(super) fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    pub(super) fn store(&self) -> &MembershipStore {
        &self.store
    }

    pub(super) fn record(&self) -> &Record {
        &self.record
    }

    pub(super) fn credentials(&self) -> &Credentials {
        &self.credentials
    }

    pub(super) fn channels(&self) -> &NodeChannels {
        &self.channels
    }

    /// The generation of the plan that a restart would find: none beyond it may be acked, or a daemon that is killed would
    /// go back behind what the leader built upon.
    pub(super) fn stored_generation(&self) -> watch::Receiver<u64> {
        self.stored_generation.subscribe()
    }

    pub(super) fn logs(&self) -> &Arc<dyn LogSource> {
        &self.config.logs
    }

    /// The running manager, also before the table has reached it.
    pub(super) fn manager(&self) -> Option<Manager> {
        self.channels.manager.borrow().clone()
    }

    /// Notes what is wrong, or that it is over, and shows where the node stands.
    pub(super) fn set_issue(&self, issue: HealthIssue, text: Option<String>) {
        let mut issues = self.issues.lock().unwrap_or_else(PoisonError::into_inner);
        match text {
            Some(text) => issues.insert(issue, text),
            None => issues.remove(&issue),
        };
        drop(issues);
        self.publish_membership();
    }

    /// Publishes where the node stands.
    pub(super) fn publish_membership(&self) {
        let issue = self.issues.lock().unwrap_or_else(PoisonError::into_inner).values().next().cloned();
        let membership = match issue {
            Some(text) => Membership::Error(text),
            None => Membership::Active {
                node: self.record.node.clone(),
                cluster: self.record.cluster.clone(),
                role: self.credentials.identity().peer.role,
                addr: self.record.addr,
            },
        };
        self.channels.membership.send_if_modified(|shown| {
            let changed = *shown != membership;
            *shown = membership;
            changed
        });
    }

    /// Addresses at which a manager may be found, the likeliest first.
    pub(super) fn manager_addrs(&self) -> Vec<SocketAddr> {
        let plan = self.channels.plans.borrow().clone();
        let planned = plan.iter().flat_map(|plan| plan.managers.iter().map(|manager| manager.rpc_addr));
        let mut addrs = Vec::new();
        for addr in planned.chain(self.record.remotes.iter().copied()) {
            if !addrs.contains(&addr) {
                addrs.push(addr);
            }
        }
        addrs
    }
}

/// Keeps the newest plan on the disk, so that the node can go on without the managers after a restart; none where there is
/// none.
async fn store_plans(node: Arc<Node>) {
    let mut plans = node.channels.plans.subscribe();
    while plans.changed().await.is_ok() {
        let plan = plans.borrow_and_update().clone();
        let generation = plan.as_ref().map_or(0, |plan| plan.generation);
        let store = node.store.clone();
        let written = tokio::task::spawn_blocking(move || match &plan {
            Some(plan) => store.write_plan(plan),
            None => store.remove_plan(),
        });
        // The node goes on where its disk refuses: its kernel holds the plan all the same.
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the plan is in force, yet a restart would not find it"),
            Err(error) => tracing::warn!(%error, "the plan is in force, yet was not written"),
        }
        node.stored_generation.send_replace(generation);
    }
}

pub(super) fn internal(error: PkiError) -> SwarmError {
    SwarmError::Internal { what: error.what, reason: error.reason }
}
