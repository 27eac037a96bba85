//! What the adaptive coders share: binary decisions on either side of the range coder, running averages, mixer weights.

use std::sync::LazyLock;

use super::logistic::{LOGISTIC, LOGIT_LIMIT, PROBABILITY_MIN};
use super::{EntropyError, RangeDecoder, RangeEncoder};

/// The side of the range coder that a model drives: one model serves both, so they cannot differ.
pub(crate) trait BinaryCoder {
    /// Codes one bit with the probability of a 1 in 1/65536. A decoder ignores `bit`.
    fn code_bit(&mut self, probability: u32, bit: bool) -> bool;
    /// Codes bits as they are.
    fn code_bypass(&mut self, value: u32, bits: u32) -> u32;
    /// Takes note of a symbol that no encoder writes.
    fn reject(&mut self);
    /// Fails where going on is useless.
    fn check(&self) -> Result<(), EntropyError>;
}

impl BinaryCoder for RangeEncoder {
    #[inline]
    fn code_bit(&mut self, probability: u32, bit: bool) -> bool {
        self.encode_bit(probability, bit);
        bit
    }
    fn code_bypass(&mut self, value: u32, bits: u32) -> u32 {
        self.encode_bypass(value, bits);
        value
    }
    fn reject(&mut self) {}
    fn check(&self) -> Result<(), EntropyError> {
        Ok(())
    }
}

impl BinaryCoder for RangeDecoder<'_> {
    #[inline]
    fn code_bit(&mut self, probability: u32, _: bool) -> bool {
        self.decode_bit(probability)
    }
    fn code_bypass(&mut self, _: u32, bits: u32) -> u32 {
        self.decode_bypass(bits)
    }
    fn reject(&mut self) {
        self.mark_corrupt();
    }
    fn check(&self) -> Result<(), EntropyError> {
        if self.is_exhausted() {
            return Err(EntropyError::Overrun { missing: self.overrun() - super::MAX_OVERRUN });
        }
        Ok(())
    }
}

/// A running average whose rate falls from 1/(n + 1.6) to a floor.
#[derive(Clone, Copy, Default)]
pub(crate) struct Average {
    pub value: i32,
    pub count: u32,
}

/// 1/(n + 1.6) in 1/65536, for n below 1024.
static RATE: LazyLock<[i32; 1024]> =
    LazyLock::new(|| std::array::from_fn(|n| 655_360 / (10 * n as i32 + 16)));

impl Average {
    #[inline]
    pub fn update(&mut self, target: i32, limit: u32) {
        let rate = RATE[self.count.min(1023) as usize];
        self.value += ((i64::from(target - self.value) * i64::from(rate)) >> 16) as i32;
        if self.count < limit {
            self.count += 1;
        }
    }

    /// Takes note of a bit, told as 0 or 65535, whose probability this is; none becomes certain.
    #[inline]
    pub(super) fn learn(&mut self, target: i32, limit: u32) {
        self.update(target, limit);
        self.value = self.value.clamp(PROBABILITY_MIN, 65536 - PROBABILITY_MIN);
    }
}

/// The rate of a set of weights, in 1/2^22: a least gain and 65536 / (uses + 512).
const RATE_BITS: u32 = 22;
const GAIN_START: i32 = 65536;
const GAIN_DECAY: i32 = 512;
const USES_LIMIT: i32 = 1 << 16;
const WEIGHT_LIMIT: i32 = 1 << 22;

/// One set of mixer weights, with 16 fractional bits, and how often it was used.
#[derive(Clone)]
pub(super) struct Weights<const INPUTS: usize> {
    pub values: [i32; INPUTS],
    pub count: i32,
}

impl<const INPUTS: usize> Weights<INPUTS> {
    /// The logit that these weights make of those of the inputs.
    #[inline]
    pub fn logit(&self, inputs: &[i32; INPUTS]) -> i32 {
        let sum: i64 = self.values.iter().zip(inputs).map(|(&w, &x)| i64::from(w) * i64::from(x)).sum();
        (sum >> 16).clamp(i64::from(-LOGIT_LIMIT), i64::from(LOGIT_LIMIT)) as i32
    }

    /// Moves the weights towards what would have told the bit, 0 or 65535, better than `logit` did. `gain` is the least rate.
    #[inline]
    pub fn learn(&mut self, inputs: &[i32; INPUTS], logit: i32, target: i32, gain: i32) {
        let error = i64::from(target - LOGISTIC.squash(logit));
        let gain = gain + GAIN_START / (self.count + GAIN_DECAY);
        self.count = (self.count + 1).min(USES_LIMIT);
        for (weight, &input) in self.values.iter_mut().zip(inputs) {
            let step = (error * i64::from(input * gain) + (1 << (RATE_BITS - 1))) >> RATE_BITS;
            *weight = (*weight + step as i32).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT);
        }
    }
}
