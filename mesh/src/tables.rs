//! The contents of the maps that user space writes, as values, and the conversion of addresses into
//! the form of the maps. Pure.
//!
//! [`crate::desired`] makes such values from the plan, `kernel` reads them from the maps, and
//! [`crate::diff`] compares them.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use weft_ebpf_common::{
    Addr, Backend, Config, Endpoint, Forward, HOST_NET, NetAddr, Nets, Node, PortKey, PortTarget, Route, Service,
    SlotKey,
    names::{Name, NameKey, NameScope},
};

/// One field for each map. `ebpf/programs/src/maps.rs` says what each map means.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tables {
    pub config: Config,
    pub own: BTreeMap<NetAddr, u32>,
    pub ports: BTreeMap<PortKey, PortTarget>,
    pub vips: BTreeMap<NetAddr, u32>,
    pub services: BTreeMap<u32, Service>,
    pub slots: BTreeMap<SlotKey, u64>,
    pub backends: BTreeMap<u64, Backend>,
    pub endpoints: BTreeMap<u32, Endpoint>,
    pub forward: BTreeMap<NetAddr, Forward>,
    pub nodes: BTreeMap<NetAddr, Node>,
    pub routes: BTreeMap<Prefix, Route>,
    pub netns: BTreeMap<u64, Nets>,
    pub resolvers: BTreeMap<u64, Addr>,
    pub names: BTreeMap<NameKey, Name>,
    pub name_scopes: BTreeMap<u32, NameScope>,
    /// The services that have an entry in the map of counters.
    pub counted_services: BTreeSet<u32>,
}

/// The key of the map of routes: the first `bits` bits of a `NetAddr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prefix {
    pub bits: u32,
    pub addr: NetAddr,
}

impl Prefix {
    /// A destination outside of all networks of weft.
    pub(crate) fn of_host(destination: IpNetwork) -> Self {
        Self::of_network(HOST_NET, destination)
    }

    /// A subnet of the network with the VNI `net`.
    pub(crate) fn of_network(net: u32, destination: IpNetwork) -> Self {
        let addr = net_addr(net, destination.network());
        let family_bits = if destination.is_ipv4() { 96 } else { 0 };
        Self { bits: u32::BITS + family_bits + u32::from(destination.prefix()), addr }
    }
}

/// Converts an address into the form of the maps.
pub(crate) fn addr(ip: IpAddr) -> Addr {
    Addr::from_octets(match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    })
}

/// Converts an address back from the form of the maps.
pub(crate) fn ip(addr: Addr) -> IpAddr {
    Ipv6Addr::from(addr.octets()).to_canonical()
}

/// An address in the network with the VNI `net`.
pub(crate) fn net_addr(net: u32, ip: IpAddr) -> NetAddr {
    NetAddr { net, addr: addr(ip) }
}

/// An address outside of all networks of weft.
pub(crate) fn host_addr(ip: IpAddr) -> NetAddr {
    net_addr(HOST_NET, ip)
}
