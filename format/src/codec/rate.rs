//! How to hit a size: search the quality, then the rounding between two qualities.

use super::encode::{Coded, STRENGTH};
use crate::Error;

/// Good enough: so much of the size asked for is used.
const CLOSE: f64 = 0.985;
const HIGHEST: u8 = 100;
/// Tries between two qualities.
const TRIES: usize = 7;
/// Rounding so much stronger than the best one is still sensible: it reaches past the next lower quality.
const MAX_STRENGTH: f32 = 4.0 * STRENGTH;

/// The best file of at most `size` bytes that `file` makes, given a quality and the strength of rounding. `guess` is the quality, if there is a
/// notion of it.
pub(crate) fn search(
    file: &dyn Fn(u8, f32) -> Result<Coded, Error>,
    size: u64,
    strength: f32,
    guess: Option<u8>,
) -> Result<Coded, Error> {
    let fits = |coded: &Coded| coded.len() <= size;
    let close = |coded: &Coded| coded.len() as f64 >= CLOSE * size as f64;
    // The largest file of a quality that fits, rounded harder than usual; `best` fits already.
    let rounded_harder = |quality: u8, mut best: Coded| {
        let (mut weak, mut strong) = (strength, MAX_STRENGTH);
        for _ in 0..TRIES {
            if close(&best) {
                break;
            }
            let middle = 0.5 * (weak + strong);
            let found = file(quality, middle)?;
            if fits(&found) {
                strong = middle;
                if found.len() > best.len() {
                    best = found;
                }
            } else {
                weak = middle;
            }
        }
        Ok(best)
    };

    // Away from the guess in steps that double, until one side fits and the other does not.
    let (mut low, mut step) = guess.map_or((HIGHEST, HIGHEST), |guess| (guess, 1));
    let mut best = file(low, strength)?;
    let mut high = low;
    while !fits(&best) {
        if low == 0 {
            // The last resort: the lowest quality with stronger rounding.
            let harder = file(low, MAX_STRENGTH)?;
            if fits(&harder) {
                return rounded_harder(low, harder);
            }
            let smallest = harder.len().min(best.len());
            return Err(Error::Target { smallest, asked: size });
        }
        (low, high) = (low.saturating_sub(step), low);
        best = file(low, strength)?;
        step *= 2;
    }
    while low == high {
        if low == HIGHEST {
            return Ok(best);
        }
        high = HIGHEST.min(low + step);
        let found = file(high, strength)?;
        if fits(&found) {
            (low, best) = (high, found);
            step *= 2;
        }
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
    // A little more than `low`: the next quality, rounded harder.
    rounded_harder(high, best)
}
