//! Latents that are refined, by the bundle's correction at effort 5 and by the gradient from 6 on: better pictures for the same bytes, in
//! files like all others.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use image_sdl::onnx::{Backend, RunOptions, exact_engine};
use image_sdl::{
    Colour, EncodeOptions, Error, Picture, Progress, SequenceDecoder, SequenceEncoder, Stage, Synthesis,
    decode, encode_with,
};
use sdl_tests::{
    backends, built_in, checkerboard, gradient, grey, options, photograph, psnr, scene, static_camera,
};

fn encode(picture: &Picture, options: EncodeOptions) -> Vec<u8> {
    encode_with(&built_in(Backend::Auto), picture, &options.with_threads(1)).unwrap().bytes
}

fn at(quality: u8, effort: u8) -> EncodeOptions {
    EncodeOptions::default().with_quality(quality).with_effort(effort)
}

fn has_gradients() -> bool {
    let has = exact_engine(&RunOptions::default()).is_some();
    if !has {
        assert!(std::env::var_os("SDL_REQUIRE_EXACT").is_none_or(|value| value != "1"), "no exact engine");
        eprintln!("\n=== SKIPPED: the exact engine does not run here, and nothing is refined ===\n");
    }
    has
}

#[test]
fn refined_pictures_are_nearer_for_the_same_bytes_and_more_effort_brings_more() {
    if !has_gradients() {
        return;
    }
    let picture = photograph(0, 0, 360, 240);
    let near =
        |file: &[u8]| psnr(decode(file, &options(Backend::Auto, 1)).unwrap().pixels(), picture.pixels());
    for quality in [20, 50, 80] {
        let mut gains = Vec::new();
        for effort in [5, 6, 7, 9] {
            let refined = encode(&picture, at(quality, effort));
            let size = EncodeOptions::default().with_target_size(refined.len() as u64 + 8).with_effort(4);
            let plain = encode(&picture, size);
            gains.push(near(&refined) - near(&plain));
        }
        println!("quality {quality}: {gains:.2?} dB");
        assert!(gains[0] > 0.0 && gains[1] > 0.0 && gains[3] > gains[1] && gains[3] > 0.1, "{gains:?}");
    }
}

#[test]
fn files_for_a_decoder_are_refined_for_it() {
    if !has_gradients() {
        return;
    }
    let picture = photograph(0, 0, 360, 240);
    let options = options(Backend::Auto, 1);
    for quality in [20, 50, 80] {
        let [near, far] = [Synthesis::Natural, Synthesis::Fidelity].map(|meant| {
            let file = encode(&picture, at(quality, 6).with_synthesis(meant));
            let natural = options.clone().with_synthesis(Synthesis::Natural);
            (psnr(decode(&file, &natural).unwrap().pixels(), picture.pixels()), file.len())
        });
        println!("quality {quality}, for it and for the other: {near:.2?} and {far:.2?} (dB, bytes)");
        assert!(near.0 > far.0 + 0.05 && near.1 < far.1 * 51 / 50, "{near:?} {far:?}");
    }
}

#[test]
fn every_kind_of_picture_can_be_refined() {
    let flat = Picture::new(40, 30, Colour::Rgb, vec![90; 40 * 30 * 3]).unwrap();
    let noise = checkerboard(64, 48);
    for picture in [gradient(1, 1), scene(5, 7), scene(17, 33), grey(&scene(90, 50)), flat, noise] {
        for quality in [0, 100] {
            let [plain, corrected, refined] = [4, 5, 9].map(|effort| {
                let file = encode(&picture, at(quality, effort));
                let decoded = decode(&file, &options(Backend::Auto, 1)).unwrap();
                (psnr(decoded.pixels(), picture.pixels()), file.len())
            });
            let size = (picture.width(), picture.height());
            println!("{size:?} at {quality}: {plain:.2?} (dB, bytes), {corrected:.2?}, {refined:.2?}");
            for better in [corrected, refined] {
                // Bits weigh more in them: a file may be worse, but then it is smaller, 6 dB for half the bytes.
                let saved = (plain.1 as f64 / better.1 as f64).log2();
                let allowed = if saved > 0.0 { 0.5 + 6.0 * saved } else { 0.25 };
                assert!(better.0 >= plain.0 - allowed, "{better:.2?}");
            }
        }
    }
}

