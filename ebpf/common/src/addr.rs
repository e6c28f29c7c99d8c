//! Addresses in map keys and values.
//!
//! IPv4 addresses are held in their v4-mapped form, so that each map holds both families.

/// An IPv6 address, or an IPv4 address in its v4-mapped form `::ffff:a.b.c.d` (RFC 4291, 2.5.5.2).
/// The words have the byte order of a packet.
///
/// ```
/// use std::net::{Ipv4Addr, Ipv6Addr};
///
/// use weft_ebpf_common::Addr;
///
/// let v4 = Ipv4Addr::new(10, 0, 1, 7);
/// let addr = Addr::from_octets(v4.to_ipv6_mapped().octets());
/// assert!(addr.is_v4());
/// assert_eq!(addr.v4_be().to_ne_bytes(), v4.octets());
/// assert_eq!(addr, Addr::from_v4_be(u32::from_ne_bytes([10, 0, 1, 7])));
///
/// let v6: Ipv6Addr = "2001:db8::7".parse()?;
/// assert_eq!(Addr::from_octets(v6.octets()).octets(), v6.octets());
/// # Ok::<(), std::net::AddrParseError>(())
/// ```
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Addr {
    /// The four words of the IPv6 form.
    pub words_be: [u32; 4],
}

impl Addr {
    /// The third word of each v4-mapped address.
    const MAPPED: u32 = 0xffff_u32.to_be();

    /// `::`. Stands for "no address".
    pub const UNSPECIFIED: Self = Self { words_be: [0; 4] };
    /// `::1`.
    pub const LOOPBACK_V6: Self = Self { words_be: [0, 0, 0, 1_u32.to_be()] };

    /// The v4-mapped form of an IPv4 address, given as the word in a packet.
    #[inline(always)]
    pub const fn from_v4_be(word_be: u32) -> Self {
        Self { words_be: [0, 0, Self::MAPPED, word_be] }
    }

    /// An address from the octets of its IPv6 form.
    #[inline(always)]
    pub const fn from_octets(octets: [u8; 16]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        Self {
            words_be: [
                u32::from_ne_bytes([a, b, c, d]),
                u32::from_ne_bytes([e, f, g, h]),
                u32::from_ne_bytes([i, j, k, l]),
                u32::from_ne_bytes([m, n, o, p]),
            ],
        }
    }

    /// The octets of the IPv6 form.
    #[inline(always)]
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.words_be;
        let [a, b, c, d] = [a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes()];
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// Whether this is an IPv4 address in v4-mapped form.
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words_be[0] == 0 && self.words_be[1] == 0 && self.words_be[2] == Self::MAPPED
    }

    /// The IPv4 address in a v4-mapped address, as the word in a packet. Meaningless for other
    /// addresses.
    #[inline(always)]
    pub const fn v4_be(&self) -> u32 {
        self.words_be[3]
    }

    /// Whether this is `::`.
    #[inline(always)]
    pub const fn is_unspecified(&self) -> bool {
        let [a, b, c, d] = self.words_be;
        a | b | c | d == 0
    }

    /// Whether the address is in 127.0.0.0/8 or is ::1.
    #[inline(always)]
    pub fn is_loopback(&self) -> bool {
        if self.is_v4() { u32::from_be(self.v4_be()) >> 24 == 127 } else { *self == Self::LOOPBACK_V6 }
    }

    /// Whether the address is of no single host: IPv4 or IPv6 multicast, or 255.255.255.255.
    #[inline(always)]
    pub fn is_multicast_or_broadcast(&self) -> bool {
        if self.is_v4() {
            let host = u32::from_be(self.v4_be());
            host >> 28 == 0xe || host == u32::MAX
        } else {
            u32::from_be(self.words_be[0]) >> 24 == 0xff
        }
    }

    /// Whether the address is in 169.254.0.0/16 or fe80::/10.
    #[inline(always)]
    pub fn is_link_local(&self) -> bool {
        if self.is_v4() {
            u32::from_be(self.v4_be()) >> 16 == 0xa9fe
        } else {
            u32::from_be(self.words_be[0]) >> 22 == 0xfe80 >> 6
        }
    }
}

/// An address in a network. Networks may have the same addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NetAddr {
    /// VNI of the network, or [`crate::HOST_NET`].
    pub net: u32,
    pub addr: Addr,
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn v4(octets: [u8; 4]) -> Addr {
        Addr::from_v4_be(u32::from_ne_bytes(octets))
    }

    #[test]
    fn octets_survive_a_round_trip() {
        let octets = [0x20, 1, 0xd, 0xb8, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11];
        assert_eq!(Addr::from_octets(octets).octets(), octets);
        assert_eq!(v4([192, 0, 2, 1]).octets(), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
    }

    #[test]
    fn special_addresses_are_recognised() {
        let mut v6_multicast = Addr::default();
        v6_multicast.words_be[0] = 0xff02_0000_u32.to_be();
        let mut v6_link_local = Addr::default();
        v6_link_local.words_be[0] = 0xfe80_0000_u32.to_be();
        for (addr, loopback, group, link_local) in [
            (v4([127, 1, 2, 3]), true, false, false),
            (v4([224, 0, 0, 1]), false, true, false),
            (v4([255, 255, 255, 255]), false, true, false),
            (v4([169, 254, 9, 9]), false, false, true),
            (v4([10, 0, 0, 1]), false, false, false),
            (Addr::LOOPBACK_V6, true, false, false),
            (v6_multicast, false, true, false),
            (v6_link_local, false, false, true),
        ] {
            assert_eq!(
                (addr.is_loopback(), addr.is_multicast_or_broadcast(), addr.is_link_local()),
                (loopback, group, link_local)
            );
        }
    }
}
