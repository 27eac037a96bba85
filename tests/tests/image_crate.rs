//! The `image` crate reads and writes SDL like any other format.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::Cursor;
use std::sync::OnceLock;

use image::error::{ImageError, LimitErrorKind};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ExtendedColorType, ImageDecoder, ImageEncoder, ImageReader, Limits};
use image_sdl::{EncodeOptions, SdlDecoder, SdlEncoder, register, save};
use moxcms::{ColorProfile, Layout, RenderingIntent, TransformOptions};
use sdl_tests::{Container, Random, exif, folder, gradient, photograph, profile, psnr, read_vectors};

/// Registers once for all tests of this file, and says what the first call returned.
fn registered() -> bool {
    static FIRST: OnceLock<bool> = OnceLock::new();
    *FIRST.get_or_init(register)
}

fn vector(name: &str) -> Vec<u8> {
    read_vectors().into_iter().find(|v| v.file == format!("{name}.sdl")).unwrap().read()
}

fn photo() -> DynamicImage {
    let photo = photograph(100, 40, 64, 48);
    DynamicImage::ImageRgb8(image::RgbImage::from_raw(64, 48, photo.pixels().to_vec()).unwrap())
}

/// The photograph with a ramp for alpha.
fn photo_rgba() -> DynamicImage {
    let mut photo = photo().into_rgba8();
    photo.enumerate_pixels_mut().for_each(|(x, y, pixel)| pixel.0[3] = (x * 4 + y) as u8);
    DynamicImage::ImageRgba8(photo)
}

fn encoded(image: &DynamicImage, quality: u8) -> Vec<u8> {
    let mut file = Vec::new();
    image.write_with_encoder(SdlEncoder::new_with_quality(&mut file, quality)).unwrap();
    file
}

#[test]
fn register_is_true_once_and_false_from_then_on() {
    assert!(registered());
    assert!(!register());
    assert!(!register());
}

#[test]
fn a_file_opens_by_its_extension_in_any_case_and_by_its_content_with_a_wrong_one() {
    registered();
    let folder = tempfile::tempdir().unwrap();
    let bytes = vector("photo-middle");
    let expected = image::load_from_memory(&bytes).unwrap();
    for name in ["a.sdl", "a.SDL", "b.png", "without"] {
        let path = folder.path().join(name);
        std::fs::write(&path, &bytes).unwrap();
        let guessed = ImageReader::open(&path).unwrap().with_guessed_format().unwrap();
        assert!(guessed.decode().unwrap() == expected, "{name}");
        let opened = image::open(&path);
        assert_eq!(opened.is_ok(), name.to_ascii_lowercase().ends_with("sdl"), "{name}");
        assert!(opened.is_err() || opened.unwrap() == expected);
    }
}

#[test]
fn dimensions_come_without_the_model_that_the_file_names() {
    registered();
    // No store has this bundle: whoever looked for it would fail.
    let mut container = Container::parse(&vector("blocks-17x33"));
    container.header[20..28].copy_from_slice(b"nowhere!");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sdl");
    std::fs::write(&path, container.to_bytes()).unwrap();
    assert_eq!(image::image_dimensions(&path).unwrap(), (17, 33));
    assert_eq!(ImageReader::open(&path).unwrap().into_dimensions().unwrap(), (17, 33));
    assert!(matches!(image::open(&path), Err(ImageError::Decoding(_))));
}

