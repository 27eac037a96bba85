//! The universal coder: latents of any autoencoder, without trained tables.
//!
//! Every symbol is predicted from what is already coded, and then told in binary decisions. In the order of the
//! computation:
//!
//! 1. `LeastSquares` predicts the symbol from its causal neighbours and from the whole neighbourhood of the same
//!    place in up to three earlier channels; a second instance predicts the size of the prediction error.
//! 2. `Experts` turn the prediction into logistic distributions of different scale; the scales are averages of past
//!    errors in the same `ErrorClass`.
//! 3. The symbol is compared with thresholds that lead away from the prediction. For each decision the experts and
//!    two adaptive counters give a probability each, and two logistic mixers (as in Mahoney's PAQ) make one of them.
//!
//! All of it is integer arithmetic, so encoder and decoder agree on every machine; docs/FORMAT.md part II specifies it.

mod mixer;
mod plane;
mod regression;

use self::mixer::{Decision, EXPERTS, LAST_STEP, Mixers, SCALE_CLASSES, Surroundings};
use self::plane::{MARGIN, Plane};
use self::regression::{
    EARLIER_CHANNELS, EARLIER_NEIGHBOURS, FEATURE_LIMIT, LeastSquares, MAX_FEATURES, OWN_NEIGHBOURS,
    WEIGHT_BITS,
};
use super::adaptive::{Average, BinaryCoder};
use super::logistic::{LOGISTIC, LOGIT_LIMIT, PROBABILITY_MIN};
use super::{EntropyError, RangeDecoder, RangeEncoder, SYMBOL_LIMIT};

/// The dimensions of a latent; symbols are in the order channel, row, column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LatentShape {
    /// Number of channels.
    pub channels: usize,
    /// Rows of a channel.
    pub height: usize,
    /// Symbols of a row.
    pub width: usize,
}

impl LatentShape {
    /// Number of symbols, where that is a number.
    #[must_use]
    pub fn symbols(&self) -> Option<usize> {
        self.channels.checked_mul(self.height)?.checked_mul(self.width)
    }
}

/// Encodes a latent.
///
/// # Errors
///
/// [`EntropyError::ShapeMismatch`] where `symbols` has another length than the shape asks for,
/// [`EntropyError::SymbolRange`] for a symbol beyond +-2^20.
pub fn encode(symbols: &[i32], shape: LatentShape) -> Result<Vec<u8>, EntropyError> {
    let mut encoder = RangeEncoder::new();
    encode_with(&mut encoder, symbols, shape)?;
    Ok(encoder.finish())
}

/// Decodes what [`encode`] wrote for the same shape.
///
/// Allocates in proportion to the symbols of the shape, which the caller has bounded.
///
/// # Errors
///
/// [`EntropyError::ShapeMismatch`] for a shape that no memory holds; the errors of [`RangeDecoder::finish`]. Damage
/// may also go unseen: the container has checksums.
pub fn decode(bytes: &[u8], shape: LatentShape) -> Result<Vec<i32>, EntropyError> {
    let mut decoder = RangeDecoder::new(bytes);
    let symbols = decode_with(&mut decoder, shape)?;
    decoder.finish()?;
    Ok(symbols)
}

/// Encodes a latent into data that other things share.
///
/// # Errors
///
/// Those of [`encode`]; nothing is written then.
pub fn encode_with(
    encoder: &mut RangeEncoder,
    symbols: &[i32],
    shape: LatentShape,
) -> Result<(), EntropyError> {
    let expected = shape.symbols().unwrap_or(usize::MAX);
    if symbols.len() != expected {
        return Err(EntropyError::ShapeMismatch { symbols: symbols.len(), expected });
    }
    if let Some(&symbol) = symbols.iter().find(|symbol| !(-SYMBOL_LIMIT..=SYMBOL_LIMIT).contains(*symbol)) {
        return Err(EntropyError::SymbolRange { symbol });
    }
    if expected == 0 {
        return Ok(());
    }
    let mut model = Model::new(shape);
    for channel in symbols.chunks_exact(shape.height * shape.width) {
        // The decoder writes where the encoder reads, so the one model needs a place that it may write.
        let mut channel = channel.to_vec();
        model.code_channel(encoder, &mut channel, keep)?;
    }
    Ok(())
}

