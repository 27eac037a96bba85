//! Pixels to latent: the analysis graph on one tile at a time, with a margin of real pixels around it.

use sdl_onnx::{ElementType, Graph, Tensor, TensorView};

use super::model::Model;
use super::tiles::Rect;
use crate::latent::trained::Grid;
use crate::{Colour, Error, Picture};

/// Pixels of margin around a tile: the receptive field of the analysis is a matter of quality, not of the format.
const MARGIN_PIXELS: usize = 64;

/// What the analysis says of a tile, each (C, H, W) on its padded grid.
pub(crate) struct Analysed {
    /// The latent, scaled as the bundle says.
    pub latent: Vec<f32>,
    /// The logarithm of the variance that the model gives to it, likewise scaled, if its graph has a second output.
    pub log_variance: Option<Vec<f32>>,
}

/// Runs the analysis on `tile`.
///
/// `grid` is the latent of the whole picture.
pub(crate) fn analyse(
    model: &Model,
    graph: &dyn Graph,
    picture: &Picture,
    grid: Grid,
    tile: Rect,
) -> Result<Analysed, Error> {
    let stride = model.stride();
    let padded = model.padded(tile.grid());
    // The window in latent positions: the padded tile and a margin as far as the (padded) picture goes.
    let whole = model.padded(grid);
    let margin = MARGIN_PIXELS.div_ceil(stride);
    let window = Rect { height: padded.height, width: padded.width, ..tile }.grown(margin, whole);
    let (height, width) = (window.height * stride, window.width * stride);
    let corner = (window.y * stride, window.x * stride);
    let range = model.bundle().manifest().pixels.range;
    let mut results = run(graph, picture, corner, (height, width), range)?.into_iter();
    let latent = results.next().ok_or_else(|| Error::corrupt("the analysis graph returned nothing"))?;
    let log_variance = results.next();
    let shape = latent.shape().to_vec();
    let channels = model.channels();
    let other = log_variance.as_ref().is_some_and(|second| second.shape() != shape);
    if other
        || shape.len() != 4
        || shape[0] != 1
        || shape[1] < channels
        || shape[2] != window.height
        || shape[3] != window.width
    {
        return Err(Error::corrupt(format!(
            "the analysis graph of {} returned {shape:?} for {height}x{width} pixels; its manifest says {channels} channels at \
             stride {stride}",
            model.bundle().manifest().name
        )));
    }
    let settings = &model.bundle().manifest().latent;
    // The tile out of the window, less what it is shifted by and times what it is scaled by.
    let tile_of = |values: &[f32], scaled: &dyn Fn(usize) -> (f32, f32)| {
        let mut result = Vec::with_capacity(channels * padded.area());
        for c in 0..channels {
            let (shift, scale) = scaled(c);
            for y in 0..padded.height {
                let from = (c * window.height + y + tile.y - window.y) * window.width + tile.x - window.x;
                result.extend(values[from..from + padded.width].iter().map(|v| (v - shift) * scale));
            }
        }
        if result.iter().any(|v| !v.is_finite()) {
            return Err(Error::corrupt("the analysis graph returned a value that is not a number"));
        }
        Ok(result)
    };
    let latent = tile_of(&latent.into_f32()?, &|c| (settings.shift.at(c), settings.scale.at(c)))?;
    let log_variance = match log_variance {
        Some(values) => Some(tile_of(&values.into_f32()?, &|c| (-2.0 * settings.scale.at(c).ln(), 1.0))?),
        None => None,
    };
    Ok(Analysed { latent, log_variance })
}

/// What the graph says of a rectangle: it takes levels, (1, H, W, 3), or values in `range`, (1, 3, H, W).
fn run(
    graph: &dyn Graph,
    picture: &Picture,
    (y0, x0): (usize, usize),
    (height, width): (usize, usize),
    range: [f32; 2],
) -> Result<Vec<Tensor>, Error> {
    let input = &graph.inputs()[0];
    let outputs: Vec<&str> = graph.outputs().iter().take(2).map(|output| output.name.as_str()).collect();
    let mut pixels = vec![0; height * width * 3];
    for (y, line) in pixels.chunks_exact_mut(width * 3).enumerate() {
        levels(picture, (y0 + y, x0), line);
    }
    if input.element_type == Some(ElementType::U8) {
        let shape = [1, height, width, 3];
        return Ok(graph.run(&[(&input.name, TensorView::u8(&shape, &pixels)?)], &outputs)?);
    }
    let scale = (range[1] - range[0]) / 255.0;
    let value = |level: &u8| f32::from(*level) * scale + range[0];
    let planes: Vec<f32> = (0..3).flat_map(|c| pixels.iter().skip(c).step_by(3).map(value)).collect();
    let shape = [1, 3, height, width];
    Ok(graph.run(&[(&input.name, TensorView::f32(&shape, &planes)?)], &outputs)?)
}

/// The levels of a line, (W, 3), that begins at `x0` within the picture; outside the picture its border repeats.
pub(super) fn levels(picture: &Picture, (y, x0): (usize, usize), line: &mut [u8]) {
    let columns = (line.len() / 3).min(picture.width() as usize - x0);
    let (inside, outside) = line.split_at_mut(3 * columns);
    let row = picture.rgb_row(y);
    match picture.colour() {
        Colour::Rgb => inside.copy_from_slice(&row[3 * x0..][..3 * columns]),
        Colour::Grey => inside.chunks_exact_mut(3).zip(&row[x0..]).for_each(|(to, &level)| to.fill(level)),
    }
    if let Some(last) = inside.last_chunk::<3>() {
        outside.chunks_exact_mut(3).for_each(|to| to.copy_from_slice(last));
    }
}
