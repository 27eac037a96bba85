//! `sdl bench` and `sdl compare`; their page is looked at in a browser by tests/page.

use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::common::{Place, words};

const BENCH: &[&str] = &["bench", "in", "-o", "out", "--points", "2", "--match", "0.5", "--codecs"];

/// Runs it where the only other programs are those in the folder `programs`.
fn alone(place: &Place, arguments: &[&str]) -> Output {
    place.command(arguments).env("PATH", place.path("programs")).output().unwrap()
}

fn results(place: &Place) -> String {
    String::from_utf8(place.read("out/results.jsonl")).unwrap()
}

fn rows(place: &Place) -> Vec<serde_json::Value> {
    results(place).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_second_run_measures_only_what_is_missing() {
    let place = Place::new();
    place.picture("in/a.png", 48, 40);
    let first = alone(&place, &[BENCH, &["sdl,jpeg"]].concat());
    assert_eq!(first.status.code(), Some(0), "{}", words(&first));
    assert!(words(&first).contains("left out: jpeg (cjpeg or djpeg not found)"), "{}", words(&first));
    let table = String::from_utf8(first.stdout).unwrap();
    assert!(table.contains("| SDL | q0 |") && table.contains("Left out: jpeg"), "{table}");
    let all = results(&place);
    assert_eq!(all.lines().count(), 3, "two points and one match");
    let csv = String::from_utf8(place.read("out/bench.csv")).unwrap();
    assert_eq!(csv.lines().count(), 4);

    alone(&place, &[BENCH, &["sdl"]].concat());
    assert_eq!(results(&place), all);

    // As a run that was stopped leaves it.
    let cut = all.len() - 20;
    place.write("out/results.jsonl", &all.as_bytes()[..cut]);
    alone(&place, &[BENCH, &["sdl"]].concat());
    let again = results(&place);
    assert_eq!(again.lines().count(), 3);
    assert_eq!(again.lines().take(2).collect::<Vec<_>>(), all.lines().take(2).collect::<Vec<_>>());
    assert!(place.files().iter().all(|name| !name.contains(".working")), "{:?}", place.files());
}

#[test]
fn the_natural_decoder_is_a_codec_of_the_same_bytes() {
    let place = Place::new();
    place.picture("in/a.png", 48, 40);
    let output = alone(&place, &[BENCH, &["sdl,sdl-natural"]].concat());
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("| SDL natural | q0 |"), "{table}");
    let rows = rows(&place);
    let (fidelity, natural): (Vec<_>, Vec<_>) = rows.iter().partition(|row| row["codec"] == "sdl");
    assert_eq!((fidelity.len(), natural.len()), (3, 3));
    for (a, b) in fidelity.into_iter().zip(natural) {
        assert_eq!((&a["setting"], &a["bytes"]), (&b["setting"], &b["bytes"]));
        assert_ne!(a["scores"]["psnr"], b["scores"]["psnr"]);
    }
}

#[test]
fn the_slow_encoder_is_a_codec_of_its_own() {
    let place = Place::new();
    place.picture("in/a.png", 200, 180);
    let output = alone(&place, &[BENCH, &["sdl-slow,sdl"]].concat());
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("| SDL -e 9 | q0 |") && table.contains("| SDL | q0 |"), "{table}");
    let rows = rows(&place);
    let best = |codec: &str| {
        let of_codec = rows.iter().filter(|row| row["codec"] == codec && row["setting"] == 100.0);
        of_codec.map(|row| row["scores"]["psnr"].as_f64().unwrap()).fold(0.0, f64::max)
    };
    // Where there are no gradients, both are the same.
    let is_refined = image_sdl::onnx::exact_engine(&image_sdl::onnx::RunOptions::default()).is_some();
    assert_eq!(best("sdl-slow") > best("sdl"), is_refined, "{rows:?}");
}

