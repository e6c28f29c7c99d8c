//! The MTU of the tasks' links: the largest packet that fits through a tunnel to every peer.
//! `reconcile` fills [`Underlay`], and `desired` reads it. Pure.

use std::{net::IpAddr, ops::RangeInclusive};

/// Octets that VXLAN over IPv4 adds to a packet: IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14 (RFC
/// 7348, section 5).
const OVERHEAD_V4: u32 = 50;
/// Octets that VXLAN over IPv6 adds to a packet: the same with an IPv6 header of 40 octets.
const OVERHEAD_V6: u32 = 70;
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
        let v4 = self.v4.map(|mtu| mtu.saturating_sub(OVERHEAD_V4));
        let v6 = self.v6.map(|mtu| mtu.saturating_sub(OVERHEAD_V6));
        let smallest = v4.into_iter().chain(v6).min().unwrap_or(DEFAULT_UNDERLAY_MTU - OVERHEAD_V6);
        smallest.clamp(*LINK_MTU.start(), *LINK_MTU.end())
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
    fn each_family_keeps_its_smallest_path() {
        let mut underlay = Underlay::default();
        for (peer, mtu) in [("192.0.2.2", 9000), ("192.0.2.3", 1400), ("2001:db8::2", 1500), ("192.0.2.4", 1500)] {
            underlay.add_path(peer.parse().expect("an address"), mtu);
        }
        assert_eq!(underlay, Underlay { v4: Some(1400), v6: Some(1500) });
    }
}
