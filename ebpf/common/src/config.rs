//! Configuration of a node and of the tasks on it. Only user space writes these.

use crate::Addr;

/// The only entry of the array `CONFIG`: what the programs must know about their node.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// Cookie (`SO_NETNS_COOKIE`) of the node's network namespace. Sockets of this namespace may
    /// connect to published ports on localhost.
    pub netns_cookie: u64,
    /// This node's address as an endpoint of the tunnel.
    pub tunnel_addr: Addr,
    /// The address that replaces 127.0.0.0/8 in a connection to a published port. Unspecified if
    /// the node has no IPv4 address.
    pub advertise_v4: Addr,
    /// The address that replaces ::1 in a connection to a published port. Unspecified if the node
    /// has no IPv6 address.
    pub advertise_v6: Addr,
    /// Index of the VXLAN device, which is in collect_md mode (`external` in ip-link(8)).
    pub tunnel_ifindex: u32,
    /// Size of the largest IP packet that fits the tunnel, in bytes. Zero if the tunnel carries
    /// packets of any size, because its own packets may be fragmented.
    pub tunnel_mtu: u32,
    /// UDP port of the tunnels of all nodes.
    pub tunnel_port_be: u16,
    pub _pad: [u16; 3],
}

/// Largest number of networks of one task. The control plane refuses a service with more.
pub const MAX_NETS_PER_TASK: usize = 8;

/// Value of `NETNS`, by the cookie of a task's network namespace: the networks whose VIPs the
/// sockets of the namespace can connect to.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nets {
    /// VNIs. Unused places at the end are zero.
    pub vnis: [u32; MAX_NETS_PER_TASK],
}
