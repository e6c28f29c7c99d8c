//! Names that the kernel answers: the layout of their maps, and the DNS messages.
//!
//! The program `names_out` and the tests of the user half run the same code here, so that the tests
//! compare the kernel's replies with those of the resolver. All functions are pure: the caller
//! loads the question, looks names up, and sends the reply.
//!
//! Only plain questions are answered: one question of class IN for A or AAAA, with at most an OPT
//! record (RFC 6891). Everything else is left to the resolver, which also knows what is malformed.
//! Replies are the same as the resolver's, octet for octet, except that several addresses can be in
//! another order, and that the name of the question is not repeated (RFC 1035, section 4.1.4).

use core::hint::black_box;

use crate::MAX_NETS_PER_TASK;

/// Octets of the longest name in the map, in the form of messages (RFC 1035, section 3.1): with the
/// length of each label and the final zero.
pub const NAME_OCTETS: usize = 96;
/// Addresses of each family in one entry. The resolver answers names with more.
pub const NAME_ADDRS: usize = 8;
/// Names on all networks that tasks of a node are on. The resolver answers those of networks that
/// do not fit.
pub const NAME_ENTRIES: u32 = 262_144;
/// Octets of a DNS header (RFC 1035, section 4.1.1).
pub const DNS_HEADER_OCTETS: u32 = 12;
/// Octets that the caller must be able to load after the header. The resolver answers longer
/// messages. A power of two.
pub const QUESTION_OCTETS: usize = 128;

const NAME_WORDS: usize = NAME_OCTETS / 8;
/// Labels of the longest name in the map. The name of a task has three, that of a network more.
const MAX_LABELS: usize = 16;
/// The longest label. A larger first octet is a pointer (RFC 1035, section 4.1.4).
const MAX_LABEL_OCTETS: usize = 63;
/// Type and class after the name in a question.
const TYPE_AND_CLASS_OCTETS: usize = 4;
/// Octets of an OPT record without options (RFC 6891, section 6.1.2).
const OPT_OCTETS: usize = 11;
/// Octets of an OPT record with a client cookie (RFC 7873, section 4.1), which dig(1) sends.
const COOKIE_OPT_OCTETS: usize = OPT_OCTETS + 12;
const OPT_COOKIE: u32 = 10;

const TYPE_A: u32 = 1;
const TYPE_AAAA: u32 = 28;
const TYPE_OPT: u32 = 41;
const CLASS_IN: u32 = 1;
/// Octets of a record with an address, and a pointer to the name in the question.
const A_OCTETS: u32 = 16;
const AAAA_OCTETS: u32 = 28;
/// The TTL of weft's answers, in seconds. The resolver has the same one.
const TTL_SECONDS: u32 = 1;
/// The largest message that the resolver accepts, in octets. Its replies say the same.
const MAX_UDP_OCTETS: u32 = 4096;

/// Flags that a plain question can have: recursion desired, authentic data, checking disabled.
const QUESTION_FLAGS: u32 = 0x0130;
/// Flags of a question that are repeated in the reply: recursion desired, checking disabled.
const KEPT_FLAGS: u32 = 0x0110;
/// Flags of a reply: it is a reply, and recursion is available.
const REPLY_FLAGS: u32 = 0x8080;

/// Key of `NAMES`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct NameKey {
    /// The octets of the name as in a message, in lower case, eight in each word, the first one in
    /// the lowest bits. Zero after the end of the name.
    pub name: [u64; NAME_WORDS],
    /// VNI of the network that has the name.
    pub net: u32,
    pub _pad: u32,
}

impl NameKey {
    /// The value of [`Name::check`].
    #[inline(always)]
    pub fn check(&self) -> u32 {
        /// A prime of 64 bits, as FNV-1a uses it.
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let mut hash = u64::from(self.net);
        let mut word = 0;
        while word < NAME_WORDS {
            hash = (hash ^ self.name[word]).wrapping_mul(PRIME);
            hash ^= hash >> 32;
            word += 1;
        }
        hash as u32
    }
}

