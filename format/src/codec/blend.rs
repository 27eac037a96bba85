//! Latent to pixels by a tile plan: windows that overlap and fade into each other (docs/FORMAT.md section 6.5).

use sdl_onnx::Graph;

use super::model::Model;
use super::parallel;
use super::plan::{self, TilePlan};
use super::progress::{Progress, Stage, tell};
use super::synthesis::{self, Latent, Levels, luma};
use super::tiles::Rect;
use crate::latent::trained::Grid;
use crate::{Colour, Error};

const SAMPLES: usize = 3;
/// Samples are blended in 1/256 of a level.
const FINE: f32 = 256.0;

/// What is the same for all windows.
pub(crate) struct Blending<'a> {
    pub model: &'a Model,
    pub graph: &'a dyn Graph,
    pub latent: &'a Latent,
    pub grid: Grid,
    pub plan: TilePlan,
    pub at_once: usize,
}

/// Rows of interleaved red, green and blue, in 1/256 of a level.
struct Strip {
    /// The row of the picture that its first row is.
    top: usize,
    samples: Vec<u16>,
}

impl Blending<'_> {
    /// The pixels of the picture, interleaved, cropped to `size` (width, height).
    pub fn pixels(
        &self,
        size: (u32, u32),
        colour: Colour,
        progress: &Option<Progress>,
    ) -> Result<Vec<u8>, Error> {
        let rows = self.plan.rows(self.grid);
        let windows = rows.iter().map(Vec::len).sum();
        let mut done = 0;
        let mut pixels = Vec::with_capacity(size.0 as usize * size.1 as usize * colour.channels());
        // What the next row of windows may still be blended over.
        let mut pending: Option<Strip> = None;
        for row in &rows {
            tell(progress, Stage::Synthesis, done, windows)?;
            let mut strip = self.strip(row)?;
            done += row.len();
            if let Some(above) = pending.take() {
                self.emit(&above, strip.top, size, colour, &mut pixels);
                self.fade_in(&above, &mut strip);
            }
            pending = Some(strip);
        }
        if let Some(last) = pending {
            self.emit(&last, size.1 as usize, size, colour, &mut pixels);
        }
        Ok(pixels)
    }

    fn line(&self) -> usize {
        self.grid.width * self.model.stride() * SAMPLES
    }

    /// A row of windows, each blended over its left neighbour.
    fn strip(&self, row: &[Rect]) -> Result<Strip, Error> {
        let stride = self.model.stride();
        let overlap = self.plan.overlap * stride;
        let parts = parallel::map(row, self.at_once, |_, &window| self.window(window))?;
        let (top, height) = row.first().map_or((0, 0), |first| (first.y * stride, first.height * stride));
        let mut samples = vec![0; height * self.line()];
        for (window, part) in row.iter().zip(parts) {
            let width = window.width * stride * SAMPLES;
            for (y, line) in part.chunks_exact(width).enumerate() {
                let to = &mut samples[y * self.line() + window.x * stride * SAMPLES..][..width];
                for (x, (to, &new)) in to.iter_mut().zip(line).enumerate() {
                    let weight = if window.x > 0 { plan::weight(x / SAMPLES, overlap) } else { 2 * overlap };
                    *to = mix(*to, new, weight, overlap);
                }
            }
        }
        Ok(Strip { top, samples })
    }

    /// Blends a strip over the one above it, where they overlap.
    fn fade_in(&self, above: &Strip, strip: &mut Strip) {
        let overlap = self.plan.overlap * self.model.stride();
        let shared = above.samples[(strip.top - above.top) * self.line()..].chunks_exact(self.line());
        for (y, (old, new)) in shared.zip(strip.samples.chunks_exact_mut(self.line())).enumerate() {
            let weight = plan::weight(y, overlap);
            for (old, new) in old.iter().zip(new) {
                *new = mix(*old, *new, weight, overlap);
            }
        }
    }

    /// Appends the finished rows of a strip, those above row `end` of the picture.
    fn emit(&self, strip: &Strip, end: usize, size: (u32, u32), colour: Colour, pixels: &mut Vec<u8>) {
        let level = |fine: &u16| ((u32::from(*fine) + 128) >> 8) as u8;
        let rows = end.min(size.1 as usize).saturating_sub(strip.top);
        for line in strip.samples.chunks_exact(self.line()).take(rows) {
            let seen = &line[..size.0 as usize * SAMPLES];
            match colour {
                Colour::Rgb => pixels.extend(seen.iter().map(level)),
                Colour::Grey => pixels.extend(
                    seen.chunks_exact(SAMPLES)
                        .map(|rgb| luma(level(&rgb[0]), level(&rgb[1]), level(&rgb[2]))),
                ),
            }
        }
    }

    /// What the synthesis makes of a window, interleaved.
    fn window(&self, window: Rect) -> Result<Vec<u16>, Error> {
        let (layout, levels) = synthesis::run(self.model, self.graph, self.latent, self.grid, window)?;
        let fine: Vec<u16> = match levels {
            Levels::Bytes(bytes) => bytes.iter().map(|&v| u16::from(v) << 8).collect(),
            Levels::Fine(values) => values.iter().map(|v| (v * FINE).round_ties_even() as u16).collect(),
        };
        let stride = self.model.stride();
        let mut interleaved = vec![0; fine.len()];
        for (y, line) in interleaved.chunks_exact_mut(window.width * stride * SAMPLES).enumerate() {
            layout.row(&fine, y, 0, line);
        }
        Ok(interleaved)
    }
}

fn mix(old: u16, new: u16, weight: usize, overlap: usize) -> u16 {
    let (whole, weight) = (2 * overlap as u64, weight as u64);
    ((u64::from(old) * (whole - weight) + u64::from(new) * weight + whole / 2) / whole) as u16
}
