//! Picture to file.

use std::sync::Arc;

use sdl_onnx::{Graph, TensorView, role};

use super::delta::{Kept, ReferenceName, delta_tile};
use super::model::Model;
use super::tiles::{Rect, latent_grid, tiles};
use super::{alpha, analysis, metadata, parallel, rate};
use crate::container::{ChunkWriter, chunk_type};
use crate::entropy::{LatentShape, RangeEncoder};
use crate::latent::delta::TileState;
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
}

impl Default for EncodeOptions {
    fn default() -> Self {
        EncodeOptions {
            rate: Rate::Quality(DEFAULT_QUALITY),
            effort: DEFAULT_EFFORT,
            threads: 0,
            duration: None,
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
    /// It is a delta picture: only a decoder that has the one before it can decode it.
    pub delta: bool,
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
    Ok(Encoder::checked(model, picture, options)?.encode(options, None)?.0)
}

/// Where on the curve of rate and distortion to encode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub quality: u8,
    /// Weight of a bit in rounding; 0 rounds to the nearest.
    pub strength: f32,
}

/// A file, and its tiles for the picture after it.
pub(crate) struct Coded {
    pub bytes: Vec<u8>,
    pub tiles: Vec<TileState>,
}

/// A picture whose latent is known: files of any quality can be made of it.
pub(crate) struct Encoder<'a> {
    model: &'a Model,
    picture: &'a Picture,
    tiles: Vec<(Rect, Vec<f32>)>,
    alpha: Option<Vec<u8>>,
    duration: Option<u32>,
    tiles_at_once: usize,
    hyper: Option<Hyper>,
}

impl<'a> Encoder<'a> {
    pub fn checked(model: &'a Model, picture: &'a Picture, options: &EncodeOptions) -> Result<Self, Error> {
        options.check()?;
        Self::new(model, picture, options)
    }

    fn new(model: &'a Model, picture: &'a Picture, options: &EncodeOptions) -> Result<Self, Error> {
        let (tiles_at_once, threads) = model.share(parallel::thread_count(options.threads));
        let grid = latent_grid(picture.width(), picture.height(), model.stride());
        let graph = model.graph(role::ANALYSIS, threads)?;
        let rects = tiles(grid);
        let latents = parallel::map(&rects, tiles_at_once, |_, &rect| {
            analysis::analyse(model, graph.as_ref(), picture, grid, rect)
        })?;
        let hyper = match model.tables() {
            Some(_) => Some(Hyper {
                analysis: model.graph(role::HYPER_ANALYSIS, threads)?,
                synthesis: model.graph(role::HYPER_SYNTHESIS, threads)?,
            }),
            None => None,
        };
        let alpha =
            picture.alpha().map(|plane| alpha::encode(plane, picture.width() as usize)).transpose()?;
        let tiles = rects.into_iter().zip(latents).collect();
        Ok(Encoder { model, picture, tiles, alpha, duration: options.duration, tiles_at_once, hyper })
    }

    /// The file that the options ask for, against the picture `before` if one is given.
    pub fn encode(
        &self,
        options: &EncodeOptions,
        before: Option<&Kept>,
    ) -> Result<(Encoded, Vec<TileState>), Error> {
        let strength = options.strength();
        let file = |point| self.file(point, before);
        let pixels = f64::from(self.picture.width()) * f64::from(self.picture.height());
        let (coded, quality) = match options.rate {
            Rate::Quality(quality) => (file(Point { quality, strength })?, quality),
            Rate::Size(bytes) => rate::search(&file, bytes, strength)?,
            Rate::BitsPerPixel(bits) => rate::search(&file, (bits * pixels / 8.0).floor() as u64, strength)?,
        };
        Ok((Encoded { bytes: coded.bytes, quality, delta: before.is_some() }, coded.tiles))
    }

    /// Whether this picture may be coded against another one.
    pub fn follows(&self, before: &Kept) -> bool {
        before.size == (self.picture.width(), self.picture.height())
            && before.bundle == self.model.reference()
            && before.alpha.as_ref().map(|(depth, _)| *depth) == self.picture.alpha().map(crate::Alpha::depth)
    }

    /// What is kept for the picture after this one.
    pub fn kept(&self, name: ReferenceName, tiles: Vec<TileState>) -> Kept {
        let depth = self.picture.alpha().map(crate::Alpha::depth);
        Kept {
            name,
            size: (self.picture.width(), self.picture.height()),
            bundle: self.model.reference(),
            alpha: depth.zip(self.alpha.clone()),
            tiles,
        }
    }

