//! ICC profile, Exif and XMP of sources and outputs.

use std::io::Cursor;
use std::sync::LazyLock;

use image::codecs::{jpeg::JpegEncoder, png::PngEncoder};
use image::{DynamicImage, ImageDecoder, ImageEncoder, ImageReader};

use crate::common::{Place, objects, picture};

/// A TIFF header and one entry: orientation 6, which means "turn it right by 90 degrees to show it".
const EXIF: &[u8] = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
const XMP: &str = "<x:xmpmeta xmlns:x='adobe:ns:meta/'></x:xmpmeta>";

/// Made once: a profile holds the second in which it was made.
fn wide_gamut() -> Vec<u8> {
    static PROFILE: LazyLock<Vec<u8>> =
        LazyLock::new(|| moxcms::ColorProfile::new_display_p3().encode().unwrap());
    PROFILE.clone()
}

/// A source with everything, as PNG or JPEG.
fn source(place: &Place, name: &str) {
    let image = DynamicImage::ImageRgb8(picture(60, 40));
    let mut bytes = Vec::new();
    if name.ends_with("png") {
        let mut encoder = PngEncoder::new(&mut bytes);
        encoder.set_icc_profile(wide_gamut()).unwrap();
        encoder.set_exif_metadata(EXIF.to_vec()).unwrap();
        image.write_with_encoder(encoder).unwrap();
    } else {
        let mut encoder = JpegEncoder::new(&mut bytes);
        encoder.set_icc_profile(wide_gamut()).unwrap();
        encoder.set_exif_metadata(EXIF.to_vec()).unwrap();
        image.write_with_encoder(encoder).unwrap();
        let packet = ["http://ns.adobe.com/xap/1.0/\0", XMP].concat();
        let length = (packet.len() as u16 + 2).to_be_bytes();
        let segment = [&[0xff, 0xe1], length.as_slice(), packet.as_bytes()].concat();
        bytes.splice(2..2, segment);
    }
    place.write(name, &bytes);
}

/// ICC, Exif and XMP of a file.
fn parts(place: &Place, name: &str) -> [Option<Vec<u8>>; 3] {
    let reader = ImageReader::new(Cursor::new(place.read(name))).with_guessed_format().unwrap();
    let mut decoder = reader.into_decoder().unwrap();
    [decoder.icc_profile().unwrap(), decoder.exif_metadata().unwrap(), decoder.xmp_metadata().unwrap()]
}

#[test]
fn profile_and_exif_go_there_and_back() {
    let place = Place::new();
    for name in ["a.png", "a.jpg"] {
        source(&place, name);
        place.ok(&["encode", name, "a.sdl"]);
        for out in ["b.png", "b.jpg", "b.webp"] {
            place.ok(&["decode", "a.sdl", out]);
            let [icc, exif, _] = parts(&place, out);
            assert_eq!(icc, Some(wide_gamut()), "{name} to {out}");
            assert_eq!(exif.as_deref(), Some(EXIF), "{name} to {out}");
        }
    }
}

#[test]
fn xmp_goes_into_png_and_jpeg_and_its_loss_is_said() {
    let place = Place::new();
    source(&place, "a.jpg");
    place.ok(&["encode", "a.jpg"]);
    for out in ["b.png", "b.jpg"] {
        place.ok(&["decode", "a.sdl", out]);
        let [_, _, xmp] = parts(&place, out);
        assert_eq!(xmp.as_deref(), Some(XMP.as_bytes()), "{out}");
    }
    let output = place.ok(&["decode", "a.sdl", "b.qoi"]);
    let words = crate::common::words(&output);
    assert!(["XMP", "Exif", "ICC"].iter().all(|part| words.contains(part)), "{words}");
}

