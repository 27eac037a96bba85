//! Latent to pixels: the synthesis graph on windows of the latent, each with a margin that is thrown away.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use sdl_onnx::memory::room;
use sdl_onnx::{Elements, Graph, TensorData, TensorView, role};

use super::model::Model;
use super::progress::{Progress, Stage, tell};
use super::tiles::{Rect, cut};
use super::{parallel, plan};
use crate::latent::trained::Grid;
use crate::{Colour, Error};

/// Rows and columns of a window at most where the cut does not show: 1920x1080 is one window at stride 16. The margins of four
/// windows cost a quarter more, and smaller ones are not faster by the position (docs/results/generation-1.md).
const EXACT_WINDOW: (usize, usize) = (72, 128);
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
    let size = plan::native(model);
    cut(grid, size, size)
}

/// The samples of a window, as a graph returned them and its [`Layout`] says where they lie.
pub(super) enum Levels {
    /// Levels.
    Bytes(Elements<u8>),
    /// Levels and what is between them, from 0 to 255.
    Fine(Vec<f32>),
}

impl Levels {
    fn of(data: TensorData, [low, high]: [f32; 2]) -> Result<Self, Error> {
        match data {
            TensorData::U8(bytes) => Ok(Levels::Bytes(bytes)),
            TensorData::F32(values) => {
                let scale = 255.0 / (high - low);
                Ok(Levels::Fine(values.iter().map(|v| ((v - low) * scale).clamp(0.0, 255.0)).collect()))
            }
            _ => Err(Error::corrupt("the synthesis graph returns neither bytes nor floating point")),
        }
    }

    pub fn rounded(self) -> Elements<u8> {
        match self {
            Levels::Bytes(bytes) => bytes,
            Levels::Fine(values) => {
                values.iter().map(|v| v.round_ties_even() as u8).collect::<Vec<_>>().into()
            }
        }
    }
}

/// Runs the graph on `window` as it is, without a margin.
pub(super) fn run(
    model: &Model,
    graph: &dyn Graph,
    latent: &Latent,
    grid: Grid,
    window: Rect,
) -> Result<(Layout, Levels), Error> {
    let shape = [1, model.channels(), window.height, window.width];
    let (integers, values);
    let input = match latent {
        Latent::Exact(all) => {
            integers = part(all, grid, window);
            TensorView::i16(&shape, &integers)?
        }
        Latent::Float(all) => {
            values = part(all, grid, window);
            TensorView::f32(&shape, &values)?
        }
    };
    let inputs = [(graph.inputs()[0].name.as_str(), input)];
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
    Ok((layout, Levels::of(data, manifest.pixels.range)?))
}

/// The window of a latent, (C, H, W).
pub(super) fn part<T: Copy>(latent: &[T], grid: Grid, window: Rect) -> Cow<'_, [T]> {
    if (window.height, window.width) == (grid.height, grid.width) {
        return Cow::Borrowed(latent);
    }
    let mut part = Vec::with_capacity(latent.len() / grid.area() * window.height * window.width);
    for plane in latent.chunks_exact(grid.area()) {
        let rows = plane.chunks_exact(grid.width).skip(window.y).take(window.height);
        rows.for_each(|row| part.extend_from_slice(&row[window.x..][..window.width]));
    }
    Cow::Owned(part)
}

/// A window whose pixels are there, with the margin around it.
pub(crate) struct Rendered {
    window: Rect,
    outer: Rect,
    stride: usize,
    layout: Layout,
    bytes: Elements<u8>,
}

impl Rendered {
    pub fn new(
        model: &Model,
        graph: &dyn Graph,
        latent: &Latent,
        grid: Grid,
        window: Rect,
    ) -> Result<Self, Error> {
        let outer = window.grown(plan::margin(model), grid);
        let (layout, levels) = run(model, graph, latent, grid, outer)?;
        Ok(Rendered { window, outer, stride: model.stride(), layout, bytes: levels.rounded() })
    }

