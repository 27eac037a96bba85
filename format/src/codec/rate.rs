//! How to hit a size: search the quality, then the rounding between two qualities.

use super::encode::{Coded, Point, STRENGTH};
use crate::Error;

/// Good enough: so much of the size asked for is used.
const CLOSE: f64 = 0.985;
/// Tries between two qualities.
const REFINEMENTS: usize = 7;
/// Rounding so much stronger than the best one is still sensible: it reaches past the next lower quality.
const MAX_STRENGTH: f32 = 4.0 * STRENGTH;

/// The best file of at most `size` bytes that `file` makes, and its quality.
pub(crate) fn search(
    file: &dyn Fn(Point) -> Result<Coded, Error>,
    size: u64,
    strength: f32,
) -> Result<(Coded, u8), Error> {
    let file = |quality: u8, strength: f32| file(Point { quality, strength });
    let fits = |coded: &Coded| coded.bytes.len() as u64 <= size;
    let close = |coded: &Coded| coded.bytes.len() as f64 >= CLOSE * size as f64;

    let (mut low, mut high) = (0u8, 100u8);
    let coded = file(high, strength)?;
    if fits(&coded) {
        return Ok((coded, high));
    }
    let mut best = file(low, strength)?;
    if !fits(&best) {
        // The last resort: the lowest quality with stronger rounding.
        let coded = file(low, MAX_STRENGTH)?;
        if fits(&coded) {
            return Ok((coded, low));
        }
        return Err(Error::Target { smallest: coded.bytes.len().min(best.bytes.len()) as u64, asked: size });
    }
    // Invariant: `low` fits, `high` does not.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let coded = file(middle, strength)?;
        if fits(&coded) {
            (low, best) = (middle, coded);
        } else {
            high = middle;
        }
    }
    let mut quality = low;
    if !close(&best) {
        // A little more than `low`: the next quality, rounded harder.
        let (mut weak, mut strong) = (strength, MAX_STRENGTH);
        for _ in 0..REFINEMENTS {
            let middle = 0.5 * (weak + strong);
            let coded = file(high, middle)?;
            if fits(&coded) {
                strong = middle;
                if coded.bytes.len() > best.bytes.len() {
                    (best, quality) = (coded, high);
                }
                if close(&best) {
                    break;
                }
            } else {
                weak = middle;
            }
        }
    }
    Ok((best, quality))
}
