//! The graphs around the hyper-latent, and what the symbols of a tile come from.

use std::sync::Arc;

use sdl_onnx::{Elements, Graph, TensorView};

use super::synthesis::part;
use super::tiles::Rect;
use crate::Error;
use crate::latent::trained::{Grid, Tables};

/// What the symbols of a tile come from.
pub(crate) struct Target {
    /// The latent in symbol units, (C, H, W).
    pub scaled: Vec<f32>,
    /// The hyper-latent, and the means that come of it, on the padded grid.
    pub hyper: Vec<i8>,
    pub mean: Elements<f32>,
}

/// The graphs around the hyper-latent.
pub(crate) struct Hyper {
    pub analysis: Arc<dyn Graph>,
    pub synthesis: Arc<dyn Graph>,
}

impl Hyper {
    /// The latent in symbol units, on the padded grid.
    pub fn scale(&self, tables: &Tables, level: u8, grid: Grid, latent: &[f32]) -> Vec<f32> {
        let mut scaled = Vec::with_capacity(latent.len());
        for (c, plane) in latent.chunks_exact(grid.padded().area()).enumerate() {
            let gain = tables.gain(level, c);
            scaled.extend(plane.iter().map(|v| v * gain));
        }
        scaled
    }

    /// What the symbols of a tile come from.
    pub fn target(&self, tables: &Tables, level: u8, grid: Grid, latent: &[f32]) -> Result<Target, Error> {
        let scaled = self.scale(tables, level, grid, latent);
        let found = self.analyse(tables, grid, &scaled)?;
        let mut hyper = vec![0; tables.hyper_len(grid)];
        tables.quantise_hyper(level, grid, &found, &mut hyper, |_| true)?;
        let mean = hyper_mean(self.synthesis.as_ref(), &hyper, tables, grid)?;
        // The padding was for the hyper-latent alone.
        let inside = Rect { y: 0, x: 0, height: grid.height, width: grid.width };
        let scaled =
            if grid == grid.padded() { scaled } else { part(&scaled, grid.padded(), inside).into_owned() };
        Ok(Target { scaled, hyper, mean })
    }

    /// The hyper-latent of a scaled latent, not yet rounded.
    pub fn analyse(&self, tables: &Tables, grid: Grid, scaled: &[f32]) -> Result<Elements<f32>, Error> {
        let padded = grid.padded();
        let shape = [1, tables.channels, padded.height, padded.width];
        let found = run(self.analysis.as_ref(), &TensorView::f32(&shape, scaled)?)?;
        if found.len() != tables.hyper_len(grid) {
            return Err(Error::corrupt(format!("the hyper-analysis graph returned {} values", found.len())));
        }
        Ok(found)
    }
}

/// Runs the hyper-synthesis: hyper-latent to means on the padded grid.
pub(crate) fn hyper_mean(
    graph: &dyn Graph,
    z: &[i8],
    tables: &Tables,
    grid: Grid,
) -> Result<Elements<f32>, Error> {
    let hyper = grid.hyper();
    let input: Vec<f32> = z.iter().map(|&v| f32::from(v)).collect();
    let shape = [1, tables.hyper_channels, hyper.height, hyper.width];
    let mean = run(graph, &TensorView::f32(&shape, &input)?)?;
    if mean.len() != tables.channels * grid.padded().area() {
        return Err(Error::corrupt(format!("the hyper-synthesis graph returned {} values", mean.len())));
    }
    Ok(mean)
}

/// One input, one output, floating point.
fn run(graph: &dyn Graph, input: &TensorView<'_>) -> Result<Elements<f32>, Error> {
    let result = graph.run(&[(&graph.inputs()[0].name, *input)], &[&graph.outputs()[0].name])?;
    let tensor = result.into_iter().next().ok_or_else(|| Error::corrupt("a graph returned nothing"))?;
    Ok(tensor.into_f32()?)
}
