//! One node's membership of a cluster: forming or joining a cluster, resuming after a restart, and
//! leaving.
//!
//! The API and the agent use two handles: [`Swarm`] for this node's membership, plans and reports,
//! and on managers [`Manager`] for the cluster state. This module runs everything that a membership
//! needs: the node RPC's server, the session with the leader, and on managers the Raft log and the
//! leader's loop. It must not know what a plan means to the kernel, nor how a user's request is
//! encoded.
//!
//! Each module imports only from modules above it:
//!
//! ```text
//!   clock, error, types, tasks
//!        │
//!   liveness     what the leader knows of the nodes, in memory
//!        │
//!   manager      a manager's log and handle, and the leader's loop, which reads liveness
//!        │
//!   context      what all tasks of a membership share; contains the channel of the running manager
//!        │
//!        ├──────────────────────────────┐
//!   dispatch     the node RPC's         link     this node's session
//!        │       services               │        with the leader
//!        ├──────────────────────────────┘
//!   membership   begin, resume, change the role, leave; the supervisor of the tasks
//!        │
//!   Swarm        (this file)
//! ```
//!
//! Tasks: the supervisor starts those of a membership, the manager runtime those of a manager; both
//! stop them as a group. Sessions of nodes run in the supervisor's group. `init`, `join` and
//! `leave` each run in a separate task, so that they continue if the caller drops the future.

mod clock;
mod error;
mod types;
mod tasks;
mod liveness;
mod manager;
mod context;
mod dispatch;
mod link;
mod membership;

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use tokio::sync::watch;
use weft_model::{NetworkId, NodeId, NodePlan, NodeReport, TaskId, UnlockKey, command::AttachContainer};

use self::membership::Lifecycle;

pub use error::{ProposeError, SwarmError};
pub use manager::{Manager, RotateError};
pub use membership::KernelAddrs;
pub use types::{InitOptions, JoinOptions, LocalAddrs, Membership, RestoreOptions, SwarmConfig};

pub(crate) use dispatch::limit_report;
#[cfg(test)]
pub(crate) use membership::Backup;

/// One node's membership of a cluster. Cheap to clone: clones share the membership.
///
/// The receivers that it returns stay valid when the node leaves and joins again.
#[derive(Debug, Clone)]
pub struct Swarm {
    lifecycle: Arc<Lifecycle>,
}

impl Swarm {
    /// Resumes the membership in the data directory, if there is one. Resolves when its tasks run,
    /// and does not wait for other nodes. A manager that is locked waits for [`Self::unlock`]. Only
    /// one [`Swarm`] may use a data directory.
    ///
    /// # Errors
    /// - [`SwarmError::Storage`] if the data directory cannot be used or a file in it is damaged.
    /// - [`SwarmError::Listen`] if the listen address of the membership cannot be bound.
    /// - [`SwarmError::Internal`] if the stored certificate cannot be used.
    pub async fn open(config: SwarmConfig) -> Result<Self, SwarmError> {
        Ok(Self { lifecycle: Arc::new(Lifecycle::open(config).await?) })
    }

    /// The state of this node's membership. The receiver sees every change, or only the latest of
    /// several.
    pub fn membership(&self) -> watch::Receiver<Membership> {
        self.lifecycle.channels.membership.subscribe()
    }

    /// Forms a new cluster of this one node, its first manager. Resolves when the node has its
    /// first plan and [`Self::manager`] returns a manager. Runs to its end if the caller drops the
    /// future.
    ///
    /// # Errors
    /// - [`SwarmError::AlreadyMember`].
    /// - [`SwarmError::NoAdvertiseAddr`], [`SwarmError::UnusableAdvertiseAddr`],
    ///   [`SwarmError::Listen`] if an address cannot be used.
    /// - [`SwarmError::Storage`] if the data directory cannot be written.
    /// - [`SwarmError::Propose`] if the first log entry is refused or cannot be written.
    /// - [`SwarmError::Internal`] if a key or certificate cannot be created.
    /// - [`SwarmError::Timeout`] after 20 s: the node may be a member then, and continues in the
    ///   background.
    ///
    /// After any other error the node is not a member, and the attempt left no files.
    pub async fn init(&self, options: InitOptions) -> Result<NodeId, SwarmError> {
        let lifecycle = self.lifecycle.clone();
        run_to_completion(async move { lifecycle.init(options).await }).await
    }

