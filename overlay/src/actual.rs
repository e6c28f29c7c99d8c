//! What the kernel holds, in weft's own types. The counterpart of [`crate::desired`].
//!
//! `kernel` fills these values from netlink dumps and `/proc/sys`; [`crate::diff`],
//! [`crate::facts`] and `endpoint` read them. Pure data: this module decides nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use ipnetwork::{IpNetwork, Ipv6Network};
use weft_model::{Mac, TaskId, wireguard::PublicKey};

/// What the kernel holds for this node and its tasks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actual {
    /// The node's own network namespace.
    pub node: ActualNetns,
    /// The WireGuard links of weft, by name. A link that has the name but is not the WireGuard link
    /// that weft would use is missing.
    pub wireguard: BTreeMap<String, ActualWireGuard>,
    /// The network namespace of each task. A sandbox that cannot be read is missing.
    pub tasks: BTreeMap<TaskId, ActualNetns>,
}

/// A dump of one network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActualNetns {
    /// `SO_NETNS_COOKIE` of the namespace.
    pub cookie: u64,
    /// By name.
    pub links: BTreeMap<String, ActualLink>,
    /// The unicast routes of the main table.
    pub routes: Vec<ActualRoute>,
    /// The routes that weft marked as its own.
    pub key_routes: Vec<ActualKeyRoute>,
    /// The requested sysctls that exist, by their path below `/proc/sys`.
    pub sysctls: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ActualLink {
    pub index: u32,
    pub kind: ActualLinkKind,
    pub framing: Framing,
    /// `None` if the link has no Ethernet address.
    pub mac: Option<Mac>,
    /// In octets.
    pub mtu: u32,
    /// Whether the link is administratively up.
    pub up: bool,
    pub loopback: bool,
    /// Whether another link receives the packets of this one: a bridge, a bond or the like, of
    /// which it is a port.
    pub port: bool,
    pub alias: Option<String>,
    /// The addresses of global scope, with their prefix lengths.
    pub addresses: BTreeSet<IpNetwork>,
}

impl ActualLink {
    /// Whether this link in the node's namespace and `peer` in a task's namespace are the two ends
    /// of a veth pair: each has the other's index as its peer. The namespaces differ, so one match
    /// alone can be a coincidence.
    pub(crate) fn is_paired_with(&self, peer: &Self) -> bool {
        let has_peer = |link: &Self, peer: &Self| link.kind == ActualLinkKind::Veth { peer: Some(peer.index) };
        has_peer(self, peer) && has_peer(peer, self)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ActualLinkKind {
    Veth {
        /// The index of the peer, in the peer's namespace.
        peer: Option<u32>,
    },
    Vxlan(VxlanSettings),
    /// A pair like veth, for containers of other programs.
    Netkit,
    /// A WireGuard link of the kernel.
    WireGuard,
    #[default]
    Other,
}

/// What a packet on a link begins with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Framing {
    #[default]
    Ethernet,
    /// Nothing precedes the IP header: WireGuard, tun, PPP, and tunnels of IP.
    Ip,
    /// Another header, such as InfiniBand's. A tunnel of IP that has no remote address is also
    /// here: the kernel does not know where to send a packet that is only given to the link.
    Other,
}

/// The settings that distinguish weft's tunnel from other VXLAN devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VxlanSettings {
    /// The metadata of each packet, and not the device, says where the packet goes.
    pub collect_metadata: bool,
    pub learning: bool,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActualRoute {
    pub destination: IpNetwork,
    /// The gateway. `None` if the destination is on the link itself.
    pub via: Option<IpAddr>,
    /// The index of the link that the route uses. A multipath route reports its first one that is
    /// alive.
    pub link: Option<u32>,
    /// The source address for the node's own packets, if the route sets one.
    pub source: Option<IpAddr>,
    /// IPv6 routes that differ only in the metric are separate routes.
    pub metric: u32,
}

/// A route with weft's mark.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActualKeyRoute {
    pub destination: Ipv6Network,
    /// `None` if the route is for packets with any source.
    pub source: Option<Ipv6Network>,
    /// The index of the link. `None` if the route makes the destination unreachable.
    pub link: Option<u32>,
    pub metric: u32,
}

/// The WireGuard part of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActualWireGuard {
    pub public_key: PublicKey,
    pub port: u16,
    pub peers: BTreeMap<PublicKey, ActualPeer>,
}

/// A peer of a WireGuard link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ActualPeer {
    /// The endpoint that this daemon set last; `None` if it has not set one yet. It is not the
    /// endpoint that WireGuard uses: that follows the peer, if a translated address changes.
    pub endpoint: Option<SocketAddr>,
    pub allowed_ips: BTreeSet<IpNetwork>,
}

impl ActualNetns {
    pub(crate) fn link_by_index(&self, index: u32) -> Option<(&str, &ActualLink)> {
        self.links.iter().find(|(_, link)| link.index == index).map(|(name, link)| (name.as_str(), link))
    }
}
