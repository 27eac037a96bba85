//! File to picture.

use std::io::{Cursor, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sdl_onnx::{Elements, role};

use super::blend::Blending;
use super::delta::{Kept, Reference, ReferenceName};
use super::denoise::{self, Denoising};
use super::hyper::hyper_mean;
use super::model::{self, Model, Settings};
use super::options::DecodeOptions;
use super::plan::TilePlan;
use super::synthesis::{Latent, Synthesis, Windows};
use super::tiles::{latent_grid, place, tiles};
use super::{alpha, metadata, parallel};
use crate::container::{ChunkReader, chunk_type};
use crate::entropy::{LatentShape, RangeDecoder};
use crate::latent::delta::{Plan, Sides, TileState};
use crate::latent::palette::Palette;
use crate::latent::scalar::Quantiser;
use crate::latent::trained::{Grid, Tables};
use crate::latent::{Coding, checksum_i16};
use crate::{AlphaDepth, ChunkInfo, Colour, Error, Header, Metadata, Method, Picture};

/// Where the time of a decode went: wall-clock, tiles on several threads added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StageTimes {
    /// The hyper-synthesis graph.
    pub hyper_synthesis: Duration,
    /// Range decoding and everything that chooses its tables.
    pub entropy: Duration,
    /// The denoiser.
    pub denoising: Duration,
    /// The synthesis graph, with the conversion of its input and output.
    pub synthesis: Duration,
    /// Everything, from the first chunk to the picture.
    pub total: Duration,
}

/// What [`Decoder::verify`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verified {
    /// Tiles whose latent was decoded and checked.
    pub tiles: usize,
    /// Profile, Exif and XMP.
    pub metadata: Metadata,
}

/// Decodes bytes that are in memory.
///
/// # Errors
///
/// Every [`Error`] but `Target` and `Parameter`.
pub fn decode(bytes: &[u8], options: &DecodeOptions) -> Result<Picture, Error> {
    Decoder::new(Cursor::new(bytes))?.decode(options)
}

/// A picture that is read: the header at once, the rest when it is asked for.
#[derive(Debug)]
pub struct Decoder<R> {
    chunks: ChunkReader<R>,
    /// The picture that this one is coded against.
    before: Option<ReferenceName>,
    metadata: Metadata,
    /// NAME@VERSION of the bundle, as the file gives it: for people alone.
    label: Option<String>,
    denoising: Option<Denoising>,
    plan: Option<TilePlan>,
    /// The first chunk that is no metadata, read but not used yet.
    pending: Option<(u8, Vec<u8>)>,
    metadata_done: bool,
    model: Option<Model>,
    /// What [`follow`](Self::follow) has decoded.
    known: Option<Known>,
    times: StageTimes,
}

impl<R> std::fmt::Debug for ChunkReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ChunkReader").finish_non_exhaustive()
    }
}

impl<R: Read> Decoder<R> {
    /// Reads the header and not a byte more; no model is loaded.
    ///
    /// # Errors
    ///
    /// As [`Header::parse`], [`Error::Truncated`], [`Error::Io`].
    pub fn new(input: R) -> Result<Self, Error> {
        Ok(Decoder {
            chunks: ChunkReader::new(input)?,
            before: None,
            metadata: Metadata::default(),
            label: None,
            denoising: None,
            plan: None,
            pending: None,
            metadata_done: false,
            model: None,
            known: None,
            times: StageTimes::default(),
        })
    }

    /// Uses this model, if it is the one that the file names, instead of looking for it.
    #[must_use]
    pub fn with_model(mut self, model: Model) -> Self {
        self.model = Some(model);
        self
    }

    /// The header.
    pub fn header(&self) -> &Header {
        self.chunks.header()
    }

