//! Indices into a palette or a codebook: adaptive, integers only (docs/FORMAT.md section E4).
//!
//! An index has no order that a prediction could use, but near indices are near vectors where the encoder sorted them. So
//! an index is told bit by bit, upper bits first, and each bit has a counter for the bits before it alone (order 0) and
//! one for each context of neighbours. A logistic mixer weighs them; it trusts a context by how often it was seen.

use std::collections::HashMap;

use super::adaptive::{Average, BinaryCoder, Weights};
use super::logistic::LOGISTIC;
use super::{EntropyError, RangeDecoder, RangeEncoder};

/// Most entries that indices can name.
pub const MAX_ENTRIES: usize = 1 << 16;

/// Encodes the indices of `height` rows of `width`, each below `entries`.
///
/// # Errors
///
/// [`EntropyError::ShapeMismatch`] for a wrong number of indices, [`EntropyError::SymbolRange`] for an index out of range.
pub fn encode(indices: &[u32], entries: usize, width: usize) -> Result<Vec<u8>, EntropyError> {
    if width == 0 || !indices.len().is_multiple_of(width) {
        return Err(EntropyError::ShapeMismatch { symbols: indices.len(), expected: width });
    }
    if let Some(&index) = indices.iter().find(|index| **index as usize >= entries.min(MAX_ENTRIES)) {
        return Err(EntropyError::SymbolRange { symbol: index as i32 });
    }
    let mut encoder = RangeEncoder::new();
    let mut indices = indices.to_vec();
    Model::new(entries).code(&mut encoder, &mut indices, width)?;
    Ok(encoder.finish())
}

/// Decodes what [`encode`] wrote for the same sizes.
///
/// # Errors
///
/// The errors of [`RangeDecoder::finish`]; [`EntropyError::ShapeMismatch`] for sizes that no file has.
pub fn decode(bytes: &[u8], entries: usize, height: usize, width: usize) -> Result<Vec<u32>, EntropyError> {
    let too_large = EntropyError::ShapeMismatch { symbols: 0, expected: usize::MAX };
    let count = height.checked_mul(width).filter(|_| (1..=MAX_ENTRIES).contains(&entries));
    let count = count.ok_or(too_large.clone())?;
    let mut indices = Vec::new();
    indices.try_reserve_exact(count).map_err(|_| too_large)?;
    indices.resize(count, 0);
    let mut decoder = RangeDecoder::new(bytes);
    if count > 0 {
        Model::new(entries).code(&mut decoder, &mut indices, width)?;
    }
    decoder.finish()?;
    Ok(indices)
}

/// Contexts of a bit: order 0, W, N, W with N, and all four neighbours coarsely.
const CONTEXTS: usize = 6;
const INPUTS: usize = CONTEXTS + 1;
/// A constant for the mixer.
const BIAS: i32 = 256;
/// Classes of how often a context was seen: 0, 1, 2 to 3, 4 and more.
const CLASSES: usize = 4;
/// Upper bits of a neighbour that the coarse contexts take.
const COARSE_BITS: u32 = 4;
const COARSER_BITS: u32 = 3;
/// How far a counter's memory goes: order 0 sees everything, neighbours see less.
const LIMITS: [u32; CONTEXTS] = [1023, 255, 255, 255, 255, 255];
/// Mixer weights with 16 fractional bits: order 0 alone starts with 3/8, every context with 5/32.
const ORDER_0_WEIGHT: i32 = 24576;
const CONTEXT_WEIGHT: i32 = 10240;
const GAIN: i32 = 12;

/// Which context, and what it saw of the neighbours.
type Context = (u8, u64);

struct Model {
    entries: u32,
    bits: u32,
    counters: HashMap<(Context, u32), Average>,
    mixers: Vec<Weights<INPUTS>>,
}

impl Model {
    fn new(entries: usize) -> Self {
        let bits = entries.next_power_of_two().ilog2();
        let mut values = [CONTEXT_WEIGHT; INPUTS];
        values[0] = ORDER_0_WEIGHT;
        values[INPUTS - 1] = 0;
        let sets = bits as usize * CLASSES.pow(3);
        Model {
            entries: entries as u32,
            bits,
            counters: HashMap::new(),
            mixers: vec![Weights { values, count: 0 }; sets],
        }
    }

