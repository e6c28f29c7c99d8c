//! The contents of all maps that user space writes, as values.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use ipnetwork::IpNetwork;
use weft_ebpf_common::{
    Addr, Backend, Config, Endpoint, Forward, HOST_NET, NetAddr, Nets, PortKey, PortTarget, Route, Service, SlotKey,
};

/// One field for each map; what each means is said beside the map, in `ebpf/programs/src/maps.rs`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Tables {
    pub(crate) config: Config,
    pub(crate) own: BTreeMap<NetAddr, u32>,
    pub(crate) ports: BTreeMap<PortKey, PortTarget>,
    pub(crate) vips: BTreeMap<NetAddr, u32>,
    pub(crate) services: BTreeMap<u32, Service>,
    pub(crate) slots: BTreeMap<SlotKey, u64>,
    pub(crate) backends: BTreeMap<u64, Backend>,
    pub(crate) endpoints: BTreeMap<u32, Endpoint>,
    pub(crate) forward: BTreeMap<NetAddr, Forward>,
    pub(crate) nodes: BTreeMap<NetAddr, u32>,
    pub(crate) routes: BTreeMap<Prefix, Route>,
    pub(crate) netns: BTreeMap<u64, Nets>,
    /// Services and backends that are counted.
    pub(crate) counted_services: BTreeSet<u32>,
    pub(crate) counted_backends: BTreeSet<u64>,
}

/// Key of the routes: a prefix of `NetAddr`, in bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Prefix {
    pub(crate) bits: u32,
    pub(crate) addr: NetAddr,
}

impl Prefix {
    /// The prefix of addresses that belong to no network of weft's.
    pub(crate) fn of_host(destination: IpNetwork) -> Self {
        let addr = host_addr(destination.network());
        let family_bits = if destination.is_ipv4() { 96 } else { 0 };
        Self { bits: u32::BITS + family_bits + u32::from(destination.prefix()), addr }
    }
}

/// An address as the maps hold it.
pub(crate) fn addr(ip: IpAddr) -> Addr {
    Addr::from_octets(match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    })
}

/// The address that the maps hold as `addr`.
pub(crate) fn ip(addr: Addr) -> IpAddr {
    Ipv6Addr::from(addr.octets()).to_canonical()
}

/// An address in a network.
pub(crate) fn net_addr(net: u32, ip: IpAddr) -> NetAddr {
    NetAddr { net, addr: addr(ip) }
}

/// An address that belongs to no network of weft's.
pub(crate) fn host_addr(ip: IpAddr) -> NetAddr {
    net_addr(HOST_NET, ip)
}

/// The mask of a prefix, for comparing [`Addr`]s.
pub(crate) fn mask(network: IpNetwork) -> Addr {
    match network {
        IpNetwork::V4(v4) => {
            let mut mask = [0xff; 16];
            mask[12..].copy_from_slice(&v4.mask().octets());
            Addr::from_octets(mask)
        }
        IpNetwork::V6(v6) => Addr::from_octets(v6.mask().octets()),
    }
}
