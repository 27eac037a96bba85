//! Pictures in other formats, read with what they know of themselves.

use std::io::Cursor;
use std::path::Path;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};
use image_sdl::{
    DecodeOptions, Decoder, EXTENSION, Metadata, Picture, SIGNATURE, decode_dynamic, encode_dynamic,
};

use crate::failure::{Code, Failure};
use crate::files::has_extension;
use crate::models::Models;

/// Extensions of the formats that are read.
pub(crate) const EXTENSIONS: &[&str] = &[
    "png", "apng", "jpg", "jpeg", "jpe", "jfif", "webp", "tif", "tiff", "bmp", "dib", "gif", "pbm", "pgm",
    "ppm", "pnm", "pam", "tga", "qoi",
];

/// The longest side that a file can have.
const MAX_SIDE: u32 = 65_535;

/// What shall not go into the file.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Strip {
    pub icc: bool,
    pub exif: bool,
    pub xmp: bool,
}

/// How to read.
pub(crate) struct Reading<'a> {
    pub format: Option<ImageFormat>,
    pub strip: Strip,
    pub max_memory: u64,
    pub threads: usize,
    pub models: &'a Models,
}

/// A picture in sRGB with the metadata to keep, and what the user should know about it.
pub(crate) fn read(
    bytes: &[u8],
    path: Option<&Path>,
    reading: &Reading<'_>,
) -> Result<(Picture, Vec<String>), Failure> {
    let named_sdl = path.is_some_and(|path| has_extension(path, &[EXTENSION]));
    let strip = reading.strip;
    let mut notes = Vec::new();
    let mut picture = if bytes.starts_with(&SIGNATURE) || (named_sdl && reading.format.is_none()) {
        read_sdl(bytes, reading)?
    } else {
        let (mut image, mut metadata, orientation) = read_other(bytes, path, reading, &mut notes)?;
        // The orientation lives in Exif, the pixels stay as they are; where there is no Exif they are turned.
        if orientation != Orientation::NoTransforms && (strip.exif || metadata.exif.is_none()) {
            image.apply_orientation(orientation);
        }
        if let Some(problem) = metadata.icc.as_deref().and_then(|icc| misfit(icc, &image)) {
            notes.push(problem);
            metadata.icc = None;
        }
        let has_icc = metadata.icc.is_some();
        let picture = encode_dynamic(&image, metadata)?;
        if has_icc && picture.metadata.icc.is_none() {
            notes.push(
                "its ICC profile has no way back from sRGB: it is left out, the pixels are sRGB".to_owned(),
            );
        }
        picture
    };
    // Pixels are sRGB by now: without a profile they still mean the same.
    let metadata = &mut picture.metadata;
    for (drop, part) in
        [(strip.icc, &mut metadata.icc), (strip.exif, &mut metadata.exif), (strip.xmp, &mut metadata.xmp)]
    {
        if drop {
            *part = None;
        }
    }
    Ok((picture, notes))
}

/// An SDL file as a source: its pixels are in the form that the encoder takes.
fn read_sdl(bytes: &[u8], reading: &Reading<'_>) -> Result<Picture, Failure> {
    let mut decoder = Decoder::new(Cursor::new(bytes))?;
    let model = reading.models.for_file(&mut decoder)?;
    let options = DecodeOptions::default().with_threads(reading.threads).with_max_bytes(reading.max_memory);
    let mut picture = decoder.with_model(model).decode(&options)?;
    let turned = picture.metadata.exif.as_deref().and_then(Orientation::from_exif_chunk);
    match turned {
        Some(orientation) if reading.strip.exif && orientation != Orientation::NoTransforms => {
            let metadata = std::mem::take(&mut picture.metadata);
            // Without its profile on both ways: the pixels are sRGB, and stay so.
            let mut image = decode_dynamic(picture)?;
            image.apply_orientation(orientation);
            let mut picture = encode_dynamic(&image, Metadata::default())?;
            picture.metadata = metadata;
            Ok(picture)
        }
        _ => Ok(picture),
    }
}

