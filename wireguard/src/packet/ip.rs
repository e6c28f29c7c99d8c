//! Fields of IPv4 (RFC 791), IPv6 (RFC 8200), TCP (RFC 9293) and UDP (RFC 768) headers. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;

pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;

pub(crate) const IPV4_LEN: usize = 20;
pub(crate) const IPV6_LEN: usize = 40;
pub(crate) const UDP_LEN: usize = 8;
pub(crate) const TCP_LEN: usize = 20;

/// Where TCP and UDP have their checksums.
pub(crate) const TCP_CHECKSUM: usize = 16;
pub(crate) const UDP_CHECKSUM: usize = 6;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const CWR: u8 = 0x80;

/// The source and the destination of a packet. `None` if it is no IP packet.
pub(crate) fn addresses(packet: &[u8]) -> Option<(IpAddr, IpAddr)> {
    let v4 = |at: usize| Some(IpAddr::V4(Ipv4Addr::from(array::<4>(packet, at)?)));
    let v6 = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(array::<16>(packet, at)?)));
    match packet.first()? >> 4 {
        4 => Some((v4(12)?, v4(16)?)),
        6 => Some((v6(8)?, v6(24)?)),
        _ => None,
    }
}

/// A network header that is directly followed by TCP or UDP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) is_v6: bool,
    /// The length of the header, in octets.
    pub(crate) header_len: usize,
    pub(crate) protocol: u8,
    /// The length of header and payload that the header gives, in octets.
    pub(crate) total_len: usize,
}

impl Network {
    /// Reads the header at the beginning of `packet`. `None` for fragments, for IPv4 options, and
    /// for any extension header of IPv6: such packets are neither segmented nor coalesced.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? {
            0x45 => {
                let fragment = u16::from_be_bytes(array(packet, 6)?);
                // The offset, and the flag for more fragments.
                if fragment & 0x3fff != 0 || packet.len() < IPV4_LEN {
                    return None;
                }
                let total_len = usize::from(u16::from_be_bytes(array(packet, 2)?));
                Some(Self { is_v6: false, header_len: IPV4_LEN, protocol: packet[9], total_len })
            }
            first if first >> 4 == 6 && packet.len() >= IPV6_LEN => {
                let total_len = usize::from(u16::from_be_bytes(array(packet, 4)?)) + IPV6_LEN;
                Some(Self { is_v6: true, header_len: IPV6_LEN, protocol: packet[6], total_len })
            }
            _ => None,
        }
    }
}

/// The length of the TCP header at `at`, with options. `None` if it is cut off.
pub(crate) fn tcp_header_len(packet: &[u8], at: usize) -> Option<usize> {
    let len = usize::from(packet.get(at + 12)? >> 4) * 4;
    (len >= TCP_LEN && packet.len() >= at + len).then_some(len)
}

/// Writes the length of header and payload into the network header at `at`. Completes the header
/// checksum of IPv4, whose identification is increased by `identification`.
pub(crate) fn set_network_len(packet: &mut [u8], at: usize, len: usize, identification: u16) {
    let header = &mut packet[at..];
    if header[0] >> 4 == 6 {
        header[4..6].copy_from_slice(&field(len - IPV6_LEN).to_be_bytes());
        return;
    }
    header[2..4].copy_from_slice(&field(len).to_be_bytes());
    let id = u16::from_be_bytes([header[4], header[5]]).wrapping_add(identification);
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[10..12].fill(0);
    let header_len = usize::from(header[0] & 0xf) * 4;
    let checksum = Sum::default().bytes(&header[..header_len]).checksum();
    header[10..12].copy_from_slice(&checksum);
}

/// A length as a field of 16 bits. A packet is never longer than this field can say.
pub(crate) fn field(len: usize) -> u16 {
    u16::try_from(len).unwrap_or(u16::MAX)
}

/// The sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1) of a transport
/// header whose network header is at `network`. `len` is that of transport header and payload.
pub(crate) fn pseudo_header(packet: &[u8], network: usize, protocol: u8, len: usize) -> Sum {
    let addresses = if packet[network] >> 4 == 6 { 8..40 } else { 12..20 };
    let header = &packet[network..];
    Sum::default().bytes(&header[addresses]).word(u16::from(protocol)).word(field(len))
}

pub(crate) fn array<const N: usize>(packet: &[u8], at: usize) -> Option<[u8; N]> {
    packet.get(at..)?.first_chunk().copied()
}

pub(crate) fn word(packet: &[u8], at: usize) -> Option<u16> {
    array(packet, at).map(u16::from_be_bytes)
}
