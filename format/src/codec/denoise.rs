//! Denoising of a quantised latent by a diffusion model of the bundle (docs/FORMAT.md section 6.4).
//!
//! The error of a quantiser is taken for the noise of a diffusion process at the timestep whose noise it matches, and taken
//! back by DDIM with eta 0 (Song, Meng and Ermon 2021). No random number is drawn.

use std::sync::Arc;

use byteorder::{ByteOrder, LE};
use sdl_onnx::{Dimension, ElementType, Graph, Prediction, Tensor, TensorView, role};

use super::model::Model;
use super::parallel;
use super::plan::{self, TilePlan};
use super::progress::{Progress, Stage, tell};
use super::tiles::Rect;
use crate::Error;
use crate::latent::trained::Grid;

/// From which timestep of the bundle's schedule a latent is denoised, and in how many steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Denoising {
    /// The timestep, from 1 on: an index into the schedule of the denoiser.
    pub timestep: u16,
    /// Steps down to the clean latent, 1 to `timestep`.
    pub steps: u8,
}

/// Whether and how an encoder lets its files be denoised.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub enum Denoise {
    /// Where the bundle has a denoiser: one step from the timestep that matches the quantiser; from effort 8 on what a
    /// search over steps of the quantiser, timesteps and steps finds, or none if none is better.
    #[default]
    Auto,
    /// Never.
    Off,
    /// From a part of the schedule (0 to 1), in so many steps; a bundle without a denoiser is an error.
    Strength(f32, u8),
}

impl Denoising {
    /// The payload of its chunk.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        let [low, high] = self.timestep.to_le_bytes();
        vec![low, high, self.steps]
    }

    pub(crate) fn parse(payload: &[u8]) -> Result<Self, Error> {
        let denoising = match payload.len() {
            3 => Denoising { timestep: LE::read_u16(payload), steps: payload[2] },
            other => return Err(Error::corrupt(format!("{other} bytes of denoising"))),
        };
        if denoising.steps == 0 || u16::from(denoising.steps) > denoising.timestep {
            return Err(Error::corrupt(format!(
                "denoising from timestep {} in {} steps",
                denoising.timestep, denoising.steps
            )));
        }
        Ok(denoising)
    }

    /// The same in another number of steps, as far as the timestep has so many; 0 is none at all.
    pub(crate) fn in_steps(self, steps: u8) -> Option<Self> {
        let most = u8::try_from(self.timestep).unwrap_or(u8::MAX);
        (steps > 0).then(|| Denoising { steps: steps.min(most), ..self })
    }

    /// Every timestep at which the denoiser runs.
    fn timesteps(self) -> impl Iterator<Item = usize> {
        let (t, steps) = (usize::from(self.timestep), usize::from(self.steps));
        (0..steps).map(move |k| t * (steps - k) / steps)
    }
}

/// abar of every timestep of a model's denoiser.
///
/// # Errors
///
/// Names the bundle, if it has no denoiser or no schedule.
pub(crate) fn schedule(model: &Model) -> Result<Vec<f64>, Error> {
    model.require(role::DENOISER)?;
    let manifest = model.bundle().manifest();
    let schedule = manifest.denoiser.as_ref().and_then(|denoiser| denoiser.schedule.as_ref());
    let schedule = schedule.ok_or_else(|| {
        Error::Model(sdl_onnx::Error::Manifest {
            bundle: manifest.label(),
            problem: "the denoiser has no schedule (`[denoiser] schedule = ...`)".to_owned(),
        })
    })?;
    Ok(schedule.alphas_cumprod())
}

/// Whether a model can denoise.
pub(crate) fn available(model: &Model) -> bool {
    schedule(model).is_ok()
}

