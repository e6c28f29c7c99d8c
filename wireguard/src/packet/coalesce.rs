//! Joins consecutive TCP segments of a connection to superpackets, so that the kernel handles many
//! at once. The inbound worker pushes the packets that it decrypted, and writes the groups. Pure.
//!
//! Segments directly inside of the tunnel are joined, and those inside of VXLAN if the TUN device
//! takes superpackets of UDP tunnels. All other packets stay alone.
//!
//! The order of the packets of a connection is kept: groups are written in the order in which they
//! were begun, and a packet is only appended to the last group of its connection.
//!
//! The checksums of a joined packet are not verified, as in the kernel's WireGuard
//! (drivers/net/wireguard/receive.c): the packet was authenticated, so the tunnel has not changed
//! it.

use std::ops::Range;

use super::{
    ip::{self, ACK, IPV4_LEN, Network, PSH, TCP, TCP_CHECKSUM, UDP, UDP_LEN, field},
    vnet::{GSO_TCPV4, GSO_TCPV6, GSO_UDP_TUNNEL_IPV4, GSO_UDP_TUNNEL_IPV6, NEEDS_CSUM, UDP_TUNNEL_CSUM, VnetHeader},
};

/// The UDP port of VXLAN (RFC 7348, section 5).
const VXLAN_PORT: u16 = 4789;
/// The headers of VXLAN and Ethernet.
const VXLAN_AND_ETHERNET: usize = 8 + 14;
/// The flags of a VXLAN header with a VNI and without extensions.
const VXLAN_FLAGS: [u8; 4] = [0x08, 0, 0, 0];
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// The length of a superpacket is in a field of 16 bits.
const MAX_LEN: usize = u16::MAX as usize;
/// How many segments a superpacket may have: more than fit with the usual MTU, and few enough for
/// one `writev` (UIO_MAXIOV is 1024).
pub(crate) const MAX_SEGMENTS: usize = 128;
/// How many connections are remembered at the same time: a power of two. Two with the same place
/// are not joined, which costs time only.
const PLACES: usize = 64;
const NONE: u32 = u32::MAX;

/// What the TUN device takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Offloads {
    /// Superpackets of TCP.
    pub(crate) tcp: bool,
    /// Superpackets of TCP inside of a UDP tunnel, if it takes them: what it wants added to the
    /// offset of the outer UDP header.
    pub(crate) udp_tunnel: Option<u16>,
}

/// Where the headers of a TCP segment are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Segment {
    /// Where the outer UDP header begins, if there is a tunnel.
    outer_transport: Option<usize>,
    network: usize,
    transport: usize,
    /// The length of all headers.
    headers: usize,
    payload: usize,
    sequence: u32,
    flags: u8,
    /// The same for all segments of a connection.
    hash: u32,
}

impl Segment {
    fn parse(packet: &[u8], offloads: Offloads) -> Option<Self> {
        let outer = Network::parse(packet)?;
        match outer.protocol {
            TCP if offloads.tcp => Self::parse_tcp(packet, None, 0, outer),
            UDP if offloads.udp_tunnel.is_some() => {
                let transport = outer.header_len;
                let udp_len = usize::from(ip::word(packet, transport + 4)?);
                let vxlan = transport + UDP_LEN;
                let network = vxlan + VXLAN_AND_ETHERNET;
                let is_vxlan = ip::word(packet, transport + 2)? == VXLAN_PORT
                    && udp_len == packet.len() - transport
                    && ip::array(packet, vxlan)? == VXLAN_FLAGS;
                let inner = Network::parse(packet.get(network..)?)?;
                let ethertype = if inner.is_v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
                let is_whole = outer.total_len == packet.len();
                if !is_vxlan || !is_whole || ip::word(packet, network - 2)? != ethertype || inner.protocol != TCP {
                    return None;
                }
                Self::parse_tcp(packet, Some(transport), network, inner)
            }
            _ => None,
        }
    }

    fn parse_tcp(packet: &[u8], outer_transport: Option<usize>, network: usize, parsed: Network) -> Option<Self> {
        let transport = network + parsed.header_len;
        let headers = transport + ip::tcp_header_len(packet, transport)?;
        if network + parsed.total_len != packet.len() {
            return None;
        }
        let ports = ip::array(packet, transport).map(u32::from_ne_bytes)?;
        let source = ip::array(packet, network + parsed.header_len - 8).map(u32::from_ne_bytes)?;
        let destination = ip::array(packet, network + parsed.header_len - 4).map(u32::from_ne_bytes)?;
        Some(Self {
            outer_transport,
            network,
            transport,
            headers,
            payload: packet.len() - headers,
            sequence: ip::array(packet, transport + 4).map(u32::from_be_bytes)?,
            flags: *packet.get(transport + 13)?,
            hash: (ports ^ source.rotate_left(7) ^ destination.rotate_left(13)).wrapping_mul(0x9e37_79b1),
        })
    }

