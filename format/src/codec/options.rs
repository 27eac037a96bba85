//! What a caller may ask of the encoder and of the decoder, and what an effort means.

use super::denoise::{self, Denoise};
use super::model::{Model, Settings};
use super::progress::Progress;
use super::synthesis::Synthesis;
use crate::Error;

/// How large the file may be, or how good the picture shall be.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Rate {
    /// 0 (smallest) to 100 (best).
    Quality(u8),
    /// At most so many bytes for the whole file.
    Size(u64),
    /// At most so many bits for each pixel, the whole file counted.
    BitsPerPixel(f64),
}

/// How the latent of a bundle without tables becomes symbols.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LatentMethod {
    /// Each value to the nearest multiple of a step, chosen by the quality.
    Scalar,
    /// Each position to one of up to 256 vectors of the picture; the quality chooses how many, 256 at 100.
    Palette {
        /// Spreads errors over neighbours (Floyd and Steinberg, in latent space).
        dither: bool,
    },
    /// Each position to the nearest vector of the bundle's codebook; the quality has no effect.
    Codebook,
}

/// The largest effort.
pub const MAX_EFFORT: u8 = 9;
/// The quality where nobody asks for another.
pub const DEFAULT_QUALITY: u8 = 50;
/// The effort where nobody asks for another.
pub const DEFAULT_EFFORT: u8 = 5;
/// From this effort on, rounding weighs error against bits.
const OPTIMISING_EFFORT: u8 = 3;
/// From this effort on, the latents of a bit-exact bundle are corrected, and then refined in so many steps, for each effort from here.
const CORRECTING_EFFORT: u8 = 5;
const REFINING_STEPS: [usize; 5] = [0, 3, 6, 12, 24];
/// From this effort on, the encoder decodes candidates to find how to denoise.
const SEARCHING_EFFORT: u8 = 8;

/// How to encode.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EncodeOptions {
    /// Quality or size.
    pub rate: Rate,
    /// 1 (fastest) to 9: how hard to look for fewer bits. Below 3 latents are rounded to the nearest symbol; from there on
    /// rounding is rate-distortion optimised. From 5 on latents of the built-in model are decoded once and corrected, and from 6
    /// on refined by the gradient of the distortion, in 3, 6, 12 and 24 steps, where [`sdl_onnx::exact_engine`] runs; delta pictures
    /// are not.
    pub effort: u8,
    /// Threads; 0 is as many as there are processors.
    pub threads: usize,
    /// How long the picture is shown in a stream, in microseconds.
    pub duration: Option<u32>,
    /// The decoder that the file shall be shown with; a reader may choose another. One that the bundle does not have is an
    /// error.
    pub synthesis: Synthesis,
    /// The bundle, as [`Model::find`] takes it; `None` is the built-in one. [`encode_with`] is given its model and does not look
    /// at this.
    pub model: Option<String>,
    /// How the latent is coded; `None` is what the bundle is made for.
    pub method: Option<LatentMethod>,
    /// Whether and how the file is denoised when it is decoded.
    pub denoise: Denoise,
    /// Who is told about long work.
    pub progress: Option<Progress>,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        EncodeOptions {
            rate: Rate::Quality(DEFAULT_QUALITY),
            effort: DEFAULT_EFFORT,
            threads: 0,
            duration: None,
            synthesis: Synthesis::Fidelity,
            model: None,
            method: None,
            denoise: Denoise::Auto,
            progress: None,
        }
    }
}

impl EncodeOptions {
    /// A quality, 0 to 100.
    #[must_use]
    pub fn with_quality(self, quality: u8) -> Self {
        EncodeOptions { rate: Rate::Quality(quality), ..self }
    }

    /// At most so many bytes.
    #[must_use]
    pub fn with_target_size(self, bytes: u64) -> Self {
        EncodeOptions { rate: Rate::Size(bytes), ..self }
    }

    /// At most so many bits a pixel.
    #[must_use]
    pub fn with_target_bpp(self, bits: f64) -> Self {
        EncodeOptions { rate: Rate::BitsPerPixel(bits), ..self }
    }

    /// An effort, 1 to 9.
    #[must_use]
    pub fn with_effort(self, effort: u8) -> Self {
        EncodeOptions { effort, ..self }
    }

