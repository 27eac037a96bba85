//! What the universal coder makes of raw latents.
//!
//! `universal_rate FOLDER...`: every file of a folder is `channels`, `height`, `width` and the symbols, all i32, little
//! endian. Prints, for the folder: the order-0 entropy (each channel of each file by its own histogram, the
//! histogram free of charge), the real bytes, the saving, and symbols a second. Bits are per pixel of a picture with
//! eight times the width and height (or `STRIDE` times).

use image_sdl::entropy::{LatentShape, universal};
use std::collections::HashMap;
use std::error::Error;
use std::time::{Duration, Instant};

fn order_0_bits(channel: &[i32]) -> f64 {
    let mut histogram = HashMap::new();
    for symbol in channel {
        *histogram.entry(symbol).or_insert(0.0) += 1.0;
    }
    let total = channel.len() as f64;
    histogram.values().map(|count: &f64| -count * (count / total).log2()).sum()
}

fn main() -> Result<(), Box<dyn Error>> {
    let stride: usize = std::env::var("STRIDE").ok().map_or(Ok(8), |stride| stride.parse())?;
    let mut savings = Vec::new();
    println!("| folder | files | order-0 bpp | bytes | real bpp | saving | encode Msym/s | decode Msym/s |");
    println!("|---|---|---|---|---|---|---|---|");
    for folder in std::env::args().skip(1) {
        let mut files: Vec<_> = std::fs::read_dir(&folder)?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<_, std::io::Error>>()?;
        files.sort();
        let (mut bits, mut bytes, mut pixels, mut count) = (0.0, 0, 0, 0);
        let (mut encoding, mut decoding) = (Duration::ZERO, Duration::ZERO);
        for file in &files {
            let raw = std::fs::read(file)?;
            let values: Vec<i32> = raw.as_chunks().0.iter().map(|&word| i32::from_le_bytes(word)).collect();
            let (&[channels, height, width], symbols) = values.split_first_chunk().ok_or("file too short")?;
            let shape = LatentShape {
                channels: channels.try_into()?,
                height: height.try_into()?,
                width: width.try_into()?,
            };
            bits += symbols.chunks(shape.height * shape.width).map(order_0_bits).sum::<f64>();
            let start = Instant::now();
            let coded = universal::encode(symbols, shape)?;
            encoding += start.elapsed();
            let start = Instant::now();
            let decoded = universal::decode(&coded, shape)?;
            decoding += start.elapsed();
            if decoded != symbols {
                return Err(format!("{} does not come back", file.display()).into());
            }
            bytes += coded.len();
            count += symbols.len();
            pixels += shape.height * shape.width * stride * stride;
        }
        let (order_0, real) = (bits / pixels as f64, 8.0 * bytes as f64 / pixels as f64);
        savings.push(1.0 - real / order_0);
        println!(
            "| {folder} | {} | {order_0:.4} | {bytes} | {real:.4} | {:.2} % | {:.2} | {:.2} |",
            files.len(),
            100.0 * (1.0 - real / order_0),
            count as f64 / encoding.as_secs_f64() / 1e6,
            count as f64 / decoding.as_secs_f64() / 1e6,
        );
    }
    println!("mean saving {:.3} %", 100.0 * savings.iter().sum::<f64>() / savings.len().max(1) as f64);
    Ok(())
}
