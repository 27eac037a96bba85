//! Conformance vectors: files, and the sums of what they must decode to.
//!
//! A sum is SHA-256 over the samples of the picture (8 bits, rows from the top, channels interleaved, no padding), then those
//! of the alpha plane (rows from the top; 16 and 32 bits little endian).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use image_sdl::onnx::Backend;
use image_sdl::{
    Alpha, BundleRef, Colour, Decoder, EncodeOptions, Error, LatentMethod, Metadata, Model, Picture,
    Synthesis, encode_with,
};
use moxcms::ColorProfile;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::pictures::{checkerboard, gradient, grey, photograph, scene, text};
use crate::{Random, blocks, built_in};

const INDEX: &str = "vectors.toml";
const PREFACE: &str = "\
# Written by `BLESS=1 cargo test -p sdl-tests`. `sha256` is over the samples (8 bits, rows from the top, channels interleaved),
# then those of the alpha plane (little endian). `bundle` is a folder in ../bundles; without it the built-in model decodes.

";

/// A folder of this crate.
#[must_use]
pub fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// Whether reference files shall be written anew: `BLESS=1`.
#[must_use]
pub fn bless() -> bool {
    std::env::var_os("BLESS").is_some_and(|value| value == "1")
}

/// A line of the index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vector {
    /// The file, without its folder.
    pub file: String,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Channels, and the depth of alpha.
    pub layout: String,
    /// The bundle, if it is not the built-in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    /// Sum of the samples.
    pub sha256: String,
    /// Sum of the profile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icc: Option<String>,
    /// Sum of the Exif block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exif: Option<String>,
    /// Sum of the XMP packet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub xmp: Option<String>,
}

impl Vector {
    /// The line for a decoded file.
    #[must_use]
    pub fn of(file: &str, bundle: Option<&str>, picture: &Picture) -> Self {
        let part = |part: &Option<Vec<u8>>| part.as_deref().map(sum);
        Vector {
            file: file.to_owned(),
            width: picture.width(),
            height: picture.height(),
            layout: layout(picture),
            bundle: bundle.map(str::to_owned),
            sha256: pixel_sum(picture),
            icc: part(&picture.metadata.icc),
            exif: part(&picture.metadata.exif),
            xmp: part(&picture.metadata.xmp),
        }
    }

    /// The bytes of the file.
    ///
    /// # Panics
    ///
    /// If it is not there.
    #[must_use]
    pub fn read(&self) -> Vec<u8> {
        let path = folder("vectors").join(&self.file);
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    }
}

