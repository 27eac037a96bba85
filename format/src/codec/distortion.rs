//! How far a decoded picture is from its source, and which way it should change: squared error and MS-SSIM, half and half, as the
//! built-in model was trained for (onnx/train/README.md).

use crate::vectors::{for_vectors, vectors};

/// Windows of MS-SSIM: a Gaussian of standard deviation 1.5 (Wang, Simoncelli, Bovik 2003).
const TAPS: usize = 11;
const SIGMA: f32 = 1.5;
/// Exponents of the five scales, the finest one first.
const EXPONENTS: [f32; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
/// What keeps quotients from growing where there is nothing, for luma from 0 to 1.
const C1: f32 = 0.01 * 0.01;
const C2: f32 = 0.03 * 0.03;
/// Similarities below it count as this one, so that powers of them have a gradient.
const LEAST: f32 = 1e-4;
/// Squared grey levels that 1 - MS-SSIM is worth: `ms_ssim_scale` of the training.
const SIMILARITY: f32 = 1330.0;
/// Weights of red, green and blue in luma, BT.601.
const LUMA: [f32; 3] = [0.299, 0.587, 0.114];

/// A source, and what is needed of it each time that something is compared with it.
pub(super) struct Source {
    /// Interleaved levels of red, green and blue.
    samples: Vec<u8>,
    scales: Vec<Scale>,
}

/// One scale of MS-SSIM.
struct Scale {
    size: Size,
    luma: Vec<f32>,
    /// Mean and mean of the squares in each window.
    mean: Vec<f32>,
    square: Vec<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Size {
    width: usize,
    height: usize,
}

impl Size {
    fn area(self) -> usize {
        self.width * self.height
    }

    /// Of the windows that lie within.
    fn inside(self) -> Size {
        Size { width: self.width - TAPS + 1, height: self.height - TAPS + 1 }
    }

    fn half(self) -> Size {
        Size { width: self.width / 2, height: self.height / 2 }
    }
}

impl Source {
    /// `samples` are interleaved levels of red, green and blue.
    pub fn new(samples: Vec<u8>, width: usize) -> Self {
        let mut size = Size { width, height: samples.len() / 3 / width };
        let mut luma = luma(&samples);
        let mut scales = Vec::new();
        // A picture of less than 176 pixels a side has fewer scales, one of less than 11 none.
        while scales.len() < EXPONENTS.len() && size.width.min(size.height) >= TAPS {
            let mean = blurred(&luma, size);
            let square = blurred(&product(&luma, &luma), size);
            let next = halved(&luma, size);
            scales.push(Scale { size, luma, mean, square });
            (luma, size) = (next, size.half());
        }
        Source { samples, scales }
    }

    /// The gradient of the distortion of `decoded`, as many samples, by each of them, times the number of pixels: of half the mean
    /// squared error and 665 (1 - MS-SSIM of luma).
    pub fn gradient(&self, decoded: &[u8]) -> Vec<f32> {
        let samples = decoded.iter().zip(&self.samples);
        // Of the mean over three samples for each pixel.
        let mut gradient: Vec<f32> =
            samples.map(|(&a, &b)| (f32::from(a) - f32::from(b)) * (2.0 * 0.5 / 3.0)).collect();
        let by_luma = self.similarity_gradient(luma(decoded));
        let pixels = decoded.len() as f32 / 3.0;
        for (gradient, by_luma) in gradient.chunks_exact_mut(3).zip(by_luma) {
            for (gradient, weight) in gradient.iter_mut().zip(LUMA) {
                *gradient -= 0.5 * SIMILARITY * pixels * by_luma * weight / 255.0;
            }
        }
        gradient
    }

    /// The gradient of MS-SSIM by each value of `luma`; empty where the picture is smaller than a window.
    fn similarity_gradient(&self, luma: Vec<f32>) -> Vec<f32> {
        let Some(last) = self.scales.len().checked_sub(1) else { return Vec::new() };
        let mut lumas = vec![luma];
        for scale in &self.scales[..last] {
            let next = halved(&lumas[lumas.len() - 1], scale.size);
            lumas.push(next);
        }
        let parts = self.scales.iter().zip(&lumas).enumerate();
        let parts: Vec<_> = parts.map(|(at, (scale, luma))| scale.similarity(luma, at == last)).collect();
        // What scales there are have all the weight.
        let exponents = &EXPONENTS[..parts.len()];
        let all: f32 = exponents.iter().sum();
        let whole: f32 =
            parts.iter().zip(exponents).map(|((mean, _), by)| mean.max(LEAST).powf(by / all)).product();
        // From the coarsest scale down: what a value of it is made of has a quarter of its gradient each.
        let mut coarser: Option<Vec<f32>> = None;
        for ((scale, (mean, mut gradient)), by) in self.scales.iter().zip(parts).zip(exponents).rev() {
            let factor = if mean > LEAST { whole * by / all / mean } else { 0.0 };
            gradient.iter_mut().for_each(|g| *g *= factor);
            if let Some(coarser) = coarser {
                add_doubled(&mut gradient, scale.size, &coarser);
            }
            coarser = Some(gradient);
        }
        coarser.unwrap_or_default()
    }
}

impl Scale {
    /// The mean similarity of contrast and structure to `other`, with `is_last` of luminance as well, and its gradient by `other`.
    fn similarity(&self, other: &[f32], is_last: bool) -> (f32, Vec<f32>) {
        let mean = blurred(other, self.size);
        let square = blurred(&product(other, other), self.size);
        let both = blurred(&product(other, &self.luma), self.size);
        let count = mean.len() as f32;
        // By the three, in their places.
        let (mut by_mean, mut by_square, mut by_both) = (mean, square, both);
        let mut sum = 0.0;
        let own = self.mean.iter().zip(&self.square);
        let others = by_mean.iter_mut().zip(&mut by_square).zip(&mut by_both);
        for ((&ma, &aa), ((mb, bb), ab)) in own.zip(others) {
            let (va, vb, covariance) = (aa - ma * ma, *bb - *mb * *mb, *ab - ma * *mb);
            let of = (va + vb + C2).recip();
            let cs = (2.0 * covariance + C2) * of;
            let (mut value, mut factor, mut of_luminance) = (cs, count.recip(), 0.0);
            if is_last {
                let of = (ma * ma + *mb * *mb + C1).recip();
                let luminance = (2.0 * ma * *mb + C1) * of;
                of_luminance = cs * 2.0 * (ma - luminance * *mb) * of * factor;
                (value, factor) = (cs * luminance, factor * luminance);
            }
            sum += f64::from(value);
            (*mb, *bb, *ab) =
                (factor * 2.0 * of * (cs * *mb - ma) + of_luminance, -factor * cs * of, factor * 2.0 * of);
        }
        let mut gradient = spread(&by_mean, self.size);
        let by_square = spread(&by_square, self.size);
        let by_both = spread(&by_both, self.size);
        let parts = by_square.iter().zip(&by_both).zip(other.iter().zip(&self.luma));
        for (g, ((by_square, by_both), (other, luma))) in gradient.iter_mut().zip(parts) {
            *g += 2.0 * other * by_square + luma * by_both;
        }
        ((sum / f64::from(count)) as f32, gradient)
    }
}

/// Luma from 0 to 1 of interleaved levels.
fn luma(samples: &[u8]) -> Vec<f32> {
    let of = |rgb: &[u8]| rgb.iter().zip(LUMA).map(|(&level, by)| f32::from(level) * by).sum::<f32>() / 255.0;
    samples.chunks_exact(3).map(of).collect()
}

fn product(a: &[f32], b: &[f32]) -> Vec<f32> {
    a.iter().zip(b).map(|(a, b)| a * b).collect()
}

fn window() -> [f32; TAPS] {
    let middle = (TAPS / 2) as f32;
    let taps: [f32; TAPS] =
        std::array::from_fn(|i| (-(i as f32 - middle).powi(2) / (2.0 * SIGMA * SIGMA)).exp());
    let sum: f32 = taps.iter().sum();
    taps.map(|tap| tap / sum)
}

/// The weighted mean of each window that lies within.
fn blurred(values: &[f32], size: Size) -> Vec<f32> {
    let mut out = vec![0.0; size.inside().area()];
    blur(vectors(), values, size, &mut out);
    out
}

for_vectors!(
    fn blur(values: &[f32], size: Size, out: &mut [f32]) = blur_loop, blur_v4, blur_v3, blur_plain
);

#[inline(always)]
fn blur_loop(values: &[f32], size: Size, out: &mut [f32]) {
    let taps = window();
    let mut line = vec![0.0; size.width];
    for (y, out) in out.chunks_exact_mut(size.inside().width).enumerate() {
        line.fill(0.0);
        for (tap, values) in taps.iter().zip(values[y * size.width..].chunks_exact(size.width)) {
            line.iter_mut().zip(values).for_each(|(sum, value)| *sum += tap * value);
        }
        for (at, tap) in taps.iter().enumerate() {
            out.iter_mut().zip(&line[at..]).for_each(|(sum, value)| *sum += tap * value);
        }
    }
}

/// The transpose of [`blurred`]: each value spread over its window.
fn spread(values: &[f32], size: Size) -> Vec<f32> {
    let mut out = vec![0.0; size.area()];
    spread_out(vectors(), values, size, &mut out);
    out
}

for_vectors!(
    fn spread_out(values: &[f32], size: Size, out: &mut [f32]) = spread_loop, spread_v4, spread_v3, spread_plain
);

#[inline(always)]
fn spread_loop(values: &[f32], size: Size, out: &mut [f32]) {
    let taps = window();
    let mut line = vec![0.0; size.width];
    for (y, values) in values.chunks_exact(size.inside().width).enumerate() {
        line.fill(0.0);
        for (at, tap) in taps.iter().enumerate() {
            line[at..].iter_mut().zip(values).for_each(|(sum, value)| *sum += tap * value);
        }
        for (tap, out) in taps.iter().zip(out[y * size.width..].chunks_exact_mut(size.width)) {
            out.iter_mut().zip(&line).for_each(|(sum, value)| *sum += tap * value);
        }
    }
}

/// Means of blocks of 2x2; an odd last line or column has no block.
fn halved(values: &[f32], size: Size) -> Vec<f32> {
    let half = size.half();
    let mut out = Vec::with_capacity(half.area());
    for lines in values.chunks_exact(2 * size.width) {
        let (upper, lower) = lines.split_at(size.width);
        let pairs = upper.chunks_exact(2).zip(lower.chunks_exact(2));
        out.extend(pairs.map(|(a, b)| (a[0] + a[1] + b[0] + b[1]) / 4.0));
    }
    out
}

/// The transpose of [`halved`], added to `values`.
fn add_doubled(values: &mut [f32], size: Size, half: &[f32]) {
    for (lines, half) in values.chunks_exact_mut(2 * size.width).zip(half.chunks_exact(size.half().width)) {
        for line in lines.chunks_exact_mut(size.width) {
            for (pair, value) in line.chunks_exact_mut(2).zip(half) {
                pair.iter_mut().for_each(|to| *to += value / 4.0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(seed: u32, count: usize) -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        (0..count).map(|_| next()).collect()
    }

    /// MS-SSIM of luma, by the same pieces.
    fn similarity(source: &Source, luma: &[f32]) -> f64 {
        let (mut luma, mut whole) = (luma.to_vec(), 1.0);
        let last = source.scales.len() - 1;
        let all: f32 = EXPONENTS[..=last].iter().sum();
        for (at, scale) in source.scales.iter().enumerate() {
            let (mean, _) = scale.similarity(&luma, at == last);
            whole *= f64::from(mean.max(LEAST)).powf(f64::from(EXPONENTS[at] / all));
            luma = halved(&luma, scale.size);
        }
        whole
    }

    #[test]
    fn the_gradient_of_similarity_is_its_slope() {
        for (width, height) in [(11, 11), (40, 25), (180, 177)] {
            let smooth = |seed| {
                let size = Size { width: width + TAPS - 1, height: height + TAPS - 1 };
                blurred(&luma(&noise(seed, 3 * size.area())), size)
            };
            let (a, b) = (smooth(1), smooth(2));
            let levels =
                |values: &[f32]| values.iter().flat_map(|v| [(v * 255.0) as u8; 3]).collect::<Vec<u8>>();
            let source = Source::new(levels(&a), width);
            // Between the two, where nothing is at an end.
            let now: Vec<f32> = a.iter().zip(&b).map(|(a, b)| 0.6 * a + 0.4 * b).collect();
            let gradient = source.similarity_gradient(now.clone());
            let direction: Vec<f32> = luma(&noise(3, 3 * width * height)).iter().map(|v| v - 0.5).collect();
            let moved =
                |by: f32| -> Vec<f32> { now.iter().zip(&direction).map(|(v, d)| v + by * d).collect() };
            let step = 2e-3;
            let slope = (similarity(&source, &moved(step)) - similarity(&source, &moved(-step)))
                / (2.0 * f64::from(step));
            let said: f64 = gradient.iter().zip(&direction).map(|(g, d)| f64::from(g * d)).sum();
            assert!((slope - said).abs() < 0.02 * slope.abs(), "{width}x{height}: {slope} and {said}");
        }
    }

    #[test]
    fn there_is_nothing_to_change_where_nothing_differs() {
        for width in [3, 30] {
            let samples = noise(7, 3 * width * 20);
            let gradient = Source::new(samples.clone(), width).gradient(&samples);
            assert_eq!(gradient.len(), samples.len());
            assert!(gradient.iter().all(|g| g.abs() < 1e-3), "{gradient:?}");
        }
    }

    #[test]
    fn where_a_picture_is_smaller_than_a_window_the_squared_error_is_all() {
        let gradient = Source::new(vec![10; 3 * 20], 5).gradient(&[16; 3 * 20]);
        assert!(gradient.iter().all(|g| (g - 2.0).abs() < 1e-6), "{gradient:?}");
    }
}
