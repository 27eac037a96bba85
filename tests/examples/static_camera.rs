//! What delta pictures save where a camera does not move: `static_camera [light] [FRAMES] [QUALITY...]`; `light`: the scene grows lighter by
//! one level a frame.
#![allow(clippy::unwrap_used, reason = "a program for developers")]

use image_sdl::{
    DecodeOptions, EncodeOptions, Model, Picture, SequenceDecoder, SequenceEncoder, decode, encode_with,
};
use sdl_tests::{psnr, static_camera};

/// The same a number of levels lighter.
fn lighter(picture: Picture, levels: u32) -> Picture {
    let (width, height, colour) = (picture.width(), picture.height(), picture.colour());
    let (pixels, ..) = picture.into_parts();
    let pixels = pixels.into_iter().map(|sample| sample.saturating_add(levels as u8)).collect();
    Picture::new(width, height, colour, pixels).unwrap()
}

fn main() {
    let light = std::env::args().any(|word| word == "light");
    let numbers: Vec<u32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let frames = numbers.first().copied().unwrap_or(25);
    let qualities = if numbers.len() > 1 { numbers[1..].to_vec() } else { vec![20, 50, 80] };
    let model = Model::built_in().unwrap();
    let options = DecodeOptions::default();
    println!("quality  key bytes  delta bytes  ratio  key PSNR  delta PSNR  worst difference");
    for quality in qualities {
        let settings = EncodeOptions::default().with_quality(quality as u8);
        let mut encoder = SequenceEncoder::new(model.clone()).unwrap();
        let mut decoder = SequenceDecoder::new();
        let (mut keys, mut deltas, mut key_psnr, mut delta_psnr, mut worst) = (0, 0, 0.0, 0.0, 0.0f64);
        for frame in 0..=frames {
            let picture = lighter(static_camera(frame), if light { frame } else { 0 });
            let delta = encoder.encode(&picture, &settings).unwrap();
            let shown = decoder.decode(&delta.bytes, &options).unwrap();
            if !delta.delta {
                continue;
            }
            let key = encode_with(&model, &picture, &settings).unwrap();
            let wanted = decode(&key.bytes, &options).unwrap();
            let (a, b) = (psnr(wanted.pixels(), picture.pixels()), psnr(shown.pixels(), picture.pixels()));
            if std::env::var_os("VERBOSE").is_some() {
                println!("{frame}: {} {} {a:.2} {b:.2}", key.bytes.len(), delta.bytes.len());
            }
            keys += key.bytes.len();
            deltas += delta.bytes.len();
            key_psnr += a;
            delta_psnr += b;
            worst = worst.max(a - b);
        }
        let n = f64::from(frames);
        println!(
            "{quality:7}  {:9.0}  {:11.0}  {:5.1}  {:8.2}  {:10.2}  {worst:16.2}",
            keys as f64 / n,
            deltas as f64 / n,
            keys as f64 / deltas as f64,
            key_psnr / n,
            delta_psnr / n,
        );
    }
}
