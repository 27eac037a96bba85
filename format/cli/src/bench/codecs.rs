//! The codecs: programs that encode and decode, with one setting that trades bytes for quality.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use clap::builder::PossibleValue;
use image::RgbImage;
use image_sdl::{Model, Settings};

use super::process::{Cost, Line};
use super::runner::short_digest;
use crate::failure::{Code, Failure};

/// The codecs that are known, in the order of reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Sdl(Setting),
    Jpeg,
    Webp,
    Avif,
    Jxl,
}

/// The settings of SDL that are measured each as a codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Setting {
    Default,
    /// The most quality for its bytes: an effort of 9.
    Slow,
    /// The bytes of the default, and the model's `natural` decoder.
    Natural,
}

impl ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Kind::Sdl(Setting::Default),
            Kind::Sdl(Setting::Slow),
            Kind::Sdl(Setting::Natural),
            Kind::Jpeg,
            Kind::Webp,
            Kind::Avif,
            Kind::Jxl,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Kind::Sdl(Setting::Slow) => "The most quality for its bytes: an effort of 9",
            Kind::Sdl(Setting::Natural) => "The same bytes as `sdl`, and the model's `natural` decoder",
            _ => return Some(PossibleValue::new(self.id())),
        };
        Some(PossibleValue::new(self.id()).help(help))
    }
}

impl Kind {
    /// For programs, and the extension of its files.
    pub fn id(self) -> &'static str {
        match self {
            Kind::Sdl(Setting::Default) => "sdl",
            Kind::Sdl(Setting::Slow) => "sdl-slow",
            Kind::Sdl(Setting::Natural) => "sdl-natural",
            Kind::Jpeg => "jpeg",
            Kind::Webp => "webp",
            Kind::Avif => "avif",
            Kind::Jxl => "jxl",
        }
    }

    /// The media type, where browsers show it.
    pub fn shown_by_browsers(self) -> Option<&'static str> {
        match self {
            Kind::Jpeg => Some("image/jpeg"),
            Kind::Webp => Some("image/webp"),
            Kind::Avif => Some("image/avif"),
            Kind::Sdl(_) | Kind::Jxl => None,
        }
    }

    /// The programs: encoder and decoder.
    pub fn programs(self) -> [&'static str; 2] {
        match self {
            Kind::Sdl(_) => ["sdl", "sdl"],
            Kind::Jpeg => ["cjpeg", "djpeg"],
            Kind::Webp => ["cwebp", "dwebp"],
            Kind::Avif => ["avifenc", "avifdec"],
            Kind::Jxl => ["cjxl", "djxl"],
        }
    }
}

/// A codec of this machine.
#[derive(Debug, Clone)]
pub(crate) struct Codec {
    pub kind: Kind,
    /// For people, such as `mozjpeg`.
    pub name: String,
    /// What may change its bytes or times: results of another version are not used.
    pub version: String,
    /// The encoder's settings, for people.
    pub options: String,
    /// What `sdl` is run as, with the options that choose its engine.
    engine: Option<(PathBuf, String)>,
    /// libavif before 1.0 has no quality from 0 to 100.
    avif_quantizer: bool,
    /// `-s` of avifenc.
    avif_speed: u8,
}

/// The slower one is for what it can do, the faster one for how long it takes.
const AVIF_SPEEDS: [u8; 2] = [4, 6];

/// Original pixels as files: what encoders read.
pub(crate) struct Source {
    pub ppm: PathBuf,
    pub png: PathBuf,
}

