//! One node's membership of a cluster, over its whole life: none, joined, restarted, left.
//!
//! Owns when a node is a member and as what, and everything that runs while it is one. It must not know what a plan is
//! for, nor how it is asked for changes: the agent and the API do. In reading order: [`Swarm`] and its `types`; `join`,
//! `leave` and `store`, a membership's beginning, end and memory; `node` with its tasks `session`, `role` and `serve`;
//! [`Manager`], with `runtime`, `leader` and `tracker`, what runs on managers only.

mod acks;
mod clock;
mod desk;
mod error;
mod home;
mod join;
mod leader;
mod leave;
mod manager;
mod node;
mod role;
mod serve;
mod session;
mod types;
mod voting;

#[cfg(test)]
mod tests;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout_at},
};
use weft_model::{NodeId, NodePlan, NodeReport, spec::Role};

use self::{
    home::MembershipStore,
    node::{Node, NodeChannels},
};
use crate::rpc::Bound;

pub use error::{ProposeError, SwarmError};
pub use manager::Manager;
pub use types::{InitOptions, JoinOptions, Membership, SwarmConfig};

/// How long a joining node waits for its first plan, and a manager for the table, before it goes on in the background.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// One node's membership of a cluster. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Swarm {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: SwarmConfig,
    store: MembershipStore,
    channels: NodeChannels,
    /// The membership that runs, if any. Held while it begins or ends: one such change at a time.
    node: Mutex<Option<Arc<Node>>>,
}

impl Swarm {
    /// Resumes the membership found in the data directory, if any. Does not wait for the other nodes.
    pub async fn open(config: SwarmConfig) -> Result<Self, SwarmError> {
        let store = MembershipStore::open(&config.data_dir)?;
        let channels = NodeChannels::default();
        let node = match store.record()? {
            Some(record) => {
                let identity = store.identity(&record)?;
                let addr = record.listen_addr;
                let bound = Bound::bind(addr).map_err(|source| SwarmError::Listen { addr, source })?;
                channels.plans.send_replace(store.plan().map(Arc::new));
                let was_manager = identity.peer.role == Role::Manager;
                let node = Node::new(config.clone(), store.clone(), record, identity, channels.clone())?;
                let runtime = match store.manager_keys()?.filter(|_| was_manager) {
                    Some(keys) => Some(voting::ManagerRuntime::start(&node, keys).await?),
                    None => None,
                };
                tracing::info!(version = config.version, node = %node.record().node, "resuming as a member");
                node.run(bound, runtime);
                Some(node)
            }
            None => None,
        };
        Ok(Self { inner: Arc::new(Inner { config, store, channels, node: Mutex::new(node) }) })
    }

    /// Where this node stands; rings at every change.
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.inner.channels.membership.subscribe()
    }

    /// Forms a new cluster of this one node, its first manager.
    pub async fn init(&self, options: InitOptions) -> Result<NodeId, SwarmError> {
        let inner = self.inner.clone();
        run_to_completion(async move { inner.init(options).await }).await
    }

    /// Joins a cluster as what the token says; returns when the node has its first plan.
    pub async fn join(&self, options: JoinOptions) -> Result<(), SwarmError> {
        let inner = self.inner.clone();
        run_to_completion(async move { inner.join(options).await }).await
    }

    /// Leaves, and forgets everything about the cluster. A manager needs `force`.
    pub async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        let inner = self.inner.clone();
        run_to_completion(async move { inner.leave(force).await }).await
    }

    /// This node's newest plan; `None` while no member. After a restart it is the last one known until a manager is
    /// found.
    pub fn plans(&self) -> watch::Receiver<Option<Arc<NodePlan>>> {
        self.inner.channels.plans.subscribe()
    }

    /// Where the agent puts its latest report; sent on change and after every reconnect. `acked` is the generation of
    /// the plan that the kernel holds.
    pub fn reports(&self) -> watch::Sender<NodeReport> {
        self.inner.channels.reports.clone()
    }

    /// `Some` on managers that hold the table.
    pub fn manager(&self) -> Option<Manager> {
        let manager = self.inner.channels.manager.borrow().clone();
        manager.filter(|manager| manager.state().borrow().cluster.is_some())
    }

    /// Waits until [`Self::manager`] is there: for ever, where this node does not become one.
    pub async fn wait_until_manager(&self) {
        let mut managers = self.inner.channels.manager.subscribe();
        loop {
            let manager = managers.borrow_and_update().clone();
            let mut state = manager.map(|manager| manager.state());
            tokio::select! {
                Ok(_) = async {
                    match &mut state {
                        Some(state) => state.wait_for(|state| state.cluster.is_some()).await.map(drop),
                        None => std::future::pending().await,
                    }
                } => return,
                changed = managers.changed() => if changed.is_err() { return },
            }
        }
    }

    /// The managers that this node knows, whatever its own role.
    pub fn remotes(&self) -> Vec<(NodeId, SocketAddr)> {
        let plan = self.inner.channels.plans.borrow().clone();
        plan.iter().flat_map(|plan| plan.managers.iter().map(|m| (m.node.clone(), m.rpc_addr))).collect()
    }

    /// Stops everything and stays a member: [`Swarm::open`] resumes.
    pub async fn shutdown(&self) {
        if let Some(node) = self.inner.node.lock().await.take() {
            node.shutdown().await;
        }
    }
}

