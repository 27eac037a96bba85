//! The logistic function and its inverse in integers, and what follows for probabilities (docs/FORMAT.md section E3.2).

use std::sync::LazyLock;

/// `stretch` and its arguments lie in -LOGIT_LIMIT ..= LOGIT_LIMIT, in 1/1024.
pub(super) const LOGIT_LIMIT: i32 = 12287;
/// The survival function is tabulated for -12 ..= 20, in steps of 1/16.
const SURVIVAL_MIN: i32 = -12;
const SURVIVAL_MAX: i32 = 20;
const SURVIVAL_ENTRIES: usize = ((SURVIVAL_MAX - SURVIVAL_MIN) * 16 + 2) as usize;
/// round(2^32 exp(-1/16)).
const EXP_STEP: u128 = 4_034_748_382;

pub(super) struct Logistic {
    /// 2^30 / (1 + exp(z)) at z = SURVIVAL_MIN + i/16.
    survival: [u32; SURVIVAL_ENTRIES],
    /// The inverse, in 1/1024, of probabilities in 1/65536: below 1/16 one entry each ...
    stretch_low: [i16; 4096],
    /// ... and one for sixteen of them elsewhere.
    stretch: [i16; 4096],
}

pub(super) static LOGISTIC: LazyLock<Box<Logistic>> = LazyLock::new(|| {
    let mut table =
        Box::new(Logistic { survival: [0; SURVIVAL_ENTRIES], stretch_low: [0; 4096], stretch: [0; 4096] });
    let zero = (-SURVIVAL_MIN * 16) as usize;
    let mut exponential = 1u128 << 62;
    for k in 0..SURVIVAL_ENTRIES - zero {
        let survival = ((exponential << 30) / ((1 << 62) + exponential)) as u32;
        table.survival[zero + k] = survival;
        if k <= zero {
            table.survival[zero - k] = (1 << 30) - survival;
        }
        exponential = (exponential * EXP_STEP) >> 32;
    }
    for i in 0..4096 {
        table.stretch_low[i as usize] = table.inverse((2 * i + 1) << 13);
        table.stretch[i as usize] = table.inverse((2 * i + 1) << 17);
    }
    table
});

impl Logistic {
    /// 2^30 times the probability that a standard logistic variable is above `z`/1024.
    #[inline]
    pub(super) fn survival(&self, z: i32) -> i32 {
        let z = z.clamp(SURVIVAL_MIN * 1024, SURVIVAL_MAX * 1024) - SURVIVAL_MIN * 1024;
        let (index, fraction) = ((z >> 6) as usize, z & 63);
        let (left, right) = (self.survival[index] as i32, self.survival[index + 1] as i32);
        left - (((left - right) * fraction) >> 6)
    }

    /// The smallest logit whose probability, times 2^30, is at least `survival`.
    fn inverse(&self, survival: i32) -> i16 {
        let (mut low, mut high) = (-LOGIT_LIMIT, LOGIT_LIMIT);
        while low < high {
            let middle = (low + high) >> 1;
            if self.survival(-middle) >= survival {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low as i16
    }

    /// The probability of a logit, in 1/65536.
    #[inline]
    pub(super) fn squash(&self, logit: i32) -> i32 {
        (self.survival(-logit) >> 14).clamp(PROBABILITY_MIN, 65536 - PROBABILITY_MIN)
    }

    /// The logit of a probability in 1/65536.
    #[inline]
    pub(super) fn stretch(&self, probability: i32) -> i32 {
        i32::from(match probability {
            ..4096 => self.stretch_low[probability.max(0) as usize],
            61440.. => -self.stretch_low[(65535 - probability).max(0) as usize],
            _ => self.stretch[(probability >> 4) as usize],
        })
    }

    /// The probability that a variable above `low` is above `threshold` (both in 1/1024), in 1/65536.
    #[inline]
    pub(super) fn conditional(&self, mut low: i32, mut threshold: i32) -> i32 {
        // Far out the distribution is exponential and only the distance counts; the table has no precision there.
        const TAIL: i32 = 12 * 1024;
        if low > TAIL {
            threshold -= low - TAIL;
            low = TAIL;
        }
        let ratio = (i64::from(self.survival(threshold)) << 16) / i64::from(self.survival(low));
        (ratio as i32).clamp(PROBABILITY_MIN, 65536 - PROBABILITY_MIN)
    }
}

/// Smallest probability of a decision, in 1/65536.
pub(super) const PROBABILITY_MIN: i32 = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logistic_tables_are_close_to_the_function_and_never_change() {
        let table = &**LOGISTIC;
        for z in (SURVIVAL_MIN * 1024..=SURVIVAL_MAX * 1024).step_by(7) {
            let exact = 2f64.powi(30) / (1.0 + (f64::from(z) / 1024.0).exp());
            let found = f64::from(table.survival(z));
            assert!((found - exact).abs() <= exact * 0.001 + 2.0, "{z}: {found} {exact}");
        }
        for probability in 16..=65520 {
            let logit = table.stretch(probability);
            let p = f64::from(probability) / 65536.0;
            assert!(
                (f64::from(logit) / 1024.0 - (p / (1.0 - p)).ln()).abs() < 0.15,
                "{probability}: {logit}"
            );
        }
        let bytes: Vec<u8> = table.survival.iter().flat_map(|entry| entry.to_le_bytes()).collect();
        let stretches = table.stretch_low.iter().chain(&table.stretch).flat_map(|entry| entry.to_le_bytes());
        let stretches: Vec<u8> = stretches.collect();
        let hashes = (crate::entropy::fnv1a(&bytes), crate::entropy::fnv1a(&stretches));
        assert_eq!(hashes, (1_835_943_106_807_778_494, 6_824_156_999_660_162_161));
    }
}
