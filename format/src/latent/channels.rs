//! What the symbols of the channels before, at the same position, say of the scale of a channel (docs/FORMAT.md section 5.3).
//!
//! Where one channel has something, so have others. Most symbols are 0 and say nothing, so the others are noted, and each adds to
//! the sums of its position. There are sums for one group of channels at a time, or they would not fit the cache.

use super::trained::{INDEX_BITS, MAGNITUDE, shift_round};
use crate::vectors::{Vectors, for_vectors, vectors};

/// Channels whose sums for a position lie side by side: 64 bytes.
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

    /// What `channel` says of those of a group.
    fn of(&self, channel: usize, group: usize) -> &[i8; GROUP] {
        &self.weights[channel * self.padded..].as_chunks().0[group]
    }
}

/// A symbol that is not 0.
#[derive(Debug, Clone, Copy)]
struct Note {
    at: u32,
    magnitude: i16,
}

/// What is known of a tile while it is coded.
pub(super) struct ChannelContext<'a> {
    weights: &'a ChannelWeights,
    /// Channel by channel.
    notes: Vec<Note>,
    /// Where the notes of each channel start.
    starts: Vec<usize>,
    /// Of the group that is coded now, by position.
    sums: Vec<[i16; GROUP]>,
    vectors: Vectors,
}

impl<'a> ChannelContext<'a> {
    /// For `area` positions.
    pub fn new(weights: &'a ChannelWeights, area: usize) -> Self {
        let sums = vec![[0; GROUP]; area];
        ChannelContext { weights, notes: Vec::new(), starts: Vec::new(), sums, vectors: vectors() }
    }

    /// Goes on to the next channel, from 0 on, and says what is known of it.
    pub fn next(&mut self) -> Plane<'_> {
        let c = self.starts.len();
        self.starts.push(self.notes.len());
        let (group, place) = (c / GROUP, c % GROUP);
        let new = if place == 0 {
            self.sums.fill([0; GROUP]);
            0..c
        } else {
            c - 1..c
        };
        for channel in new {
            let notes = &self.notes[self.starts[channel]..self.starts[channel + 1]];
            raise(self.vectors, notes, self.weights.of(channel, group), &mut self.sums);
        }
        Plane { sums: if self.notes.is_empty() { &[] } else { &self.sums }, place }
    }

    /// The channel has `symbol`, not 0, at the position `at`.
    pub fn note(&mut self, at: usize, symbol: i32) {
        self.notes.push(Note { at: at as u32, magnitude: small(symbol) });
    }
}

/// The sums of one channel; none if all are 0.
pub(super) struct Plane<'a> {
    sums: &'a [[i16; GROUP]],
    place: usize,
}

impl Plane<'_> {
    /// 1/256 scale index at each position.
    fn values(&self) -> impl Iterator<Item = i32> {
        let place = self.place % GROUP;
        self.sums.iter().map(move |sums| shift_round(i32::from(sums[place]), SUM_BITS - INDEX_BITS))
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
    /// Adds the weights, times the magnitude of each note, to the sums of its position.
    fn raise(notes: &[Note], weights: &[i8; GROUP], sums: &mut [[i16; GROUP]]) = raise_loop, raise_v4, raise_v3, raise_plain
);

#[inline(always)]
fn raise_loop(notes: &[Note], weights: &[i8; GROUP], sums: &mut [[i16; GROUP]]) {
    let weights = weights.map(i16::from);
    for note in notes {
        for (sum, weight) in sums[note.at as usize].iter_mut().zip(weights) {
            // 128 times 111 fits.
            *sum = sum.saturating_add(weight * note.magnitude);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::all_vectors;

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
                let plane = context.next();
                plane.add_to(&mut indices);
                assert_eq!((indices[0], indices[1]), (1000, 1000));
                assert_eq!(plane.largest(), (indices[2] - 1000).max(0));
                if c == 2 || c == 40 {
                    context.note(2, if c == 2 { -1 } else { 500 });
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
    fn sums_stay_within_16_bits_with_all_vectors() {
        let weights = std::array::from_fn(|i| (i as i32 * 8 - 127) as i8);
        let notes = [Note { at: 1, magnitude: 111 }; 9];
        for vectors in all_vectors() {
            let mut sums = [[0; GROUP], [30_000; GROUP]];
            raise(vectors, &notes, &weights, &mut sums);
            assert_eq!((sums[0], sums[1][0], sums[1][GROUP - 1]), ([0; GROUP], i16::MIN, i16::MAX));
        }
    }
}
