//! How the hyper-latent is coded (docs/FORMAT.md section 5.2): position by position, each value about a mean and with a table that
//! come of all values above and to the left and of the channels before. Integers only.
//!
//! Encoder and decoder walk the same loop ([`Tables::walk_hyper`]) and differ in where a symbol comes from.

use super::channels::small;
use super::trained::{Grid, INDEX_BITS, Tables, quantise, shift_round};
use crate::Error;
use crate::entropy::{CdfTable, RangeDecoder, RangeEncoder};
use crate::vectors::{for_vectors, vectors};

/// The hyper-latent lies within this.
pub(crate) const HYPER_CLIP: i32 = 127;
/// Hyper-latent values and their means are integers of 1/4 symbol.
const VALUE_BITS: u32 = 2;
/// Fraction bits of the weights of a mean, and of those of a scale index once they are times a magnitude.
const MEAN_WEIGHT_BITS: u32 = 6;
const SCALE_WEIGHT_BITS: u32 = 9;
/// Where a value is seen from: all channels above, all to the left, those before.
const SIDES: usize = 3;

/// What `tables.bin` says of the hyper-latent.
#[derive(Debug)]
pub(crate) struct HyperPrior {
    /// (level, channel): the likeliest value in 1/4, and the scale index in 1/256.
    pub mean: Vec<i8>,
    pub scale: Vec<i16>,
    /// (channel, side, channel seen there)
    pub context_mean: Vec<i8>,
    pub context_scale: Vec<i8>,
}

impl HyperPrior {
    /// How many values each one is seen from, when there are so many channels.
    pub fn seen(channels: usize) -> usize {
        SIDES * channels
    }
}

impl Tables {
    /// Goes through the values (K, H / 4, W / 4) in coding order: the positions that are `sent` from the top left, and at each one all
    /// channels. The others are known already, and are in `z`. `symbol` is asked for the symbol of a value, by its number, given the
    /// table and the mean in 1/4; where the scale index is 0 the symbol is 0 and nobody is asked.
    fn walk_hyper(
        &self,
        level: u8,
        grid: Grid,
        z: &mut [i8],
        sent: impl Fn(usize) -> bool,
        mut symbol: impl FnMut(&CdfTable, usize, i32) -> Result<i32, Error>,
    ) -> Result<(), Error> {
        let (count, hyper) = (self.hyper_channels, grid.hyper());
        let HyperPrior { mean, scale, context_mean, context_scale } = &self.hyper;
        let start = &mean[self.row(level) * count..][..count];
        let scale = &scale[self.row(level) * count..][..count];
        let seen = HyperPrior::seen(count);
        let vectors = vectors();
        // How far values are from `start`, in each column in the last row that was there, and what the scales get from that.
        let mut columns = vec![vec![0i16; count]; hyper.width];
        let (mut values, mut magnitudes) = (vec![0i16; seen], vec![0i16; seen]);
        for at in 0..hyper.area() {
            let x = at % hyper.width;
            values.fill(0);
            values[..count].copy_from_slice(&columns[x]);
            if x > 0 {
                values[count..2 * count].copy_from_slice(&columns[x - 1]);
            }
            magnitudes
                .iter_mut()
                .zip(&values)
                .for_each(|(magnitude, &value)| *magnitude = small(value.into()));
            let sent = sent(at);
            for c in 0..count {
                let place = c * hyper.area() + at;
                if sent {
                    let weigh = |weights: &[i8], values| weigh(vectors, &weights[c * seen..][..seen], values);
                    let context = shift_round(weigh(context_mean, &values), MEAN_WEIGHT_BITS);
                    let mean = (i32::from(start[c]) + context).clamp(-HYPER_CLIP, HYPER_CLIP);
                    let context =
                        shift_round(weigh(context_scale, &magnitudes), SCALE_WEIGHT_BITS - INDEX_BITS);
                    let index = shift_round(i32::from(scale[c]) + context, INDEX_BITS).clamp(0, 63);
                    let s = if index > 0 { symbol(&self.cdf[index as usize], place, mean)? } else { 0 };
                    z[place] = i8::try_from(i64::from(mean) + (i64::from(s) << VALUE_BITS))
                        .ok()
                        .filter(|value| i32::from(*value).abs() <= HYPER_CLIP)
                        .ok_or_else(|| Error::corrupt("a hyper-latent value is out of range"))?;
                }
                let value = i16::from(z[place]) - i16::from(start[c]);
                (values[2 * count + c], magnitudes[2 * count + c]) = (value, small(i32::from(value)));
            }
            columns[x].copy_from_slice(&values[2 * count..]);
        }
        Ok(())
    }

    /// What `latent`, in symbols, is coded as: into `z`, at the positions that are `sent`.
    pub fn quantise_hyper(
        &self,
        level: u8,
        grid: Grid,
        latent: &[f32],
        z: &mut [i8],
        sent: impl Fn(usize) -> bool,
    ) -> Result<(), Error> {
        self.walk_hyper(level, grid, z, sent, |table, at, mean| {
            let unit = 1 << VALUE_BITS;
            let (least, most) = (-((HYPER_CLIP + mean) / unit), (HYPER_CLIP - mean) / unit);
            Ok(quantise(latent[at] - mean as f32 / unit as f32, table, 0.0).clamp(least, most))
        })
    }

