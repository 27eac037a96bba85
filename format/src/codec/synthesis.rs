//! Latent to pixels: the synthesis graph on windows of the latent, each with a margin that is thrown away.

use std::fmt;
use std::str::FromStr;

use sdl_onnx::{Graph, TensorData, TensorView, role};

use super::model::Model;
use super::tiles::{Rect, cut};
use crate::latent::trained::Grid;
use crate::{Colour, Error};

/// Latent positions on the side of a window, for bundles that name none.
const WINDOW: usize = 64;
/// Rows and columns of a window at most where the cut does not show: what a run touches stays near the cache. Of 1920x1080
/// at stride 16, windows of 34x60 took 94 ms and the whole at once 127 ms.
const EXACT_WINDOW: (usize, usize) = (36, 64);
/// Fewer rows than this are not worth a thread of their own: the margins would cost more.
const MIN_BAND: usize = 8;

/// Which of a bundle's decoders makes the pixels of a latent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Synthesis {
    /// As close to the source as the bytes allow; every bundle has it.
    Fidelity,
    /// What looks natural, at the price of being less close.
    Natural,
}

impl Synthesis {
    /// The role of its graph in a bundle.
    pub(crate) fn role(self) -> &'static str {
        match self {
            Synthesis::Fidelity => role::SYNTHESIS,
            Synthesis::Natural => role::SYNTHESIS_NATURAL,
        }
    }

    /// The role of the graph to run: the one asked for, there or not; else the one that the file's author meant, if it is there.
    pub(crate) fn role_for(model: &Model, natural: bool, asked: Option<Synthesis>) -> &'static str {
        let meant = natural && model.bundle().has(role::SYNTHESIS_NATURAL);
        asked.unwrap_or(if meant { Synthesis::Natural } else { Synthesis::Fidelity }).role()
    }
}

impl fmt::Display for Synthesis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Synthesis::Fidelity => "fidelity",
            Synthesis::Natural => "natural",
        })
    }
}

impl FromStr for Synthesis {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self, Error> {
        match given.to_ascii_lowercase().as_str() {
            "fidelity" => Ok(Synthesis::Fidelity),
            "natural" => Ok(Synthesis::Natural),
            _ => Err(Error::Parameter(format!("`{given}` is no decoder; use fidelity or natural"))),
        }
    }
}

/// A latent of a whole picture, (C, H, W).
#[derive(Debug)]
pub(crate) enum Latent {
    /// Of a bit-exact bundle: integers.
    Exact(Vec<i16>),
    /// Of any other: as the graph takes it.
    Float(Vec<f32>),
}

/// The windows that the synthesis runs on.
pub(crate) fn windows(model: &Model, grid: Grid, threads: usize) -> Vec<Rect> {
    let manifest = model.bundle().manifest();
    if manifest.pixels.exact {
        let bands = grid.height.div_ceil(EXACT_WINDOW.0).max(threads.min(grid.height / MIN_BAND));
        let columns = grid.width.div_ceil(EXACT_WINDOW.1);
        return cut(grid, grid.height.div_ceil(bands), grid.width.div_ceil(columns));
    }
    // A manifest that gives no size, or 0, takes any.
    let size = manifest.tiling.as_ref().map(|tiling| tiling.size).filter(|&size| size > 0).unwrap_or(WINDOW);
    cut(grid, size, size)
}

pub(crate) fn margin(model: &Model) -> usize {
    model.bundle().manifest().tiling.as_ref().map_or(8, |tiling| tiling.margin)
}

/// Runs the graph on `window` as it is, without a margin: what it returns, and how that lies.
pub(super) fn run(
    model: &Model,
    graph: &dyn Graph,
    latent: &Latent,
    grid: Grid,
    window: Rect,
) -> Result<(Layout, TensorData), Error> {
    let channels = model.channels();
    let mut input = Vec::with_capacity(channels * window.height * window.width);
    for c in 0..channels {
        for y in window.y..window.y + window.height {
            let from = (c * grid.height + y) * grid.width + window.x;
            match latent {
                Latent::Exact(values) => {
                    input.extend(values[from..from + window.width].iter().map(|&v| f32::from(v)));
                }
                Latent::Float(values) => input.extend_from_slice(&values[from..from + window.width]),
            }
        }
    }
    let shape = [1, channels, window.height, window.width];
    let inputs = [(graph.inputs()[0].name.as_str(), TensorView::f32(&shape, &input)?)];
    let result = graph.run(&inputs, &[&graph.outputs()[0].name])?.into_iter().next();
    let (shape, data) =
        result.ok_or_else(|| Error::corrupt("the synthesis graph returned nothing"))?.into_parts();
    let (stride, manifest) = (model.stride(), model.bundle().manifest());
    let layout = Layout::of(manifest.pixels.packing, (window.height * stride, window.width * stride));
    if shape != layout.shape() {
        return Err(Error::corrupt(format!(
            "the synthesis graph of {} returned {shape:?}, and its manifest says {:?}",
            manifest.name,
            layout.shape()
        )));
    }
    Ok((layout, data))
}