#[test]
fn all_ten_layouts_are_encoded_and_come_back_in_the_documented_one_with_exact_alpha() {
    registered();
    let source = photo_rgba();
    let float = |image: &DynamicImage| {
        let mut image = image.to_rgba32f();
        // Alpha that no integer depth holds.
        image.pixels_mut().for_each(|pixel| pixel.0[3] = pixel.0[3] * 1.7 - 0.3);
        image
    };
    let mut sixteen = source.to_rgba16();
    let mut random = Random::new(3);
    sixteen.pixels_mut().for_each(|pixel| pixel.0[3] = random.draw() as u16);
    let mut grey_sixteen = source.to_luma_alpha16();
    grey_sixteen.pixels_mut().for_each(|pixel| pixel.0[1] = random.draw() as u16);
    let cases = [
        (DynamicImage::ImageLuma8(source.to_luma8()), ColorType::L8),
        (DynamicImage::ImageLumaA8(source.to_luma_alpha8()), ColorType::La8),
        (DynamicImage::ImageRgb8(source.to_rgb8()), ColorType::Rgb8),
        (source.clone(), ColorType::Rgba8),
        (DynamicImage::ImageLuma16(source.to_luma16()), ColorType::L8),
        (DynamicImage::ImageLumaA16(grey_sixteen), ColorType::La16),
        (DynamicImage::ImageRgb16(source.to_rgb16()), ColorType::Rgb8),
        (DynamicImage::ImageRgba16(sixteen), ColorType::Rgba16),
        (DynamicImage::ImageRgb32F(source.to_rgb32f()), ColorType::Rgb8),
        (DynamicImage::ImageRgba32F(float(&source)), ColorType::Rgba32F),
    ];
    for (image, expected) in cases {
        let back = image::load_from_memory(&encoded(&image, 80)).unwrap();
        assert_eq!(back.color(), expected, "from {:?}", image.color());
        let alpha = |image: &DynamicImage| match image {
            DynamicImage::ImageLumaA8(i) => i.pixels().map(|p| u32::from(p.0[1])).collect(),
            DynamicImage::ImageRgba8(i) => i.pixels().map(|p| u32::from(p.0[3])).collect(),
            DynamicImage::ImageLumaA16(i) => i.pixels().map(|p| u32::from(p.0[1])).collect(),
            DynamicImage::ImageRgba16(i) => i.pixels().map(|p| u32::from(p.0[3])).collect(),
            DynamicImage::ImageRgba32F(i) => i.pixels().map(|p| p.0[3].to_bits()).collect(),
            _ => Vec::new(),
        };
        assert_eq!(alpha(&back), alpha(&image), "alpha of {expected:?}");
        let close = psnr(back.to_luma8().as_raw(), image.to_luma8().as_raw());
        assert!(close > 18.0, "{close:.1} dB from {:?}", image.color());
    }
}

#[test]
fn profile_exif_xmp_and_orientation_come_back() {
    let icc = profile(&ColorProfile::new_adobe_rgb());
    let xmp = b"<x:xmpmeta/>".to_vec();
    let mut file = Vec::new();
    let mut encoder = SdlEncoder::new(&mut file);
    encoder.set_icc_profile(icc.clone()).unwrap();
    encoder.set_exif_metadata(exif(6)).unwrap();
    encoder.set_xmp_metadata(xmp.clone());
    photo().write_with_encoder(encoder).unwrap();
    let mut decoder = SdlDecoder::new(&file[..]).unwrap();
    assert_eq!(decoder.orientation().unwrap(), Orientation::Rotate90);
    assert_eq!(decoder.icc_profile().unwrap(), Some(icc));
    assert_eq!(decoder.exif_metadata().unwrap(), Some(exif(6)));
    assert_eq!(decoder.xmp_metadata().unwrap(), Some(xmp));
    // And the pixels can still be read.
    assert_eq!(DynamicImage::from_decoder(decoder).unwrap().color(), ColorType::Rgb8);

    let plain = encoded(&photo(), 50);
    let mut decoder = SdlDecoder::new(&plain[..]).unwrap();
    assert_eq!(decoder.orientation().unwrap(), Orientation::NoTransforms);
    assert_eq!(decoder.icc_profile().unwrap(), None);
}

