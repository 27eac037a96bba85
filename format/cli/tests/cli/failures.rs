//! One exit code for each kind of failure, and words that say where.

use std::process::Stdio;

use crate::common::{Place, picture, words};

#[test]
fn help_goes_to_standard_output_and_wrong_usage_is_2() {
    let place = Place::new();
    for arguments in [&["--help"][..], &["encode", "--help"], &["-V"], &["completions", "bash"]] {
        let output = place.ok(arguments);
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{arguments:?}");
    }
    assert!(String::from_utf8_lossy(&place.ok(&["--help"]).stdout).contains("Exit codes"));
    place.picture("a.png", 20, 20);
    for arguments in [
        &[][..],
        &["encode"],
        &["frobnicate"],
        &["encode", "a.png", "-q", "101"],
        &["encode", "a.png", "-q", "-1"],
        &["encode", "a.png", "-e", "0"],
        &["encode", "a.png", "-q", "5", "--target-size", "1k"],
        &["encode", "a.png", "--target-size", "1k", "--target-bpp", "1"],
        &["encode", "a.png", "--target-bpp", "0"],
        &["encode", "a.png", "--target-size", "much"],
        &["encode", "a.png", "--input-format", "doc"],
        &["encode", "a.png", "-j", "0"],
        &["encode", "a.png", "--backend", "abacus"],
        &["encode", "a.png", "-", "--json"],
        &["decode", "a.sdl", "a.doc"],
        &["decode", "a.sdl", "--output-format", "doc"],
    ] {
        let output = place.expect(2, arguments);
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{arguments:?}");
    }
    assert_eq!(place.files(), ["a.png"]);
}

#[test]
fn what_cannot_be_reached_or_is_no_number_is_1() {
    let place = Place::new();
    place.picture("a.png", 64, 64);
    let output = place.expect(1, &["encode", "a.png", "--target-size", "40"]);
    assert!(words(&output).contains("smallest"), "{}", words(&output));
    let mut float = image::Rgb32FImage::new(4, 4);
    float.get_pixel_mut(1, 1).0[2] = f32::NAN;
    image::DynamicImage::ImageRgb32F(float).save(place.path("nan.tiff")).unwrap();
    let output = place.expect(1, &["encode", "nan.tiff"]);
    assert!(
        words(&output).contains("nan.tiff") && words(&output).contains("not a number"),
        "{}",
        words(&output)
    );
    assert!(!place.path("a.sdl").exists());
}

#[test]
fn damage_is_3() {
    let place = Place::new();
    place.picture("a.png", 64, 64);
    place.ok(&["encode", "a.png"]);
    let good = place.read("a.sdl");
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut newer = good.clone();
    newer[12] = 9;
    place.write("cut.sdl", &good[..good.len() - 3]);
    place.write("flipped.sdl", &flipped);
    place.write("newer.sdl", &newer);
    place.write("empty.sdl", b"");
    place.write("other.sdl", &place.read("a.png"));
    for name in ["cut.sdl", "flipped.sdl", "newer.sdl", "empty.sdl", "other.sdl"] {
        for command in ["decode", "verify", "info"] {
            let output = place.expect(3, &[command, name]);
            assert!(words(&output).contains(name), "{}", words(&output));
        }
        place.expect(3, &["encode", name, "x.sdl"]);
    }
    let png = place.read("a.png");
    place.write("cut.png", &png[..png.len() / 2]);
    place.write("text.png", b"this is no picture");
    place.write("empty.png", b"");
    place.picture("a.jpg", 64, 64);
    let jpeg = place.read("a.jpg");
    place.write("cut.jpg", &jpeg[..jpeg.len() * 3 / 4]);
    for name in ["cut.png", "text.png", "empty.png", "cut.jpg"] {
        place.expect(3, &["encode", name]);
    }
    // What lies behind the picture is another matter, and so is the end of a preview before it.
    place.write("more.jpg", &[jpeg.as_slice(), &[7; 100_000]].concat());
    place.ok(&["encode", "more.jpg"]);
    let mut preview = jpeg[..jpeg.len() * 3 / 4].to_vec();
    preview.splice(2..2, [&[0xff, 0xe1, 0, 4 + 2][..], &[0xff, 0xd8, 0xff, 0xd9]].concat());
    place.write("preview.jpg", &preview);
    place.expect(3, &["encode", "preview.jpg"]);
    assert_eq!(place.pipe(&["decode", "-"], &flipped).status.code(), Some(3));
    assert!(!place.path("cut.png.sdl").exists() && !place.path("x.sdl").exists());
}

