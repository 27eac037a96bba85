//! How to hit a size: search the quality, then the rounding between two qualities.

use super::encode::{Coded, STRENGTH};
use crate::Error;

/// Good enough: so much of the size asked for is used.
const CLOSE: f64 = 0.985;
/// Tries between two qualities.
const REFINEMENTS: usize = 7;
/// Rounding so much stronger than the best one is still sensible: it reaches past the next lower quality.
const MAX_STRENGTH: f32 = 4.0 * STRENGTH;

/// The best file of at most `size` bytes that `file` makes, given a quality and the strength of rounding.
pub(crate) fn search(
    file: &dyn Fn(u8, f32) -> Result<Coded, Error>,
    size: u64,
    strength: f32,
) -> Result<Coded, Error> {
    let fits = |coded: &Coded| coded.len() <= size;
    let close = |coded: &Coded| coded.len() as f64 >= CLOSE * size as f64;

    let (mut low, mut high) = (0u8, 100u8);
    let largest = file(high, strength)?;
    if fits(&largest) {
        return Ok(largest);
    }
    let mut best = file(low, strength)?;
    if !fits(&best) {
        // The last resort: the lowest quality with stronger rounding.
        let harder = file(low, MAX_STRENGTH)?;
        if fits(&harder) {
            return Ok(harder);
        }
        let smallest = harder.len().min(best.len());
        return Err(Error::Target { smallest, asked: size });
    }
    // Invariant: `low` fits, `high` does not.
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        let found = file(middle, strength)?;
        if fits(&found) {
            (low, best) = (middle, found);
        } else {
            high = middle;
        }
    }
    if !close(&best) {
        // A little more than `low`: the next quality, rounded harder.
        let (mut weak, mut strong) = (strength, MAX_STRENGTH);
        for _ in 0..REFINEMENTS {
            let middle = 0.5 * (weak + strong);
            let found = file(high, middle)?;
            if fits(&found) {
                strong = middle;
                if found.len() > best.len() {
                    best = found;
                }
                if close(&best) {
                    break;
                }
            } else {
                weak = middle;
            }
        }
    }
    Ok(best)
}
