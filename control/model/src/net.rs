//! Addresses as the layers pass them around.

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
    /// The one address that every task sees behind every neighbour: task_out answers ARP and ND with it.
    pub const ROUTER: Self = Self([0x02, 0x77, 0x65, 0x66, 0x74, 0x01]);

    /// The address of the task interface that owns `v4` (locally administered; derived as Docker does, `02:42` and the
    /// IPv4 address, so that it never changes with the device).
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

/// One address of each family: every task and every VIP has both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DualAddr {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// A network's subnets, one of each family, with the gateway address that stands for the router in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnets {
    pub v4: Ipv4Network,
    pub v4_gateway: Ipv4Addr,
    /// The user's with `--ipv6`, else a unique local /64 (RFC 4193).
    pub v6: Ipv6Network,
    pub v6_gateway: Ipv6Addr,
}
