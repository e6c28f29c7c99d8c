//! The traits through which the API uses the cluster: [`Member`] for the membership of this node,
//! and [`ClusterHandle`] for the cluster state, which only managers have.
//!
//! The handlers call these traits. [`Swarm`] and [`Manager`] implement them below; these
//! implementations only forward calls. Tests implement the traits in memory.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use weft_model::{
    Applied, ClusterState, Command, LogError, LogOptions, LogRecord, NetworkId, NodeId, NodePlan, NodeReport, TaskId,
    UnlockKey,
    command::AttachContainer,
    spec::{ClusterSpec, Role},
};

use crate::swarm::{
    InitOptions, JoinOptions, Manager, Membership, ProposeError, RestoreOptions, RotateError, Swarm, SwarmError,
};

/// This node's membership.
#[async_trait]
pub(crate) trait Member: Send + Sync {
    fn membership(&self) -> Membership;
    /// What the agent of this node has reported last.
    fn report(&self) -> NodeReport;
    /// The newest plan of this node. `None` if it is in no cluster.
    fn plan(&self) -> Option<Arc<NodePlan>>;
    /// The ids and RPC addresses of the managers that this node knows.
    fn remotes(&self) -> Vec<(NodeId, SocketAddr)>;
    async fn init(&self, options: InitOptions) -> Result<NodeId, SwarmError>;
    async fn join(&self, options: JoinOptions) -> Result<(), SwarmError>;
    /// Forms the cluster again with this node as its only manager.
    async fn reform(&self, advertise_addr: Option<IpAddr>) -> Result<NodeId, SwarmError>;
    async fn back_up(&self, passphrase: String) -> Result<Vec<u8>, SwarmError>;
    async fn restore(&self, options: RestoreOptions) -> Result<NodeId, SwarmError>;
    async fn leave(&self, force: bool) -> Result<(), SwarmError>;
    /// The newest plan of this node.
    fn plans(&self) -> watch::Receiver<Option<Arc<NodePlan>>>;
    /// Attaches a container of this node that is no task, or records how the engine calls it.
    async fn attach(&self, attach: AttachContainer) -> Result<(), SwarmError>;
    async fn detach(&self, id: TaskId, networks: Vec<NetworkId>) -> Result<(), SwarmError>;
    /// Starts this manager, which is locked.
    async fn unlock(&self, key: UnlockKey) -> Result<(), SwarmError>;
    /// `Some` on managers that have the cluster state.
    fn cluster(&self) -> Option<Arc<dyn ClusterHandle>>;
    /// Waits until [`Self::cluster`] is `Some`. A promoted node is a manager for a moment before it
    /// has the cluster state. `false` if the daemon ends.
    async fn wait_until_manager(&self) -> bool;
}

/// A manager's access to the cluster state.
#[async_trait]
pub(crate) trait ClusterHandle: Send + Sync {
    fn state(&self) -> watch::Receiver<Arc<ClusterState>>;
    /// Waits until [`Self::state`] has all changes that any manager confirmed before this call.
    /// Returns `false` if no leader confirms that the state is up to date.
    async fn catch_up(&self) -> bool;
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError>;
    fn leader(&self) -> Option<NodeId>;
    fn is_manager_reachable(&self, node: &NodeId) -> bool;
    fn join_token(&self, role: Role) -> String;
    async fn rotate_token(&self, role: Role) -> Result<String, ProposeError>;
    /// Changes the settings and begins to replace the CA, by `own` (certificate and key in PEM) or
    /// by a new one.
    async fn rotate_root(
        &self,
        version: u64,
        spec: ClusterSpec,
        own: Option<(String, String)>,
    ) -> Result<(), RotateError>;
    async fn task_logs(&self, task: &TaskId, options: LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError>;
}

#[async_trait]
impl Member for Swarm {
    fn membership(&self) -> Membership {
        Swarm::membership(self).borrow().clone()
    }

    fn report(&self) -> NodeReport {
        Swarm::reports(self).borrow().clone()
    }

    fn plan(&self) -> Option<Arc<NodePlan>> {
        Swarm::plans(self).borrow().clone()
    }

    fn remotes(&self) -> Vec<(NodeId, SocketAddr)> {
        Swarm::remotes(self)
    }

    async fn init(&self, options: InitOptions) -> Result<NodeId, SwarmError> {
        Swarm::init(self, options).await
    }

    async fn join(&self, options: JoinOptions) -> Result<(), SwarmError> {
        Swarm::join(self, options).await
    }

    async fn reform(&self, advertise_addr: Option<IpAddr>) -> Result<NodeId, SwarmError> {
        Swarm::reform(self, advertise_addr).await
    }

    async fn back_up(&self, passphrase: String) -> Result<Vec<u8>, SwarmError> {
        Swarm::back_up(self, passphrase).await
    }

    async fn restore(&self, options: RestoreOptions) -> Result<NodeId, SwarmError> {
        Swarm::restore(self, options).await
    }

    async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        Swarm::leave(self, force).await
    }

    async fn unlock(&self, key: UnlockKey) -> Result<(), SwarmError> {
        Swarm::unlock(self, key).await
    }

    fn plans(&self) -> watch::Receiver<Option<Arc<NodePlan>>> {
        Swarm::plans(self)
    }

    async fn attach(&self, attach: AttachContainer) -> Result<(), SwarmError> {
        Swarm::attach(self, attach).await
    }

    async fn detach(&self, id: TaskId, networks: Vec<NetworkId>) -> Result<(), SwarmError> {
        Swarm::detach(self, id, networks).await
    }

    fn cluster(&self) -> Option<Arc<dyn ClusterHandle>> {
        self.manager().map(|manager| Arc::new(manager) as Arc<dyn ClusterHandle>)
    }

    async fn wait_until_manager(&self) -> bool {
        Swarm::wait_until_manager(self).await
    }
}

#[async_trait]
impl ClusterHandle for Manager {
    fn state(&self) -> watch::Receiver<Arc<ClusterState>> {
        Manager::state(self)
    }

    async fn catch_up(&self) -> bool {
        Manager::catch_up(self).await
    }

    async fn propose(&self, command: Command) -> Result<Applied, ProposeError> {
        Manager::propose(self, command).await
    }

    fn leader(&self) -> Option<NodeId> {
        Manager::leader(self)
    }

    fn is_manager_reachable(&self, node: &NodeId) -> bool {
        self.manager_reachable(node)
    }

    fn join_token(&self, role: Role) -> String {
        Manager::join_token(self, role)
    }

    async fn rotate_token(&self, role: Role) -> Result<String, ProposeError> {
        Manager::rotate_token(self, role).await
    }

    async fn rotate_root(
        &self,
        version: u64,
        spec: ClusterSpec,
        own: Option<(String, String)>,
    ) -> Result<(), RotateError> {
        Manager::rotate_root(self, version, spec, own).await
    }

    async fn task_logs(&self, task: &TaskId, options: LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        Manager::task_logs(self, task, options).await
    }
}
