//! The MTU of the tasks' links: the largest packet that fits through a tunnel to every peer, and
//! the MTU of the WireGuard links, through which the tunnel of encrypted networks goes. `reconcile`
//! fills [`Underlay`], and `desired` reads it. Pure.

use std::{net::IpAddr, ops::RangeInclusive};

/// Octets that VXLAN over IPv4 adds to a packet: IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC
/// 7348, section 5).
const OVERHEAD_V4: u32 = 50;
/// Octets that VXLAN over IPv6 adds to a packet: the same with an IPv6 header of 40 octets.
const OVERHEAD_V6: u32 = 70;
/// Octets that WireGuard over IPv4 adds to a packet: IPv4 20, UDP 8, WireGuard header 16 and
/// authentication tag 16 (`MESSAGE_MINIMUM_LENGTH`, drivers/net/wireguard/messages.h).
const WIREGUARD_OVERHEAD_V4: u32 = 60;
/// Octets that WireGuard over IPv6 adds to a packet.
const WIREGUARD_OVERHEAD_V6: u32 = 80;
/// IPv6 needs links of at least 1280 octets (RFC 8200, section 5). A veth takes at most 65,535. If
/// the underlay carries less, it has to fragment.
const LINK_MTU: RangeInclusive<u32> = 1280..=65_535;
/// The MTU of Ethernet, used if the MTU of the underlay is unknown.
const DEFAULT_UNDERLAY_MTU: u32 = 1500;

/// The smallest MTU of the routes to the peers, for each address family, in octets. `None` if there
/// is no peer of that family.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Underlay {
    pub v4: Option<u32>,
    pub v6: Option<u32>,
}

impl Underlay {
    /// Adds the MTU of the route to `peer`.
    pub fn add_path(&mut self, peer: IpAddr, mtu: u32) {
        let smallest = if peer.is_ipv4() { &mut self.v4 } else { &mut self.v6 };
        *smallest = Some(smallest.map_or(mtu, |smallest| smallest.min(mtu)));
    }

    /// The largest packet that fits through a tunnel to any peer.
    pub(super) fn link_mtu(self) -> u32 {
        self.smallest_less(OVERHEAD_V4, OVERHEAD_V6).clamp(*LINK_MTU.start(), *LINK_MTU.end())
    }

    /// The largest packet of an encrypted network that fits through a tunnel to any peer. The
    /// addresses of keys are IPv6 addresses.
    pub(super) fn encrypted_link_mtu(self) -> u32 {
        self.wireguard_mtu() - OVERHEAD_V6
    }

    /// The largest packet that fits through WireGuard to any peer.
    pub(super) fn wireguard_mtu(self) -> u32 {
        let smallest = self.smallest_less(WIREGUARD_OVERHEAD_V4, WIREGUARD_OVERHEAD_V6);
        smallest.clamp(LINK_MTU.start() + OVERHEAD_V6, *LINK_MTU.end())
    }

    fn smallest_less(self, overhead_v4: u32, overhead_v6: u32) -> u32 {
        let v4 = self.v4.map(|mtu| mtu.saturating_sub(overhead_v4));
        let v6 = self.v6.map(|mtu| mtu.saturating_sub(overhead_v6));
        v4.into_iter().chain(v6).min().unwrap_or(DEFAULT_UNDERLAY_MTU - overhead_v6)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_mtu(v4: Option<u32>, v6: Option<u32>, want: u32) {
        assert_eq!(Underlay { v4, v6 }.link_mtu(), want, "{v4:?} {v6:?}");
    }

    #[test]
    fn the_mtu_is_the_smallest_path_less_the_overhead() {
        check_mtu(None, None, 1430);
        check_mtu(Some(1500), None, 1450);
        check_mtu(None, Some(1500), 1430);
        check_mtu(Some(1500), Some(9000), 1450);
        check_mtu(Some(9000), Some(9000), 8930);
        check_mtu(Some(1300), None, 1280);
        check_mtu(Some(0), Some(0), 1280);
        check_mtu(Some(u32::MAX), None, 65_535);
    }

    #[test]
    fn encryption_costs_the_overhead_of_wireguard_and_of_vxlan_over_ipv6() {
        let check = |v4, v6, wireguard: u32| {
            let underlay = Underlay { v4, v6 };
            assert_eq!(underlay.wireguard_mtu(), wireguard, "{underlay:?}");
            assert_eq!(underlay.encrypted_link_mtu(), wireguard - 70, "{underlay:?}");
        };
        check(None, None, 1420);
        check(Some(1500), None, 1440);
        check(None, Some(1500), 1420);
        check(Some(1500), Some(1500), 1420);
        // IPv6 needs 1280 octets in the tasks. A smaller underlay has to fragment.
        check(Some(1300), None, 1350);
        check(Some(u32::MAX), None, 65_535);
    }

    #[test]
    fn each_family_keeps_its_smallest_path() {
        let mut underlay = Underlay::default();
        for (peer, mtu) in [("192.0.2.2", 9000), ("192.0.2.3", 1400), ("2001:db8::2", 1500), ("192.0.2.4", 1500)] {
            underlay.add_path(peer.parse().expect("an address"), mtu);
        }
        assert_eq!(underlay, Underlay { v4: Some(1400), v6: Some(1500) });
    }
}