#[test]
fn info_says_how_large_the_parts_are_and_strip_leaves_them_out() {
    let place = Place::new();
    source(&place, "a.jpg");
    let sizes = |arguments: &[&str]| {
        place.ok(&[&["encode", "a.jpg", "a.sdl"], arguments].concat());
        let object = objects(&place.ok(&["info", "a.sdl", "--json"])).remove(0);
        ["icc", "exif", "xmp"].map(|part| object["metadata"][part].as_u64().unwrap())
    };
    let [icc, exif, xmp] = sizes(&[]);
    assert_eq!((icc, exif, xmp), (wide_gamut().len() as u64, EXIF.len() as u64, XMP.len() as u64));
    assert_eq!(sizes(&["--strip"]), [0, 0, 0]);
    assert_eq!(sizes(&["--strip=all"]), [0, 0, 0]);
    assert_eq!(sizes(&["--strip=exif"]), [icc, 0, xmp]);
    assert_eq!(sizes(&["--strip=icc,xmp"]), [0, exif, 0]);
}

#[test]
fn pixels_stay_as_they_lie_with_exif_and_are_turned_without() {
    let place = Place::new();
    source(&place, "a.png");
    place.ok(&["encode", "a.png"]);
    place.ok(&["decode", "a.sdl", "b.png"]);
    assert_eq!(place.open("b.png").width(), 60);
    place.ok(&["encode", "a.png", "--strip=exif"]);
    place.ok(&["decode", "a.sdl", "b.png"]);
    assert_eq!((place.open("b.png").width(), place.open("b.png").height()), (40, 60));
    // The same from an SDL file.
    place.ok(&["encode", "a.png"]);
    place.ok(&["encode", "a.sdl", "c.sdl", "--strip"]);
    assert_eq!(objects(&place.ok(&["info", "c.sdl", "--json"]))[0]["width"], 40);
}

#[test]
fn a_profile_of_other_colours_is_left_out_and_said() {
    let place = Place::new();
    let mut icc = wide_gamut();
    icc[16..20].copy_from_slice(b"CMYK");
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    encoder.set_icc_profile(icc).unwrap();
    DynamicImage::ImageRgb8(picture(20, 20)).write_with_encoder(encoder).unwrap();
    place.write("a.png", &bytes);
    let output = place.ok(&["encode", "a.png"]);
    assert!(crate::common::words(&output).contains("CMYK"));
    assert_eq!(objects(&place.ok(&["info", "a.sdl", "--json"]))[0]["metadata"]["icc"], 0);
}

/// A PNG with this profile and these Exif data.
fn png(place: &Place, name: &str, image: &DynamicImage, icc: Option<Vec<u8>>, exif: Option<Vec<u8>>) {
    let mut bytes = Vec::new();
    let mut encoder = PngEncoder::new(&mut bytes);
    if let Some(icc) = icc {
        encoder.set_icc_profile(icc).unwrap();
    }
    if let Some(exif) = exif {
        encoder.set_exif_metadata(exif).unwrap();
    }
    image.write_with_encoder(encoder).unwrap();
    place.write(name, &bytes);
}

/// How far the mean of a channel is from that of another picture.
fn bias(a: &DynamicImage, b: &DynamicImage) -> [f64; 3] {
    let mean = |image: &DynamicImage| {
        let image = image.to_rgb8();
        let pixels = f64::from(image.width() * image.height());
        [0, 1, 2].map(|c| image.pixels().map(|pixel| f64::from(pixel.0[c])).sum::<f64>() / pixels)
    };
    let (a, b) = (mean(a), mean(b));
    [0, 1, 2].map(|c| (a[c] - b[c]).abs())
}

/// One strong colour, which sRGB shows by other numbers than a wide gamut does.
fn strong() -> DynamicImage {
    DynamicImage::ImageRgb8(image::RgbImage::from_pixel(48, 32, image::Rgb([180, 60, 60])))
}

