//! Building ICMP errors about a packet, over the packet.
//!
//! `refuse` calls this and sends the result. The packet must have no IP options or extension
//! headers, because the error quotes a header of fixed length:
//!
//! ```text
//! before   Ethernet | IP header     | transport header | data
//! after    Ethernet | new IP header | ICMP header | old IP header | first 8 bytes of transport
//! ```

use super::ip::write_reply_header;
use crate::packet::{
    checksum,
    parse::{ICMP, ICMP_V6, Packet, V4_HEADER_LEN, V6_HEADER_LEN},
    skb::{HelperError, Skb},
};

/// Length of the ICMP header in bytes: type, code, checksum and a word that depends on the type
/// (RFC 792, RFC 4443).
const ICMP_HEADER_LEN: u32 = 8;
/// Number of transport bytes that an error quotes. RFC 792 requires eight; RFC 4443 asks for as
/// many as fit, but hosts need only the ports.
const QUOTED_L4_LEN: u32 = 8;

/// Destination unreachable, port unreachable (RFC 792; RFC 4443, 3.1): type and code, then the
/// unused word.
const PORT_UNREACHABLE_V4: [u32; 2] = [0x0303_0000_u32.to_be(), 0];
const PORT_UNREACHABLE_V6: [u32; 2] = [0x0104_0000_u32.to_be(), 0];
/// Fragmentation needed (RFC 1191, 4) and packet too big (RFC 4443, 3.2): type and code. The MTU is
/// in the next word.
const TOO_BIG_V4: u32 = 0x0304_0000_u32.to_be();
const TOO_BIG_V6: u32 = 0x0200_0000_u32.to_be();

/// Turns the packet into a port-unreachable error about itself.
#[inline(always)]
pub fn write_port_unreachable(skb: Skb, packet: &Packet) -> Result<(), HelperError> {
    write_error(skb, packet, &if packet.v4 { PORT_UNREACHABLE_V4 } else { PORT_UNREACHABLE_V6 })
}

/// Turns the packet into an error about itself that says that packets of up to `mtu` bytes fit.
#[inline(always)]
pub fn write_too_big(skb: Skb, packet: &Packet, mtu: u32) -> Result<(), HelperError> {
    let first = if packet.v4 { TOO_BIG_V4 } else { TOO_BIG_V6 };
    write_error(skb, packet, &[first, mtu.to_be()])
}

/// Turns the packet into an ICMP error about itself. `words` is the ICMP header, without checksum.
#[inline(always)]
fn write_error(skb: Skb, packet: &Packet, words: &[u32; 2]) -> Result<(), HelperError> {
    if packet.v4 { write_error_v4(skb, packet, *words) } else { write_error_v6(skb, packet, *words) }
}

#[inline(always)]
fn write_error_v4(skb: Skb, packet: &Packet, mut icmp: [u32; 2]) -> Result<(), HelperError> {
    let mut quoted = [0_u32; ((V4_HEADER_LEN + QUOTED_L4_LEN) / 4) as usize];
    skb.load(skb.ip_offset(), &mut quoted)?;
    let payload = ICMP_HEADER_LEN + V4_HEADER_LEN + QUOTED_L4_LEN;
    skb.resize(skb.ip_offset() + V4_HEADER_LEN + payload)?;
    write_reply_header(skb, packet, ICMP, payload)?;
    let checksum = !checksum::fold(checksum::sum_words(&icmp) + checksum::sum_words(&quoted));
    icmp[0] |= u32::from(u16::from_be(checksum)).to_be();
    skb.store(skb.ip_offset() + V4_HEADER_LEN, &icmp)?;
    skb.store(skb.ip_offset() + V4_HEADER_LEN + ICMP_HEADER_LEN, &quoted)
}

#[inline(always)]
fn write_error_v6(skb: Skb, packet: &Packet, mut icmp: [u32; 2]) -> Result<(), HelperError> {
    let mut quoted = [0_u32; ((V6_HEADER_LEN + QUOTED_L4_LEN) / 4) as usize];
    skb.load(skb.ip_offset(), &mut quoted)?;
    let payload = ICMP_HEADER_LEN + V6_HEADER_LEN + QUOTED_L4_LEN;
    skb.resize(skb.ip_offset() + V6_HEADER_LEN + payload)?;
    write_reply_header(skb, packet, ICMP_V6, payload)?;
    let pseudo = checksum::sum_pseudo_header(&packet.dst, &packet.src, ICMP_V6, payload);
    let checksum = !checksum::fold(pseudo + checksum::sum_words(&icmp) + checksum::sum_words(&quoted));
    icmp[0] |= u32::from(u16::from_be(checksum)).to_be();
    skb.store(skb.ip_offset() + V6_HEADER_LEN, &icmp)?;
    skb.store(skb.ip_offset() + V6_HEADER_LEN + ICMP_HEADER_LEN, &quoted)
}
