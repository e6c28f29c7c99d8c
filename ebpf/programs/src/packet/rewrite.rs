//! Rewriting addresses and ports of a packet, with all checksums that depend on them.
//!
//! `flow` translates packets with [`translate`], and ICMP errors with [`rewrite_address`]; `reply`
//! uses [`swap_addresses`]. All of them leave the packet's `Packet` as it was parsed.

use weft_ebpf_common::{Addr, Flow};

use super::{
    parse::{Packet, fragment, l4_kind},
    skb::{HelperError, Skb},
};

/// Offsets in the IP header, in bytes.
const V4_CHECKSUM: u32 = 10;
const V4_SRC: u32 = 12;
const V4_DST: u32 = 16;
const V6_SRC: u32 = 8;
const V6_DST: u32 = 24;

/// Rewrites addresses and ports to those of the flow. Writes only the fields that differ. Later
/// fragments have no ports, so only their addresses change.
#[inline(always)]
pub fn translate(skb: Skb, packet: &Packet, flow: &Flow) -> Result<(), HelperError> {
    if packet.src != flow.src {
        rewrite_address(skb, packet, true, &packet.src, &flow.src)?;
    }
    if packet.dst != flow.dst {
        rewrite_address(skb, packet, false, &packet.dst, &flow.dst)?;
    }
    if packet.fragment != fragment::LATER {
        if packet.sport_be != flow.sport_be {
            rewrite_port(skb, packet, true, packet.sport_be, flow.sport_be)?;
        }
        if packet.dport_be != flow.dport_be {
            rewrite_port(skb, packet, false, packet.dport_be, flow.dport_be)?;
        }
    }
    Ok(())
}

/// Replaces the source or the destination address in the IP header.
#[inline(always)]
pub fn rewrite_address(skb: Skb, packet: &Packet, is_src: bool, from: &Addr, to: &Addr) -> Result<(), HelperError> {
    if packet.v4 {
        let (from, to) = (from.v4_be(), to.v4_be());
        // The checksum of ICMP over IPv4 does not include the addresses.
        if let Some(at) = packet.checksum_offset()
            && packet.l4_kind == l4_kind::PORTS
        {
            skb.update_l4_checksum_pseudo(at, from, to, packet.is_udp())?;
        }
        skb.update_l3_checksum(skb.ip_offset() + V4_CHECKSUM, from, to, 4)?;
        return skb.store(skb.ip_offset() + if is_src { V4_SRC } else { V4_DST }, &to);
    }
    if let Some(at) = packet.checksum_offset() {
        let udp = packet.is_udp();
        let (from, to) = (&from.words_be, &to.words_be);
        skb.update_l4_checksum_pseudo(at, from[0], to[0], udp)?;
        skb.update_l4_checksum_pseudo(at, from[1], to[1], udp)?;
        skb.update_l4_checksum_pseudo(at, from[2], to[2], udp)?;
        skb.update_l4_checksum_pseudo(at, from[3], to[3], udp)?;
    }
    // A device may have computed a checksum over the whole packet. `update_l4_checksum_pseudo`
    // changed it for the new transport checksum. IPv6 has no header checksum that would balance the
    // new address, so the address must be added here.
    skb.store_with_csum(skb.ip_offset() + if is_src { V6_SRC } else { V6_DST }, &to.words_be)
}

/// Replaces a port, or the identifier of an ICMP echo.
#[inline(always)]
fn rewrite_port(skb: Skb, packet: &Packet, is_src: bool, from: u16, to: u16) -> Result<(), HelperError> {
    let at = match packet.l4_kind {
        l4_kind::PORTS => packet.l4 + if is_src { 0 } else { 2 },
        _ => packet.l4 + 4,
    };
    if let Some(checksum) = packet.checksum_offset() {
        skb.update_l4_checksum(checksum, from, to, packet.is_udp())?;
    }
    skb.store(at, &to)
}

/// Exchanges source and destination address. All checksums stay valid, because the order of words
/// does not change a sum.
#[inline(always)]
pub fn swap_addresses(skb: Skb, packet: &Packet) -> Result<(), HelperError> {
    if packet.v4 {
        skb.store(skb.ip_offset() + V4_SRC, &[packet.dst.v4_be(), packet.src.v4_be()])
    } else {
        skb.store(skb.ip_offset() + V6_SRC, &[packet.dst.words_be, packet.src.words_be])
    }
}
