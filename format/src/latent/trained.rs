//! The trained path: which table codes a symbol, and what value a symbol stands for (docs/FORMAT.md section 5).
//!
//! Integers only. The scale index comes from the hyper-latent by one linear map, from the channels before at the same
//! position, and on the second half of a checkerboard also from the neighbours of the first; the mean comes from the
//! hyper-synthesis graph and from those neighbours.
//! Encoder and decoder walk the same loop ([`Tables::walk`]) and differ in where a symbol comes from.

use byteorder::{ByteOrder, LE};
use sdl_onnx::memory::zeros;

use super::channels::{ChannelContext, ChannelWeights};
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
pub(super) const LATENT_CLIP: i64 = 2047;
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

    /// Goes through the latent in coding order: channel by channel, first the positions where row + column is even, then
    /// the others. `symbol` is asked for the symbol at a position (its number in (C, H, W)), given the table and the
    /// mean in 1/16; where the scale index is 0 the symbol is 0 and nobody is asked. Returns the latent that the
    /// synthesis graph takes.
    ///
    /// `mean` is what the hyper-synthesis graph returned, on the padded grid.
    pub fn walk(
        &self,
        level: u8,
        z: &[i8],
        mean: &[f32],
        grid: Grid,
        mut symbol: impl FnMut(&CdfTable, usize, i32) -> Result<i32, Error>,
    ) -> Result<Vec<i16>, Error> {
        let Grid { height, width } = grid;
        let scales = Scales::new(self, level, z, grid);
        let mut channels = ChannelContext::new(&self.context_channel, grid.area());
        let mut indices = vec![0i32; grid.area()];
        let padded = grid.padded();
        let mut latent = zeros::<i16>(self.channels * grid.area());
        // Of one channel: the tables of the first pass, its symbols with a border of zeros, and which of those are not 0.
        let mut tables = Bytes::new(grid);
        let mut coded = Bytes::new(grid);
        let stride = width + 2;
        let mut symbols = vec![0i32; stride * (height + 2)];
        for c in 0..self.channels {
            let ungain = self.ungain[self.row(level) * self.channels + c];
            let dequantise = |mean: i32, symbol: i32| {
                let value = i64::from(mean) + (i64::from(symbol) << MEAN_BITS);
                ((value * i64::from(ungain) + (1 << (UNGAIN_BITS - 1))) >> UNGAIN_BITS)
                    .clamp(-LATENT_CLIP, LATENT_CLIP) as i16
            };
            let means = &mean[c * padded.area()..][..padded.area()];
            let latent = &mut latent[c * grid.area()..][..grid.area()];
            // What most positions come to, for most symbols are 0.
            for (latent, means) in latent.chunks_exact_mut(width).zip(means.chunks_exact(padded.width)) {
                silent(scales.vectors, means, ungain, latent);
            }
            let context = channels.plane(c);
            if scales.is_silent(c, || context.largest()) {
                continue;
            }
            scales.plane(c, |_| true, &mut indices);
            context.add_to(&mut indices);
            for (y, indices) in indices.chunks_exact(width).enumerate() {
                table_numbers(scales.vectors, indices, &mut tables.row_mut(y)[..width]);
            }
            symbols.fill(0);
            coded.bytes.fill(0);
            for y in 0..height {
                let (latent, means) =
                    (&mut latent[y * width..][..width], &means[y * padded.width..][..width]);
                let symbols = &mut symbols[(y + 1) * stride + 1..][..width];
                let (tables, coded) = (tables.row(y), coded.row_mut(y));
                for x in columns(width, y % 2, |x| eight(tables, x)) {
                    let mean = (means[x] as i32).clamp(-MEAN_CLIP, MEAN_CLIP);
                    let s = symbol(&self.cdf[usize::from(tables[x])], c * grid.area() + y * width + x, mean)?;
                    if s != 0 {
                        (symbols[x], coded[x]) = (s, 1);
                        latent[x] = dequantise(mean, s);
                        channels.note(c, y * width + x, s);
                    }
                }
            }
            let weights = &self.context_mean[4 * c..][..4];
            let scale_weight = i32::from(self.context_scale[c]);
            for y in 0..height {
                let row = y * width..(y + 1) * width;
                let (indices, latent) = (&indices[row.clone()], &mut latent[row]);
                let means = &means[y * padded.width..][..width];
                let above = &symbols[y * stride + 1..][..width];
                let beside = &symbols[(y + 1) * stride..][..width + 2];
                let below = &symbols[(y + 2) * stride + 1..][..width];
                let tables = tables.row(y);
                // Where the table is 0 and so are the neighbours, the symbol is 0 and the mean what it was.
                let around = |x: usize| coded.around(y, x) | eight(tables, x);
                for x in columns(width, (y + 1) % 2, around) {
                    let around = [above[x], beside[x], beside[x + 2], below[x]];
                    let (context, shift) = if around == [0; 4] {
                        (0, 0)
                    } else {
                        said_by_neighbours(around, weights, scale_weight)
                    };
                    let index = shift_round(indices[x] + context, INDEX_BITS).clamp(0, 63);
                    if index == 0 && shift == 0 {
                        continue;
                    }
                    let mean = (means[x] as i32).clamp(-MEAN_CLIP, MEAN_CLIP) + shift;
                    let s = if index > 0 {
                        symbol(&self.cdf[index as usize], c * grid.area() + y * width + x, mean)?
                    } else {
                        0
                    };
                    latent[x] = dequantise(mean, s);
                    if s != 0 {
                        channels.note(c, y * width + x, s);
                    }
                }
            }
        }
        Ok(latent)
    }
}