fn read_other(
    bytes: &[u8],
    path: Option<&Path>,
    reading: &Reading<'_>,
    notes: &mut Vec<String>,
) -> Result<(DynamicImage, Metadata, Orientation), Failure> {
    let format = reading
        .format
        .or_else(|| image::guess_format(bytes).ok())
        .or_else(|| path.and_then(|path| ImageFormat::from_path(path).ok()))
        .ok_or_else(|| {
            let message = if bytes.is_empty() {
                "it is empty"
            } else {
                "its content is of no known picture format; name one with --input-format if it has none of its own"
            };
            Failure::new(Code::Corrupt, message)
        })?;
    if format == ImageFormat::Jpeg && !is_whole_jpeg(bytes) {
        return Err(Failure::new(
            Code::Corrupt,
            "the picture is damaged or cut short: the end of the JPEG is missing",
        ));
    }
    let mut limits = Limits::default();
    limits.max_alloc = Some(reading.max_memory);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits);
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    if width > MAX_SIDE || height > MAX_SIDE {
        let message = format!("it has {width}x{height} pixels; a side can have {MAX_SIDE}");
        return Err(Failure::new(Code::Limits, message));
    }
    let needed = decoder.total_bytes();
    if needed > reading.max_memory {
        let message = format!(
            "its {width}x{height} pixels need {needed} bytes, and the limit is {}; raise --max-memory if it can be \
             trusted",
            reading.max_memory
        );
        return Err(Failure::new(Code::Limits, message));
    }
    // Damaged metadata is no reason to lose the picture.
    let mut part = |name: &str, read: image::ImageResult<Option<Vec<u8>>>| {
        read.unwrap_or_else(|error| {
            notes.push(format!("its {name} cannot be read and is left out: {error}"));
            None
        })
    };
    let metadata = Metadata {
        icc: part("ICC profile", decoder.icc_profile()),
        exif: part("Exif", decoder.exif_metadata()),
        xmp: part("XMP", decoder.xmp_metadata()),
    };
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    if is_animated(bytes, format) {
        notes.push("it is animated; the first picture is taken".to_owned());
    }
    Ok((DynamicImage::from_decoder(decoder)?, metadata, orientation))
}

/// Whether a JPEG has its end, which its reader does without and fills the rest with grey. Only the segments tell it from that
/// of a preview within Exif, and from what cameras put behind the picture.
fn is_whole_jpeg(bytes: &[u8]) -> bool {
    /// Of the markers (ITU-T T.81, table B.1): end of image.
    const END: u8 = 0xd9;
    let mut at = 2;
    while let Some(marker) = bytes.get(at..at + 2) {
        at += match *marker {
            [0xff, END] => return true,
            // Frames, tables, scans, application data and comments say how long they are.
            [0xff, 0xc0..=0xcf | 0xda..=0xdf | 0xe0..=0xef | 0xfe] => {
                let Some(&[high, low]) = bytes.get(at + 2..at + 4) else { return false };
                2 + usize::from(u16::from_be_bytes([high, low]))
            }
            // Coded samples, in which a marker is never by chance.
            _ => 1,
        };
    }
    false
}

/// Whether there is more than one picture, where the file says so at its start.
fn is_animated(bytes: &[u8], format: ImageFormat) -> bool {
    use image::codecs::{png::PngDecoder, webp::WebPDecoder};
    match format {
        ImageFormat::Png => {
            PngDecoder::new(Cursor::new(bytes)).and_then(|decoder| decoder.is_apng()).unwrap_or(false)
        }
        ImageFormat::WebP => {
            WebPDecoder::new(Cursor::new(bytes)).is_ok_and(|decoder| decoder.has_animation())
        }
        // The loop count that every animation has.
        ImageFormat::Gif => {
            const LOOP: &[u8] = b"NETSCAPE2.0";
            bytes.windows(LOOP.len()).take(1 << 16).any(|window| window == LOOP)
        }
        _ => false,
    }
}

/// Why the profile does not belong to these pixels: readers convert CMYK, and its profile would be wrong from then on.
fn misfit(icc: &[u8], image: &DynamicImage) -> Option<String> {
    /// Where an ICC profile names its colour space (ICC.1, 7.2.6).
    const SPACE: std::ops::Range<usize> = 16..20;
    let space = icc.get(SPACE)?;
    let fits = if image.color().has_color() { space == b"RGB " } else { space == b"GRAY" };
    let name = String::from_utf8_lossy(space);
    (!fits).then(|| {
        format!("its ICC profile is for {}, its pixels are not: the profile is left out", name.trim())
    })
}
