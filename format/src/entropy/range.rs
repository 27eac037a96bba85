//! The range coder: carry-propagating, 32-bit range, one byte of renormalisation at a time.
//!
//! After G. N. N. Martin, "Range encoding" (1979), in the arrangement of LZMA: the range is divided by a power of
//! two before it is multiplied, so both sides need no more than 32-bit products. The encoder resolves a carry in
//! the bytes it has already written, which keeps the decoder free of any trace of it.

use super::EntropyError;

/// Renormalise while the range is below this: at least 24 bits of it are always in use.
const RENORMALISE_BELOW: u32 = 1 << 24;

/// Most bits that one call may resolve; keeps `range >> bits` at 256 or more.
const MAX_BITS: u32 = 16;

/// Bytes that a decoder may read (as zeros) past the end of complete data.
///
/// Four are the decoder's lookahead, four more are zero bytes that the encoder may drop from the end.
pub const MAX_OVERRUN: usize = 8;

/// Writes intervals of a probability scale as bytes.
#[derive(Debug, Clone)]
pub struct RangeEncoder {
    low: u32,
    range: u32,
    output: Vec<u8>,
}

impl Default for RangeEncoder {
    fn default() -> Self {
        Self::new()
    }
}

impl RangeEncoder {
    /// An encoder without output.
    #[must_use]
    pub fn new() -> Self {
        Self { low: 0, range: u32::MAX, output: Vec::new() }
    }

    /// Encodes the interval `cumulative .. cumulative + frequency` of `0 .. 2^total_bits`.
    ///
    /// `frequency` is at least 1, the interval lies inside the scale, `total_bits` is at most 16.
    #[inline]
    pub fn encode(&mut self, cumulative: u32, frequency: u32, total_bits: u32) {
        debug_assert!(total_bits <= MAX_BITS && frequency >= 1);
        debug_assert!(cumulative + frequency <= 1 << total_bits);
        self.range >>= total_bits;
        self.add(cumulative * self.range);
        self.range *= frequency;
        self.renormalise();
    }

    /// Encodes one bit; `probability` is that of a 1, in 1/65536, between 1 and 65535.
    #[inline]
    pub fn encode_bit(&mut self, probability: u32, bit: bool) {
        debug_assert!((1..=65535).contains(&probability));
        let bound = (self.range >> 16) * probability;
        if bit {
            self.range = bound;
        } else {
            self.add(bound);
            self.range -= bound;
        }
        self.renormalise();
    }

    /// Encodes the low `bits` (at most 32) bits of `value` as they are.
    pub fn encode_bypass(&mut self, value: u32, bits: u32) {
        debug_assert!(bits <= 32);
        if bits > MAX_BITS {
            self.encode((value >> MAX_BITS) & ((1 << (bits - MAX_BITS)) - 1), 1, bits - MAX_BITS);
        }
        let low_bits = bits.min(MAX_BITS);
        self.encode(value & ((1 << low_bits) - 1), 1, low_bits);
    }

    /// Bytes that are certain so far; what [`finish`](Self::finish) returns is at most 4 longer.
    #[must_use]
    pub fn len(&self) -> usize {
        self.output.len()
    }

    /// Whether no byte is certain yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.output.is_empty()
    }

    /// Ends the data with as few bytes as a decoder needs that reads zeros after them.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        let end = u64::from(self.low) + u64::from(self.range);
        for bytes in 0..=4u32 {
            let mask = (1u64 << (32 - 8 * bytes)) - 1;
            let value = (u64::from(self.low) + mask) & !mask;
            if value < end {
                if value > u64::from(u32::MAX) {
                    self.carry();
                }
                for byte in 0..bytes {
                    self.output.push((value >> (24 - 8 * byte)) as u8);
                }
                break;
            }
        }
        for _ in 0..MAX_OVERRUN - 4 {
            if self.output.last() == Some(&0) {
                self.output.pop();
            }
        }
        self.output
    }

    #[inline]
    fn add(&mut self, offset: u32) {
        let (low, carry) = self.low.overflowing_add(offset);
        self.low = low;
        if carry {
            self.carry();
        }
    }

    /// Adds one to the bytes already written. The first byte never overflows: the interval starts inside [0, 1).
    #[cold]
    fn carry(&mut self) {
        for byte in self.output.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                return;
            }
        }
    }

    #[inline]
    fn renormalise(&mut self) {
        // A range of 0 is a caller's error (an empty interval); without the maximum it would never end.
        self.range = self.range.max(1);
        while self.range < RENORMALISE_BELOW {
            self.output.push((self.low >> 24) as u8);
            self.low <<= 8;
            self.range <<= 8;
        }
    }
}

/// Reads back what a [`RangeEncoder`] wrote, with the same sequence of scales.
///
/// On damaged data every function still returns, with symbols that mean nothing; [`finish`](Self::finish) finds cuts.
#[derive(Debug, Clone)]
pub struct RangeDecoder<'a> {
    /// Distance of the coded value from the low end of the interval.
    code: u32,
    range: u32,
    input: &'a [u8],
    /// Bytes read, those past the end included.
    position: usize,
    corrupt: bool,
}

