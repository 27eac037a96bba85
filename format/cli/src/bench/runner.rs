//! Encodes, decodes and measures whatever is not among the results yet.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use image::RgbImage;
use image::codecs::pnm::{PnmEncoder, PnmSubtype, SampleEncoding};
use sha2::{Digest, Sha256};

use super::codecs::{Codec, Source};
use super::metrics::Measure;
use super::process::Cost;
use super::store::{Key, Row, Store};
use crate::failure::{Code, Failure};
use crate::models::Models;
use crate::source::{self, Reading, Strip};

/// An original.
pub(crate) struct Original {
    /// For reports.
    pub name: String,
    pub pixels: RgbImage,
    /// Of the pixels.
    pub digest: String,
}

/// Reads a picture as the pixels that codecs get: sRGB, 8 bits, upright, without alpha.
pub(crate) fn read(path: &Path, name: String, models: &Models, max_memory: u64) -> Result<Original, Failure> {
    let bytes = crate::files::Input::File(path.to_owned()).read(max_memory)?;
    let strip = Strip { icc: true, exif: true, xmp: true };
    let reading = Reading { format: None, strip, max_memory, threads: 0, models };
    let (picture, _) = source::read(&bytes, Some(path), &reading)?;
    let pixels = image_sdl::decode_dynamic(picture)?.into_rgb8();
    let digest = short_digest([&pixels.width().to_le_bytes(), pixels.as_raw().as_slice()].concat());
    Ok(Original { name, pixels, digest })
}

/// The first 8 bytes of a SHA-256 sum in hexadecimal digits.
pub(super) fn short_digest(bytes: impl AsRef<[u8]>) -> String {
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// What is to be measured on every picture.
pub(crate) struct Plan {
    pub points: usize,
    /// Bits a pixel at which every codec's file comes as near as it can.
    pub targets: Vec<f64>,
    pub jobs: usize,
}

pub(crate) struct Runner<'a> {
    pub plan: &'a Plan,
    pub store: &'a Store,
    pub measure: &'a Measure,
    /// The folder of results.
    pub out: &'a Path,
}

/// What was encoded, not yet decoded.
pub(super) struct Encoded {
    pub file: PathBuf,
    pub bytes: u64,
    pub cost: Cost,
}

impl Runner<'_> {
    /// How many results there are when all is done, for one picture in one codec.
    pub fn count(&self, codec: &Codec) -> usize {
        codec.ladder(self.plan.points).len() + self.plan.targets.len()
    }

    /// All results of a picture in a codec; `done` is called for each.
    pub fn run(&self, original: &Original, codec: &Codec, done: &dyn Fn()) -> Result<(), Failure> {
        let work = Work::new(self, original, codec)?;
        let mut sizes = BTreeMap::new();
        for setting in codec.ladder(self.plan.points) {
            let row = match self.known(&original.digest, codec, setting, None) {
                Some(row) => row,
                None => work.measure(work.encode(setting)?, setting, None)?,
            };
            sizes.insert(work.rank(setting), row.bytes);
            done();
        }
        for target in &self.plan.targets {
            if self.known(&original.digest, codec, 0.0, Some(*target)).is_none() {
                let setting = work.nearest(*target, &mut sizes)?;
                work.measure(work.encode(setting)?, setting, Some(*target))?;
            }
            done();
        }
        Ok(())
    }

    /// A result with everything that is measured now and the file that belongs to it.
    pub fn known(&self, digest: &str, codec: &Codec, setting: f64, target: Option<f64>) -> Option<Row> {
        let key = Key::new(digest, codec.kind.id(), &codec.version, setting, target);
        let row = self.store.get(&key)?;
        let complete = row.scores.feature_distance.is_some() || !self.measure.has_features();
        (complete && self.out.join(&row.file).is_file()).then_some(row)
    }
}

/// One picture and one codec, with the files between them.
pub(super) struct Work<'a> {
    runner: &'a Runner<'a>,
    original: &'a Original,
    codec: &'a Codec,
    scale: Vec<f64>,
    source: Source,
    /// Removed when the work is done.
    folder: tempfile::TempDir,
}

/// Prefix of folders that only a run that goes on needs.
pub(crate) const WORKING: &str = ".working-";