/// What the four neighbours of the first pass say of the scale index, in 1/2^`INDEX_BITS`, and of the mean.
#[inline]
pub(super) fn said_by_neighbours(around: [i32; 4], weights: &[i16], scale_weight: i32) -> (i32, i32) {
    // What a delta picture was may be far from its mean.
    let magnitude = around.iter().fold(0u32, |sum, s| sum.saturating_add(s.unsigned_abs())).min(31);
    let context = shift_round(scale_weight * MAGNITUDE[magnitude as usize], CONTEXT_BITS);
    // Symbols reach 2^20 and weights 2^15: the sum needs 38 bits.
    let sum: i64 = around.iter().zip(weights).map(|(&s, &w)| i64::from(s) * i64::from(w)).sum();
    (context, ((sum + (1 << (CONTEXT_BITS - 1))) >> CONTEXT_BITS) as i32)
}

/// A byte for each position of a channel, with a border, and room to read eight at a time.
struct Bytes {
    stride: usize,
    bytes: Vec<u8>,
}

impl Bytes {
    fn new(grid: Grid) -> Self {
        let stride = 1 + grid.width + 8;
        Bytes { stride, bytes: vec![0; stride * (grid.height + 2)] }
    }

    fn row(&self, y: usize) -> &[u8] {
        &self.bytes[(y + 1) * self.stride + 1..][..self.stride - 1]
    }

    fn row_mut(&mut self, y: usize) -> &mut [u8] {
        &mut self.bytes[(y + 1) * self.stride + 1..][..self.stride - 1]
    }

    /// What is above, left, right or below of eight positions.
    #[inline(always)]
    fn around(&self, y: usize, x: usize) -> u64 {
        let line = |y: usize| &self.bytes[y * self.stride..][..self.stride];
        eight(line(y), x + 1) | eight(line(y + 1), x) | eight(line(y + 1), x + 2) | eight(line(y + 2), x + 1)
    }
}

/// Eight bytes from `x` on, the first one lowest.
#[inline(always)]
fn eight(bytes: &[u8], x: usize) -> u64 {
    LE::read_u64(&bytes[x..])
}

/// The columns of one parity whose byte in `word`, which gives eight from a column on, is not 0.
#[inline(always)]
fn columns(width: usize, parity: usize, word: impl Fn(usize) -> u64) -> impl Iterator<Item = usize> {
    const EVEN: u64 = 0x00ff_00ff_00ff_00ff;
    let mask = EVEN << (8 * parity);
    let mut next = 0;
    let (mut base, mut left) = (0, 0);
    std::iter::from_fn(move || {
        while left == 0 {
            if next >= width {
                return None;
            }
            (base, left) = (next, word(next) & mask);
            next += 8;
        }
        let byte = left.trailing_zeros() / 8;
        left &= !(0xff << (8 * byte));
        Some(base + byte as usize).filter(|x| *x < width)
    })
}

/// The weights of two hyper-latent channels on the positions under one of the hyper-latent: side by side, as a processor
/// multiplies and adds them in one instruction.
type PairWeights = [[i16; 2]; HYPER * HYPER];

/// The scale indices that a hyper-latent says, before the context, in 1/256.
pub(super) struct Scales<'a> {
    tables: &'a Tables,
    bias: &'a [i16],
    grid: Grid,
    /// (position, pair of hyper-latent channels)
    values: Vec<[i16; 2]>,
    /// The largest magnitudes of each pair of hyper-latent channels.
    largest: Vec<[i32; 2]>,
    vectors: Vectors,
}