/// Encodes `values` (in units of the quantiser's step) with symbols of its own choice: those of least squared error plus
/// `strength` for each bit, as the model of the moment expects them. Returns the symbols and the data.
///
/// # Errors
///
/// Those of [`encode`].
pub fn encode_optimised(
    values: &[f32],
    shape: LatentShape,
    strength: f32,
) -> Result<(Vec<i32>, Vec<u8>), EntropyError> {
    let expected = shape.symbols().unwrap_or(usize::MAX);
    if values.len() != expected {
        return Err(EntropyError::ShapeMismatch { symbols: values.len(), expected });
    }
    let limit = SYMBOL_LIMIT as f32;
    let nearest = |value: &f32| value.round_ties_even().clamp(-limit, limit) as i32;
    let mut symbols: Vec<i32> = values.iter().map(nearest).collect();
    let mut encoder = RangeEncoder::new();
    if expected > 0 {
        let mut model = Model::new(shape);
        let area = shape.height * shape.width;
        for (values, channel) in values.chunks_exact(area).zip(symbols.chunks_exact_mut(area)) {
            model.code_channel(&mut encoder, channel, |at, symbol, expectation| {
                expectation.choose(values[at], symbol, strength)
            })?;
        }
    }
    Ok((symbols, encoder.finish()))
}

/// What the model expects of a symbol before it is coded.
#[derive(Clone, Copy)]
struct Expectation {
    /// In 1/256 symbol.
    predicted: i32,
    /// Mean absolute error, in 1/65536 symbol.
    error: i32,
}

impl Expectation {
    /// The nearest symbol, or its neighbour on the side of the prediction where that costs less.
    fn choose(self, value: f32, nearest: i32, strength: f32) -> i32 {
        let centre = self.predicted as f32 / 256.0;
        let side = (centre - nearest as f32).signum() as i32;
        // 2 ln 2: the scale of a logistic distribution by its mean absolute error.
        let scale = (self.error as f32 / 65536.0).max(0.02) / (2.0 * std::f32::consts::LN_2);
        let cost = |symbol: i32| {
            let above = |edge: f32| 1.0 / (1.0 + ((edge - centre) / scale).exp());
            // By symmetry on the side where small differences keep their precision.
            let distance = (symbol as f32 - centre).abs();
            let probability = above(centre + distance - 0.5) - above(centre + distance + 0.5);
            let error = value - symbol as f32;
            error * error - strength * probability.max(1e-6).log2()
        };
        let other = (nearest + side).clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT);
        // Never beyond the prediction: there nothing is saved.
        let beyond = (other as f32 - centre).abs() >= (nearest as f32 - centre).abs();
        if !beyond && cost(other) < cost(nearest) { other } else { nearest }
    }
}

/// Symbols as they are given.
fn keep(_: usize, symbol: i32, _: Expectation) -> i32 {
    symbol
}

/// Decodes a latent from data that other things share; see [`decode`].
///
/// # Errors
///
/// [`EntropyError::ShapeMismatch`], and [`EntropyError::Overrun`] as soon as the data has run out.
pub fn decode_with(decoder: &mut RangeDecoder<'_>, shape: LatentShape) -> Result<Vec<i32>, EntropyError> {
    let too_large = EntropyError::ShapeMismatch { symbols: 0, expected: usize::MAX };
    let count = shape.symbols().ok_or(too_large.clone())?;
    let mut symbols = Vec::new();
    symbols.try_reserve_exact(count).map_err(|_| too_large)?;
    symbols.resize(count, 0);
    if count > 0 {
        let mut model = Model::new(shape);
        for channel in symbols.chunks_exact_mut(shape.height * shape.width) {
            model.code_channel(decoder, channel, keep)?;
        }
    }
    Ok(symbols)
}

