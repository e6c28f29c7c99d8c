//! The cluster's identities: its certificate authority (CA), join tokens, node certificates, and
//! the TLS configurations built from them.
//!
//! Called by `swarm` (init, join, renewal) and `rpc` (TLS). Owns every key and certificate format.
//! It must not open a socket or read the cluster state: callers pass in the CA, its sealed key and
//! a node's role, and get bytes or TLS configurations back.
//!
//! What protects which secret: the cluster state holds the CA's private key, encrypted with a
//! key-encryption key ([`Kek`]). Only managers hold that key, each in its data directory, which
//! only root can read. So a copy of the Raft log or of a snapshot alone cannot sign certificates,
//! not even with the key that encrypts it on the disk; a copy of a manager's whole data directory
//! can, unless managers are locked ([`crate::vault`]). A node's own private key never leaves the
//! node.

mod token;
mod subject;
mod seal;
mod ca;
mod identity;
mod tls;
mod verify;

pub use ca::{Ca, Issuer, Subject, issuer_of, node_id_of_request};
pub use identity::{Identity, KeyRequest, ca_digest};
pub use seal::{Kek, random_unlock_key};
pub use subject::{MANAGER_NAME, PeerIdentity, Validity, role_unit};
pub use tls::{Credentials, pinned_client, unverified_client};
pub use token::{InvalidToken, JoinToken, random_secret};

/// A cryptographic operation that failed: `what` is the operation, `reason` the cause.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct PkiError {
    pub what: &'static str,
    pub reason: String,
}

impl PkiError {
    fn new(what: &'static str, reason: impl std::fmt::Display) -> Self {
        Self { what, reason: reason.to_string() }
    }
}