    fn place(&self) -> usize {
        // The upper bits of the product are mixed best.
        usize::try_from(self.hash >> 16).unwrap_or(0) % PLACES
    }

    /// Whether a superpacket may have such a segment: data, and no flag that has an effect.
    fn is_data(&self) -> bool {
        self.payload > 0 && self.flags & !PSH == ACK
    }

    /// Whether the headers of two packets differ only in fields that segmentation sets.
    fn has_same_headers(&self, a: &[u8], other: &Self, b: &[u8]) -> bool {
        let same_places = (self.outer_transport, self.network, self.transport, self.headers)
            == (other.outer_transport, other.network, other.transport, other.headers);
        if !same_places {
            return false;
        }
        let same = |range: Range<usize>| a[range.clone()] == b[range];
        let same_network = |at: usize| {
            if a[at] >> 4 == 6 {
                // All except the length.
                same(at..at + 4) && same(at + 6..at + 40)
            } else {
                // All except length, identification and checksum.
                same(at..at + 2) && same(at + 6..at + 10) && same(at + 12..at + IPV4_LEN)
            }
        };
        let same_tunnel = self.outer_transport.is_none_or(|udp| {
            let has_checksum = |packet: &[u8]| packet[udp + 6..udp + 8] != [0, 0];
            // All except length and checksum.
            same_network(0)
                && same(udp..udp + 4)
                && has_checksum(a) == has_checksum(b)
                && same(udp + UDP_LEN..self.network)
        });
        let tcp = self.transport;
        // The sequence number, PSH and the checksum may differ.
        same_tunnel
            && same_network(self.network)
            && same(tcp..tcp + 4)
            && same(tcp + 8..tcp + 13)
            && same(tcp + 14..tcp + 16)
            && same(tcp + 18..self.headers)
    }
}

/// The octets of a slice of the arena.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    end: usize,
    /// The next piece of the same group.
    next: u32,
}

/// One or more packets that are written together.
#[derive(Debug, Clone, Copy)]
struct Group {
    /// The first packet. The headers of the group are its headers.
    first: Piece,
    /// `None` for packets that are never joined.
    segment: Option<Segment>,
    /// Whether a segment may be appended.
    is_open: bool,
    /// The index of the last piece, or `NONE` if the first packet is the only one.
    last: u32,
    segments: usize,
    /// The length of the whole superpacket.
    len: usize,
    push: bool,
}

/// The packets of one batch, in groups. It is used again for each batch, so that it allocates
/// nothing once it has its size.
#[derive(Debug)]
pub(crate) struct Coalescer {
    offloads: Offloads,
    groups: Vec<Group>,
    pieces: Vec<Piece>,
    /// The last group of each place, or `NONE`.
    places: [u32; PLACES],
}

