//! A latent that suits its picture better than what the analysis says: some steps down the gradient of the distortion, with the
//! symbols as the file will have them.
//!
//! The analysis is one small network for all pictures, and does not know how the symbols come out. The gradient does: it is taken at
//! what the decoder will see. Yang, Bamler and Mandt 2020 ("Improving inference for neural image compression") optimise latents so;
//! the rate is left to the rounding here, which weighs it anyway. Where there is time for one step alone, and not for the way back
//! through the decoder, a network of the bundle says which way it would go.

use std::borrow::Cow;

use sdl_onnx::memory::zeros;
use sdl_onnx::{Graph, Tensor, TensorView, role};

use super::analysis::levels;
use super::distortion::Source;
use super::hyper::Target;
use super::model::Model;
use super::progress::{Progress, Stage, tell};
use super::synthesis::{Latent, Layout, Synthesis, part, run, windows};
use super::tiles::{Rect, place};
use super::{parallel, plan};
use crate::latent::trained::{Grid, Tables};
use crate::{Error, Picture};

/// Share of the step that one curvature for all directions would ask for: of the first step, and of the last one
/// (docs/results/refinement.md). The first one alone, to the end, would not come to rest.
const RATES: [f32; 2] = [0.3, 0.08];
/// No value goes further at a time, in symbols, times the rate.
const FARTHEST: f32 = 1.0;

/// What the correction sees of a pixel: red, green and blue of the picture, and of what is missing.
const SEEN: usize = 6;
/// Nothing is missing: where the picture is brighter than what is decoded, it is more.
const NOTHING: u8 = 128;
/// Rows of the latent in one run of the synthesis: it keeps what passes through it, 100 bytes a pixel.
const BAND: usize = 36;

/// Latent positions around a window that the correction is given as well: two of its blocks see one further at stride 8, one at 16.
const CORRECTION_MARGIN: usize = 2;

/// What refines the latents of a picture.
pub(super) struct Refinement<'a> {
    pub model: &'a Model,
    pub tables: &'a Tables,
    /// The decoder that the file is meant for.
    pub synthesis: Synthesis,
    pub picture: &'a Picture,
    pub grid: Grid,
    pub tiles: &'a [Rect],
    pub at_once: usize,
    pub progress: &'a Option<Progress>,
}

/// A tile as the file would have it.
pub(super) struct Rounded {
    pub latent: Vec<i16>,
    /// Which values have a symbol; the others are what is expected of them.
    pub coded: Vec<bool>,
}

/// Which values move.
#[derive(Clone, Copy, PartialEq)]
enum Moving {
    All,
    Coded,
}

/// How the distortion changes with what the tiles are rounded from.
struct Slopes<'a> {
    rounded: &'a [Rounded],
    /// The gradient by it, likewise.
    gradients: Vec<Cow<'a, [f32]>>,
    /// Of each channel: what one symbol is to the latent, and to the gradient.
    units: Vec<(f32, f32)>,
}

impl Slopes<'_> {
    /// Each value that is rounded, what rounding has done to it, and the gradient by it, all in symbols; and whether it is coded.
    fn each(&self, targets: &mut [Target], mut act: impl FnMut(&mut f32, f32, f32, bool)) {
        for ((target, rounded), gradient) in targets.iter_mut().zip(self.rounded).zip(&self.gradients) {
            let area = gradient.len() / self.units.len();
            let planes = rounded.latent.chunks_exact(area).zip(rounded.coded.chunks_exact(area));
            let planes = planes.zip(gradient.chunks_exact(area)).zip(&self.units);
            for (values, (((latent, coded), gradient), (symbol, unit))) in
                target.scaled.chunks_exact_mut(area).zip(planes)
            {
                let of_each = latent.iter().zip(coded).zip(gradient);
                for (value, ((latent, coded), slope)) in values.iter_mut().zip(of_each) {
                    let error = f32::from(*latent) / symbol - *value;
                    act(value, error, slope * unit, *coded);
                }
            }
        }
    }

    /// The gradient has a part that is of rounding itself: so many times the error.
    fn along_errors(&self, targets: &mut [Target]) -> f32 {
        let (mut both, mut square) = (0.0, 0.0);
        self.each(targets, |_, error, slope, _| {
            both += f64::from(error * slope);
            square += f64::from(error * error);
        });
        (both / square) as f32
    }

    /// Moves each value down the gradient, without the part of it that is `along` the errors: whether those were worth their bits the
    /// rounding has judged, the rest is what the analysis could not know.
    fn descend(&self, targets: &mut [Target], moving: Moving, along: f32, steepness: f32, rate: f32) {
        self.each(targets, |value, error, slope, coded| {
            let step = rate * ((slope - along * error) / steepness).clamp(-FARTHEST, FARTHEST);
            *value -= if coded || moving == Moving::All { step } else { 0.0 };
        });
    }
}

