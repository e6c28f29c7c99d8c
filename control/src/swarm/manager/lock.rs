//! The lock of the managers, as this manager's cluster state has it, and the key of its log.

use weft_model::{ClusterState, state::ManagerLock};

use super::Manager;
use crate::{raft::StoreError, vault::Vault};

impl Manager {
    /// Whether managers are locked, and with which key. `None` if the cluster state has not reached
    /// this manager yet.
    pub(in crate::swarm) fn lock(&self) -> Option<ManagerLock> {
        self.inner.state.borrow().cluster.as_ref().map(|cluster| cluster.lock.clone())
    }

    /// Resolves when the lock has changed since `version` ([`ManagerLock::version`]).
    pub(in crate::swarm) async fn wait_for_lock(&self, version: u64) {
        let is_newer =
            |state: &ClusterState| state.cluster.as_ref().is_some_and(|cluster| cluster.lock.version > version);
        if self.inner.state.clone().wait_for(|state| is_newer(state)).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Encrypts the log with a new key.
    ///
    /// # Errors
    /// If the disk fails.
    pub(in crate::swarm) async fn replace_log_key(&self, vault: &Vault) -> Result<(), StoreError> {
        self.inner.store.replace_key(vault).await
    }
}
