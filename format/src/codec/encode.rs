//! Picture to file.

use std::sync::Arc;

use sdl_onnx::role;

use super::decode::Decoder;
use super::delta::{Kept, ReferenceName, delta_tile};
use super::denoise::{self, Denoise, Denoising};
use super::hyper::{Hyper, Target};
use super::model::Model;
use super::options::{DecodeOptions, EncodeOptions, LatentMethod, Rate};
use super::plan::TilePlan;
use super::progress::{Stage, tell};
use super::refine::{Refinement, Rounded};
use super::synthesis::Synthesis;
use super::tiles::{Rect, latent_grid, place, tiles};
use super::{alpha, analysis, metadata, parallel, rate};
use crate::container::{ChunkWriter, chunk_type};
use crate::entropy::{LatentShape, RangeEncoder};
use crate::latent::codebook::Codebook;
use crate::latent::delta::TileState;
use crate::latent::palette::{MAX_ENTRIES, Palette};
use crate::latent::scalar::Quantiser;
use crate::latent::trained::{Grid, Tables, quantise};
use crate::latent::{checksum_i16, checksum_i32};
use crate::{BundleRef, Colour, Error, Header, Method, Picture};

/// Squared symbol units for each bit, universal coder (docs/results/latent-methods.md).
const SCALAR_STRENGTH: f32 = 0.1;
/// Squared symbol units for each bit. On training pictures the best BD-rate lies here (docs/results/generation-5.md).
pub(crate) const STRENGTH: f32 = 0.045;
/// So many times as much where latents are refined (docs/results/refinement.md).
const REFINED: f32 = 1.8;

/// A finished file and what it took.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Encoded {
    /// The file.
    pub bytes: Vec<u8>,
    /// The quality that was used.
    pub quality: u8,
    /// How the file is denoised.
    pub denoising: Option<Denoising>,
    /// Mean squared error of the scaled latent as it is stored, before any denoising; `None` with trained tables.
    pub latent_error: Option<f64>,
    /// Weight of a bit in rounding.
    pub(crate) strength: f32,
    /// It is a delta picture: only a decoder that has the one before it can decode it.
    pub delta: bool,
}

/// Encodes with the built-in model, or the one that the options name.
///
/// # Errors
///
/// [`Error::Parameter`], [`Error::Target`] where the size asked for cannot be reached, [`Error::Model`].
pub fn encode(picture: &Picture, options: &EncodeOptions) -> Result<Vec<u8>, Error> {
    Ok(encode_with(&model_of(options)?, picture, options)?.bytes)
}

/// The model that the options name.
pub(crate) fn model_of(options: &EncodeOptions) -> Result<Model, Error> {
    match &options.model {
        Some(name) => Model::find(name, super::model::Settings::default()),
        None => Model::built_in(),
    }
}

/// Encodes with any model.
///
/// # Errors
///
/// As [`encode`].
pub fn encode_with(model: &Model, picture: &Picture, options: &EncodeOptions) -> Result<Encoded, Error> {
    Ok(Encoder::checked(model, picture, options)?.encode(None)?.0)
}

/// Where on the curve of rate and distortion to encode.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    pub quality: u8,
    /// Weight of a bit in rounding; 0 rounds to the nearest.
    pub strength: f32,
    /// How the file is denoised.
    pub denoising: Option<Denoising>,
}

/// A file, and its tiles for the picture after it.
pub(crate) struct Coded {
    pub encoded: Encoded,
    pub tiles: Vec<TileState>,
}

impl Coded {
    /// Bytes of the file.
    pub fn len(&self) -> u64 {
        self.encoded.bytes.len() as u64
    }
}