/// Runs to its end also where the caller goes away, so that no membership is left half made.
async fn run_to_completion<T: Send + 'static>(
    work: impl Future<Output = Result<T, SwarmError>> + Send + 'static,
) -> Result<T, SwarmError> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|e| Err(SwarmError::Internal { what: "change the membership", reason: e.to_string() }))
}

impl Inner {
    async fn init(&self, options: InitOptions) -> Result<NodeId, SwarmError> {
        let mut slot = self.node.lock().await;
        if slot.is_some() {
            return Err(SwarmError::AlreadyMember);
        }
        self.channels.membership.send_replace(Membership::Joining);
        match join::init(&self.config, &self.store, &self.channels, options).await {
            Ok((node, bound, runtime)) => {
                let id = node.record().node.clone();
                node.run(bound, Some(runtime));
                *slot = Some(node);
                drop(slot);
                self.wait_until_ready(Role::Manager).await?;
                Ok(id)
            }
            Err(error) => Err(self.discard_attempt(error)),
        }
    }

    async fn join(&self, options: JoinOptions) -> Result<(), SwarmError> {
        let mut slot = self.node.lock().await;
        if slot.is_some() {
            return Err(SwarmError::AlreadyMember);
        }
        self.channels.membership.send_replace(Membership::Joining);
        let joined = match join::join(&self.config, &self.store, options).await {
            Ok(joined) => joined,
            Err(error) => return Err(self.discard_attempt(error)),
        };
        let role = joined.identity.peer.role;
        let node =
            Node::new(self.config.clone(), self.store.clone(), joined.record, joined.identity, self.channels.clone());
        let node = node.map_err(|error| self.discard_attempt(error))?;
        node.run(joined.bound, None);
        *slot = Some(node);
        drop(slot);
        self.wait_until_ready(role).await
    }

    /// Leaves no trace of a membership that did not come to be.
    fn discard_attempt(&self, error: SwarmError) -> SwarmError {
        if let Err(leftover) = self.store.wipe() {
            tracing::warn!(error = %leftover, "cannot remove what is left of the attempt");
        }
        self.channels.membership.send_replace(Membership::None);
        error
    }

    /// Waits until the node has what it needs to act as `role`.
    async fn wait_until_ready(&self, role: Role) -> Result<(), SwarmError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let late = |_| SwarmError::Timeout;
        let mut plans = self.channels.plans.subscribe();
        // A closed channel cannot be: this holds the other end.
        let _ = timeout_at(deadline, plans.wait_for(Option::is_some)).await.map_err(late)?;
        if role == Role::Worker {
            return Ok(());
        }
        let mut managers = self.channels.manager.subscribe();
        let manager = timeout_at(deadline, managers.wait_for(Option::is_some)).await.map_err(late)?;
        let manager = manager.ok().and_then(|manager| manager.clone());
        let Some(mut state) = manager.map(|manager| manager.state()) else {
            return Err(SwarmError::Timeout);
        };
        let _ = timeout_at(deadline, state.wait_for(|state| state.cluster.is_some())).await.map_err(late)?;
        Ok(())
    }

    async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        let mut slot = self.node.lock().await;
        let node = slot.clone().ok_or(SwarmError::NotMember)?;
        leave::check_allowed(&node, force)?;
        leave::announce(&node).await;
        node.shutdown().await;
        self.store.wipe()?;
        *slot = None;
        self.channels.reports.send_replace(NodeReport::default());
        self.channels.plans.send_replace(None);
        self.channels.membership.send_replace(Membership::None);
        Ok(())
    }
}
