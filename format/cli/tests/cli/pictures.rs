//! Encoding and decoding: names, pipes, formats, sizes.

use crate::common::{Place, objects, words};

#[test]
fn a_picture_goes_there_and_back_beside_its_source() {
    let place = Place::new();
    place.picture("a.png", 70, 50);
    let output = place.ok(&["encode", "a.png"]);
    assert!(output.stdout.is_empty(), "reports belong on standard error");
    let report = words(&output);
    for part in ["70x50", "bytes", "bpp", "MP/s", "a.sdl"] {
        assert!(report.contains(part), "{report}");
    }
    std::fs::remove_file(place.path("a.png")).unwrap();
    place.ok(&["decode", "a.sdl"]);
    assert_eq!((place.open("a.png").width(), place.open("a.png").height()), (70, 50));
    assert_eq!(place.files(), ["a.png", "a.sdl"]);
}

#[test]
fn outputs_are_named_by_the_second_name_or_by_an_option() {
    let place = Place::new();
    place.picture("a.ppm", 33, 17);
    place.ok(&["encode", "a.ppm", "x.sdl"]);
    place.ok(&["encode", "-o", "y.sdl", "--", "a.ppm"]);
    assert_eq!(place.read("x.sdl"), place.read("y.sdl"));
    place.ok(&["encode", "a.ppm", "-o", "out/"]);
    assert_eq!(place.read("x.sdl"), place.read("out/a.sdl"));
    place.ok(&["encode", "a.ppm", "--keep-extension"]);
    assert_eq!(place.read("x.sdl"), place.read("a.ppm.sdl"));
    place.ok(&["decode", "x.sdl", "new/"]);
    assert!(place.path("new/x.png").is_file());
    place.ok(&["decode", "x.sdl", "x.jpg"]);
    assert!(place.read("x.jpg").starts_with(&[0xff, 0xd8]));
    place.ok(&["decode", "x.sdl", "-o", "strange.name", "--output-format", "WEBP"]);
    assert!(place.read("strange.name").starts_with(b"RIFF"));
}

#[test]
fn pipes_carry_the_same_bytes_as_files() {
    let place = Place::new();
    place.picture("a.png", 40, 40);
    place.ok(&["encode", "a.png"]);
    let file = place.read("a.sdl");
    let source = place.read("a.png");
    for arguments in [&["encode", "-"][..], &["encode", "-", "-"], &["encode", "-o", "-", "-"]] {
        assert_eq!(place.pipe(arguments, &source).stdout, file, "{arguments:?}");
    }
    assert_eq!(place.ok(&["encode", "a.png", "-"]).stdout, file);
    place.ok(&["decode", "a.sdl", "b.ppm"]);
    let decoded = place.pipe(&["decode", "-", "--output-format", "ppm"], &file);
    assert_eq!(decoded.stdout, place.read("b.ppm"));
    let output = place.pipe(&["decode", "-", "c.png"], &file);
    assert!(output.status.success(), "{}", words(&output));
    assert_eq!(place.open("c.png").to_rgb8(), place.open("b.ppm").to_rgb8());
}

#[test]
fn every_format_that_can_be_written_can_be_read_again() {
    let place = Place::new();
    place.picture("a.png", 24, 24);
    place.ok(&["encode", "a.png"]);
    place.ok(&["decode", "a.sdl", "a.bmp"]);
    let expected = place.open("a.bmp").to_rgb8();
    for extension in ["png", "webp", "tiff", "tga", "qoi", "ppm", "pam", "jpg", "pgm"] {
        let name = format!("b.{extension}");
        place.ok(&["decode", "a.sdl", &name]);
        if !["jpg", "pgm"].contains(&extension) {
            assert_eq!(place.open(&name).to_rgb8(), expected, "{extension}");
        }
        place.ok(&["encode", &name, "again.sdl"]);
    }
    let tga = place.read("b.tga");
    let output = place.pipe(&["encode", "-", "--input-format", "tga"], &tga);
    assert!(output.status.success(), "{}", words(&output));
}

#[test]
fn an_sdl_file_is_a_source_like_any_other() {
    let place = Place::new();
    place.picture("a.png", 64, 64);
    place.ok(&["encode", "a.png", "-q", "80"]);
    place.ok(&["encode", "a.sdl", "-o", "b.sdl", "-q", "10"]);
    assert!(place.read("b.sdl").len() < place.read("a.sdl").len());
    place.ok(&["verify", "b.sdl"]);
}

