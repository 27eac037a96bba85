//! The tile plan: how a latent larger than a model's native size is cut into windows that overlap, and how what the model
//! makes of them is blended (docs/FORMAT.md section 6.5).
//!
//! Models that are not bit-exact, above all those with attention, see their whole input: a cut between two windows shows. So
//! neighbours overlap and fade into each other; the file carries the plan, so that every decoder fades alike.

use byteorder::{ByteOrder, LE};

use super::model::Model;
use super::tiles::Rect;
use crate::Error;
use crate::latent::trained::Grid;

/// The native size of a bundle that names none, or 0, in latent positions.
pub(crate) const NATIVE: usize = 64;
/// The margin of a bundle that names none.
const MARGIN: usize = 8;

/// Windows of `size` x `size` latent positions, neighbours at least `overlap` over each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TilePlan {
    pub size: usize,
    pub overlap: usize,
}

/// The side of the windows that a model was made for.
pub(crate) fn native(model: &Model) -> usize {
    let tiling = model.bundle().manifest().tiling.as_ref();
    tiling.map(|tiling| tiling.size).filter(|&size| size > 0).unwrap_or(NATIVE)
}

/// Latent positions around a window that its pixels depend on.
pub(crate) fn margin(model: &Model) -> usize {
    model.bundle().manifest().tiling.as_ref().map_or(MARGIN, |tiling| tiling.margin)
}

impl TilePlan {
    /// The plan for a picture of this grid, if it needs one.
    pub fn of(model: &Model, grid: Grid) -> Option<Self> {
        let size = native(model);
        if grid.height.max(grid.width) <= size || size < 2 {
            return None;
        }
        Some(TilePlan { size, overlap: (2 * margin(model)).clamp(1, size / 2) })
    }

    /// The payload of its chunk.
    pub fn to_bytes(self) -> Vec<u8> {
        [self.size as u16, self.overlap as u16].iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    pub fn parse(payload: &[u8]) -> Result<Self, Error> {
        let plan = match payload.len() {
            4 => TilePlan { size: LE::read_u16(payload).into(), overlap: LE::read_u16(&payload[2..]).into() },
            other => return Err(Error::corrupt(format!("a tile plan of {other} bytes"))),
        };
        if plan.overlap == 0 || 2 * plan.overlap > plan.size {
            return Err(Error::corrupt(format!(
                "a tile plan of windows of {} positions that overlap by {}",
                plan.size, plan.overlap
            )));
        }
        Ok(plan)
    }

    /// Fails if the windows are larger than the model was made for: memory is bounded by the bundle, not by the file.
    pub fn check(self, model: &Model) -> Result<(), Error> {
        if self.size <= native(model) {
            return Ok(());
        }
        Err(Error::corrupt(format!(
            "the tile plan has windows of {} positions, and bundle {} is made for {}",
            self.size,
            model.bundle().manifest().name,
            native(model)
        )))
    }

    /// Where the windows begin along a side, evenly.
    fn starts(self, length: usize) -> Vec<usize> {
        if length <= self.size {
            return vec![0];
        }
        let count = (length - self.overlap).div_ceil(self.size - self.overlap);
        (0..count).map(|i| i * (length - self.size) / (count - 1)).collect()
    }

    /// The windows of a grid, row by row.
    pub fn rows(self, grid: Grid) -> Vec<Vec<Rect>> {
        let (height, width) = (self.size.min(grid.height), self.size.min(grid.width));
        let row = |y: usize| {
            self.starts(grid.width).into_iter().map(move |x| Rect { y, x, height, width }).collect()
        };
        self.starts(grid.height).into_iter().map(row).collect()
    }
}

/// The weight of a window at `offset` from its start, against what lies there already, in 1/(2 `overlap`): 0 in the first
/// quarter of the overlap, where a model sees the edge most, then rising evenly to all of it at the last quarter.
pub(crate) fn weight(offset: usize, overlap: usize) -> usize {
    (4 * offset + 2).saturating_sub(overlap).min(2 * overlap)
}

/// A blend of a value that is there with a new one of this [`weight`].
pub(crate) fn mix(old: f32, new: f32, weight: usize, overlap: usize) -> f32 {
    if weight == 2 * overlap {
        return new;
    }
    let part = weight as f32 / (2 * overlap) as f32;
    old + (new - old) * part
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_cover_a_side_and_overlap_as_much_as_the_plan_says() {
        for (size, overlap) in [(2, 1), (64, 16), (8, 4), (65, 3)] {
            let plan = TilePlan { size, overlap };
            for length in (1..400).chain([8192]) {
                let starts = plan.starts(length);
                assert_eq!(starts[0], 0);
                assert_eq!(starts[starts.len() - 1] + size.min(length), length);
                for pair in starts.windows(2) {
                    assert!(pair[0] < pair[1] && pair[0] + size >= pair[1] + overlap, "{plan:?} {length}");
                }
            }
        }
    }

    #[test]
    fn a_plan_survives_its_payload_and_impossible_ones_are_refused() {
        let plan = TilePlan { size: 64, overlap: 16 };
        assert_eq!(TilePlan::parse(&plan.to_bytes()).unwrap(), plan);
        for (size, overlap) in [(0, 0), (64, 0), (64, 33), (0, 1)] {
            assert!(TilePlan::parse(&TilePlan { size, overlap }.to_bytes()).is_err(), "{size} {overlap}");
        }
        assert!(TilePlan::parse(&[64, 0, 16]).is_err());
    }

    #[test]
    fn weights_rise_from_nothing_to_all_and_two_neighbours_share_one() {
        for overlap in [1, 2, 3, 16, 128] {
            let weights: Vec<usize> = (0..overlap).map(|d| weight(d, overlap)).collect();
            assert!(weights.is_sorted());
            for (d, w) in weights.iter().enumerate() {
                assert_eq!(w + weights[overlap - 1 - d], 2 * overlap);
            }
            assert_eq!(weight(overlap, overlap), 2 * overlap);
        }
    }
}
