//! The IP header of a packet that weft sends as an answer.
//!
//! `refuse` and `icmp` write their answers behind this header. It has no options, so the transport
//! header begins at a fixed offset.

use crate::packet::{
    checksum,
    parse::{Packet, V4_HEADER_LEN},
    skb::{HelperError, Skb},
};

/// Time to live of the packets that weft builds.
const TTL: u32 = 64;

/// Overwrites the IP header with the header of an answer to the packet: addresses exchanged, no
/// options, `payload` bytes of protocol `proto`.
#[inline(always)]
pub fn write_reply_header(skb: Skb, packet: &Packet, proto: u8, payload: u32) -> Result<(), HelperError> {
    if packet.v4 {
        let mut header = [
            (0x4500_0000 | V4_HEADER_LEN + payload).to_be(),
            // Do not fragment (RFC 791, 3.1).
            0x4000_u32.to_be(),
            (TTL << 24 | u32::from(proto) << 16).to_be(),
            packet.dst.v4_be(),
            packet.src.v4_be(),
        ];
        let checksum = !checksum::fold(checksum::sum_words(&header));
        header[2] |= u32::from(u16::from_be(checksum)).to_be();
        return skb.store(skb.ip_offset(), &header);
    }
    let first = [0x6000_0000_u32.to_be(), (payload << 16 | u32::from(proto) << 8 | TTL).to_be()];
    skb.store(skb.ip_offset(), &first)?;
    skb.store(skb.ip_offset() + 8, &[packet.dst.words_be, packet.src.words_be])
}
