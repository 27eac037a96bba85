//! The trained path: which table codes a symbol, and what value a symbol stands for (docs/FORMAT.md section 5).
//!
//! Integers only. The scale index comes from the hyper-latent by one linear map, from the channels before at the same
//! position, and on the second half of a checkerboard also from the neighbours of the first; the mean comes from the
//! hyper-synthesis graph and from those neighbours. [`walk`](super::walk) goes through a tile.

use byteorder::{ByteOrder, LE};

use super::channels::ChannelWeights;
use super::hyper::HyperPrior;
use crate::Error;
use crate::entropy::{CdfSet, CdfTable};
use crate::vectors::{Vectors, for_vectors, vectors};

/// Latent positions per hyper-latent position, each way.
pub(crate) const HYPER: usize = 4;
/// Means are integers of 1/16 symbol.
pub(super) const MEAN_BITS: u32 = 4;
/// Fraction bits of the scale index, of the context weights and of the step.
pub(super) const INDEX_BITS: u32 = 8;
pub(super) const CONTEXT_BITS: u32 = 8;
pub(super) const UNGAIN_BITS: u32 = 11;
/// The latent that the synthesis graph takes lies within this.
pub(super) const LATENT_CLIP: i32 = 2047;
/// round(256 ln(1 + n)): what the magnitudes of four neighbours say of the scale.
pub(super) const MAGNITUDE: [i32; 32] = [
    0, 177, 281, 355, 412, 459, 498, 532, 562, 589, 614, 636, 657, 676, 693, 710, 725, 740, 754, 767, 779,
    791, 803, 814, 824, 834, 844, 853, 862, 871, 879, 887,
];
/// Most channels that a table file may declare.
const MAX_CHANNELS: usize = 1024;
/// The layout of a table file that is read here.
const LAYOUT: usize = 2;
/// With more, the sum that gives a scale index could leave 32 bits.
const MAX_HYPER_CHANNELS: usize = 256;
/// Means lie within this.
pub(super) const MEAN_CLIP: i32 = 32767;

/// Size of the latent of one tile: positions that are coded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grid {
    pub height: usize,
    pub width: usize,
}

impl Grid {
    pub fn area(self) -> usize {
        self.height * self.width
    }

    /// The grid of the hyper-latent above this one.
    pub fn hyper(self) -> Grid {
        Grid { height: self.height.div_ceil(HYPER), width: self.width.div_ceil(HYPER) }
    }

    /// This grid filled up to whole hyper-latent positions: what the graphs run on.
    pub fn padded(self) -> Grid {
        let hyper = self.hyper();
        Grid { height: hyper.height * HYPER, width: hyper.width * HYPER }
    }
}

/// `tables.bin` of a bundle.
#[derive(Debug)]
pub(crate) struct Tables {
    pub channels: usize,
    pub hyper_channels: usize,
    levels: usize,
    /// (channel, pair of hyper-latent channels): the weights of the positions under one of the hyper-latent.
    scale_map: Vec<PairWeights>,
    scale_bias: Vec<i16>,
    pub(super) context_scale: Vec<i16>,
    pub(super) context_mean: Vec<i16>,
    pub(super) context_channel: ChannelWeights,
    pub(super) hyper: HyperPrior,
    ungain: Vec<u16>,
    gain: Vec<f32>,
    pub(super) cdf: CdfSet,
}

/// x / 2^bits to the nearest integer, halves towards plus infinity.
#[inline(always)]
pub(super) const fn shift_round(x: i32, bits: u32) -> i32 {
    (x + (1 << (bits - 1))) >> bits
}