#[test]
fn colours_of_a_profile_that_is_not_srgb_are_converted_there_and_back() {
    // As a reader of the file sees it: its numbers are rounded there.
    let adobe = ColorProfile::new_from_slice(&profile(&ColorProfile::new_adobe_rgb())).unwrap();
    let convert = |pixels: &[u8], from: &ColorProfile, to: &ColorProfile| {
        let options = TransformOptions {
            rendering_intent: RenderingIntent::RelativeColorimetric,
            ..TransformOptions::default()
        };
        let transform = from.create_transform_8bit(Layout::Rgb, to, Layout::Rgb, options).unwrap();
        let mut out = vec![0; pixels.len()];
        transform.transform(pixels, &mut out).unwrap();
        out
    };
    let encode = |pixels: &[u8], icc: Option<&ColorProfile>| {
        let mut file = Vec::new();
        let mut encoder = SdlEncoder::new_with_quality(&mut file, 100);
        if let Some(icc) = icc {
            encoder.set_icc_profile(profile(icc)).unwrap();
        }
        encoder.write_image(pixels, 64, 48, ExtendedColorType::Rgb8).unwrap();
        file
    };
    let latent = |file: &[u8]| {
        let chunks = Container::parse(file).chunks;
        chunks.into_iter().filter(|(kind, _)| *kind == b'L').collect::<Vec<_>>()
    };
    let srgb = ColorProfile::new_srgb();
    let source = gradient(64, 48).pixels().to_vec();
    let wide = encode(&source, Some(&adobe));
    // What is coded is the picture in sRGB; a profile of sRGB changes nothing.
    assert!(latent(&wide) == latent(&encode(&convert(&source, &adobe, &srgb), None)));
    assert!(latent(&wide) != latent(&encode(&source, None)));
    assert!(latent(&encode(&source, Some(&srgb))) == latent(&encode(&source, None)));
    // What comes out is in the profile again.
    let stored = image_sdl::decode(&wide, &image_sdl::DecodeOptions::default()).unwrap();
    let shown = DynamicImage::from_decoder(SdlDecoder::new(&wide[..]).unwrap()).unwrap();
    assert!(shown.as_bytes() == convert(stored.pixels(), &srgb, &adobe));
    assert!(shown.as_bytes() != stored.pixels());
}

#[test]
fn limits_of_the_image_crate_hold_on_both_of_its_ways() {
    registered();
    let bytes = vector("photo-middle");
    let limits = |change: fn(&mut Limits)| {
        let mut limits = Limits::default();
        change(&mut limits);
        limits
    };
    let reader = |limits: Limits| {
        let mut reader = ImageReader::new(Cursor::new(&bytes)).with_guessed_format().unwrap();
        reader.limits(limits);
        reader
    };
    assert!(reader(Limits::default()).decode().is_ok());
    for (change, kind) in [
        (limits(|l| l.max_image_width = Some(127)), LimitErrorKind::DimensionError),
        (limits(|l| l.max_image_height = Some(95)), LimitErrorKind::DimensionError),
        // Less than the output, and less than the output and what decoding takes beside it.
        (limits(|l| l.max_alloc = Some(10_000)), LimitErrorKind::InsufficientMemory),
        (limits(|l| l.max_alloc = Some(128 * 96 * 3 + 1000)), LimitErrorKind::InsufficientMemory),
    ] {
        let decoded = reader(change.clone()).decode();
        let Err(ImageError::Limits(error)) = decoded else { panic!("{change:?}: {decoded:?}") };
        assert_eq!(error.kind(), kind);
        let through_decoder = reader(change.clone()).into_decoder().and_then(|mut decoder| {
            decoder.set_limits(change.clone())?;
            let mut pixels = vec![0; decoder.total_bytes() as usize];
            decoder.read_image(&mut pixels)
        });
        let Err(ImageError::Limits(error)) = through_decoder else { panic!("{change:?}") };
        assert_eq!(error.kind(), kind);
    }
    // A header that claims the largest picture never gets as far as an allocation.
    let huge = Container::parse(&bytes).with_size(65_535, 65_535).to_bytes();
    assert!(matches!(image::load_from_memory(&huge), Err(ImageError::Limits(_))));
}

#[test]
fn sixteen_bits_are_read_from_and_written_to_unaligned_buffers() {
    let image = photo_rgba().into_rgba16();
    let (width, height) = image.dimensions();
    let mut bytes = vec![0];
    image.as_raw().iter().for_each(|sample| bytes.extend(sample.to_ne_bytes()));
    let encode = |buffer: &[u8]| {
        let mut file = Vec::new();
        SdlEncoder::new(&mut file).write_image(buffer, width, height, ExtendedColorType::Rgba16).unwrap();
        file
    };
    let file = encode(&bytes[1..]);
    let aligned = bytes[1..].to_vec();
    assert!(file == encode(&aligned));
    let read = |offset: usize| {
        let decoder = SdlDecoder::new(&file[..]).unwrap();
        let mut out = vec![0; offset + decoder.total_bytes() as usize];
        decoder.read_image(&mut out[offset..]).unwrap();
        out.split_off(offset)
    };
    assert!(read(0) == read(1));
}

