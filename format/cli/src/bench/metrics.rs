//! How near a decoded picture is to its original.

use std::path::Path;

use butteraugli::{ButteraugliParams, Img, RGB8, butteraugli};
use image::RgbImage;
use image_sdl::Settings;
use image_sdl::onnx::{Graph, GraphSource, RunOptions, TensorView, engine_for};
use serde::{Deserialize, Serialize};
use ssimulacra2::{ColorPrimaries, Rgb, TransferCharacteristic, compute_frame_ssimulacra2};

use crate::failure::{Code, Failure};

/// The measurements of one picture; what cannot be measured on it is `None`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Scores {
    /// Decibels over all samples of sRGB; `None` for equal pictures.
    pub psnr: Option<f64>,
    /// On luma; 1 for equal pictures. `None` below [`MS_SSIM_SIDE`].
    pub ms_ssim: Option<f64>,
    /// 100 for equal pictures.
    pub ssimulacra2: Option<f64>,
    /// 3-norm; 0 for equal pictures.
    pub butteraugli: Option<f64>,
    /// SqueezeNet feature distance, 0 for equal pictures. `None` without its model.
    pub feature_distance: Option<f64>,
}

/// One of the measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Metric {
    Ssimulacra2,
    MsSsim,
    Psnr,
    Butteraugli,
    FeatureDistance,
}

impl Metric {
    pub const ALL: [Metric; 5] =
        [Metric::Ssimulacra2, Metric::MsSsim, Metric::Psnr, Metric::Butteraugli, Metric::FeatureDistance];

    /// For programs: the name of the field of [`Scores`].
    pub fn key(self) -> &'static str {
        match self {
            Metric::Psnr => "psnr",
            Metric::MsSsim => "ms_ssim",
            Metric::Ssimulacra2 => "ssimulacra2",
            Metric::Butteraugli => "butteraugli",
            Metric::FeatureDistance => "feature_distance",
        }
    }

    /// For people.
    pub fn label(self) -> &'static str {
        match self {
            Metric::Psnr => "PSNR, dB",
            Metric::MsSsim => "MS-SSIM",
            Metric::Ssimulacra2 => "SSIMULACRA2",
            Metric::Butteraugli => "Butteraugli, 3-norm",
            Metric::FeatureDistance => "SqueezeNet feature distance",
        }
    }

    pub fn more_is_better(self) -> bool {
        !matches!(self, Metric::Butteraugli | Metric::FeatureDistance)
    }

    /// Digits behind the point that say something.
    pub fn digits(self) -> usize {
        match self {
            Metric::Psnr | Metric::Butteraugli => 2,
            Metric::Ssimulacra2 => 1,
            Metric::MsSsim => 4,
            Metric::FeatureDistance => 3,
        }
    }

    pub fn of(self, scores: &Scores) -> Option<f64> {
        match self {
            Metric::Psnr => scores.psnr,
            Metric::MsSsim => scores.ms_ssim,
            Metric::Ssimulacra2 => scores.ssimulacra2,
            Metric::Butteraugli => scores.butteraugli,
            Metric::FeatureDistance => scores.feature_distance,
        }
    }

    /// A scale on which more is better and equal steps are about equally visible: what rates are compared over.
    pub fn quality(self, value: f64) -> f64 {
        match self {
            Metric::MsSsim => -10.0 * (1.0 - value).max(f64::MIN_POSITIVE).log10(),
            _ if self.more_is_better() => value,
            _ => -value,
        }
    }
}

/// What measures; holds the model of the feature distance.
pub(crate) struct Measure {
    features: Option<Box<dyn Graph>>,
}

impl Measure {
    /// `model` is the graph of the feature distance: inputs `a` and `b`, (1, 3, H, W), sRGB from 0 to 1; output
    /// `distance`.
    pub fn new(model: Option<&Path>, settings: &Settings) -> Result<Self, Failure> {
        let load = |path: &Path| {
            let options = RunOptions { backend: settings.backend, ..RunOptions::default() };
            Ok::<_, Failure>(engine_for(&options)?.load(&GraphSource::file(path), &options)?)
        };
        Ok(Measure { features: model.map(load).transpose()? })
    }

    pub fn has_features(&self) -> bool {
        self.features.is_some()
    }

    /// Both pictures have the same size.
    pub fn scores(&self, original: &RgbImage, decoded: &RgbImage) -> Result<Scores, Failure> {
        if original.dimensions() != decoded.dimensions() {
            let ((w, h), (dw, dh)) = (original.dimensions(), decoded.dimensions());
            return Err(Failure::new(
                Code::Failure,
                format!("the original has {w}x{h} pixels, the decoded picture {dw}x{dh}"),
            ));
        }
        let features = self.features.as_deref().map(|graph| feature_distance(graph, original, decoded));
        Ok(Scores {
            psnr: psnr(original, decoded),
            ms_ssim: ms_ssim(original, decoded),
            ssimulacra2: ssimulacra2(original, decoded),
            butteraugli: butteraugli_3_norm(original, decoded),
            feature_distance: features.transpose()?,
        })
    }
}

