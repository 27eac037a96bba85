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