impl Tables {
    /// Reads `tables.bin`; the layout is in docs/FORMAT.md section 5.1.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let damaged = |what: &str| Error::corrupt(format!("the tables of the bundle: {what}"));
        let mut rest = bytes;
        let mut take = |count: usize, size: usize| -> Result<&[u8], Error> {
            let (part, after) = rest.split_at_checked(count * size).ok_or_else(|| damaged("cut short"))?;
            rest = after;
            Ok(part)
        };
        let head = take(4, 2)?;
        let field = |i: usize| usize::from(LE::read_u16(&head[2 * i..]));
        let (c, k, l) = (field(0), field(1), field(2));
        if field(3) != LAYOUT {
            return Err(damaged("of a layout that this version does not know"));
        }
        if c == 0 || k == 0 || c > MAX_CHANNELS || k > MAX_HYPER_CHANNELS || l != 101 {
            return Err(damaged("impossible sizes"));
        }
        let i8s = |bytes: &[u8]| bytes.iter().map(|&byte| byte as i8).collect::<Vec<_>>();
        let i16s = |bytes: &[u8]| bytes.as_chunks().0.iter().map(|pair| i16::from_le_bytes(*pair)).collect();
        let by_place = take(HYPER * HYPER * c * k, 2)?.as_chunks().0;
        let mut scale_map = vec![[[0; 2]; HYPER * HYPER]; c * k.div_ceil(2)];
        for (channel, pairs) in scale_map.chunks_exact_mut(k.div_ceil(2)).enumerate() {
            for (p, weights) in by_place.chunks_exact(c * k).enumerate() {
                let (two, one) = weights[channel * k..][..k].as_chunks::<2>();
                pairs.iter_mut().zip(two).for_each(|(pair, two)| pair[p] = two.map(i16::from_le_bytes));
                if let ([one], Some(pair)) = (one, pairs.last_mut()) {
                    pair[p][0] = i16::from_le_bytes(*one);
                }
            }
        }
        let scale_bias = i16s(take(l * c, 2)?);
        let context_scale = i16s(take(c, 2)?);
        let context_mean = i16s(take(4 * c, 2)?);
        let context_channel = ChannelWeights::new(c, take(c * (c - 1) / 2, 1)?);
        let hyper = HyperPrior {
            mean: i8s(take(l * k, 1)?),
            scale: i16s(take(l * k, 2)?),
            context_mean: i8s(take(k * HyperPrior::seen(k), 1)?),
            context_scale: i8s(take(k * HyperPrior::seen(k), 1)?),
        };
        let ungain = take(l * c, 2)?.chunks_exact(2).map(LE::read_u16).collect();
        let gain: Vec<f32> = take(l * c, 4)?.chunks_exact(4).map(LE::read_f32).collect();
        let cdf = CdfSet::parse(rest).map_err(|error| damaged(&error.to_string()))?;
        if cdf.tables().len() != 64 {
            return Err(damaged("not 64 frequency tables"));
        }
        if gain.iter().any(|g| !g.is_finite() || *g <= 0.0) {
            return Err(damaged("a value is out of range"));
        }
        Ok(Tables {
            channels: c,
            hyper_channels: k,
            levels: l,
            scale_map,
            scale_bias,
            context_scale,
            context_mean,
            context_channel,
            hyper,
            ungain,
            gain,
            cdf,
        })
    }

    /// What the latent of a channel is multiplied with before it is rounded; for encoders.
    pub fn gain(&self, level: u8, channel: usize) -> f32 {
        self.gain[self.row(level) * self.channels + channel]
    }

    /// The step of a channel in the latent of the synthesis graph: 1/2048 for each 1/16 symbol.
    pub fn ungain(&self, level: u8, channel: usize) -> u16 {
        self.ungain[self.row(level) * self.channels + channel]
    }

    /// The integers of the latent that a symbol is; at least 1/128.
    pub fn symbol_size(&self, level: u8, channel: usize) -> f32 {
        f32::from(self.ungain(level, channel).max(1)) * 2f32.powi(MEAN_BITS as i32 - UNGAIN_BITS as i32)
    }

    pub(super) fn row(&self, level: u8) -> usize {
        usize::from(level).min(self.levels - 1)
    }
}

/// What the magnitude of neighbours says of a scale index.
#[inline]
pub(super) const fn said_of_scale(magnitude: i32, weight: i16) -> i32 {
    shift_round(weight as i32 * magnitude, CONTEXT_BITS)
}

