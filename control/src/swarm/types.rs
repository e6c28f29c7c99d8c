//! What a caller of [`super::Swarm`] gives and gets.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use weft_model::{
    NodeId, NodeName,
    id::ClusterId,
    spec::{Availability, ClusterSpec, Role},
};

use weft_model::LogSource;

/// What stays the same over a node's life, whatever cluster it is in.
#[derive(Clone)]
pub struct SwarmConfig {
    /// Membership lives in `swarm/` below it.
    pub data_dir: PathBuf,
    pub hostname: NodeName,
    /// Of weft: shown to other nodes.
    pub version: String,
    /// This node's task logs, for managers that ask.
    pub logs: Arc<dyn LogSource>,
}

impl fmt::Debug for SwarmConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SwarmConfig")
            .field("data_dir", &self.data_dir)
            .field("hostname", &self.hostname)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

/// Where this node stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    None,
    /// Asked to form or join, not part of it yet.
    Joining,
    Active {
        node: NodeId,
        cluster: ClusterId,
        /// By its certificate: trails a promotion or demotion.
        role: Role,
        addr: IpAddr,
    },
    /// A member that cannot act as one, and what to do about it.
    Error(String),
}

/// `swarm init`.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// Where other nodes reach this one. Absent: the listen address if it is one, else the only global address there is.
    pub advertise_addr: Option<IpAddr>,
    pub listen_addr: SocketAddr,
    pub spec: ClusterSpec,
    pub availability: Availability,
}

/// `swarm join`.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// Managers to ask, in this order.
    pub remotes: Vec<SocketAddr>,
    pub token: String,
    /// Where other nodes reach this one. Absent: the address from which it reaches the manager.
    pub advertise_addr: Option<IpAddr>,
    pub listen_addr: SocketAddr,
    pub availability: Availability,
}