    /// A number of threads; 0 is as many as there are processors.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        EncodeOptions { threads, ..self }
    }

    /// The decoder that the file shall be shown with.
    #[must_use]
    pub fn with_synthesis(self, synthesis: Synthesis) -> Self {
        EncodeOptions { synthesis, ..self }
    }

    /// The bundle, by name or path, as [`Model::find`] takes it.
    #[must_use]
    pub fn with_model(self, model: impl Into<String>) -> Self {
        EncodeOptions { model: Some(model.into()), ..self }
    }

    /// How the latent is coded.
    #[must_use]
    pub fn with_method(self, method: LatentMethod) -> Self {
        EncodeOptions { method: Some(method), ..self }
    }

    /// Whether and how the file is denoised when it is decoded.
    #[must_use]
    pub fn with_denoise(self, denoise: Denoise) -> Self {
        EncodeOptions { denoise, ..self }
    }

    /// Somebody to be told about long work, and to stop it.
    #[must_use]
    pub fn with_progress(self, progress: Progress) -> Self {
        EncodeOptions { progress: Some(progress), ..self }
    }

    /// The recipe of 2022: 256 vectors of 8-bit values, dithered, and, if the model has a denoiser, four steps at strength
    /// 0.04.
    #[must_use]
    pub fn with_preset_2022(self, model: &Model) -> Self {
        const STRENGTH: f32 = 0.04;
        const STEPS: u8 = 4;
        let denoise =
            if denoise::available(model) { Denoise::Strength(STRENGTH, STEPS) } else { Denoise::Off };
        self.with_quality(100).with_method(LatentMethod::Palette { dither: true }).with_denoise(denoise)
    }

    pub(super) fn check(&self) -> Result<(), Error> {
        match self.rate {
            Rate::Quality(quality) if quality > 100 => {
                return Err(Error::Parameter(format!("quality {quality}; it runs from 0 to 100")));
            }
            Rate::BitsPerPixel(bits) if !(bits.is_finite() && bits > 0.0) => {
                return Err(Error::Parameter(format!("{bits} bits a pixel; it must be a positive number")));
            }
            _ => {}
        }
        if !(1..=MAX_EFFORT).contains(&self.effort) {
            return Err(Error::Parameter(format!("effort {}; it runs from 1 to {MAX_EFFORT}", self.effort)));
        }
        if let Denoise::Strength(strength, steps) = self.denoise
            && !(strength > 0.0 && strength < 1.0 && steps > 0)
        {
            return Err(Error::Parameter(format!(
                "denoising at strength {strength} in {steps} steps; a strength lies between 0 and 1, and there is a step at least"
            )));
        }
        Ok(())
    }

    /// Whether rounding weighs errors against bits.
    pub(super) fn optimises(&self) -> bool {
        self.effort >= OPTIMISING_EFFORT
    }

    /// Whether candidates are decoded to find how to denoise.
    pub(super) fn searches(&self) -> bool {
        self.denoise == Denoise::Auto && self.effort >= SEARCHING_EFFORT
    }

    /// For a sequence: a delta picture is not corrected, so that after a key picture that was it costs more than the correction saves.
    pub(super) fn uncorrected(&self) -> Self {
        let effort = if self.refining_steps() == Some(0) { self.effort - 1 } else { self.effort };
        EncodeOptions { effort, ..self.clone() }
    }

    /// How often a latent goes down the gradient after it is corrected; `None` where it stays what the analysis says.
    pub(super) fn refining_steps(&self) -> Option<usize> {
        self.effort.checked_sub(CORRECTING_EFFORT).map(|at| REFINING_STEPS[usize::from(at)])
    }
}

/// Memory that a picture may take unless the caller says otherwise: enough for 250 megapixels.
const DEFAULT_MAX_BYTES: u64 = 1 << 30;

/// How to decode.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct DecodeOptions {
    /// Threads; 0 is as many as there are processors.
    pub threads: usize,
    /// Bytes that the pixels and the latent of the picture may take. Weights and the working memory of one window a thread
    /// (about 100 MB) come on top.
    pub max_bytes: u64,
    /// Engine, provider and device.
    pub settings: Settings,
    /// Which of the bundle's decoders makes the pixels. `None`: the one that the file's author meant, as far as the bundle
    /// has it. One that is asked for and not in the bundle is an error.
    pub synthesis: Option<Synthesis>,
    /// Steps of the denoiser instead of those that the file says; 0 leaves the latent as it was stored. Of no effect on files
    /// that are not to be denoised.
    pub denoise_steps: Option<u8>,
    /// Who is told about long work.
    pub progress: Option<Progress>,
}

impl Default for DecodeOptions {
    fn default() -> Self {
        DecodeOptions {
            threads: 0,
            max_bytes: DEFAULT_MAX_BYTES,
            settings: Settings::default(),
            synthesis: None,
            denoise_steps: None,
            progress: None,
        }
    }
}

impl DecodeOptions {
    /// A number of threads; 0 is as many as there are processors.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        DecodeOptions { threads, ..self }
    }

    /// A limit for the memory of the picture.
    #[must_use]
    pub fn with_max_bytes(self, max_bytes: u64) -> Self {
        DecodeOptions { max_bytes, ..self }
    }

    /// Engine, provider and device.
    #[must_use]
    pub fn with_settings(self, settings: Settings) -> Self {
        DecodeOptions { settings, ..self }
    }

    /// Steps of the denoiser, instead of those that the file says; 0 is none.
    #[must_use]
    pub fn with_denoise_steps(self, steps: u8) -> Self {
        DecodeOptions { denoise_steps: Some(steps), ..self }
    }

    /// Somebody to be told about long work, and to stop it.
    #[must_use]
    pub fn with_progress(self, progress: Progress) -> Self {
        DecodeOptions { progress: Some(progress), ..self }
    }

    /// One of the bundle's decoders, whatever the file's author meant.
    #[must_use]
    pub fn with_synthesis(self, synthesis: Synthesis) -> Self {
        DecodeOptions { synthesis: Some(synthesis), ..self }
    }
}