/// A quarter-octave scale for non-negative values: 0, 1, ... for 0, 2, 4, 6, 8, 12, ...
#[inline]
fn quarter_octave(value: i32) -> usize {
    let value = (value + 8) as u32;
    let exponent = value.ilog2();
    ((exponent - 3) * 4 + ((value >> (exponent - 2)) & 3)) as usize
}

// ---------------------------------------------------------------------------------------------------------------
// Neighbourhoods.

/// Energy of the priors of the two regressions.
const SYMBOL_RIDGE: i64 = 128;
const ERROR_RIDGE: i64 = 4000;
/// Prior weights, 14 fractional bits: 0.37 W + 0.37 N for symbols; for errors also 0.09 of the four others.
const SYMBOL_PRIOR: [i32; 2] = [6000; 2];
const ERROR_PRIOR: [i32; 6] = [3000, 3000, 1500, 1500, 1500, 1500];
/// The constant feature of both regressions.
const CONSTANT_FEATURE: i32 = 4;
/// Expected error of the first symbol of a channel, in 1/16; that of the n-th symbol is an n-th of it.
const EARLY_ERROR: i64 = 64;
const ERROR_CLASSES: usize = 144;
const ERROR_AVERAGE_LIMIT: u32 = 160;
const MEAN_LIMIT: u32 = 255;
/// Steps away from the prediction that are of equal width; after them the width doubles.
const EQUAL_STEPS: usize = 8;
/// No symbol is further from a prediction, as both are within +-2^20.
const MAX_DISTANCE: i32 = 2 * SYMBOL_LIMIT;

struct Model {
    shape: LatentShape,
    /// Channels coded, up to `EARLIER_CHANNELS`.
    earlier: usize,
    /// The current channel, then the earlier ones, nearest first.
    symbols: Vec<Plane>,
    /// Absolute prediction errors in 1/16, in the same order.
    errors: Vec<Plane>,
    /// Probability that a channel is constant.
    constant: Average,
    mixers: Mixers,
}

impl Model {
    fn new(shape: LatentShape) -> Self {
        let planes = vec![Plane::new(shape.height, shape.width); shape.channels.min(EARLIER_CHANNELS + 1)];
        Self {
            shape,
            earlier: 0,
            symbols: planes.clone(),
            errors: planes,
            constant: Average { value: 8192, count: 16 },
            mixers: Mixers::new(),
        }
    }