impl<'a> RangeDecoder<'a> {
    /// A decoder at the start of `input`.
    #[must_use]
    pub fn new(input: &'a [u8]) -> Self {
        let mut decoder = Self { code: 0, range: u32::MAX, input, position: 0, corrupt: false };
        for _ in 0..4 {
            decoder.code = decoder.code << 8 | decoder.next_byte();
        }
        decoder
    }

    /// The value in `0 .. 2^total_bits` that lies in the encoded interval; [`consume`](Self::consume) must follow.
    #[inline]
    #[must_use]
    pub fn decode_cumulative(&mut self, total_bits: u32) -> u32 {
        debug_assert!(total_bits <= MAX_BITS);
        self.range >>= total_bits;
        // Only damaged data reaches the remainder of the division of the range.
        (self.code / self.range).min((1 << total_bits) - 1)
    }

    /// Takes the interval found with [`decode_cumulative`](Self::decode_cumulative).
    #[inline]
    pub fn consume(&mut self, cumulative: u32, frequency: u32) {
        self.code = self.code.wrapping_sub(cumulative.wrapping_mul(self.range));
        self.range = self.range.wrapping_mul(frequency);
        self.renormalise();
    }

    /// Takes an interval of `0 .. 2^total_bits`, as with [`decode_cumulative`](Self::decode_cumulative) and
    /// [`consume`](Self::consume), if it is the one that is encoded; the last one of the scale never is.
    #[inline]
    pub(super) fn try_consume(&mut self, cumulative: u32, frequency: u32, total_bits: u32) -> bool {
        let unit = self.range >> total_bits;
        let (code, range) = (self.code.wrapping_sub(cumulative * unit), frequency * unit);
        let found = code < range;
        if found {
            (self.code, self.range) = (code, range);
            self.renormalise();
        }
        found
    }

    /// Decodes one bit; `probability` as in [`RangeEncoder::encode_bit`].
    #[inline]
    #[must_use]
    pub fn decode_bit(&mut self, probability: u32) -> bool {
        debug_assert!((1..=65535).contains(&probability));
        let bound = (self.range >> 16) * probability;
        let bit = self.code < bound;
        if bit {
            self.range = bound;
        } else {
            self.code -= bound;
            self.range -= bound;
        }
        self.renormalise();
        bit
    }

    /// Decodes `bits` (at most 32) bits that were encoded as they are.
    #[must_use]
    pub fn decode_bypass(&mut self, bits: u32) -> u32 {
        debug_assert!(bits <= 32);
        let mut value = 0;
        if bits > MAX_BITS {
            value = self.decode_cumulative(bits - MAX_BITS);
            self.consume(value, 1);
        }
        let low_bits = bits.min(MAX_BITS);
        let low = self.decode_cumulative(low_bits);
        self.consume(low, 1);
        value << low_bits | low
    }

    /// Bytes read past the end so far.
    #[must_use]
    pub fn overrun(&self) -> usize {
        self.position.saturating_sub(self.input.len())
    }

