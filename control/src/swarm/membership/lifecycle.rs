//! Begins, resumes and ends the memberships of this node. At most one membership runs at a time.
//! [`super::super::Swarm`] calls [`Lifecycle`].

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::Mutex,
    time::{Instant, timeout_at},
};
use weft_model::{NodeId, NodeReport, UnlockKey, spec::Role};

use super::{
    address, backup, init, join, leave, moved, reform, role::start_manager, store::MembershipStore,
    supervisor::Supervisor,
};
use crate::{
    raft::Start,
    rpc::Bound,
    swarm::{
        context::{Context, NodeChannels, Record},
        error::SwarmError,
        manager::ManagerKeys,
        types::{InitOptions, JoinOptions, Membership, RestoreOptions, SwarmConfig},
    },
};

/// How long `init` and `join` wait until the node is ready. After that it continues in the
/// background.
const READY_TIMEOUT: Duration = Duration::from_secs(20);

/// The membership of this node.
#[derive(Debug, Default)]
pub(in crate::swarm) enum Slot {
    #[default]
    Empty,
    /// A manager that needs the unlock key. No task of it runs.
    Locked(Record),
    Running(Supervisor),
    /// A member whose tasks have ended and could not be started again, or whose files could not be
    /// removed.
    Stopped,
}

impl Slot {
    /// # Errors
    /// [`SwarmError::NotMember`], [`SwarmError::Locked`].
    pub(in crate::swarm) fn running(&self) -> Result<&Supervisor, SwarmError> {
        match self {
            Self::Empty => Err(SwarmError::NotMember),
            Self::Locked(_) => Err(SwarmError::Locked),
            Self::Running(supervisor) => Ok(supervisor),
            Self::Stopped => Err(SwarmError::Stopped),
        }
    }

    /// # Errors
    /// [`SwarmError::AlreadyMember`].
    fn check_empty(&self) -> Result<(), SwarmError> {
        if matches!(self, Self::Empty) { Ok(()) } else { Err(SwarmError::AlreadyMember) }
    }
}

/// Begins, resumes and ends memberships. The methods must run to their end; otherwise the files of
/// an incomplete membership remain. So [`super::super::Swarm`] runs each in a separate task.
#[derive(Debug)]
pub(in crate::swarm) struct Lifecycle {
    config: SwarmConfig,
    store: MembershipStore,
    pub(in crate::swarm) channels: NodeChannels,
    /// The membership. The mutex is held while a membership begins or ends, so that one such change
    /// runs at a time.
    pub(in crate::swarm) slot: Mutex<Slot>,
}

impl Lifecycle {
    /// Resumes the membership in the data directory, if there is one.
    pub(in crate::swarm) async fn open(config: SwarmConfig) -> Result<Self, SwarmError> {
        let store = MembershipStore::open(&config.data_dir)?;
        let channels = NodeChannels::default();
        let lifecycle = Self { config, store, channels, slot: Mutex::default() };
        if let Some(record) = lifecycle.store.record()? {
            let slot = if lifecycle.store.is_locked(&record)? {
                tracing::warn!("this manager is locked: run \"weft swarm unlock\"");
                lifecycle.publish_locked();
                Slot::Locked(record)
            } else {
                Slot::Running(lifecycle.resume(record).await?)
            };
            *lifecycle.slot.lock().await = slot;
        }
        Ok(lifecycle)
    }

    /// Publishes that this manager is locked, and the stored plan, with which the node continues.
    fn publish_locked(&self) {
        self.channels.membership.send_replace(Membership::Locked);
        self.channels.plans.send_replace(self.store.plan().map(Arc::new));
    }

    /// Starts this manager, which is locked, with the unlock key.
    pub(in crate::swarm) async fn unlock(&self, key: UnlockKey) -> Result<(), SwarmError> {
        let mut slot = self.slot.lock().await;
        let record = match &*slot {
            Slot::Locked(record) => record.clone(),
            Slot::Running(supervisor) if supervisor.context().certified_role() == Role::Manager => {
                return Err(SwarmError::NotLocked);
            }
            Slot::Running(_) => return Err(SwarmError::NotManager),
            Slot::Stopped => return Err(SwarmError::Stopped),
            Slot::Empty => return Err(SwarmError::NotMember),
        };
        self.store.unlock(&key)?;
        let resumed = self.resume(record).await.inspect_err(|_| {
            self.store.vault().lock_again();
            self.publish_locked();
        });
        *slot = Slot::Running(resumed?);
        tracing::info!("this manager is unlocked");
        Ok(())
    }