#[test]
fn rows_tell_bytes_costs_and_quality() {
    let place = Place::new();
    place.picture("in/a.png", 200, 180);
    alone(&place, &[BENCH, &["sdl"]].concat());
    for row in rows(&place) {
        let file = place.read(&format!("out/{}", row["file"].as_str().unwrap()));
        assert_eq!(row["bytes"], file.len());
        for metric in ["psnr", "ms_ssim", "ssimulacra2", "butteraugli"] {
            assert!(row["scores"][metric].is_f64(), "{metric}: {row}");
        }
        assert!(row["scores"]["feature_distance"].is_null());
        for what in ["encode", "decode"] {
            assert!(row[what]["wall"].as_f64().unwrap() > 0.0 && row[what]["cpu"].as_f64().unwrap() > 0.0);
            assert!((1 << 20..1 << 32).contains(&row[what]["memory"].as_u64().unwrap()), "{row}");
        }
    }
}

#[test]
fn speed_is_measured_on_one_picture_of_the_size_of_a_screen() {
    let place = Place::new();
    place.picture("in/a.png", 200, 180);
    // With the faster engine where it is there: many pictures are decoded.
    let mut command = place.command(&["bench", "in", "-o", "out", "--codecs", "sdl", "--speed", "1"]);
    let done = command.env_remove("SDL_BACKEND").output().unwrap();
    assert_eq!(done.status.code(), Some(0), "{}", words(&done));
    let text = String::from_utf8(done.stdout).unwrap();
    assert_eq!(String::from_utf8(place.read("out/speed.md")).unwrap().trim(), text.trim());
    assert!(
        text.contains("One picture of 1920x1080") && text.contains("20 pictures that one process"),
        "{text}"
    );
    let json: serde_json::Value = serde_json::from_slice(&place.read("out/speed.json")).unwrap();
    let sdl = &json["codecs"][0];
    let bits = sdl["bytes"].as_f64().unwrap() * 8.0 / (1920.0 * 1080.0);
    assert!((0.2..0.3).contains(&bits), "{bits} bits a pixel");
    for time in [&sdl["decode"]["wall"], &sdl["encode"]["wall"], &sdl["decode_of_many"]] {
        assert!(time.as_f64().unwrap() > 0.0, "{json}");
    }
    assert!(place.files().iter().all(|name| !name.contains(".working")), "{:?}", place.files());
}

#[test]
fn a_codec_that_fails_is_named_and_the_others_are_measured() {
    let place = Place::new();
    place.picture("in/a.png", 48, 40);
    // Both say their version; none does anything else.
    let script = b"#!/bin/sh\n[ $# -eq 1 ] && echo 9.9.9 && exit\necho no such thing >&2\nexit 3\n";
    for program in ["programs/cwebp", "programs/dwebp"] {
        place.write(program, script);
        std::fs::set_permissions(place.path(program), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let output = alone(&place, &[BENCH, &["sdl,webp"]].concat());
    assert_eq!(output.status.code(), Some(1));
    assert!(
        words(&output).contains("a.png: cwebp:") && words(&output).contains("no such thing"),
        "{}",
        words(&output)
    );
    let table = String::from_utf8(output.stdout).unwrap();
    assert!(table.contains("| WebP | libwebp 9.9.9 |") && table.contains("| SDL | q100 |"), "{table}");
    assert_eq!(results(&place).lines().count(), 3);
}

#[test]
fn what_cannot_be_compared_is_an_error_that_says_why() {
    let place = Place::new();
    place.picture("a.png", 48, 40);
    place.picture("b.png", 40, 48);
    place.write("c.avif", b"no picture");
    let failing = |arguments: &[&str], code: i32, why: &str| {
        let output = alone(&place, arguments);
        assert_eq!(output.status.code(), Some(code), "{}", words(&output));
        assert!(words(&output).contains(why), "{}", words(&output));
    };
    failing(
        &["compare", "a.png", "b.png"],
        1,
        "b.png: the original has 48x40 pixels, the decoded picture 40x48",
    );
    failing(&["compare", "a.png", "c.avif"], 1, "c.avif: avifenc with avifdec is needed");
    failing(&["compare", "a.png", "absent.png"], 5, "absent.png");
    failing(&["bench", "absent", "-o", "out"], 5, "absent");
    failing(&["bench", "a.png", "-o", "out", "--codecs", "jxl"], 2, "no codec to measure");
    failing(&["bench", "a.png", "-o", "out", "--range", "1:0.1"], 2, "two rates");
    assert!(!place.files().iter().any(|name| name.ends_with(".html")), "{:?}", place.files());
}
