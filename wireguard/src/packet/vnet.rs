//! The header that a TUN device with `IFF_VNET_HDR` puts before each packet: what is left to do
//! with a packet that the kernel has not finished (include/uapi/linux/virtio_net.h). Pure.

/// The length without the fields for tunnels (`struct virtio_net_hdr`).
pub(crate) const PLAIN_LEN: usize = 10;
/// The length with the fields for tunnels (`struct virtio_net_hdr_v1_hash_tunnel`, Linux 6.17).
pub(crate) const TUNNEL_LEN: usize = 24;

/// The checksum from `csum_start` to the end is missing; its field holds the sum of the
/// pseudo-header.
pub(crate) const NEEDS_CSUM: u8 = 1;
/// The outer UDP header of a tunnelled superpacket must have a checksum.
pub(crate) const UDP_TUNNEL_CSUM: u8 = 8;

pub(crate) const GSO_NONE: u8 = 0;
pub(crate) const GSO_TCPV4: u8 = 1;
pub(crate) const GSO_TCPV6: u8 = 4;
pub(crate) const GSO_UDP_L4: u8 = 5;
pub(crate) const GSO_UDP_TUNNEL_IPV4: u8 = 0x20;
pub(crate) const GSO_UDP_TUNNEL_IPV6: u8 = 0x40;
pub(crate) const GSO_UDP_TUNNEL: u8 = GSO_UDP_TUNNEL_IPV4 | GSO_UDP_TUNNEL_IPV6;
/// The first segment has the flag CWR, and the others must not have it (RFC 3168).
pub(crate) const GSO_ECN: u8 = 0x80;

/// The fields that weft uses. Offsets count from the beginning of the packet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct VnetHeader {
    pub(crate) flags: u8,
    pub(crate) gso_type: u8,
    /// The length of all headers. A hint: the kernel does not promise that it is exact.
    pub(crate) header_len: u16,
    /// The payload of each segment, in octets.
    pub(crate) gso_size: u16,
    /// Where the (inner) transport header begins.
    pub(crate) csum_start: u16,
    /// The place of the checksum field in the transport header.
    pub(crate) csum_offset: u16,
    /// Where the outer UDP header begins.
    pub(crate) outer_transport: u16,
    /// Where the inner network header begins.
    pub(crate) inner_network: u16,
}

impl VnetHeader {
    /// Reads a header. `bytes` has [`PLAIN_LEN`] or [`TUNNEL_LEN`] octets.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| Some(u16::from_le_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
        Some(Self {
            flags: *bytes.first()?,
            gso_type: *bytes.get(1)?,
            header_len: word(2)?,
            gso_size: word(4)?,
            csum_start: word(6)?,
            csum_offset: word(8)?,
            outer_transport: word(20).unwrap_or(0),
            inner_network: word(22).unwrap_or(0),
        })
    }

    /// The octets of the longer form. The shorter form is a prefix of it.
    pub(crate) fn encode(&self) -> [u8; TUNNEL_LEN] {
        let mut bytes = [0; TUNNEL_LEN];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [
            (2, self.header_len),
            (4, self.gso_size),
            (6, self.csum_start),
            (8, self.csum_offset),
            (20, self.outer_transport),
            (22, self.inner_network),
        ];
        for (at, value) in words {
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_encoded_is_decoded() {
        let header = VnetHeader {
            flags: NEEDS_CSUM | UDP_TUNNEL_CSUM,
            gso_type: GSO_TCPV4 | GSO_UDP_TUNNEL_IPV6,
            header_len: 110,
            gso_size: 1300,
            csum_start: 90,
            csum_offset: 16,
            outer_transport: 40,
            inner_network: 70,
        };
        // Written by a TUN device of Linux 6.18 for TCP in VXLAN over IPv6.
        let expected = [9, 0x41, 0x6e, 0, 0x14, 5, 0x5a, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x28, 0, 0x46, 0];
        assert_eq!(header.encode(), expected);
        assert_eq!(VnetHeader::decode(&expected), Some(header));
        let plain = VnetHeader { outer_transport: 0, inner_network: 0, ..header };
        assert_eq!(VnetHeader::decode(&expected[..PLAIN_LEN]), Some(plain));
        assert_eq!(VnetHeader::decode(&expected[..9]), None);
    }
}
