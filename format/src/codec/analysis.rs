//! Pixels to latent: the analysis graph on one tile at a time, with a margin of real pixels around it.

use sdl_onnx::{Graph, TensorView};

use super::model::Model;
use super::tiles::Rect;
use crate::latent::trained::Grid;
use crate::{Colour, Error, Picture};

/// Pixels of margin around a tile: the receptive field of the analysis is a matter of quality, not of the format.
const MARGIN_PIXELS: usize = 64;

/// The latent of `tile` on its padded grid, (C, H, W), scaled as the bundle says.
///
/// `grid` is the latent of the whole picture.
pub(crate) fn analyse(
    model: &Model,
    graph: &dyn Graph,
    picture: &Picture,
    grid: Grid,
    tile: Rect,
) -> Result<Vec<f32>, Error> {
    let stride = model.stride();
    let padded = model.padded(tile.grid());
    // The window in latent positions: the padded tile and a margin as far as the (padded) picture goes.
    let whole = model.padded(grid);
    let margin = MARGIN_PIXELS.div_ceil(stride);
    let window = Rect { height: padded.height, width: padded.width, ..tile }.grown(margin, whole);
    let (height, width) = (window.height * stride, window.width * stride);
    let pixels = gather(
        picture,
        window.y * stride,
        window.x * stride,
        height,
        width,
        model.bundle().manifest().pixels.range,
    );
    let shape = [1, 3, height, width];
    let input = &graph.inputs()[0].name;
    let output = &graph.outputs()[0].name;
    let result = graph.run(&[(input, TensorView::f32(&shape, &pixels)?)], &[output])?;
    let latent =
        result.into_iter().next().ok_or_else(|| Error::corrupt("the analysis graph returned nothing"))?;
    let shape = latent.shape().to_vec();
    let channels = model.channels();
    if shape.len() != 4 || shape[1] < channels || shape[2] != window.height || shape[3] != window.width {
        return Err(Error::corrupt(format!(
            "the analysis graph of {} returned {shape:?} for {height}x{width} pixels; its manifest says {channels} channels at \
             stride {stride}",
            model.bundle().manifest().name
        )));
    }
    let latent = latent.into_f32()?;
    let settings = &model.bundle().manifest().latent;
    let mut result = Vec::with_capacity(channels * padded.area());
    for c in 0..channels {
        let (scale, shift) = (settings.scale.at(c), settings.shift.at(c));
        for y in 0..padded.height {
            let from = (c * window.height + y + tile.y - window.y) * window.width + tile.x - window.x;
            result.extend(latent[from..from + padded.width].iter().map(|v| (v - shift) * scale));
        }
    }
    if result.iter().any(|v| !v.is_finite()) {
        return Err(Error::corrupt("the analysis graph returned a value that is not a number"));
    }
    Ok(result)
}

/// Pixels of a rectangle as (3, H, W) in `range`; outside the picture its border repeats.
fn gather(picture: &Picture, y0: usize, x0: usize, height: usize, width: usize, range: [f32; 2]) -> Vec<f32> {
    let scale = (range[1] - range[0]) / 255.0;
    let channels = picture.colour().channels();
    let last = picture.width() as usize - 1;
    let mut planes = vec![0.0; 3 * height * width];
    let (red, rest) = planes.split_at_mut(height * width);
    let (green, blue) = rest.split_at_mut(height * width);
    for y in 0..height {
        let row = picture.rgb_row(y0 + y);
        for x in 0..width {
            let at = (x0 + x).min(last) * channels;
            let value = |i: usize| f32::from(row[at + i]) * scale + range[0];
            let to = y * width + x;
            (red[to], green[to], blue[to]) = match picture.colour() {
                Colour::Rgb => (value(0), value(1), value(2)),
                Colour::Grey => (value(0), value(0), value(0)),
            };
        }
    }
    planes
}
