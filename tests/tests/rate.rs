//! How many bytes a picture takes, and how good it is for them.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use image_sdl::onnx::Backend;
use image_sdl::{EncodeOptions, Error, Picture, decode, encode_with};
use sdl_tests::{Container, built_in, gradient, options, photograph, psnr};

/// How much PSNR may fall from one quality to the next better one, in dB. A model under training may need more.
const PSNR_SLACK: f64 = 0.05;

fn encode(picture: &Picture, options: EncodeOptions) -> Result<Vec<u8>, Error> {
    Ok(encode_with(&built_in(Backend::Auto), picture, &options.with_threads(1))?.bytes)
}

fn at(picture: &Picture, quality: u8) -> Vec<u8> {
    encode(picture, EncodeOptions::default().with_quality(quality)).unwrap()
}

#[test]
fn bytes_never_fall_from_one_quality_to_the_next() {
    let picture = photograph(0, 0, 360, 240);
    let sizes: Vec<usize> = (0..=10).map(|q| at(&picture, q * 10).len()).collect();
    println!("bytes at quality 0, 10, ... 100: {sizes:?}");
    assert!(sizes.is_sorted(), "{sizes:?}");
    assert!(sizes[10] > 2 * sizes[0], "quality hardly matters: {sizes:?}");
}

#[test]
fn psnr_never_falls_from_one_quality_to_the_next() {
    let picture = photograph(0, 0, 360, 240);
    let quality = |q: u8| {
        let decoded = decode(&at(&picture, q * 10), &options(Backend::Auto, 1)).unwrap();
        psnr(decoded.pixels(), picture.pixels())
    };
    let found: Vec<f64> = (0..=10).map(quality).collect();
    println!("PSNR at quality 0, 10, ... 100: {found:.2?}");
    assert!(found.windows(2).all(|pair| pair[1] >= pair[0] - PSNR_SLACK), "{found:.2?}");
}

#[test]
fn a_target_within_reach_is_never_exceeded_and_nearly_used() {
    const USED: f64 = 0.97;
    let picture = photograph(0, 0, 360, 240);
    let (least, most) = (at(&picture, 0).len() as f64, at(&picture, 100).len() as f64);
    for part in [0.1, 0.3, 0.6, 0.9] {
        let target = (least * (most / least).powf(part)) as u64;
        let length =
            encode(&picture, EncodeOptions::default().with_target_size(target)).unwrap().len() as u64;
        println!("target {target}, file {length}");
        assert!(length <= target && length as f64 >= USED * target as f64, "{length} bytes for {target}");
        let bits = target as f64 * 8.0 / (360.0 * 240.0);
        let by_bits = encode(&picture, EncodeOptions::default().with_target_bpp(bits)).unwrap().len() as u64;
        assert!(by_bits <= target, "{by_bits} bytes for {bits} bits a pixel");
    }
}

#[test]
fn a_target_out_of_reach_says_what_could_be_reached() {
    let picture = photograph(0, 0, 360, 240);
    for options in
        [EncodeOptions::default().with_target_size(40), EncodeOptions::default().with_target_bpp(1e-9)]
    {
        let error = encode(&picture, options).unwrap_err();
        let Error::Target { smallest, asked } = error else { panic!("{error}") };
        assert!(asked <= 40 && smallest > 40);
        let reached = encode(&picture, EncodeOptions::default().with_target_size(smallest)).unwrap();
        assert!(reached.len() as u64 <= smallest);
    }
    let plenty = encode(&picture, EncodeOptions::default().with_target_size(1 << 30)).unwrap();
    assert!(plenty == at(&picture, 100));
}

#[test]
fn everything_beside_the_coded_latent_fits_in_32_bytes() {
    for picture in [gradient(1, 1), photograph(0, 0, 64, 64), photograph(0, 0, 360, 240)] {
        for quality in [0, 50, 100] {
            let file = at(&picture, quality);
            let beside = file.len() - Container::parse(&file).coded_bytes();
            assert!(beside <= 32, "{beside} bytes for {}x{}", picture.width(), picture.height());
        }
    }
}

#[test]
fn a_thumbnail_of_64_by_64_at_the_lowest_quality_fits_in_120_bytes() {
    let thumbnail = {
        let photograph = photograph(0, 0, 360, 240);
        let whole = image::RgbImage::from_raw(360, 240, photograph.pixels().to_vec()).unwrap();
        let small = image::imageops::thumbnail(&whole, 64, 64);
        Picture::new(64, 64, image_sdl::Colour::Rgb, small.into_raw()).unwrap()
    };
    let length = at(&thumbnail, 0).len();
    println!("64x64 at quality 0: {length} bytes");
    assert!(length <= 120, "{length} bytes");
}

#[test]
fn options_out_of_range_are_refused() {
    let picture = gradient(8, 8);
    for options in [
        EncodeOptions::default().with_quality(101),
        EncodeOptions::default().with_effort(0),
        EncodeOptions::default().with_effort(10),
        EncodeOptions::default().with_target_bpp(f64::NAN),
        EncodeOptions::default().with_target_bpp(0.0),
        EncodeOptions::default().with_target_bpp(-1.0),
    ] {
        let result = encode(&picture, options.clone());
        assert!(matches!(result, Err(Error::Parameter(_))), "{options:?}");
    }
}