/// What the four neighbours of the first pass say of the scale index, in 1/2^`INDEX_BITS`, and of the mean.
#[inline]
pub(super) fn said_by_neighbours(around: [i32; 4], weights: &[i16], scale_weight: i16) -> (i32, i32) {
    // What a delta picture was may be far from its mean.
    let magnitude = around.iter().fold(0u32, |sum, s| sum.saturating_add(s.unsigned_abs())).min(31);
    let context = said_of_scale(MAGNITUDE[magnitude as usize], scale_weight);
    // Symbols reach 2^20 and weights 2^15: the sum needs 38 bits.
    let sum: i64 = around.iter().zip(weights).map(|(&s, &w)| i64::from(s) * i64::from(w)).sum();
    (context, ((sum + (1 << (CONTEXT_BITS - 1))) >> CONTEXT_BITS) as i32)
}

/// The weights of two hyper-latent channels on the positions under one of the hyper-latent: side by side, as a processor
/// multiplies and adds them in one instruction.
type PairWeights = [[i16; 2]; HYPER * HYPER];

/// The scale indices that a hyper-latent says, before the context, in 1/256.
pub(super) struct Scales<'a> {
    tables: &'a Tables,
    bias: &'a [i16],
    grid: Grid,
    /// (position, pair of hyper-latent channels), the first one lower
    values: Vec<i32>,
    /// The largest magnitudes of each pair of hyper-latent channels.
    largest: Vec<[i32; 2]>,
    vectors: Vectors,
}

impl<'a> Scales<'a> {
    pub fn new(tables: &'a Tables, level: u8, z: &[i8], grid: Grid) -> Self {
        let (area, pairs) = (grid.hyper().area(), tables.hyper_channels.div_ceil(2));
        let mut values = vec![0; area * pairs];
        let mut largest = vec![[0; 2]; pairs];
        for (k, plane) in z.chunks_exact(area).enumerate() {
            for (values, &value) in values.chunks_exact_mut(pairs).zip(plane) {
                values[k / 2] |= i32::from(value as i16 as u16) << (16 * (k % 2));
            }
            largest[k / 2][k % 2] =
                plane.iter().map(|value| i32::from(value.unsigned_abs())).max().unwrap_or(0);
        }
        let bias = &tables.scale_bias[tables.row(level) * tables.channels..][..tables.channels];
        Scales { tables, bias, grid, values, largest, vectors: vectors() }
    }

    fn weights(&self, c: usize) -> &'a [PairWeights] {
        let pairs = self.largest.len();
        &self.tables.scale_map[c * pairs..][..pairs]
    }

    /// Whether every index of the channel is 0 whatever the position, when the channels before add no more than `context`: then
    /// every symbol is 0, so that no neighbour says anything else. Many channels are at low qualities.
    pub fn is_silent(&self, c: usize, context: impl FnOnce() -> i32) -> bool {
        let mut most = [i32::from(self.bias[c]); HYPER * HYPER];
        for (weights, [first, second]) in self.weights(c).iter().zip(&self.largest) {
            for (sum, weights) in most.iter_mut().zip(weights) {
                *sum += i32::from(weights[0]).abs() * first + i32::from(weights[1]).abs() * second;
            }
        }
        let most = most.into_iter().max().unwrap_or(0);
        let is_zero = |index| shift_round(index, INDEX_BITS) <= 0;
        // The context takes a look at every position, and few channels need it here.
        is_zero(most) && is_zero(most + context())
    }

    /// Fills `plane`, (H, W), under the hyper-latent positions that are `wanted`; the others are left as they are.
    pub fn plane(&self, c: usize, wanted: &[usize], plane: &mut [i32]) {
        let Grid { height, width } = self.grid;
        let hyper = self.grid.hyper();
        let weights = self.weights(c);
        for wanted in wanted.chunks(BATCH) {
            let values = std::array::from_fn(|i| {
                let at = wanted[i.min(wanted.len() - 1)];
                &self.values[at * weights.len()..][..weights.len()]
            });
            let sums = weighted(self.vectors, self.bias[c].into(), values, weights);
            for (at, sums) in wanted.iter().zip(sums) {
                let (top, left) = (at / hyper.width * HYPER, at % hyper.width * HYPER);
                for (y, sums) in (top..height).zip(sums.as_chunks::<HYPER>().0) {
                    let row = &mut plane[y * width..][left..width];
                    match row.first_chunk_mut() {
                        Some(row) => *row = *sums,
                        None => row.copy_from_slice(&sums[..width - left]),
                    }
                }
            }
        }
    }
}