/// The timestep whose noise is that of a uniform quantiser of this step: D^2 / 12 = (1 - abar) / abar. None where the
/// quantiser is finer than the schedule begins.
pub(crate) fn matching_timestep(abar: &[f64], step: f64) -> Option<u16> {
    let step_at = |abar: f64| (12.0 * (1.0 - abar) / abar).sqrt();
    let distance = |t: usize| (step_at(abar[t]) / step).ln().abs();
    if abar.len() < 2 || step.is_nan() || step < step_at(abar[0]) {
        return None;
    }
    let last = abar.len().min(usize::from(u16::MAX)) - 1;
    let nearest = (1..=last).fold(1, |best, t| if distance(t) < distance(best) { t } else { best });
    Some(nearest as u16)
}

/// Denoises a scaled latent (C, H, W) of a whole picture.
pub(crate) fn denoise(
    model: &Model,
    latent: Vec<f32>,
    grid: Grid,
    denoising: Denoising,
    plan: Option<TilePlan>,
    threads: usize,
    progress: &Option<Progress>,
) -> Result<Vec<f32>, Error> {
    let abar = schedule(model)?;
    if usize::from(denoising.timestep) >= abar.len() {
        return Err(Error::corrupt(format!(
            "denoising from timestep {}, and the bundle's schedule has {}",
            denoising.timestep,
            abar.len()
        )));
    }
    if plan.is_none() && grid.height.max(grid.width) > plan::native(model) {
        return Err(Error::corrupt("a picture of this size needs a tile plan to be denoised, and has none"));
    }
    let denoiser = Denoiser::load(model, threads)?;
    let rows = plan.map_or_else(|| vec![vec![whole(grid)]], |plan| plan.rows(grid));
    let count = rows.iter().map(Vec::len).sum::<usize>();
    let mut done = 0;
    let timesteps: Vec<usize> = denoising.timesteps().collect();
    let signal = abar[timesteps[0]].sqrt() as f32;
    let mut sample: Vec<f32> = latent.iter().map(|v| v * signal).collect();
    for (k, &t) in timesteps.iter().enumerate() {
        let mut prediction = vec![0.0; sample.len()];
        for row in &rows {
            tell(progress, Stage::Denoising, done, count * timesteps.len())?;
            let parts = parallel::map(row, denoiser.at_once, |_, &window| {
                denoiser.predict(&sample, grid, window, t)
            })?;
            done += row.len();
            blend(&mut prediction, grid, row, &parts, plan.map_or(1, |plan| plan.overlap));
        }
        let next = timesteps.get(k + 1).map_or(1.0, |&t| abar[t]);
        ddim(&mut sample, &prediction, denoiser.prediction, abar[t], next);
    }
    if sample.iter().any(|v| !v.is_finite()) {
        return Err(Error::corrupt("the denoiser returned a value that is not a number"));
    }
    Ok(sample)
}

fn whole(grid: Grid) -> Rect {
    Rect { y: 0, x: 0, height: grid.height, width: grid.width }
}

/// A step of DDIM with eta 0 (Song, Meng and Ermon 2021, equation 12) from `abar` to `next`.
fn ddim(sample: &mut [f32], prediction: &[f32], kind: Prediction, abar: f64, next: f64) {
    let (signal, noise) = (abar.sqrt() as f32, (1.0 - abar).sqrt() as f32);
    let (next_signal, next_noise) = (next.sqrt() as f32, (1.0 - next).sqrt() as f32);
    for (z, &out) in sample.iter_mut().zip(prediction) {
        let (clean, epsilon) = match kind {
            Prediction::Epsilon => ((*z - noise * out) / signal, out),
            Prediction::V => (signal * *z - noise * out, signal * out + noise * *z),
            // At the very end of a schedule there may be no noise left to divide by.
            Prediction::Sample => (out, if noise > 0.0 { (*z - signal * out) / noise } else { 0.0 }),
        };
        *z = next_signal * clean + next_noise * epsilon;
    }
}

/// The graph, and what it takes beside the latent.
struct Denoiser {
    graph: Arc<dyn Graph>,
    conditions: Vec<(String, Tensor)>,
    prediction: Prediction,
    channels: usize,
    at_once: usize,
}