/// A picture whose latent is known: files of any quality can be made of it.
pub(crate) struct Encoder<'a> {
    model: &'a Model,
    picture: &'a Picture,
    options: EncodeOptions,
    grid: Grid,
    tiles: Vec<(Rect, Vec<f32>)>,
    /// The scaled latent of the whole picture, (C, H, W); empty with trained tables.
    whole: Vec<f32>,
    /// Steps of the channels, as far as the model's own precision says how they differ.
    relative: Option<Vec<f32>>,
    method: Method,
    alpha: Option<Vec<u8>>,
    tiles_at_once: usize,
    hyper: Option<Hyper>,
    /// abar of the denoiser's schedule, where files shall be denoised.
    schedule: Option<Vec<f64>>,
    searches: bool,
}

/// How the latent of a file is coded.
enum Coder {
    Trained,
    Scalar(Quantiser),
    /// A palette goes into the file, the codebook of the bundle does not.
    Vectors {
        codebook: Arc<Codebook>,
        indices: Vec<u32>,
        palette: Option<Palette>,
    },
}

impl<'a> Encoder<'a> {
    pub fn checked(model: &'a Model, picture: &'a Picture, options: &EncodeOptions) -> Result<Self, Error> {
        options.check()?;
        model.require(options.synthesis.role())?;
        Self::new(model, picture, options)
    }

