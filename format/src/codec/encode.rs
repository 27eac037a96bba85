//! Picture to file.

use std::sync::Arc;

use sdl_onnx::{Graph, TensorView, role};

use super::model::Model;
use super::synthesis::Synthesis;
use super::tiles::{Rect, latent_grid, tiles};
use super::{alpha, analysis, metadata, parallel, rate};
use crate::container::{ChunkWriter, chunk_type};
use crate::entropy::{LatentShape, RangeEncoder};
use crate::latent::scalar::{self, Quantiser};
use crate::latent::trained::{Grid, HYPER_CLIP, Tables, quantise};
use crate::latent::{checksum_i16, checksum_i32};
use crate::{Colour, Error, Header, Picture};

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

/// The largest effort.
pub const MAX_EFFORT: u8 = 9;
const DEFAULT_QUALITY: u8 = 50;
const DEFAULT_EFFORT: u8 = 5;
/// From this effort on, rounding weighs error against bits.
const OPTIMISING_EFFORT: u8 = 3;
/// Squared symbol units for each bit. On training pictures the best BD-rate lies here (docs/results/generation-0.md).
pub(crate) const STRENGTH: f32 = 0.06;

/// How to encode.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct EncodeOptions {
    /// Quality or size.
    pub rate: Rate,
    /// 1 (fastest) to 9: how hard to look for fewer bits. Below 3 latents are rounded to the nearest symbol; from there on
    /// rounding is rate-distortion optimised.
    pub effort: u8,
    /// Threads; 0 is as many as there are processors.
    pub threads: usize,
    /// How long the picture is shown in a stream, in microseconds.
    pub duration: Option<u32>,
    /// The decoder that the file shall be shown with; a reader may choose another. One that the bundle does not have is an
    /// error.
    pub synthesis: Synthesis,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        EncodeOptions {
            rate: Rate::Quality(DEFAULT_QUALITY),
            effort: DEFAULT_EFFORT,
            threads: 0,
            duration: None,
            synthesis: Synthesis::Fidelity,
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

    fn check(&self) -> Result<(), Error> {
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
        Ok(())
    }

    /// Weight of a bit in rounding.
    fn strength(&self) -> f32 {
        if self.effort < OPTIMISING_EFFORT { 0.0 } else { STRENGTH }
    }
}

/// A finished file and what it took.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Encoded {
    /// The file.
    pub bytes: Vec<u8>,
    /// The quality that was used.
    pub quality: u8,
}

/// Encodes with the built-in model.
///
/// # Errors
///
/// [`Error::Parameter`], [`Error::Target`] where the size asked for cannot be reached, [`Error::Model`].
pub fn encode(picture: &Picture, options: &EncodeOptions) -> Result<Vec<u8>, Error> {
    Ok(encode_with(&Model::built_in()?, picture, options)?.bytes)
}

/// Encodes with any model.
///
/// # Errors
///
/// As [`encode`].
pub fn encode_with(model: &Model, picture: &Picture, options: &EncodeOptions) -> Result<Encoded, Error> {
    options.check()?;
    model.require(options.synthesis.role())?;
    let encoder = Encoder::new(model, picture, options)?;
    match options.rate {
        Rate::Quality(quality) => {
            Ok(Encoded { bytes: encoder.file(Point { quality, strength: options.strength() })?, quality })
        }
        Rate::Size(bytes) => rate::search(&encoder, bytes, options.strength()),
        Rate::BitsPerPixel(bits) => {
            let pixels = f64::from(picture.width()) * f64::from(picture.height());
            rate::search(&encoder, (bits * pixels / 8.0).floor() as u64, options.strength())
        }
    }
}

/// Where on the curve of rate and distortion to encode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub quality: u8,
    /// Weight of a bit in rounding; 0 rounds to the nearest.
    pub strength: f32,
}

/// A picture whose latent is known: files of any quality can be made of it.
pub(crate) struct Encoder<'a> {
    model: &'a Model,
    picture: &'a Picture,
    tiles: Vec<(Rect, Vec<f32>)>,
    alpha: Option<Vec<u8>>,
    duration: Option<u32>,
    natural: bool,
    tiles_at_once: usize,
    hyper: Option<(Arc<dyn Graph>, Arc<dyn Graph>)>,
}

impl<'a> Encoder<'a> {
    fn new(model: &'a Model, picture: &'a Picture, options: &EncodeOptions) -> Result<Self, Error> {
        let (tiles_at_once, threads) = model.share(parallel::thread_count(options.threads));
        let grid = latent_grid(picture.width(), picture.height(), model.stride());
        let graph = model.graph(role::ANALYSIS, threads)?;
        let rects = tiles(grid);
        let latents = parallel::map(&rects, tiles_at_once, |_, &rect| {
            analysis::analyse(model, graph.as_ref(), picture, grid, rect)
        })?;
        let hyper = match model.tables() {
            Some(_) => Some((
                model.graph(role::HYPER_ANALYSIS, threads)?,
                model.graph(role::HYPER_SYNTHESIS, threads)?,
            )),
            None => None,
        };
        let alpha =
            picture.alpha().map(|plane| alpha::encode(plane, picture.width() as usize)).transpose()?;
        let tiles = rects.into_iter().zip(latents).collect();
        let natural = options.synthesis == Synthesis::Natural;
        Ok(Encoder {
            model,
            picture,
            tiles,
            alpha,
            duration: options.duration,
            natural,
            tiles_at_once,
            hyper,
        })
    }

