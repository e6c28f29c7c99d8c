//! Signs certificate requests with the key of the certificate authority, which every manager can
//! open. The role in a certificate is always the node's role in the cluster state.

use std::time::Duration;

use weft_model::NodeId;

use super::Manager;
use crate::{
    pki::{Ca, PkiError, Subject},
    plan::plan,
};

/// Why a certificate request was not signed.
#[derive(Debug, thiserror::Error)]
pub(in crate::swarm) enum SignError {
    #[error("this manager has not received the cluster state yet")]
    NoState,
    #[error("node {0} was removed from the swarm")]
    Removed(NodeId),
    #[error(transparent)]
    Pki(#[from] PkiError),
}

impl Manager {
    /// Signs a certificate request of `node`. Works without a leader and without a quorum, so that
    /// a cluster whose certificates have all expired can renew them.
    ///
    /// # Errors
    /// If the cluster state has not reached this manager yet or does not contain the node, if this
    /// manager's key-encryption key cannot decrypt the authority's key, or if the request is
    /// invalid.
    pub(in crate::swarm) fn sign(&self, node: &NodeId, csr_pem: &str) -> Result<String, SignError> {
        let state = self.inner.state.borrow().clone();
        let cluster = state.cluster.as_ref().ok_or(SignError::NoState)?;
        let role = plan(&state, node).ok_or_else(|| SignError::Removed(node.clone()))?.role;
        let life = Duration::from_millis(cluster.spec.cert_expiry_ms);
        let ca = Ca::open(&cluster.id, &cluster.ca_cert_pem, &cluster.ca_key_sealed, &self.inner.keys.kek)?;
        Ok(ca.sign(csr_pem, Subject { cluster: &cluster.id, node, role, life })?)
    }
}
