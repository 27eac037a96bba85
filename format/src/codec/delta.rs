//! Sequences: between key pictures, pictures that are coded against the one before (docs/FORMAT.md section 5.6).
//!
//! [`SequenceEncoder`] and [`SequenceDecoder`] go from picture to picture. Who works on several at a time takes them apart: [`Analysed`]
//! runs the graphs of a picture without knowing the one before, [`Decoder::follow`](super::Decoder::follow) decodes a latent without its
//! pixels, and a [`Reference`] goes from one to the next.

use std::io::Cursor;
use std::sync::Arc;

use sdl_onnx::Graph;

use super::decode::Decoder;
use super::encode::{Encoded, Encoder, Point, STRENGTH, payload};
use super::hyper::{Hyper, hyper_mean};
use super::model::Model;
use super::options::{DecodeOptions, EncodeOptions};
use crate::entropy::{CdfTable, RangeEncoder};
use crate::latent::delta::{Mode, Plan, SHRINKS, Sides, TileState};
use crate::latent::trained::{Grid, Tables, quantise};
use crate::{AlphaDepth, BundleRef, Error, Picture};

/// What a picture leaves for the one after it: its latent, and the name that a delta picture knows it by. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Reference(pub(crate) Arc<Kept>);

#[derive(Debug)]
pub(crate) struct Kept {
    /// The first bytes of the BLAKE3 hash of its file.
    pub name: ReferenceName,
    pub size: (u32, u32),
    pub bundle: BundleRef,
    /// The alpha plane as it stands in the file.
    pub alpha: Option<(AlphaDepth, Vec<u8>)>,
    pub tiles: Vec<TileState>,
}

/// How a delta picture names the picture that it is coded against: the first 8 bytes of the BLAKE3 hash of that file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ReferenceName(pub [u8; 8]);

impl ReferenceName {
    /// The name of a file.
    #[must_use]
    pub fn of(file: &[u8]) -> Self {
        Self::from_hash(&blake3::hash(file))
    }

    pub(crate) fn from_hash(hash: &blake3::Hash) -> Self {
        let mut name = [0; 8];
        name.copy_from_slice(&hash.as_bytes()[..8]);
        ReferenceName(name)
    }
}

impl std::fmt::Display for ReferenceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Reference {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> ReferenceName {
        self.0.name
    }
}

/// A picture whose analysis is done: what is left needs the picture before.
///
/// This is for programs that encode several pictures of a sequence at a time; [`SequenceEncoder`] is simpler.
pub struct Analysed<'a>(Encoder<'a>);

impl<'a> Analysed<'a> {
    /// Runs the analysis graph.
    ///
    /// # Errors
    ///
    /// [`Error::Parameter`] for bad options, and for a model without trained tables: only those can code changes. [`Error::Model`].
    pub fn new(model: &'a Model, picture: &'a Picture, options: &EncodeOptions) -> Result<Self, Error> {
        check(model)?;
        Ok(Analysed(Encoder::checked(model, picture, &options.uncorrected())?))
    }

    /// The file: a delta picture if there is a picture `before` of the same size, model and depth of alpha, else a key picture. And what
    /// the next picture may be coded against.
    ///
    /// # Errors
    ///
    /// [`Error::Target`] where the size asked for cannot be reached, [`Error::Model`].
    pub fn encode(&self, before: Option<&Reference>) -> Result<(Encoded, Reference), Error> {
        let before = before.filter(|before| self.0.follows(&before.0));
        let (encoded, tiles) = self.0.encode(before.map(|before| &*before.0))?;
        let kept = self.0.kept(ReferenceName::of(&encoded.bytes), tiles);
        Ok((encoded, Reference(Arc::new(kept))))
    }
}

fn check(model: &Model) -> Result<(), Error> {
    match model.tables() {
        Some(_) => Ok(()),
        None => Err(Error::Parameter(format!(
            "bundle {} has no trained tables, and only those can code the change from one picture to the next",
            model.bundle().manifest().label()
        ))),
    }
}

/// Encodes one picture after the other: the first as a key picture, the others as what changed.
#[derive(Debug)]
pub struct SequenceEncoder {
    model: Model,
    before: Option<Reference>,
}

impl SequenceEncoder {
    /// A sequence that has not begun.
    ///
    /// # Errors
    ///
    /// [`Error::Parameter`] for a model without trained tables.
    pub fn new(model: Model) -> Result<Self, Error> {
        check(&model)?;
        Ok(SequenceEncoder { model, before: None })
    }

