//! The errors of commands that were refused. `apply` in weft-control returns them, and the API
//! shows their text to the user.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

use crate::{Vni, spec::DependencyKind};

/// The reason why a command was refused. The text is shown to users.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Rejection {
    #[error("this cluster is already initialised")]
    AlreadyInitialised,
    #[error("no cluster yet: run `weft swarm init` or `weft swarm join`")]
    NotInitialised,
    #[error("no such {kind}: {id}")]
    NotFound { kind: ObjectKind, id: String },
    #[error("{kind} name {name} is in use by {by}: choose another or remove that one")]
    NameInUse { kind: ObjectKind, name: String, by: String },
    #[error(
        "update out of sequence: {kind} {id} is at version {current}, the request was for {given}; read it again and retry"
    )]
    OutOfSequence { kind: ObjectKind, id: String, current: u64, given: u64 },
    #[error("port {port}/{protocol} is already published by service {by}: choose another port or remove that service")]
    PortInUse { port: u16, protocol: String, by: String },
    #[error("port {port}/{protocol} is reserved for the cluster itself: choose another port")]
    PortReserved { port: u16, protocol: String },
    #[error("no free port left in 30000-32767: choose another port with --publish published=PORT,target=PORT")]
    NoFreePort,
    #[error("subnet {subnet} overlaps with route {route} on node {node}: choose another subnet")]
    SubnetOverlapsRoute { subnet: IpNetwork, route: IpNetwork, node: String },
    #[error("networks {first} and {second} have overlapping subnets: one service cannot be on both")]
    OverlappingNetworks { first: String, second: String },
    #[error(
        "no subnet left in the address pool {pools}: choose a subnet with --subnet, or add a pool with \
         `weft swarm update --default-addr-pool`"
    )]
    PoolExhausted { pools: String },
    #[error("no address left in network {network} ({subnets}): remove services or use a larger subnet")]
    AddressesExhausted { network: String, subnets: String },
    #[error("VNI {vni} is in use by network {by}: choose another, or none to let the cluster choose")]
    VniInUse { vni: Vni, by: String },
    #[error("{kind} {id} is in use by {by}: remove that first")]
    InUse { kind: ObjectKind, id: String, by: String },
    /// In Swarm's words, and what to do. So are the two that follow.
    #[error(
        "node {id} is a cluster manager and is a member of the raft cluster. It must be demoted to worker before removal (`weft node demote`)"
    )]
    NodeIsManager { id: String },
    #[error("node {id} is not down and can't be removed: stop it or let it leave first, or use --force")]
    NodeNotDown { id: String },
    #[error("attempting to demote the last manager of the swarm ({id}): promote another node first")]
    LastManager { id: String },
    #[error("service {id} does not have a previous spec to roll back to")]
    NothingToRollBack { id: String },
    #[error("{0}")]
    Invalid(String),
    // Added later. A new rejection is the last one, because it is sent by its number.
    /// In Swarm's words.
    #[error("network {network} not manually attachable")]
    NotAttachable { network: String },
    #[error("address {addr} of network {network} is in use: choose another (Address already in use)")]
    AddressInUse { addr: IpAddr, network: String },
    /// Asking again soon can succeed.
    #[error("address {addr} of network {network} was freed a moment ago, and not all nodes know it yet: try again")]
    AddressInQuarantine { addr: IpAddr, network: String },
    /// In Swarm's words.
    #[error("{kind} {name} already exists")]
    AlreadyExists { kind: ObjectKind, name: String },
}

/// The kind of object that a [`Rejection`] is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ObjectKind {
    Cluster,
    Node,
    Network,
    Service,
    Task,
    // Added later.
    Container,
    Secret,
    Config,
}

impl From<DependencyKind> for ObjectKind {
    fn from(kind: DependencyKind) -> Self {
        match kind {
            DependencyKind::Secret => Self::Secret,
            DependencyKind::Config => Self::Config,
        }
    }
}

impl std::fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Cluster => "cluster",
            Self::Node => "node",
            Self::Network => "network",
            Self::Service => "service",
            Self::Task => "task",
            Self::Container => "container",
            Self::Secret => "secret",
            Self::Config => "config",
        })
    }
}