    fn code_channel<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        channel: &mut [i32],
        choose: impl FnMut(usize, i32, Expectation) -> i32,
    ) -> Result<(), EntropyError> {
        let constant = channel.iter().all(|symbol| *symbol == channel[0]);
        let constant = coder.code_bit(self.constant.value as u32, constant);
        self.constant.update(if constant { 65535 } else { 0 }, 16);
        self.constant.value = self.constant.value.clamp(PROBABILITY_MIN, 65536 - PROBABILITY_MIN);
        if constant {
            let value = code_constant(coder, channel[0]);
            channel.fill(value);
            self.symbols[0].values[MARGIN * (self.shape.width + 2 * MARGIN)..].fill(value);
            self.errors[0].values.fill(0);
            coder.check()?;
        } else {
            self.code_varying(coder, channel, choose)?;
        }
        self.symbols.rotate_right(1);
        self.errors.rotate_right(1);
        self.earlier = EARLIER_CHANNELS.min(self.earlier + 1);
        Ok(())
    }

    fn code_varying<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        channel: &mut [i32],
        mut choose: impl FnMut(usize, i32, Expectation) -> i32,
    ) -> Result<(), EntropyError> {
        let LatentShape { height, width, .. } = self.shape;
        let symbol_features = OWN_NEIGHBOURS + EARLIER_NEIGHBOURS * self.earlier + 1;
        let error_features = 6 + 2 * self.earlier + 1;
        let mut prediction = LeastSquares::new(symbol_features, SYMBOL_RIDGE, &SYMBOL_PRIOR);
        let mut error_size = LeastSquares::new(error_features, ERROR_RIDGE, &ERROR_PRIOR);
        let mut averages = vec![[Average::default(); ERROR_CLASSES]; EXPERTS];
        let mut mean = Average::default();
        let mut features = [0; MAX_FEATURES];
        let mut error_neighbours = [0; MAX_FEATURES];

        for (y, row) in channel.chunks_exact_mut(width).enumerate() {
            self.symbols[0].begin_row(y);
            self.errors[0].begin_row(y);
            let start = self.symbols[0].row(y);
            for (x, symbol) in row.iter_mut().enumerate() {
                let i = start + x;
                // 1. The prediction and the expected size of its error.
                let own = self.symbols[0].causal(i);
                let own_errors = self.errors[0].causal(i);
                features[..6].copy_from_slice(&own);
                features[6..OWN_NEIGHBOURS].copy_from_slice(&self.symbols[0].outer(i));
                error_neighbours[..6].copy_from_slice(&own_errors);
                let mut earlier_errors = 0;
                for k in 0..self.earlier {
                    let at = OWN_NEIGHBOURS + EARLIER_NEIGHBOURS * k;
                    features[at..at + EARLIER_NEIGHBOURS].copy_from_slice(&self.symbols[k + 1].around(i));
                    let [here, w, e, n, s, ..] = self.errors[k + 1].around(i);
                    let beside = (w + e + n + s) / 4;
                    error_neighbours[6 + 2 * k..8 + 2 * k].copy_from_slice(&[here, beside]);
                    earlier_errors += 2 * here + 2 * beside;
                }
                if self.earlier > 0 {
                    earlier_errors /= 4 * self.earlier as i32;
                }
                for feature in &mut features[..symbol_features] {
                    *feature = (*feature).clamp(-FEATURE_LIMIT, FEATURE_LIMIT);
                }
                features[symbol_features - 1] = CONSTANT_FEATURE;
                error_neighbours[error_features - 1] = CONSTANT_FEATURE;
                let limit = i64::from(SYMBOL_LIMIT) << 8;
                let predicted = ((prediction.predict(&features) + 32) >> 6).clamp(-limit, limit) as i32;
                // In 1/16. Before anything is known of a channel, errors are larger than they look.
                let early = EARLY_ERROR / (1 + (y * width + x) as i64);
                let size =
                    (error_size.predict(&error_neighbours) >> WEIGHT_BITS).clamp(1, i64::from(FEATURE_LIMIT));
                let size = (size + early) as i32;
                let [w, n, nw, ne, ww, nn] = own_errors;
                let activity = (3 * w + 3 * n + 2 * nw + 2 * ne + ww + nn) / 12;

                // 2. The experts.
                let size_class = quarter_octave(size);
                let joint_class = (quarter_octave(activity) / 3).min(11) * 12
                    + (quarter_octave(earlier_errors) / 3).min(11);
                let classes = [size_class, joint_class, 0];
                let centres = [predicted, predicted, mean.value >> 8];
                let mut slopes = [0; EXPERTS];
                for k in 0..EXPERTS {
                    let average = &mut averages[k][classes[k]];
                    if average.count == 0 {
                        *average = Average { value: (size) << 12, count: 4 };
                    }
                    slopes[k] = SLOPE / i64::from((average.value >> 4).max(ERROR_FLOOR));
                }
                // The distance from a centre to a threshold, in units of the expert's distribution.
                let unit = |k: usize, direction: i32, threshold: i32| {
                    let distance = i64::from(direction) * (i64::from(threshold) - i64::from(centres[k]));
                    ((distance * slopes[k]) >> 18).clamp(-UNIT_LIMIT, UNIT_LIMIT) as i32
                };

                // 3. The decisions.
                let base = predicted >> 8;
                let scale_class = (size_class / 2).min(SCALE_CLASSES - 1);
                let difference = |value: i32| ((value - base).clamp(-2, 2) + 2) as usize;
                let surroundings = Surroundings {
                    scale_class,
                    difference_context: (difference(own[0]) * 5 + difference(own[1])) * 4 + scale_class / 4,
                    earlier_context: if self.earlier > 0 {
                        (self.symbols[1].values[i].clamp(-3, 3) + 3) as usize
                    } else {
                        7
                    },
                };
                *symbol = choose(
                    y * width + x,
                    *symbol,
                    Expectation { predicted, error: averages[0][size_class].value },
                );
                let value = code_symbol(coder, &mut self.mixers, &surroundings, base, size, unit, *symbol);
                *symbol = value;

                // 4. What is learned.
                let error = ((value << 8) - predicted).abs();
                self.symbols[0].values[i] = value;
                self.errors[0].values[i] = (error >> 4).min(FEATURE_LIMIT);
                prediction.update(&features, value.clamp(-FEATURE_LIMIT, FEATURE_LIMIT));
                error_size.update(&error_neighbours, (error >> 4).min(FEATURE_LIMIT));
                for k in 0..EXPERTS {
                    let error = ((value << 8) - centres[k]).abs().min(1 << 22);
                    averages[k][classes[k]].update(error << 8, ERROR_AVERAGE_LIMIT);
                }
                mean.update(value.clamp(-FEATURE_LIMIT, FEATURE_LIMIT) << 16, MEAN_LIMIT);
            }
            self.symbols[0].end_row(y);
            self.errors[0].end_row(y);
            coder.check()?;
        }
        self.symbols[0].end(height);
        self.errors[0].end(height);
        Ok(())
    }
}

