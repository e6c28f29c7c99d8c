//! Signs certificate requests with the key of the certificate authority, which every manager can
//! open. The role in a certificate is always the node's role in the cluster state.

use std::time::Duration;

use weft_model::{
    Command, NodeId, Rejection,
    command::ObjectKind,
    spec::ClusterSpec,
    state::{Cluster, RootRotation},
};

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
    /// The given CA cannot be used.
    #[error(transparent)]
    Ca(PkiError),
    /// This manager cannot use the current CA, or cannot create a new one.
    #[error("this manager cannot replace the certificate authority: {0}")]
    Internal(PkiError),
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
    /// [`RotateError::Ca`] if `own` cannot be used, [`RotateError::Internal`] if this manager
    /// cannot open the current CA, [`RotateError::Propose`] as [`Self::propose`], and if the state
    /// here is not of `version`: the current CA signs the new one, so it must be the one of that
    /// version.
    pub async fn rotate_root(
        &self,
        version: u64,
        spec: ClusterSpec,
        own: Option<(String, String)>,
    ) -> Result<(), RotateError> {
        let state = self.inner.state.borrow().clone();
        let no_state = || ProposeError::Unavailable { reason: SignError::NoState.to_string() };
        let cluster = state.cluster.as_ref().ok_or_else(no_state)?;
        check_version(cluster, version)?;
        let kek = &self.inner.keys.kek;
        let current = Ca::open(&cluster.id, &cluster.ca_cert_pem, &cluster.ca_key_sealed, kek);
        let current = current.map_err(RotateError::Internal)?;
        let new = match own {
            Some((cert_pem, key_pem)) => Ca::from_pem(&cert_pem, &key_pem).map_err(RotateError::Ca)?,
            None => Ca::create().map_err(RotateError::Internal)?,
        };
        let rotation = RootRotation {
            ca_cert_pem: new.cert_pem().to_owned(),
            ca_key_sealed: new.sealed_key(&cluster.id, kek).map_err(RotateError::Internal)?,
            // It fails if the subject of the given CA cannot be written.
            cross_signed_pem: current.cross_sign(&new).map_err(RotateError::Ca)?,
            worker_secret: random_secret(),
            manager_secret: random_secret(),
        };
        self.propose(Command::RotateRoot { version, spec, rotation: Box::new(rotation) }).await?;
        Ok(())
    }
}

/// # Errors
/// If this manager has another version of the cluster's settings than `given`.
fn check_version(cluster: &Cluster, given: u64) -> Result<(), ProposeError> {
    let current = cluster.meta.version;
    if current < given {
        let reason = "it has not applied the newest settings yet, try again".to_owned();
        return Err(ProposeError::Unavailable { reason });
    }
    if current != given {
        let id = cluster.id.to_string();
        return Err(Rejection::OutOfSequence { kind: ObjectKind::Cluster, id, current, given }.into());
    }
    Ok(())
}
