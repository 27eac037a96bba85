//! The latent methods of bundles without tables.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::path::Path;

use image_sdl::onnx::{Backend, Bundle};
use image_sdl::{Decoder, EncodeOptions, ErrorKind, LatentMethod, Model, Picture, Settings, encode_with};
use sdl_tests::{Random, backends, blocks, built_in, folder, options, photograph, psnr, scene};

const CHANNELS: usize = 12;
const PALETTE: LatentMethod = LatentMethod::Palette { dither: false };
const DITHER: LatentMethod = LatentMethod::Palette { dither: true };

/// The bundle `blocks` with a codebook of random vectors around what its analysis gives.
fn with_codebook(place: &Path, entries: usize) {
    let from = folder("bundles").join("blocks");
    for name in ["analysis.onnx", "synthesis.onnx"] {
        std::fs::copy(from.join(name), place.join(name)).unwrap();
    }
    let mut random = Random::new(3);
    let mut value = |reach: f32| (f32::from(random.byte()) - 127.5) / 127.5 * reach;
    // A mean first, then what varies less and less; the colour differences begin at channels 6 and 9.
    let reach = |c: usize| {
        if c == 0 {
            110.0
        } else if c == 6 || c == 9 {
            20.0
        } else {
            6.0
        }
    };
    let values = (0..entries * CHANNELS).flat_map(|i| value(reach(i % CHANNELS)).to_le_bytes());
    std::fs::write(place.join("codebook.bin"), values.collect::<Vec<u8>>()).unwrap();
    let manifest = std::fs::read_to_string(from.join("bundle.toml")).unwrap();
    std::fs::write(place.join("bundle.toml"), manifest + "\n[codebook]\nfile = \"codebook.bin\"\n").unwrap();
}

fn open(place: &Path, backend: Backend) -> Model {
    Model::with_settings(Bundle::open(place).unwrap(), Settings { backend, ..Settings::default() }).unwrap()
}

fn decode(model: &Model, bytes: &[u8], threads: usize) -> Picture {
    let options = options(model.settings().backend, threads);
    Decoder::new(bytes).unwrap().with_model(model.clone()).decode(&options).unwrap()
}

fn method(bytes: &[u8]) -> &'static str {
    Decoder::new(bytes).unwrap().header().method.name()
}

#[test]
fn a_bundle_with_a_codebook_codes_with_it_and_every_engine_decodes_the_same() {
    let place = tempfile::tempdir().unwrap();
    with_codebook(place.path(), 500);
    let source = scene(530, 70);
    let models: Vec<Model> = backends().into_iter().map(|backend| open(place.path(), backend)).collect();
    let file = encode_with(&models[0], &source, &EncodeOptions::default()).unwrap();
    assert_eq!(method(&file.bytes), "codebook");
    assert!(file.latent_error.unwrap() > 0.0);
    let pictures: Vec<Picture> =
        models.iter().flat_map(|model| [1, 2].map(|threads| decode(model, &file.bytes, threads))).collect();
    assert!(pictures.windows(2).all(|pair| pair[0] == pair[1]));
    let quality = psnr(pictures[0].pixels(), source.pixels());
    assert!(quality > 15.0, "{quality}");
    // 9 bits an index, did nothing repeat.
    assert!(file.bytes.len() < 67 * 9 * 9 / 8 / 2, "{}", file.bytes.len());
    // The other methods are there all the same.
    let scalar = EncodeOptions::default().with_method(LatentMethod::Scalar);
    let bytes = encode_with(&models[0], &source, &scalar).unwrap().bytes;
    assert!(method(&bytes).starts_with("scalar"));
    assert!(psnr(decode(&models[0], &bytes, 1).pixels(), source.pixels()) > quality);
}

#[test]
fn a_damaged_codebook_is_refused_when_the_bundle_is_loaded() {
    let place = tempfile::tempdir().unwrap();
    with_codebook(place.path(), 2);
    for bytes in [&[][..], &[0; 4], &[0; 4 * CHANNELS + 1], &[0xff; 4 * CHANNELS]] {
        std::fs::write(place.path().join("codebook.bin"), bytes).unwrap();
        let error =
            Model::with_settings(Bundle::open(place.path()).unwrap(), Settings::default()).unwrap_err();
        assert!(error.to_string().contains("codebook"), "{error}");
    }
}