/// Value of `NAME_SCOPES`: the networks of a task, on which its names are looked up in this order.
/// The key is the class of the program's filter in the task's namespace.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NameScope {
    /// The key. The kernel can reuse the memory of a deleted entry while a program reads it, so the
    /// program compares the key after it has read the rest.
    pub scope: u32,
    /// VNIs. Unused places at the end are zero.
    pub vnis: [u32; MAX_NETS_PER_TASK],
}

/// Value of `NAMES`: the addresses of a name on one network.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Name {
    /// [`NameKey::check`] of the key, for the same reason as [`NameScope::scope`].
    pub check: u32,
    /// [`name_flags`].
    pub flags: u16,
    /// The numbers of addresses that are used.
    pub v4_count: u8,
    pub v6_count: u8,
    pub v4_be: [u32; NAME_ADDRS],
    pub v6_be: [[u32; 4]; NAME_ADDRS],
}

/// Bits of [`Name::flags`].
pub mod name_flags {
    /// The name is complete without the name of its network. Such a name comes before names that
    /// end with the name of their network, on all networks of the task.
    pub const UNQUALIFIED: u16 = 1;
    /// The entry does not have all addresses of the name: the resolver must answer.
    pub const RESOLVER: u16 = 2;
}

/// A family of addresses, and the records that hold them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

/// A plain question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub family: Family,
    /// Octets of the question after the header: the name, its type and its class.
    pub octets: u32,
    /// `Some` if the question has an OPT record: whether it asks for DNSSEC.
    pub edns: Option<bool>,
}

/// The words after the question in a reply: records, and then the OPT record.
pub type Records = [u32; RECORD_WORDS];
/// A power of two, so that an index can be masked.
const RECORD_WORDS: usize = 64;

const _: () = assert!(NAME_ADDRS * AAAA_OCTETS as usize + OPT_OCTETS <= RECORD_WORDS * 4);
const _: () = assert!(NAME_OCTETS + TYPE_AND_CLASS_OCTETS + COOKIE_OPT_OCTETS <= QUESTION_OCTETS);
// Without EDNS a reply has at most 512 octets (RFC 1035, section 4.2.1). No reply needs more.
const _: () = assert!(
    DNS_HEADER_OCTETS as usize + NAME_OCTETS + TYPE_AND_CLASS_OCTETS + NAME_ADDRS * AAAA_OCTETS as usize + OPT_OCTETS
        <= 512
);

/// Reads the header and what follows it, of which `len` octets are valid. Writes the name to `key`.
/// `None` if this is not a plain question.
#[inline(always)]
pub fn parse(header: &[u32; 3], octets: &[u8; QUESTION_OCTETS], len: usize, key: &mut NameKey) -> Option<Question> {
    let flags = u32::from_be(header[0]) & 0xffff;
    let [counts, more_counts] = [u32::from_be(header[1]), u32::from_be(header[2])];
    // One question, no answers, no authorities, and at most one additional record.
    if flags & !QUESTION_FLAGS != 0 || counts != 1 << 16 || more_counts > 1 {
        return None;
    }
    key._pad = name_octets(octets)? as u32;
    // The verifier follows each number of labels separately until it forgets what it knows of the
    // length: when the length is read from memory of a map.
    let name_len = black_box(&*key)._pad as usize;
    let written_len = black_box(&*key)._pad as usize;
    key._pad = 0;
    if name_len > NAME_OCTETS {
        return None;
    }
    let type_and_class = number(octets, name_len, 4);
    let family = match type_and_class {
        A_IN => Family::V4,
        AAAA_IN => Family::V6,
        _ => return None,
    };
    let end = name_len + TYPE_AND_CLASS_OCTETS;
    let edns = if more_counts == 1 {
        Some(dnssec_ok(octets, end, len)?)
    } else if end == len {
        None
    } else {
        return None;
    };
    write_name(octets, written_len, key);
    Some(Question { family, octets: end as u32, edns })
}

const A_IN: u32 = TYPE_A << 16 | CLASS_IN;
const AAAA_IN: u32 = TYPE_AAAA << 16 | CLASS_IN;

