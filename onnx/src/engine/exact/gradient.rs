//! The gradient of a loss by the input of a program: its steps once more, backwards, in floating point.
//!
//! Rounding counts as if it were not there, and a value at the end of its range has no gradient (the straight-through estimator of
//! Bengio et al. 2013, as training has it). Gradients by a register of bytes are by bytes, not by the real numbers they stand for.

use std::collections::HashMap;

use super::kernel::{self, Isa, LANES, Lie, Requantiser};
use super::lines::{Unfolding, transposed};
use super::program::{Input, Output, Place, Program, Step};
use super::stream::Registers;
use crate::{Error, Tensor};

impl Program {
    /// Whether [`gradient`](Self::gradient) knows all of its steps: decoders are like that.
    pub fn is_differentiable(&self) -> bool {
        let is_known = |step: &Step| match step {
            Step::Round { .. } | Step::Fold { .. } => false,
            // What goes back through a product are vectors as well.
            Step::Pointwise { of, .. } | Step::FromBytes { of, .. } | Step::FromWide { of, .. } => {
                of.channels.is_multiple_of(LANES)
            }
            _ => true,
        };
        self.stride == 1
            && !self.of_bytes
            && self.channels.is_multiple_of(LANES)
            && matches!(self.output, Output::Bytes(_))
            && self.steps.iter().all(is_known)
    }

    /// Runs it on `input`, (C, H, W), and asks `loss` for its gradient by what came out, which lies as that does: the gradient by
    /// the input.
    pub fn gradient(
        &self,
        isa: Isa,
        input: Input<'_>,
        (height, width): (usize, usize),
        loss: &mut dyn FnMut(&Tensor) -> Vec<f32>,
    ) -> Result<Vec<f32>, Error> {
        let mut registers = Registers::keeping();
        let output = self.execute(isa, input, (height, width), &mut registers)?;
        let (Output::Bytes(end) | Output::Wide(end)) = self.output;
        let of_output = loss(&output);
        // As many as there are samples, or it is an error.
        let of_output = Tensor::f32(output.shape(), of_output)?.into_f32()?.to_vec();
        drop(output);
        let mut gradients = Gradients { isa, of: HashMap::from([(end.register, of_output)]) };
        for step in self.steps.iter().rev() {
            let to = step.writes();
            let Some(mut gradient) = gradients.of.remove(&to.register) else { continue };
            match step {
                Step::Pointwise { of, matrix, requantiser, .. } => {
                    through_requantiser(&mut gradient, requantiser, Some(registers.bytes(&to)));
                    gradients.through_product(*of, &gradient, &matrix.weights());
                }
                Step::FromBytes { of, matrix, requantiser, .. } => {
                    through_requantiser(&mut gradient, requantiser, None);
                    gradients.through_product(*of, &gradient, &matrix.weights());
                }
                Step::FromWide { of, weights, .. } => {
                    gradients.through_product(*of, &gradient, &transposed(weights, to.channels));
                }
                Step::FromInput { weights, .. } => {
                    let input = Place { register: Place::INPUT, channels: self.channels, factor: 1 };
                    gradients.through_product(input, &gradient, &transposed(weights, to.channels));
                }
                Step::Depthwise { of, unfolding, convolution, .. } => {
                    through_requantiser(&mut gradient, &convolution.requantiser, Some(registers.bytes(&to)));
                    let row = width * to.factor;
                    let before = through_depthwise(isa, &gradient, row, to.channels, &convolution.weights);
                    gradients.add(
                        *of,
                        match unfolding {
                            Some(unfolding) => unfolding.undone(&before, width * of.factor, of.channels),
                            None => before,
                        },
                    );
                }
                Step::Quantise { of, scale, .. } => {
                    let bytes = registers.bytes(&to);
                    let by = scale.scale.recip();
                    gradient.iter_mut().zip(bytes).for_each(|(g, byte)| *g *= by * open(*byte));
                    gradients.add(*of, gradient);
                }
                Step::Add { of, bytes, scale, .. } => {
                    gradients.add(*bytes, gradient.iter().map(|g| g * scale.scale).collect());
                    gradients.add(*of, gradient);
                }
                Step::Unfold { of, unfolding, .. } => {
                    gradients.add(*of, unfolding.undone(&gradient, width * of.factor, of.channels));
                }
                Step::Round { .. } | Step::Fold { .. } => {}
            }
        }
        let of_input =
            gradients.of.remove(&Place::INPUT).unwrap_or_else(|| vec![0.0; self.channels * height * width]);
        Ok(transposed(&of_input, self.channels))
    }
}

