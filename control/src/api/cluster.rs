//! What the API needs of the cluster beneath it: this node's membership, and a manager's table. Two small traits, so that
//! the routes can be tried against a table in memory; [`Swarm`] and [`Manager`] are the real thing.

use std::{net::SocketAddr, sync::Arc};

use async_trait::async_trait;
use futures_util::stream::BoxStream;
use tokio::sync::watch;
use weft_model::{Applied, ClusterState, Command, LogError, LogOptions, LogRecord, NodeId, TaskId, spec::Role};

use crate::swarm::{InitOptions, JoinOptions, Manager, Membership, ProposeError, Swarm, SwarmError};

/// This node's membership.
#[async_trait]
pub(crate) trait Member: Send + Sync {
    fn membership(&self) -> Membership;
    /// Managers that this node knows.
    fn remotes(&self) -> Vec<(NodeId, SocketAddr)>;
    async fn init(&self, options: InitOptions) -> Result<NodeId, SwarmError>;
    async fn join(&self, options: JoinOptions) -> Result<(), SwarmError>;
    async fn leave(&self, force: bool) -> Result<(), SwarmError>;
    /// `Some` on managers that hold it.
    fn table(&self) -> Option<Arc<dyn ClusterHandle>>;
    /// Waits for the table: a manager that was just promoted is known as one a moment before it holds it.
    async fn table_arrives(&self);
}

/// A manager's view of the table and its way to change it.
#[async_trait]
pub(crate) trait ClusterHandle: Send + Sync {
    fn state(&self) -> watch::Receiver<Arc<ClusterState>>;
    /// Waits until [`Self::state`] holds what any manager confirmed before; `false` where nobody can say.
    async fn catch_up(&self) -> bool;
    async fn propose(&self, command: Command) -> Result<Applied, ProposeError>;
    /// The node that leads, and whether `node`'s manager can be reached.
    fn standing(&self, node: &NodeId) -> (Option<NodeId>, bool);
    fn join_token(&self, role: Role) -> String;
    async fn rotate_token(&self, role: Role) -> Result<String, ProposeError>;
    async fn task_logs(&self, task: &TaskId, options: LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError>;
}

#[async_trait]
impl Member for Swarm {
    fn membership(&self) -> Membership {
        Swarm::membership(self).borrow().clone()
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

    async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        Swarm::leave(self, force).await
    }

    fn table(&self) -> Option<Arc<dyn ClusterHandle>> {
        self.manager().map(|manager| Arc::new(manager) as Arc<dyn ClusterHandle>)
    }

    async fn table_arrives(&self) {
        Swarm::table_arrives(self).await;
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

    fn standing(&self, node: &NodeId) -> (Option<NodeId>, bool) {
        (self.leader(), self.manager_reachable(node))
    }

    fn join_token(&self, role: Role) -> String {
        Manager::join_token(self, role)
    }

    async fn rotate_token(&self, role: Role) -> Result<String, ProposeError> {
        Manager::rotate_token(self, role).await
    }

    async fn task_logs(&self, task: &TaskId, options: LogOptions) -> Result<BoxStream<'static, LogRecord>, LogError> {
        Manager::task_logs(self, task, options).await
    }
}