impl Refinement<'_> {
    /// Moves what the tiles are rounded from: once as the correction of the bundle says, if it has one, then `steps` times down the
    /// gradient, if the engine has that. `round` makes of a target its tile. `false` where nothing was moved.
    pub fn refine(
        &self,
        level: u8,
        steps: usize,
        targets: &mut [Target],
        round: impl Fn(Grid, &Target) -> Result<Rounded, Error> + Sync,
    ) -> Result<bool, Error> {
        let corrections = usize::from(self.model.bundle().has(role::CORRECTION));
        let rounded = |step, targets: &[Target]| {
            tell(self.progress, Stage::Refinement, step, corrections + steps)?;
            let rounded =
                parallel::map(targets, self.at_once, |tile, target| round(self.tiles[tile].grid(), target))?;
            let parts = rounded.iter().map(|rounded: &Rounded| rounded.latent.as_slice());
            let latent = place(self.grid, self.tables.channels, self.tiles, parts);
            Ok::<_, Error>((rounded, latent))
        };
        let mut moved = false;
        if corrections > 0 {
            let (rounded, latent) = rounded(0, targets)?;
            // It speaks of what the analysis returns, and says how far it is.
            let way = self.correction(latent)?;
            let slopes = self.slopes(level, &rounded, &way, |c| self.tables.gain(level, c));
            let along = slopes.along_errors(targets);
            if along.is_finite() {
                // It has learnt of values that are coded. Moved by what it says of others, steps down the gradient open them.
                slopes.descend(targets, Moving::Coded, along, 1.0, 1.0);
                moved = true;
            }
        }
        if steps == 0 {
            return Ok(moved);
        }
        let graph = self.model.graph(self.synthesis.role(), 1)?;
        let mut curvature = None;
        for step in 0..steps {
            let (rounded, latent) = rounded(corrections + step, targets)?;
            let Some(gradient) = self.gradient(&*graph, &latent)? else { break };
            let slopes = self.slopes(level, &rounded, &gradient, |c| self.tables.symbol_size(level, c));
            let curvature = *curvature.get_or_insert_with(|| slopes.along_errors(targets));
            // As in a picture of one colour, which is decoded to its last level.
            if !(curvature.is_normal() && curvature > 0.0) {
                break;
            }
            let [first, last] = RATES;
            let rate = first * (last / first).powf(step as f32 / steps.saturating_sub(1).max(1) as f32);
            slopes.descend(targets, Moving::All, curvature, curvature, rate);
            moved = true;
        }
        Ok(moved)
    }

    /// A gradient of the whole latent, (C, H, W), as the tiles have it; `unit` is what a symbol of a channel is to it.
    fn slopes<'a>(
        &self,
        level: u8,
        rounded: &'a [Rounded],
        gradient: &'a [f32],
        unit: impl Fn(usize) -> f32,
    ) -> Slopes<'a> {
        let units = (0..self.tables.channels).map(|c| (self.tables.symbol_size(level, c), unit(c)));
        let gradients = self.tiles.iter().map(|rect| part(gradient, self.grid, *rect));
        Slopes { rounded, gradients: gradients.collect(), units: units.collect() }
    }

    /// The gradient of the distortion by each value of the latent, (C, H, W); `None` where the engine has none.
    fn gradient(&self, graph: &dyn Graph, latent: &[i16]) -> Result<Option<Vec<f32>>, Error> {
        // The same windows for every number of threads, so that the file is the same.
        let windows = windows(self.model, self.grid, self.grid.height.div_ceil(BAND));
        let margin = plan::margin(self.model);
        let channels = self.tables.channels;
        let parts = parallel::map(&windows, self.at_once, |_, window| {
            let outer = window.grown(margin, self.grid);
            let integers = part(latent, self.grid, outer);
            let shape = [1, channels, outer.height, outer.width];
            let view = TensorView::i16(&shape, &integers)?;
            let gradient = graph.gradient(&view, &mut |output| self.by_output(output, *window, outer));
            Ok(match gradient {
                Some(gradient) => Some((outer, gradient?)),
                None => None,
            })
        })?;
        let mut whole = vec![0.0; channels * self.grid.area()];
        for found in parts {
            let Some((outer, gradient)) = found else { return Ok(None) };
            for (c, plane) in gradient.chunks_exact(outer.grid().area()).enumerate() {
                for (y, row) in plane.chunks_exact(outer.width).enumerate() {
                    let at = (c * self.grid.height + outer.y + y) * self.grid.width + outer.x;
                    whole[at..][..outer.width].iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
                }
            }
        }
        Ok(Some(whole))
    }

    /// What each value of the latent should have less of, (C, H, W), as the correction says.
    fn correction(&self, latent: Vec<i16>) -> Result<Vec<f32>, Error> {
        let graph = self.model.graph(role::CORRECTION, 1)?;
        // It has learnt what this decoder lacks.
        let synthesis = self.model.graph(role::SYNTHESIS, 1)?;
        let windows = windows(self.model, self.grid, self.grid.height.div_ceil(BAND));
        let channels = self.tables.channels;
        let latent = Latent::Exact(latent);
        let parts = parallel::map(&windows, self.at_once, |_, window| {
            let outer = window.grown(CORRECTION_MARGIN, self.grid);
            let seen = self.seen(&*synthesis, &latent, outer)?;
            let stride = self.model.stride();
            let shape = [1, outer.height * stride, outer.width * stride, SEEN];
            let inputs = [(graph.inputs()[0].name.as_str(), TensorView::u8(&shape, &seen)?)];
            let found = graph.run(&inputs, &[&graph.outputs()[0].name])?.into_iter().next();
            let found = found.ok_or_else(|| Error::corrupt("the correction graph returned nothing"))?;
            if found.shape() != [1, channels, outer.height, outer.width] {
                return Err(Error::corrupt(format!(
                    "the correction graph returned {:?} for a latent of {channels}x{}x{}",
                    found.shape(),
                    outer.height,
                    outer.width
                )));
            }
            Ok((outer, found.into_f32()?))
        })?;
        let mut whole = vec![0.0; channels * self.grid.area()];
        for (window, (outer, found)) in windows.iter().zip(parts) {
            for (c, plane) in found.chunks_exact(outer.grid().area()).enumerate() {
                let rows = plane.chunks_exact(outer.width).skip(window.y - outer.y).take(window.height);
                for (y, row) in rows.enumerate() {
                    let at = (c * self.grid.height + window.y + y) * self.grid.width + window.x;
                    let row = &row[window.x - outer.x..][..window.width];
                    whole[at..][..window.width].iter_mut().zip(row).for_each(|(to, way)| *to = -way);
                }
            }
        }
        Ok(whole)
    }

    /// What the correction sees of a window, (H, W, 6): the picture, as the analysis does, and what is missing from it when `latent` is
    /// decoded.
    fn seen(&self, synthesis: &dyn Graph, latent: &Latent, window: Rect) -> Result<Vec<u8>, Error> {
        // Without a margin of its own: what is missing at the edge is thrown away, and next to it need not be so exact.
        let (layout, decoded) = run(self.model, synthesis, latent, self.grid, window)?;
        let decoded = decoded.rounded();
        let stride = self.model.stride();
        let (height, width) = (window.height * stride, window.width * stride);
        let (top, left) = (window.y * stride, window.x * stride);
        // What is outside of the picture nobody sees.
        let rows = height.min(self.picture.height() as usize - top);
        let columns = width.min(self.picture.width() as usize - left);
        let mut seen = zeros(height * width * SEEN);
        let mut picture = vec![0; 3 * width];
        let mut line = vec![0; 3 * width];
        for (y, seen) in seen.chunks_exact_mut(SEEN * width).enumerate() {
            levels(self.picture, (top + y, left), &mut picture);
            if y < rows {
                layout.row(&decoded, y, 0, &mut line);
                line[3 * columns..].copy_from_slice(&picture[3 * columns..]);
            } else {
                line.copy_from_slice(&picture);
            }
            for ((seen, level), decoded) in
                seen.chunks_exact_mut(SEEN).zip(picture.chunks_exact(3)).zip(line.chunks_exact(3))
            {
                let (picture, missing) = seen.split_at_mut(3);
                picture.copy_from_slice(level);
                for (missing, (level, decoded)) in missing.iter_mut().zip(level.iter().zip(decoded)) {
                    *missing =
                        (i16::from(NOTHING) + i16::from(*level) - i16::from(*decoded)).clamp(0, 255) as u8;
                }
            }
        }
        Ok(seen)
    }

    /// The gradient by what the synthesis graph returned for `outer`, of the pixels in `window`. What is not as the manifest says has
    /// none, and the engine makes an error of that.
    fn by_output(&self, output: &Tensor, window: Rect, outer: Rect) -> Vec<f32> {
        let stride = self.model.stride();
        let size = (outer.height * stride, outer.width * stride);
        let layout = Layout::of(self.model.bundle().manifest().pixels.packing, size);
        let Ok(rendered) = output.as_u8() else { return Vec::new() };
        if output.shape() != layout.shape() {
            return Vec::new();
        }
        let (top, left) = (outer.y * stride, outer.x * stride);
        // What is outside of the picture nobody sees.
        let height = size.0.min(self.picture.height() as usize - top);
        let width = size.1.min(self.picture.width() as usize - left);
        let mut samples = vec![0; 3 * height * width];
        let mut decoded = Vec::with_capacity(3 * height * width);
        let mut line = vec![0; 3 * size.1];
        for (y, samples) in samples.chunks_exact_mut(3 * width).enumerate() {
            levels(self.picture, (top + y, left), samples);
            layout.row(rendered, y, 0, &mut line);
            decoded.extend_from_slice(&line[..3 * width]);
        }
        let gradient = Source::new(samples, width).gradient(&decoded);
        // What is in the margin is the part of another window.
        let (first, last) = (window.x - outer.x, window.x + window.width - outer.x);
        let columns = 3 * first * stride..3 * (last * stride).min(width);
        let (first, last) = (window.y - outer.y, window.y + window.height - outer.y);
        let rows = first * stride..(last * stride).min(height);
        let mut by_levels = vec![0.0; rendered.len()];
        let mut line = vec![0.0; 3 * size.1];
        for y in rows {
            line[columns.clone()].copy_from_slice(&gradient[3 * y * width..][columns.clone()]);
            layout.set_row(&mut by_levels, y, &line);
        }
        by_levels
    }
}