impl<'a> Work<'a> {
    pub fn new(runner: &'a Runner<'a>, original: &'a Original, codec: &'a Codec) -> Result<Self, Failure> {
        let io = |error: std::io::Error| Failure::new(Code::Io, format!("{}: {error}", runner.out.display()));
        let folder = tempfile::Builder::new().prefix(WORKING).tempdir_in(runner.out).map_err(io)?;
        let source = Source { ppm: folder.path().join("in.ppm"), png: folder.path().join("in.png") };
        // The name alone would give another format of the family, which few programs read.
        let ppm = File::create(&source.ppm).map_err(io)?;
        let subtype = PnmSubtype::Pixmap(SampleEncoding::Binary);
        original.pixels.write_with_encoder(PnmEncoder::new(ppm).with_subtype(subtype))?;
        original.pixels.save(&source.png)?;
        Ok(Work { runner, original, codec, scale: codec.scale(), source, folder })
    }

    /// The place of a setting on the scale, from small files to large ones; between two steps where it is none of them.
    fn rank(&self, setting: f64) -> usize {
        let rising = self.scale.first() < self.scale.last();
        self.scale.partition_point(|step| if rising { *step < setting } else { *step > setting })
    }

    pub fn encode(&self, setting: f64) -> Result<Encoded, Failure> {
        let file = self.folder.path().join("out").with_extension(self.codec.kind.id());
        let cost = self.codec.encode(&self.source, setting, &file)?;
        let bytes = file.metadata().map_err(|error| Failure::input(&error))?.len();
        Ok(Encoded { file, bytes, cost })
    }

    /// Decodes, measures, and keeps the file and the result.
    fn measure(&self, encoded: Encoded, setting: f64, target: Option<f64>) -> Result<Row, Failure> {
        let Work { runner, original, codec, .. } = self;
        let io = |error: std::io::Error| Failure::new(Code::Io, error.to_string());
        let picture = self.folder.path().join("out").with_extension(codec.decoded_extension());
        let decode = codec.decode(&encoded.file, &picture)?;
        let decoded = image::open(&picture)?.into_rgb8();
        let scores = runner.measure.scores(&original.pixels, &decoded)?;
        let id = codec.kind.id();
        // A name for every version: the results of an older one keep their files.
        let name =
            format!("{}-{}-{}.{id}", original.digest, codec.label(setting), short_digest(&codec.version));
        let kept = Path::new("files").join(id).join(name);
        let to = runner.out.join(&kept);
        std::fs::create_dir_all(to.parent().unwrap_or(&to)).map_err(io)?;
        std::fs::rename(&encoded.file, &to).map_err(io)?;
        let row = Row {
            picture: original.name.clone(),
            digest: original.digest.clone(),
            width: decoded.width(),
            height: decoded.height(),
            codec: codec.kind.id().to_owned(),
            version: codec.version.clone(),
            setting,
            target,
            file: kept.display().to_string(),
            bytes: encoded.bytes,
            scores,
            encode: encoded.cost,
            decode,
            jobs: runner.plan.jobs,
        };
        runner.store.put(row.clone())?;
        Ok(row)
    }

    /// The setting whose file comes nearest to `target` bits a pixel. `sizes` are known bytes by [`Work::rank`].
    pub fn nearest(&self, target: f64, sizes: &mut BTreeMap<usize, u64>) -> Result<f64, Failure> {
        let pixels = f64::from(self.original.pixels.width()) * f64::from(self.original.pixels.height());
        let wanted = target * pixels / 8.0;
        let top = self.scale.len() - 1;
        let below = sizes.iter().rev().find(|(_, bytes)| **bytes as f64 <= wanted);
        let above = sizes.iter().find(|(_, bytes)| **bytes as f64 > wanted);
        let mut low = below.map_or(0, |(rank, _)| *rank).min(top);
        let mut high = above.map_or(top, |(rank, _)| *rank).clamp(low, top);
        while high > low + 1 {
            let middle = low.midpoint(high);
            let bytes = self.size(middle, sizes)?;
            if bytes as f64 <= wanted { low = middle } else { high = middle }
        }
        let [at_low, at_high] = [self.size(low, sizes)?, self.size(high, sizes)?];
        let off = |bytes: u64| (bytes as f64 / wanted).ln().abs();
        Ok(self.scale[if off(at_low) <= off(at_high) { low } else { high }])
    }

    /// Bytes at a step of the scale, encoded if nothing is known of it.
    fn size(&self, rank: usize, sizes: &mut BTreeMap<usize, u64>) -> Result<u64, Failure> {
        if let Some(bytes) = sizes.get(&rank) {
            return Ok(*bytes);
        }
        let bytes = self.encode(self.scale[rank])?.bytes;
        sizes.insert(rank, bytes);
        Ok(bytes)
    }
}