    /// Starts the membership whose files are in the data directory.
    async fn resume(&self, record: Record) -> Result<Supervisor, SwarmError> {
        let Self { config, store, channels, .. } = self;
        reform::finish(store).await?;
        let record = moved::refresh(config, store, record)?;
        let identity = store.identity(&record)?;
        let addr = record.listen_addr;
        let bound = Bound::bind(addr).map_err(|source| SwarmError::Listen { addr, source })?;
        channels.plans.send_replace(store.plan().map(Arc::new));
        let context = Context::new(config.clone(), record, identity, channels.clone())?;
        let was_manager = context.certified_role() == Role::Manager;
        let current = |keys: &ManagerKeys| was_manager && !context.raft_id_ended(keys.raft_id);
        let runtime = match store.manager_keys()?.filter(current) {
            // The role reconciler handles a lost log, with the help of other managers.
            Some(keys) => match start_manager(&context, store, keys, Start::Resume).await {
                Err(SwarmError::LogLost { .. }) => None,
                started => Some(started?),
            },
            None => None,
        };
        tracing::info!(version = config.version, node = %context.record.node, "resuming the membership");
        Ok(Supervisor::start(context, store.clone(), bound, runtime))
    }

    /// Forms the cluster again with this node, a manager, as its only manager. Its machine may have
    /// another address now.
    pub(in crate::swarm) async fn reform(&self, advertise_addr: Option<IpAddr>) -> Result<NodeId, SwarmError> {
        let advertise_addr = advertise_addr.map(address::check).transpose()?;
        let mut slot = self.slot.lock().await;
        let supervisor = slot.running()?;
        // The stored one has the address and the certificate authority that are current.
        let record = self.store.record()?.ok_or(SwarmError::NotMember)?;
        if supervisor.context().certified_role() != Role::Manager {
            return Err(SwarmError::NotManager);
        }
        supervisor.shutdown().await;
        let node = record.node.clone();
        let moved =
            advertise_addr.filter(|addr| *addr != record.addr).map(|addr| Record { link: None, ..record.at(addr) });
        let moved = moved.unwrap_or_else(|| record.clone());
        let reformed = reform::reform(&self.store, &moved).await;
        // After an error the node continues with its old log.
        let current = if reformed.is_ok() { moved } else { record };
        let reformed = reformed.and_then(|()| self.store.update_record(|stored| *stored = current.clone()));
        let resumed = self.resume(current).await;
        *slot = resumed.map_or_else(|error| self.stopped(&error), Slot::Running);
        if let Slot::Stopped = &*slot {
            return Err(reformed.err().unwrap_or(SwarmError::Stopped));
        }
        drop(slot);
        reformed?;
        self.wait_until_ready(Role::Manager).await?;
        Ok(node)
    }

    /// Publishes that the tasks of this membership do not run any more.
    fn stopped(&self, error: &SwarmError) -> Slot {
        tracing::error!(%error, "this node's membership has stopped");
        self.channels.membership.send_replace(Membership::Error(format!("{error}; {}", SwarmError::Stopped)));
        Slot::Stopped
    }

    /// Ends the tasks of this membership, as if they had failed.
    #[cfg(test)]
    pub(in crate::swarm) async fn fail(&self) {
        let mut slot = self.slot.lock().await;
        slot.running().expect("a member").shutdown().await;
        *slot = self.stopped(&SwarmError::Timeout);
    }

    /// A backup of the cluster, encrypted with the passphrase.
    pub(in crate::swarm) async fn back_up(&self, passphrase: String) -> Result<Vec<u8>, SwarmError> {
        if *self.channels.membership.borrow() == Membership::Locked {
            return Err(SwarmError::Locked);
        }
        let manager = self.channels.manager.borrow().clone();
        let manager = manager.filter(|manager| manager.state().borrow().cluster.is_some());
        backup::create(&manager.ok_or(SwarmError::NotManager)?, passphrase).await
    }

