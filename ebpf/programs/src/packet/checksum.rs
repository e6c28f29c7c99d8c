//! Internet checksum arithmetic (RFC 1071): sums of words in any byte order, as long as it is the same for all.

use weft_ebpf_common::Addr;

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

/// Of the pseudo header. The prefix of a v4-mapped address sums to zero.
#[inline(always)]
pub fn sum_pseudo_header(src: &Addr, dst: &Addr, proto: u8, len: u32) -> u64 {
    sum_words(&src.words_be) + sum_words(&dst.words_be) + u64::from(u32::from(proto).to_be()) + u64::from(len.to_be())
}

/// Carries folded in; not complemented.
#[inline(always)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u16
}
