//! What can go wrong with a node's membership and with a change to the table, in words for the person who asked.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
};

use weft_model::Rejection;

/// Why a node could not form, join, resume or leave a cluster.
#[derive(Debug, thiserror::Error)]
pub enum SwarmError {
    #[error("This node is already part of a swarm. Use \"weft swarm leave\" to leave this swarm and join another one.")]
    AlreadyMember,
    #[error("This node is not part of a swarm. Use \"weft swarm init\" or \"weft swarm join\" first.")]
    NotMember,
    #[error(
        "You are attempting to leave the swarm on a node that is participating as a manager. {consequence} \
         Use --force to leave all the same."
    )]
    ManagerNeedsForce { consequence: String },
    #[error("invalid join token: {reason}; print the current one with \"weft swarm join-token\" on a manager")]
    InvalidToken { reason: String },
    #[error(
        "the certificate authority of {remote} is not the one that the join token names: the token belongs to another \
         swarm, or something stands between this node and the manager"
    )]
    WrongCa { remote: SocketAddr },
    #[error(
        "no manager could be reached ({attempts}): check the address, that the manager's daemon runs, and that nothing \
         blocks its TCP port"
    )]
    Unreachable { attempts: String },
    #[error("the manager refused: {reason}")]
    Refused { reason: String },
    #[error("no address of a manager was given: name one, such as 192.0.2.1:2377")]
    NoRemote,
    #[error("could not choose an address to advertise ({found}): name one with --advertise-addr")]
    NoAdvertiseAddr { found: String },
    #[error(
        "{addr} cannot be advertised: other nodes could not reach it; name an address of this node with --advertise-addr"
    )]
    UnusableAdvertiseAddr { addr: IpAddr },
    #[error("cannot listen on {addr}: {source}; stop what uses it, or choose another with --listen-addr")]
    Listen { addr: SocketAddr, source: io::Error },
    #[error("cannot use the data directory ({path}): {reason}")]
    Storage { path: PathBuf, reason: String },
    #[error(
        "the node did not become part of the swarm in time: it goes on trying in the background, \"weft info\" shows how \
         it stands"
    )]
    Timeout,
    #[error("the first change to the new swarm failed: {0}")]
    Propose(#[from] ProposeError),
    #[error("{what}: {reason}")]
    Internal { what: &'static str, reason: String },
}

/// Why a change did not, or may not, happen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    #[error(transparent)]
    Rejected(#[from] Rejection),
    #[error(
        "the swarm has no leader: {reachable} of {managers} managers are reachable and {needed} are needed; start the \
         missing ones. Running tasks go on meanwhile. If the change had already been sent, it takes effect once a leader is back"
    )]
    NoQuorum { reachable: usize, managers: usize, needed: usize },
    #[error("this manager cannot change the swarm now: {reason}")]
    Unavailable { reason: String },
}
