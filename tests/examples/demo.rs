//! The demonstration: what the bytes of an `.sdl` file buy, beside JPEG and WebP of the same size.
//!
//! `cargo run --release -p sdl-tests --example demo -- PICTURE FILE.sdl FOLDER`

use std::path::Path;

use image::RgbImage;
use ssimulacra2::{ColorPrimaries, Rgb, TransferCharacteristic, compute_frame_ssimulacra2};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [original, sdl, folder] = arguments.as_slice() else {
        return Err("usage: demo PICTURE FILE.sdl FOLDER".into());
    };
    let folder = Path::new(folder);
    image_sdl::register();
    let picture = image::open(original)?.to_rgb8();
    let size = std::fs::metadata(sdl)?.len() as usize;

    println!("\n{:<6} {:>8} {:>8} {:>8} {:>12}   picture", "codec", "bytes", "bpp", "PSNR", "SSIMULACRA2");
    row("SDL", size, &picture, &image::open(sdl)?.to_rgb8(), &folder.join("photo.png"))?;
    for (name, encode) in [("JPEG", jpeg as fn(&RgbImage, u8) -> Result<Vec<u8>>), ("WebP", webp)] {
        let file = largest_within(size, |quality| encode(&picture, quality))?;
        let decoded = image::load_from_memory(&file)?.to_rgb8();
        let shown = folder.join(format!("photo-{}.png", name.to_lowercase()));
        decoded.save(&shown)?;
        row(name, file.len(), &picture, &decoded, &shown)?;
    }
    println!("\nThe original is {original}, the file {sdl}.");
    Ok(())
}

fn row(name: &str, bytes: usize, original: &RgbImage, decoded: &RgbImage, shown: &Path) -> Result<()> {
    let pixels = f64::from(original.width() * original.height());
    let squares = original
        .iter()
        .zip(decoded.iter())
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum::<f64>();
    let psnr = 10.0 * (255.0f64.powi(2) * 3.0 * pixels / squares).log10();
    let score = compute_frame_ssimulacra2(linear(original)?, linear(decoded)?)?;
    let bpp = 8.0 * bytes as f64 / pixels;
    println!("{name:<6} {bytes:>8} {bpp:>8.3} {psnr:>5.2} dB {score:>12.1}   {}", shown.display());
    Ok(())
}

fn linear(picture: &RgbImage) -> Result<Rgb> {
    let pixels = picture.pixels().map(|p| p.0.map(|v| f32::from(v) / 255.0)).collect();
    let (width, height) = (picture.width() as usize, picture.height() as usize);
    Rgb::new(pixels, width, height, TransferCharacteristic::SRGB, ColorPrimaries::BT709)
        .map_err(|e| format!("{e:?}").into())
}

/// The best quality whose file is no larger than `size`; the smallest file if none is.
fn largest_within(size: usize, encode: impl Fn(u8) -> Result<Vec<u8>>) -> Result<Vec<u8>> {
    let mut best = encode(1)?;
    let (mut low, mut high) = (1, 101);
    while high - low > 1 {
        let middle = (low + high) / 2;
        let file = encode(middle)?;
        if file.len() <= size {
            (low, best) = (middle, file);
        } else {
            high = middle;
        }
    }
    Ok(best)
}

/// 4:2:0, progressive, optimised tables: what a careful user of JPEG does.
fn jpeg(picture: &RgbImage, quality: u8) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let mut encoder = jpeg_encoder::Encoder::new(&mut file, quality);
    encoder.set_sampling_factor(jpeg_encoder::SamplingFactor::F_2_2);
    encoder.set_progressive(true);
    encoder.set_optimized_huffman_tables(true);
    let (width, height) = (u16::try_from(picture.width())?, u16::try_from(picture.height())?);
    encoder.encode(picture, width, height, jpeg_encoder::ColorType::Rgb)?;
    Ok(file)
}

fn webp(picture: &RgbImage, quality: u8) -> Result<Vec<u8>> {
    let encoder = webp::Encoder::from_rgb(picture, picture.width(), picture.height());
    Ok(encoder.encode(f32::from(quality)).to_vec())
}