#[test]
fn alpha_survives_where_the_format_has_it_and_its_loss_is_said() {
    let place = Place::new();
    let picture = image::RgbaImage::from_fn(40, 30, |x, y| image::Rgba([x as u8, y as u8, 9, (x * 6) as u8]));
    picture.save(place.path("a.png")).unwrap();
    place.ok(&["encode", "a.png"]);
    place.ok(&["decode", "a.sdl", "b.png"]);
    let decoded = place.open("b.png").to_rgba8();
    assert!(decoded.pixels().zip(picture.pixels()).all(|(a, b)| a[3] == b[3]));
    let output = place.ok(&["decode", "a.sdl", "b.jpg"]);
    assert!(words(&output).contains("alpha"), "{}", words(&output));
    let info = place.ok(&["info", "a.sdl"]);
    assert!(String::from_utf8_lossy(&info.stdout).contains("8-bit RGB + 8-bit alpha"));
}

#[test]
fn grey_keeps_its_alpha_in_colour_where_the_format_has_no_such_grey() {
    let place = Place::new();
    let grey =
        image::ImageBuffer::from_fn(20, 10, |x, y| image::LumaA([(y * 2000) as u16, (x * 3000) as u16]));
    image::DynamicImage::ImageLumaA16(grey.clone()).save(place.path("deep.png")).unwrap();
    image::DynamicImage::ImageLumaA16(grey).to_luma_alpha8().save(place.path("a.png")).unwrap();
    for (source, out) in
        [("a.png", "b.bmp"), ("deep.png", "b.bmp"), ("a.png", "b.pam"), ("deep.png", "b.pam")]
    {
        place.ok(&["encode", source, "a.sdl"]);
        place.ok(&["decode", "a.sdl", out]);
        let (source, out) = (place.open(source).to_rgba16(), place.open(out).to_rgba16());
        assert!(source.pixels().zip(out.pixels()).all(|(a, b)| a[3].abs_diff(b[3]) <= 257));
    }
}

#[test]
fn higher_quality_takes_more_bytes() {
    let place = Place::new();
    place.picture("a.png", 128, 96);
    let sizes: Vec<usize> = ["0", "25", "50", "75", "100"]
        .iter()
        .map(|quality| {
            place.ok(&["encode", "a.png", "-q", quality]);
            place.read("a.sdl").len()
        })
        .collect();
    assert!(sizes.windows(2).all(|pair| pair[0] < pair[1]), "{sizes:?}");
}

#[test]
fn a_size_asked_for_is_kept_and_nearly_used() {
    let place = Place::new();
    place.picture("a.png", 128, 128);
    let encoded = |arguments: &[&str]| {
        place.ok(&[&["encode", "a.png"], arguments].concat());
        place.read("a.sdl").len()
    };
    // A size in the middle of what the picture can have.
    let target = (encoded(&["-q", "0"]) + encoded(&["-q", "100"])) / 2;
    let size = encoded(&["--target-size", &target.to_string()]);
    assert!((target * 9 / 10..=target).contains(&size), "{size} of {target}");
    let bits = target as f64 * 8.0 / (128.0 * 128.0);
    let size = encoded(&["--target-bpp", &bits.to_string()]);
    assert!((target * 9 / 10..=target).contains(&size), "{size} of {target}");
}

#[test]
fn a_size_below_the_lowest_quality_is_nearly_used_as_well() {
    let place = Place::new();
    place.picture("a.png", 256, 256);
    let encoded = |arguments: &[&str]| {
        place.ok(&[&["encode", "a.png", "a.sdl"], arguments].concat());
        place.read("a.sdl").len()
    };
    let target = encoded(&["-q", "0"]) * 97 / 100;
    let size = encoded(&["--target-size", &target.to_string()]);
    assert!((target * 95 / 100..=target).contains(&size), "{size} of {target}");
}

#[test]
fn reports_come_as_json_or_not_at_all() {
    let place = Place::new();
    place.picture("a.png", 32, 32);
    let output = place.ok(&["encode", "a.png", "--json"]);
    let [object] = &objects(&output)[..] else { panic!("one object a file") };
    assert_eq!(object["file"], "a.png");
    assert_eq!(object["output"], "a.sdl");
    assert_eq!(object["bytes"], place.read("a.sdl").len());
    assert_eq!(object["width"], 32);
    let output = place.ok(&["encode", "a.png", "--quiet"]);
    assert!(output.stderr.is_empty() && output.stdout.is_empty());
    let output = place.ok(&["decode", "a.sdl", "b.png", "--json", "-v"]);
    assert_eq!(objects(&output)[0]["format"], "png");
}