/// Hyper-latent positions that share a look at the weights.
const BATCH: usize = 4;

for_vectors!(
    /// `bias` and the weights of all `values`, place by place. Values have 8 bits.
    fn weighted(bias: i32, values: [&[i32]; BATCH], weights: &[PairWeights]) -> [[i32; HYPER * HYPER]; BATCH]
        = weighted_v4, weighted_v3, weighted_plain
);

fn weighted_plain(
    bias: i32,
    values: [&[i32]; BATCH],
    weights: &[PairWeights],
) -> [[i32; HYPER * HYPER]; BATCH] {
    values.map(|values| {
        let mut sums = [bias; HYPER * HYPER];
        for (&pair, weights) in values.iter().zip(weights) {
            let [first, second] = [pair as i16, (pair >> 16) as i16].map(i32::from);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum += i32::from(weights[0]) * first + i32::from(weights[1]) * second;
            }
        }
        sums
    })
}

/// Left to itself the compiler takes three times as long.
#[cfg(target_arch = "x86_64")]
#[archmage::arcane(import_intrinsics)]
fn weighted_v4(
    _token: archmage::X64V4Token,
    bias: i32,
    values: [&[i32]; BATCH],
    weights: &[PairWeights],
) -> [[i32; HYPER * HYPER]; BATCH] {
    let mut sums = [_mm512_set1_epi32(bias); BATCH];
    let values = values.map(|values| &values[..weights.len()]);
    for (k, weights) in weights.iter().enumerate() {
        let weights = _mm512_loadu_epi16(&weights.as_flattened().as_chunks().0[0]);
        for (sum, values) in sums.iter_mut().zip(values) {
            *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(_mm512_set1_epi32(values[k]), weights));
        }
    }
    let mut result = [[0; HYPER * HYPER]; BATCH];
    result.iter_mut().zip(sums).for_each(|(result, sum)| _mm512_storeu_epi32(result, sum));
    result
}

#[cfg(target_arch = "x86_64")]
#[archmage::arcane(import_intrinsics)]
fn weighted_v3(
    _token: archmage::X64V3Token,
    bias: i32,
    values: [&[i32]; BATCH],
    weights: &[PairWeights],
) -> [[i32; HYPER * HYPER]; BATCH] {
    let mut sums = [[_mm256_set1_epi32(bias); 2]; BATCH];
    let values = values.map(|values| &values[..weights.len()]);
    for (k, weights) in weights.iter().enumerate() {
        let weights = weights.as_flattened().as_chunks::<16>().0;
        let weights = [_mm256_loadu_si256(&weights[0]), _mm256_loadu_si256(&weights[1])];
        for (sums, values) in sums.iter_mut().zip(values) {
            let pair = _mm256_set1_epi32(values[k]);
            for (sum, weights) in sums.iter_mut().zip(weights) {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pair, weights));
            }
        }
    }
    let mut result = [[0; HYPER * HYPER]; BATCH];
    for (result, sum) in result.as_flattened_mut().as_chunks_mut::<8>().0.iter_mut().zip(sums.as_flattened())
    {
        _mm256_storeu_si256(result, *sum);
    }
    result
}

/// The nearest integer, the even one of two, for magnitudes below 2^22: above 2^23 a `f32` has no fraction, so that an addition
/// rounds. x86-64 has no instruction for it before SSE 4.1, and a call for every value took 1.5 % of an encode.
#[inline]
fn nearest(value: f32) -> i32 {
    const WHOLE: f32 = (3 << 22) as f32;
    ((value + WHOLE) - WHOLE) as i32
}

