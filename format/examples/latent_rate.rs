//! What the latent methods make of the same pictures: `latent_rate BUNDLE FOLDER [EFFORT]`.
//!
//! For every picture: the whole file by `palette` with dither (256 vectors), and the whole file by `scalar` at the same squared error
//! of the latent, between the two qualities on either side of it (bytes and error interpolated in their logarithms).

use image_sdl::{Denoise, EncodeOptions, LatentMethod, Model, Settings, encode_dynamic, encode_with};
use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let bundle = arguments.next().ok_or("give a bundle and a folder of pictures")?;
    let folder = arguments.next().ok_or("give a folder of pictures")?;
    let effort: u8 = arguments.next().map_or(Ok(5), |effort| effort.parse())?;
    let model = Model::find(&bundle, Settings::default())?;
    let mut files: Vec<_> =
        std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    files.sort();
    println!("| picture | latent error | palette, dither | scalar | saved |");
    println!("|---|---|---|---|---|");
    let (mut palette_bytes, mut scalar_bytes, mut pixels) = (0.0, 0.0, 0.0);
    for file in files {
        let picture = encode_dynamic(&image::open(&file)?, image_sdl::Metadata::default())?;
        let code = |method, quality| {
            let options = EncodeOptions::default()
                .with_quality(quality)
                .with_effort(effort)
                .with_method(method)
                .with_denoise(Denoise::Off);
            let file = encode_with(&model, &picture, &options)?;
            Ok::<_, Box<dyn Error>>((file.bytes.len() as f64, file.latent_error.ok_or("no latent error")?))
        };
        let (bytes, error) = code(LatentMethod::Palette { dither: true }, 100)?;
        let (mut low, mut high) = (0, 100);
        while high - low > 1 {
            let middle = low + (high - low) / 2;
            if code(LatentMethod::Scalar, middle)?.1 > error { low = middle } else { high = middle }
        }
        let (below, above) = (code(LatentMethod::Scalar, low)?, code(LatentMethod::Scalar, high)?);
        let part = (error / below.1).ln() / (above.1 / below.1).ln();
        let scalar = below.0 * (above.0 / below.0).powf(part);
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        println!("| {name} | {error:.3} | {bytes} | {scalar:.0} | {:.1} % |", 100.0 * (1.0 - scalar / bytes));
        palette_bytes += bytes;
        scalar_bytes += scalar;
        pixels += f64::from(picture.width()) * f64::from(picture.height());
    }
    println!(
        "| all | | {:.4} bpp | {:.4} bpp | {:.1} % |",
        8.0 * palette_bytes / pixels,
        8.0 * scalar_bytes / pixels,
        100.0 * (1.0 - scalar_bytes / palette_bytes)
    );
    Ok(())
}