impl Codec {
    /// `None` where its programs are not there.
    pub fn find(kind: Kind) -> Option<Self> {
        let [encoder, decoder] = kind.programs();
        let question = match kind {
            Kind::Sdl(_) => return None,
            Kind::Jpeg | Kind::Webp => "-version",
            Kind::Avif | Kind::Jxl => "--version",
        };
        let words = Line::new(encoder).words(question).first_words()?;
        Line::new(decoder).words(question).first_words()?;
        let avif_quantizer = kind == Kind::Avif && words.contains("Version: 0.");
        let (name, options) = match kind {
            Kind::Jpeg if words.contains("mozjpeg") => ("mozjpeg", "4:2:0, progressive, optimised"),
            Kind::Jpeg => ("libjpeg-turbo", "4:2:0, progressive, optimised"),
            Kind::Webp => ("WebP", "-m 6"),
            Kind::Avif => ("AVIF", ""),
            Kind::Sdl(_) | Kind::Jxl => ("JPEG XL", "-e 7"),
        };
        let (name, options) = (name.to_owned(), options.to_owned());
        let version = version(kind, &words);
        let codec = Codec { kind, name, version, options, engine: None, avif_quantizer, avif_speed: 0 };
        Some(codec.with_avif_speed(AVIF_SPEEDS[0]))
    }

    fn with_avif_speed(mut self, speed: u8) -> Self {
        self.avif_speed = speed;
        if self.kind == Kind::Avif {
            self.options = format!("-s {speed}, 4:2:0");
        }
        self
    }

    /// With the settings that its time is taken with.
    pub fn for_speed(self) -> Self {
        self.with_avif_speed(AVIF_SPEEDS[1])
    }

    /// This program itself, with the built-in model. `arguments` choose the engine.
    pub fn sdl(kind: Kind, settings: &Settings, arguments: String) -> Result<Self, Failure> {
        let failed =
            |error: std::io::Error| Failure::new(Code::Io, format!("cannot read the program: {error}"));
        let program = std::env::current_exe().map_err(failed)?;
        let build = short_digest(std::fs::read(&program).map_err(failed)?);
        let model = Model::find("", settings.clone())?;
        let options = image_sdl::onnx::RunOptions {
            backend: settings.backend,
            provider: settings.provider.clone(),
            ..Default::default()
        };
        // The built-in model is bit-exact.
        let engine = match image_sdl::onnx::exact_engine(&options) {
            Some(vectors) => format!("the exact engine with {vectors}"),
            None => {
                let engine = image_sdl::onnx::engine_for(&options)?;
                format!("{} {}", engine.name(), engine.version())
            }
        };
        let label = model.bundle().manifest().label();
        let version = format!("{}, {label}, build {build}, {engine}", env!("CARGO_PKG_VERSION"));
        let (name, options) = match kind {
            Kind::Sdl(Setting::Slow) => ("SDL -e 9", "effort 9"),
            Kind::Sdl(Setting::Natural) => ("SDL natural", "effort 5, --decoder natural"),
            _ => ("SDL", "effort 5"),
        };
        Ok(Codec {
            kind,
            name: name.to_owned(),
            version,
            options: options.to_owned(),
            engine: Some((program, arguments)),
            avif_quantizer: false,
            avif_speed: 0,
        })
    }

    /// All settings from the smallest files to the largest.
    pub fn scale(&self) -> Vec<f64> {
        let whole = |range: std::ops::RangeInclusive<u32>| range.map(f64::from).collect::<Vec<_>>();
        match self.kind {
            Kind::Sdl(_) | Kind::Webp => whole(0..=100),
            Kind::Jpeg => whole(1..=100),
            Kind::Avif if self.avif_quantizer => whole(0..=63).into_iter().rev().collect(),
            Kind::Avif => whole(0..=99),
            // Distances in steps of about 3 %, with as many digits as a person would give.
            Kind::Jxl => (0..=160).map(|i| (25.0 * 0.97f64.powi(i) * 100.0).round() / 100.0).collect(),
        }
    }