impl Coalescer {
    pub(crate) fn new(offloads: Offloads) -> Self {
        Self { offloads, groups: Vec::new(), pieces: Vec::new(), places: [NONE; PLACES] }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// Adds the packet that is at `range` of the arena.
    pub(crate) fn push(&mut self, arena: &[u8], range: Range<usize>) {
        let packet = &arena[range.clone()];
        let piece = Piece { start: range.start, end: range.end, next: NONE };
        let Some(segment) = Segment::parse(packet, self.offloads) else {
            self.groups.push(Group {
                first: piece,
                segment: None,
                is_open: false,
                last: NONE,
                segments: 1,
                len: packet.len(),
                push: false,
            });
            return;
        };
        let place = segment.place();
        let candidate = usize::try_from(self.places[place]).ok().filter(|_| self.places[place] != NONE);
        if let Some(index) = candidate
            && self.can_append(arena, index, packet, &segment)
        {
            self.append(index, piece, &segment);
            return;
        }
        self.places[place] = index_of(self.groups.len());
        self.groups.push(Group {
            first: piece,
            segment: Some(segment),
            is_open: segment.is_data() && segment.flags & PSH == 0,
            last: NONE,
            segments: 1,
            len: packet.len(),
            push: segment.flags & PSH != 0,
        });
    }

    fn can_append(&self, arena: &[u8], index: usize, packet: &[u8], segment: &Segment) -> bool {
        let group = &self.groups[index];
        let Some(first) = group.segment.filter(|_| group.is_open) else { return false };
        let appended = group.len - first.headers;
        let next = first.sequence.wrapping_add(u32::try_from(appended).unwrap_or(u32::MAX));
        let headers = &arena[group.first.start..group.first.end];
        let has_next_id = |at: usize| {
            // Identifications of packets that must not be fragmented have no meaning (RFC 6864,
            // section 4.1).
            let id = |packet: &[u8]| ip::word(packet, at + 4).unwrap_or(0);
            let number = field(group.segments);
            packet[at] >> 4 == 6 || packet[at + 6] & 0x40 != 0 || id(packet) == id(headers).wrapping_add(number)
        };
        segment.is_data()
            && segment.sequence == next
            && segment.payload <= first.payload
            && group.len + segment.payload <= MAX_LEN
            && group.segments < MAX_SEGMENTS
            && first.has_same_headers(headers, segment, packet)
            && has_next_id(first.network)
            && (first.outer_transport.is_none() || has_next_id(0))
    }

    fn append(&mut self, index: usize, piece: Piece, segment: &Segment) {
        let added = index_of(self.pieces.len());
        self.pieces.push(Piece { start: piece.start + segment.headers, ..piece });
        let group = &mut self.groups[index];
        if group.last == NONE {
            group.first.next = added;
        } else if let Ok(last) = usize::try_from(group.last) {
            self.pieces[last].next = added;
        }
        group.last = added;
        group.segments += 1;
        group.len += segment.payload;
        group.push = segment.flags & PSH != 0;
        let is_shorter = group.segment.is_some_and(|first| segment.payload < first.payload);
        group.is_open = !is_shorter && !group.push;
    }

    /// Completes the headers of all groups in the arena, and calls `write` with the vnet header and
    /// the slices of each, in order. Forgets the packets.
    pub(crate) fn finish(&mut self, arena: &mut [u8], mut write: impl FnMut(&VnetHeader, Slices<'_>)) {
        for group in &self.groups {
            let headers = &mut arena[group.first.start..group.first.end];
            let vnet =
                group.segment.map_or_else(VnetHeader::default, |first| complete(&first, group, headers, self.offloads));
            write(&vnet, Slices { arena, pieces: &self.pieces, next: Some(group.first) });
        }
        self.groups.clear();
        self.pieces.clear();
        self.places = [NONE; PLACES];
    }
}

fn index_of(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(NONE)
}

/// Turns the headers of the first packet of a group into those of the group.
fn complete(first: &Segment, group: &Group, packet: &mut [u8], offloads: Offloads) -> VnetHeader {
    let Segment { network, transport, .. } = *first;
    let mut vnet = VnetHeader {
        flags: NEEDS_CSUM,
        header_len: field(first.headers),
        csum_start: field(transport),
        csum_offset: field(TCP_CHECKSUM),
        ..VnetHeader::default()
    };
    let pseudo = ip::pseudo_header(packet, network, TCP, group.len - transport).partial();
    packet[transport + TCP_CHECKSUM..transport + TCP_CHECKSUM + 2].copy_from_slice(&pseudo);
    if group.segments == 1 {
        return vnet;
    }
    let is_v6 = packet[network] >> 4 == 6;
    vnet.gso_type = if is_v6 { GSO_TCPV6 } else { GSO_TCPV4 };
    vnet.gso_size = field(first.payload);
    if group.push {
        packet[transport + 13] |= PSH;
    }
    ip::set_network_len(packet, network, group.len - network, 0);
    if let Some(udp) = first.outer_transport {
        let outer_is_v6 = packet[0] >> 4 == 6;
        vnet.gso_type |= if outer_is_v6 { GSO_UDP_TUNNEL_IPV6 } else { GSO_UDP_TUNNEL_IPV4 };
        vnet.outer_transport = field(udp) + offloads.udp_tunnel.unwrap_or(0);
        vnet.inner_network = field(network);
        ip::set_network_len(packet, 0, group.len, 0);
        let udp_len = group.len - udp;
        packet[udp + 4..udp + 6].copy_from_slice(&field(udp_len).to_be_bytes());
        if packet[udp + 6..udp + 8] != [0, 0] {
            vnet.flags |= UDP_TUNNEL_CSUM;
            let pseudo = ip::pseudo_header(packet, 0, UDP, udp_len).partial();
            packet[udp + 6..udp + 8].copy_from_slice(&pseudo);
        }
    }
    vnet
}

/// The slices of a group: the first packet, and the payloads of the others.
#[derive(Debug)]
pub(crate) struct Slices<'a> {
    arena: &'a [u8],
    pieces: &'a [Piece],
    next: Option<Piece>,
}

impl<'a> Iterator for Slices<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let piece = self.next?;
        self.next = usize::try_from(piece.next).ok().and_then(|index| self.pieces.get(index)).copied();
        Some(&self.arena[piece.start..piece.end])
    }
}
