//! Errors of memberships and of proposals. Their texts are shown to the user who made the request,
//! so each says what failed and what to do.

use std::{
    error::Error,
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use weft_model::Rejection;

use crate::pki::PkiError;

/// Why a node could not form, join, resume or leave a cluster.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    #[error("This node is already part of a swarm. Use \"weft swarm leave\" to leave this swarm and join another one.")]
    AlreadyMember,
    #[error("this node is not a manager: run the command on a manager")]
    NotManager,
    #[error("this node is part of a swarm, but its membership has stopped: restart its daemon")]
    Stopped,
    #[error(
        "Swarm is encrypted and needs to be unlocked before it can be used. Please use \"weft swarm unlock\" to unlock it."
    )]
    Locked,
    #[error("Swarm is encrypted and locked. Please unlock it first or use \"--force\" to ignore this message.")]
    LeaveLocked,
    #[error("swarm is not locked")]
    NotLocked,
    #[error(
        "swarm could not be unlocked: invalid key provided; if the key was replaced while this manager was down, it \
         needs the key of before"
    )]
    WrongUnlockKey,
    #[error("cannot use the backup: {reason}")]
    Backup { reason: String },
    #[error("This node is not part of a swarm. Use \"weft swarm init\" or \"weft swarm join\" first.")]
    NotMember,
    #[error(
        "You are attempting to leave the swarm on a node that is participating as a manager. {consequence} \
         Use --force to leave anyway."
    )]
    ManagerNeedsForce { consequence: String },
    #[error("this manager cannot leave the swarm now: {reason}")]
    LeaveRefused { reason: String },
    #[error("invalid join token: {reason}; print the current one with \"weft swarm join-token\" on a manager")]
    InvalidToken { reason: String },
    #[error(
        "the join token does not match the certificate authority of {remote}: the token belongs to another \
         swarm, or a proxy intercepts the connection; print the swarm's token with \"weft swarm join-token\" on a \
         manager"
    )]
    WrongCa { remote: SocketAddr },
    #[error(
        "no manager could be reached ({attempts}): check the address, that the manager's daemon runs, and that no \
         firewall blocks its TCP port"
    )]
    Unreachable { attempts: String },
    #[error("the manager refused: {reason}")]
    Refused { reason: String },
    #[error("no address of a manager was given: give one, such as 192.0.2.1:2377")]
    NoRemote,
    #[error("could not choose an address to advertise ({found}): give one with --advertise-addr")]
    NoAdvertiseAddr { found: String },
    #[error(
        "{addr} cannot be advertised, because other nodes cannot reach it: give an address of this node with \
         --advertise-addr"
    )]
    UnusableAdvertiseAddr { addr: IpAddr },
    #[error("cannot listen on {addr}: {source}; stop the program that uses it, or choose another with --listen-addr")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error(
        "this manager's log is missing or empty ({path}), although the manager has voted: it votes no more, because \
         it could forget confirmed changes; the other managers replace it once a majority of them runs. If this is \
         the only manager, leave with force, then restore a backup (weft backup restore) or form a new swarm"
    )]
    LogLost { path: PathBuf },
    #[error("cannot use the data directory ({path}): {reason}")]
    Storage { path: PathBuf, reason: String },
    #[error(
        "the node did not become part of the swarm in time: it continues to try in the background, and \"weft info\" \
         shows its state"
    )]
    Timeout,
    #[error(transparent)]
    Change(ProposeError),
    #[error("the first change to the new swarm failed: {0}")]
    Propose(#[from] ProposeError),
    /// `what` is a verb phrase, such as "open the log".
    #[error("cannot {what}: {reason}")]
    Internal { what: &'static str, reason: String },
}

impl From<PkiError> for SwarmError {
    fn from(error: PkiError) -> Self {
        Self::Internal { what: error.what, reason: error.reason }
    }
}

/// Why a change of the cluster state was not made, or may not have been made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// The cluster state does not allow the change. Nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// No leader with a quorum was found in time. If the change was sent to a leader that then
    /// failed, it may still take effect.
    #[error(
        "the swarm has no leader: {reachable} of {managers} managers are reachable and {needed} are needed; start the \
         missing managers, or, if they are lost for ever, go on without them (weft swarm init --force-new-cluster). \
         Running tasks continue meanwhile. If the change was already sent, it may take effect once \
         there is a leader again"
    )]
    NoQuorum { reachable: usize, managers: usize, needed: usize },
    /// This manager's log has stopped, or the leader did not accept this manager's request.
    #[error("this manager cannot change the swarm now: {reason}")]
    Unavailable { reason: String },
}

/// Whether a TLS handshake failed because another CA than the trusted ones has signed the peer's
/// certificate.
pub(super) fn is_of_unknown_ca(error: &(dyn Error + 'static)) -> bool {
    use rustls::{CertificateError as C, Error as Tls};
    let mut next = Some(error);
    while let Some(cause) = next {
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        let tls = wrapped.and_then(|wrapped| wrapped.downcast_ref::<Tls>()).or_else(|| cause.downcast_ref());
        // CAs of weft have the same name, so their signatures are tried.
        if matches!(tls, Some(Tls::InvalidCertificate(C::UnknownIssuer | C::BadSignature))) {
            return true;
        }
        next = cause.source();
    }
    false
}

/// The text of the innermost cause, which is usually the part that helps the user.
pub(super) fn root_cause(error: &dyn Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
