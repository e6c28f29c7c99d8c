//! Types for MAC addresses, IP addresses and subnets that more than one layer uses.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address with which the data plane (`task_out`) answers every ARP and neighbour discovery
    /// request of a task. So in the neighbour table of a task every neighbour has this address.
    pub const ROUTER: Self = Self([0x02, 0x77, 0x65, 0x66, 0x74, 0x01]);

    /// The address of the task interface that has the address `addr`: `02:42`, followed by the IPv4
    /// address, as in Docker. Without an IPv4 address, four octets that are computed from the IPv6
    /// address follow. It is locally administered, and stays the same if the interface is created
    /// again.
    pub fn of_task(addr: DualAddr) -> Self {
        let fold = |v6: u128| (v6 ^ (v6 >> 32) ^ (v6 >> 64) ^ (v6 >> 96)) as u32;
        let [a, b, c, d] = addr.v4.map_or_else(|| fold(addr.v6.into()).to_be_bytes(), |v4| v4.octets());
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The addresses of a task on one of its networks, or of a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DualAddr {
    /// `None` on a network without IPv4.
    pub v4: Option<Ipv4Addr>,
    pub v6: Ipv6Addr,
}

impl DualAddr {
    /// The addresses, IPv4 first.
    pub fn ips(self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain([IpAddr::V6(self.v6)])
    }

    /// The IPv4 address, or the IPv6 address if there is no IPv4 address.
    pub fn first(self) -> IpAddr {
        self.v4.map_or(IpAddr::V6(self.v6), IpAddr::V4)
    }
}

/// The subnets of a network. They do not overlap.
///
/// ```
/// use weft_model::net::Subnets;
///
/// let subnets = Subnets::dual("10.1.0.0/24".parse()?, "fd00:1::/64".parse()?);
/// let (range, gateway) = subnets.containing("10.1.0.9".parse()?).expect("the IPv4 subnet");
/// assert_eq!((range.prefix(), gateway.to_string().as_str()), (24, "10.1.0.1"));
/// assert!(subnets.containing("10.2.0.9".parse()?).is_none());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnets {
    /// In the order of the spec. Empty if the network has no IPv4.
    pub v4: Vec<Subnet<Ipv4Network, Ipv4Addr>>,
    /// In the order of the spec: the subnets that the user has chosen, or a unique local /64 (RFC
    /// 4193).
    pub v6: Vec<Subnet<Ipv6Network, Ipv6Addr>>,
}

/// Whether two ranges have common addresses. Then one of them contains the other.
pub fn overlap(a: IpNetwork, b: IpNetwork) -> bool {
    a.contains(b.network()) || b.contains(a.network())
}

/// A subnet with its gateway address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet<N, A> {
    pub range: N,
    pub gateway: A,
}

impl Subnet<Ipv4Network, Ipv4Addr> {
    /// The subnet whose gateway is its first address.
    pub fn v4(range: Ipv4Network) -> Self {
        Self { range, gateway: Ipv4Addr::from(u32::from(range.network()) + 1) }
    }
}

impl Subnet<Ipv6Network, Ipv6Addr> {
    /// The subnet whose gateway is its first address.
    pub fn v6(range: Ipv6Network) -> Self {
        Self { range, gateway: Ipv6Addr::from(u128::from(range.network()) + 1) }
    }
}

impl Subnets {
    /// One subnet of each family, whose gateways are their first addresses.
    pub fn dual(v4: Ipv4Network, v6: Ipv6Network) -> Self {
        Self { v4: vec![Subnet::v4(v4)], v6: vec![Subnet::v6(v6)] }
    }

    /// All subnets with their gateways, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = (IpNetwork, IpAddr)> {
        let v4 = self.v4.iter().map(|subnet| (IpNetwork::V4(subnet.range), IpAddr::V4(subnet.gateway)));
        v4.chain(self.v6.iter().map(|subnet| (IpNetwork::V6(subnet.range), IpAddr::V6(subnet.gateway))))
    }

    /// The subnet that contains the address, with its gateway.
    pub fn containing(&self, ip: IpAddr) -> Option<(IpNetwork, IpAddr)> {
        self.iter().find(|(range, _)| range.contains(ip))
    }

    /// Whether a subnet of each has common addresses.
    pub fn overlap(&self, other: &Self) -> bool {
        self.iter().any(|(a, _)| other.iter().any(|(b, _)| overlap(a, b)))
    }
}
