//! What the kernel holds in one network namespace, in our terms.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnetwork::IpNetwork;
use weft_model::Mac;

/// One dump of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// By name.
    pub(crate) links: BTreeMap<String, FoundLink>,
    /// Unicast routes of the main table.
    pub(crate) routes: Vec<FoundRoute>,
    /// Those that were asked for and exist, by their path below `/proc/sys`.
    pub(crate) sysctls: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct FoundLink {
    pub(crate) index: u32,
    pub(crate) kind: FoundKind,
    pub(crate) mac: Option<Mac>,
    pub(crate) mtu: u32,
    /// Administratively.
    pub(crate) up: bool,
    pub(crate) loopback: bool,
    pub(crate) alias: Option<String>,
    /// Of global scope, with the length of their prefix.
    pub(crate) addresses: BTreeSet<IpNetwork>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum FoundKind {
    Veth {
        /// The peer's index, in the peer's namespace.
        peer: Option<u32>,
    },
    Vxlan(VxlanSettings),
    #[default]
    Other,
}

/// What makes a VXLAN device the tunnel.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct VxlanSettings {
    /// The packet says where it goes, the device does not.
    pub(crate) collect_metadata: bool,
    pub(crate) learning: bool,
    pub(crate) port: u16,
}

/// A route: `via` a gateway, or on the link itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct FoundRoute {
    pub(crate) destination: IpNetwork,
    pub(crate) via: Option<IpAddr>,
    /// Index of the link it leads to: the first of several.
    pub(crate) link: Option<u32>,
    /// The address that the node itself sends from, where the route names one.
    pub(crate) source: Option<IpAddr>,
    /// IPv6 keeps routes apart by it.
    pub(crate) metric: u32,
}

impl Found {
    pub(crate) fn link_at(&self, index: u32) -> Option<(&str, &FoundLink)> {
        self.links.iter().find(|(_, link)| link.index == index).map(|(name, link)| (name.as_str(), link))
    }
}
