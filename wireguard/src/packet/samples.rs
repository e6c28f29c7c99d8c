//! Packets for the tests of `segment` and `coalesce`, and a check of all their lengths and
//! checksums that shares no code with these modules.

use proptest::prelude::*;

use super::{
    coalesce::{Coalescer, Offloads},
    ip::{ACK, PSH},
    segment::segment,
    vnet::VnetHeader,
};

const VXLAN: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 7, 0];
const ALL: Offloads = Offloads { tcp: true, udp_tunnel: Some(0) };

/// A TCP connection, directly or inside of VXLAN.
#[derive(Debug, Clone, Copy)]
struct Connection {
    is_v6: bool,
    tunnel: Option<Outer>,
    port: u16,
    /// The length of the TCP options.
    options: usize,
    /// Whether IPv4 must not be fragmented.
    is_whole: bool,
}

#[derive(Debug, Clone, Copy)]
struct Outer {
    is_v6: bool,
    has_checksum: bool,
}

#[derive(Debug, Clone)]
struct Part {
    sequence: u32,
    id: u16,
    flags: u8,
    payload: Vec<u8>,
}

impl Connection {
    fn packet(&self, part: &Part) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.port.to_be_bytes());
        tcp.extend(80u16.to_be_bytes());
        tcp.extend(part.sequence.to_be_bytes());
        tcp.extend(77u32.to_be_bytes());
        let words = u8::try_from((20 + self.options) / 4).expect("at most 15 words");
        tcp.extend([words << 4, part.flags, 0x12, 0x34, 0, 0, 0, 0]);
        tcp.extend(vec![1; self.options]);
        tcp.extend(&part.payload);
        let packet = network(self.is_v6, 6, part.id, self.is_whole, &tcp, Some(16));
        let Some(outer) = self.tunnel else { return packet };
        let mut udp = Vec::new();
        udp.extend(49_152u16.to_be_bytes());
        udp.extend(4789u16.to_be_bytes());
        let len = u16::try_from(8 + 8 + 14 + packet.len()).expect("a short packet");
        udp.extend(len.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(VXLAN);
        udp.extend([2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        udp.extend(if self.is_v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        udp.extend(packet);
        network(outer.is_v6, 17, part.id, true, &udp, outer.has_checksum.then_some(6))
    }
}

/// An IP packet. The checksum of its payload is at `checksum`.
fn network(is_v6: bool, protocol: u8, id: u16, is_whole: bool, payload: &[u8], checksum: Option<usize>) -> Vec<u8> {
    let len = u16::try_from(payload.len()).expect("a short packet");
    let mut packet = Vec::new();
    if is_v6 {
        packet.extend([0x60, 0, 0, 0]);
        packet.extend(len.to_be_bytes());
        packet.extend([protocol, 64]);
        packet.extend([0xfd; 16]);
        packet.extend([0xfc; 16]);
    } else {
        packet.extend([0x45, 0]);
        packet.extend((len + 20).to_be_bytes());
        packet.extend(id.to_be_bytes());
        packet.extend([if is_whole { 0x40 } else { 0 }, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        let sum = !reference(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    let at = packet.len();
    packet.extend(payload);
    if let Some(field) = checksum {
        let sum = match !transport_sum(&packet, at, protocol) {
            0 if protocol == 17 => 0xffff,
            sum => sum,
        };
        packet[at + field..at + field + 2].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The ones' complement sum, word by word (RFC 1071).
fn reference(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    let sum = bytes.chunks(2).map(word).fold(0, |sum, word| (sum + word) % 0xffff);
    // The two zeros of ones' complement: a sum of anything but zeros is 0xffff.
    if sum == 0 && bytes.iter().any(|octet| *octet != 0) { 0xffff } else { u16::try_from(sum).expect("a remainder") }
}

fn transport_sum(packet: &[u8], at: usize, protocol: u8) -> u16 {
    let mut pseudo = if at == 40 { packet[8..40].to_vec() } else { packet[12..20].to_vec() };
    pseudo.extend([0, protocol]);
    pseudo.extend(u16::try_from(packet.len() - at).expect("a short packet").to_be_bytes());
    pseudo.extend(&packet[at..]);
    reference(&pseudo)
}

/// Checks all lengths and checksums of a packet. Returns the payload of TCP.
fn check_packet(packet: &[u8]) -> &[u8] {
    let word = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let (at, protocol) = if packet[0] == 0x60 {
        assert_eq!(word(4) + 40, packet.len(), "the length of IPv6");
        (40, packet[6])
    } else {
        assert_eq!(word(2), packet.len(), "the length of IPv4");
        assert_eq!(reference(&packet[..20]), 0xffff, "the checksum of IPv4");
        (20, packet[9])
    };
    if protocol == 6 {
        assert_eq!(transport_sum(packet, at, 6), 0xffff, "the checksum of TCP");
        return &packet[at + usize::from(packet[at + 12] >> 4) * 4..];
    }
    assert_eq!(word(at + 4), packet.len() - at, "the length of UDP");
    if word(at + 6) != 0 {
        assert_eq!(transport_sum(packet, at, 17), 0xffff, "the checksum of UDP");
    }
    check_packet(&packet[at + 30..])
}

fn connection() -> impl Strategy<Value = Connection> {
    let outer = (any::<bool>(), any::<bool>()).prop_map(|(is_v6, has_checksum)| Outer { is_v6, has_checksum });
    (any::<bool>(), prop::option::of(outer), 0u16..3, 0usize..4, any::<bool>()).prop_map(
        |(is_v6, tunnel, port, options, is_whole)| Connection { is_v6, tunnel, port, options: options * 4, is_whole },
    )
}

/// Joins packets, and cuts what was joined. Returns the packets, and the number of writes.
fn join_and_cut(packets: &[Vec<u8>], offloads: Offloads) -> (Vec<Vec<u8>>, usize) {
    let mut coalescer = Coalescer::new(offloads);
    let mut arena = Vec::new();
    let mut ranges = Vec::new();
    for packet in packets {
        ranges.push(arena.len()..arena.len() + packet.len());
        arena.extend(packet);
    }
    for range in ranges {
        coalescer.push(&arena, range);
    }
    let (mut cut, mut writes) = (Vec::new(), 0);
    coalescer.finish(&mut arena, |header, slices| {
        writes += 1;
        let mut written = slices.collect::<Vec<_>>().concat();
        let decoded = VnetHeader::decode(&header.encode()).expect("a header");
        segment(&decoded, &mut written, |packet| cut.push(packet.to_vec())).expect("a packet that fits its header");
    });
    assert!(coalescer.is_empty());
    (cut, writes)
}

#[test]
fn the_samples_are_correct() {
    let part = Part { sequence: 1, id: 1, flags: ACK, payload: vec![1, 2, 3] };
    for tunnel in [None, Some(Outer { is_v6: true, has_checksum: true })] {
        for is_v6 in [false, true] {
            let connection = Connection { is_v6, tunnel, port: 1, options: 12, is_whole: true };
            assert_eq!(check_packet(&connection.packet(&part)), [1, 2, 3]);
        }
    }
}

proptest! {
    /// A stream is joined to one superpacket, which is cut into the same packets again.
    #[test]
    fn a_stream_is_joined_and_cut_again(
        connection in connection(),
        size in 1usize..1400,
        full in 1usize..40,
        rest in 0usize..1400,
        sequence: u32,
        id: u16,
        push: bool,
    ) {
        let lengths = (0..full).map(|_| size).chain((rest > 0 && rest < size).then_some(rest)).collect::<Vec<_>>();
        let mut packets = Vec::new();
        for (index, len) in lengths.iter().enumerate() {
            let is_last = index + 1 == lengths.len();
            let number = u16::try_from(index).expect("a small index");
            let offset = u32::try_from(index * size).expect("a short stream");
            packets.push(connection.packet(&Part {
                sequence: sequence.wrapping_add(offset),
                id: id.wrapping_add(number),
                flags: if is_last && push { ACK | PSH } else { ACK },
                payload: (0..*len).map(|at| u8::try_from((at + index) % 251).expect("a remainder")).collect(),
            }));
        }
        let (cut, writes) = join_and_cut(&packets, ALL);
        prop_assert_eq!(writes, 1);
        prop_assert!(cut == packets, "the packets have changed");
        cut.iter().for_each(|packet| { check_packet(packet); });
        let (cut, writes) = join_and_cut(&packets, Offloads::default());
        prop_assert_eq!(writes, packets.len());
        prop_assert!(cut == packets);
    }

    /// Whatever arrives, each connection's packets leave unchanged and in order.
    #[test]
    fn any_packets_stay_the_same_and_in_order(
        parts in prop::collection::vec(
            (connection(), 0u32..6, 0usize..4, prop::sample::select(vec![ACK, ACK, ACK, ACK | PSH, 0x11, 0x02, 0x50]), any::<bool>()),
            0..60,
        ),
    ) {
        // With few sequence numbers and lengths, many packets continue others.
        let packets: Vec<Vec<u8>> = parts.iter().map(|(connection, step, length, flags, damage)| {
            let part = Part { sequence: step * 100, id: u16::try_from(*step).expect("small"), flags: *flags, payload: vec![9; length * 50] };
            let mut packet = connection.packet(&part);
            if *damage {
                // Another hop limit: it must not be joined to others.
                let at = if packet[0] == 0x60 { 7 } else { return packet };
                packet[at] = 3;
            }
            packet
        }).collect();
        let (cut, _) = join_and_cut(&packets, ALL);
        let of = |packets: &[Vec<u8>], key: &[u8]| -> Vec<Vec<u8>> {
            packets.iter().filter(|packet| packet_key(packet) == key).cloned().collect()
        };
        for packet in &packets {
            let key = packet_key(packet);
            prop_assert!(of(&cut, &key) == of(&packets, &key), "a connection has changed");
        }
        prop_assert_eq!(cut.len(), packets.len());
    }

    /// Octets that are no packets are written as they are.
    #[test]
    fn anything_else_is_written_as_it_is(packets in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..80), 0..10)) {
        let (cut, writes) = join_and_cut(&packets, ALL);
        prop_assert_eq!(writes, packets.len());
        prop_assert!(cut == packets);
    }

    /// No header that the kernel could write makes segmentation panic.
    #[test]
    fn segmentation_refuses_headers_that_do_not_fit(header in prop::array::uniform24(any::<u8>()), mut packet in prop::collection::vec(any::<u8>(), 1..300)) {
        let header = VnetHeader::decode(&header).expect("a header");
        let mut emitted = 0;
        let result = segment(&header, &mut packet, |_| emitted += 1);
        prop_assert!(result.is_ok() || emitted == 0);
    }
}

/// What identifies a connection: addresses, ports and the tunnel.
fn packet_key(packet: &[u8]) -> Vec<u8> {
    let (at, protocol) = if packet[0] == 0x60 { (40, packet[6]) } else { (20, packet[9]) };
    if protocol == 17 {
        let mut key = vec![packet[0], packet[at + 6], packet[at + 7]];
        // Whether there is a checksum, not which.
        let has_checksum = u8::from(key[1] != 0 || key[2] != 0);
        key.truncate(1);
        key.push(has_checksum);
        key.extend(packet_key(&packet[at + 30..]));
        return key;
    }
    let mut key = vec![packet[0]];
    key.extend(&packet[at..at + 4]);
    key
}
