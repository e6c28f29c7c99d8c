//! What one node knows of itself.

use crate::Addr;

/// The only entry of the `CONFIG` array.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Config {
    /// Cookie of the network namespace whose sockets may dial published ports on localhost.
    pub netns_cookie: u64,
    /// This node's end of the tunnels.
    pub tunnel_addr: Addr,
    /// Where a connection to a published port of 127.0.0.0/8 goes; unspecified where the node has no IPv4.
    pub advertise_v4: Addr,
    /// The same for ::1.
    pub advertise_v6: Addr,
    /// The collect_md VXLAN device.
    pub tunnel_ifindex: u32,
    /// Largest IP packet that fits the tunnel, in bytes; zero where the tunnel carries any, in fragments if it must.
    pub tunnel_mtu: u32,
}

/// More networks than this on one task are refused when the service is created.
pub const MAX_NETS_PER_TASK: usize = 8;

/// Value of `NETNS`: the networks that sockets of a namespace may resolve VIPs in. Unused places hold zero.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Nets {
    pub vnis: [u32; MAX_NETS_PER_TASK],
}