    /// The next picture is a key picture.
    pub fn restart(&mut self) {
        self.before = None;
    }

    /// The file of the next picture. After an error the sequence goes on from the picture before it.
    ///
    /// # Errors
    ///
    /// As [`encode_with`](super::encode_with).
    pub fn encode(&mut self, picture: &Picture, options: &EncodeOptions) -> Result<Encoded, Error> {
        let (encoded, reference) =
            Analysed::new(&self.model, picture, options)?.encode(self.before.as_ref())?;
        self.before = Some(reference);
        Ok(encoded)
    }
}

/// Decodes one picture after the other.
#[derive(Debug, Default)]
pub struct SequenceDecoder {
    model: Option<Model>,
    before: Option<Reference>,
}

impl SequenceDecoder {
    /// A sequence that has not begun.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Uses this model for the pictures that name it, instead of looking for it.
    #[must_use]
    pub fn with_model(self, model: Model) -> Self {
        SequenceDecoder { model: Some(model), ..self }
    }

    /// Decodes the file of the next picture. After an error the picture that is needed next is the same as before: a picture that
    /// was lost on its way may still be given.
    ///
    /// # Errors
    ///
    /// [`Error::MissingReference`] for a delta picture that follows another picture than the last one given; the next key picture
    /// decodes again. Else as [`decode`](super::decode).
    pub fn decode(&mut self, file: &[u8], options: &DecodeOptions) -> Result<Picture, Error> {
        let mut decoder = Decoder::new(Cursor::new(file))?;
        if let Some(model) = &self.model {
            decoder = decoder.with_model(model.clone());
        }
        let reference = decoder.follow(self.before.as_ref(), options)?;
        let picture = decoder.decode(options)?;
        self.before = reference;
        Ok(picture)
    }
}

/// Weight of a bit in the choice of a mode, in squared symbol units: the noise of a sensor is then mostly left as it was.
const MODE_STRENGTH: f32 = STRENGTH;
/// What telling a mode costs, in bits, beside skipping.
const MODE_BITS: f32 = 4.0;
/// So many positions of a hyper-latent position coded as in a key picture are worth its values.
const RENEW_FROM: u32 = 8;

/// The payload of a tile against the one before; an empty one says that nothing changed.
pub(super) fn delta_tile(
    tables: &Tables,
    hyper: &Hyper,
    grid: Grid,
    latent: &[f32],
    point: Point,
    before: &TileState,
) -> Result<(Vec<u8>, TileState), Error> {
    let level = point.quality;
    let scaled = hyper.scale(tables, level, grid, latent);
    let found = hyper.analyse(tables, grid, &scaled)?;
    let trial = Trial { tables, grid, scaled: &scaled, point };
    let synthesis = hyper.synthesis.as_ref();

    let mut plan = trial.choose(synthesis, &found, before)?;
    if plan.is_still() {
        return Ok((Vec::new(), before.clone()));
    }
    let mut z = before.hyper.clone();
    tables.quantise_hyper(level, grid, &found, &mut z, |at| plan.renewed[at])?;
    let mean = hyper_mean(synthesis, &z, tables, grid)?;
    let sides = Sides { z: &z, mean: &mean, before: &before.latent };
    plan.shrink = trial.narrowest(&plan, sides)?;

    let mut encoder = RangeEncoder::new();
    plan.encode(grid, &mut encoder);
    tables.encode_hyper(level, grid, &z, |at| plan.renewed[at], &mut encoder)?;
    let coded = trial.walk(&plan, sides, |table, _, symbol| Ok(encoder.encode_symbol(table, symbol)?))?;
    Ok((payload(&coded, encoder), TileState { latent: coded, hyper: z }))
}

/// What an encoder tries before it decides.
struct Trial<'a> {
    tables: &'a Tables,
    grid: Grid,
    /// The latent in symbol units, on the padded grid.
    scaled: &'a [f32],
    point: Point,
}