/// 2 ln 2 * 2^32: a logistic distribution with the mean absolute error 1 has the scale 1 / (2 ln 2).
const SLOPE: i64 = 5_954_088_944;
/// Smallest mean absolute error of an expert, in 1/4096.
const ERROR_FLOOR: i32 = 24;
const UNIT_LIMIT: i64 = 40 << 10;

/// Codes one symbol around `base`, the prediction rounded down.
#[inline]
fn code_symbol<C: BinaryCoder>(
    coder: &mut C,
    mixers: &mut Mixers,
    surroundings: &Surroundings,
    base: i32,
    size: i32,
    unit: impl Fn(usize, i32, i32) -> i32,
    symbol: i32,
) -> i32 {
    let table = &**LOGISTIC;
    // Thresholds lie between symbols; the first one is nearest to the prediction.
    let origin = (base << 8) + 128;
    let logits: [i32; EXPERTS] =
        std::array::from_fn(|k| -unit(k, 1, origin)).map(|logit: i32| logit.clamp(-LOGIT_LIMIT, LOGIT_LIMIT));
    let decision = Decision { node: 0, threshold: base, logits, expected: table.squash(logits[0]) };
    let above = mixers.decide(coder, surroundings, decision, symbol > base);
    let (direction, first_node) = if above { (1, 0) } else { (-1, 10) };
    let distance = if above { symbol.wrapping_sub(base + 1) } else { base.wrapping_sub(symbol) };

    let mut width = 1;
    while 48 * width < size {
        width *= 2;
    }
    let mut low = 0;
    let mut low_units: [i32; EXPERTS] = std::array::from_fn(|k| unit(k, direction, origin));
    let mut step = 1;
    while low + width <= MAX_DISTANCE {
        let next = low + width;
        let units: [i32; EXPERTS] =
            std::array::from_fn(|k| unit(k, direction, origin + direction * (next << 8)));
        let probabilities: [i32; EXPERTS] =
            std::array::from_fn(|k| table.conditional(low_units[k], units[k]));
        let logits = probabilities.map(|probability| table.stretch(probability));
        let node = first_node + step.min(LAST_STEP);
        let threshold = base + direction * next;
        let decision = Decision { node, threshold, logits, expected: probabilities[0] };
        if !mixers.decide(coder, surroundings, decision, distance >= next) {
            break;
        }
        low = next;
        low_units = units;
        step += 1;
        if step > EQUAL_STEPS {
            width *= 2;
        }
    }
    // Inside a wide step only the first expert is asked.
    while width > 1 {
        width /= 2;
        let middle = low + width;
        let survival = |at: i32| table.survival(unit(0, direction, origin + direction * (at << 8)));
        let (a, b, c) = (survival(low), survival(middle), survival(middle + width));
        let probability = (i64::from(b - c) << 16) / i64::from(a - c).max(1);
        if coder.code_bit(probability.clamp(2048, 63488) as u32, distance >= middle) {
            low = middle;
        }
    }
    let value = if above { base + 1 + low } else { base - low };
    if !(-SYMBOL_LIMIT..=SYMBOL_LIMIT).contains(&value) {
        coder.reject();
        return value.clamp(-SYMBOL_LIMIT, SYMBOL_LIMIT);
    }
    value
}

