//! The loop that encoder and decoder go through (docs/FORMAT.md section 5.3): they differ in where a symbol comes from.
//!
//! Whatever need not wait for a symbol is done for whole rows.

use sdl_onnx::memory::zeros;

use super::channels::ChannelContext;
use super::trained::{
    CONTEXT_BITS, Grid, INDEX_BITS, LATENT_CLIP, MAGNITUDE, MEAN_BITS, MEAN_CLIP, Scales, Tables,
    UNGAIN_BITS, said_of_scale, shift_round,
};
use crate::Error;
use crate::entropy::{CdfSet, CdfTable, RangeDecoder};
use crate::vectors::{for_vectors, vectors};

impl Tables {
    /// Goes through the latent in coding order. `symbol` is asked for the symbol at a position (its number in (C, H, W)), given the
    /// table and the mean in 1/16; where the scale index is 0 the symbol is 0 and nobody is asked. Symbols lie within +-2^20.
    /// Returns the latent that the synthesis graph takes.
    ///
    /// `mean` is what the hyper-synthesis graph returned, on the padded grid.
    pub fn walk(
        &self,
        level: u8,
        z: &[i8],
        mean: &[f32],
        grid: Grid,
        symbol: impl FnMut(&CdfTable, usize, i32) -> Result<i32, Error>,
    ) -> Result<Vec<i16>, Error> {
        self.walk_rows(level, z, mean, grid, Asked(symbol))
    }

    /// The same with the symbols that `decoder` reads.
    pub fn decode(
        &self,
        level: u8,
        z: &[i8],
        mean: &[f32],
        grid: Grid,
        decoder: &mut RangeDecoder<'_>,
    ) -> Result<Vec<i16>, Error> {
        self.walk_rows(level, z, mean, grid, decoder)
    }

    /// Channel by channel, first the positions where row + column is even, then the others.
    fn walk_rows(
        &self,
        level: u8,
        z: &[i8],
        mean: &[f32],
        grid: Grid,
        mut source: impl Symbols,
    ) -> Result<Vec<i16>, Error> {
        let Grid { height, width } = grid;
        let vectors = vectors();
        let scales = Scales::new(self, level, z, grid);
        let mut channels = ChannelContext::new(&self.context_channel, grid.area());
        let padded = grid.padded();
        let all: Vec<usize> = (0..grid.hyper().area()).collect();
        let mut latent = zeros::<i16>(self.channels * grid.area());
        // Of one channel: means with what comes to them, scale indices, the tables that those mean, and the symbols of the first
        // half with a border of zeros, and whether a row has any.
        let mut units = vec![0; grid.area()];
        let mut indices = vec![0; grid.area()];
        let words = width.div_ceil(8);
        let mut tables = vec![[0; 8]; words * height];
        let stride = width + 2;
        let mut symbols = vec![0; stride * (height + 2)];
        let mut alive = vec![false; height + 2];
        // Of one row.
        let mut magnitudes = vec![0; width];
        let mut columns = vec![[0; 2]; 8 * words];
        let mut found = Vec::with_capacity(width);
        for c in 0..self.channels {
            let means = mean[c * padded.area()..][..padded.area()].chunks_exact(padded.width);
            units.chunks_exact_mut(width).zip(means).for_each(|(units, means)| whole(vectors, means, units));
            let latent = &mut latent[c * grid.area()..][..grid.area()];
            let context = channels.next();
            if scales.is_silent(c, || context.largest()) {
                dequantise(vectors, &units, self.ungain(level, c), latent);
                continue;
            }
            scales.plane(c, &all, &mut indices);
            context.add_to(&mut indices);
            symbols.fill(0);
            let weights = &self.context_mean.as_chunks().0[c];
            let said = MAGNITUDE.map(|magnitude| said_of_scale(magnitude, self.context_scale[c]));
            for half in 0..2 {
                for y in 0..height {
                    let first = y * width;
                    let (units, indices) = (&mut units[first..][..width], &mut indices[first..][..width]);
                    let tables = &mut tables[y * words..][..words];
                    let parity = (y + half) % 2;
                    let said_anew = half == 1 && alive[y..y + 3] != [false; 3];
                    if said_anew {
                        let rows = [0, 1, 2].map(|i| &symbols[(y + i) * stride..][..stride]);
                        neighbours(vectors, rows, weights, &mut magnitudes, units);
                        for x in (parity..width).step_by(2) {
                            indices[x] += said[usize::from(magnitudes[x])];
                        }
                    }
                    if half == 0 || said_anew {
                        table_numbers(vectors, indices, tables.as_flattened_mut());
                    }
                    let row = Row {
                        columns: coded(tables, parity, &mut columns),
                        tables: tables.as_flattened(),
                        cdf: &self.cdf,
                        first: c * grid.area() + first,
                        means: units,
                    };
                    source.row(row, &mut found)?;
                    if half == 0 {
                        alive[y + 1] = !found.is_empty();
                        found.iter().for_each(|&(x, symbol)| symbols[(y + 1) * stride + 1 + x] = symbol);
                    }
                    for (x, symbol) in found.drain(..) {
                        units[x] += symbol << MEAN_BITS;
                        channels.note(first + x, symbol);
                    }
                }
            }
            dequantise(vectors, &units, self.ungain(level, c), latent);
        }
        Ok(latent)
    }
}