/// The gradients by the registers, as far as they are known.
struct Gradients {
    isa: Isa,
    of: HashMap<usize, Vec<f32>>,
}

impl Gradients {
    fn add(&mut self, place: Place, gradient: Vec<f32>) {
        match self.of.get_mut(&place.register) {
            Some(sum) => sum.iter_mut().zip(gradient).for_each(|(sum, g)| *sum += g),
            None => {
                self.of.insert(place.register, gradient);
            }
        }
    }

    /// Back through a product with `weights`, (outputs, inputs).
    fn through_product(&mut self, of: Place, gradient: &[f32], weights: &[f32]) {
        let outputs = weights.len() / of.channels;
        let mut before = vec![0.0; gradient.len() / outputs * of.channels];
        let bias = vec![0.0; of.channels];
        kernel::wide_product(self.isa, (gradient, Lie::Rows), weights, &bias, &mut before);
        self.add(of, before);
    }
}

/// 0 where a byte is at the end of its range, else 1.
fn open(byte: u8) -> f32 {
    f32::from(u8::from(byte != 0 && byte != u8::MAX))
}

/// The gradient by the sums, made of that by the bytes, or by the values where there are no bytes.
fn through_requantiser(gradient: &mut [f32], requantiser: &Requantiser, bytes: Option<&[u8]>) {
    let channels = requantiser.scale.len();
    for gradient in gradient.chunks_exact_mut(channels) {
        gradient.iter_mut().zip(&requantiser.scale).for_each(|(g, scale)| *g *= scale);
    }
    if let Some(bytes) = bytes {
        gradient.iter_mut().zip(bytes).for_each(|(g, byte)| *g *= open(*byte));
    }
}

/// Back through a 3x3 convolution of each channel by itself: (H, W, C), `row` being W, `weights` (9, C).
fn through_depthwise(isa: Isa, gradient: &[f32], row: usize, channels: usize, weights: &[i8]) -> Vec<f32> {
    let line = row * channels;
    let height = gradient.len() / line;
    let weights: Vec<f32> = weights.iter().map(|&w| w.into()).collect();
    let mut before = vec![0.0; gradient.len()];
    for (y, to) in before.chunks_exact_mut(line).enumerate() {
        for (dy, weights) in weights.chunks_exact(3 * channels).enumerate() {
            // The output in row y + 1 - dy has read row y with the weights of dy.
            let Some(from) = (y + 1).checked_sub(dy).filter(|from| *from < height) else { continue };
            kernel::spread(isa, to, &gradient[from * line..][..line], weights, channels);
        }
    }
    before
}

impl Unfolding {
    /// Values of pixels, as [`write`](Self::write) leaves them without borders, where they came from: (H, W, depth), `row` being W.
    fn undone(self, values: &[f32], row: usize, depth: usize) -> Vec<f32> {
        let Unfolding { block, apart } = self;
        let channels = depth / (block * block);
        let line = row * block * channels;
        let mut before = vec![0.0; values.len()];
        for (lines, to) in values.chunks_exact(block * line).zip(before.chunks_exact_mut(row * depth)) {
            for (i, line) in lines.chunks_exact(line).enumerate() {
                for (from, to) in line.chunks_exact(block * channels).zip(to.chunks_exact_mut(depth)) {
                    for (at, value) in from.iter().enumerate() {
                        let (j, c) = (at / channels, at % channels);
                        let inside = i * block + j;
                        to[if apart { c * block * block + inside } else { inside * channels + c }] = *value;
                    }
                }
            }
        }
        before
    }
}

#[cfg(test)]
mod tests {
    use crate::engine::source::Model;
    use crate::{RunOptions, TensorView, role};

    /// How much of the latent's grid is little: its channels use most of the range that they have.
    const UNITS: f32 = 6.0;