    /// Profile, Exif and XMP; reads up to where the picture itself begins.
    ///
    /// # Errors
    ///
    /// Those of damaged chunks.
    pub fn metadata(&mut self) -> Result<&Metadata, Error> {
        while !self.metadata_done {
            match self.chunks.next()? {
                Some((chunk_type::BEFORE, payload)) if self.chunks.seen().len() == 1 => {
                    let name = payload.try_into();
                    let name =
                        name.map_err(|_| Error::corrupt("the name of the reference has not 8 bytes"))?;
                    self.before = Some(ReferenceName(name));
                }
                Some((kind @ (chunk_type::ICC | chunk_type::EXIF | chunk_type::XMP), payload)) => {
                    metadata::read(kind, &payload, &mut self.metadata)?;
                }
                // What is no name, or one more, says nothing.
                Some((chunk_type::BUNDLE, payload)) => {
                    self.label = self.label.take().or_else(|| label(&payload));
                }
                Some((chunk_type::DENOISING, payload)) if self.denoising.is_none() => {
                    self.denoising = Some(Denoising::parse(&payload)?);
                }
                Some((chunk_type::PLAN, payload)) if self.plan.is_none() => {
                    self.plan = Some(TilePlan::parse(&payload)?);
                }
                other => {
                    self.pending = other;
                    self.metadata_done = true;
                }
            }
        }
        Ok(&self.metadata)
    }

    /// The picture that this one is coded against, if it is a delta picture; reads as much as [`metadata`](Self::metadata).
    ///
    /// # Errors
    ///
    /// Those of damaged chunks.
    pub fn reference(&mut self) -> Result<Option<ReferenceName>, Error> {
        self.metadata()?;
        Ok(self.before)
    }

    /// The name of the bundle (NAME@VERSION) as the file gives it, if it does: only the id counts. Reads up to where the picture
    /// itself begins.
    ///
    /// # Errors
    ///
    /// Those of damaged chunks.
    pub fn bundle_label(&mut self) -> Result<Option<&str>, Error> {
        self.metadata()?;
        Ok(self.label.as_deref())
    }

    /// The model that the file names, out of the store.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBundle`] with the name that the file gives, where the bundle was looked for, and what to do.
    pub fn find_model(&mut self, settings: Settings) -> Result<Model, Error> {
        match Model::for_file(self.header().bundle, settings) {
            Err(Error::Model(sdl_onnx::Error::Missing { wanted, searched })) => {
                // The name makes the message better; without it the bundle is missing all the same.
                let label = self.bundle_label().ok().flatten();
                Err(Error::MissingBundle(model::missing(&wanted, label, &searched)))
            }
            other => other,
        }
    }

    /// How the latent is denoised, if it is; reads up to where the picture itself begins.
    ///
    /// # Errors
    ///
    /// Those of damaged chunks.
    pub fn denoising(&mut self) -> Result<Option<Denoising>, Error> {
        self.metadata()?;
        Ok(self.denoising)
    }

    /// Every chunk of the file, in order, with its checksum checked; nothing is decoded and no model is needed.
    ///
    /// # Errors
    ///
    /// Those of damaged chunks.
    pub fn into_chunks(mut self) -> Result<Vec<ChunkInfo>, Error> {
        self.metadata()?;
        while self.chunks.next()?.is_some() {}
        Ok(self.chunks.seen().to_vec())
    }

    /// Where the time of the last decode went.
    #[must_use]
    pub fn stage_times(&self) -> StageTimes {
        self.times
    }

    /// Decodes the latent of a picture in a sequence, `before` being what the picture before it left: everything that the next picture
    /// needs, without a pixel. [`decode`](Self::decode) makes the pixels of it. `None` for pictures of models without trained
    /// tables, which no other can be coded against. Can be called once.
    ///
    /// # Errors
    ///
    /// [`Error::MissingReference`] for a delta picture that was coded against another picture than `before`. Else as
    /// [`decode`](Self::decode).
    pub fn follow(
        &mut self,
        before: Option<&Reference>,
        options: &DecodeOptions,
    ) -> Result<Option<Reference>, Error> {
        let (known, tiles) = self.read_latent(before.map(|before| &*before.0), options)?;
        let header = self.header();
        let kept = tiles.map(|tiles| Kept {
            name: ReferenceName::from_hash(&self.chunks.hash()),
            size: (header.width.into(), header.height.into()),
            bundle: header.bundle,
            alpha: known.parts.alpha.clone(),
            tiles,
        });
        self.known = Some(known);
        Ok(kept.map(|kept| Reference(Arc::new(kept))))
    }