/// Where symbols come from.
trait Symbols {
    /// Puts the columns and symbols of a row that are not 0 into `found`, which is empty.
    fn row(&mut self, row: Row<'_>, found: &mut Vec<(usize, i32)>) -> Result<(), Error>;
}

/// The symbols of a row that are asked for.
struct Row<'a> {
    columns: &'a [[u8; 2]],
    tables: &'a [u8],
    cdf: &'a CdfSet,
    /// The number of the first position in (C, H, W).
    first: usize,
    means: &'a [i32],
}

/// One who is asked for each.
struct Asked<F>(F);

impl<F: FnMut(&CdfTable, usize, i32) -> Result<i32, Error>> Symbols for Asked<F> {
    fn row(&mut self, row: Row<'_>, found: &mut Vec<(usize, i32)>) -> Result<(), Error> {
        for x in row.columns.iter().map(|&x| usize::from(u16::from_le_bytes(x))) {
            let symbol = self.0(&row.cdf[usize::from(row.tables[x])], row.first + x, row.means[x])?;
            if symbol != 0 {
                found.push((x, symbol));
            }
        }
        Ok(())
    }
}

impl Symbols for &mut RangeDecoder<'_> {
    #[inline(never)]
    fn row(&mut self, row: Row<'_>, found: &mut Vec<(usize, i32)>) -> Result<(), Error> {
        // A copy on its own may stay in registers.
        let mut decoder = self.clone();
        for x in row.columns.iter().map(|&x| usize::from(u16::from_le_bytes(x))) {
            let symbol = decoder.decode_symbol(&row.cdf[usize::from(row.tables[x])]);
            if symbol != 0 {
                found.push((x, symbol));
            }
        }
        **self = decoder;
        Ok(())
    }
}

/// One bit in each of four columns: 16 bits each, as [`coded`] writes them.
const LANES: u64 = 0x0001_0001_0001_0001;

/// The columns of one parity whose table is not 0, little endian.
#[inline(never)]
fn coded<'a>(tables: &[[u8; 8]], parity: usize, columns: &'a mut [[u8; 2]]) -> &'a [[u8; 2]] {
    let mut count = 0;
    for (at, tables) in tables.iter().enumerate() {
        let tables = (u64::from_le_bytes(*tables) >> (8 * parity)) & (0xff * LANES);
        // One bit for each that is not 0, then side by side at the top.
        let set = ((tables + 0x7f * LANES) >> 7) & LANES;
        let set = (set.wrapping_mul(0x0001_0002_0004_0008) >> 48) & 15;
        let (places, number) = PLACES[set as usize];
        let places = places + LANES * (8 * at + parity) as u64;
        columns[count..][..4].copy_from_slice(places.to_le_bytes().as_chunks().0);
        count += number;
    }
    &columns[..count]
}

/// Twice the numbers of those of four bits that are set, and how many they are.
const PLACES: [(u64, usize); 16] = {
    let mut all = [(0, 0); 16];
    let mut set = 0;
    while set < 16 {
        let mut bit = 0;
        while bit < 4 {
            if set >> bit & 1 == 1 {
                all[set].0 |= (2 * bit) << (16 * all[set].1);
                all[set].1 += 1;
            }
            bit += 1;
        }
        set += 1;
    }
    all
};