/// The pixels of `window`, interleaved, cropped to the picture: rows of `colour` samples, and how many pixels each row has.
pub(crate) fn synthesise(
    model: &Model,
    graph: &dyn Graph,
    latent: &Latent,
    grid: Grid,
    window: Rect,
    size: (u32, u32),
    colour: Colour,
) -> Result<Vec<u8>, Error> {
    let outer = window.grown(margin(model), grid);
    let (layout, data) = run(model, graph, latent, grid, outer)?;
    let (stride, pixels) = (model.stride(), &model.bundle().manifest().pixels);
    let bytes = match data {
        TensorData::U8(bytes) => bytes,
        TensorData::F32(values) => {
            let scale = 255.0 / (pixels.range[1] - pixels.range[0]);
            let low = pixels.range[0];
            values.iter().map(|v| ((v - low) * scale).round_ties_even().clamp(0.0, 255.0) as u8).collect()
        }
        _ => return Err(Error::corrupt("the synthesis graph returns neither bytes nor floating point")),
    };
    let top = (window.y - outer.y) * stride;
    let left = (window.x - outer.x) * stride;
    let height = (window.height * stride).min(size.1 as usize - window.y * stride);
    let width = (window.width * stride).min(size.0 as usize - window.x * stride);
    Ok(layout.interleave(&bytes, Rect { y: top, x: left, height, width }, colour))
}

/// How a synthesis graph returns a picture of `rows` x `columns` pixels.
pub(super) enum Layout {
    /// (1, 3, H, W)
    Planes { rows: usize, columns: usize },
    /// (1, H / p, W / p, p p 3)
    Blocks { p: usize, rows: usize, columns: usize },
}

impl Layout {
    fn of(packing: Option<usize>, (rows, columns): (usize, usize)) -> Self {
        packing.map_or(Layout::Planes { rows, columns }, |p| Layout::Blocks { p, rows, columns })
    }

    fn shape(&self) -> [usize; 4] {
        match *self {
            Layout::Planes { rows, columns } => [1, 3, rows, columns],
            Layout::Blocks { p, rows, columns } => [1, rows / p, columns / p, p * p * 3],
        }
    }

    fn columns(&self) -> usize {
        match *self {
            Layout::Planes { columns, .. } | Layout::Blocks { columns, .. } => columns,
        }
    }

    /// Row `y` as interleaved RGB.
    pub fn row<T: Copy>(&self, samples: &[T], y: usize, line: &mut [T]) {
        match *self {
            Layout::Planes { rows, columns } => {
                for c in 0..3 {
                    let from = &samples[(c * rows + y) * columns..][..columns];
                    line[c..].iter_mut().step_by(3).zip(from).for_each(|(to, &from)| *to = from);
                }
            }
            Layout::Blocks { p, columns, .. } => {
                let side = 3 * p;
                let from = samples[y / p * columns * side..].chunks_exact(side).skip(y % p).step_by(p);
                line.chunks_exact_mut(side).zip(from).for_each(|(to, from)| to.copy_from_slice(from));
            }
        }
    }

    /// The pixels of `seen`, interleaved.
    fn interleave(&self, bytes: &[u8], seen: Rect, colour: Colour) -> Vec<u8> {
        let samples = colour.channels();
        let mut pixels = vec![0; seen.height * seen.width * samples];
        let mut line = vec![0u8; self.columns() * 3];
        for (y, to) in pixels.chunks_exact_mut((seen.width * samples).max(1)).enumerate() {
            self.row(bytes, seen.y + y, &mut line);
            let line = &line[seen.x * 3..(seen.x + seen.width) * 3];
            match colour {
                Colour::Rgb => to.copy_from_slice(line),
                Colour::Grey => {
                    for (to, rgb) in to.iter_mut().zip(line.chunks_exact(3)) {
                        *to = luma(rgb[0], rgb[1], rgb[2]);
                    }
                }
            }
        }
        pixels
    }
}

/// Luma of BT.601 with weights of 1/256, rounded.
pub(crate) fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((77 * u32::from(r) + 150 * u32::from(g) + 29 * u32::from(b) + 128) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Rect = Rect { y: 0, x: 0, height: 2, width: 2 };
    const LAST: Rect = Rect { y: 1, x: 1, height: 1, width: 1 };

    #[test]
    fn planes_become_interleaved_pixels() {
        let bytes: Vec<u8> = (0..12).collect();
        let planes = Layout::of(None, (2, 2));
        assert_eq!(planes.shape(), [1, 3, 2, 2]);
        assert_eq!(planes.interleave(&bytes, ALL, Colour::Rgb), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(planes.interleave(&bytes, LAST, Colour::Rgb), [3, 7, 11]);
    }

    #[test]
    fn blocks_become_interleaved_pixels() {
        // Two blocks of 2x2 pixels beside each other.
        let bytes: Vec<u8> = (0..24).collect();
        let blocks = Layout::of(Some(2), (2, 4));
        assert_eq!(blocks.shape(), [1, 1, 2, 12]);
        let rows = [[0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17], [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]];
        let whole = Rect { y: 0, x: 0, height: 2, width: 4 };
        assert_eq!(blocks.interleave(&bytes, whole, Colour::Rgb), rows.concat());
        assert_eq!(blocks.interleave(&bytes, LAST, Colour::Rgb), [9, 10, 11]);
    }

    #[test]
    fn grey_of_equal_channels_is_that_grey() {
        assert!((0..=255).all(|v| luma(v, v, v) == v));
    }
}
