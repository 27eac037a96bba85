//! Sources: drawn from integers alone, or cut from the photograph in `pictures/`.

use std::sync::OnceLock;

use image_sdl::{Colour, Picture};

use crate::Random;

/// A picture of a function of x, y.
fn draw(width: u32, height: u32, mut pixel: impl FnMut(u32, u32) -> [u8; 3]) -> Picture {
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    let pixels = places.flat_map(|(x, y)| pixel(x, y)).collect();
    Picture::new(width, height, Colour::Rgb, pixels).expect("as many samples as pixels")
}

/// Smooth ramps of every channel.
#[must_use]
pub fn gradient(width: u32, height: u32) -> Picture {
    let ramp = |at: u32, side: u32| (at * 255 / side.max(2).saturating_sub(1)).min(255) as u8;
    draw(width, height, |x, y| [ramp(x, width), ramp(y, height), 255 - ramp(x + y, width + height)])
}

/// Squares of 8 pixels with a little noise.
#[must_use]
pub fn checkerboard(width: u32, height: u32) -> Picture {
    let mut random = Random::new(1);
    draw(width, height, |x, y| {
        let base = if (x / 8 + y / 8) % 2 == 0 { 40 } else { 200 };
        [base + random.byte() % 16, base, base + random.byte() % 16]
    })
}

/// Dark strokes like those of letters on light paper.
#[must_use]
pub fn text(width: u32, height: u32) -> Picture {
    /// A word of 5x7 letters, a row of dots in each number: S, D, L.
    const LETTERS: [[u8; 7]; 3] =
        [[15, 16, 16, 14, 1, 1, 30], [30, 17, 17, 17, 17, 17, 30], [16, 16, 16, 16, 16, 16, 31]];
    draw(width, height, |x, y| {
        let (column, row) = (x / 2 % 6, y / 2 % 10);
        let letter = LETTERS[(x / 12 + y / 20) as usize % 3];
        let ink = column < 5 && row < 7 && letter[row as usize] >> (4 - column) & 1 == 1;
        if ink { [20, 24, 60] } else { [248, 246, 240] }
    })
}

/// A ramp with discs on it: edges and flat parts in a picture of any size, cheap to code.
#[must_use]
pub fn scene(width: u32, height: u32) -> Picture {
    let mut random = Random::new(u64::from(width) << 32 | u64::from(height));
    let discs: Vec<([i64; 3], [u8; 3])> = (0..5)
        .map(|_| {
            let centre = [random.below(width as usize) as i64, random.below(height as usize) as i64];
            let radius = 2 + random.below(width.min(height) as usize) as i64 / 3;
            ([centre[0], centre[1], radius], [random.byte(), random.byte(), random.byte()])
        })
        .collect();
    let (across, down) = (i64::from(width), i64::from(height));
    draw(width, height, |x, y| {
        let (x, y) = (i64::from(x), i64::from(y));
        let inside = |disc: &[i64; 3]| (x - disc[0]).pow(2) + (y - disc[1]).pow(2) <= disc[2].pow(2);
        let disc = discs.iter().rev().find(|(disc, _)| inside(disc));
        disc.map_or([(80 + 90 * y / down) as u8, (120 + 60 * x / across) as u8, 190], |(_, colour)| *colour)
    })
}

/// A cut of the photograph (360x240, `CREDITS.md`); beyond its edges it repeats.
///
/// # Panics
///
/// If the file is not there.
#[must_use]
pub fn photograph(x: u32, y: u32, width: u32, height: u32) -> Picture {
    static PHOTOGRAPH: OnceLock<image::RgbImage> = OnceLock::new();
    let load = || image::open(crate::folder("pictures").join("nyc.png")).expect("the photograph").into_rgb8();
    let photograph = PHOTOGRAPH.get_or_init(load);
    draw(width, height, |dx, dy| {
        photograph.get_pixel((x + dx) % photograph.width(), (y + dy) % photograph.height()).0
    })
}

/// The green channel alone.
///
/// # Panics
///
/// Never: the sizes agree.
#[must_use]
pub fn grey(picture: &Picture) -> Picture {
    let pixels = picture.pixels().iter().skip(1).step_by(3).copied().collect();
    Picture::new(picture.width(), picture.height(), Colour::Grey, pixels).expect("a sample for each pixel")
}

/// Peak signal to noise ratio over all samples, in dB.
#[must_use]
pub fn psnr(a: &[u8], b: &[u8]) -> f64 {
    let squares: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum();
    10.0 * (255.0 * 255.0 * a.len() as f64 / squares.max(1) as f64).log10()
}