    /// Forms the cluster of this manager again, with this node as its only manager: for a cluster
    /// whose managers have lost their quorum for good. Services, networks, tasks, nodes and tokens
    /// stay. The other nodes continue as soon as they reach this node; former managers become
    /// workers. Resolves when this node leads. Runs to its end if the caller drops the future.
    ///
    /// # Errors
    /// - [`SwarmError::NotMember`], [`SwarmError::NotManager`], [`SwarmError::Locked`].
    /// - [`SwarmError::UnusableAdvertiseAddr`] if no node can have `advertise_addr`, the address of
    ///   this node from now on. Without one, its address stays.
    /// - [`SwarmError::Stopped`] if the membership could not be started again.
    /// - [`SwarmError::Internal`], [`SwarmError::Storage`] if the log cannot be read or written.
    ///   The node continues with its former log.
    /// - [`SwarmError::Timeout`] after 20 s.
    pub async fn reform(&self, advertise_addr: Option<IpAddr>) -> Result<NodeId, SwarmError> {
        let lifecycle = self.lifecycle.clone();
        run_to_completion(async move { lifecycle.reform(advertise_addr).await }).await
    }

    /// Starts a manager that is locked ([`Membership::Locked`]). Resolves when its log is open.
    /// Runs to its end if the caller drops the future.
    ///
    /// # Errors
    /// - [`SwarmError::WrongUnlockKey`]: nothing has changed.
    /// - [`SwarmError::NotLocked`], [`SwarmError::NotManager`], [`SwarmError::NotMember`].
    /// - Those of [`Self::open`]: the manager is locked as before.
    pub async fn unlock(&self, key: UnlockKey) -> Result<(), SwarmError> {
        let lifecycle = self.lifecycle.clone();
        run_to_completion(async move { lifecycle.unlock(key).await }).await
    }

    /// A backup of the cluster, encrypted with a passphrase. It contains the cluster state as this
    /// manager has it, and the keys of a manager.
    ///
    /// # Errors
    /// [`SwarmError::NotManager`], [`SwarmError::Locked`], and [`SwarmError::Backup`] if the
    /// passphrase is too short.
    pub async fn back_up(&self, passphrase: String) -> Result<Vec<u8>, SwarmError> {
        self.lifecycle.back_up(passphrase).await
    }

    /// Makes this node, which is no member of a cluster, the only manager of the cluster in a
    /// backup. The nodes of the cluster continue as soon as they reach it: at the address of a
    /// former manager. Runs to its end if the caller drops the future.
    ///
    /// # Errors
    /// [`SwarmError::AlreadyMember`], [`SwarmError::Backup`], and those of [`Self::init`].
    pub async fn restore(&self, options: RestoreOptions) -> Result<NodeId, SwarmError> {
        let lifecycle = self.lifecycle.clone();
        run_to_completion(async move { lifecycle.restore(options).await }).await
    }

    /// Joins a cluster, in the role that the token gives. Resolves when the node has its first
    /// plan, and on a manager when [`Self::manager`] returns a manager. Runs to its end if the
    /// caller drops the future.
    ///
    /// # Errors
    /// - [`SwarmError::AlreadyMember`].
    /// - [`SwarmError::InvalidToken`], [`SwarmError::WrongCa`] if the token is not one of the
    ///   cluster.
    /// - [`SwarmError::NoRemote`], [`SwarmError::NoAdvertiseAddr`],
    ///   [`SwarmError::UnusableAdvertiseAddr`], [`SwarmError::Listen`] if an address is missing or
    ///   cannot be used.
    /// - [`SwarmError::Unreachable`] if no manager accepts the node. If managers answer but have no
    ///   leader, the node retries for 6 s.
    /// - [`SwarmError::Refused`] if the cluster state does not allow the join.
    /// - [`SwarmError::Storage`], [`SwarmError::Internal`] as for [`Self::init`].
    /// - [`SwarmError::Timeout`] 20 s after the node was accepted: it is a member, and continues in
    ///   the background.
    ///
    /// After any other error the node is not a member, and the attempt left no files.
    pub async fn join(&self, options: JoinOptions) -> Result<(), SwarmError> {
        let lifecycle = self.lifecycle.clone();
        run_to_completion(async move { lifecycle.join(options).await }).await
    }