#[test]
fn methods_that_a_bundle_cannot_do_are_refused() {
    let source = scene(20, 20);
    for method in [LatentMethod::Scalar, PALETTE, LatentMethod::Codebook] {
        let options = EncodeOptions::default().with_method(method);
        let error = encode_with(&built_in(Backend::Rust), &source, &options).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Parameter, "{error}");
    }
    let options = EncodeOptions::default().with_method(LatentMethod::Codebook);
    let error = encode_with(&blocks(Backend::Rust), &source, &options).unwrap_err();
    assert!(error.to_string().contains("no codebook"), "{error}");
}

#[test]
fn quality_chooses_how_many_vectors_a_palette_has_and_a_size_is_met() {
    let model = blocks(Backend::Rust);
    let source = photograph(0, 0, 240, 200);
    for method in [PALETTE, DITHER] {
        let at = |quality| {
            let options = EncodeOptions::default().with_quality(quality).with_method(method);
            encode_with(&model, &source, &options).unwrap()
        };
        let files = [0, 40, 80, 100].map(at);
        assert!(files.iter().map(|file| file.bytes.len()).is_sorted());
        assert!(files.windows(2).all(|pair| pair[1].latent_error < pair[0].latent_error));
        let target = (files[1].bytes.len() + files[2].bytes.len()) as u64 / 2;
        let sized = EncodeOptions::default().with_method(method).with_target_size(target);
        let length = encode_with(&model, &source, &sized).unwrap().bytes.len() as u64;
        assert!(length <= target && length > target * 8 / 10, "{length} for {target}");
    }
}

#[test]
fn dither_trades_the_error_of_a_position_for_that_of_an_area() {
    let model = blocks(Backend::Rust);
    let source = photograph(0, 0, 240, 200);
    let at = |method| {
        let options = EncodeOptions::default().with_quality(30).with_method(method);
        encode_with(&model, &source, &options).unwrap()
    };
    let (plain, dithered) = (at(PALETTE), at(DITHER));
    assert!(dithered.latent_error > plain.latent_error);
    // Means of squares of 40x40 pixels: 5x5 positions.
    let blurred = |bytes: &[u8]| {
        let picture = decode(&model, bytes, 1);
        let mut error = 0.0;
        for (top, left) in (0..5).flat_map(|y| (0..6).map(move |x| (40 * y, 40 * x))) {
            for c in 0..3 {
                let sum = |p: &Picture| {
                    let at = |y: usize, x: usize| f64::from(p.pixels()[3 * (y * 240 + x) + c]);
                    (top..top + 40)
                        .flat_map(|y| (left..left + 40).map(move |x| (y, x)))
                        .map(|(y, x)| at(y, x))
                        .sum::<f64>()
                };
                error += ((sum(&picture) - sum(&source)) / 1600.0).powi(2);
            }
        }
        error
    };
    assert!(blurred(&dithered.bytes) < blurred(&plain.bytes));
}

#[test]
fn the_image_crate_takes_every_method_and_a_model_by_its_path() {
    let place = tempfile::tempdir().unwrap();
    let source = image_sdl::decode_dynamic(photograph(0, 0, 64, 48)).unwrap();
    let path = place.path().join("picture.sdl");
    let model = folder("bundles").join("blocks").display().to_string();
    for (wanted, name) in
        [(PALETTE, "palette"), (DITHER, "palette"), (LatentMethod::Scalar, "scalar, universal coder")]
    {
        let options = EncodeOptions::default().with_model(&model).with_method(wanted);
        image_sdl::save(&source, &path, &options).unwrap();
        assert_eq!(method(&std::fs::read(&path).unwrap()), name);
        let encoder = image_sdl::SdlEncoder::new_with_options(Vec::new(), options);
        source.write_with_encoder(encoder).unwrap();
    }
    let missing = EncodeOptions::default().with_model("no-such-model");
    assert_eq!(image_sdl::save(&source, &path, &missing).unwrap_err().kind(), ErrorKind::Model);
}