/// Octets of the name at the start of `octets`, with the final zero. The octets after those that
/// are valid can have any values, so the caller must compare the result with the valid length.
#[inline(always)]
fn name_octets(octets: &[u8; QUESTION_OCTETS]) -> Option<usize> {
    let mut next = 0;
    let mut labels = 0;
    while labels < MAX_LABELS {
        let label = usize::from(octets[next & (QUESTION_OCTETS - 1)]);
        if label == 0 {
            return Some(next + 1);
        }
        next += label + 1;
        if label > MAX_LABEL_OCTETS || next >= NAME_OCTETS {
            return None;
        }
        labels += 1;
    }
    None
}

/// Whether the OPT record that begins at `start` and ends at `len` asks for DNSSEC. `None` if it is
/// no such record, or has another version or options other than a client cookie.
#[inline(always)]
fn dnssec_ok(octets: &[u8; QUESTION_OCTETS], start: usize, len: usize) -> Option<bool> {
    let is_opt = number(octets, start, 3) == TYPE_OPT;
    // Its TTL: the upper part of a response code, the version, and flags.
    let [code_and_version, flags] = [number(octets, start + 5, 2), number(octets, start + 7, 2)];
    let options_len = number(octets, start + 9, 2);
    let has_cookie = number(octets, start + OPT_OCTETS, 4) == OPT_COOKIE << 16 | 8;
    let is_whole = match options_len {
        0 => len == start + OPT_OCTETS,
        12 => len == start + COOKIE_OPT_OCTETS && has_cookie,
        _ => false,
    };
    (is_opt && is_whole && code_and_version == 0).then_some(flags & 0x8000 != 0)
}

/// The number in `count` octets at `start`.
#[inline(always)]
fn number(octets: &[u8; QUESTION_OCTETS], start: usize, count: usize) -> u32 {
    let mut number = 0;
    let mut i = 0;
    while i < count {
        number = number << 8 | u32::from(octets[(start + i) & (QUESTION_OCTETS - 1)]);
        i += 1;
    }
    number
}

/// Writes the name in lower case, and zeros after it.
#[inline(always)]
fn write_name(octets: &[u8; QUESTION_OCTETS], len: usize, key: &mut NameKey) {
    let mut word = 0;
    while word < NAME_WORDS {
        let mut letters = [0; 8];
        let mut i = 0;
        while i < 8 {
            letters[i] = octets[word * 8 + i];
            i += 1;
        }
        let unused = (word * 8 + 8).saturating_sub(len);
        let mask = if unused >= 8 { 0 } else { u64::MAX >> (unused * 8) };
        key.name[word] = lower_case(u64::from_le_bytes(letters)) & mask;
        word += 1;
    }
}

/// Converts the ASCII letters among eight octets. The length of a label is no letter.
#[inline(always)]
const fn lower_case(octets: u64) -> u64 {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const HIGH: u64 = 0x80 * ONES;
    let low = octets & !HIGH;
    let from_a = low + (0x80 - b'A' as u64) * ONES;
    let after_z = low + (0x80 - b'Z' as u64 - 1) * ONES;
    let is_upper = from_a & !after_z & !octets & HIGH;
    octets | is_upper >> 2
}

/// The key of a name in the form of text, such as `web.front`. `None` if it is too long, or is no
/// name.
///
/// ```
/// use weft_ebpf_common::names::{NAME_OCTETS, key};
///
/// let mut expected = [0; 8];
/// expected[..5].copy_from_slice(b"\x03web\0");
/// assert_eq!(key(4097, "Web").map(|key| key.name[0]), Some(u64::from_le_bytes(expected)));
/// assert_eq!(key(4097, &"a.".repeat(NAME_OCTETS)), None);
/// assert_eq!(key(4097, "a..b"), None);
/// ```
pub fn key(net: u32, name: &str) -> Option<NameKey> {
    let mut octets = [0; QUESTION_OCTETS];
    let mut next = 0;
    for (labels, label) in name.split('.').enumerate() {
        let end = next + 1 + label.len();
        if label.is_empty() || label.len() > MAX_LABEL_OCTETS || end >= NAME_OCTETS || labels == MAX_LABELS - 1 {
            return None;
        }
        octets[next] = label.len() as u8;
        octets[next + 1..end].copy_from_slice(label.as_bytes());
        next = end;
    }
    let mut key = NameKey { net, ..NameKey::default() };
    write_name(&octets, next + 1, &mut key);
    Some(key)
}

