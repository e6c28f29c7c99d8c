//! Refusals that the other end hears: TCP gets a reset, UDP a port-unreachable. Silence would make it wait.

use weft_ebpf_common::{Addr, DropReason};

use crate::{
    drops::drop,
    maps::Scratch,
    packet::{ICMP, ICMP_V6, Packet, TCP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, fragment},
    rewrite::sum,
    send,
    skb::{ETH_LEN, Refused, Skb, Verdict},
};

const V4_LEN: u32 = 20;
const V6_LEN: u32 = 40;
const TCP_LEN: u32 = 20;
/// ICMP header, type and code to the word that errors leave unused (RFC 792, RFC 4443).
const ICMP_LEN: u32 = 8;
/// Transport bytes that an error quotes; more is allowed, none is needed.
const QUOTED: u32 = 8;
const TTL: u32 = 64;

/// Destination unreachable, port unreachable (RFC 792; RFC 4443, 3.1): type and code, and the unused word.
const PORT_UNREACHABLE_V4: [u32; 2] = [0x0303_0000_u32.to_be(), 0];
const PORT_UNREACHABLE_V6: [u32; 2] = [0x0104_0000_u32.to_be(), 0];
/// Fragmentation needed (RFC 1191, 4) and packet too big (RFC 4443, 3.2): the MTU follows.
const TOO_BIG_V4: u32 = 0x0304_0000_u32.to_be();
const TOO_BIG_V6: u32 = 0x0200_0000_u32.to_be();

/// The way back to whoever sent the packet.
#[derive(Clone, Copy)]
pub enum Way {
    /// Out of the link that it came in by: to a neighbour, or into the task.
    Link,
    /// Through the tunnel.
    Node(Addr),
}

/// Counts a packet as dropped, and turns it into the answer that says so.
#[inline(always)]
pub fn packet(skb: Skb, s: &Scratch, way: Way, reason: DropReason) -> Verdict {
    let dropped = drop(reason);
    let packet = &s.packet;
    let header = if packet.v4 { V4_LEN } else { V6_LEN };
    // Options or extensions in the way: rare, and not worth it.
    if packet.fragment != fragment::WHOLE || packet.l4 != ETH_LEN + header {
        return dropped;
    }
    let built = if packet.is_tcp() {
        // Never answer a reset with one.
        if packet.tcp_flags & TCP_RST != 0 {
            return dropped;
        }
        reset(skb, packet)
    } else if packet.is_udp() {
        error(skb, packet, &if packet.v4 { PORT_UNREACHABLE_V4 } else { PORT_UNREACHABLE_V6 })
    } else {
        return dropped;
    };
    if built.is_err() {
        return drop(DropReason::Helper);
    }
    answer(skb, way)
}

/// Counts a packet as too big, and turns it into the answer that says what fits.
#[inline(always)]
pub fn too_big(skb: Skb, packet: &Packet, mtu: u32) -> Verdict {
    let dropped = drop(DropReason::TooBig);
    let header = if packet.v4 { V4_LEN } else { V6_LEN };
    if packet.fragment == fragment::LATER || packet.l4 != ETH_LEN + header {
        return dropped;
    }
    let first = if packet.v4 { TOO_BIG_V4 } else { TOO_BIG_V6 };
    if error(skb, packet, &[first, mtu.to_be()]).is_err() {
        return drop(DropReason::Helper);
    }
    send::back(skb)
}

#[inline(always)]
fn answer(skb: Skb, way: Way) -> Verdict {
    match way {
        Way::Link => send::back(skb),
        Way::Node(node) => send::reply(skb, &node),
    }
}

/// RFC 9293, 3.5.2: a segment with ACK is reset at the number that it acknowledges; one without is acknowledged.
#[inline(always)]
fn reset(skb: Skb, packet: &Packet) -> Result<(), Refused> {
    let partial = is_partial(skb, packet.l4 + 16)?;
    skb.resize(packet.l4 + TCP_LEN)?;
    ip(skb, packet, TCP, TCP_LEN)?;
    let (seq_be, ack_be, flags) = if packet.tcp_flags & TCP_ACK != 0 {
        (packet.tcp_ack_be, 0, TCP_RST)
    } else {
        let counts = u32::from(packet.tcp_flags & TCP_SYN != 0) + u32::from(packet.tcp_flags & TCP_FIN != 0);
        let len = packet.l4_len.wrapping_sub(packet.tcp_len.into()).wrapping_add(counts);
        (0, u32::from_be(packet.tcp_seq_be).wrapping_add(len).to_be(), TCP_RST | TCP_ACK)
    };
    let ports = (u32::from(u16::from_be(packet.dport_be)) << 16 | u32::from(u16::from_be(packet.sport_be))).to_be();
    let mut tcp = [ports, seq_be, ack_be, ((TCP_LEN / 4) << 28 | u32::from(flags) << 16).to_be(), 0];
    let pseudo = sum::pseudo(&packet.dst, &packet.src, TCP, TCP_LEN);
    // Where the checksum is left to the device, the field holds the sum of the pseudo header.
    let checksum = if partial { sum::fold(pseudo) } else { !sum::fold(pseudo + sum::words(&tcp)) };
    tcp[4] = (u32::from(u16::from_be(checksum)) << 16).to_be();
    skb.store(packet.l4, &tcp)
}

