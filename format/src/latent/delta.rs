//! A tile coded against the same tile of the picture before (docs/FORMAT.md section 5.6).
//!
//! Each position says how it is coded ([`Mode`]); what is skipped is exactly what it was and costs next to nothing. The others are coded
//! as in [`trained`](super::trained), with tables of the bundle and in the same order, around the mean that the hyper-latent gives, or
//! around what the position was. Integers only, as there.

use super::channels::ChannelContext;
use super::trained::{
    Grid, HYPER, INDEX_BITS, LATENT_CLIP, MEAN_BITS, MEAN_CLIP, Scales, Tables, UNGAIN_BITS,
    said_by_neighbours, shift_round,
};
use crate::Error;
use crate::entropy::{Average, BinaryCoder, CdfTable, RangeDecoder, RangeEncoder};

/// How a position is coded, in all its channels.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Not at all: it is what it was.
    #[default]
    Skip,
    /// As a change of what it was.
    Inter,
    /// As in a key picture.
    Intra,
}

/// What a picture leaves of a tile for the next one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct TileState {
    /// As the synthesis graph takes it, (C, H, W).
    pub latent: Vec<i16>,
    /// (K, H / 4, W / 4), each rounded up.
    pub hyper: Vec<i8>,
}

/// Everything of a delta tile but its symbols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Of each position.
    pub modes: Vec<Mode>,
    /// The hyper-latent positions whose values are sent anew; elsewhere they are what they were.
    pub renewed: Vec<bool>,
    /// How much narrower changes are than what the hyper-latent expects of a key picture: [`SHRINK_STEP`]s of a table index.
    pub shrink: u8,
}

/// What both sides know of a delta tile in front of its symbols.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sides<'a> {
    /// The hyper-latent, old values and renewed ones.
    pub z: &'a [i8],
    /// What the hyper-synthesis makes of it, on the padded grid.
    pub mean: &'a [f32],
    /// The latent of the picture before.
    pub before: &'a [i16],
}

/// Bits of [`Plan::shrink`] in the file.
const SHRINK_BITS: u32 = 4;
/// Table indices that one unit of it stands for; two of them are a fifth of the scale.
const SHRINK_STEP: i32 = 2;
/// The number of values of [`Plan::shrink`].
pub(crate) const SHRINKS: u8 = 1 << SHRINK_BITS;
/// Probabilities, in 1/65536, keep away from certainty.
const MIN_PROBABILITY: i32 = 16;
/// Decisions after which a probability adapts no more slowly.
const ADAPTATION_LIMIT: u32 = 60;

/// A probability that learns.
fn decide(coder: &mut impl BinaryCoder, average: &mut Average, value: bool) -> bool {
    let value = coder.code_bit(average.value as u32, value);
    average.update(if value { 65_535 } else { 0 }, ADAPTATION_LIMIT);
    average.value = average.value.clamp(MIN_PROBABILITY, 65_536 - MIN_PROBABILITY);
    value
}

impl Plan {
    /// Nothing but skipped positions.
    pub fn still(grid: Grid) -> Self {
        Plan { modes: vec![Mode::Skip; grid.area()], renewed: vec![false; grid.hyper().area()], shrink: 0 }
    }

    /// Whether there is anything to code.
    pub fn is_still(&self) -> bool {
        self.modes.iter().all(|&mode| mode == Mode::Skip)
    }

    /// How many positions under a hyper-latent position are coded, and how many of those as in a key picture.
    pub fn counts(&self, grid: Grid) -> Vec<(u32, u32)> {
        let mut counts = vec![(0, 0); grid.hyper().area()];
        for (at, &mode) in self.modes.iter().enumerate() {
            let (y, x) = (at / grid.width, at % grid.width);
            let count = &mut counts[y / HYPER * grid.hyper().width + x / HYPER];
            count.0 += u32::from(mode != Mode::Skip);
            count.1 += u32::from(mode == Mode::Intra);
        }
        counts
    }

    pub fn encode(&self, grid: Grid, encoder: &mut RangeEncoder) {
        encoder.encode_bypass(self.shrink.into(), SHRINK_BITS);
        let mut copy = self.clone();
        copy.walk(grid, encoder);
    }

    pub fn decode(grid: Grid, decoder: &mut RangeDecoder<'_>) -> Self {
        let shrink = decoder.decode_bypass(SHRINK_BITS) as u8;
        let mut plan = Plan { shrink, ..Plan::still(grid) };
        plan.walk(grid, decoder);
        plan
    }

