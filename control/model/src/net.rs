//! Types for MAC addresses, IP addresses and subnets that more than one layer uses.

use std::{
    fmt,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnetwork::{Ipv4Network, Ipv6Network};
use serde::{Deserialize, Serialize};

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// The address with which the data plane (`task_out`) answers every ARP and neighbour discovery
    /// request of a task. So in the neighbour table of a task every neighbour has this address.
    pub const ROUTER: Self = Self([0x02, 0x77, 0x65, 0x66, 0x74, 0x01]);

    /// The address of the task interface that has the address `v4`: `02:42`, followed by the IPv4
    /// address, as in Docker. It is locally administered, and stays the same if the interface is
    /// created again.
    pub fn of_task(v4: Ipv4Addr) -> Self {
        let [a, b, c, d] = v4.octets();
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

/// An IPv4 and an IPv6 address. Every task has both on each of its networks, and so has every VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DualAddr {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// The IPv4 and IPv6 subnet of a network, each with its gateway address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnets {
    pub v4: Ipv4Network,
    pub v4_gateway: Ipv4Addr,
    /// The subnet that the user has chosen, or a unique local /64 (RFC 4193).
    pub v6: Ipv6Network,
    pub v6_gateway: Ipv6Addr,
}