for_vectors!(
    /// Means as integers.
    fn whole(means: &[f32], units: &mut [i32]) = whole_loop, whole_v4, whole_v3, whole_plain
);

/// `mean as i32`, clamped: the compiler has no vectors for a conversion that knows what is not a number.
#[inline(always)]
fn whole_loop(means: &[f32], units: &mut [i32]) {
    /// From here to its double a `f32` is a whole number, in its lowest bits: an addition rounds.
    const WHOLE: f32 = (1 << 23) as f32;
    for (units, &mean) in units.iter_mut().zip(means) {
        let most = MEAN_CLIP as f32;
        let magnitude = if mean.abs() < most { mean.abs() } else { most };
        let nearest = magnitude + WHOLE;
        let up = nearest - WHOLE > magnitude;
        let whole = (nearest.to_bits() - WHOLE.to_bits()) as i32 - i32::from(up);
        *units = if mean < 0.0 { -whole } else { whole };
        if mean.is_nan() {
            *units = 0;
        }
    }
}

for_vectors!(
    /// What three rows of symbols, with borders, say of the positions between: their magnitudes, and what comes to the means.
    fn neighbours(rows: [&[i32]; 3], weights: &[i16; 4], magnitudes: &mut [u8], units: &mut [i32])
        = neighbours_loop, neighbours_v4, neighbours_v3, neighbours_plain
);

#[inline(always)]
fn neighbours_loop(rows: [&[i32]; 3], weights: &[i16; 4], magnitudes: &mut [u8], units: &mut [i32]) {
    let [above, beside, below] = rows;
    let weights = weights.map(i32::from);
    let around = above[1..].iter().zip(beside).zip(&beside[2..]).zip(&below[1..]);
    for ((magnitude, units), (((above, left), right), below)) in magnitudes.iter_mut().zip(units).zip(around)
    {
        let around = [*above, *left, *right, *below];
        *magnitude = around.iter().map(|s| s.abs()).sum::<i32>().min(31) as u8;
        // The product of 21 bits and 16, in two parts.
        let (mut high, mut low) = (0, 1 << (CONTEXT_BITS - 1));
        for (s, weight) in around.iter().zip(weights) {
            high += (s >> CONTEXT_BITS) * weight;
            low += (s & ((1 << CONTEXT_BITS) - 1)) * weight;
        }
        *units += high + (low >> CONTEXT_BITS);
    }
}

for_vectors!(
    /// The latent that so many 1/16 symbols are.
    fn dequantise(units: &[i32], ungain: u16, latent: &mut [i16]) = dequantise_loop, dequantise_v4, dequantise_v3, dequantise_plain
);

#[inline(always)]
fn dequantise_loop(units: &[i32], ungain: u16, latent: &mut [i16]) {
    let ungain = i32::from(ungain);
    // What is beyond is clipped anyway, and would leave 32 bits.
    let most = ((LATENT_CLIP + 1) << UNGAIN_BITS) / ungain.max(1) + 1;
    for (value, &units) in latent.iter_mut().zip(units) {
        *value = shift_round(units.clamp(-most, most) * ungain, UNGAIN_BITS).clamp(-LATENT_CLIP, LATENT_CLIP)
            as i16;
    }
}

for_vectors!(
    /// The tables that scale indices mean.
    fn table_numbers(indices: &[i32], tables: &mut [u8]) = table_numbers_loop, table_numbers_v4, table_numbers_v3, table_numbers_plain
);

