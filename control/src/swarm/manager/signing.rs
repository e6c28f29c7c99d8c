//! Signs certificate requests with the key of the certificate authority, which every manager can
//! open. The role in a certificate is always the node's role in the cluster state.

use std::time::Duration;

use weft_model::{Command, NodeId, spec::ClusterSpec, state::RootRotation};

use super::Manager;
use crate::{
    pki::{Ca, PkiError, Subject, random_secret},
    plan::plan,
    swarm::error::ProposeError,
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

/// Why the replacement of the CA did not begin.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    #[error(transparent)]
    Ca(#[from] PkiError),
    #[error(transparent)]
    Propose(#[from] ProposeError),
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
        let (ca_cert_pem, ca_key_sealed) = cluster.signing_ca();
        let ca = Ca::open(&cluster.id, ca_cert_pem, ca_key_sealed, &self.inner.keys.kek)?;
        let cert_pem = ca.sign(csr_pem, Subject { cluster: &cluster.id, node, role, life })?;
        let cross_signed_pem = cluster.root_rotation.as_ref().map_or("", |rotation| &rotation.cross_signed_pem);
        Ok(format!("{cert_pem}{cross_signed_pem}"))
    }

    /// Changes the settings of the cluster and begins to replace its CA, by `own` (a certificate
    /// and its key, in PEM) or by a new one. All nodes then renew their certificates, and trust
    /// both CAs until every node uses a certificate of the new one.
    ///
    /// # Errors
    /// [`RotateError::Ca`] if `own` cannot be used, [`RotateError::Propose`] as [`Self::propose`].
    pub async fn rotate_root(
        &self,
        version: u64,
        spec: ClusterSpec,
        own: Option<(String, String)>,
    ) -> Result<(), RotateError> {
        let state = self.inner.state.borrow().clone();
        let no_state = || ProposeError::Unavailable { reason: SignError::NoState.to_string() };
        let cluster = state.cluster.as_ref().ok_or_else(no_state)?;
        let kek = &self.inner.keys.kek;
        let current = Ca::open(&cluster.id, &cluster.ca_cert_pem, &cluster.ca_key_sealed, kek)?;
        let new = match own {
            Some((cert_pem, key_pem)) => Ca::from_pem(&cert_pem, &key_pem)?,
            None => Ca::create()?,
        };
        let rotation = RootRotation {
            ca_cert_pem: new.cert_pem().to_owned(),
            ca_key_sealed: new.sealed_key(&cluster.id, kek)?,
            cross_signed_pem: current.cross_sign(&new)?,
            worker_secret: random_secret(),
            manager_secret: random_secret(),
        };
        self.propose(Command::RotateRoot { version, spec, rotation: Box::new(rotation) }).await?;
        Ok(())
    }
}