    /// The whole file.
    pub fn file(&self, point: Point) -> Result<Vec<u8>, Error> {
        let header = Header {
            length: 0,
            width: self.picture.width() as u16,
            height: self.picture.height() as u16,
            quality: point.quality,
            grey: self.picture.colour() == Colour::Grey,
            natural: self.natural,
            alpha: self.picture.alpha().map(crate::Alpha::depth),
            method: self.model.method(),
            bundle: self.model.reference(),
            duration: self.duration,
        };
        let mut writer = ChunkWriter::new(header);
        metadata::write(&self.picture.metadata, &mut writer)?;
        let quantiser = self.quantiser(point.quality);
        if let Some(quantiser) = &quantiser {
            writer.push(chunk_type::QUANTISER, quantiser.to_bytes());
        }
        if let Some(alpha) = &self.alpha {
            writer.push(chunk_type::ALPHA, alpha.clone());
        }
        let payloads = parallel::map(&self.tiles, self.tiles_at_once, |_, (rect, latent)| {
            match (self.model.tables(), &self.hyper, &quantiser) {
                (Some(tables), Some((analysis, synthesis)), _) => {
                    trained_tile(tables, analysis.as_ref(), synthesis.as_ref(), rect.grid(), latent, point)
                }
                (_, _, Some(quantiser)) => scalar_tile(quantiser, rect.grid(), latent),
                _ => Err(Error::corrupt("a model without tables and without a quantiser")),
            }
        })?;
        for payload in payloads {
            writer.push(chunk_type::LATENT, payload);
        }
        writer.finish()
    }

    /// For bundles without tables: the step that a quality stands for. 50 is the bundle's own, 12.5 more halve it.
    fn quantiser(&self, quality: u8) -> Option<Quantiser> {
        if self.model.tables().is_some() {
            return None;
        }
        let latent = &self.model.bundle().manifest().latent;
        let step = latent.step * ((50.0 - f32::from(quality)) / 12.5).exp2();
        Some(Quantiser { step: vec![step; latent.channels] })
    }
}

/// The payload of a latent chunk: checksum of the latent, then the range coder's bytes.
fn trained_tile(
    tables: &Tables,
    analysis: &dyn Graph,
    synthesis: &dyn Graph,
    grid: Grid,
    latent: &[f32],
    point: Point,
) -> Result<Vec<u8>, Error> {
    let padded = grid.padded();
    let mut scaled = Vec::with_capacity(latent.len());
    for (c, plane) in latent.chunks_exact(padded.area()).enumerate() {
        let gain = tables.gain(point.quality, c);
        scaled.extend(plane.iter().map(|v| v * gain));
    }
    let shape = [1, tables.channels, padded.height, padded.width];
    let z = run(analysis, &TensorView::f32(&shape, &scaled)?)?;
    let limit = HYPER_CLIP as f32;
    let z: Vec<i8> = z.iter().map(|v| v.round_ties_even().clamp(-limit, limit) as i8).collect();
    let mean = hyper_mean(synthesis, &z, tables, grid)?;

    let mut encoder = RangeEncoder::new();
    tables.encode_hyper(point.quality, &z, grid, &mut encoder)?;
    let coded = tables.walk(point.quality, &z, &mean, grid, |table, at, mean| {
        let (c, position) = (at / grid.area(), at % grid.area());
        let (y, x) = (position / grid.width, position % grid.width);
        let value = scaled[c * padded.area() + y * padded.width + x] - mean as f32 / 16.0;
        let symbol = quantise(value, table, point.strength);
        encoder.encode_symbol(table, symbol)?;
        Ok(symbol)
    })?;
    let mut payload = checksum_i16(&coded).to_le_bytes().to_vec();
    payload.extend(encoder.finish());
    Ok(payload)
}

fn scalar_tile(quantiser: &Quantiser, grid: Grid, latent: &[f32]) -> Result<Vec<u8>, Error> {
    let symbols = quantiser.quantise(latent);
    let shape = LatentShape { channels: quantiser.step.len(), height: grid.height, width: grid.width };
    let mut payload = checksum_i32(&symbols).to_le_bytes().to_vec();
    payload.extend(scalar::encode(&symbols, shape)?);
    Ok(payload)
}

/// Runs the hyper-synthesis: hyper-latent to means on the padded grid.
pub(crate) fn hyper_mean(
    graph: &dyn Graph,
    z: &[i8],
    tables: &Tables,
    grid: Grid,
) -> Result<Vec<f32>, Error> {
    let hyper = grid.hyper();
    let input: Vec<f32> = z.iter().map(|&v| f32::from(v)).collect();
    let shape = [1, tables.hyper_channels, hyper.height, hyper.width];
    let mean = run(graph, &TensorView::f32(&shape, &input)?)?;
    if mean.len() != tables.channels * grid.padded().area() {
        return Err(Error::corrupt(format!("the hyper-synthesis graph returned {} values", mean.len())));
    }
    Ok(mean)
}

/// One input, one output, floating point.
fn run(graph: &dyn Graph, input: &TensorView<'_>) -> Result<Vec<f32>, Error> {
    let result = graph.run(&[(&graph.inputs()[0].name, *input)], &[&graph.outputs()[0].name])?;
    let tensor = result.into_iter().next().ok_or_else(|| Error::corrupt("a graph returned nothing"))?;
    Ok(tensor.into_f32()?)
}
