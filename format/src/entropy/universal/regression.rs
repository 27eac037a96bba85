//! Recursive least squares in integers (docs/FORMAT.md section E3.3).

/// Features and targets of a regression are clamped to this, which bounds its sums (see `LeastSquares`).
pub(super) const FEATURE_LIMIT: i32 = 16383;
/// Samples after which a regression forgets half of what it has seen.
const HALVING: u32 = 1024;
/// Coordinates that are improved after every sample.
const COORDINATES: usize = 4;
/// Weights have 14 fractional bits and stay within +-4.
pub(super) const WEIGHT_BITS: u32 = 14;
const WEIGHT_LIMIT: i64 = 4 << WEIGHT_BITS;

pub(super) const OWN_NEIGHBOURS: usize = 10;
pub(super) const EARLIER_CHANNELS: usize = 3;
pub(super) const EARLIER_NEIGHBOURS: usize = 9;
pub(super) const MAX_FEATURES: usize = OWN_NEIGHBOURS + EARLIER_CHANNELS * EARLIER_NEIGHBOURS + 1;

/// Recursive least squares: the normal equations are summed exactly, and solved by coordinate descent, four
/// coordinates a sample. Every step is a line minimum, so nothing can diverge and no matrix is inverted.
///
/// Bounds: products stay below 2^28 and sums over 1024 of them below 2^38 (prior included), with weights below
/// 2^16 and fewer than 2^6 features the gradient stays below 2^60.
pub(super) struct LeastSquares {
    features: usize,
    /// Lower triangle, row by row, of the sums of products of features.
    gram: [i64; MAX_FEATURES * (MAX_FEATURES + 1) / 2],
    /// Sums of products of feature and target.
    moment: [i64; MAX_FEATURES],
    weights: [i32; MAX_FEATURES],
    next: usize,
    samples: u32,
}

impl LeastSquares {
    /// Starts as if samples of the energy `ridge` had been seen that agree with the weights `prior`.
    pub fn new(features: usize, ridge: i64, prior: &[i32]) -> Self {
        let mut this = Self {
            features,
            gram: [0; MAX_FEATURES * (MAX_FEATURES + 1) / 2],
            moment: [0; MAX_FEATURES],
            weights: [0; MAX_FEATURES],
            next: 0,
            samples: 0,
        };
        for i in 0..features {
            this.gram[i * (i + 1) / 2 + i] = ridge;
        }
        for (i, &weight) in prior.iter().enumerate() {
            this.weights[i] = weight;
            this.moment[i] = (ridge * i64::from(weight)) >> WEIGHT_BITS;
        }
        this
    }

    /// The prediction, with `WEIGHT_BITS` fractional bits.
    #[inline]
    pub fn predict(&self, features: &[i32; MAX_FEATURES]) -> i64 {
        let products = self.weights.iter().zip(features).map(|(&w, &f)| i64::from(w) * i64::from(f));
        products.take(self.features).sum()
    }

    #[inline]
    pub fn update(&mut self, features: &[i32; MAX_FEATURES], target: i32) {
        let features = &features[..self.features];
        let mut rows = &mut self.gram[..];
        for (i, &feature) in features.iter().enumerate() {
            let (row, rest) = rows.split_at_mut(i + 1);
            for (sum, &other) in row.iter_mut().zip(features) {
                *sum += i64::from(feature) * i64::from(other);
            }
            self.moment[i] += i64::from(feature) * i64::from(target);
            rows = rest;
        }
        for _ in 0..COORDINATES {
            self.improve(self.next);
            self.next = if self.next + 1 == self.features { 0 } else { self.next + 1 };
        }
        self.samples += 1;
        if self.samples == HALVING {
            self.samples = HALVING / 2;
            self.gram.iter_mut().for_each(|sum| *sum /= 2);
            self.moment.iter_mut().for_each(|sum| *sum /= 2);
        }
    }

    /// Moves one weight to where the error is least.
    #[inline]
    pub fn improve(&mut self, i: usize) {
        let start = i * (i + 1) / 2;
        let mut gradient = self.moment[i] << WEIGHT_BITS;
        for (sum, &weight) in self.gram[start..=start + i].iter().zip(&self.weights) {
            gradient -= sum * i64::from(weight);
        }
        let mut index = start + i;
        for j in i + 1..self.features {
            index += j;
            gradient -= self.gram[index] * i64::from(self.weights[j]);
        }
        let step = gradient / self.gram[start + i].max(1);
        self.weights[i] = (i64::from(self.weights[i]) + step).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT) as i32;
    }
}
