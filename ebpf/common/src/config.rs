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
    /// The address of this node's active WireGuard key: the source of its packets of encrypted
    /// networks. Unspecified if the node has none.
    pub active_key: Addr,
    /// The first 64 bits of all addresses of WireGuard keys in this cluster. Zero while the node
    /// has no part in an encrypted network.
    pub key_prefix_be: [u32; 2],
    /// Indexes of weft's WireGuard links. Zero in places without a link.
    pub wireguard_ifindexes: [u32; MAX_WIREGUARD_LINKS],
    /// Size of the largest IP packet of an encrypted network that fits the tunnel, in bytes.
    pub encrypted_mtu: u32,
    /// UDP ports of this node's WireGuard links. Zero in places without a link.
    pub wireguard_ports_be: [u16; MAX_WIREGUARD_LINKS],
    /// UDP port of the tunnels of all nodes.
    pub tunnel_port_be: u16,
    pub _pad: u16,
    /// The smallest MTU of the node's uplinks, in bytes. A smaller packet fits each of them.
    pub uplink_mtu: u32,
}

impl Config {
    /// Whether the address is that of a WireGuard key of this cluster.
    #[inline(always)]
    pub const fn is_key_address(&self, addr: &Addr) -> bool {
        let ([a, b], words) = (self.key_prefix_be, &addr.words_be);
        a | b != 0 && (a ^ words[0]) | (b ^ words[1]) == 0
    }

    /// Whether the link is one of weft's WireGuard links.
    #[inline(always)]
    pub const fn is_wireguard_link(&self, ifindex: u32) -> bool {
        let [first, second] = self.wireguard_ifindexes;
        ifindex != 0 && (ifindex == first || ifindex == second)
    }
}

/// Largest number of WireGuard links of one node: one for each of its live keys. There are two
/// while a new key replaces an old one.
pub const MAX_WIREGUARD_LINKS: usize = 2;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_with_the_prefix_are_key_addresses() {
        let key = Addr::from_octets([0xfd, 1, 2, 3, 4, 5, 0x77, 0x67, 1, 2, 3, 4, 5, 6, 7, 8]);
        let mut other = key;
        other.words_be[1] ^= 1_u32.to_be();
        let config = Config { key_prefix_be: [key.words_be[0], key.words_be[1]], ..Config::default() };
        assert!(config.is_key_address(&key));
        assert!(!config.is_key_address(&other));
        // Without a part in an encrypted network no address is one, not even `::`.
        assert!(!Config::default().is_key_address(&key));
        assert!(!Config::default().is_key_address(&Addr::UNSPECIFIED));
    }

    #[test]
    fn a_missing_wireguard_link_matches_no_index() {
        let config = Config { wireguard_ifindexes: [7, 0], ..Config::default() };
        assert!(config.is_wireguard_link(7));
        assert!(!config.is_wireguard_link(0));
        assert!(!config.is_wireguard_link(8));
    }
}
