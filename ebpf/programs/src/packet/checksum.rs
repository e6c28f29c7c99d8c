//! Internet checksum arithmetic (RFC 1071), for packets that `reply` builds.
//!
//! The sum may be taken over words in any byte order, as long as all words have the same order (RFC
//! 1071, section 2(B)). All words here are in network byte order.

use weft_ebpf_common::Addr;

/// Sums 32-bit words.
#[inline(always)]
pub fn sum_words<const N: usize>(words: &[u32; N]) -> u64 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += u64::from(words[i]);
        i += 1;
    }
    sum
}

/// Sums the pseudo header. This works for v4-mapped addresses too: their prefix `::ffff:` sums to
/// zero in ones' complement arithmetic.
#[inline(always)]
pub fn sum_pseudo_header(src: &Addr, dst: &Addr, proto: u8, len: u32) -> u64 {
    sum_words(&src.words_be) + sum_words(&dst.words_be) + u64::from(u32::from(proto).to_be()) + u64::from(len.to_be())
}

/// Folds a sum to 16 bits. The result is not complemented.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}
