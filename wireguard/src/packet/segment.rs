//! Cuts what was read from the TUN device into packets that are complete: with lengths, sequence
//! numbers and checksums of their own. The outbound worker calls it, once for each read. Pure.
//!
//! A superpacket is one set of headers and the payload of many segments: TCP or UDP, directly or
//! inside of a UDP tunnel such as VXLAN. Each segment is made in place: its headers are written
//! directly before its payload, over the end of the segment before it, which the caller has
//! consumed. So no payload is copied.

use super::{
    checksum::Sum,
    ip::{self, CWR, FIN, IPV4_LEN, IPV6_LEN, PSH, TCP, UDP, UDP_CHECKSUM, UDP_LEN, field},
    vnet::{
        GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GSO_UDP_TUNNEL, NEEDS_CSUM, UDP_TUNNEL_CSUM, VnetHeader,
    },
};

/// The headers of a segment have at most this length: IPv6, UDP, VXLAN, Ethernet with two tags,
/// IPv6 and TCP with options need 200 octets.
const MAX_HEADERS: usize = 256;

/// A superpacket whose headers do not fit its vnet header. The kernel does not write such a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the TUN device returned a packet that does not fit its header")]
pub(crate) struct Malformed;

/// Calls `emit` with each packet, in order.
///
/// # Errors
/// When headers and packet do not fit. Nothing has been emitted then.
pub(crate) fn segment(header: &VnetHeader, packet: &mut [u8], mut emit: impl FnMut(&[u8])) -> Result<(), Malformed> {
    if header.gso_type & !GSO_ECN == GSO_NONE {
        if header.flags & NEEDS_CSUM != 0 {
            complete_checksum(header, packet).ok_or(Malformed)?;
        }
        emit(packet);
        return Ok(());
    }
    let layout = Layout::new(header, packet).ok_or(Malformed)?;
    let (len, size) = (packet.len(), usize::from(header.gso_size));
    let mut template = [0; MAX_HEADERS];
    let template = template.get_mut(..layout.headers).ok_or(Malformed)?;
    template.copy_from_slice(&packet[..layout.headers]);
    let last = (len - layout.headers).div_ceil(size) - 1;
    for index in 0..=last {
        let end = len.min(layout.headers + (index + 1) * size);
        let segment = &mut packet[index * size..end];
        segment[..layout.headers].copy_from_slice(template);
        layout.complete(segment, index, index == last);
        emit(segment);
    }
    Ok(())
}

/// Completes the checksum of a packet that is no superpacket.
fn complete_checksum(header: &VnetHeader, packet: &mut [u8]) -> Option<()> {
    let (start, field) = (usize::from(header.csum_start), usize::from(header.csum_offset));
    let covered = packet.get_mut(start..)?;
    // The field holds the sum of the pseudo-header.
    let sum = Sum::default().bytes(covered);
    let checksum = if field == UDP_CHECKSUM { sum.udp_checksum() } else { sum.checksum() };
    covered.get_mut(field..field + 2)?.copy_from_slice(&checksum);
    Some(())
}

/// Where the headers of a superpacket are, and what all its segments share.
#[derive(Debug, Clone, Copy)]
struct Layout {
    tunnel: Option<Tunnel>,
    network: usize,
    transport: usize,
    protocol: u8,
    /// The length of all headers.
    headers: usize,
    size: usize,
    /// The sum of the pseudo-header, without the length.
    pseudo: Sum,
}

/// The outer headers: a network header at the beginning, and UDP.
#[derive(Debug, Clone, Copy)]
struct Tunnel {
    transport: usize,
    has_checksum: bool,
}

impl Layout {
    fn new(header: &VnetHeader, packet: &[u8]) -> Option<Self> {
        let is_tunnelled = header.gso_type & GSO_UDP_TUNNEL != 0;
        let protocol = match header.gso_type & !(GSO_ECN | GSO_UDP_TUNNEL) {
            GSO_TCPV4 | GSO_TCPV6 => TCP,
            GSO_UDP_L4 => UDP,
            _ => return None,
        };
        let network = if is_tunnelled { usize::from(header.inner_network) } else { 0 };
        let transport = usize::from(header.csum_start);
        let headers = match protocol {
            TCP => transport + ip::tcp_header_len(packet, transport)?,
            _ => transport + UDP_LEN,
        };
        let has_network = |at: usize, end: usize| {
            let len = if packet.get(at)? >> 4 == 6 { IPV6_LEN } else { IPV4_LEN };
            (at + len <= end).then_some(())
        };
        has_network(network, transport)?;
        let tunnel = if is_tunnelled {
            let outer = usize::from(header.outer_transport);
            has_network(0, outer)?;
            if outer + UDP_LEN > network || (transport - outer) % 2 != 0 {
                return None;
            }
            Some(Tunnel { transport: outer, has_checksum: header.flags & UDP_TUNNEL_CSUM != 0 })
        } else {
            None
        };
        let field = transport + usize::from(header.csum_offset);
        let size = usize::from(header.gso_size);
        let needs_checksum = header.flags & NEEDS_CSUM != 0;
        if size == 0 || packet.len() <= headers || field + 2 > headers || !needs_checksum {
            return None;
        }
        let whole = u16::try_from(packet.len() - transport).ok()?;
        let pseudo = Sum::default().bytes(&packet[field..field + 2]).minus_word(whole);
        Some(Self { tunnel, network, transport, protocol, headers, size, pseudo })
    }

    /// Turns the headers of the superpacket into those of the segment with this index.
    fn complete(&self, segment: &mut [u8], index: usize, is_last: bool) {
        let Self { network, transport, .. } = *self;
        let (number, len) = (field(index), field(segment.len() - transport));
        let pseudo = self.pseudo.word(len);
        ip::set_network_len(segment, network, segment.len() - network, number);
        let covered = &mut segment[transport..];
        if self.protocol == TCP {
            let sequence = ip::array(covered, 4).map_or(0, u32::from_be_bytes);
            let offset = u32::try_from(index * self.size).unwrap_or(u32::MAX);
            covered[4..8].copy_from_slice(&sequence.wrapping_add(offset).to_be_bytes());
            if !is_last {
                covered[13] &= !(FIN | PSH);
            }
            if index > 0 {
                covered[13] &= !CWR;
            }
            covered[16..18].fill(0);
            let checksum = pseudo.bytes(covered).checksum();
            covered[16..18].copy_from_slice(&checksum);
        } else {
            covered[4..6].copy_from_slice(&len.to_be_bytes());
            covered[6..8].fill(0);
            let checksum = pseudo.bytes(covered).udp_checksum();
            covered[6..8].copy_from_slice(&checksum);
        }
        if let Some(tunnel) = self.tunnel {
            ip::set_network_len(segment, 0, segment.len(), number);
            let outer = tunnel.transport;
            let outer_len = segment.len() - outer;
            segment[outer + 4..outer + 6].copy_from_slice(&field(outer_len).to_be_bytes());
            if tunnel.has_checksum {
                segment[outer + 6..outer + 8].fill(0);
                // The inner transport with its checksum sums up to the complement of its
                // pseudo-header, so that the payload need not be summed again
                // (Documentation/networking/checksum-offloads.rst, "LCO").
                let sum = ip::pseudo_header(segment, 0, UDP, outer_len);
                let checksum = sum.bytes(&segment[outer..transport]).minus(pseudo).udp_checksum();
                segment[outer + 6..outer + 8].copy_from_slice(&checksum);
            }
        }
    }
}