/// Whether the transport checksum is left to a device. There is no helper that tells; but in that case the kernel
/// rightly ignores a change in the transport header, so one is pretended.
#[inline(always)]
fn is_partial(skb: Skb, checksum_at: u32) -> Result<bool, Refused> {
    let (mut before, mut after) = (0_u16, 0_u16);
    skb.load(checksum_at, &mut before)?;
    skb.fix_l4(checksum_at, 0, 1, false)?;
    skb.load(checksum_at, &mut after)?;
    Ok(before == after)
}

/// Writes the IP header of an answer to the packet.
#[inline(always)]
fn ip(skb: Skb, packet: &Packet, proto: u8, payload: u32) -> Result<(), Refused> {
    if packet.v4 {
        let mut header = [
            (0x4500_0000 | V4_LEN + payload).to_be(),
            // Do not fragment.
            0x4000_u32.to_be(),
            (TTL << 24 | u32::from(proto) << 16).to_be(),
            packet.dst.v4_be(),
            packet.src.v4_be(),
        ];
        let checksum = !sum::fold(sum::words(&header));
        header[2] |= u32::from(u16::from_be(checksum)).to_be();
        return skb.store(ETH_LEN, &header);
    }
    let first = [0x6000_0000_u32.to_be(), (payload << 16 | u32::from(proto) << 8 | TTL).to_be()];
    skb.store(ETH_LEN, &first)?;
    skb.store(ETH_LEN + 8, &[packet.dst.words_be, packet.src.words_be])
}

/// Turns the packet into an ICMP error about itself, whose header starts with these words.
#[inline(always)]
fn error(skb: Skb, packet: &Packet, words: &[u32; 2]) -> Result<(), Refused> {
    if packet.v4 { error_v4(skb, packet, *words) } else { error_v6(skb, packet, *words) }
}

#[inline(always)]
fn error_v4(skb: Skb, packet: &Packet, mut icmp: [u32; 2]) -> Result<(), Refused> {
    let mut quoted = [0_u32; ((V4_LEN + QUOTED) / 4) as usize];
    skb.load(ETH_LEN, &mut quoted)?;
    let payload = ICMP_LEN + V4_LEN + QUOTED;
    skb.resize(ETH_LEN + V4_LEN + payload)?;
    ip(skb, packet, ICMP, payload)?;
    let checksum = !sum::fold(sum::words(&icmp) + sum::words(&quoted));
    icmp[0] |= u32::from(u16::from_be(checksum)).to_be();
    skb.store(ETH_LEN + V4_LEN, &icmp)?;
    skb.store(ETH_LEN + V4_LEN + ICMP_LEN, &quoted)
}

#[inline(always)]
fn error_v6(skb: Skb, packet: &Packet, mut icmp: [u32; 2]) -> Result<(), Refused> {
    let mut quoted = [0_u32; ((V6_LEN + QUOTED) / 4) as usize];
    skb.load(ETH_LEN, &mut quoted)?;
    let payload = ICMP_LEN + V6_LEN + QUOTED;
    skb.resize(ETH_LEN + V6_LEN + payload)?;
    ip(skb, packet, ICMP_V6, payload)?;
    let pseudo = sum::pseudo(&packet.dst, &packet.src, ICMP_V6, payload);
    let checksum = !sum::fold(pseudo + sum::words(&icmp) + sum::words(&quoted));
    icmp[0] |= u32::from(u16::from_be(checksum)).to_be();
    skb.store(ETH_LEN + V6_LEN, &icmp)?;
    skb.store(ETH_LEN + V6_LEN + ICMP_LEN, &quoted)
}
