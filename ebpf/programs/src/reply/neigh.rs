//! Answers to ARP and neighbour discovery from a task.
//!
//! `hooks::task_out` calls this. Every address except the task's own resolves to `ROUTER_MAC`, so
//! that the task sends all its packets to weft. A question for the task's own address must stay
//! without an answer: it is a probe for a duplicate address (RFC 5227, RFC 4862), and an answer
//! would make the task give up its address. No request leaves the node.

use weft_ebpf_common::{Addr, DropReason, Endpoint, ROUTER_MAC};

use crate::{
    packet::{
        checksum,
        parse::{ICMP_V6, Packet},
        send,
        skb::{ETH_LEN, HelperError, Skb},
    },
    verdict::{Verdict, drop},
};

/// An ARP packet for Ethernet and IPv4 (RFC 826).
#[repr(C)]
#[derive(Clone, Copy)]
struct Arp {
    hardware_be: u16,
    protocol_be: u16,
    lengths_be: u16,
    operation_be: u16,
    sender_mac: [u8; 6],
    sender: [u16; 2],
    target_mac: [u8; 6],
    target: [u16; 2],
}

const ARP_REQUEST: u16 = 1_u16.to_be();
const ARP_REPLY: u16 = 2_u16.to_be();

/// ICMPv6 types of neighbour discovery: solicitations, advertisements and redirects (RFC 4861, 4.1
/// to 4.5).
const NDP_TYPES: core::ops::RangeInclusive<u8> = 133..=137;
const NEIGHBOUR_SOLICITATION: u8 = 135;
/// First word of a neighbour advertisement: its type (RFC 4861, 4.4).
const ADVERTISEMENT: u32 = 136 << 24;
/// Flags of the advertisement: from a router, solicited, overrides cached addresses (RFC 4861,
/// 4.4).
const ROUTER_SOLICITED_OVERRIDE: u32 = 0b111 << 29;
/// Start of the option with the target's link-layer address: type, and length in units of eight
/// bytes (RFC 4861, 4.6.1).
const TARGET_MAC: u32 = 2 << 24 | 1 << 16;
/// Length of the advertisement with the option, in bytes.
const ADVERTISEMENT_LEN: u32 = 32;
/// Receivers drop discovery packets with another hop limit, because a router may have forwarded
/// them (RFC 4861, 7.1).
const HOP_LIMIT: u32 = 255;

/// Answers an ARP request of a task, or drops the packet.
#[inline(always)]
pub fn answer_arp(skb: Skb, endpoint: &Endpoint) -> Verdict {
    let mut arp = Arp {
        hardware_be: 0,
        protocol_be: 0,
        lengths_be: 0,
        operation_be: 0,
        sender_mac: [0; 6],
        sender: [0; 2],
        target_mac: [0; 6],
        target: [0; 2],
    };
    if skb.load(ETH_LEN, &mut arp).is_err() {
        return drop(DropReason::Malformed);
    }
    let word = |halves: [u16; 2]| u32::from(halves[0]) | u32::from(halves[1]) << 16;
    let (sender, target) = (Addr::from_v4_be(word(arp.sender)), Addr::from_v4_be(word(arp.target)));
    if arp.operation_be != ARP_REQUEST || sender.v4_be() == 0 || target == endpoint.v4 {
        return drop(DropReason::NotRouted);
    }
    if sender != endpoint.v4 || arp.sender_mac != endpoint.mac {
        return drop(DropReason::Spoofed);
    }
    let reply = Arp {
        operation_be: ARP_REPLY,
        sender_mac: ROUTER_MAC,
        sender: arp.target,
        target_mac: endpoint.mac,
        target: arp.sender,
        ..arp
    };
    if skb.store(ETH_LEN, &reply).is_err() {
        return drop(DropReason::Helper);
    }
    send::back_to_task(skb, &endpoint.mac)
}

/// Whether the packet is of neighbour discovery.
#[inline(always)]
pub fn is_ndp(packet: &Packet) -> bool {
    packet.proto == ICMP_V6 && NDP_TYPES.contains(&packet.icmp_type)
}

/// Answers a neighbour solicitation of a task, or drops the packet.
#[inline(always)]
pub fn answer_ndp(skb: Skb, packet: &Packet, endpoint: &Endpoint) -> Verdict {
    let sender = &packet.src;
    if packet.icmp_type != NEIGHBOUR_SOLICITATION || sender.is_unspecified() {
        return drop(DropReason::NotRouted);
    }
    if *sender != endpoint.v6 && !sender.is_link_local() {
        return drop(DropReason::Spoofed);
    }
    let mut target = Addr::UNSPECIFIED;
    if skb.load(packet.l4 + 8, &mut target.words_be).is_err() {
        return drop(DropReason::Malformed);
    }
    if target == endpoint.v6 || target == *sender {
        return drop(DropReason::NotRouted);
    }
    match write_advertisement(skb, sender, &target) {
        Ok(()) => send::back_to_task(skb, &endpoint.mac),
        Err(_) => drop(DropReason::Helper),
    }
}

/// Turns the frame into an advertisement to `sender` that `target` has `ROUTER_MAC`.
#[inline(always)]
fn write_advertisement(skb: Skb, sender: &Addr, target: &Addr) -> Result<(), HelperError> {
    let l4 = ETH_LEN + 40;
    skb.resize(l4 + ADVERTISEMENT_LEN)?;
    let first = [0x6000_0000_u32.to_be(), (ADVERTISEMENT_LEN << 16 | u32::from(ICMP_V6) << 8 | HOP_LIMIT).to_be()];
    skb.store(ETH_LEN, &first)?;
    skb.store(ETH_LEN + 8, &[target.words_be, sender.words_be])?;
    let [a, b, c, d, e, f] = ROUTER_MAC;
    let option = [(TARGET_MAC | u32::from(a) << 8 | u32::from(b)).to_be(), u32::from_ne_bytes([c, d, e, f])];
    let mut header = [ADVERTISEMENT.to_be(), ROUTER_SOLICITED_OVERRIDE.to_be()];
    let pseudo = checksum::sum_pseudo_header(target, sender, ICMP_V6, ADVERTISEMENT_LEN);
    let checksum = !checksum::fold(
        pseudo + checksum::sum_words(&header) + checksum::sum_words(&target.words_be) + checksum::sum_words(&option),
    );
    header[0] |= u32::from(u16::from_be(checksum)).to_be();
    skb.store(l4, &header)?;
    skb.store(l4 + 8, &target.words_be)?;
    skb.store(l4 + 24, &option)
}
