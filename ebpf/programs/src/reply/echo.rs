//! Echo replies for VIPs and gateways, which no host has.
//!
//! `hooks::task_out` calls this for a task's ping of such an address. Pings of any other address
//! must not be answered here: the host that has it answers.

use weft_ebpf_common::DropReason;

use crate::{
    packet::{
        parse::{ICMP, ICMP_V6, Packet, fragment, l4_kind},
        rewrite, send,
        skb::{HelperError, Skb},
    },
    verdict::{Verdict, drop},
};

/// Whether the packet is an echo request, or a later fragment of an ICMP datagram. Among packets to
/// a VIP or a gateway, such a fragment can only belong to an echo request.
#[inline(always)]
pub fn is_echo_request(packet: &Packet) -> bool {
    packet.l4_kind == l4_kind::ECHO_REQUEST
        || packet.fragment == fragment::LATER && (packet.proto == ICMP || packet.proto == ICMP_V6)
}

/// Turns the request into its reply, and sends it back to the task whose link has the address
/// `mac`.
#[inline(always)]
pub fn answer_echo(skb: Skb, packet: &Packet, mac: &[u8; 6]) -> Verdict {
    match write_echo_reply(skb, packet) {
        Ok(()) => send::back_to_task(skb, mac),
        Err(_) => drop(DropReason::Helper),
    }
}

#[inline(always)]
fn write_echo_reply(skb: Skb, packet: &Packet) -> Result<(), HelperError> {
    // All checksums stay valid, because both addresses are still part of each sum.
    rewrite::swap_addresses(skb, packet)?;
    if packet.fragment == fragment::LATER {
        return Ok(());
    }
    let reply = if packet.v4 { 0_u16 } else { 129 } << 8;
    let request = u16::from(packet.icmp_type) << 8 | u16::from(packet.icmp_code);
    skb.update_l4_checksum(packet.l4 + 2, request.to_be(), reply.to_be(), false)?;
    skb.store(packet.l4, &reply.to_be())
}
