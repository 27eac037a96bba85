//! A latent that suits its picture better than what the analysis says: some steps down the gradient of the distortion, with the
//! symbols as the file will have them.
//!
//! The analysis is one small network for all pictures, and does not know how the symbols come out. The gradient does: it is taken at
//! what the decoder will see. Yang, Bamler and Mandt 2020 ("Improving inference for neural image compression") optimise latents so;
//! the rate is left to the rounding here, which weighs it anyway.

use sdl_onnx::{Graph, Tensor, TensorView, role};

use super::distortion::Source;
use super::encode::Target;
use super::model::Model;
use super::plan;
use super::progress::{Progress, Stage, tell};
use super::synthesis::{Layout, part, windows};
use super::tiles::Rect;
use super::{decode::place, parallel};
use crate::latent::trained::{Grid, Tables};
use crate::{Colour, Error, Picture};

/// Share of the step that one curvature for all directions would ask for: of the first step, and of the last one
/// (docs/results/refinement.md). The first one alone, to the end, would not come to rest.
const RATES: [f32; 2] = [0.3, 0.08];
/// No value goes further at a time, in symbols, times the rate.
const FARTHEST: f32 = 1.0;

/// Rows of the latent in one run of the synthesis: it keeps what passes through it, 100 bytes a pixel.
const BAND: usize = 36;

/// What refines the latents of a picture.
pub(super) struct Refinement<'a> {
    pub model: &'a Model,
    pub tables: &'a Tables,
    pub picture: &'a Picture,
    pub grid: Grid,
    pub tiles: &'a [Rect],
    pub at_once: usize,
    pub progress: &'a Option<Progress>,
}

impl Refinement<'_> {
    /// Moves what the tiles are rounded from, `steps` times. `round` makes of a target the latent of its tile. `false` where nothing
    /// was moved, because the engine has no gradients.
    pub fn refine(
        &self,
        level: u8,
        steps: usize,
        targets: &mut [Target],
        round: impl Fn(Grid, &Target) -> Result<Vec<i16>, Error> + Sync,
    ) -> Result<bool, Error> {
        let graph = self.model.graph(role::SYNTHESIS, 1)?;
        let mut curvature = None;
        for step in 0..steps {
            tell(self.progress, Stage::Refinement, step, steps)?;
            let rounded =
                parallel::map(targets, self.at_once, |tile, target| round(self.tiles[tile].grid(), target))?;
            let parts = rounded.iter().map(Vec::as_slice);
            let latent = place(self.grid, self.tables.channels, self.tiles, parts);
            let Some(gradient) = self.gradient(&*graph, &latent)? else { return Ok(false) };
            let gradients: Vec<_> = self.tiles.iter().map(|rect| part(&gradient, self.grid, *rect)).collect();
            // What each value is rounded from, what rounding has done to it, and the gradient by it, all in symbols.
            let each = |targets: &mut [Target], act: &mut dyn FnMut(&mut f32, f32, f32)| {
                for ((target, latent), gradient) in targets.iter_mut().zip(&rounded).zip(&gradients) {
                    let area = latent.len() / self.tables.channels;
                    let planes = latent.chunks_exact(area).zip(gradient.chunks_exact(area));
                    for (c, (values, planes)) in target.scaled.chunks_exact_mut(area).zip(planes).enumerate()
                    {
                        let symbol = self.tables.symbol_size(level, c);
                        for (value, (latent, slope)) in values.iter_mut().zip(planes.0.iter().zip(planes.1)) {
                            let error = f32::from(*latent) / symbol - *value;
                            act(value, error, slope * symbol);
                        }
                    }
                }
            };
            // The gradient has a part that is of rounding itself: so many times the error. Whether that was worth its bits the
            // rounding has judged; the rest is what the analysis could not know.
            let curvature = *curvature.get_or_insert_with(|| {
                let (mut both, mut square) = (0.0, 0.0);
                each(targets, &mut |_, error, slope| {
                    both += f64::from(error * slope);
                    square += f64::from(error * error);
                });
                (both / square) as f32
            });
            // As in a picture of one colour, which is decoded to its last level.
            if !(curvature.is_normal() && curvature > 0.0) {
                break;
            }
            let [first, last] = RATES;
            let rate = first * (last / first).powf(step as f32 / steps.saturating_sub(1).max(1) as f32);
            each(targets, &mut |value, error, slope| {
                *value -= rate * (slope / curvature - error).clamp(-FARTHEST, FARTHEST);
            });
        }
        Ok(true)
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

    /// The gradient by what the synthesis graph returned for `outer`, of the pixels in `window`. What is not as the manifest says has
    /// none, and the engine makes an error of that.
    fn by_output(&self, output: &Tensor, window: Rect, outer: Rect) -> Vec<f32> {
        let stride = self.model.stride();
        let size = (outer.height * stride, outer.width * stride);
        let layout = Layout::of(self.model.bundle().manifest().pixels.packing, size);
        let Ok(levels) = output.as_u8() else { return Vec::new() };
        if output.shape() != layout.shape() {
            return Vec::new();
        }
        let (top, left) = (outer.y * stride, outer.x * stride);
        // What is outside of the picture nobody sees.
        let height = size.0.min(self.picture.height() as usize - top);
        let width = size.1.min(self.picture.width() as usize - left);
        let mut samples = Vec::with_capacity(3 * height * width);
        let mut decoded = Vec::with_capacity(3 * height * width);
        let mut line = vec![0; 3 * size.1];
        for y in 0..height {
            let row = self.picture.rgb_row(top + y);
            match self.picture.colour() {
                Colour::Rgb => samples.extend_from_slice(&row[3 * left..][..3 * width]),
                Colour::Grey => samples.extend(row[left..][..width].iter().flat_map(|&level| [level; 3])),
            }
            layout.row(levels, y, &mut line);
            decoded.extend_from_slice(&line[..3 * width]);
        }
        let gradient = Source::new(samples, width).gradient(&decoded);
        // What is in the margin is the part of another window.
        let (first, last) = (window.x - outer.x, window.x + window.width - outer.x);
        let columns = 3 * first * stride..3 * (last * stride).min(width);
        let (first, last) = (window.y - outer.y, window.y + window.height - outer.y);
        let rows = first * stride..(last * stride).min(height);
        let mut by_levels = vec![0.0; levels.len()];
        let mut line = vec![0.0; 3 * size.1];
        for y in rows {
            line[columns.clone()].copy_from_slice(&gradient[3 * y * width..][columns.clone()]);
            layout.set_row(&mut by_levels, y, &line);
        }
        by_levels
    }
}
