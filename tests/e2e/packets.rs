//! Packets that no honest host sends: a VXLAN frame built by hand.

use std::net::{Ipv4Addr, SocketAddrV4};

/// The tunnel's port (RFC 7348, section 5).
pub(crate) const VXLAN_PORT: u16 = 4789;

/// The payload of a VXLAN datagram that carries a UDP datagram (RFC 7348, section 5; RFC 791; RFC 768).
pub(crate) fn vxlan_udp(
    vni: u32,
    destination_mac: [u8; 6],
    from: SocketAddrV4,
    to: SocketAddrV4,
    payload: &[u8],
) -> Vec<u8> {
    let [_, v1, v2, v3] = vni.to_be_bytes();
    let mut frame = vec![0x08, 0, 0, 0, v1, v2, v3, 0];
    frame.extend(destination_mac);
    frame.extend([0x02, 0, 0, 0, 0, 0x63]);
    frame.extend([0x08, 0x00]);
    frame.extend(ipv4_udp(from, to, payload));
    frame
}

fn ipv4_udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let udp_length = u16::try_from(8 + payload.len()).expect("a small payload");
    let mut header = vec![0x45, 0];
    header.extend((20 + udp_length).to_be_bytes());
    // No identification, no fragments; 64 hops; UDP; the checksum follows.
    header.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    header.extend(from.ip().octets());
    header.extend(to.ip().octets());
    let checksum = checksum(&header).to_be_bytes();
    header[10..12].copy_from_slice(&checksum);

    let mut packet = header;
    packet.extend(from.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend(udp_length.to_be_bytes());
    // No UDP checksum: allowed over IPv4.
    packet.extend([0, 0]);
    packet.extend(payload);
    packet
}

/// The Internet checksum (RFC 1071) of a whole number of 16-bit words.
fn checksum(words: &[u8]) -> u16 {
    let sum = words.chunks_exact(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
    let folded = (sum & 0xffff) + (sum >> 16);
    !u16::try_from((folded & 0xffff) + (folded >> 16)).expect("folded twice")
}

/// Another address of the same /24.
pub(crate) fn neighbour(addr: Ipv4Addr, last: u8) -> Ipv4Addr {
    let [a, b, c, _] = addr.octets();
    Ipv4Addr::new(a, b, c, last)
}