/// The symbol for a scaled latent value: nearest to it, or with `strength` above 0 the one of least error plus bits.
///
/// `strength` is squared symbol units for each bit. Candidates: the nearest integer, and the two next ones towards zero.
#[inline]
pub(crate) fn quantise(value: f32, table: &CdfTable, strength: f32) -> i32 {
    let symbol = nearest(value.clamp(-60_000.0, 60_000.0));
    if strength == 0.0 || symbol == 0 {
        return symbol;
    }
    let per_unit = strength / 256.0;
    let mut best = (f32::INFINITY, symbol);
    let towards_zero = -symbol.signum();
    for step in 0..=2.min(symbol.abs()) {
        let candidate = symbol + step * towards_zero;
        let error = value - candidate as f32;
        let cost = error * error + per_unit * table.cost(candidate) as f32;
        if cost < best.0 {
            best = (cost, candidate);
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vectors::all_vectors;

    #[test]
    fn the_magnitude_table_is_the_logarithm_that_the_format_says() {
        for (n, &value) in MAGNITUDE.iter().enumerate() {
            assert_eq!(value, (256.0 * (n as f64).ln_1p()).round() as i32);
        }
    }

    #[test]
    fn weights_add_up_to_the_same_with_all_vectors() {
        let weights: Vec<PairWeights> = (0..5i16)
            .map(|k| std::array::from_fn(|i| [3000 * k - 997 * i as i16, i16::MAX - 400 * i as i16]))
            .collect();
        let values = [[0, 127], [4, -127], [-128, 2], [3, -60], [127, 127]];
        let pairs = values.map(|[first, second]: [i32; 2]| first & 0xffff | second << 16);
        let all = [&pairs[..], &[0; 5], &[0; 5], &pairs];
        let sum = |place: usize| {
            let all = values.as_flattened().iter().zip(weights.iter().flat_map(|w| w[place]));
            all.map(|(value, weight)| value * i32::from(weight)).sum::<i32>() - 77
        };
        let sums = std::array::from_fn(sum);
        for vectors in all_vectors() {
            assert_eq!(weighted(vectors, -77, all, &weights), [sums, [-77; 16], [-77; 16], sums]);
        }
    }

    #[test]
    fn the_nearest_integer_is_the_even_one_of_two() {
        let halves =
            (-400_000..400_000).map(|i| i as f32 / 4.0).chain([60_000.0, -60_000.0, 59_999.5, 0.49999997]);
        for value in halves {
            assert_eq!(nearest(value), value.round_ties_even() as i32, "{value}");
        }
        assert_eq!(quantise(f32::NAN, &CdfTable::new(-1, &[1, 2, 1]).unwrap(), 0.0), 0);
    }

    #[test]
    fn damaged_tables_are_refused() {
        assert!(Tables::parse(&[]).is_err());
        assert!(Tables::parse(&[0xff; 8]).is_err());
        let head = vec![160, 0, 48, 0, 101, 0, 2, 0];
        assert!(Tables::parse(&head).unwrap_err().to_string().contains("cut short"));
        for (at, value, message) in [(6, 1, "layout"), (4, 100, "impossible sizes")] {
            let mut head = head.clone();
            head[at] = value;
            assert!(Tables::parse(&head).unwrap_err().to_string().contains(message));
        }
    }

    #[test]
    fn optimised_rounding_never_moves_away_from_zero() {
        let frequencies: Vec<u16> = vec![100, 1000, 6000, 30000, 20000, 6000, 1000, 100];
        let table = CdfTable::new(-3, &frequencies).unwrap();
        for i in -40..=40 {
            let value = i as f32 / 10.0;
            let plain = quantise(value, &table, 0.0);
            let optimised = quantise(value, &table, 0.1);
            assert!(optimised.abs() <= plain.abs() && (plain - optimised).abs() <= 2);
        }
    }
}