    /// Decodes the picture. Can be called once; the input has been read after it.
    ///
    /// # Errors
    ///
    /// Every [`Error`] but `Target` and `Parameter`.
    pub fn decode(&mut self, options: &DecodeOptions) -> Result<Picture, Error> {
        let start = Instant::now();
        let known = match self.known.take() {
            Some(known) => known,
            // The tiles, a second copy of the latent, are for the picture after this one.
            None => self.read_latent(None, options)?.0,
        };
        let Known { model, parts, grid, latent } = known;
        let latent = self.denoise(&model, grid, latent, options)?;
        let header = self.header().clone();
        let (width, height) = (u32::from(header.width), u32::from(header.height));
        let colour = if header.grey { Colour::Grey } else { Colour::Rgb };

        let began = Instant::now();
        let threads = parallel::thread_count(options.threads);
        let (at_once, graph_threads) = model.share(threads);
        let role = Synthesis::role_for(&model, header.natural, options.synthesis);
        let graph = model.graph(role, graph_threads)?;
        let size = (width, height);
        // A bit-exact synthesis is the same however it is cut: it needs no plan.
        let plan = self.plan.filter(|_| !model.bundle().manifest().pixels.exact);
        let pixels = match plan {
            Some(plan) => {
                let blending =
                    Blending { model: &model, graph: graph.as_ref(), latent: &latent, grid, plan, at_once };
                blending.pixels(size, colour, &options.progress)?
            }
            None => {
                let work = Windows { model: &model, graph: graph.as_ref(), latent: &latent, grid, at_once };
                work.pixels(size, colour, &options.progress)?
            }
        };
        self.times.synthesis = began.elapsed();

        let mut picture = Picture::new(width, height, colour, pixels)?;
        if let Some((depth, payload)) = parts.alpha {
            picture = picture.with_alpha(alpha::decode(&payload, depth, width as usize, height as usize)?)?;
        }
        picture.metadata = self.metadata.clone();
        self.times.total = start.elapsed();
        Ok(picture)
    }

    /// Decodes everything but the pixels: every chunk, every symbol, the latent and its checksum.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode).
    pub fn verify(&mut self, options: &DecodeOptions) -> Result<Verified, Error> {
        let (Known { parts, .. }, _) = self.read_latent(None, options)?;
        if let Some((depth, payload)) = &parts.alpha {
            alpha::decode(
                payload,
                *depth,
                usize::from(self.header().width),
                usize::from(self.header().height),
            )?;
        }
        Ok(Verified { tiles: parts.latents.len(), metadata: self.metadata.clone() })
    }

    /// Everything but the pixels; with trained tables also the tiles, which a delta picture after this one needs.
    fn read_latent(
        &mut self,
        before: Option<&Kept>,
        options: &DecodeOptions,
    ) -> Result<(Known, Option<Vec<TileState>>), Error> {
        let model = self.model_for_file(options)?;
        let mut parts = self.read_parts(&model, options)?;
        let before = match parts.before {
            Some(wanted) => Some(self.check_reference(wanted, before)?),
            None => None,
        };
        if let Some(before) = before.filter(|_| parts.alpha.is_none()) {
            parts.alpha = before.alpha.clone();
        }
        if self.header().alpha.is_some() != parts.alpha.is_some() {
            return Err(Error::corrupt("the alpha plane is missing, or there is one where none belongs"));
        }
        let (grid, latent, tiles) = self.decode_latent(&model, &parts, before, options)?;
        Ok((Known { model, parts, grid, latent }, tiles))
    }

