//! Types that callers of [`super::Swarm`] pass in and receive: the configuration, the options of
//! `init` and `join`, and the state of the membership.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use weft_model::{
    LogSource, NodeId, NodeName,
    id::ClusterId,
    spec::{Availability, ClusterSpec, Role},
};

/// The configuration, which is the same for all memberships of this node.
#[derive(Clone)]
pub struct SwarmConfig {
    /// The membership's files are in its subdirectory `swarm/`.
    pub data_dir: PathBuf,
    pub hostname: NodeName,
    /// The version of weft. Written to the log when a membership resumes.
    pub version: String,
    /// Reads the logs of this node's tasks, for managers that request them.
    pub logs: Arc<dyn LogSource>,
    pub addrs: Arc<dyn LocalAddrs>,
}

/// Lists the addresses of this machine.
pub trait LocalAddrs: Send + Sync {
    /// The global addresses on links that are up, each with the name of its link.
    ///
    /// # Errors
    /// The kernel's error.
    fn addrs(&self) -> io::Result<Vec<(IpAddr, String)>>;
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

/// The state of this node's membership.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Membership {
    /// Not part of a cluster.
    None,
    /// `init` or `join` runs, and the node is not part of the cluster yet.
    Joining,
    /// Part of a cluster.
    Active {
        node: NodeId,
        cluster: ClusterId,
        /// The role in the node's certificate. After a promotion or a demotion it changes when the
        /// node has its new certificate.
        role: Role,
        addr: IpAddr,
        /// Why the node will stop to work if nothing is done. Empty if there is no reason.
        warning: String,
    },
    /// A manager that needs the unlock key: its keys and its log are encrypted. Its tasks and the
    /// data plane continue with the plan that it has.
    Locked,
    /// The node is a member but cannot work as one. The text says why, and what to do.
    Error(String),
}

/// Options of `swarm init`.
#[derive(Debug, Clone)]
pub struct InitOptions {
    /// The address at which other nodes reach this one. If absent: the IP address of `listen_addr`,
    /// or if that is unspecified, this machine's only global address.
    pub advertise_addr: Option<IpAddr>,
    pub listen_addr: SocketAddr,
    /// The address at which the tunnels of this node end. If absent: the address that it
    /// advertises.
    pub tunnel_addr: Option<IpAddr>,
    /// The UDP port of the tunnels of all nodes.
    pub tunnel_port: u16,
    pub spec: ClusterSpec,
    /// Whether managers are locked: whether they need a key after a restart.
    pub auto_lock: bool,
    pub availability: Availability,
}

/// Options of `backup restore`. The addresses are those of this node, as in [`InitOptions`].
#[derive(Clone)]
pub struct RestoreOptions {
    /// The content of the file that `backup create` has made.
    pub file: Vec<u8>,
    pub passphrase: String,
    pub advertise_addr: Option<IpAddr>,
    pub listen_addr: SocketAddr,
    pub tunnel_addr: Option<IpAddr>,
    pub availability: Availability,
}

impl fmt::Debug for RestoreOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RestoreOptions")
            .field("advertise_addr", &self.advertise_addr)
            .field("listen_addr", &self.listen_addr)
            .field("tunnel_addr", &self.tunnel_addr)
            .field("availability", &self.availability)
            .finish_non_exhaustive()
    }
}

/// Options of `swarm join`.
#[derive(Debug, Clone)]
pub struct JoinOptions {
    /// Addresses of managers. They are asked in this order.
    pub remotes: Vec<SocketAddr>,
    /// `SWMTKN-1-…`. Its secret decides the node's role.
    pub token: String,
    /// The address at which other nodes reach this one. If absent: the IP address of `listen_addr`,
    /// or if that is unspecified, the local address of the connection to the manager.
    pub advertise_addr: Option<IpAddr>,
    pub listen_addr: SocketAddr,
    /// The address at which the tunnels of this node end. If absent: the address that it
    /// advertises.
    pub tunnel_addr: Option<IpAddr>,
    pub availability: Availability,
}
