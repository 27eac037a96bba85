//! What the symbols of the channels before, at the same position, say of the scale of a channel (docs/FORMAT.md section 5.3).
//!
//! Where one channel has something, so have others. Most symbols are 0 and say nothing, so a sum is kept for every position
//! and channel, and a symbol that is not 0 adds to those of its position, once, when it becomes known.

use sdl_onnx::memory::zeros;

use super::trained::{INDEX_BITS, MAGNITUDE, shift_round};
use crate::vectors::{Vectors, for_vectors, vectors};

/// Channels whose sums for a position lie side by side: 64 bytes. What a channel reads is then 64 bytes apart, and the next
/// channel finds it in the cache.
const GROUP: usize = 32;
/// Fraction bits of a sum, a scale index: four of the weights, five of the magnitudes.
const SUM_BITS: u32 = 9;
/// `MAGNITUDE` with five fraction bits: times a weight it fits 16 bits.
const SMALL: [i16; MAGNITUDE.len()] = {
    let mut small = [0; MAGNITUDE.len()];
    let mut n = 0;
    while n < small.len() {
        small[n] = shift_round(MAGNITUDE[n], 3) as i16;
        n += 1;
    }
    small
};

/// What a value says of the scales of others: 1/32 of ln(1 + |value|).
pub(super) fn small(value: i32) -> i16 {
    SMALL[value.unsigned_abs().min(31) as usize]
}

/// The weights of a bundle.
#[derive(Debug)]
pub(crate) struct ChannelWeights {
    /// Channels, rounded up to whole groups.
    padded: usize,
    /// (channel that is known, channel of which it says something), 0 for those that come before it.
    weights: Vec<i8>,
}

impl ChannelWeights {
    /// From the bytes of a bundle: for each channel those on the ones behind it.
    pub fn new(channels: usize, bytes: &[u8]) -> Self {
        let padded = channels.next_multiple_of(GROUP);
        let mut weights = vec![0; channels * padded];
        let mut bytes = bytes.iter();
        for (c, row) in weights.chunks_exact_mut(padded).enumerate() {
            row[c + 1..channels].iter_mut().zip(&mut bytes).for_each(|(weight, &byte)| *weight = byte as i8);
        }
        ChannelWeights { padded, weights }
    }
}

/// The sums of a tile while it is coded.
pub(super) struct ChannelContext<'a> {
    weights: &'a ChannelWeights,
    area: usize,
    /// (group, position, channel of the group)
    sums: Vec<i16>,
    /// The groups of which a sum may be other than 0.
    open: Vec<bool>,
    vectors: Vectors,
}

impl<'a> ChannelContext<'a> {
    /// For `area` positions.
    pub fn new(weights: &'a ChannelWeights, area: usize) -> Self {
        let padded = weights.padded;
        let (sums, open) = (zeros(padded * area), vec![false; padded / GROUP]);
        ChannelContext { weights, area, sums, open, vectors: vectors() }
    }

    /// Channel `c` has `symbol`, not 0, at the position `at`.
    pub fn note(&mut self, c: usize, at: usize, symbol: i32) {
        let ChannelWeights { padded, weights } = self.weights;
        let magnitude = small(symbol);
        let row = &weights[c * padded..][..*padded];
        for (group, weights) in row.chunks_exact(GROUP).enumerate().skip((c + 1) / GROUP) {
            self.open[group] = true;
            raise(
                self.vectors,
                weights,
                magnitude,
                &mut self.sums[(group * self.area + at) * GROUP..][..GROUP],
            );
        }
    }

    /// What is known of channel `c`.
    pub fn plane(&self, c: usize) -> Plane<'_> {
        let (group, place) = (c / GROUP, c % GROUP);
        Plane(match self.open[group] {
            true => &self.sums[group * self.area * GROUP..][..self.area * GROUP][place..],
            false => &[],
        })
    }
}

/// Sums of one channel, [`GROUP`] apart; none if all are 0.
pub(super) struct Plane<'a>(&'a [i16]);

impl Plane<'_> {
    /// 1/256 scale index at each position.
    fn values(&self) -> impl Iterator<Item = i32> {
        self.0.iter().step_by(GROUP).map(|&sum| shift_round(i32::from(sum), SUM_BITS - INDEX_BITS))
    }

    pub fn largest(&self) -> i32 {
        self.values().max().unwrap_or(0)
    }

    /// Adds it to the scale indices of all positions.
    pub fn add_to(&self, indices: &mut [i32]) {
        indices.iter_mut().zip(self.values()).for_each(|(index, value)| *index += value);
    }
}

for_vectors!(
    /// Adds the weights times `magnitude` to the sums.
    fn raise(weights: &[i8], magnitude: i16, sums: &mut [i16]) = raise_loop, raise_v3, raise_plain
);

#[inline(always)]
fn raise_loop(weights: &[i8], magnitude: i16, sums: &mut [i16]) {
    for (sum, &weight) in sums.iter_mut().zip(weights) {
        // 128 times 111 fits.
        *sum = sum.saturating_add(i16::from(weight) * magnitude);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_says_something_of_its_position_in_the_channels_behind_it() {
        let channels = 70;
        // The weight of channel j on channel c, j < c.
        let weight = |j: usize, c: usize| ((7 * j + 3 * c) % 255) as i32 - 127;
        let bytes: Vec<u8> =
            (0..channels).flat_map(|j| (j + 1..channels).map(move |c| weight(j, c) as u8)).collect();
        let weights = ChannelWeights::new(channels, &bytes);
        let mut context = ChannelContext::new(&weights, 3);
        let said: Vec<i32> = (0..channels)
            .map(|c| {
                let mut indices = [1000; 3];
                context.plane(c).add_to(&mut indices);
                assert_eq!((indices[0], indices[1]), (1000, 1000));
                assert_eq!(context.plane(c).largest(), (indices[2] - 1000).max(0));
                if c == 2 || c == 40 {
                    context.note(c, 2, if c == 2 { -1 } else { 500 });
                }
                indices[2] - 1000
            })
            .collect();
        for (c, said) in said.into_iter().enumerate() {
            let from = |j: usize, magnitude: i32| if c > j { weight(j, c) * magnitude } else { 0 };
            assert_eq!(said, shift_round(from(2, 22) + from(40, 111), 1), "channel {c}");
        }
    }

    #[test]
    fn sums_stay_within_16_bits_with_and_without_vectors() {
        let weights: Vec<i8> = (0..GROUP as i32).map(|i| (i * 8 - 127) as i8).collect();
        let (mut a, mut b) = ([30_000i16; GROUP], [30_000i16; GROUP]);
        for _ in 0..9 {
            raise(vectors(), &weights, 111, &mut a);
            raise_plain(&weights, 111, &mut b);
        }
        assert_eq!(a, b);
        assert_eq!((a[0], a[GROUP - 1]), (i16::MIN, i16::MAX));
    }
}