impl Trial<'_> {
    /// Symbols for each unit of the latent that the synthesis takes.
    fn symbols_per_unit(&self, channel: usize) -> f32 {
        2048.0 / 16.0 / f32::from(self.tables.ungain(self.point.quality, channel).max(1))
    }

    /// The scaled latent at a position of the tile, by its number in (C, H, W).
    fn scaled(&self, at: usize) -> (usize, f32) {
        let (c, position) = (at / self.grid.area(), at % self.grid.area());
        let (y, x) = (position / self.grid.width, position % self.grid.width);
        let padded = self.grid.padded();
        (c, self.scaled[c * padded.area() + y * padded.width + x])
    }

    /// Quantises what `plan` does not skip: the latent that comes of it. `coded` gets the table, the place and the symbol.
    fn walk(
        &self,
        plan: &Plan,
        sides: Sides<'_>,
        mut coded: impl FnMut(&CdfTable, usize, i32) -> Result<(), Error>,
    ) -> Result<Vec<i16>, Error> {
        let Point { quality, strength, .. } = self.point;
        self.tables.walk_delta(quality, sides, plan, self.grid, |table, at, mode, mean| {
            let (c, value) = self.scaled(at);
            let start = match mode {
                Mode::Inter => f32::from(sides.before[at]) * self.symbols_per_unit(c),
                _ => 0.0,
            };
            let symbol = quantise(value - start - mean as f32 / 16.0, table, strength);
            coded(table, at, symbol)?;
            Ok(symbol)
        })
    }

    /// Squared error of each position, in symbol units, all channels together.
    fn errors(&self, latent: &[i16]) -> Vec<f32> {
        let area = self.grid.area();
        let mut errors = vec![0.0; area];
        for (c, plane) in latent.chunks_exact(area).enumerate() {
            let unit = self.symbols_per_unit(c);
            for (position, (error, &value)) in errors.iter_mut().zip(plane).enumerate() {
                let difference = self.scaled(c * area + position).1 - f32::from(value) * unit;
                *error += difference * difference;
            }
        }
        errors
    }

    /// Error plus weighted bits of every position, all of them in `mode`.
    fn costs(&self, mode: Mode, shrink: u8, sides: Sides<'_>) -> Result<Vec<f32>, Error> {
        let area = self.grid.area();
        let plan = Plan { modes: vec![mode; area], shrink, ..Plan::still(self.grid) };
        let mut bits = vec![0u32; area];
        let latent = self.walk(&plan, sides, |table, at, symbol| {
            bits[at % area] += table.cost(symbol);
            Ok(())
        })?;
        let cost = |(error, bits): (f32, u32)| error + MODE_STRENGTH * (bits as f32 / 256.0 + MODE_BITS);
        Ok(self.errors(&latent).into_iter().zip(bits).map(cost).collect())
    }

    /// The modes, and which hyper-latent values are sent; `hyper` has them all, before they are rounded.
    fn choose(&self, synthesis: &dyn Graph, hyper: &[f32], before: &TileState) -> Result<Plan, Error> {
        let mut plan = Plan::still(self.grid);
        let skip = self.errors(&before.latent);
        let mut renewed = before.hyper.clone();
        self.tables.quantise_hyper(self.point.quality, self.grid, hyper, &mut renewed, |_| true)?;
        let mean = hyper_mean(synthesis, &renewed, self.tables, self.grid)?;
        let sides = Sides { z: &renewed, mean: &mean, before: &before.latent };
        let intra = self.costs(Mode::Intra, 0, sides)?;
        let inter = self.costs(Mode::Inter, SHRINKS / 2, sides)?;
        for (at, mode) in plan.modes.iter_mut().enumerate() {
            let mut best = skip[at];
            for (cost, other) in [(inter[at], Mode::Inter), (intra[at], Mode::Intra)] {
                if cost < best {
                    (best, *mode) = (cost, other);
                }
            }
        }
        let counts = plan.counts(self.grid);
        plan.renewed = counts.into_iter().map(|(_, intra)| intra >= RENEW_FROM).collect();
        Ok(plan)
    }

    /// The shrink with which the changes that were chosen take the fewest bits.
    fn narrowest(&self, plan: &Plan, sides: Sides<'_>) -> Result<u8, Error> {
        if !plan.modes.contains(&Mode::Inter) {
            return Ok(0);
        }
        let mut best = (u32::MAX, 0);
        for shrink in (0..SHRINKS).step_by(3) {
            let mut bits = 0;
            self.walk(&Plan { shrink, ..plan.clone() }, sides, |table, _, symbol| {
                bits += table.cost(symbol);
                Ok(())
            })?;
            best = best.min((bits, shrink));
        }
        Ok(best.1)
    }
}