#[test]
fn what_is_not_a_number_is_refused_and_what_is_out_of_range_is_clamped() {
    let mut file = Vec::new();
    let mut encode = |value: [f32; 4]| {
        file.clear();
        let image = image::Rgba32FImage::from_pixel(9, 9, image::Rgba(value));
        DynamicImage::ImageRgba32F(image).write_with_encoder(SdlEncoder::new(&mut file))?;
        Ok::<_, ImageError>(file.clone())
    };
    for bad in [[f32::NAN, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, f32::NAN], [0.0, 0.0, 0.0, f32::INFINITY]] {
        let result = encode(bad);
        assert!(matches!(result, Err(ImageError::Parameter(_))), "{bad:?}: {result:?}");
    }
    let over = encode([f32::INFINITY, -3.0, f32::NEG_INFINITY, 7.5]).unwrap();
    assert!(over == encode([1.0, 0.0, 0.0, 7.5]).unwrap());
}

#[test]
fn errors_have_the_variant_that_the_image_crate_gives_them_a_meaning_by() {
    let sound = vector("17x33");
    let read = |bytes: &[u8]| {
        let decoder = SdlDecoder::new(bytes)?;
        let mut pixels = vec![0; decoder.total_bytes() as usize];
        decoder.read_image(&mut pixels)
    };
    assert!(read(&sound).is_ok());
    assert!(matches!(read(b"no picture at all, but long enough"), Err(ImageError::Decoding(_))));
    assert!(matches!(read(&sound[..sound.len() - 1]), Err(ImageError::Decoding(_))));
    let mut newer = Container::parse(&sound);
    newer.chunks.push((b'Z', Vec::new()));
    assert!(matches!(read(&newer.to_bytes()), Err(ImageError::Unsupported(_))));

    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::ConnectionReset.into())
        }
    }
    impl std::io::Write for Broken {
        fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    assert!(matches!(SdlDecoder::new(Broken), Err(ImageError::IoError(_))));
    assert!(matches!(photo().write_with_encoder(SdlEncoder::new(Broken)), Err(ImageError::IoError(_))));
    let beyond = SdlEncoder::new_with_quality(Vec::new(), 101);
    assert!(matches!(photo().write_with_encoder(beyond), Err(ImageError::Parameter(_))));
    let tiny = SdlEncoder::new_with_options(Vec::new(), EncodeOptions::default().with_target_size(5));
    assert!(matches!(photo().write_with_encoder(tiny), Err(ImageError::Encoding(_))));
}

#[test]
fn save_writes_a_whole_file_or_leaves_what_was_there() {
    registered();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.sdl");
    save(&photo(), &path, &EncodeOptions::default()).unwrap();
    assert_eq!(image::open(&path).unwrap().width(), 64);
    let before = std::fs::read(&path).unwrap();
    assert!(save(&photo(), &path, &EncodeOptions::default().with_target_size(5)).is_err());
    assert!(std::fs::read(&path).unwrap() == before);
    assert!(save(&photo(), folder.path(), &EncodeOptions::default()).is_err());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing unfinished stays");
}

#[test]
fn the_vectors_of_the_built_in_model_open_from_their_folder() {
    registered();
    for vector in read_vectors().into_iter().filter(|v| v.bundle.is_none() && v.width < 500) {
        let image = image::open(folder("vectors").join(&vector.file)).unwrap();
        assert_eq!((image.width(), image.height()), (vector.width, vector.height), "{}", vector.file);
    }
}

/// One colour in Display P3, as it is in the file and as `image` gets it.
fn wide(colour: [u8; 3]) -> (DynamicImage, image_sdl::Metadata) {
    let image = DynamicImage::ImageRgb8(image::RgbImage::from_pixel(32, 32, image::Rgb(colour)));
    let icc = Some(profile(&ColorProfile::new_display_p3()));
    (image, image_sdl::Metadata { icc, ..image_sdl::Metadata::default() })
}