impl<'a> Scales<'a> {
    pub fn new(tables: &'a Tables, level: u8, z: &[i8], grid: Grid) -> Self {
        let (area, pairs) = (grid.hyper().area(), tables.hyper_channels.div_ceil(2));
        let mut values = vec![[0; 2]; area * pairs];
        let mut largest = vec![[0; 2]; pairs];
        for (k, plane) in z.chunks_exact(area).enumerate() {
            for (values, &value) in values.chunks_exact_mut(pairs).zip(plane) {
                values[k / 2][k % 2] = value.into();
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
    pub fn plane(&self, c: usize, wanted: impl Fn(usize) -> bool, plane: &mut [i32]) {
        let Grid { height, width } = self.grid;
        let hyper = self.grid.hyper();
        let weights = self.weights(c);
        for (at, values) in self.values.chunks_exact(weights.len()).enumerate() {
            if !wanted(at) {
                continue;
            }
            let sums = weighted(self.vectors, self.bias[c].into(), values, weights);
            let (top, left) = (at / hyper.width * HYPER, at % hyper.width * HYPER);
            let count = HYPER.min(width - left);
            for (y, row) in (top..height).zip(sums.chunks_exact(HYPER)) {
                plane[y * width + left..][..count].copy_from_slice(&row[..count]);
            }
        }
    }
}

for_vectors!(
    /// `bias` and the weights of all `values`, place by place. Values have 8 bits.
    fn weighted(bias: i32, values: &[[i16; 2]], weights: &[PairWeights]) -> [i32; HYPER * HYPER]
        = weighted_v3, weighted_plain
);

fn weighted_plain(bias: i32, values: &[[i16; 2]], weights: &[PairWeights]) -> [i32; HYPER * HYPER] {
    let mut sums = [bias; HYPER * HYPER];
    for ([first, second], weights) in values.iter().zip(weights) {
        for (sum, weights) in sums.iter_mut().zip(weights) {
            *sum += i32::from(weights[0]) * i32::from(*first) + i32::from(weights[1]) * i32::from(*second);
        }
    }
    sums
}

/// Left to itself the compiler takes three times as long.
#[cfg(target_arch = "x86_64")]
#[archmage::arcane(import_intrinsics)]
fn weighted_v3(
    _token: archmage::X64V3Token,
    bias: i32,
    values: &[[i16; 2]],
    weights: &[PairWeights],
) -> [i32; HYPER * HYPER] {
    let mut sums = [_mm256_set1_epi32(bias); 2];
    for ([first, second], weights) in values.iter().zip(weights) {
        let pair = _mm256_set1_epi32(i32::from(*first) & 0xffff | i32::from(*second) << 16);
        for (sum, weights) in sums.iter_mut().zip(weights.as_flattened().as_chunks::<16>().0) {
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pair, _mm256_loadu_si256(weights)));
        }
    }
    let mut result = [0; HYPER * HYPER];
    for (result, sum) in result.as_chunks_mut::<8>().0.iter_mut().zip(sums) {
        _mm256_storeu_si256(result, sum);
    }
    result
}

for_vectors!(
    /// The latent where symbols are 0.
    fn silent(means: &[f32], ungain: u16, latent: &mut [i16]) = silent_loop, silent_v3, silent_plain
);

#[inline(always)]
fn silent_loop(means: &[f32], ungain: u16, latent: &mut [i16]) {
    for (value, &mean) in latent.iter_mut().zip(means) {
        // 15 bits times 16 bits, less than 2^31 with what rounds it.
        let units = (mean as i32).clamp(-MEAN_CLIP, MEAN_CLIP) * i32::from(ungain);
        *value = shift_round(units, UNGAIN_BITS).clamp(-LATENT_CLIP as i32, LATENT_CLIP as i32) as i16;
    }
}

for_vectors!(
    /// The tables that scale indices mean.
    fn table_numbers(indices: &[i32], tables: &mut [u8]) = table_numbers_loop, table_numbers_v3, table_numbers_plain
);

#[inline(always)]
fn table_numbers_loop(indices: &[i32], tables: &mut [u8]) {
    for (table, &index) in tables.iter_mut().zip(indices) {
        *table = shift_round(index, INDEX_BITS).clamp(0, 63) as u8;
    }
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

    #[test]
    fn the_magnitude_table_is_the_logarithm_that_the_format_says() {
        for (n, &value) in MAGNITUDE.iter().enumerate() {
            assert_eq!(value, (256.0 * (n as f64).ln_1p()).round() as i32);
        }
    }

    #[test]
    fn weights_add_up_to_the_same_with_and_without_vectors() {
        let weights: Vec<PairWeights> = (0..5i16)
            .map(|k| std::array::from_fn(|i| [3000 * k - 997 * i as i16, i16::MAX - 400 * i as i16]))
            .collect();
        let values = [[0, 127], [4, -127], [-128, 2], [3, -60], [127, 127]];
        let found = weighted(vectors(), -77, &values, &weights);
        assert_eq!(found, weighted_plain(-77, &values, &weights));
        let sum = |place: usize| {
            let all = values.as_flattened().iter().zip(weights.iter().flat_map(|w| w[place]));
            all.map(|(value, weight)| i32::from(*value) * i32::from(weight)).sum::<i32>() - 77
        };
        assert_eq!(found, std::array::from_fn(sum));
    }

    #[test]
    fn columns_are_those_of_their_parity_that_are_open_up_to_the_width() {
        for width in [1, 7, 8, 9, 23] {
            for parity in [0, 1] {
                let mut open = Bytes::new(Grid { height: 1, width });
                let wanted: Vec<usize> = (0..width).filter(|x| x % 3 != 1 && x % 2 == parity).collect();
                open.bytes.fill(7);
                (0..width).filter(|x| x % 3 == 1).for_each(|x| open.row_mut(0)[x] = 0);
                let found: Vec<usize> = columns(width, parity, |x| eight(open.row(0), x)).collect();
                assert_eq!(found, wanted, "{width} {parity}");
            }
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
