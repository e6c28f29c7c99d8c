//! The cases of `bench overlay`.

use crate::bench::case::Label;

/// A tunnel between the two nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Tunnel {
    /// boringtun's own command-line tool.
    Boringtun,
    /// weft's device at the client, and boringtun's tool at the server: they must understand each
    /// other.
    Mixed,
    /// weft's device in user space.
    UserSpace,
    /// The kernel's device.
    Kernel,
}

/// In the order of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Case {
    /// One link from client to server: the limit.
    Raw,
    /// VXLAN in clear.
    Vxlan,
    /// A WireGuard device.
    Plain(Tunnel),
    /// VXLAN inside of it: an encrypted network.
    Encrypted(Tunnel),
}

impl Label for Case {
    const RAW: Self = Self::Raw;

    fn name(self) -> String {
        let name = match self {
            Self::Raw => "raw",
            Self::Vxlan => "vxlan",
            Self::Plain(Tunnel::Boringtun) => "boringtun",
            Self::Plain(Tunnel::Mixed) => "mixed",
            Self::Plain(Tunnel::UserSpace) => "userspace",
            Self::Plain(Tunnel::Kernel) => "kernel",
            Self::Encrypted(Tunnel::Boringtun) => "boringtun-vxlan",
            Self::Encrypted(Tunnel::Mixed) => "mixed-vxlan",
            Self::Encrypted(Tunnel::UserSpace) => "userspace-vxlan",
            Self::Encrypted(Tunnel::Kernel) => "kernel-vxlan",
        };
        name.to_owned()
    }

    fn description(self) -> &'static str {
        match self {
            Self::Raw => "client → server, one veth pair and nothing else: the limit",
            Self::Vxlan => "VXLAN devices on this pair, in clear",
            Self::Plain(Tunnel::Boringtun) => "WireGuard by boringtun-cli on this pair",
            Self::Plain(Tunnel::Mixed) => "WireGuard by weft's device at the client, by boringtun-cli at the server",
            Self::Plain(Tunnel::UserSpace) => "WireGuard by weft's device in user space on this pair",
            Self::Plain(Tunnel::Kernel) => "WireGuard by the kernel on this pair",
            Self::Encrypted(Tunnel::Boringtun) => "VXLAN over IPv6 inside of boringtun-cli",
            Self::Encrypted(Tunnel::Mixed) => "VXLAN over IPv6 inside of the mixed tunnel",
            Self::Encrypted(Tunnel::UserSpace) => "VXLAN over IPv6 inside of weft's device: an encrypted network",
            Self::Encrypted(Tunnel::Kernel) => "VXLAN over IPv6 inside of kernel WireGuard",
        }
    }
}