fn psnr(a: &RgbImage, b: &RgbImage) -> Option<f64> {
    let squares: u64 = a.iter().zip(b.iter()).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum();
    let samples = a.len() as f64;
    (squares > 0).then(|| 10.0 * (255.0f64.powi(2) * samples / squares as f64).log10())
}

/// `None` where a side is shorter than the 8 pixels that it needs.
fn ssimulacra2(a: &RgbImage, b: &RgbImage) -> Option<f64> {
    let rgb = |picture: &RgbImage| {
        let pixels = picture.pixels().map(|p| p.0.map(|v| f32::from(v) / 255.0)).collect();
        let (width, height) = (picture.width() as usize, picture.height() as usize);
        Rgb::new(pixels, width, height, TransferCharacteristic::SRGB, ColorPrimaries::BT709).ok()
    };
    compute_frame_ssimulacra2(rgb(a)?, rgb(b)?).ok()
}

/// `None` where a side is shorter than the 8 pixels that it needs.
fn butteraugli_3_norm(a: &RgbImage, b: &RgbImage) -> Option<f64> {
    let img = |picture: &RgbImage| {
        let pixels: Vec<RGB8> = picture.pixels().map(|p| RGB8::new(p.0[0], p.0[1], p.0[2])).collect();
        Img::new(pixels, picture.width() as usize, picture.height() as usize)
    };
    let result = butteraugli(img(a).as_ref(), img(b).as_ref(), &ButteraugliParams::default());
    result.ok().map(|result| result.pnorm_3)
}

fn feature_distance(graph: &dyn Graph, a: &RgbImage, b: &RgbImage) -> Result<f64, Failure> {
    let planes = |picture: &RgbImage| -> Vec<f32> {
        let plane = |channel: usize| picture.pixels().map(move |p| f32::from(p.0[channel]) / 255.0);
        plane(0).chain(plane(1)).chain(plane(2)).collect()
    };
    let shape = [1, 3, a.height() as usize, a.width() as usize];
    let (a, b) = (planes(a), planes(b));
    let inputs = [("a", TensorView::f32(&shape, &a)?), ("b", TensorView::f32(&shape, &b)?)];
    let outputs = graph.run(&inputs, &["distance"])?;
    let distance = outputs.first().and_then(|tensor| tensor.as_f32().ok()?.first().copied());
    distance.map(f64::from).ok_or_else(|| {
        Failure::new(Code::Model, "the feature model gives no number of type float32 named `distance`")
    })
}

/// Exponents of the scales, finest first (Wang, Simoncelli and Bovik 2003).
const WEIGHTS: [f64; 5] = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333];
/// Samples of the Gaussian window, and its standard deviation.
const WINDOW: usize = 11;
const SIGMA: f32 = 1.5;
/// The shortest side that has a window at the coarsest scale.
const MS_SSIM_SIDE: u32 = (WINDOW as u32) << (WEIGHTS.len() - 1);

/// Structural similarity on five scales, of luma (BT.601, not rounded); windows lie within the picture, scales are means
/// of 2x2.
fn ms_ssim(a: &RgbImage, b: &RgbImage) -> Option<f64> {
    let (c1, c2) = (0.01f64.powi(2), 0.03f64.powi(2));
    if a.width().min(a.height()) < MS_SSIM_SIDE {
        return None;
    }
    let (mut a, mut b) = (Plane::luma(a), Plane::luma(b));
    let mut product = 1.0;
    for (scale, weight) in WEIGHTS.iter().enumerate() {
        let last = scale + 1 == WEIGHTS.len();
        let [mean_a, mean_b] = [a.blurred(), b.blurred()];
        let squares = [a.times(&a).blurred(), b.times(&b).blurred(), a.times(&b).blurred()];
        let mut sum = 0.0;
        for i in 0..mean_a.samples.len() {
            let [ma, mb] = [&mean_a, &mean_b].map(|plane| f64::from(plane.samples[i]));
            let [aa, bb, ab] = [0, 1, 2].map(|k: usize| f64::from(squares[k].samples[i]));
            let contrast = (2.0 * (ab - ma * mb) + c2) / (aa - ma * ma + bb - mb * mb + c2);
            let luminance = (2.0 * ma * mb + c1) / (ma * ma + mb * mb + c1);
            sum += if last { contrast * luminance } else { contrast };
        }
        // A negative mean has no power.
        let mean = (sum / mean_a.samples.len() as f64).max(1e-4);
        product *= mean.powf(*weight);
        if !last {
            (a, b) = (a.halved(), b.halved());
        }
    }
    Some(product)
}

/// One channel, row by row.
struct Plane {
    width: usize,
    samples: Vec<f32>,
}

impl Plane {
    fn luma(picture: &RgbImage) -> Self {
        let luma = |p: &image::Rgb<u8>| {
            let [r, g, b] = p.0.map(|v| f32::from(v) / 255.0);
            0.299 * r + 0.587 * g + 0.114 * b
        };
        Plane { width: picture.width() as usize, samples: picture.pixels().map(luma).collect() }
    }