/// The value of a constant channel: an Exp-Golomb code of its zigzag number (0, -1, 1, -2, 2, ...).
fn code_constant<C: BinaryCoder>(coder: &mut C, value: i32) -> i32 {
    let number = ((value << 1) ^ (value >> 31)) as u32 + 1;
    let suffix_bits = number.ilog2();
    let mut bits = 0;
    while coder.code_bypass(u32::from(bits == suffix_bits), 1) == 0 {
        bits += 1;
        if bits > 22 {
            coder.reject();
            return 0;
        }
    }
    let number = (1 << bits) - 1 + coder.code_bypass(number & ((1 << suffix_bits) - 1), bits);
    let value = (number >> 1) as i32 ^ -((number & 1) as i32);
    if !(-SYMBOL_LIMIT..=SYMBOL_LIMIT).contains(&value) {
        coder.reject();
        return 0;
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn shape(channels: usize, height: usize, width: usize) -> LatentShape {
        LatentShape { channels, height, width }
    }

    /// Smooth channels that follow each other, with noise of the given size: integers only, so that the
    /// known answer below has a known question.
    fn latent(shape: LatentShape, noise: u64) -> Vec<i32> {
        let mut state = 1u64;
        let mut symbols = Vec::new();
        for channel in 0..shape.channels as i32 {
            for y in 0..shape.height as i32 {
                for x in 0..shape.width as i32 {
                    state =
                        state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let random = ((state >> 33) % (2 * noise + 1)) as i32 - noise as i32;
                    let wave = (x * x / 7 + y * (3 + channel % 3) + x * y / 5) % 23 - 11;
                    symbols.push(wave * (1 + channel % 2) / 3 + random - channel % 5);
                }
            }
        }
        symbols
    }

    fn assert_round_trip(symbols: &[i32], shape: LatentShape) -> usize {
        let bytes = encode(symbols, shape).unwrap();
        assert_eq!(decode(&bytes, shape).as_deref(), Ok(symbols), "{shape:?}");
        bytes.len()
    }

    fn any_latent() -> impl Strategy<Value = (LatentShape, Vec<i32>)> {
        let shapes = (1usize..6, 1usize..12, 1usize..12);
        (shapes, prop_oneof![Just(1i32), Just(3), Just(40), Just(5000), Just(SYMBOL_LIMIT)]).prop_flat_map(
            |((channels, height, width), reach)| {
                let symbols = proptest::collection::vec(-reach..=reach, channels * height * width);
                (Just(shape(channels, height, width)), symbols)
            },
        )
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn any_latent_comes_back((shape, symbols) in any_latent()) {
            let bytes = encode(&symbols, shape).unwrap();
            prop_assert_eq!(decode(&bytes, shape), Ok(symbols));
        }

        #[test]
        fn every_prefix_is_garbage_or_an_error((shape, symbols) in any_latent(), cut in 0.0f64..1.0) {
            let bytes = encode(&symbols, shape).unwrap();
            let prefix = &bytes[..(bytes.len() as f64 * cut) as usize];
            if let Ok(decoded) = decode(prefix, shape) {
                prop_assert_eq!(decoded.len(), symbols.len());
            }
        }

        #[test]
        fn random_bytes_are_garbage_or_an_error(
            bytes in proptest::collection::vec(any::<u8>(), 0..200),
            channels in 0usize..5, height in 0usize..20, width in 0usize..20,
        ) {
            let shape = shape(channels, height, width);
            if let Ok(decoded) = decode(&bytes, shape) {
                prop_assert_eq!(decoded.len(), channels * height * width);
                prop_assert!(decoded.iter().all(|symbol| symbol.abs() <= SYMBOL_LIMIT));
            }
        }
    }

    #[test]
    fn extreme_shapes_and_values_come_back() {
        for (channels, height, width) in
            [(1, 1, 1), (300, 1, 1), (1, 1, 500), (1, 500, 1), (3, 2, 1), (2, 1, 2)]
        {
            let shape = shape(channels, height, width);
            let count = channels * height * width;
            assert_round_trip(&latent(shape, 2), shape);
            assert_round_trip(&vec![SYMBOL_LIMIT; count], shape);
            let alternating: Vec<i32> =
                (0..count).map(|i| if i % 2 == 0 { SYMBOL_LIMIT } else { -SYMBOL_LIMIT }).collect();
            assert_round_trip(&alternating, shape);
        }
    }

    #[test]
    fn long_runs_of_extremes_overflow_nothing() {
        let shape = shape(5, 40, 60);
        let count = 5 * 40 * 60;
        for period in [1, 2, 3, 61, 1000] {
            let symbols: Vec<i32> = (0..count)
                .map(|i| if (i / period) % 2 == 0 { SYMBOL_LIMIT } else { -SYMBOL_LIMIT })
                .collect();
            assert_round_trip(&symbols, shape);
            let clamped: Vec<i32> =
                symbols.iter().map(|symbol| symbol / 64 + i32::from(*symbol == 0)).collect();
            assert_round_trip(&clamped, shape);
        }
    }

    #[test]
    fn nothing_and_constants_cost_next_to_nothing() {
        assert_eq!(assert_round_trip(&[], shape(0, 5, 5)), 0);
        assert!(assert_round_trip(&[0; 4 * 64 * 64], shape(4, 64, 64)) <= 2);
        assert!(assert_round_trip(&vec![7; 220 * 32 * 48], shape(220, 32, 48)) <= 220);
        let mut one_speck = vec![0; 64 * 64];
        one_speck[1234] = 1;
        assert!(assert_round_trip(&one_speck, shape(1, 64, 64)) <= 12);
    }

    #[test]
    fn the_wrong_number_of_symbols_and_symbols_out_of_range_are_refused() {
        let shape_of_four = shape(1, 2, 2);
        assert!(matches!(encode(&[0; 3], shape_of_four), Err(EntropyError::ShapeMismatch { .. })));
        for symbol in [i32::MIN, i32::MAX, SYMBOL_LIMIT + 1] {
            let refused = Err(EntropyError::SymbolRange { symbol });
            assert_eq!(encode(&[0, 0, 0, symbol], shape_of_four), refused);
        }
        assert!(decode(&[], shape(usize::MAX, 2, 1)).is_err());
        assert!(decode(&[], shape(1 << 40, 1 << 20, 1)).is_err());
    }

    #[test]
    fn one_range_coder_carries_several_latents() {
        let shapes = [shape(3, 8, 9), shape(1, 4, 4)];
        let mut encoder = RangeEncoder::new();
        for shape in shapes {
            encode_with(&mut encoder, &latent(shape, 1), shape).unwrap();
        }
        let bytes = encoder.finish();
        let mut decoder = RangeDecoder::new(&bytes);
        for shape in shapes {
            assert_eq!(decode_with(&mut decoder, shape), Ok(latent(shape, 1)));
        }
        assert_eq!(decoder.finish(), Ok(()));
    }

    #[test]
    fn the_bytes_of_a_fixed_latent_never_change() {
        // 5000 symbols a channel: both regressions also pass their halving.
        let shape = shape(5, 50, 100);
        let mut symbols = latent(shape, 2);
        symbols[7777] = SYMBOL_LIMIT;
        symbols[8888] = -1000;
        symbols[15_000..20_000].fill(-3);
        let bytes = encode(&symbols, shape).unwrap();
        assert_eq!((bytes.len(), crate::entropy::fnv1a(&bytes)), (8931, 17_828_674_930_518_819_410));
        assert_eq!(decode(&bytes, shape), Ok(symbols));
    }
}