#[test]
fn a_picture_becomes_a_dynamic_image_in_its_profile_with_alpha_and_without() {
    let (image, metadata) = wide([180, 60, 60]);
    for image in [image.clone(), DynamicImage::ImageRgba8(image.to_rgba8())] {
        let picture = image_sdl::encode_dynamic(&image, metadata.clone()).unwrap();
        assert!(picture.pixels()[0] > 185, "the pixels of a picture are sRGB");
        let back = image_sdl::decode_dynamic(picture).unwrap();
        assert!(back.as_bytes().iter().zip(image.as_bytes()).all(|(a, b)| a.abs_diff(*b) <= 1));
    }
}

#[test]
fn a_profile_without_a_way_back_is_converted_from_and_left_out() {
    // As scanners have it: tables to Lab alone, here of some other colours.
    let mut scanner = ColorProfile::new_srgb();
    (scanner.red_trc, scanner.green_trc, scanner.blue_trc) = (None, None, None);
    scanner.red_colorant = moxcms::Xyzd::default();
    scanner.green_colorant = moxcms::Xyzd::default();
    scanner.blue_colorant = moxcms::Xyzd::default();
    scanner.cicp = None;
    scanner.pcs = moxcms::DataColorSpace::Lab;
    let corners =
        (0..8u16).flat_map(|corner| [1, 2, 4].map(|bit| if corner & bit == 0 { 0 } else { 20_000 }));
    let straight = || moxcms::LutStore::Store16([0, u16::MAX].repeat(3));
    scanner.lut_a_to_b_colorimetric = Some(moxcms::LutWarehouse::Lut(moxcms::LutDataType {
        num_input_channels: 3,
        num_output_channels: 3,
        num_clut_grid_points: 2,
        matrix: moxcms::Matrix3d::IDENTITY,
        num_input_table_entries: 2,
        num_output_table_entries: 2,
        input_table: straight(),
        clut_table: moxcms::LutStore::Store16(corners.collect()),
        output_table: straight(),
        lut_type: moxcms::LutType::Lut16,
    }));
    let metadata = image_sdl::Metadata { icc: Some(profile(&scanner)), ..image_sdl::Metadata::default() };
    let (image, _) = wide([60, 128, 200]);
    let picture = image_sdl::encode_dynamic(&image, metadata).unwrap();
    assert!(picture.pixels()[..3] != [60, 128, 200]);
    assert_eq!(picture.metadata.icc, None);
}

#[test]
fn samples_of_sixteen_bits_and_floats_are_converted_before_they_are_rounded() {
    let mut linear = ColorProfile::new_srgb();
    let line = Some(moxcms::ToneReprCurve::Lut(vec![]));
    (linear.red_trc, linear.green_trc, linear.blue_trc) = (line.clone(), line.clone(), line);
    linear.cicp = None;
    let metadata = image_sdl::Metadata { icc: Some(profile(&linear)), ..image_sdl::Metadata::default() };
    // All within the darkest hundredth, where 8 bits know three shades.
    let deep = image::ImageBuffer::from_fn(64, 1, |x, _| image::Rgb([(x * 10) as u16; 3]));
    let deep = DynamicImage::ImageRgb16(deep);
    for image in [deep.clone(), DynamicImage::ImageRgb32F(deep.to_rgb32f())] {
        let picture = image_sdl::encode_dynamic(&image, metadata.clone()).unwrap();
        let shades: std::collections::BTreeSet<u8> = picture.pixels().iter().copied().collect();
        assert!(shades.len() > 15, "{shades:?}");
    }
}

#[test]
fn the_smaller_of_two_memory_limits_counts() {
    let bytes = vector("photo-middle");
    let read = |given: u64, of_image: u64, options_first: bool| {
        let options = image_sdl::DecodeOptions::default().with_max_bytes(given);
        let mut limits = Limits::no_limits();
        limits.max_alloc = Some(of_image);
        let mut decoder = SdlDecoder::new(&bytes[..]).unwrap();
        if options_first {
            decoder = decoder.with_options(options.clone());
        }
        decoder.set_limits(limits).unwrap();
        if !options_first {
            decoder = decoder.with_options(options);
        }
        let mut pixels = vec![0; decoder.total_bytes() as usize];
        decoder.read_image(&mut pixels)
    };
    for first in [false, true] {
        assert!(read(1 << 30, 1 << 30, first).is_ok());
        assert!(matches!(read(1 << 30, 1000, first), Err(ImageError::Limits(_))));
        assert!(matches!(read(1000, 1 << 30, first), Err(ImageError::Limits(_))));
    }
}