    /// Encoder and decoder in one: every decision is taken from the plan, and what the coder makes of it is put there.
    fn walk(&mut self, grid: Grid, coder: &mut impl BinaryCoder) {
        let mut coded = [Average { value: 4096, count: 2 }; 8];
        let mut intra = [Average { value: 32_768, count: 0 }; 3];
        for y in 0..grid.height {
            for x in 0..grid.width {
                let at = y * grid.width + x;
                let mode = |there: bool, at: usize| if there { self.modes[at] } else { Mode::Skip };
                let west = mode(x > 0, at.wrapping_sub(1));
                let north = mode(y > 0, at.wrapping_sub(grid.width));
                let north_east = mode(y > 0 && x + 1 < grid.width, (at + 1).wrapping_sub(grid.width));
                let context = [west, north, north_east]
                    .iter()
                    .rev()
                    .fold(0, |context, &mode| 2 * context + usize::from(mode != Mode::Skip));
                let now = self.modes[at];
                self.modes[at] = if !decide(coder, &mut coded[context], now != Mode::Skip) {
                    Mode::Skip
                } else {
                    let context = usize::from(west == Mode::Intra) + usize::from(north == Mode::Intra);
                    let value = decide(coder, &mut intra[context], now == Mode::Intra);
                    if value { Mode::Intra } else { Mode::Inter }
                };
            }
        }
        let mut renewed = [Average { value: 32_768, count: 0 }; 3];
        for (at, (coded, intra)) in self.counts(grid).into_iter().enumerate() {
            if coded > 0 {
                let context = intra.div_ceil((HYPER * HYPER) as u32 / 2) as usize;
                self.renewed[at] = decide(coder, &mut renewed[context], self.renewed[at]);
            }
        }
    }
}

impl Tables {
    /// As [`walk`](Self::walk), over the positions that `plan` does not skip. `symbol` also gets the mode, and a mean that in [`Mode::Inter`] counts from the old value.
    pub fn walk_delta(
        &self,
        level: u8,
        Sides { z, mean, before }: Sides<'_>,
        plan: &Plan,
        grid: Grid,
        mut symbol: impl FnMut(&CdfTable, usize, Mode, i32) -> Result<i32, Error>,
    ) -> Result<Vec<i16>, Error> {
        let coded = |(at, (count, _)): (usize, &(u32, u32))| (*count > 0).then_some(at);
        let wanted: Vec<usize> = plan.counts(grid).iter().enumerate().filter_map(coded).collect();
        let scales = Scales::new(self, level, z, grid);
        let mut channels = ChannelContext::new(&self.context_channel, grid.area());
        let mut indices = vec![0i32; grid.area()];
        let padded = grid.padded();
        let shrink = SHRINK_STEP * i32::from(plan.shrink);
        let halves = halves(plan, grid);
        let mut latent = before.to_vec();
        // Of one channel, with a border of zeros: how far each position is from its mean and from its old value, in symbols.
        let stride = grid.width + 2;
        let mut from_mean = vec![0i32; stride * (grid.height + 2)];
        let mut from_old = from_mean.clone();
        for c in 0..self.channels {
            let ungain = i64::from(self.ungain(level, c));
            let weights = &self.context_mean[4 * c..][..4];
            let scale_weight = self.context_scale[c];
            let plane = c * grid.area();
            scales.plane(c, &wanted, &mut indices);
            channels.next().add_to(&mut indices);
            from_mean.fill(0);
            from_old.fill(0);
            for (half, positions) in halves.iter().enumerate() {
                for &Position { at, mode } in positions {
                    let (y, x) = (at / grid.width, at % grid.width);
                    let middle = (y + 1) * stride + x + 1;
                    let mean =
                        (mean[c * padded.area() + y * padded.width + x] as i32).clamp(-MEAN_CLIP, MEAN_CLIP);
                    let old = i64::from(before[plane + at]);
                    // The old value in 1/16 symbol.
                    let old_units = if ungain == 0 {
                        0
                    } else {
                        ((old << UNGAIN_BITS) + ungain / 2)
                            .div_euclid(ungain)
                            .clamp(-i64::from(MEAN_CLIP), i64::from(MEAN_CLIP)) as i32
                    };
                    let nearest = |units: i32| shift_round(units, MEAN_BITS);
                    let symbols = if mode == Mode::Inter { &from_old } else { &from_mean };
                    let (context, shift) = if half == 0 || mode == Mode::Skip {
                        (0, 0)
                    } else {
                        let around = [
                            symbols[middle - stride],
                            symbols[middle - 1],
                            symbols[middle + 1],
                            symbols[middle + stride],
                        ];
                        said_by_neighbours(around, weights, scale_weight)
                    };
                    let (narrower, around) = match mode {
                        Mode::Skip => {
                            from_mean[middle] = nearest(old_units - mean);
                            continue;
                        }
                        Mode::Inter => (shrink, shift),
                        Mode::Intra => (0, mean + shift),
                    };
                    let index = (shift_round(indices[at] + context, INDEX_BITS) - narrower).clamp(0, 63);
                    let s = if index > 0 {
                        symbol(&self.cdf[index as usize], plane + at, mode, around)?
                    } else {
                        0
                    };
                    if s != 0 {
                        channels.note(at, s);
                    }
                    let units = i64::from(around) + (i64::from(s) << MEAN_BITS);
                    let start = if mode == Mode::Inter { old } else { 0 };
                    let value = start + ((units * ungain + (1 << (UNGAIN_BITS - 1))) >> UNGAIN_BITS);
                    latent[plane + at] = value.clamp(-i64::from(LATENT_CLIP), i64::from(LATENT_CLIP)) as i16;
                    if half == 0 {
                        // One of them is the symbol itself, for there is no shift.
                        let units = units as i32;
                        (from_mean[middle], from_old[middle]) = match mode {
                            Mode::Inter => (nearest(old_units + units - mean), s),
                            _ => (s, nearest(units - old_units)),
                        };
                    }
                }
            }
        }
        Ok(latent)
    }
}