    /// Puts the window, without its margin, where it belongs in the interleaved `pixels` of a picture of `size` (width, height), which
    /// has as many rows as it needs by then.
    pub fn place(&self, pixels: &mut Vec<u8>, size: (u32, u32), colour: Colour) {
        let Rendered { window, outer, stride, .. } = *self;
        let (width, height) = (size.0 as usize, size.1 as usize);
        let (top, left) = (window.y * stride, window.x * stride);
        let rows = (window.height * stride).min(height - top);
        let columns = (window.width * stride).min(width - left);
        let samples = colour.channels();
        let from = left - outer.x * stride;
        let mut line = Vec::new();
        for y in top..top + rows {
            // A row at a time: what is cleared is still in the cache when it is written over.
            let length = (y + 1) * width * samples;
            if pixels.len() < length {
                pixels.resize(length, 0);
            }
            let to = &mut pixels[(y * width + left) * samples..][..columns * samples];
            let y = y - outer.y * stride;
            match colour {
                Colour::Rgb => self.layout.row(&self.bytes, y, from, to),
                Colour::Grey => {
                    line.resize(columns * 3, 0);
                    self.layout.row(&self.bytes, y, from, &mut line);
                    for (to, rgb) in to.iter_mut().zip(line.chunks_exact(3)) {
                        *to = luma(rgb[0], rgb[1], rgb[2]);
                    }
                }
            }
        }
    }
}

/// The synthesis in windows whose cuts do not show.
pub(super) struct Windows<'a> {
    pub model: &'a Model,
    pub graph: &'a dyn Graph,
    pub latent: &'a Latent,
    pub grid: Grid,
    pub at_once: usize,
}

impl Windows<'_> {
    /// The pixels of the picture, interleaved, cropped to `size` (width, height).
    pub fn pixels(
        &self,
        size: (u32, u32),
        colour: Colour,
        progress: &Option<Progress>,
    ) -> Result<Vec<u8>, Error> {
        let Windows { model, graph, latent, grid, at_once } = *self;
        let windows = windows(model, grid, at_once);
        let mut pixels = Vec::new();
        // A few windows at a time: what waits to be put in its place stays small beside the picture.
        let at_a_time = if at_once > 1 { 2 * at_once } else { 1 };
        for (done, now) in windows.chunks(at_a_time).enumerate() {
            tell(progress, Stage::Synthesis, done * at_a_time, windows.len())?;
            let parts =
                parallel::map(now, at_once, |_, &window| Rendered::new(model, graph, latent, grid, window))?;
            // Not before: by now there is memory that the synthesis has done with.
            if pixels.is_empty() {
                pixels = room(size.0 as usize * size.1 as usize * colour.channels());
            }
            parts.iter().for_each(|part| part.place(&mut pixels, size, colour));
        }
        Ok(pixels)
    }
}

/// How a synthesis graph returns a picture of `rows` x `columns` pixels.
pub(super) enum Layout {
    /// (1, 3, H, W)
    Planes { rows: usize, columns: usize },
    /// (1, H / p, W / p, p p 3)
    Blocks { p: usize, rows: usize, columns: usize },
}

impl Layout {
    pub fn of(packing: Option<usize>, (rows, columns): (usize, usize)) -> Self {
        packing.map_or(Layout::Planes { rows, columns }, |p| Layout::Blocks { p, rows, columns })
    }

    pub fn shape(&self) -> [usize; 4] {
        match *self {
            Layout::Planes { rows, columns } => [1, 3, rows, columns],
            Layout::Blocks { p, rows, columns } => [1, rows / p, columns / p, p * p * 3],
        }
    }

    /// Row `y` as interleaved RGB, as many columns from `left` on, which no block is cut by, as `line` takes.
    pub fn row<T: Copy>(&self, samples: &[T], y: usize, left: usize, line: &mut [T]) {
        match *self {
            Layout::Planes { rows, columns } => {
                for c in 0..3 {
                    let from = &samples[(c * rows + y) * columns + left..];
                    line[c..].iter_mut().step_by(3).zip(from).for_each(|(to, &from)| *to = from);
                }
            }
            Layout::Blocks { p, columns, .. } => {
                let samples = &samples[(y / p * columns + left) * 3 * p..];
                // Copies of a length that the compiler knows take a tenth of the time.
                match p {
                    4 => sides::<T, 12>(samples, (y % p, p), line),
                    _ => {
                        let from = samples.chunks_exact(3 * p).skip(y % p).step_by(p);
                        for (to, from) in line.chunks_mut(3 * p).zip(from) {
                            to.copy_from_slice(&from[..to.len()]);
                        }
                    }
                }
            }
        }
    }

    /// Makes interleaved RGB row `y` of the samples.
    pub fn set_row<T: Copy>(&self, samples: &mut [T], y: usize, line: &[T]) {
        match *self {
            Layout::Planes { rows, columns } => {
                for c in 0..3 {
                    let to = &mut samples[(c * rows + y) * columns..][..columns];
                    to.iter_mut().zip(line[c..].iter().step_by(3)).for_each(|(to, &from)| *to = from);
                }
            }
            Layout::Blocks { p, columns, .. } => {
                let side = 3 * p;
                let to = samples[y / p * columns * side..].chunks_exact_mut(side).skip(y % p).step_by(p);
                to.zip(line.chunks_exact(side)).for_each(|(to, from)| to.copy_from_slice(from));
            }
        }
    }
}