#[test]
fn a_size_is_met_and_few_candidates_are_refined_for_it() {
    if !has_gradients() {
        return;
    }
    let picture = photograph(0, 0, 240, 160);
    for size in [350, 1200, 3000] {
        let refined = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&refined);
        let progress = Progress::new(move |stage, done, _| {
            counter.fetch_add(usize::from(stage == Stage::Refinement && done == 0), Ordering::Relaxed);
            true
        });
        let of_size = EncodeOptions::default().with_target_size(size);
        let file = encode(&picture, of_size.clone().with_effort(6).with_progress(progress));
        assert!(file.len() as u64 <= size && file.len() as u64 > size * 9 / 10, "{} of {size}", file.len());
        let refined = refined.load(Ordering::Relaxed);
        println!("{size} bytes: {refined} candidates");
        assert!((2..=10).contains(&refined), "{refined} candidates for {size} bytes");
        let near =
            |file: &[u8]| psnr(decode(file, &options(Backend::Auto, 1)).unwrap().pixels(), picture.pixels());
        assert!(near(&file) > near(&encode(&picture, of_size.with_effort(4))));
    }
    // What cannot be reached says so, and what is beyond the scale is quality 100.
    let tiny = EncodeOptions::default().with_target_size(60).with_effort(6);
    let error = encode_with(&built_in(Backend::Auto), &picture, &tiny).unwrap_err();
    assert!(matches!(error, Error::Target { asked: 60, .. }), "{error}");
    let vast = EncodeOptions::default().with_target_size(1 << 20).with_effort(6);
    assert_eq!(encode_with(&built_in(Backend::Auto), &picture, &vast).unwrap().quality, 100);
}

#[test]
fn the_file_does_not_depend_on_the_number_of_threads() {
    // Several tiles and several windows of the synthesis, in both directions.
    for picture in [scene(40, 1300), scene(2200, 24)] {
        let model = built_in(Backend::Auto);
        for effort in [5, 6] {
            let [one, three] = [1, 3].map(|threads| {
                encode_with(&model, &picture, &at(30, effort).with_threads(threads)).unwrap().bytes
            });
            assert!(one == three, "effort {effort}");
            decode(&one, &options(Backend::Auto, 2)).unwrap();
        }
    }
}

#[test]
fn an_engine_without_gradients_makes_the_file_of_a_smaller_effort() {
    let picture = photograph(100, 40, 128, 96);
    for backend in backends() {
        let engine = RunOptions { backend, ..RunOptions::default() };
        let model = built_in(backend);
        let [plain, corrected, refined] =
            [4, 5, 9].map(|effort| encode_with(&model, &picture, &at(50, effort)).unwrap().bytes);
        assert_eq!(corrected == refined, exact_engine(&engine).is_none(), "{backend}");
        // A correction every engine can run.
        assert!(plain != corrected, "{backend}");
    }
}

#[test]
fn whoever_is_told_of_the_steps_can_stop_them() {
    if !has_gradients() {
        return;
    }
    let progress = Progress::new(|stage, done, of| {
        // The correction, and three down the gradient.
        assert!(stage != Stage::Refinement || of == 4);
        !(stage == Stage::Refinement && done == 2)
    });
    let result = encode_with(&built_in(Backend::Auto), &gradient(40, 40), &at(50, 6).with_progress(progress));
    assert!(matches!(result, Err(Error::Interrupted)));
}

#[test]
fn pictures_after_a_refined_one_stay_small() {
    let total = |effort| {
        let mut encoder = SequenceEncoder::new(built_in(Backend::Auto)).unwrap();
        let mut decoder = SequenceDecoder::new();
        let (mut key, mut deltas, mut quality) = (0, 0, 0.0);
        for frame in 0..4 {
            let picture = static_camera(frame);
            let file = encoder.encode(&picture, &at(50, effort)).unwrap();
            let decoded = decoder.decode(&file.bytes[..], &options(Backend::Auto, 1)).unwrap();
            *(if file.delta { &mut deltas } else { &mut key }) += file.bytes.len();
            quality += psnr(decoded.pixels(), picture.pixels()) / 4.0;
        }
        println!("effort {effort}: {key} and {deltas} bytes, {quality:.2} dB");
        (key, deltas, quality)
    };
    // Refined values are not what the analysis says of the next picture, and yet they count as unchanged.
    let (plain, refined) = (total(4), total(9));
    assert!(refined.1 < plain.1 * 3 / 2 && 5 * refined.1 < refined.0);
    assert!(refined.2 > plain.2 - 0.01);
    // A correction would save less than it costs afterwards.
    assert_eq!(plain, total(5));
}