    /// The picture that a delta picture is coded against.
    fn check_reference<'a>(
        &self,
        wanted: ReferenceName,
        before: Option<&'a Kept>,
    ) -> Result<&'a Kept, Error> {
        let header = self.header();
        let Some(before) = before.filter(|before| before.name == wanted) else {
            return Err(Error::MissingReference { wanted, found: before.map(|before| before.name) });
        };
        let size = (u32::from(header.width), u32::from(header.height));
        let depth = before.alpha.as_ref().map(|(depth, _)| *depth);
        if (before.size, before.bundle, depth) != (size, header.bundle, header.alpha) {
            return Err(Error::corrupt(
                "a delta picture has another size, model or alpha depth than its reference",
            ));
        }
        Ok(before)
    }

    fn model_for_file(&mut self, options: &DecodeOptions) -> Result<Model, Error> {
        let model = match self.model.take() {
            Some(model) if model.reference() == self.header().bundle => model,
            _ => self.find_model(options.settings.clone())?,
        };
        let header = self.header();
        match header.method {
            Method::Trained if model.tables().is_none() => {
                Err(Error::corrupt("the file uses trained tables, and its bundle has none"))
            }
            Method::Codebook if model.codebook().is_none() => {
                Err(Error::corrupt("the file uses a codebook, and its bundle has none"))
            }
            _ => Ok(()),
        }?;
        Ok(model)
    }

    /// Everything after the metadata, read and checked, not decoded.
    fn read_parts(&mut self, model: &Model, options: &DecodeOptions) -> Result<Parts, Error> {
        let header = self.header().clone();
        let grid = latent_grid(header.width.into(), header.height.into(), model.stride());
        let samples = if header.grey { 1 } else { 3 };
        let value = if header.method == Method::Trained { 2 } else { 4 };
        let pixels = u64::from(header.width) * u64::from(header.height);
        // Twice the latent: tiles as they are decoded, and the whole.
        let alpha = header.alpha.map_or(0, |depth| pixels * (4 + u64::from(depth.bits() / 8)));
        self.metadata()?;
        // The denoiser has the noisy latent and its prediction beside them.
        let copies = if self.denoising.is_some() { 4 } else { 2 };
        let needed = pixels * samples + alpha + copies * value * (grid.area() * model.channels()) as u64;
        if needed > options.max_bytes {
            return Err(Error::Limits {
                what: "the picture",
                needed: format!("{needed} bytes"),
                limit: format!("{} bytes", options.max_bytes),
            });
        }
        if let Some(plan) = self.plan {
            plan.check(model)?;
        }
        if self.denoising.is_some() && header.method == Method::Trained {
            return Err(Error::corrupt(
                "a latent of trained tables is not denoised, and the file asks for it",
            ));
        }
        let expected = tiles(grid).len();
        let mut parts = Parts { before: self.before, coding: None, alpha: None, latents: Vec::new() };
        let mut chunk = self.pending.take();
        while let Some((kind, payload)) = chunk {
            match kind {
                chunk_type::LATENT if parts.latents.len() < expected => parts.latents.push(payload),
                chunk_type::QUANTISER if parts.coding.is_none() && parts.latents.is_empty() => {
                    parts.coding = match header.method {
                        Method::Scalar => Some(Coding::Scalar(Quantiser::parse(&payload, model.channels())?)),
                        Method::Palette => Some(Coding::Palette(Palette::parse(&payload, model.channels())?)),
                        _ => return Err(Error::corrupt("there is a quantiser where none belongs")),
                    };
                }
                chunk_type::ALPHA if parts.alpha.is_none() && parts.latents.is_empty() => {
                    parts.alpha = header.alpha.map(|depth| (depth, payload));
                }
                _ => {
                    return Err(Error::corrupt(format!(
                        "a chunk of type `{}` stands where none may",
                        char::from(kind).escape_default()
                    )));
                }
            }
            chunk = self.chunks.next()?;
        }
        if parts.latents.len() != expected {
            return Err(Error::corrupt(format!("{} of {expected} tiles are there", parts.latents.len())));
        }
        if parts.before.is_some() && header.method != Method::Trained {
            return Err(Error::corrupt("a delta picture without trained tables"));
        }
        match header.method {
            Method::Codebook => parts.coding = model.codebook().cloned().map(Coding::Codebook),
            Method::Scalar | Method::Palette if parts.coding.is_none() => {
                return Err(Error::corrupt("the quantiser is missing"));
            }
            _ => {}
        }
        Ok(parts)
    }

    /// A latent as the synthesis takes it: denoised if the file asks for it, and no longer scaled.
    fn denoise(
        &mut self,
        model: &Model,
        grid: Grid,
        latent: Latent,
        options: &DecodeOptions,
    ) -> Result<Latent, Error> {
        let Latent::Float(mut values) = latent else { return Ok(latent) };
        let began = Instant::now();
        let asked = self.denoising.and_then(|denoising| match options.denoise_steps {
            Some(steps) => denoising.in_steps(steps),
            None => Some(denoising),
        });
        if let Some(denoising) = asked {
            let threads = parallel::thread_count(options.threads);
            values = denoise::denoise(model, values, grid, denoising, self.plan, threads, &options.progress)?;
        }
        self.times.denoising = began.elapsed();
        // The bundle's latent is (raw - shift) * scale; its graph takes the raw one.
        let settings = &model.bundle().manifest().latent;
        for (c, plane) in values.chunks_exact_mut(grid.area()).enumerate() {
            let (scale, shift) = (settings.scale.at(c), settings.shift.at(c));
            plane.iter_mut().for_each(|v| *v = *v / scale + shift);
        }
        Ok(Latent::Float(values))
    }

    /// The latent of the picture; with trained tables also its tiles, which a delta picture after this one needs.
    fn decode_latent(
        &mut self,
        model: &Model,
        parts: &Parts,
        before: Option<&Kept>,
        options: &DecodeOptions,
    ) -> Result<(Grid, Latent, Option<Vec<TileState>>), Error> {
        let header = self.header().clone();
        let grid = latent_grid(header.width.into(), header.height.into(), model.stride());
        let rects = tiles(grid);
        let (at_once, graph_threads) = model.share(parallel::thread_count(options.threads));
        let mut times = StageTimes::default();
        let mut tiles = None;
        let latent = match (&parts.coding, model.tables()) {
            (Some(coding), _) => {
                let decoded = parallel::map(&rects, at_once, |tile, rect| {
                    let began = Instant::now();
                    let (stored, data) = split_checksum(&parts.latents[tile], tile)?;
                    let shape =
                        LatentShape { channels: model.channels(), height: rect.height, width: rect.width };
                    let (values, sum) = coding.decode_tile(data, shape)?;
                    if sum != stored {
                        return Err(Error::Checksum(format!("the symbols of tile {tile}")));
                    }
                    Ok((values, began.elapsed()))
                })?;
                times.entropy = decoded.iter().map(|(_, time)| *time).sum();
                let values = decoded.iter().map(|(values, _)| values.as_slice());
                Latent::Float(place(grid, model.channels(), &rects, values))
            }
            (None, Some(tables)) => {
                let graph = model.graph(role::HYPER_SYNTHESIS, graph_threads)?;
                let decoded = parallel::map(&rects, at_once, |tile, rect| {
                    let (began, mut in_graph) = (Instant::now(), Duration::ZERO);
                    let mut hyper_synthesis = |z: &[i8]| {
                        let before = Instant::now();
                        let mean = hyper_mean(graph.as_ref(), z, tables, rect.grid());
                        in_graph = before.elapsed();
                        mean
                    };
                    let (payload, level, grid) = (&parts.latents[tile], header.quality, rect.grid());
                    let state = match before {
                        Some(before) if payload.is_empty() => before.tiles[tile].clone(),
                        _ => {
                            let (stored, data) = split_checksum(payload, tile)?;
                            let state = match before {
                                None => key_tile(tables, level, grid, data, &mut hyper_synthesis)?,
                                Some(before) => {
                                    let before = &before.tiles[tile];
                                    delta_tile(tables, level, grid, data, before, &mut hyper_synthesis)?
                                }
                            };
                            if checksum_i16(&state.latent) != stored {
                                return Err(Error::Diverged { tile, engine: model.engine_name() });
                            }
                            state
                        }
                    };
                    Ok((state, in_graph, began.elapsed() - in_graph))
                })?;
                times.hyper_synthesis = decoded.iter().map(|(_, time, _)| *time).sum();
                times.entropy = decoded.iter().map(|(_, _, time)| *time).sum();
                let states: Vec<TileState> = decoded.into_iter().map(|(state, ..)| state).collect();
                let parts = states.iter().map(|state| state.latent.as_slice());
                let whole = place(grid, model.channels(), &rects, parts);
                tiles = Some(states);
                Latent::Exact(whole)
            }
            (None, None) => return Err(Error::corrupt("neither tables nor a quantiser")),
        };
        self.times = times;
        Ok((grid, latent, tiles))
    }
}