/// Puts every `step`th of the runs of `SIDE` samples, from the one `at` on, in a line.
fn sides<T: Copy, const SIDE: usize>(samples: &[T], (at, step): (usize, usize), line: &mut [T]) {
    let mut from = samples.as_chunks::<SIDE>().0.iter().skip(at).step_by(step);
    let (whole, rest) = line.as_chunks_mut::<SIDE>();
    whole.iter_mut().zip(&mut from).for_each(|(to, from)| *to = *from);
    if let Some(last) = from.next() {
        rest.copy_from_slice(&last[..rest.len()]);
    }
}

/// Luma of BT.601 with weights of 1/256, rounded.
pub(crate) fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((77 * u32::from(r) + 150 * u32::from(g) + 29 * u32::from(b) + 128) >> 8) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The pixels that `bytes` make of a window in `outer`; a latent position is as many pixels as a block.
    fn placed(layout: Layout, bytes: &[u8], window: Rect, outer: Rect, size: (u32, u32)) -> Vec<u8> {
        let stride = if let Layout::Blocks { p, .. } = layout { p } else { 1 };
        let rendered = Rendered { window, outer, stride, layout, bytes: bytes.to_vec().into() };
        let mut pixels = Vec::new();
        rendered.place(&mut pixels, size, Colour::Rgb);
        assert_eq!(pixels.len(), 3 * (size.0 * size.1) as usize);
        pixels
    }

    const ALL: Rect = Rect { y: 0, x: 0, height: 2, width: 2 };
    const LAST: Rect = Rect { y: 1, x: 1, height: 1, width: 1 };

    #[test]
    fn planes_become_interleaved_pixels() {
        let bytes: Vec<u8> = (0..12).collect();
        let planes = || Layout::of(None, (2, 2));
        assert_eq!(planes().shape(), [1, 3, 2, 2]);
        assert_eq!(placed(planes(), &bytes, ALL, ALL, (2, 2)), [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]);
        assert_eq!(placed(planes(), &bytes, LAST, ALL, (2, 2))[9..], [3, 7, 11]);
        // What is outside the picture is left out.
        assert_eq!(placed(planes(), &bytes, ALL, ALL, (1, 2)), [0, 4, 8, 2, 6, 10]);
    }

    #[test]
    fn blocks_become_interleaved_pixels() {
        // Two blocks of 2x2 pixels beside each other.
        let bytes: Vec<u8> = (0..24).collect();
        let blocks = || Layout::of(Some(2), (2, 4));
        assert_eq!(blocks().shape(), [1, 1, 2, 12]);
        let rows = [[0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17], [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]];
        let whole = Rect { y: 0, x: 0, height: 1, width: 2 };
        assert_eq!(placed(blocks(), &bytes, whole, whole, (4, 2)), rows.concat());
        let last = Rect { x: 1, width: 1, ..whole };
        assert_eq!(
            placed(blocks(), &bytes, last, whole, (3, 2))[6..],
            [12, 13, 14, 0, 0, 0, 0, 0, 0, 18, 19, 20]
        );
    }

    #[test]
    fn rows_begin_and_end_where_they_are_asked_to_whatever_the_size_of_the_blocks() {
        for p in [2, 4] {
            let blocks = Layout::of(Some(p), (2 * p, 5 * p));
            let samples: Vec<u16> = (0..30 * (p * p) as u16).collect();
            let mut whole = vec![0; 15 * p];
            for y in 0..2 * p {
                blocks.row(&samples, y, 0, &mut whole);
                for (x, pixel) in whole.chunks_exact(3).enumerate() {
                    let block = y / p * 5 + x / p;
                    assert_eq!(usize::from(pixel[0]), 3 * ((block * p + y % p) * p + x % p));
                }
                for (left, columns) in [(p, 4 * p), (2 * p, p + 1), (3 * p, 1)] {
                    let mut line = vec![0; 3 * columns];
                    blocks.row(&samples, y, left, &mut line);
                    assert_eq!(line, whole[3 * left..][..3 * columns]);
                }
            }
        }
    }

    #[test]
    fn grey_of_equal_channels_is_that_grey() {
        assert!((0..=255).all(|v| luma(v, v, v) == v));
    }
}