/// SHA-256 in hexadecimal.
#[must_use]
pub fn sum(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The sum of a picture's samples.
#[must_use]
pub fn pixel_sum(picture: &Picture) -> String {
    let mut bytes = picture.pixels().to_vec();
    match picture.alpha() {
        None => {}
        Some(Alpha::Eight(samples)) => bytes.extend(samples),
        Some(Alpha::Sixteen(samples)) => bytes.extend(samples.iter().flat_map(|s| s.to_le_bytes())),
        Some(Alpha::Float(samples)) => bytes.extend(samples.iter().flat_map(|s| s.to_le_bytes())),
    }
    sum(&bytes)
}

/// Channels, and the depth of alpha: `grey`, `rgb+alpha16`.
#[must_use]
pub fn layout(picture: &Picture) -> String {
    let colour = match picture.colour() {
        Colour::Grey => "grey",
        Colour::Rgb => "rgb",
    };
    picture.alpha().map_or_else(|| colour.to_owned(), |a| format!("{colour}+alpha{}", a.depth().bits()))
}

/// A decoder over any reader, given the bundle of this crate where the file names it.
///
/// # Errors
///
/// Those of [`Decoder::new`].
pub fn decoder<R: Read>(input: R, backend: Backend) -> Result<Decoder<R>, Error> {
    let decoder = Decoder::new(input)?;
    Ok(match decoder.header().bundle {
        BundleRef::Named(_) => decoder.with_model(blocks(backend)),
        BundleRef::BuiltIn(_) => decoder,
    })
}

/// The index.
///
/// # Panics
///
/// If it is missing or damaged.
#[must_use]
pub fn read_vectors() -> Vec<Vector> {
    let path = folder("vectors").join(INDEX);
    let text = std::fs::read_to_string(&path).expect("vectors.toml; BLESS=1 writes it");
    let mut tables: BTreeMap<String, Vec<Vector>> = toml::from_str(&text).expect("a sound vectors.toml");
    let vectors = tables.remove("vector").unwrap_or_default();
    assert!(!vectors.is_empty(), "vectors.toml lists nothing");
    vectors
}

/// How a vector is made.
pub struct Recipe {
    /// The name of the file, without its extension.
    pub name: &'static str,
    /// What is encoded.
    pub source: Picture,
    /// How.
    pub options: EncodeOptions,
    /// A folder in `bundles`, or the built-in model.
    pub bundle: Option<&'static str>,
}

/// Every vector there shall be.
///
/// # Panics
///
/// If the photograph is missing.
#[must_use]
pub fn recipes() -> Vec<Recipe> {
    let quality = |quality: u8| EncodeOptions::default().with_quality(quality);
    let natural = |level: u8| quality(level).with_synthesis(Synthesis::Natural);
    let palette = |level: u8, dither| quality(level).with_method(LatentMethod::Palette { dither });
    let built_in = |name, source, options| Recipe { name, source, options, bundle: None };
    let blocks = |name, source, options| Recipe { name, source, options, bundle: Some("blocks") };
    let mut duration = quality(30);
    duration.duration = Some(40_000);
    vec![
        built_in("1x1", gradient(1, 1), quality(50)),
        built_in("17x33", scene(17, 33), quality(50)),
        built_in("67x129", photograph(200, 60, 67, 129), quality(50)),
        built_in("grey", grey(&scene(90, 50)), quality(50)),
        built_in("grey-alpha8", with_alpha8(grey(&scene(40, 61))), quality(50)),
        built_in("rgba8", with_alpha8(scene(66, 45)), quality(50)),
        built_in("rgba16", with_alpha16(gradient(35, 34)), quality(50)),
        built_in("rgba-float", with_alpha_float(gradient(33, 18)), quality(50)),
        built_in("grey-alpha-float", with_alpha_float(grey(&scene(20, 19))), quality(20)),
        built_in("metadata", with_metadata(scene(48, 48)), quality(40)),
        built_in("text", text(120, 80), quality(60)),
        built_in("noise", checkerboard(64, 64), quality(60)),
        built_in("photo-lowest", photograph(0, 0, 360, 240), quality(0)),
        built_in("photo-middle", photograph(100, 40, 128, 96), quality(50)),
        built_in("photo-highest", photograph(140, 80, 48, 48), quality(100)),
        built_in("effort-1", photograph(0, 100, 96, 80), quality(40).with_effort(1)),
        built_in("effort-5", photograph(0, 100, 96, 80), quality(40).with_effort(5)),
        built_in("natural", photograph(60, 40, 200, 140), natural(30)),
        built_in("natural-grey", grey(&scene(50, 90)), natural(70)),
        built_in("natural-tiles", scene(1100, 40), natural(10)),
        built_in("duration", scene(32, 16), duration),
        built_in("tiles-across", scene(1100, 40), quality(10)),
        built_in("tiles-down", with_alpha8(scene(24, 1030)), quality(10)),
        built_in("tiles-four", scene(1030, 1030), quality(0)),
        blocks("blocks-1x1", gradient(1, 1), quality(50)),
        blocks("blocks-17x33", scene(17, 33), quality(50)),
        blocks("blocks-grey-alpha8", with_alpha8(grey(&scene(41, 23))), quality(50)),
        blocks("blocks-photo", photograph(60, 120, 101, 75), quality(50)),
        blocks("blocks-lowest", photograph(0, 0, 130, 90), quality(0)),
        blocks("blocks-highest", photograph(150, 110, 40, 30), quality(100)),
        blocks("blocks-tiles", scene(530, 520), quality(20)),
        blocks("blocks-palette", photograph(60, 120, 101, 75), palette(60, false)),
        blocks("blocks-dither", scene(530, 40), palette(50, true)),
        blocks("blocks-metadata", with_metadata(scene(30, 30)), quality(30)),
    ]
}

/// Makes every vector and the index.
///
/// # Panics
///
/// If one cannot be made or written.
pub fn write_vectors() {
    let backend = crate::backends()[0];
    let (ours, theirs) = (built_in(backend), blocks(backend));
    let out = folder("vectors");
    std::fs::create_dir_all(&out).expect("a folder for the vectors");
    let mut index: BTreeMap<&str, Vec<Vector>> = BTreeMap::new();
    for recipe in recipes() {
        let model: &Model = if recipe.bundle.is_some() { &theirs } else { &ours };
        let bytes = encode_with(model, &recipe.source, &recipe.options).expect(recipe.name).bytes;
        let picture = decoder(&bytes[..], backend)
            .and_then(|mut decoder| decoder.decode(&crate::options(backend, 1)))
            .expect(recipe.name);
        let file = format!("{}.sdl", recipe.name);
        std::fs::write(out.join(&file), &bytes).expect("a vector is written");
        index.entry("vector").or_default().push(Vector::of(&file, recipe.bundle, &picture));
    }
    let text = toml::to_string(&index).expect("an index");
    std::fs::write(out.join(INDEX), format!("{PREFACE}{text}")).expect("the index is written");
}

fn with_alpha8(picture: Picture) -> Picture {
    let (width, height) = (picture.width(), picture.height());
    let samples = (0..width * height).map(|i| (i % width * 5 / 2 + i / width / 4) as u8).collect();
    picture.with_alpha(Alpha::Eight(samples)).expect("a sample for each pixel")
}

fn with_alpha16(picture: Picture) -> Picture {
    let mut random = Random::new(16);
    let samples =
        (0..picture.width() * picture.height()).map(|i| (i * 50) as u16 ^ (random.draw() & 3) as u16);
    let samples = samples.collect();
    picture.with_alpha(Alpha::Sixteen(samples)).expect("a sample for each pixel")
}

fn with_alpha_float(picture: Picture) -> Picture {
    let width = picture.width();
    let samples = (0..width * picture.height()).map(|i| (i % width) as f32 / 8.0 - 0.5).collect();
    picture.with_alpha(Alpha::Float(samples)).expect("a sample for each pixel")
}

/// A profile, Exif that turns the picture, and XMP.
fn with_metadata(mut picture: Picture) -> Picture {
    picture.metadata = Metadata {
        icc: Some(crate::profile(&ColorProfile::new_display_p3())),
        exif: Some(crate::exif(6)),
        xmp: Some(b"<x:xmpmeta xmlns:x=\"adobe:ns:meta/\">SDL</x:xmpmeta>".to_vec()),
    };
    picture
}