    /// Makes this node, which is no member of a cluster, the only manager of the cluster in a
    /// backup.
    pub(in crate::swarm) async fn restore(&self, options: RestoreOptions) -> Result<NodeId, SwarmError> {
        let mut slot = self.slot.lock().await;
        slot.check_empty()?;
        self.channels.membership.send_replace(Membership::Joining);
        let record = reform::restore(&self.config, &self.store, options).await;
        let record = record.map_err(|error| self.discard_attempt(error))?;
        let node = record.node.clone();
        *slot = Slot::Running(self.resume(record).await.map_err(|error| self.discard_attempt(error))?);
        drop(slot);
        self.wait_until_ready(Role::Manager).await?;
        Ok(node)
    }

    pub(in crate::swarm) async fn init(&self, options: InitOptions) -> Result<NodeId, SwarmError> {
        let mut slot = self.slot.lock().await;
        slot.check_empty()?;
        self.channels.membership.send_replace(Membership::Joining);
        let formed = init::init(&self.config, &self.store, &self.channels, options).await;
        let init::Formed { context, bound, runtime } = formed.map_err(|error| self.discard_attempt(error))?;
        let node = context.record.node.clone();
        *slot = Slot::Running(Supervisor::start(context, self.store.clone(), bound, Some(runtime)));
        drop(slot);
        self.wait_until_ready(Role::Manager).await?;
        Ok(node)
    }

    pub(in crate::swarm) async fn join(&self, options: JoinOptions) -> Result<(), SwarmError> {
        let mut slot = self.slot.lock().await;
        slot.check_empty()?;
        self.channels.membership.send_replace(Membership::Joining);
        let joined = join::join(&self.config, &self.store, options).await;
        let join::Joined { record, identity, bound } = joined.map_err(|error| self.discard_attempt(error))?;
        let role = identity.peer.role;
        let context = Context::new(self.config.clone(), record, identity, self.channels.clone());
        let context = context.map_err(|error| self.discard_attempt(error))?;
        *slot = Slot::Running(Supervisor::start(context, self.store.clone(), bound, None));
        drop(slot);
        self.wait_until_ready(role).await
    }

    pub(in crate::swarm) async fn leave(&self, force: bool) -> Result<(), SwarmError> {
        let mut slot = self.slot.lock().await;
        match &*slot {
            Slot::Empty => return Err(SwarmError::NotMember),
            Slot::Locked(_) if !force => return Err(SwarmError::LeaveLocked),
            Slot::Locked(record) => leave::check_absence(&self.config, record, self.store.plan().as_ref()).await?,
            Slot::Stopped if !force => return Err(SwarmError::Stopped),
            Slot::Stopped => {
                if let Some(record) = self.store.record()? {
                    leave::check_absence(&self.config, &record, self.store.plan().as_ref()).await?;
                }
            }
            Slot::Running(supervisor) => {
                leave::check_allowed(supervisor.context(), force)?;
                leave::announce(supervisor).await?;
                supervisor.shutdown().await;
            }
        }
        if let Err(error) = self.store.wipe() {
            *slot = self.stopped(&error);
            return Err(error);
        }
        *slot = Slot::Empty;
        self.channels.reports.send_replace(NodeReport::default());
        self.channels.plans.send_replace(None);
        self.channels.membership.send_replace(Membership::None);
        Ok(())
    }

    pub(in crate::swarm) async fn shutdown(&self) {
        if let Slot::Running(supervisor) = std::mem::take(&mut *self.slot.lock().await) {
            supervisor.shutdown().await;
        }
    }

    /// Removes all files of a failed `init` or `join`. Returns its error.
    fn discard_attempt(&self, error: SwarmError) -> SwarmError {
        if let Err(error) = self.store.wipe() {
            tracing::warn!(%error, "cannot remove the files of a failed attempt");
        }
        self.channels.membership.send_replace(Membership::None);
        error
    }

    /// Waits until the node has its first plan, and a manager also the cluster state.
    async fn wait_until_ready(&self, role: Role) -> Result<(), SwarmError> {
        let deadline = Instant::now() + READY_TIMEOUT;
        let late = |_| SwarmError::Timeout;
        let mut plans = self.channels.plans.subscribe();
        // The inner result is an error only if the sender was dropped, but `self` holds the sender.
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
}