    /// The settings of a curve of at most `points` points: about 0.05 to 1 bits a pixel on photographs, as far as the
    /// codec goes.
    pub fn ladder(&self, points: usize) -> Vec<f64> {
        let all: &[f64] = match self.kind {
            Kind::Sdl(_) => &[0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0],
            Kind::Jpeg => &[3.0, 5.0, 7.0, 10.0, 14.0, 19.0, 25.0, 32.0, 42.0, 54.0, 66.0],
            Kind::Webp => &[0.0, 2.0, 5.0, 10.0, 17.0, 26.0, 36.0, 48.0, 60.0, 72.0, 80.0],
            Kind::Avif if self.avif_quantizer => {
                &[63.0, 61.0, 58.0, 54.0, 50.0, 46.0, 42.0, 38.0, 33.0, 27.0, 21.0]
            }
            Kind::Avif => &[0.0, 4.0, 9.0, 15.0, 21.0, 27.0, 34.0, 41.0, 49.0, 58.0, 67.0],
            Kind::Jxl => &[25.0, 20.0, 16.0, 13.0, 10.0, 8.0, 6.3, 5.0, 3.9, 3.0, 2.2],
        };
        let points = points.clamp(2, all.len());
        (0..points).map(|i| all[(i * (all.len() - 1) + (points - 1) / 2) / (points - 1)]).collect()
    }

    /// The setting, for people and file names.
    pub fn label(&self, setting: f64) -> String {
        match self.kind {
            Kind::Avif if self.avif_quantizer => format!("cq{setting}"),
            Kind::Jxl => format!("d{setting}"),
            _ => format!("q{setting}"),
        }
    }

    pub fn encode(&self, source: &Source, setting: f64, file: &Path) -> Result<Cost, Failure> {
        self.encode_line(source, setting, file).run()
    }

    fn encode_line(&self, source: &Source, setting: f64, file: &Path) -> Line {
        let program = self.program(0);
        match self.kind {
            Kind::Sdl(_) => program
                .words(&format!("encode --quiet -j 1 -q {setting} {}", self.engine_options()))
                .words(match self.kind {
                    Kind::Sdl(Setting::Slow) => "-e 9",
                    Kind::Sdl(Setting::Natural) => "--decoder natural",
                    _ => "",
                })
                .path(&source.ppm)
                .words("-o")
                .path(file),
            Kind::Jpeg => program
                .words(&format!("-quality {setting} -sample 2x2 -progressive -optimize -outfile"))
                .path(file)
                .path(&source.ppm),
            Kind::Webp => {
                program.words(&format!("-quiet -m 6 -q {setting}")).path(&source.png).words("-o").path(file)
            }
            Kind::Avif if self.avif_quantizer => program
                .words(&format!("-s {} -j 1 -y 420 --min 0 --max 63", self.avif_speed))
                .words(&format!("-a end-usage=q -a cq-level={setting}"))
                .path(&source.png)
                .path(file),
            Kind::Avif => program
                .words(&format!("-s {} -j 1 -y 420 -q {setting}", self.avif_speed))
                .path(&source.png)
                .path(file),
            Kind::Jxl => program
                .path(&source.ppm)
                .path(file)
                .words(&format!("-d {setting} -e 7 --num_threads=1 --quiet")),
        }
    }

    /// To a picture that can be read, without compression.
    pub fn decode(&self, file: &Path, picture: &Path) -> Result<Cost, Failure> {
        let program = self.program(1);
        match self.kind {
            Kind::Sdl(_) => program
                .words(&format!("decode --quiet -j 1 {}", self.engine_options()))
                .path(file)
                .words("-o")
                .path(picture),
            Kind::Jpeg => program.words("-ppm -outfile").path(picture).path(file),
            Kind::Webp => program.words("-quiet -ppm").path(file).words("-o").path(picture),
            Kind::Avif => program.words("-j 1 --png-compress 0").path(file).path(picture),
            Kind::Jxl => program.path(file).path(picture).words("--num_threads=1 --quiet"),
        }
        .run()
    }

    /// All files of a folder to another one, for SDL: the others take one file.
    pub fn decode_folder(&self, from: &Path, to: &Path) -> Result<Cost, Failure> {
        let options = format!("decode --quiet -j 1 --output-format ppm {}", self.engine_options());
        self.program(1).words(&options).path(from).words("-o").path(to).run()
    }