#[inline(always)]
fn table_numbers_loop(indices: &[i32], tables: &mut [u8]) {
    for (table, &index) in tables.iter_mut().zip(indices) {
        *table = shift_round(index, INDEX_BITS).clamp(0, 63) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::super::trained::said_by_neighbours;
    use super::*;
    use crate::Model;
    use crate::vectors::all_vectors;
    use proptest::prelude::*;

    /// A symbol, mostly 0 and seldom as large as one may be.
    fn symbol() -> impl Strategy<Value = i32> {
        const MOST: i32 = crate::entropy::SYMBOL_LIMIT;
        prop_oneof![6 => Just(0), 6 => -3..=3, 1 => -MOST..=MOST, 1 => Just(MOST), 1 => Just(-MOST)]
    }

    proptest! {
        #[test]
        fn neighbours_of_a_row_say_what_each_four_do(
            symbols in proptest::collection::vec(symbol(), 3 * 21),
            weights in proptest::array::uniform4(any::<i16>()),
        ) {
            let rows: [&[i32]; 3] = std::array::from_fn(|i| &symbols[21 * i..][..21]);
            for vectors in all_vectors() {
                let (mut magnitudes, mut units) = ([0; 19], [5; 19]);
                neighbours(vectors, rows, &weights, &mut magnitudes, &mut units);
                for x in 0..19 {
                    let around = [rows[0][x + 1], rows[1][x], rows[1][x + 2], rows[2][x + 1]];
                    let wanted = said_by_neighbours(around, &weights, -200);
                    let context = said_of_scale(MAGNITUDE[usize::from(magnitudes[x])], -200);
                    prop_assert_eq!((context, units[x] - 5), wanted);
                }
            }
        }

        #[test]
        fn a_latent_is_units_times_their_step(
            units in proptest::collection::vec(prop_oneof![-40_000..40_000, -(1 << 30)..1 << 30], 19),
            ungain in prop_oneof![any::<u16>(), Just(0), Just(1)],
        ) {
            let value = |units: &i32| ((i64::from(*units) * i64::from(ungain) + 1024) >> 11).clamp(-2047, 2047) as i16;
            let wanted: Vec<i16> = units.iter().map(value).collect();
            for vectors in all_vectors() {
                let mut latent = [0; 19];
                dequantise(vectors, &units, ungain, &mut latent);
                prop_assert_eq!(&latent[..], &wanted);
            }
        }

        #[test]
        fn a_decoder_is_walked_as_one_who_is_asked(
            bytes in proptest::collection::vec(any::<u8>(), 0..3000),
            level in 0u8..=100,
            height in 1usize..12,
            width in 1usize..20,
            scale in 0i32..40,
        ) {
            let model = Model::built_in().unwrap();
            let tables = model.tables().unwrap();
            let grid = Grid { height, width };
            let z: Vec<i8> = (0..tables.hyper_len(grid)).map(|i| (i as i32 * 37 % 11 * scale / 10) as i8).collect();
            let mean: Vec<f32> =
                (0..tables.channels * grid.padded().area()).map(|i| (i % 99) as f32 - 50.0).collect();
            let mut decoder = RangeDecoder::new(&bytes);
            let latent = tables.decode(level, &z, &mean, grid, &mut decoder).unwrap();
            let mut asked = RangeDecoder::new(&bytes);
            let ask = |table: &CdfTable, _: usize, _: i32| Ok(asked.decode_symbol(table));
            prop_assert_eq!(tables.walk(level, &z, &mean, grid, ask).unwrap(), latent);
            prop_assert_eq!(format!("{decoder:?}"), format!("{asked:?}"));
        }
    }

    #[test]
    fn means_are_whole_numbers_within_their_limits() {
        let special =
            [1e30, f32::NAN, f32::INFINITY, 0.99999994, 32766.998, 32767.002, 4_194_304.5, 8_388_608.0];
        let numbers =
            (-70_000..70_000).map(|i| i as f32 / 2.0 + 0.25).chain((-40_000..40_000).map(|i| i as f32));
        let means: Vec<f32> = numbers.chain(special).chain(special.map(|mean| -mean)).collect();
        let wanted: Vec<i32> = means.iter().map(|&mean| (mean as i32).clamp(-MEAN_CLIP, MEAN_CLIP)).collect();
        for vectors in all_vectors() {
            let mut units = vec![7; means.len()];
            whole(vectors, &means, &mut units);
            assert_eq!(units, wanted);
        }
    }

    #[test]
    fn columns_are_those_of_their_parity_whose_table_is_not_0() {
        let tables: Vec<[u8; 8]> =
            (0..16).map(|set: u8| std::array::from_fn(|x| (set >> (x / 2) & 1) * 63)).collect();
        for parity in [0, 1] {
            let mut columns = vec![[0; 2]; 8 * tables.len()];
            let found: Vec<u16> =
                coded(&tables, parity, &mut columns).iter().map(|&x| u16::from_le_bytes(x)).collect();
            let flat = tables.as_flattened();
            let wanted: Vec<u16> =
                (0..flat.len()).filter(|&x| x % 2 == parity && flat[x] != 0).map(|x| x as u16).collect();
            assert_eq!(found, wanted);
        }
    }
}