    /// Numbers between -1 and 1, the same every time.
    fn noise(seed: u32, count: usize) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn the_gradient_of_both_decoders_is_their_slope_in_many_directions() {
        let bundle = crate::builtin().unwrap();
        for role in [role::SYNTHESIS, role::SYNTHESIS_NATURAL] {
            let source = bundle.graph_source(role).unwrap();
            let Some(graph) = super::super::load(&source) else { return };
            let Some([_, crate::Dimension::Fixed(channels), ..]) = graph.inputs()[0].shape.as_deref() else {
                panic!("an input of fixed channels")
            };
            let shape = [1, *channels, 5, 4];
            let count = channels * 20;
            let output = graph.outputs()[0].name.clone();
            let input = graph.inputs()[0].name.clone();
            let run = |values: &[f32]| {
                let view = TensorView::f32(&shape, values).unwrap();
                let samples = graph.run(&[(&input, view)], &[&output]).unwrap().remove(0).into_u8().unwrap();
                samples.iter().map(|&level| f64::from(level)).collect::<Vec<_>>()
            };
            // A few channels with something in them, as in a picture.
            let at: Vec<f32> = noise(1, count)
                .iter()
                .enumerate()
                .map(|(i, v)| if i / 20 % 4 == 0 { v * 40.0 * UNITS } else { v * UNITS })
                .collect();
            let wanted: Vec<f64> = run(&at).iter().map(|level| 255.0 - level).collect();
            // A loss that moves slowly, so that rounding to levels averages out: half the squared distance from the negative.
            let loss = |values: &[f32]| {
                run(values).iter().zip(&wanted).map(|(a, b)| (a - b).powi(2) / 2.0).sum::<f64>()
            };
            let mut calls = 0;
            let gradient = graph
                .gradient(&TensorView::f32(&shape, &at).unwrap(), &mut |output| {
                    calls += 1;
                    let levels = output.as_u8().unwrap();
                    levels.iter().zip(&wanted).map(|(&a, b)| f32::from(a) - *b as f32).collect()
                })
                .expect("the exact engine has gradients of decoders")
                .unwrap();
            assert_eq!((calls, gradient.len()), (1, count));
            let (mut both, mut said, mut found) = (0.0, 0.0, 0.0);
            for seed in 0..60 {
                let direction = noise(100 + seed, count);
                let moved =
                    |by: f32| -> Vec<f32> { at.iter().zip(&direction).map(|(v, d)| v + by * d).collect() };
                let slope = (loss(&moved(3.0 * UNITS)) - loss(&moved(-3.0 * UNITS))) / f64::from(6.0 * UNITS);
                let expected: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
                both += slope * expected;
                said += expected * expected;
                found += slope * slope;
            }
            let (correlation, ratio) = (both / (said * found).sqrt(), both / said);
            // Rounding, and units that open and close on the way, are what is missing.
            assert!(correlation > 0.93 && (ratio - 1.0).abs() < 0.15, "{role}: {correlation}, {ratio}");
        }
    }

    #[test]
    fn what_has_no_gradient_says_so() {
        let bundle = crate::builtin().unwrap();
        let view = |shape: &'static [usize]| vec![0.0; shape.iter().product()];
        // Means of the latent have another output, and the analysis goes from fine to coarse.
        for (role, shape) in [(role::HYPER_SYNTHESIS, &[1, 48, 1, 1]), (role::ANALYSIS, &[1usize, 3, 16, 16])]
        {
            let source = bundle.graph_source(role).unwrap();
            let Some(graph) = super::super::load(&source) else { return };
            let values = view(shape);
            let input = TensorView::f32(shape, &values).unwrap();
            assert!(graph.gradient(&input, &mut |_| unreachable!("nothing is run")).is_none(), "{role}");
        }
        let source = bundle.graph_source(role::SYNTHESIS).unwrap();
        assert!(matches!(source.model(), Model::Bytes { .. }));
        let rten = super::super::super::rten::load(&source, &RunOptions::default()).unwrap();
        let Some([_, crate::Dimension::Fixed(channels), ..]) = rten.inputs()[0].shape.as_deref() else {
            panic!("an input of fixed channels")
        };
        let (shape, values) = ([1, *channels, 1, 1], vec![0.0; *channels]);
        let input = TensorView::f32(&shape, &values).unwrap();
        assert!(rten.gradient(&input, &mut |_| Vec::new()).is_none());
        // A loss of something else.
        let Some(graph) = super::super::load(&source) else { return };
        assert!(graph.gradient(&input, &mut |_| vec![0.0; 3]).expect("it has one").is_err());
    }
}