    fn times(&self, other: &Plane) -> Plane {
        let samples = self.samples.iter().zip(&other.samples).map(|(a, b)| a * b).collect();
        Plane { width: self.width, samples }
    }

    /// Means of 2x2 samples; an odd column or row at the end is left out.
    fn halved(&self) -> Plane {
        let width = self.width / 2;
        let rows: Vec<&[f32]> = self.samples.chunks_exact(self.width).collect();
        let pair =
            |rows: &[&[f32]], x: usize| rows.iter().map(|row| row[2 * x] + row[2 * x + 1]).sum::<f32>();
        let mut samples = Vec::with_capacity(self.samples.len() / 4);
        for rows in rows.chunks_exact(2) {
            samples.extend((0..width).map(|x| 0.25 * pair(rows, x)));
        }
        Plane { width, samples }
    }

    /// Gaussian means, where the window lies within the plane.
    fn blurred(&self) -> Plane {
        let taps = window();
        let width = self.width + 1 - WINDOW;
        let mut across = Vec::with_capacity(self.samples.len());
        for row in self.samples.chunks_exact(self.width) {
            across.extend(
                row.windows(WINDOW).map(|part| -> f32 { part.iter().zip(&taps).map(|(v, t)| v * t).sum() }),
            );
        }
        let mut samples = vec![0.0; across.len() - (WINDOW - 1) * width];
        for (tap, t) in taps.iter().enumerate() {
            for (sum, v) in samples.iter_mut().zip(&across[tap * width..]) {
                *sum += t * v;
            }
        }
        Plane { width, samples }
    }
}

fn window() -> [f32; WINDOW] {
    let mut taps = [0.0; WINDOW];
    for (i, tap) in taps.iter_mut().enumerate() {
        let distance = i as f32 - (WINDOW / 2) as f32;
        *tap = (-distance * distance / (2.0 * SIGMA * SIGMA)).exp();
    }
    let sum: f32 = taps.iter().sum();
    taps.map(|tap| tap / sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dog() -> RgbImage {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/pictures/dog.png");
        image::open(path).unwrap().to_rgb8()
    }

    /// Samples in steps of `step`: the same in any language.
    fn coarse(picture: &RgbImage, step: u8) -> RgbImage {
        let mut coarse = picture.clone();
        coarse.iter_mut().for_each(|v| *v = (*v / step * step).saturating_add(step / 2));
        coarse
    }

    /// The references are `ms_ssim` of `luma` in onnx/train/metrics.py, on the same pictures.
    #[test]
    fn ms_ssim_is_that_of_the_training() {
        let dog = dog();
        for (step, reference) in [(24, 0.969_664_6), (64, 0.877_335_9)] {
            let found = ms_ssim(&dog, &coarse(&dog, step)).unwrap();
            assert!((found - reference).abs() < 1e-4, "{step}: {found} is not {reference}");
        }
        assert!((ms_ssim(&dog, &dog).unwrap() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn psnr_is_that_of_the_formula() {
        let black = RgbImage::new(9, 7);
        let mut grey = black.clone();
        grey.iter_mut().for_each(|v| *v = 51);
        assert!((psnr(&black, &grey).unwrap() - 20.0 * 5f64.log10()).abs() < 1e-12);
        assert_eq!(psnr(&black, &black), None);
    }

    #[test]
    fn every_metric_prefers_the_finer_steps() {
        let dog = dog();
        let measure = Measure::new(None, &Settings::default()).unwrap();
        let (fine, rough) = (coarse(&dog, 8), coarse(&dog, 48));
        let (fine, rough) = (measure.scores(&dog, &fine).unwrap(), measure.scores(&dog, &rough).unwrap());
        for metric in Metric::ALL.into_iter().filter(|metric| *metric != Metric::FeatureDistance) {
            let [fine, rough] = [fine, rough].map(|scores| metric.quality(metric.of(&scores).unwrap()));
            assert!(fine > rough, "{}: {fine} and {rough}", metric.label());
        }
        assert_eq!(fine.feature_distance, None);
    }

    #[test]
    fn what_a_picture_is_too_small_for_is_not_measured() {
        let small = RgbImage::new(7, 300);
        let scores = Measure::new(None, &Settings::default()).unwrap().scores(&small, &small).unwrap();
        assert_eq!(scores, Scores::default());
        assert!(ms_ssim(&RgbImage::new(176, 176), &RgbImage::new(176, 176)).is_some());
    }

    /// The reference is of ONNX Runtime, on the same pictures.
    #[test]
    fn the_feature_distance_is_that_of_the_graph() {
        let model = Path::new(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../../shared/models/perceptual/squeezenet11_distance.onnx"
        ));
        if !model.exists() {
            eprintln!("SKIPPED: {} is absent", model.display());
            return;
        }
        let dog = dog();
        let measure = Measure::new(Some(model), &Settings::default()).unwrap();
        let found = measure.scores(&dog, &coarse(&dog, 24)).unwrap().feature_distance.unwrap();
        assert!((found - 0.402_73).abs() < 1e-3, "{found}");
    }
}