    /// The whole file.
    fn file(&self, point: Point, before: Option<&Kept>) -> Result<Coded, Error> {
        let header = Header {
            length: 0,
            width: self.picture.width() as u16,
            height: self.picture.height() as u16,
            quality: point.quality,
            grey: self.picture.colour() == Colour::Grey,
            natural: false,
            alpha: self.picture.alpha().map(crate::Alpha::depth),
            method: self.model.method(),
            bundle: self.model.reference(),
            duration: self.duration,
        };
        let mut writer = ChunkWriter::new(header);
        if let Some(before) = before {
            writer.push(chunk_type::BEFORE, before.name.0.to_vec());
        }
        metadata::write(&self.picture.metadata, &mut writer)?;
        let quantiser = self.quantiser(point.quality);
        if let Some(quantiser) = &quantiser {
            writer.push(chunk_type::QUANTISER, quantiser.to_bytes());
        }
        let old = before.and_then(|before| before.alpha.as_ref()).map(|(_, old)| old);
        if let Some(alpha) = self.alpha.as_ref().filter(|&alpha| Some(alpha) != old) {
            writer.push(chunk_type::ALPHA, alpha.clone());
        }
        let coded = parallel::map(&self.tiles, self.tiles_at_once, |tile, (rect, latent)| {
            let grid = rect.grid();
            match (self.model.tables(), &self.hyper, &quantiser, before) {
                (Some(tables), Some(hyper), _, Some(before)) => {
                    delta_tile(tables, hyper, grid, latent, point, &before.tiles[tile])
                }
                (Some(tables), Some(hyper), _, None) => trained_tile(tables, hyper, grid, latent, point),
                (_, _, Some(quantiser), None) => {
                    Ok((scalar_tile(quantiser, grid, latent)?, TileState::default()))
                }
                _ => Err(Error::corrupt("a model without tables and without a quantiser")),
            }
        })?;
        let mut tiles = Vec::with_capacity(coded.len());
        for (payload, tile) in coded {
            writer.push(chunk_type::LATENT, payload);
            tiles.push(tile);
        }
        Ok(Coded { bytes: writer.finish()?, tiles })
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

/// The graphs around the hyper-latent.
pub(crate) struct Hyper {
    analysis: Arc<dyn Graph>,
    pub synthesis: Arc<dyn Graph>,
}

impl Hyper {
    /// The latent in symbol units, on the padded grid.
    pub fn scale(&self, tables: &Tables, level: u8, grid: Grid, latent: &[f32]) -> Vec<f32> {
        let mut scaled = Vec::with_capacity(latent.len());
        for (c, plane) in latent.chunks_exact(grid.padded().area()).enumerate() {
            let gain = tables.gain(level, c);
            scaled.extend(plane.iter().map(|v| v * gain));
        }
        scaled
    }

    /// The hyper-latent of a scaled latent.
    pub fn analyse(&self, tables: &Tables, grid: Grid, scaled: &[f32]) -> Result<Vec<i8>, Error> {
        let padded = grid.padded();
        let shape = [1, tables.channels, padded.height, padded.width];
        let z = run(self.analysis.as_ref(), &TensorView::f32(&shape, scaled)?)?;
        let limit = HYPER_CLIP as f32;
        Ok(z.iter().map(|v| v.round_ties_even().clamp(-limit, limit) as i8).collect())
    }
}

/// The payload of a latent chunk: checksum of the latent, then the range coder's bytes.
pub(crate) fn payload(latent: &[i16], encoder: RangeEncoder) -> Vec<u8> {
    let mut payload = checksum_i16(latent).to_le_bytes().to_vec();
    payload.extend(encoder.finish());
    payload
}

fn trained_tile(
    tables: &Tables,
    hyper: &Hyper,
    grid: Grid,
    latent: &[f32],
    point: Point,
) -> Result<(Vec<u8>, TileState), Error> {
    let padded = grid.padded();
    let scaled = hyper.scale(tables, point.quality, grid, latent);
    let z = hyper.analyse(tables, grid, &scaled)?;
    let mean = hyper_mean(hyper.synthesis.as_ref(), &z, tables, grid)?;

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
    Ok((payload(&coded, encoder), TileState { latent: coded, hyper: z }))
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