    /// Leaves the cluster and removes the membership's files. A manager gives up its vote first,
    /// and the leader is notified. If that takes longer than 13 s, the node leaves anyway. Resolves
    /// when everything has stopped. Runs to its end if the caller drops the future.
    ///
    /// # Errors
    /// - [`SwarmError::NotMember`].
    /// - [`SwarmError::ManagerNeedsForce`] on a manager without `force`,
    ///   [`SwarmError::LeaveLocked`] if it is locked.
    /// - [`SwarmError::Storage`] if a file cannot be removed: call again with `force` once the disk
    ///   works.
    pub async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        let lifecycle = self.lifecycle.clone();
        run_to_completion(async move { lifecycle.leave(force).await }).await
    }

    /// This node's newest plan. `None` while the node is not a member, and after the cluster
    /// removed it. A restarted node has its stored plan until a leader sends a newer one.
    pub fn plans(&self) -> watch::Receiver<Option<Arc<NodePlan>>> {
        self.lifecycle.channels.plans.subscribe()
    }

    /// Where the agent writes its latest report. `acked` is the generation of the plan that the
    /// kernel holds. The link sends the report when it changes and after each reconnect.
    pub fn reports(&self) -> watch::Sender<NodeReport> {
        self.lifecycle.channels.reports.clone()
    }

    /// The manager of this node. `None` on workers, and on a manager that has not received the
    /// cluster state yet.
    pub fn manager(&self) -> Option<Manager> {
        let manager = self.lifecycle.channels.manager.borrow().clone();
        manager.filter(|manager| manager.state().borrow().cluster.is_some())
    }

    /// Resolves when [`Self::manager`] returns a manager, or with `false` when the swarm shuts
    /// down. Never resolves on a node that does not become a manager, so the caller must set a time
    /// limit.
    pub async fn wait_until_manager(&self) -> bool {
        let mut managers = self.lifecycle.channels.manager.subscribe();
        loop {
            let manager = managers.borrow_and_update().clone();
            let mut state = manager.map(|manager| manager.state());
            tokio::select! {
                Ok(_) = async {
                    match &mut state {
                        Some(state) => {
                            state.wait_for(|state| state.cluster.is_some()).await?;
                            // The state of a manager that has stopped does not count.
                            state.has_changed().map(drop)
                        }
                        None => std::future::pending().await,
                    }
                } => return true,
                changed = managers.changed() => if changed.is_err() { return false },
            }
        }
    }

    /// The managers in this node's plan, with the addresses of their node RPC. Empty without a
    /// plan.
    pub fn remotes(&self) -> Vec<(NodeId, SocketAddr)> {
        let plan = self.lifecycle.channels.plans.borrow().clone();
        plan.iter().flat_map(|plan| plan.managers.iter().map(|m| (m.node.clone(), m.rpc_addr))).collect()
    }

    /// Attaches a container of this node that is no task to networks, or records how the engine
    /// calls it. Resolves when this node's plan contains it.
    ///
    /// # Errors
    /// As [`Self::detach`], and [`SwarmError::Timeout`] if the plan does not come in time.
    pub async fn attach(&self, attach: AttachContainer) -> Result<(), SwarmError> {
        self.lifecycle.attach(attach).await
    }

    /// Detaches a container of this node that is no task from networks, and frees its addresses.
    ///
    /// # Errors
    /// [`SwarmError::NotMember`], [`SwarmError::Locked`], [`SwarmError::Stopped`], and
    /// [`SwarmError::Change`] if the cluster refuses the change or no manager answers.
    pub async fn detach(&self, id: TaskId, networks: Vec<NetworkId>) -> Result<(), SwarmError> {
        self.lifecycle.detach(id, networks).await
    }

    /// Stops all tasks of the membership, and resolves when they have ended. The node stays a
    /// member: [`Self::open`] resumes.
    pub async fn shutdown(&self) {
        self.lifecycle.shutdown().await;
    }
}

/// Runs `change` in a separate task, so that it runs to its end even if the caller drops this
/// future: an interrupted change would leave the files of an incomplete membership.
async fn run_to_completion<T: Send + 'static>(
    change: impl Future<Output = Result<T, SwarmError>> + Send + 'static,
) -> Result<T, SwarmError> {
    let done = tokio::spawn(change).await;
    done.unwrap_or_else(|e| Err(SwarmError::Internal { what: "change the membership", reason: e.to_string() }))
}
