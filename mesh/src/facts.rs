//! The state of this machine that the plan cannot contain: links, addresses, routes and namespace
//! cookies.
//!
//! The agent fills [`LocalFacts`] from the report of the overlay; [`crate::desired`] reads it.
//! Pure data.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use ipnetwork::IpNetwork;
use weft_model::{NetworkId, TaskId, wireguard::NodeKey};

/// The current state of the node. A link that is not configured yet is missing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalFacts {
    /// `SO_NETNS_COOKIE` of the node's network namespace.
    pub netns_cookie: u64,
    /// The VXLAN device in collect_metadata mode.
    pub tunnel_ifindex: u32,
    /// MTU of the tasks' links, in octets: the largest IP packet that the tunnel carries
    /// unfragmented.
    pub task_mtu: u32,
    /// The same for networks that are encrypted.
    pub encrypted_mtu: u32,
    /// The WireGuard links that are configured completely, at most
    /// [`weft_ebpf_common::MAX_WIREGUARD_LINKS`].
    pub wireguard: Vec<LocalWireGuard>,
    /// Every link by which packets of other machines can enter the node.
    pub uplinks: Vec<Uplink>,
    /// Every address at which other machines can reach the node: the addresses of the uplinks, of
    /// all other links, and of `lo`.
    pub addresses: Vec<IpAddr>,
    /// The routes of the main routing table. They select the link and the source address of packets
    /// that tasks send to the outside. The node's own addresses need not be in it. A task cannot
    /// use a route through a link that is not an uplink, because no program is attached there that
    /// could deliver the replies.
    pub routes: Vec<HostRoute>,
    /// The links of this node's tasks.
    pub endpoints: Vec<LocalEndpoint>,
    /// The names of the networks that this node's tasks are on, as their resolver answers them.
    pub names: Vec<ResolvedName>,
}

/// A name on one network, and all its addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedName {
    pub network: NetworkId,
    /// In lower case, without a final dot.
    pub name: String,
    /// Whether the name ends with the name of its network. Names that do not are found first.
    pub qualified: bool,
    pub v4: Vec<Ipv4Addr>,
    pub v6: Vec<Ipv6Addr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub ifindex: u32,
    /// Whether packets on the link begin with an Ethernet header. If not, they begin with their IP
    /// header, as on WireGuard, tun and PPP.
    pub ethernet: bool,
    /// In octets.
    pub mtu: u32,
    /// The global addresses of both families. Empty if the node uses addresses of other links here.
    pub addresses: Vec<IpAddr>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRoute {
    /// 0.0.0.0/0 or ::/0 for a default route.
    pub destination: IpNetwork,
    pub ifindex: u32,
    /// The source address for this route, of the same family as the destination.
    pub source: IpAddr,
}

/// The WireGuard link of one key of this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LocalWireGuard {
    pub ifindex: u32,
    pub key: NodeKey,
}

/// One link of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalEndpoint {
    pub task: TaskId,
    pub network: NetworkId,
    /// The index of the host side, in the node's namespace.
    pub ifindex: u32,
    /// The network namespace of the task, the same for all its links. `None` if it does not exist
    /// yet: until then the VIPs of the task's sockets are translated packet by packet.
    pub netns: Option<LocalNetns>,
}

/// The network namespace of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalNetns {
    /// `SO_NETNS_COOKIE` of the namespace.
    pub cookie: u64,
    /// The file of the namespace.
    pub path: PathBuf,
    /// The address at which the task's resolver listens. If it is not 127.0.0.11, the programs lead
    /// the task's sockets from 127.0.0.11:53 there.
    pub resolver: Ipv4Addr,
}
