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
    let channels = model.channels();
    let mut input = Vec::with_capacity(channels * outer.height * outer.width);
    for c in 0..channels {
        for y in outer.y..outer.y + outer.height {
            let from = (c * grid.height + y) * grid.width + outer.x;
            match latent {
                Latent::Exact(values) => {
                    input.extend(values[from..from + outer.width].iter().map(|&v| f32::from(v)))
                }
                Latent::Float(values) => input.extend_from_slice(&values[from..from + outer.width]),
            }
        }
    }
    let shape = [1, channels, outer.height, outer.width];
    let name = &graph.inputs()[0].name;
    let output = &graph.outputs()[0].name;
    let result = graph.run(&[(name, TensorView::f32(&shape, &input)?)], &[output])?;
    let result =
        result.into_iter().next().ok_or_else(|| Error::corrupt("the synthesis graph returned nothing"))?;
    let pixels = &model.bundle().manifest().pixels;
    let stride = model.stride();
    let packing = pixels.packing.max(1);
    let expected =
        [1, 3 * packing * packing, outer.height * stride / packing, outer.width * stride / packing];
    let (shape, data) = result.into_parts();
    if shape != expected {
        return Err(Error::corrupt(format!(
            "the synthesis graph of {} returned {shape:?}, and its manifest says {expected:?}",
            model.bundle().manifest().name
        )));
    }
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
    let unpack = Unpack { bytes: &bytes, packing, rows: expected[2], columns: expected[3] };
    Ok(unpack.interleave(top, left, height, width, colour))
}

/// The output of a synthesis graph: channel c * p * p + dy * p + dx of the position (y, x) is the sample c of the pixel
/// (y * p + dy, x * p + dx).
struct Unpack<'a> {
    bytes: &'a [u8],
    packing: usize,
    rows: usize,
    columns: usize,
}

impl Unpack<'_> {
    fn interleave(&self, top: usize, left: usize, height: usize, width: usize, colour: Colour) -> Vec<u8> {
        let p = self.packing;
        let samples = colour.channels();
        let mut pixels = vec![0; height * width * samples];
        let mut line = vec![0u8; self.columns * p * 3];
        for y in 0..height {
            let (row, dy) = ((top + y) / p, (top + y) % p);
            for c in 0..3 {
                for dx in 0..p {
                    let plane = (c * p + dy) * p + dx;
                    let from = &self.bytes[(plane * self.rows + row) * self.columns..][..self.columns];
                    let to = line[dx * 3 + c..].iter_mut().step_by(3 * p);
                    to.zip(from).for_each(|(to, &from)| *to = from);
                }
            }
            let seen = &line[left * 3..(left + width) * 3];
            let to = &mut pixels[y * width * samples..][..width * samples];
            match colour {
                Colour::Rgb => to.copy_from_slice(seen),
                Colour::Grey => {
                    for (to, rgb) in to.iter_mut().zip(seen.chunks_exact(3)) {
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

    #[test]
    fn packed_output_becomes_interleaved_pixels() {
        // One position, packing 2: planes in the order c, dy, dx.
        let bytes: Vec<u8> = (0..12).collect();
        let unpack = Unpack { bytes: &bytes, packing: 2, rows: 1, columns: 1 };
        assert_eq!(unpack.interleave(0, 0, 2, 2, Colour::Rgb), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(unpack.interleave(1, 1, 1, 1, Colour::Rgb), [3, 7, 11]);
    }

    #[test]
    fn grey_of_equal_channels_is_that_grey() {
        assert!((0..=255).all(|v| luma(v, v, v) == v));
    }
}
