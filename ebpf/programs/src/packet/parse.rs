//! Parsing: from the bytes of a packet to a [`Packet`].
//!
//! Each tc hook calls [`parse()`] once. IPv4 and IPv6 give the same form, so later code mostly does
//! not distinguish them. IPv4 options are skipped. Of the IPv6 extension headers only the fragment
//! header is understood; a packet with another one has no ports that weft knows.

use weft_ebpf_common::{Addr, FlowKey};

use super::skb::{HelperError, Skb};

pub const ETH_P_IP: u16 = 0x0800_u16.to_be();
pub const ETH_P_IPV6: u16 = 0x86dd_u16.to_be();
pub const ETH_P_ARP: u16 = 0x0806_u16.to_be();

pub const V4_HEADER_LEN: u32 = 20;
pub const V6_HEADER_LEN: u32 = 40;

pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const ICMP: u8 = 1;
pub const ICMP_V6: u8 = 58;
const V6_FRAGMENT: u8 = 44;

pub const TCP_FIN: u8 = 1;
pub const TCP_SYN: u8 = 2;
pub const TCP_RST: u8 = 4;
pub const TCP_ACK: u8 = 16;

/// What the transport header of a [`Packet`] is, and so what its two ports mean.
pub mod l4_kind {
    /// TCP or UDP: the ports are its ports.
    pub const PORTS: u8 = 1;
    /// An ICMP echo request: the source port is its identifier, the destination port is zero.
    pub const ECHO_REQUEST: u8 = 2;
    /// An ICMP echo reply: the destination port is its identifier, the source port is zero.
    pub const ECHO_REPLY: u8 = 3;
    /// An ICMP error about another packet. Both ports are zero.
    pub const ICMP_ERROR: u8 = 4;
    /// Anything else. Both ports are zero.
    pub const OTHER: u8 = 5;
}

/// Position of a packet in a fragmented datagram.
pub mod fragment {
    pub const WHOLE: u8 = 0;
    pub const FIRST: u8 = 1;
    pub const LATER: u8 = 2;
}

/// The header fields that weft needs. Plain integers, so that every bit pattern is valid.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Packet {
    pub src: Addr,
    pub dst: Addr,
    /// Offset of the transport header in the packet, in bytes.
    pub l4: u32,
    /// Length of the datagram from there on, in bytes, as the IP header says.
    pub l4_len: u32,
    pub tcp_seq_be: u32,
    pub tcp_ack_be: u32,
    /// Identification of the datagram, to match its fragments.
    pub id_be: u32,
    pub sport_be: u16,
    pub dport_be: u16,
    /// IP protocol number.
    pub proto: u8,
    /// [`l4_kind`].
    pub l4_kind: u8,
    /// [`fragment`].
    pub fragment: u8,
    /// IPv4 if true, else IPv6.
    pub v4: bool,
    pub tcp_flags: u8,
    /// Length of the TCP header, in bytes.
    pub tcp_header_len: u8,
    pub icmp_type: u8,
    pub icmp_code: u8,
}

/// The headers are inconsistent, or the packet ends before them.
pub struct Malformed;

impl From<HelperError> for Malformed {
    fn from(_: HelperError) -> Self {
        Self
    }
}

impl Packet {
    #[inline(always)]
    pub fn is_tcp(&self) -> bool {
        self.proto == TCP
    }

    #[inline(always)]
    pub fn is_udp(&self) -> bool {
        self.proto == UDP
    }

    /// Whether the packet asks for a new TCP connection.
    #[inline(always)]
    pub fn is_syn(&self) -> bool {
        self.proto == TCP && self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
    }

    /// Offset of the transport checksum in the packet, in bytes. `None` if the packet has none: it
    /// is a later fragment, or weft does not know the protocol.
    #[inline(always)]
    pub fn checksum_offset(&self) -> Option<u32> {
        if self.fragment == fragment::LATER {
            return None;
        }
        match self.proto {
            TCP => Some(self.l4 + 16),
            UDP => Some(self.l4 + 6),
            ICMP | ICMP_V6 => Some(self.l4 + 2),
            _ => None,
        }
    }

    /// Writes the flow key of this packet in `zone`.
    #[inline(always)]
    pub fn write_key(&self, zone: u32, key: &mut FlowKey) {
        key.zone = zone;
        key.src = self.src;
        key.dst = self.dst;
        key.sport_be = self.sport_be;
        key.dport_be = self.dport_be;
        key.proto = self.proto;
        key._pad = [0; 3];
    }

    /// Writes the flow key in `zone` of the packets that answer this one.
    #[inline(always)]
    pub fn write_reply_key(&self, zone: u32, key: &mut FlowKey) {
        key.zone = zone;
        key.src = self.dst;
        key.dst = self.src;
        key.sport_be = self.dport_be;
        key.dport_be = self.sport_be;
        key.proto = self.proto;
        key._pad = [0; 3];
    }
}

/// Parses an IPv4 or IPv6 packet. `Ok(false)` if it is neither.
#[inline(always)]
pub fn parse(skb: Skb, packet: &mut Packet) -> Result<bool, Malformed> {
    match skb.protocol_be() {
        ETH_P_IP => parse_v4(skb, packet)?,
        ETH_P_IPV6 => parse_v6(skb, packet)?,
        _ => return Ok(false),
    }
    parse_l4(skb, packet)?;
    Ok(true)
}