    fn code<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        indices: &mut [u32],
        width: usize,
    ) -> Result<(), EntropyError> {
        for at in 0..indices.len() {
            let x = at % width;
            // One more than the index, 0 where there is none.
            let neighbour = |inside: bool, back: usize| if inside { indices[at - back] + 1 } else { 0 };
            let w = neighbour(x > 0, 1);
            let n = neighbour(at >= width, width);
            let nw = neighbour(at >= width && x > 0, width + 1);
            let ne = neighbour(at >= width && x + 1 < width, width.wrapping_sub(1));
            let coarse = |index: u32, kept: u32| {
                u64::from(if index == 0 { 0 } else { ((index - 1) >> self.bits.saturating_sub(kept)) + 1 })
            };
            let contexts: [Context; CONTEXTS] = [
                (0, 0),
                (1, w.into()),
                (2, n.into()),
                (3, coarse(w, COARSE_BITS) << 32 | coarse(n, COARSE_BITS)),
                (
                    4,
                    coarse(w, COARSER_BITS) << 48
                        | coarse(n, COARSER_BITS) << 32
                        | coarse(nw, COARSER_BITS) << 16
                        | coarse(ne, COARSER_BITS),
                ),
                (5, coarse(n, COARSE_BITS) << 32 | coarse(ne, COARSE_BITS)),
            ];
            indices[at] = self.code_index(coder, &contexts, indices[at]);
            if x + 1 == width {
                coder.check()?;
            }
        }
        Ok(())
    }

    fn code_index<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        contexts: &[Context; CONTEXTS],
        index: u32,
    ) -> u32 {
        let mut value = 0;
        for bit in (0..self.bits).rev() {
            // Nothing is told where the upper half has no entry.
            if value + (1 << bit) >= self.entries {
                continue;
            }
            // The bits so far under a leading one.
            let node = 1 << (self.bits - 1 - bit) | value >> bit >> 1;
            if self.decide(coder, contexts, node, bit, index >> bit & 1 == 1) {
                value |= 1 << bit;
            }
        }
        value
    }

    fn decide<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        contexts: &[Context; CONTEXTS],
        node: u32,
        bit: u32,
        value: bool,
    ) -> bool {
        let table = &**LOGISTIC;
        let mut counters = [Average { value: 1 << 15, count: 0 }; CONTEXTS];
        for (at, counter) in counters.iter_mut().enumerate() {
            if let Some(known) = self.counters.get(&(contexts[at], node)) {
                *counter = *known;
            }
        }
        // A context that was never seen says what order 0 says.
        let order_0 = counters[0].value;
        let mut inputs = [BIAS; INPUTS];
        for (input, counter) in inputs.iter_mut().zip(&mut counters) {
            if counter.count == 0 {
                counter.value = order_0;
            }
            *input = table.stretch(counter.value);
        }
        let class = |at: usize| match counters[at].count {
            0 => 0,
            1 => 1,
            2..=3 => 2,
            _ => 3,
        };
        let set = ((bit as usize * CLASSES + class(1)) * CLASSES + class(2)) * CLASSES + class(3);
        let mixer = &mut self.mixers[set];
        let logit = mixer.logit(&inputs);
        let value = coder.code_bit(table.squash(logit) as u32, value);

        let target = if value { 65535 } else { 0 };
        mixer.learn(&inputs, logit, target, GAIN);
        for (at, counter) in counters.iter_mut().enumerate() {
            counter.learn(target, LIMITS[at]);
            self.counters.insert((contexts[at], node), *counter);
        }
        value
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(100))]

        #[test]
        fn any_indices_come_back(
            entries in prop_oneof![Just(1usize), Just(2), Just(3), Just(255), Just(256), Just(8192), Just(MAX_ENTRIES)],
            width in 1usize..30, height in 1usize..30, seed in any::<u32>(),
        ) {
            let mut state = seed;
            let indices: Vec<u32> = (0..width * height).map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) % entries as u32
            }).collect();
            let bytes = encode(&indices, entries, width).unwrap();
            prop_assert_eq!(decode(&bytes, entries, height, width), Ok(indices));
        }

        #[test]
        fn random_bytes_are_indices_in_range_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..100), entries in 1usize..300,
            height in 0usize..20, width in 0usize..20,
        ) {
            if let Ok(indices) = decode(&bytes, entries, height, width) {
                prop_assert!(indices.len() == height * width && indices.iter().all(|&i| (i as usize) < entries));
            }
        }
    }

    #[test]
    fn one_entry_costs_nothing_and_repetition_next_to_nothing() {
        assert_eq!(encode(&[0; 4096], 1, 64).unwrap().len(), 0);
        assert!(encode(&[77; 4096], 256, 64).unwrap().len() < 60);
    }

    #[test]
    fn neighbours_that_decide_an_index_save_most_of_it() {
        // Every row repeats the one above but for its first index.
        let mut state = 7u32;
        let row: Vec<u32> = (0..64)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                state >> 24
            })
            .collect();
        let indices: Vec<u32> = (0..64).flat_map(|_| row.clone()).collect();
        let bytes = encode(&indices, 256, 64).unwrap().len();
        // 4096 indices of 8 bits.
        assert!(bytes < 4096 / 4, "{bytes}");
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert!(matches!(encode(&[0; 3], 2, 2), Err(EntropyError::ShapeMismatch { .. })));
        assert!(matches!(encode(&[2], 2, 1), Err(EntropyError::SymbolRange { symbol: 2 })));
        assert!(decode(&[], 0, 1, 1).is_err());
        assert!(decode(&[], MAX_ENTRIES + 1, 1, 1).is_err());
        assert!(decode(&[], 2, usize::MAX, 2).is_err());
    }

    #[test]
    fn the_bytes_of_fixed_indices_never_change() {
        let indices: Vec<u32> =
            (0..60 * 40u32).map(|i| ((i % 60) * (i % 60) / 40 + i / 60 * 3 + i * i % 5) % 200).collect();
        let bytes = encode(&indices, 200, 60).unwrap();
        assert_eq!((bytes.len(), crate::entropy::fnv1a(&bytes)), (453, 16_843_777_919_874_202_496));
        assert_eq!(decode(&bytes, 200, 40, 60), Ok(indices));
    }
}