    /// The pixels of an encoded file.
    pub fn pixels(&self, file: &Path) -> Result<RgbImage, Failure> {
        let folder = tempfile::tempdir().map_err(|error| Failure::new(Code::Io, error.to_string()))?;
        let picture = folder.path().join("out").with_extension(self.decoded_extension());
        self.decode(file, &picture)?;
        Ok(image::open(picture)?.into_rgb8())
    }

    /// The extension of what [`Codec::decode`] writes.
    pub fn decoded_extension(&self) -> &'static str {
        if self.kind == Kind::Avif { "png" } else { "ppm" }
    }

    /// The extension of what [`Codec::decode`] writes fastest.
    pub fn raw_extension(&self) -> &'static str {
        if self.kind == Kind::Avif { "y4m" } else { "ppm" }
    }

    fn program(&self, which: usize) -> Line {
        match &self.engine {
            Some((program, _)) => Line::new(program),
            None => Line::new(self.kind.programs()[which]),
        }
    }

    fn engine_options(&self) -> &str {
        self.engine.as_ref().map_or("", |(_, arguments)| arguments)
    }
}

/// The version in the first line that a program says of itself.
fn version(kind: Kind, words: &str) -> String {
    let words = words.split(" [AVX").next().unwrap_or(words);
    match kind {
        Kind::Jpeg => words.replace(" version", ""),
        Kind::Webp => format!("libwebp {words}"),
        Kind::Avif => {
            // Of the codecs that it lists, the one that encodes.
            let aom =
                words.split(", ").find(|part| part.contains("aom")).and_then(|part| part.rsplit(':').next());
            let own = words.trim_start_matches("Version: ").split(' ').next().unwrap_or(words);
            format!("libavif {own}, libaom {}", aom.unwrap_or("of an unknown version").trim_end_matches(')'))
        }
        Kind::Sdl(_) | Kind::Jxl => words.replace("cjxl", "libjxl"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn codec(kind: Kind, avif_quantizer: bool) -> Codec {
        let name = kind.id().to_owned();
        Codec {
            kind,
            name,
            version: String::new(),
            options: String::new(),
            engine: None,
            avif_quantizer,
            avif_speed: 4,
        }
    }

    #[test]
    fn ladders_climb_within_the_scale_and_keep_their_ends() {
        for kind in Kind::value_variants() {
            for quantizer in [false, true] {
                let codec = codec(*kind, quantizer);
                let scale = codec.scale();
                let rank = |setting: &f64| match codec.kind {
                    Kind::Jxl => -*setting,
                    _ => scale.iter().position(|s| s == setting).expect("a setting of the scale") as f64,
                };
                for points in [1, 2, 7, 11, 40] {
                    let ladder = codec.ladder(points);
                    assert_eq!(ladder.len(), points.clamp(2, 11));
                    assert!(
                        ladder.windows(2).all(|pair| rank(&pair[0]) < rank(&pair[1])),
                        "{kind:?}: {ladder:?}"
                    );
                    assert_eq!(ladder[0], codec.ladder(11)[0]);
                    assert_eq!(ladder.last(), codec.ladder(11).last());
                }
            }
        }
    }

    #[test]
    fn versions_are_read_from_what_the_programs_say() {
        let said = "Version: 0.11.1 (dav1d [dec]:1.0.0, libgav1 [dec]:0.18.0, aom [enc/dec]:v3.6.0, rav1e [enc]:0.5.1)";
        assert_eq!(version(Kind::Avif, said), "libavif 0.11.1, libaom v3.6.0");
        assert_eq!(version(Kind::Jxl, "cjxl v0.7.0 [AVX3,AVX2,SSE4]"), "libjxl v0.7.0");
        assert_eq!(
            version(Kind::Jpeg, "mozjpeg version 4.1.1 (build 20230101)"),
            "mozjpeg 4.1.1 (build 20230101)"
        );
        assert_eq!(version(Kind::Webp, "1.2.4"), "libwebp 1.2.4");
    }
}
