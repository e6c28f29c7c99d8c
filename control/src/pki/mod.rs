//! Who is who: the cluster's certificate authority, join tokens, node certificates, and the TLS that they make possible.
//!
//! Owns every key and certificate format. It must not open a socket or know the table: callers hand in what the table
//! says (the CA, its sealed key, a node's role) and get bytes or TLS configurations back.
//!
//! What protects what: the CA's private key lies in the table, sealed with a key-encryption key ([`Kek`]) that only
//! managers hold, each in its data directory, readable by root alone. So a copy of the Raft log or of a snapshot, alone,
//! cannot sign certificates; a manager's whole data directory can. A node's own private key never leaves it.

mod ca;
mod identity;
mod seal;
mod tls;
mod token;

pub use ca::{Ca, SignedFor, requester};
pub use identity::{Identity, KeyRequest, PeerIdentity, role_unit};
pub use seal::Kek;
pub use tls::{Credentials, MANAGER_NAME, pinned_client, unverified_client};
pub use token::{InvalidToken, JoinToken, random_secret};

/// What a cryptographic step said no to.
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