    fn new(model: &'a Model, picture: &'a Picture, options: &EncodeOptions) -> Result<Self, Error> {
        let method = method_for(model, options.method)?;
        let schedule = schedule_for(model, method, options.denoise)?;
        let (tiles_at_once, threads) = model.share(parallel::thread_count(options.threads));
        let grid = latent_grid(picture.width(), picture.height(), model.stride());
        let graph = model.graph(role::ANALYSIS, threads)?;
        let rects = tiles(grid);
        let analysed = parallel::map(&rects, tiles_at_once, |done, &rect| {
            tell(&options.progress, Stage::Analysis, done, rects.len())?;
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
        let relative = relative_steps(model.channels(), &analysed);
        let latents: Vec<Vec<f32>> = analysed.into_iter().map(|analysed| analysed.latent).collect();
        let whole = match method {
            Method::Trained => Vec::new(),
            _ => place(grid, model.channels(), &rects, latents.iter().map(Vec::as_slice)),
        };
        Ok(Encoder {
            model,
            picture,
            options: options.clone(),
            grid,
            tiles: rects.into_iter().zip(latents).collect(),
            whole,
            relative,
            method,
            alpha,
            tiles_at_once,
            hyper,
            searches: schedule.is_some() && options.searches(),
            schedule,
        })
    }

    /// A file of this quality, whose latent is coded by `coder`, denoised as the options say without a search.
    fn point(&self, quality: u8, strength: f32, coder: &Coder) -> Point {
        let abar = self.schedule.as_deref();
        let denoising = abar.and_then(|abar| match self.options.denoise {
            Denoise::Strength(strength, steps) => {
                let timestep = (f64::from(strength) * abar.len() as f64).round().max(1.0) as u16;
                Denoising { timestep, steps }.in_steps(steps)
            }
            _ => {
                let step = match coder {
                    Coder::Trained => return None,
                    Coder::Scalar(quantiser) => f64::from(quantiser.mean_step()),
                    Coder::Vectors { codebook, indices, .. } => {
                        (12.0 * self.error(&codebook.latent(indices))).sqrt()
                    }
                };
                denoise::matching_timestep(abar, step).map(|timestep| Denoising { timestep, steps: 1 })
            }
        });
        Point { quality, strength, denoising }
    }

    /// The file that the options ask for, against the picture `before` if one is given.
    pub fn encode(&self, before: Option<&Kept>) -> Result<(Encoded, Vec<TileState>), Error> {
        let options = &self.options;
        let strength = if options.optimises() { STRENGTH } else { 0.0 };
        let in_steps = |steps| {
            move |quality, strength| {
                let coder = self.coder(quality);
                self.file(self.point(quality, strength, &coder), &coder, before, steps)
            }
        };
        let steps = options.refining_steps().filter(|_| before.is_none());
        let file = in_steps(steps);
        let of_size = |bytes| {
            if steps.is_none() {
                return rate::search(&file, bytes, strength, None);
            }
            // A refined file is little larger or smaller than the other of its quality, and takes up to a hundred times as long.
            let guess = match rate::search(&in_steps(None), bytes, strength, None) {
                Ok(plain) => plain.encoded.quality,
                Err(Error::Target { .. }) => 0,
                Err(error) => return Err(error),
            };
            rate::search(&file, bytes, strength, Some(guess))
        };
        let pixels = f64::from(self.picture.width()) * f64::from(self.picture.height());
        let coded = match options.rate {
            Rate::Quality(quality) => file(quality, strength)?,
            Rate::Size(bytes) => of_size(bytes)?,
            Rate::BitsPerPixel(bits) => of_size((bits * pixels / 8.0).floor() as u64)?,
        };
        let Coded { encoded, tiles } = coded;
        if !self.searches {
            return Ok((encoded, tiles));
        }
        let Encoded { quality, strength, denoising, .. } = encoded;
        // The search for a size has counted what is said of denoising; its quantiser stays.
        let free = matches!(options.rate, Rate::Quality(_));
        Ok((self.search(Point { quality, strength, denoising }, free)?, tiles))
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

    /// The whole file, its latent refined in so many `steps`. `coder` is the one of the point's quality: to find it takes long.
    fn file(
        &self,
        point: Point,
        coder: &Coder,
        before: Option<&Kept>,
        steps: Option<usize>,
    ) -> Result<Coded, Error> {
        let header = Header {
            length: 0,
            width: self.picture.width() as u16,
            height: self.picture.height() as u16,
            quality: point.quality,
            grey: self.picture.colour() == Colour::Grey,
            natural: self.options.synthesis == Synthesis::Natural,
            alpha: self.picture.alpha().map(crate::Alpha::depth),
            method: self.method,
            bundle: self.model.reference(),
            duration: self.options.duration,
        };
        let mut writer = ChunkWriter::new(header);
        if let Some(before) = before {
            writer.push(chunk_type::BEFORE, before.name.0.to_vec());
        }
        metadata::write(&self.picture.metadata, &mut writer)?;
        if matches!(self.model.reference(), BundleRef::Named(_)) {
            let label = self.model.bundle().manifest().label();
            writer.push(chunk_type::BUNDLE, label.into_bytes());
        }
        if let Some(denoising) = point.denoising {
            writer.push(chunk_type::DENOISING, denoising.to_bytes());
        }
        let exact = self.model.bundle().manifest().pixels.exact;
        if let Some(plan) =
            TilePlan::of(self.model, self.grid).filter(|_| !exact || point.denoising.is_some())
        {
            writer.push(chunk_type::PLAN, plan.to_bytes());
        }
        match coder {
            Coder::Scalar(quantiser) => writer.push(chunk_type::QUANTISER, quantiser.to_bytes()),
            Coder::Vectors { palette: Some(palette), .. } => {
                writer.push(chunk_type::QUANTISER, palette.to_bytes()?);
            }
            _ => {}
        }
        let old = before.and_then(|before| before.alpha.as_ref()).map(|(_, old)| old);
        if let Some(alpha) = self.alpha.as_ref().filter(|&alpha| Some(alpha) != old) {
            writer.push(chunk_type::ALPHA, alpha.clone());
        }
        let refined = match (self.model.tables(), &self.hyper, steps) {
            (Some(tables), Some(hyper), Some(steps)) => self.refined(tables, hyper, point, steps)?,
            _ => None,
        };
        let coded = parallel::map(&self.tiles, self.tiles_at_once, |tile, (rect, latent)| {
            let grid = rect.grid();
            match (coder, self.model.tables(), &self.hyper, before) {
                (Coder::Trained, Some(tables), Some(hyper), Some(before)) => {
                    let (payload, state) =
                        delta_tile(tables, hyper, grid, latent, point, &before.tiles[tile])?;
                    Ok((payload, state, 0.0))
                }
                (Coder::Trained, Some(tables), Some(hyper), None) => {
                    let (payload, state) = match &refined {
                        Some((targets, point)) => trained_tile(tables, grid, &targets[tile], *point)?,
                        None => {
                            let target = hyper.target(tables, point.quality, grid, latent)?;
                            trained_tile(tables, grid, &target, point)?
                        }
                    };
                    Ok((payload, state, 0.0))
                }
                (Coder::Scalar(quantiser), _, _, None) => {
                    let (payload, error) = scalar_tile(quantiser, grid, latent, point.strength)?;
                    Ok((payload, TileState::default(), error))
                }
                (Coder::Vectors { codebook, indices, .. }, _, _, None) => {
                    let indices: Vec<u32> = (rect.y..rect.y + rect.height)
                        .flat_map(|y| &indices[y * self.grid.width + rect.x..][..rect.width])
                        .copied()
                        .collect();
                    let error = squared_error(&codebook.latent(&indices), latent);
                    Ok((codebook.encode_tile(&indices, grid)?, TileState::default(), error))
                }
                _ => Err(Error::corrupt("a model without the tables that it was said to have")),
            }
        })?;
        let (mut tiles, mut error) = (Vec::with_capacity(coded.len()), 0.0);
        for (payload, tile, tile_error) in coded {
            writer.push(chunk_type::LATENT, payload);
            tiles.push(tile);
            error += tile_error;
        }
        let trained = matches!(coder, Coder::Trained);
        let encoded = Encoded {
            bytes: writer.finish()?,
            quality: point.quality,
            delta: before.is_some(),
            denoising: point.denoising,
            latent_error: (!trained).then(|| error / self.whole.len() as f64),
            strength: point.strength,
        };
        Ok(Coded { encoded, tiles })
    }

    /// What the tiles are rounded from, and how, if they are refined.
    fn refined(
        &self,
        tables: &Tables,
        hyper: &Hyper,
        point: Point,
        steps: usize,
    ) -> Result<Option<(Vec<Target>, Point)>, Error> {
        let bundle = self.model.bundle();
        if !bundle.manifest().pixels.exact || (steps == 0 && !bundle.has(role::CORRECTION)) {
            return Ok(None);
        }
        let mut targets = parallel::map(&self.tiles, self.tiles_at_once, |_, (rect, latent)| {
            hyper.target(tables, point.quality, rect.grid(), latent)
        })?;
        let tiles: Vec<Rect> = self.tiles.iter().map(|(rect, _)| *rect).collect();
        let refinement = Refinement {
            model: self.model,
            tables,
            synthesis: self.options.synthesis,
            picture: self.picture,
            grid: self.grid,
            tiles: &tiles,
            at_once: self.tiles_at_once,
            progress: &self.options.progress,
        };
        let point = Point { strength: REFINED * point.strength, ..point };
        let is_refined = refinement.refine(point.quality, steps, &mut targets, |grid, target| {
            let Target { scaled, hyper, mean } = target;
            let mut coded = vec![false; tables.channels * grid.area()];
            let latent = tables.walk(point.quality, hyper, mean, grid, |table, at, mean| {
                coded[at] = true;
                Ok(quantise(scaled[at] - mean as f32 / 16.0, table, point.strength))
            })?;
            Ok(Rounded { latent, coded })
        })?;
        Ok(is_refined.then_some((targets, point)))
    }

    /// How the latent is coded at a quality.
    fn coder(&self, quality: u8) -> Coder {
        let latent = &self.model.bundle().manifest().latent;
        match (self.method, self.model.codebook()) {
            (Method::Trained, _) => Coder::Trained,
            (Method::Palette, _) => {
                let dither = self.options.method == Some(LatentMethod::Palette { dither: true });
                // From 2 at quality 0 to 256 at 100.
                let entries = (1.0 + 7.0 * f32::from(quality) / 100.0).exp2().round() as usize;
                let palette = Palette::of(&self.whole, latent.channels, entries.min(MAX_ENTRIES));
                let indices = if dither {
                    palette.dithered(&self.whole, self.grid.width)
                } else {
                    palette.codebook().indices(&self.whole)
                };
                let codebook = Arc::new(palette.codebook().clone());
                Coder::Vectors { codebook, indices, palette: Some(palette) }
            }
            (Method::Codebook, Some(codebook)) => Coder::Vectors {
                indices: codebook.indices(&self.whole),
                codebook: Arc::clone(codebook),
                palette: None,
            },
            // 50 is the bundle's own step, 12.5 more halve it.
            _ => {
                let step = latent.step * ((50.0 - f32::from(quality)) / 12.5).exp2();
                let even = Quantiser::even(step, latent.channels);
                let shaped = match &self.relative {
                    Some(relative) => even.with_relative(relative),
                    None => even,
                };
                let optimises = self.options.optimises();
                Coder::Scalar(if optimises { shaped.centred(&self.whole) } else { shaped })
            }
        }
    }

    fn error(&self, decoded: &[f32]) -> f64 {
        squared_error(decoded, &self.whole) / self.whole.len().max(1) as f64
    }

    /// The best that decoding of candidates finds: timesteps around the matching one, in one to four steps. With `coarser`,
    /// and as long as the picture stays as close to its source as it is at `point` undenoised, also coarser quantisers.
    fn search(&self, point: Point, coarser: bool) -> Result<Encoded, Error> {
        const COARSER: [u8; 4] = [0, 2, 4, 8];
        let plain =
            self.file(Point { denoising: None, ..point }, &self.coder(point.quality), None, None)?.encoded;
        let allowed = self.distance(&plain.bytes)?;
        let mut best = plain;
        let qualities = COARSER.iter().filter_map(|by| point.quality.checked_sub(*by));
        for (round, quality) in qualities.take(if coarser { COARSER.len() } else { 1 }).enumerate() {
            let mut nearest = (allowed, None);
            let coder = self.coder(quality);
            let candidates = self.candidates(quality, point.strength, &coder);
            for (done, &candidate) in candidates.iter().enumerate() {
                tell(
                    &self.options.progress,
                    Stage::Search,
                    round * candidates.len() + done,
                    COARSER.len() * candidates.len(),
                )?;
                let file = self.file(candidate, &coder, None, None)?.encoded;
                let distance = self.distance(&file.bytes)?;
                if distance < nearest.0 {
                    nearest = (distance, Some(file));
                }
            }
            match nearest.1 {
                Some(file) => best = file,
                None => break,
            }
        }
        Ok(best)
    }

    fn candidates(&self, quality: u8, strength: f32, coder: &Coder) -> Vec<Point> {
        const PARTS: [f64; 4] = [0.25, 0.5, 1.0, 1.5];
        const STEPS: [u8; 3] = [1, 2, 4];
        let matching = self.point(quality, strength, coder);
        let Some(Denoising { timestep, .. }) = matching.denoising else { return Vec::new() };
        let last = self.schedule.as_ref().map_or(0, |abar| abar.len() - 1);
        let timesteps =
            PARTS.map(|part| ((f64::from(timestep) * part).round().max(1.0) as usize).min(last) as u16);
        let mut points: Vec<Point> = Vec::new();
        for (timestep, steps) in timesteps.into_iter().flat_map(|t| STEPS.map(|steps| (t, steps))) {
            let point = Point { denoising: Denoising { timestep, steps: 1 }.in_steps(steps), ..matching };
            if !points.contains(&point) {
                points.push(point);
            }
        }
        points
    }

    /// Squared error of the decoded pixels against the source.
    fn distance(&self, file: &[u8]) -> Result<u64, Error> {
        let options = DecodeOptions::default()
            .with_threads(self.options.threads)
            .with_max_bytes(u64::MAX)
            .with_synthesis(self.options.synthesis);
        let decoded = Decoder::new(file)?.with_model(self.model.clone()).decode(&options)?;
        let pairs = decoded.pixels().iter().zip(self.picture.pixels());
        Ok(pairs.map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum())
    }
}

/// The method of a file, if the model can do it.
fn method_for(model: &Model, asked: Option<LatentMethod>) -> Result<Method, Error> {
    let method = match asked {
        None => return Ok(model.method()),
        Some(LatentMethod::Scalar) => Method::Scalar,
        Some(LatentMethod::Palette { .. }) => Method::Palette,
        Some(LatentMethod::Codebook) => Method::Codebook,
    };
    let name = model.bundle().manifest().label();
    if model.tables().is_some() {
        return Err(Error::Parameter(format!(
            "bundle {name} codes with its own tables; the method {} is for bundles without",
            method.name()
        )));
    }
    if method == Method::Codebook && model.codebook().is_none() {
        return Err(Error::Parameter(format!("bundle {name} has no codebook")));
    }
    Ok(method)
}

/// The schedule of the denoiser, if files shall be denoised.
fn schedule_for(model: &Model, method: Method, asked: Denoise) -> Result<Option<Vec<f64>>, Error> {
    match asked {
        Denoise::Strength(..) if method == Method::Trained => Err(Error::Parameter(format!(
            "bundle {} codes with its own tables; such latents are not denoised",
            model.bundle().manifest().label()
        ))),
        Denoise::Strength(..) => denoise::schedule(model).map(Some),
        Denoise::Auto if method != Method::Trained => Ok(denoise::schedule(model).ok()),
        _ => Ok(None),
    }
}

/// Steps of the channels against a common one, in proportion to the standard deviations that the model itself gives them,
/// with the mean square of one.
fn relative_steps(channels: usize, analysed: &[analysis::Analysed]) -> Option<Vec<f32>> {
    /// A channel's step is at most so many times another's.
    const MOST: f64 = 4.0;
    let mut variances = vec![0.0; channels];
    for tile in analysed {
        let values = tile.log_variance.as_ref()?;
        for (sum, plane) in variances.iter_mut().zip(values.chunks_exact(values.len() / channels)) {
            *sum += plane.iter().map(|v| f64::from(*v).exp()).sum::<f64>();
        }
    }
    let largest = variances.iter().copied().fold(0.0, f64::max);
    if !(largest.is_finite() && largest > 0.0) {
        return None;
    }
    variances.iter_mut().for_each(|v| *v = v.max(largest / (MOST * MOST)));
    let mean = variances.iter().sum::<f64>() / channels as f64;
    Some(variances.iter().map(|v| (v / mean).sqrt() as f32).collect())
}

fn squared_error(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum()
}

/// The payload of a latent chunk: checksum of the latent, then the range coder's bytes.
pub(crate) fn payload(latent: &[i16], encoder: RangeEncoder) -> Vec<u8> {
    let mut payload = checksum_i16(latent).to_le_bytes().to_vec();
    payload.extend(encoder.finish());
    payload
}

fn trained_tile(
    tables: &Tables,
    grid: Grid,
    target: &Target,
    point: Point,
) -> Result<(Vec<u8>, TileState), Error> {
    let Target { scaled, hyper, mean } = target;
    let mut encoder = RangeEncoder::new();
    tables.encode_hyper(point.quality, grid, hyper, |_| true, &mut encoder)?;
    let coded = tables.walk(point.quality, hyper, mean, grid, |table, at, mean| {
        let symbol = quantise(scaled[at] - mean as f32 / 16.0, table, point.strength);
        encoder.encode_symbol(table, symbol)?;
        Ok(symbol)
    })?;
    Ok((payload(&coded, encoder), TileState { latent: coded, hyper: hyper.clone() }))
}

/// The payload of a latent chunk, and the squared error of what it stands for.
fn scalar_tile(
    quantiser: &Quantiser,
    grid: Grid,
    latent: &[f32],
    strength: f32,
) -> Result<(Vec<u8>, f64), Error> {
    let shape = LatentShape { channels: quantiser.channels(), height: grid.height, width: grid.width };
    let (symbols, data) = quantiser.encode(latent, shape, strength * (SCALAR_STRENGTH / STRENGTH))?;
    let error = squared_error(&quantiser.dequantise(&symbols), latent);
    Ok(([&checksum_i32(&symbols).to_le_bytes()[..], &data].concat(), error))
}