impl Denoiser {
    fn load(model: &Model, threads: usize) -> Result<Self, Error> {
        let (at_once, graph_threads) = model.share(threads);
        let graph = model.graph(role::DENOISER, graph_threads)?;
        let manifest = model.bundle().manifest();
        let conditions = model.bundle().conditions()?;
        if graph.inputs().len() != 2 + conditions.len() {
            return Err(Error::Model(sdl_onnx::Error::Manifest {
                bundle: manifest.label(),
                problem: format!(
                    "the denoiser has {} inputs; latent, timestep and {} conditions are given",
                    graph.inputs().len(),
                    conditions.len()
                ),
            }));
        }
        let prediction =
            manifest.denoiser.as_ref().map_or(Prediction::Epsilon, |denoiser| denoiser.prediction);
        Ok(Denoiser { graph, conditions, prediction, channels: model.channels(), at_once })
    }

    /// What the graph predicts for a window of the noisy latent, (C, H, W).
    fn predict(&self, sample: &[f32], grid: Grid, window: Rect, timestep: usize) -> Result<Vec<f32>, Error> {
        let mut input = Vec::with_capacity(self.channels * window.height * window.width);
        for plane in sample.chunks_exact(grid.area()) {
            for y in window.y..window.y + window.height {
                input.extend_from_slice(&plane[y * grid.width + window.x..][..window.width]);
            }
        }
        let shape = [1, self.channels, window.height, window.width];
        let [latent, time] = [&self.graph.inputs()[0], &self.graph.inputs()[1]];
        let rank = |shape: &Vec<Dimension>| shape.len();
        let ones = vec![1; time.shape.as_ref().map_or(1, rank)];
        let (whole, real) = ([timestep as i64], [timestep as f32]);
        let time_value = match time.element_type {
            Some(ElementType::F32) => TensorView::f32(&ones, &real)?,
            _ => TensorView::i64(&ones, &whole)?,
        };
        let mut inputs =
            vec![(latent.name.as_str(), TensorView::f32(&shape, &input)?), (time.name.as_str(), time_value)];
        inputs.extend(self.conditions.iter().map(|(name, tensor)| (name.as_str(), tensor.view())));
        let output = &self.graph.outputs()[0].name;
        let result = self.graph.run(&inputs, &[output])?.into_iter().next();
        let result = result.ok_or_else(|| Error::corrupt("the denoiser returned nothing"))?;
        if result.shape() != shape {
            return Err(Error::corrupt(format!("the denoiser returned {:?} for {shape:?}", result.shape())));
        }
        Ok(result.into_f32()?.into())
    }
}

/// Puts a row of windows into a whole latent: each over its left neighbour, then the row over what is above it.
fn blend(whole: &mut [f32], grid: Grid, row: &[Rect], parts: &[Vec<f32>], overlap: usize) {
    let Some(first) = row.first() else { return };
    let height = first.height;
    let channels = whole.len() / grid.area();
    let mut strip = vec![0.0; channels * height * grid.width];
    for (window, part) in row.iter().zip(parts) {
        for (line, values) in part.chunks_exact(window.width).enumerate() {
            let to = &mut strip[line * grid.width + window.x..][..window.width];
            for (x, (to, &value)) in to.iter_mut().zip(values).enumerate() {
                let weight = if window.x > 0 { plan::weight(x, overlap) } else { 2 * overlap };
                *to = plan::mix(*to, value, weight, overlap);
            }
        }
    }
    for (line, values) in strip.chunks_exact(grid.width).enumerate() {
        let (c, y) = (line / height, line % height);
        let weight = if first.y > 0 { plan::weight(y, overlap) } else { 2 * overlap };
        let to = &mut whole[(c * grid.height + first.y + y) * grid.width..][..grid.width];
        for (to, &value) in to.iter_mut().zip(values) {
            *to = plan::mix(*to, value, weight, overlap);
        }
    }
}