    /// Whether more was read than any complete data allows: what was decoded last is not what was encoded.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.overrun() > MAX_OVERRUN
    }

    /// Checks, after the last symbol, that the data was neither cut, nor too long, nor impossible.
    ///
    /// # Errors
    ///
    /// [`EntropyError::Overrun`], [`EntropyError::Trailing`] or [`EntropyError::Corrupt`].
    pub fn finish(self) -> Result<(), EntropyError> {
        if self.corrupt {
            return Err(EntropyError::Corrupt);
        }
        if self.is_exhausted() {
            return Err(EntropyError::Overrun { missing: self.overrun() - MAX_OVERRUN });
        }
        if self.position < self.input.len() {
            return Err(EntropyError::Trailing { unused: self.input.len() - self.position });
        }
        Ok(())
    }

    /// Remembers that a model above saw something no encoder writes.
    #[cold]
    pub(super) fn mark_corrupt(&mut self) {
        self.corrupt = true;
    }

    #[inline]
    fn next_byte(&mut self) -> u32 {
        let byte = self.input.get(self.position).copied().unwrap_or(0);
        self.position += 1;
        u32::from(byte)
    }

    #[inline]
    fn renormalise(&mut self) {
        while self.range < RENORMALISE_BELOW {
            self.code = self.code << 8 | self.next_byte();
            // Damaged data can make it 0, and of that it would never grow.
            self.range = self.range.max(1) << 8;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone)]
    enum Call {
        Interval { cumulative: u32, frequency: u32, total_bits: u32 },
        Bit { probability: u32, bit: bool },
        Bypass { value: u32, bits: u32 },
    }

    fn call() -> impl Strategy<Value = Call> {
        prop_oneof![
            (0u32..=16, any::<u32>(), any::<u32>()).prop_map(|(total_bits, a, b)| {
                let cumulative = a & ((1 << total_bits) - 1);
                let frequency = 1 + b % ((1 << total_bits) - cumulative);
                Call::Interval { cumulative, frequency, total_bits }
            }),
            (1u32..=65535, any::<bool>()).prop_map(|(probability, bit)| Call::Bit { probability, bit }),
            (Just(65535u32), any::<bool>()).prop_map(|(probability, bit)| Call::Bit { probability, bit }),
            (0u32..=32, any::<u32>()).prop_map(|(bits, value)| {
                let value = if bits == 32 { value } else { value & ((1 << bits) - 1) };
                Call::Bypass { value, bits }
            }),
        ]
    }

    fn encode(calls: &[Call]) -> Vec<u8> {
        let mut encoder = RangeEncoder::new();
        for call in calls {
            match *call {
                Call::Interval { cumulative, frequency, total_bits } => {
                    encoder.encode(cumulative, frequency, total_bits);
                }
                Call::Bit { probability, bit } => encoder.encode_bit(probability, bit),
                Call::Bypass { value, bits } => encoder.encode_bypass(value, bits),
            }
        }
        encoder.finish()
    }

    /// Decodes; true where every call gave what was encoded.
    fn decode(decoder: &mut RangeDecoder<'_>, calls: &[Call]) -> bool {
        calls.iter().all(|call| match *call {
            Call::Interval { cumulative, frequency, total_bits } => {
                let found = decoder.decode_cumulative(total_bits);
                decoder.consume(cumulative, frequency);
                (cumulative..cumulative + frequency).contains(&found)
            }
            Call::Bit { probability, bit } => decoder.decode_bit(probability) == bit,
            Call::Bypass { value, bits } => decoder.decode_bypass(bits) == value,
        })
    }

    proptest! {
        #[test]
        fn any_sequence_of_calls_comes_back(calls in proptest::collection::vec(call(), 0..300)) {
            let bytes = encode(&calls);
            let mut decoder = RangeDecoder::new(&bytes);
            prop_assert!(decode(&mut decoder, &calls));
            prop_assert_eq!(decoder.finish(), Ok(()));
        }

        #[test]
        fn garbage_neither_panics_nor_hangs(
            bytes in proptest::collection::vec(any::<u8>(), 0..40),
            calls in proptest::collection::vec(call(), 0..100),
        ) {
            let mut decoder = RangeDecoder::new(&bytes);
            for call in &calls {
                match *call {
                    Call::Interval { total_bits, .. } => {
                        let found = decoder.decode_cumulative(total_bits);
                        prop_assert!(found < 1 << total_bits);
                        decoder.consume(found, 1);
                    }
                    Call::Bit { probability, .. } => _ = decoder.decode_bit(probability),
                    Call::Bypass { bits, .. } => _ = decoder.decode_bypass(bits),
                }
            }
            _ = decoder.finish();
        }
    }

    #[test]
    fn a_carry_runs_through_bytes_of_ones() {
        let mut calls = vec![Call::Interval { cumulative: 0xffff, frequency: 1, total_bits: 16 }; 40];
        calls.extend(vec![Call::Bit { probability: 1, bit: false }; 3000]);
        let bytes = encode(&calls);
        assert!(decode(&mut RangeDecoder::new(&bytes), &calls));
    }

    #[test]
    fn nothing_costs_no_bytes_and_certainty_next_to_none() {
        assert!(RangeEncoder::new().finish().is_empty());
        let calls = vec![Call::Bit { probability: 65535, bit: true }; 1000];
        assert!(encode(&calls).is_empty());
        let calls = vec![Call::Bit { probability: 1, bit: false }; 1000];
        assert!(encode(&calls).len() <= 1);
    }

    #[test]
    fn a_cut_beyond_the_flush_is_an_overrun() {
        let calls = vec![Call::Bypass { value: 0xabcd_ef01, bits: 32 }; 8];
        let bytes = encode(&calls);
        assert_eq!(bytes.len(), 32);
        for length in 0..bytes.len() {
            let mut decoder = RangeDecoder::new(&bytes[..length]);
            _ = decode(&mut decoder, &calls);
            for _ in 0..8 {
                _ = decoder.decode_bypass(32);
            }
            assert!(decoder.is_exhausted());
        }
        let mut decoder = RangeDecoder::new(&bytes[..20]);
        for _ in 0..8 {
            _ = decoder.decode_bypass(32);
        }
        assert_eq!(decoder.finish(), Err(EntropyError::Overrun { missing: 8 }));
    }

    #[test]
    fn bytes_that_are_never_read_are_reported() {
        assert_eq!(RangeDecoder::new(&[0; 6]).finish(), Err(EntropyError::Trailing { unused: 2 }));
    }

    #[test]
    fn the_bytes_of_a_fixed_sequence_never_change() {
        let mut encoder = RangeEncoder::new();
        for i in 0..64u32 {
            encoder.encode(i * 1000 % 60000, 1 + i * 37, 16);
            encoder.encode_bit(1 + i * 1023, i % 3 == 0);
            encoder.encode_bypass(i.wrapping_mul(0x9e37_79b9) >> (i % 32), 32 - i % 32);
        }
        let bytes = encoder.finish();
        assert_eq!((bytes.len(), crate::entropy::fnv1a(&bytes)), (196, 9_427_019_145_775_470_690));
    }
}