#[inline(always)]
fn parse_v4(skb: Skb, packet: &mut Packet) -> Result<(), Malformed> {
    let mut header = [0_u32; 5];
    skb.load(skb.ip_offset(), &mut header)?;
    let first = u32::from_be(header[0]);
    let (version, header_len, total_len) = (first >> 28, (first >> 22) & 0x3c, first & 0xffff);
    if version != 4 || header_len < 20 || total_len < header_len {
        return Err(Malformed);
    }
    let second = u32::from_be(header[1]);
    let (more, offset) = (second & 0x2000 != 0, second & 0x1fff);
    packet.v4 = true;
    packet.id_be = (second >> 16).to_be();
    packet.fragment = match (more, offset) {
        (false, 0) => fragment::WHOLE,
        (true, 0) => fragment::FIRST,
        _ => fragment::LATER,
    };
    packet.proto = (u32::from_be(header[2]) >> 16) as u8;
    packet.src = Addr::from_v4_be(header[3]);
    packet.dst = Addr::from_v4_be(header[4]);
    packet.l4 = skb.ip_offset() + header_len;
    packet.l4_len = total_len - header_len;
    Ok(())
}

#[inline(always)]
fn parse_v6(skb: Skb, packet: &mut Packet) -> Result<(), Malformed> {
    let mut header = [0_u32; 10];
    skb.load(skb.ip_offset(), &mut header)?;
    if u32::from_be(header[0]) >> 28 != 6 {
        return Err(Malformed);
    }
    let second = u32::from_be(header[1]);
    packet.v4 = false;
    packet.fragment = fragment::WHOLE;
    packet.id_be = 0;
    packet.proto = (second >> 8) as u8;
    packet.src = Addr { words_be: [header[2], header[3], header[4], header[5]] };
    packet.dst = Addr { words_be: [header[6], header[7], header[8], header[9]] };
    packet.l4 = skb.ip_offset() + 40;
    packet.l4_len = second >> 16;
    if packet.proto == V6_FRAGMENT {
        let mut extension = [0_u32; 2];
        skb.load(packet.l4, &mut extension)?;
        let first = u32::from_be(extension[0]);
        packet.proto = (first >> 24) as u8;
        packet.id_be = extension[1];
        packet.fragment = match (first & 1 != 0, first & 0xfff8) {
            (false, 0) => fragment::WHOLE,
            (true, 0) => fragment::FIRST,
            _ => fragment::LATER,
        };
        packet.l4 += 8;
        packet.l4_len = packet.l4_len.saturating_sub(8);
    }
    Ok(())
}

#[inline(always)]
fn parse_l4(skb: Skb, packet: &mut Packet) -> Result<(), Malformed> {
    packet.sport_be = 0;
    packet.dport_be = 0;
    packet.tcp_flags = 0;
    packet.icmp_type = 0;
    packet.icmp_code = 0;
    packet.l4_kind = l4_kind::OTHER;
    match packet.proto {
        TCP | UDP if packet.fragment == fragment::LATER => packet.l4_kind = l4_kind::PORTS,
        TCP => {
            // Load the part of the header that every TCP segment has.
            let mut header = [0_u16; 10];
            skb.load(packet.l4, &mut header)?;
            packet.l4_kind = l4_kind::PORTS;
            packet.sport_be = header[0];
            packet.dport_be = header[1];
            packet.tcp_seq_be = u32::from(header[2]) | u32::from(header[3]) << 16;
            packet.tcp_ack_be = u32::from(header[4]) | u32::from(header[5]) << 16;
            let offset_and_flags = u16::from_be(header[6]);
            packet.tcp_flags = offset_and_flags as u8;
            packet.tcp_header_len = ((offset_and_flags >> 12) * 4) as u8;
            if packet.tcp_header_len < 20 {
                return Err(Malformed);
            }
        }
        UDP => {
            let mut header = [0_u16; 4];
            skb.load(packet.l4, &mut header)?;
            packet.l4_kind = l4_kind::PORTS;
            packet.sport_be = header[0];
            packet.dport_be = header[1];
        }
        ICMP | ICMP_V6 if packet.fragment != fragment::LATER && packet.v4 == (packet.proto == ICMP) => {
            let mut header = [0_u16; 4];
            skb.load(packet.l4, &mut header)?;
            let type_and_code = u16::from_be(header[0]);
            packet.icmp_type = (type_and_code >> 8) as u8;
            packet.icmp_code = type_and_code as u8;
            parse_icmp(packet, header[2]);
        }
        _ => {}
    }
    Ok(())
}

/// Sets kind and ports of an ICMP packet from its type (RFC 792, RFC 4443).
#[inline(always)]
pub fn parse_icmp(packet: &mut Packet, identifier_be: u16) {
    packet.l4_kind = match (packet.v4, packet.icmp_type) {
        (true, 8) | (false, 128) => {
            packet.sport_be = identifier_be;
            l4_kind::ECHO_REQUEST
        }
        (true, 0) | (false, 129) => {
            packet.dport_be = identifier_be;
            l4_kind::ECHO_REPLY
        }
        (true, 3 | 11 | 12) | (false, 1..=4) => l4_kind::ICMP_ERROR,
        _ => l4_kind::OTHER,
    };
}