    /// Writes what [`quantise_hyper`](Self::quantise_hyper) has made.
    pub fn encode_hyper(
        &self,
        level: u8,
        grid: Grid,
        z: &[i8],
        sent: impl Fn(usize) -> bool,
        encoder: &mut RangeEncoder,
    ) -> Result<(), Error> {
        self.walk_hyper(level, grid, &mut z.to_vec(), sent, |table, at, mean| {
            let symbol = (i32::from(z[at]) - mean) >> VALUE_BITS;
            encoder.encode_symbol(table, symbol)?;
            Ok(symbol)
        })
    }

    /// The inverse of [`encode_hyper`](Self::encode_hyper): `z` has the values that are not `sent`, and gets the others.
    pub fn decode_hyper(
        &self,
        level: u8,
        grid: Grid,
        z: &mut [i8],
        sent: impl Fn(usize) -> bool,
        decoder: &mut RangeDecoder<'_>,
    ) -> Result<(), Error> {
        self.walk_hyper(level, grid, z, sent, |table, _, _| Ok(decoder.decode_symbol(table)))
    }

    /// Values of a hyper-latent above `grid`.
    pub fn hyper_len(&self, grid: Grid) -> usize {
        self.hyper_channels * grid.hyper().area()
    }
}

for_vectors!(
    /// The sum of `values`, each times its weight. Below 2^31 for up to 768 of them that are within +-2^14.
    fn weigh(weights: &[i8], values: &[i16]) -> i32 = weigh_loop, weigh_v4, weigh_v3, weigh_plain
);

#[inline(always)]
fn weigh_loop(weights: &[i8], values: &[i16]) -> i32 {
    weights.iter().zip(values).map(|(&weight, &value)| i32::from(weight) * i32::from(value)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Model;
    use crate::vectors::all_vectors;
    use proptest::prelude::*;

    /// A tile, what its values are before they are rounded (some far outside), those known before, and which positions are sent.
    fn hyper() -> impl Strategy<Value = (u8, Grid, Vec<f32>, Vec<i8>, Vec<bool>)> {
        (0u8..=100, 1usize..14, 1usize..14).prop_flat_map(|(level, height, width)| {
            let grid = Grid { height, width };
            let count = 48 * grid.hyper().area();
            let value = prop_oneof![20 => -3f32..3.0, 1 => -1e6f32..1e6, 1 => Just(f32::NAN)];
            (
                Just(level),
                Just(grid),
                proptest::collection::vec(value, count),
                proptest::collection::vec(-127i8..=127, count),
                proptest::collection::vec(any::<bool>(), grid.hyper().area()),
            )
        })
    }

    proptest! {
        #[test]
        fn what_is_sent_comes_back_and_the_rest_stays((level, grid, latent, before, sent) in hyper()) {
            let model = Model::built_in().unwrap();
            let tables = model.tables().unwrap();
            let sent = |at: usize| sent[at];
            let mut z = before.clone();
            tables.quantise_hyper(level, grid, &latent, &mut z, sent).unwrap();
            let mut encoder = RangeEncoder::new();
            tables.encode_hyper(level, grid, &z, sent, &mut encoder).unwrap();
            let bytes = encoder.finish();
            let mut decoder = RangeDecoder::new(&bytes);
            let mut decoded = before.clone();
            tables.decode_hyper(level, grid, &mut decoded, sent, &mut decoder).unwrap();
            prop_assert_eq!(decoder.finish(), Ok(()));
            prop_assert_eq!(&decoded, &z);
            for (at, (&z, &before)) in z.iter().zip(&before).enumerate() {
                prop_assert!(z > i8::MIN && (sent(at % grid.hyper().area()) || z == before));
            }
        }

        #[test]
        fn bytes_of_an_enemy_are_values_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let model = Model::built_in().unwrap();
            let tables = model.tables().unwrap();
            let grid = Grid { height: 9, width: 5 };
            let mut z = vec![0; tables.hyper_len(grid)];
            if tables.decode_hyper(50, grid, &mut z, |_| true, &mut RangeDecoder::new(&bytes)).is_ok() {
                prop_assert!(z.iter().all(|&z| z > i8::MIN));
            }
        }
    }

    #[test]
    fn values_are_as_near_as_a_symbol_lets_them() {
        let model = Model::built_in().unwrap();
        let tables = model.tables().unwrap();
        let grid = Grid { height: 16, width: 16 };
        let latent: Vec<f32> =
            (0..tables.hyper_len(grid)).map(|i| (i * 7919 % 101) as f32 / 25.0 - 2.0).collect();
        let mut z = vec![0; latent.len()];
        tables.quantise_hyper(60, grid, &latent, &mut z, |_| true).unwrap();
        let near = z.iter().zip(&latent).filter(|(z, v)| (f32::from(**z) / 4.0 - **v).abs() <= 0.5).count();
        // The rest are of channels that say nothing at this level, and are what is expected of them.
        assert!(near > z.len() * 3 / 4, "{near} of {}", z.len());
    }

    #[test]
    fn weights_add_up_to_the_same_with_all_vectors() {
        let weights: Vec<i8> = (0..150).map(|i| (i * 37 % 255 - 127) as i8).collect();
        let values: Vec<i16> = (0..150).map(|i| (i * 71 % 509 - 254) as i16).collect();
        let sum = (0..150).map(|i| (i * 37 % 255 - 127) * (i * 71 % 509 - 254)).sum::<i32>();
        for vectors in all_vectors() {
            assert_eq!(weigh(vectors, &weights, &values), sum);
        }
    }
}
