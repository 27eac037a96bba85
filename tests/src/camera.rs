//! A camera that does not move.

use std::sync::OnceLock;

use image_sdl::{Colour, Picture};

use crate::{Random, photograph};

/// Side of the thing that moves, in pixels.
const THING: u32 = 64;
/// Pixels that it moves from one frame to the next.
const STEP: u32 = 5;
/// Bytes that make one sample of noise by their sum, and what their sum is divided by: a standard deviation of 2 levels.
const NOISE_BYTES: usize = 8;
const NOISE_DIVISOR: i32 = 105;

/// A frame of it: a photograph (576x576, `CREDITS.md`), a piece of another one that crosses it, and the noise of a sensor, which is
/// different in each frame.
///
/// # Panics
///
/// If the photographs are not there.
#[must_use]
pub fn static_camera(frame: u32) -> Picture {
    static SCENE: OnceLock<image::RgbImage> = OnceLock::new();
    let load = || image::open(crate::folder("pictures").join("dog.png")).expect("the photograph").into_rgb8();
    let scene = SCENE.get_or_init(load);
    let (width, height) = scene.dimensions();
    let mut pixels = scene.as_raw().clone();
    let thing = photograph(80, 60, THING, THING);
    let (left, top) = (STEP * frame % (width - THING), height / 3);
    for (y, row) in thing.pixels().chunks_exact(3 * THING as usize).enumerate() {
        let at = 3 * ((top as usize + y) * width as usize + left as usize);
        pixels[at..at + row.len()].copy_from_slice(row);
    }
    let mut random = Random::new(u64::from(frame) << 8 | 7);
    for sample in &mut pixels {
        let sum: i32 = (0..NOISE_BYTES).map(|_| i32::from(random.byte()) - 127).sum();
        *sample = (i32::from(*sample) + sum / NOISE_DIVISOR).clamp(0, 255) as u8;
    }
    Picture::new(width, height, Colour::Rgb, pixels).expect("as many samples as pixels")
}
