//! `names_out`: questions of a task to its resolver, at the egress of `lo` in the task's namespace.
//! The reply comes from the address that was asked.
//!
//! ```text
//! plain question for a known name    -> becomes the reply, with both ends exchanged
//! anything else                      -> pass to the task's own stack, and so to the resolver
//! ```
//!
//! The packet then goes on like any packet on `lo`. The kernel delivers it by the route that it
//! found for the question (`loopback_xmit`, drivers/net/loopback.c, keeps it), which ends in the
//! same namespace, and finds the socket by the exchanged addresses. No check of the receive path
//! for packets from 127.0.0.0/8 applies, because no route is looked up again.
//!
//! The program answers at both addresses that a resolver of weft can have, in each task: it cannot
//! read the cookie of the namespace, which selects the entry of `RESOLVERS`. So a process that asks
//! [`CONTAINER_RESOLVER`] gets a reply also where the resolver listens at [`RESOLVER`].
//!
//! The program works while no daemon runs. It must not change a packet that it does not answer.

use core::ptr::read_volatile;

use aya_ebpf::{
    macros::{classifier, map},
    maps::PerCpuArray,
    programs::TcContext,
};
use weft_ebpf_common::{
    CONTAINER_RESOLVER, DNS_PORT, DropReason, RESOLVER,
    names::{self, DNS_HEADER_OCTETS, NameKey, QUESTION_OCTETS, Question, Records},
};

use crate::{
    counters::count_answer,
    maps::{NAME_SCOPES, NAMES},
    packet::{
        checksum,
        parse::V4_HEADER_LEN,
        skb::{ETH_LEN, HelperError, Skb, random},
    },
    verdict::{PASS, Verdict, drop},
};

const UDP: u32 = 17;
const UDP_HEADER_LEN: u32 = 8;
/// Offset of the question.
const QUESTION: u32 = ETH_LEN + V4_HEADER_LEN + UDP_HEADER_LEN + DNS_HEADER_OCTETS;
/// `ETH_P_IP` (linux/if_ether.h).
const IPV4: u16 = 0x0800_u16.to_be();
/// Version 4 and a header without options (RFC 791, 3.1).
const PLAIN_HEADER: u32 = 0x45;

/// The packet in progress, and the reply.
#[repr(C)]
struct Message {
    headers: Headers,
    question: [u8; QUESTION_OCTETS],
    key: NameKey,
    records: Records,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Headers {
    ip: [u32; 5],
    udp: [u32; 2],
    dns: [u32; 3],
}

/// Only for this program: it does not share the memory of the other hooks, because its packets are
/// sent by processes, not received.
#[map]
static MESSAGE: PerCpuArray<Message> = PerCpuArray::with_max_entries(1, 0);

/// Entry point: a packet that a task sends to itself.
#[classifier]
// A function that is not inlined has a symbol. Its name would contain a hash of the build folder,
// so other folders would build other objects.
#[inline(always)]
pub fn names_out(context: TcContext) -> i32 {
    let skb = Skb::with_ethernet(context.skb.skb);
    // Most packets on `lo` are no questions. These checks read nothing but the context.
    let question_len = skb.ip_len().wrapping_add(ETH_LEN).wrapping_sub(QUESTION);
    if skb.protocol_be() != IPV4 || question_len == 0 || question_len > QUESTION_OCTETS as u32 {
        return PASS;
    }
    let Some(message) = MESSAGE.get_ptr_mut(0) else { return PASS };
    // SAFETY: the memory is per CPU. The kernel sends with softirqs disabled, so no second run of
    // this program begins on this CPU before the first has returned. Every bit pattern is valid.
    let message = unsafe { &mut *message };
    if skb.load(ETH_LEN, &mut message.headers).is_err() || !is_question(skb, &message.headers) {
        return PASS;
    }
    answer(skb, message, question_len)
}

/// Whether this is a whole UDP packet to a resolver of weft.
#[inline(always)]
fn is_question(skb: Skb, headers: &Headers) -> bool {
    const MORE_FRAGMENTS_AND_OFFSET: u32 = 0x3fff;
    let [first, fragment, ttl_and_protocol, _, dst] = headers.ip;
    let [ports, len_and_checksum] = headers.udp;
    (dst == RESOLVER.v4_be() || dst == CONTAINER_RESOLVER.v4_be())
        && u32::from_be(ports) & 0xffff == u32::from(DNS_PORT)
        && u32::from_be(ttl_and_protocol) >> 16 & 0xff == UDP
        && u32::from_be(first) >> 24 == PLAIN_HEADER
        && u32::from_be(first) & 0xffff == skb.ip_len()
        && u32::from_be(fragment) & MORE_FRAGMENTS_AND_OFFSET == 0
        && u32::from_be(len_and_checksum) >> 16 == skb.ip_len() - V4_HEADER_LEN
        && !skb.is_gso()
}

#[inline(always)]
fn answer(skb: Skb, message: &mut Message, question_len: u32) -> Verdict {
    let class = skb.filter_class();
    // SAFETY: the entry is compared with its key after its last use.
    let Some(scope) = (unsafe { NAME_SCOPES.get(&class) }) else { return PASS };
    if skb.load_prefix(QUESTION, &mut message.question, question_len).is_err() {
        return PASS;
    }
    let Message { headers, question, key, records } = message;
    let Some(question) = names::parse(&headers.dns, question, question_len as usize, key) else { return PASS };
    // SAFETY: the entry is compared with its key after its last use.
    let Some(name) = names::find(scope, key, |key| unsafe { NAMES.get(key) }) else { return PASS };
    let records_len = names::write_reply(&question, name, random(), &mut headers.dns, records);
    // The kernel can reuse the memory of an entry that is deleted or replaced meanwhile.
    // SAFETY: both pointers come from references.
    let (check, found_class) = unsafe { (read_volatile(&raw const name.check), read_volatile(&raw const scope.scope)) };
    if check != key.check() || found_class != class {
        return PASS;
    }
    // Until here the packet is unchanged.
    if write(skb, headers, &question, records, records_len).is_err() {
        return drop(DropReason::Helper);
    }
    count_answer();
    PASS
}

/// Turns the packet into the reply.
#[inline(always)]
fn write(
    skb: Skb,
    headers: &mut Headers,
    question: &Question,
    records: &Records,
    records_len: u32,
) -> Result<(), HelperError> {
    let end = QUESTION + question.octets;
    skb.resize(end + records_len)?;
    if records_len != 0 {
        skb.store_prefix(end, records, records_len)?;
    }
    let len = end + records_len - ETH_LEN;
    let [first, _, ttl_and_protocol, src, dst] = headers.ip;
    headers.ip[0] = (u32::from_be(first) & 0xffff_0000 | len).to_be();
    headers.ip[2] = ttl_and_protocol & 0xffff_0000_u32.to_be();
    headers.ip[3] = dst;
    headers.ip[4] = src;
    let checksum = !checksum::fold(checksum::sum_words(&headers.ip));
    headers.ip[2] |= u32::from(u16::from_be(checksum)).to_be();
    let [ports, _] = headers.udp;
    // A checksum of zero means that there is none (RFC 768). The packet does not leave the machine.
    headers.udp = [u32::from_be(ports).rotate_left(16).to_be(), (len - V4_HEADER_LEN << 16).to_be()];
    skb.store(ETH_LEN, headers)
}