#[test]
fn pixels_come_in_the_profile_they_are_written_with_and_in_srgb_without() {
    let place = Place::new();
    png(&place, "a.png", &strong(), Some(wide_gamut()), None);
    place.ok(&["encode", "a.png", "-q", "90"]);
    for out in ["b.png", "b.jpg", "b.webp", "b.tiff"] {
        place.ok(&["decode", "a.sdl", out]);
        let bias = bias(&place.open(out), &strong());
        assert!(bias.iter().all(|bias| *bias < 3.0), "{out}: {bias:?}");
    }
    // The same colour in sRGB has more red.
    for out in ["b.bmp", "b.qoi", "b.ppm", "b.tga", "b.pam"] {
        let output = place.ok(&["decode", "a.sdl", out]);
        assert!(crate::common::words(&output).contains("sRGB"));
        let bias = bias(&place.open(out), &strong());
        assert!(bias[0] > 8.0, "{out}: {bias:?}");
    }
}

#[test]
fn a_turned_picture_of_a_wide_gamut_is_converted_once() {
    let place = Place::new();
    png(&place, "a.png", &strong(), Some(wide_gamut()), Some(EXIF.to_vec()));
    place.ok(&["encode", "a.png", "-q", "90"]);
    place.ok(&["encode", "a.sdl", "b.sdl", "-q", "90", "--strip=exif"]);
    place.ok(&["decode", "a.sdl", "a.ppm"]);
    place.ok(&["decode", "b.sdl", "b.ppm"]);
    let bias = bias(&place.open("a.ppm"), &place.open("b.ppm"));
    assert!(bias.iter().all(|bias| *bias < 3.0), "{bias:?}");
}

#[test]
fn pixels_are_upright_where_exif_is_left_out() {
    let place = Place::new();
    source(&place, "a.png");
    place.ok(&["encode", "a.png"]);
    for out in ["b.tiff", "b.bmp", "b.tga", "b.qoi", "b.ppm", "b.pgm", "b.pam"] {
        let output = place.ok(&["decode", "a.sdl", out]);
        assert!(crate::common::words(&output).contains("upright"));
        assert_eq!((place.open(out).width(), place.open(out).height()), (40, 60), "{out}");
    }
}

#[test]
fn exif_beyond_a_segment_of_a_jpeg_is_left_out_and_said() {
    let place = Place::new();
    let exif = |length: usize| {
        let mut exif = EXIF.to_vec();
        exif.resize(length, 7);
        exif
    };
    for (length, fits) in [(65_527, true), (65_528, false)] {
        png(&place, "a.png", &strong(), None, Some(exif(length)));
        place.ok(&["encode", "a.png"]);
        let output = place.ok(&["decode", "a.sdl", "b.jpg"]);
        assert_eq!(crate::common::words(&output).contains("its Exif has 65528 bytes"), !fits);
        assert_eq!(parts(&place, "b.jpg")[1], fits.then(|| exif(length)));
        assert_eq!(place.open("b.jpg").width(), if fits { 48 } else { 32 });
    }
}

#[test]
fn a_profile_for_grey_goes_with_grey_pixels_only() {
    let place = Place::new();
    let icc = moxcms::ColorProfile::new_gray_with_gamma(1.0).encode().unwrap();
    png(&place, "a.png", &DynamicImage::ImageLuma8(strong().to_luma8()), Some(icc.clone()), None);
    place.ok(&["encode", "a.png"]);
    for (out, kept) in [("b.png", true), ("b.jpg", true), ("b.webp", false)] {
        place.ok(&["decode", "a.sdl", out]);
        assert_eq!(parts(&place, out)[0], kept.then(|| icc.clone()), "{out}");
    }
    // The reader of `image` does not find it in a grey TIFF.
    let in_tiff = || place.read("b.tiff").windows(icc.len()).any(|window| window == icc);
    place.ok(&["decode", "a.sdl", "b.tiff"]);
    assert!(in_tiff());
    png(&place, "a.png", &DynamicImage::ImageLumaA8(strong().to_luma_alpha8()), Some(icc.clone()), None);
    place.ok(&["encode", "a.png"]);
    place.ok(&["decode", "a.sdl", "b.png"]);
    assert_eq!(parts(&place, "b.png")[0], Some(icc.clone()));
    place.ok(&["decode", "a.sdl", "b.tiff"]);
    assert!(!in_tiff());
}