#[test]
fn a_missing_model_or_engine_is_4() {
    let place = Place::new();
    place.picture("a.png", 32, 32);
    place.expect(4, &["encode", "a.png", "--model", "nobody"]);
    place.expect(4, &["encode", "a.png", "--model", "./nobody.sdlm"]);
    place.expect(4, &["model", "show", "nobody"]);
    let output = place.expect(4, &["encode", "a.png", "--provider", "abacus", "--backend", "rust"]);
    assert!(words(&output).contains("abacus"), "{}", words(&output));
    let output = place
        .command(&["encode", "a.png", "--backend", "ort"])
        .env("ORT_DYLIB_PATH", place.path("nowhere.so"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", words(&output));
    place.ok(&["encode", "a.png"]);
    // Another generation of the built-in model.
    let mut other = place.read("a.sdl");
    other[19] = 200;
    place.write("other.sdl", &other);
    place.expect(4, &["decode", "other.sdl"]);
    assert!(String::from_utf8_lossy(&place.run(&["info", "other.sdl"]).stdout).contains("not here"));
}

#[test]
fn reading_and_writing_that_fails_is_5() {
    let place = Place::new();
    place.picture("a.png", 32, 32);
    std::fs::create_dir(place.path("folder.sdl")).unwrap();
    let output = place.expect(5, &["encode", "missing.png"]);
    assert!(words(&output).contains("missing.png"), "{}", words(&output));
    place.expect(5, &["encode", "a.png", "nowhere/a.sdl"]);
    place.expect(5, &["decode", "missing.sdl"]);
    place.expect(5, &["info", "missing.sdl"]);
    place.expect(5, &["info", "folder.sdl"]);
    place.expect(5, &["model", "import", "nobody.sdlm"]);
    assert_eq!(place.files(), ["a.png"]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_5_and_the_device_stays() {
    let place = Place::new();
    place.picture("a.png", 32, 32);
    let output = place.expect(5, &["encode", "a.png", "-o", "/dev/full"]);
    assert!(words(&output).contains("/dev/full"), "{}", words(&output));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = place.command(&["encode", "a.png", "-"]).stdout(full.try_clone().unwrap()).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", words(&output));
    place.ok(&["encode", "a.png", "a.sdl"]);
    let output = place.command(&["info", "a.sdl"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(5), "{}", words(&output));
    let about = std::fs::metadata("/dev/full").unwrap();
    assert!(!about.is_file());
}

#[test]
fn a_reader_that_leaves_ends_it_quietly() {
    let place = Place::new();
    place.picture("a.png", 200, 200);
    place.ok(&["encode", "a.png"]);
    for arguments in [
        &["decode", "a.sdl", "-", "--output-format", "bmp"][..],
        &["encode", "a.png", "-"],
        &["info", "a.sdl"],
        &["info", "a.sdl", "a.sdl", "a.sdl"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = place.command(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(5), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}: {}", words(&output));
    }
}

#[test]
fn pictures_beyond_the_limits_are_6() {
    let place = Place::new();
    place.picture("a.png", 200, 200);
    place.ok(&["encode", "a.png"]);
    for arguments in [
        &["decode", "a.sdl", "--max-memory", "50k"][..],
        &["verify", "a.sdl", "--max-memory", "50k"],
        &["encode", "a.png", "b.sdl", "--max-memory", "110k"],
    ] {
        let output = place.expect(6, arguments);
        assert!(words(&output).contains("a."), "{}", words(&output));
    }
    picture(65_536, 1).save(place.path("wide.ppm")).unwrap();
    place.expect(6, &["encode", "wide.ppm"]);
}
