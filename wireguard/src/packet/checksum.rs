//! The Internet checksum (RFC 1071). Segmentation and coalescing call it. Pure.
//!
//! A sum is kept in the byte order of the machine: the ones' complement sum of byte-swapped words
//! is the byte-swapped sum (RFC 1071, section 2 (B)). So no word has to be swapped.

/// An unfinished ones' complement sum.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sum(u64);

/// How many octets are added at once. The compiler turns the loop over the lanes into vector
/// instructions.
const BLOCK: usize = 32;
const LANES: usize = BLOCK / 4;

impl Sum {
    /// Adds octets. They must begin at an even offset of the packet, or at the end of an even
    /// number of octets.
    #[must_use]
    pub(crate) fn bytes(self, bytes: &[u8]) -> Self {
        let mut lanes = [0u64; LANES];
        let (blocks, rest) = bytes.as_chunks::<BLOCK>();
        for block in blocks {
            let (words, _) = block.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                *lane += u64::from(u32::from_ne_bytes(*word));
            }
        }
        let (pairs, last) = rest.as_chunks::<2>();
        let mut sum = self.0 + lanes.iter().sum::<u64>();
        sum += pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair))).sum::<u64>();
        if let [last] = last {
            sum += u64::from(u16::from_ne_bytes([*last, 0]));
        }
        Self(sum)
    }

    /// Adds a number as a big-endian word.
    #[must_use]
    pub(crate) fn word(self, value: u16) -> Self {
        Self(self.0 + u64::from(value.to_be()))
    }

    /// Subtracts a number as a big-endian word: adds its complement.
    #[must_use]
    pub(crate) fn minus_word(self, value: u16) -> Self {
        Self(self.0 + u64::from(!value.to_be()))
    }

    /// Subtracts another sum: adds its complement.
    #[must_use]
    pub(crate) fn minus(self, other: Self) -> Self {
        Self(self.0 + u64::from(!other.fold()))
    }

    fn fold(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap_or(u16::MAX)
    }

    /// The sum, not complemented: what the checksum field of an unfinished packet holds.
    pub(crate) fn partial(self) -> [u8; 2] {
        self.fold().to_ne_bytes()
    }

    /// The checksum: the complement of the sum.
    pub(crate) fn checksum(self) -> [u8; 2] {
        (!self.fold()).to_ne_bytes()
    }

    /// The checksum of UDP, in which zero means that there is none (RFC 768).
    pub(crate) fn udp_checksum(self) -> [u8; 2] {
        match self.checksum() {
            [0, 0] => [0xff, 0xff],
            checksum => checksum,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 word by word.
    fn reference(bytes: &[u8]) -> [u8; 2] {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        (!u16::try_from(sum).expect("folded")).to_be_bytes()
    }

    #[test]
    fn the_example_of_rfc_1071_has_its_sum() {
        let sum = Sum::default().bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), [0xdd, 0xf2]);
    }

    proptest! {
        #[test]
        fn the_fast_sum_is_the_sum_of_words(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
            prop_assert_eq!(Sum::default().bytes(&bytes).checksum(), reference(&bytes));
        }

        #[test]
        fn what_was_added_can_be_subtracted(bytes in prop::collection::vec(any::<u8>(), 2..100), word: u16) {
            let sum = Sum::default().bytes(&bytes);
            let same = |a: Sum, b: Sum| {
                let number = |sum: Sum| u16::from_ne_bytes(sum.partial()) % 0xffff;
                number(a) == number(b)
            };
            prop_assert!(same(sum.word(word).minus_word(word), sum));
            prop_assert!(same(sum.bytes(&bytes).minus(sum), sum));
        }
    }
}