/// A position of a tile.
#[derive(Debug, Clone, Copy)]
struct Position {
    at: usize,
    mode: Mode,
}

/// The positions to visit in each half of the checkerboard, in raster order: all that are coded, and in the first half
/// also the skipped ones that stand beside one of the second, whose context they are.
fn halves(plan: &Plan, grid: Grid) -> [Vec<Position>; 2] {
    let mut halves = [Vec::new(), Vec::new()];
    for y in 0..grid.height {
        for x in 0..grid.width {
            let at = y * grid.width + x;
            let coded = |there: bool, at: usize| there && plan.modes[at] != Mode::Skip;
            let half = (y + x) % 2;
            let beside = half == 0
                && (coded(x > 0, at.wrapping_sub(1))
                    || coded(x + 1 < grid.width, at + 1)
                    || coded(y > 0, at.wrapping_sub(grid.width))
                    || coded(y + 1 < grid.height, at + grid.width));
            if coded(true, at) || beside {
                halves[half].push(Position { at, mode: plan.modes[at] });
            }
        }
    }
    halves
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn plan() -> impl Strategy<Value = (Grid, Plan)> {
        (1usize..20, 1usize..20).prop_flat_map(|(height, width)| {
            let grid = Grid { height, width };
            let modes = proptest::collection::vec(
                prop_oneof![6 => Just(Mode::Skip), 1 => Just(Mode::Inter), 1 => Just(Mode::Intra)],
                grid.area(),
            );
            let renewed = proptest::collection::vec(any::<bool>(), grid.hyper().area());
            (modes, renewed, 0..SHRINKS).prop_map(move |(modes, renewed, shrink)| {
                let mut plan = Plan { modes, renewed, shrink };
                let counts = plan.counts(grid);
                plan.renewed.iter_mut().zip(counts).for_each(|(renewed, (coded, _))| *renewed &= coded > 0);
                (grid, plan)
            })
        })
    }

    proptest! {
        #[test]
        fn a_plan_comes_back((grid, plan) in plan()) {
            let mut encoder = RangeEncoder::new();
            plan.encode(grid, &mut encoder);
            let bytes = encoder.finish();
            let mut decoder = RangeDecoder::new(&bytes);
            prop_assert_eq!(Plan::decode(grid, &mut decoder), plan);
            prop_assert_eq!(decoder.finish(), Ok(()));
        }
    }

    #[test]
    fn a_plan_with_little_in_it_costs_little() {
        let grid = Grid { height: 64, width: 64 };
        let mut plan = Plan::still(grid);
        plan.modes[2000] = Mode::Intra;
        let mut encoder = RangeEncoder::new();
        plan.encode(grid, &mut encoder);
        assert!(encoder.finish().len() <= 12);
    }

    #[test]
    fn the_first_half_is_visited_where_the_second_looks() {
        let grid = Grid { height: 3, width: 3 };
        let mut plan = Plan::still(grid);
        plan.modes[1] = Mode::Intra;
        let [first, second] = halves(&plan, grid).map(|half| half.iter().map(|p| p.at).collect::<Vec<_>>());
        assert_eq!((first, second), (vec![0, 2, 4], vec![1]));
    }
}