/// Finds the addresses of a name on the networks of a task, as the resolver does: on the first
/// network that has the name. Names without the name of a network come first. `None` if the
/// resolver must answer. Leaves the network of the result in `key`.
#[inline(always)]
pub fn find<'a>(
    scope: &NameScope,
    key: &mut NameKey,
    lookup: impl Fn(&NameKey) -> Option<&'a Name>,
) -> Option<&'a Name> {
    let mut found: Option<(&Name, u32)> = None;
    let mut i = 0;
    while i < MAX_NETS_PER_TASK && scope.vnis[i] != 0 {
        key.net = scope.vnis[i];
        if let Some(name) = lookup(key) {
            let is_unqualified = name.flags & name_flags::UNQUALIFIED != 0;
            if is_unqualified || found.is_none() {
                found = Some((name, key.net));
            }
            if is_unqualified {
                break;
            }
        }
        i += 1;
    }
    let (name, net) = found?;
    key.net = net;
    if name.flags & name_flags::RESOLVER == 0 { Some(name) } else { None }
}

/// Writes the records of the reply, beginning with the address that `rotation` selects, and returns
/// their number of octets. Turns the header into that of the reply.
#[inline(always)]
pub fn write_reply(
    question: &Question,
    name: &Name,
    rotation: u32,
    header: &mut [u32; 3],
    records: &mut Records,
) -> u32 {
    let count = match question.family {
        Family::V4 => name.v4_count,
        Family::V6 => name.v6_count,
    };
    let count = if usize::from(count) > NAME_ADDRS { NAME_ADDRS } else { usize::from(count) };
    let mut word = 0;
    let mut push = |value: u32| {
        records[word & (RECORD_WORDS - 1)] = value;
        word += 1;
    };
    let mut i = 0;
    while i < NAME_ADDRS {
        if i < count {
            // Without a branch, of which the verifier would follow both sides for each address. It
            // knows the bounds of the index only from the mask below, which the compiler must not
            // remove.
            let index = black_box(((rotation as usize & 0xffff) + i) % count);
            // A pointer to the name in the question, which follows the header.
            let pointer = 0xc000 | DNS_HEADER_OCTETS;
            match question.family {
                Family::V4 => {
                    push((pointer << 16 | TYPE_A).to_be());
                    push((CLASS_IN << 16).to_be());
                    push((TTL_SECONDS << 16 | 4).to_be());
                    push(name.v4_be[index & (NAME_ADDRS - 1)]);
                }
                Family::V6 => {
                    push((pointer << 16 | TYPE_AAAA).to_be());
                    push((CLASS_IN << 16).to_be());
                    push((TTL_SECONDS << 16 | 16).to_be());
                    let address = &name.v6_be[index & (NAME_ADDRS - 1)];
                    push(address[0]);
                    push(address[1]);
                    push(address[2]);
                    push(address[3]);
                }
            }
        }
        i += 1;
    }
    let octets = match question.family {
        Family::V4 => A_OCTETS,
        Family::V6 => AAAA_OCTETS,
    };
    let mut len = octets * count as u32;
    if let Some(dnssec_ok) = question.edns {
        push((TYPE_OPT << 8 | MAX_UDP_OCTETS >> 8).to_be());
        push(if dnssec_ok { 0x80_u32.to_be() } else { 0 });
        push(0);
        len += OPT_OCTETS as u32;
    }
    let first = u32::from_be(header[0]);
    header[0] = (first & (0xffff_0000 | KEPT_FLAGS) | REPLY_FLAGS).to_be();
    header[1] = (1 << 16 | count as u32).to_be();
    // The number of additional records stays: the reply has an OPT record if the question has one.
    len
}

#[cfg(test)]
mod tests;