/// From a hyper-latent to the means.
type HyperSynthesis<'a> = dyn FnMut(&[i8]) -> Result<Elements<f32>, Error> + 'a;

/// A tile of a key picture.
fn key_tile(
    tables: &Tables,
    level: u8,
    grid: Grid,
    data: &[u8],
    hyper_synthesis: &mut HyperSynthesis<'_>,
) -> Result<TileState, Error> {
    let mut decoder = RangeDecoder::new(data);
    let mut hyper = vec![0; tables.hyper_len(grid)];
    tables.decode_hyper(level, grid, &mut hyper, |_| true, &mut decoder)?;
    let mean = hyper_synthesis(&hyper)?;
    let latent = tables.decode(level, &hyper, &mean, grid, &mut decoder)?;
    decoder.finish()?;
    Ok(TileState { latent, hyper })
}

/// A tile of a delta picture in which something changed.
fn delta_tile(
    tables: &Tables,
    level: u8,
    grid: Grid,
    data: &[u8],
    before: &TileState,
    hyper_synthesis: &mut HyperSynthesis<'_>,
) -> Result<TileState, Error> {
    let mut decoder = RangeDecoder::new(data);
    let plan = Plan::decode(grid, &mut decoder);
    let mut hyper = before.hyper.clone();
    tables.decode_hyper(level, grid, &mut hyper, |at| plan.renewed[at], &mut decoder)?;
    let mean = hyper_synthesis(&hyper)?;
    let latent = tables.walk_delta(
        level,
        Sides { z: &hyper, mean: &mean, before: &before.latent },
        &plan,
        grid,
        |table, _, _, _| Ok(decoder.decode_symbol(table)),
    )?;
    decoder.finish()?;
    Ok(TileState { latent, hyper })
}

/// A picture that is decoded but for its pixels.
#[derive(Debug)]
struct Known {
    model: Model,
    parts: Parts,
    grid: Grid,
    latent: Latent,
}

/// The chunks that make the picture.
#[derive(Debug)]
struct Parts {
    before: Option<ReferenceName>,
    coding: Option<Coding>,
    alpha: Option<(AlphaDepth, Vec<u8>)>,
    latents: Vec<Vec<u8>>,
}

/// A label of a bundle, if it can be one.
fn label(payload: &[u8]) -> Option<String> {
    const LONGEST: usize = 129;
    let good = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-@".contains(byte);
    let fits = !payload.is_empty() && payload.len() <= LONGEST && payload.iter().all(good);
    fits.then(|| String::from_utf8_lossy(payload).into_owned())
}

fn split_checksum(payload: &[u8], tile: usize) -> Result<(u32, &[u8]), Error> {
    let (stored, data) = payload
        .split_first_chunk::<4>()
        .ok_or_else(|| Error::corrupt(format!("the chunk of tile {tile} has no checksum")))?;
    Ok((u32::from_le_bytes(*stored), data))
}
