//! Address and port translation, with every checksum that depends on them.

use weft_ebpf_common::{Addr, Flow};

use super::{
    checksum,
    parse::{Packet, V4_LEN, fragment, shape},
    skb::{ETH_LEN, Refused, Skb},
};

const V4_CHECKSUM: u32 = ETH_LEN + 10;
const V4_SRC: u32 = ETH_LEN + 12;
const V4_DST: u32 = ETH_LEN + 16;
const V6_SRC: u32 = ETH_LEN + 8;
const V6_DST: u32 = ETH_LEN + 24;
const TTL: u32 = 64;

/// Makes of the packet what the flow says. Writes only what differs.
#[inline(always)]
pub fn translate(skb: Skb, packet: &Packet, flow: &Flow) -> Result<(), Refused> {
    if packet.src != flow.src {
        address(skb, packet, true, &packet.src, &flow.src)?;
    }
    if packet.dst != flow.dst {
        address(skb, packet, false, &packet.dst, &flow.dst)?;
    }
    if packet.fragment != fragment::LATER {
        if packet.sport_be != flow.sport_be {
            port(skb, packet, true, packet.sport_be, flow.sport_be)?;
        }
        if packet.dport_be != flow.dport_be {
            port(skb, packet, false, packet.dport_be, flow.dport_be)?;
        }
    }
    Ok(())
}

/// Replaces the source or the destination address in the IP header.
#[inline(always)]
pub fn address(skb: Skb, packet: &Packet, is_src: bool, from: &Addr, to: &Addr) -> Result<(), Refused> {
    if packet.v4 {
        let (from, to) = (from.v4_be(), to.v4_be());
        // ICMP over IPv4 does not sum the addresses.
        if let Some(at) = packet.checksum_at()
            && packet.shape == shape::PORTS
        {
            skb.fix_pseudo(at, from, to, packet.is_udp())?;
        }
        skb.fix_l3(V4_CHECKSUM, from, to, 4)?;
        return skb.store(if is_src { V4_SRC } else { V4_DST }, &to);
    }
    if let Some(at) = packet.checksum_at() {
        let udp = packet.is_udp();
        let (from, to) = (&from.words_be, &to.words_be);
        skb.fix_pseudo(at, from[0], to[0], udp)?;
        skb.fix_pseudo(at, from[1], to[1], udp)?;
        skb.fix_pseudo(at, from[2], to[2], udp)?;
        skb.fix_pseudo(at, from[3], to[3], udp)?;
    }
    // IPv6 has no header checksum to balance the change, so a checksum over the whole packet, if a device gave one,
    // gets here back what `fix_pseudo` took from it.
    skb.store_summed(if is_src { V6_SRC } else { V6_DST }, &to.words_be)
}

/// Replaces a port, or the identifier of an echo.
#[inline(always)]
fn port(skb: Skb, packet: &Packet, is_src: bool, from: u16, to: u16) -> Result<(), Refused> {
    let at = match packet.shape {
        shape::PORTS => packet.l4 + if is_src { 0 } else { 2 },
        _ => packet.l4 + 4,
    };
    if let Some(checksum) = packet.checksum_at() {
        skb.fix_l4(checksum, from, to, packet.is_udp())?;
    }
    skb.store(at, &to)
}

/// Exchanges source and destination address. No checksum changes.
#[inline(always)]
pub fn swap_addresses(skb: Skb, packet: &Packet) -> Result<(), Refused> {
    if packet.v4 {
        skb.store(V4_SRC, &[packet.dst.v4_be(), packet.src.v4_be()])
    } else {
        skb.store(V6_SRC, &[packet.dst.words_be, packet.src.words_be])
    }
}

/// Writes the IP header of an answer to the packet.
#[inline(always)]
pub fn reply_header(skb: Skb, packet: &Packet, proto: u8, payload: u32) -> Result<(), Refused> {
    if packet.v4 {
        let mut header = [
            (0x4500_0000 | V4_LEN + payload).to_be(),
            // Do not fragment.
            0x4000_u32.to_be(),
            (TTL << 24 | u32::from(proto) << 16).to_be(),
            packet.dst.v4_be(),
            packet.src.v4_be(),
        ];
        let checksum = !checksum::fold(checksum::words(&header));
        header[2] |= u32::from(u16::from_be(checksum)).to_be();
        return skb.store(ETH_LEN, &header);
    }
    let first = [0x6000_0000_u32.to_be(), (payload << 16 | u32::from(proto) << 8 | TTL).to_be()];
    skb.store(ETH_LEN, &first)?;
    skb.store(ETH_LEN + 8, &[packet.dst.words_be, packet.src.words_be])
}
