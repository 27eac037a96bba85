//! `sdl bench --speed`: what one picture of 1920x1080 costs in every codec, one thread each, in turns.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use image::RgbImage;
use image::imageops::replace;
use serde::Serialize;
use serde_json::json;

use super::codecs::{Codec, Kind, Setting};
use super::process::Cost;
use super::report::machine;
use super::runner::{Original, Runner, Work, short_digest};
use crate::failure::{Code, Failure};

const WIDTH: u32 = 1920;
const HEIGHT: u32 = 1080;
/// Bits a pixel of the first codec's file; the others get as many bytes.
const BPP: f64 = 0.25;
/// Pictures that one process decodes, where a codec's program takes many.
const AT_A_TIME: usize = 20;
/// An encoder is run, and many pictures are decoded, in one round of so many: they take long.
const RARE: usize = 3;

/// What a codec took.
#[derive(Debug, Serialize)]
pub(super) struct Taken {
    codec: &'static str,
    name: String,
    version: String,
    options: String,
    setting: String,
    bytes: u64,
    /// Medians of a process for each picture.
    decode: Cost,
    encode: Cost,
    /// Seconds for one of many pictures that one process decodes.
    decode_of_many: Option<f64>,
}

/// One file of one codec, ready to be decoded again and again.
struct Candidate<'a> {
    codec: &'a Codec,
    work: Work<'a>,
    setting: f64,
    file: PathBuf,
    bytes: u64,
    decode: Vec<Cost>,
    encode: Vec<Cost>,
    many: Vec<f64>,
}

/// The pictures side by side, from the top left, until the whole is full.
pub(super) fn mosaic(pictures: &[RgbImage]) -> Option<Original> {
    let mut pixels = RgbImage::new(WIDTH, HEIGHT);
    let mut next = pictures.iter().filter(|picture| picture.width() > 0 && picture.height() > 0).cycle();
    let mut top = 0;
    while top < HEIGHT {
        let (mut left, mut lowest) = (0, HEIGHT);
        while left < WIDTH {
            let picture = next.next()?;
            replace(&mut pixels, picture, left.into(), top.into());
            left += picture.width();
            lowest = lowest.min(picture.height());
        }
        // Whatever is lower than the lowest of a row is covered by the next one.
        top += lowest;
    }
    let digest = short_digest(pixels.as_raw());
    Some(Original { name: format!("{WIDTH}x{HEIGHT}"), pixels, digest })
}

/// Runs every codec `rounds` times, in turns; `done` is called for each.
pub(super) fn measure(
    runner: &Runner<'_>,
    original: &Original,
    codecs: &[Codec],
    rounds: usize,
    done: &dyn Fn(),
) -> Result<Vec<Taken>, Failure> {
    let mut candidates = Vec::<Candidate<'_>>::new();
    for codec in codecs {
        let work = Work::new(runner, original, codec)?;
        let bits = candidates.first().map(|first| first.bytes as f64 * 8.0 / f64::from(WIDTH * HEIGHT));
        let setting = work.nearest(bits.unwrap_or(BPP), &mut BTreeMap::new())?;
        let encoded = work.encode(setting)?;
        let (file, bytes) = (encoded.file, encoded.bytes);
        let (decode, encode, many) = (Vec::new(), Vec::new(), Vec::new());
        candidates.push(Candidate { codec, work, setting, file, bytes, decode, encode, many });
    }
    for round in 0..rounds {
        for candidate in &mut candidates {
            candidate.decode_once()?;
            if round % RARE == 0 {
                candidate.encode.push(candidate.work.encode(candidate.setting)?.cost);
                candidate.decode_many()?;
            }
            done();
        }
    }
    Ok(candidates.into_iter().map(Candidate::taken).collect())
}

impl Candidate<'_> {
    fn decode_once(&mut self) -> Result<(), Failure> {
        let picture = self.file.with_file_name("raw").with_extension(self.codec.raw_extension());
        remove(&picture)?;
        self.decode.push(self.codec.decode(&self.file, &picture)?);
        Ok(())
    }

    /// All by one process, if its program does that.
    fn decode_many(&mut self) -> Result<(), Failure> {
        if self.codec.kind != Kind::Sdl(Setting::Default) {
            return Ok(());
        }
        let [from, to] = ["many", "raws"].map(|name| self.file.with_file_name(name));
        for folder in [&from, &to] {
            if folder.exists() {
                std::fs::remove_dir_all(folder).map_err(|error| failed(folder, &error))?;
            }
        }
        std::fs::create_dir(&from).map_err(|error| failed(&from, &error))?;
        for at in 0..AT_A_TIME {
            let copy = from.join(format!("{at}.{}", self.codec.kind.id()));
            std::fs::copy(&self.file, &copy).map_err(|error| failed(&copy, &error))?;
        }
        self.many.push(self.codec.decode_folder(&from, &to)?.wall / AT_A_TIME as f64);
        Ok(())
    }

    fn taken(self) -> Taken {
        let Codec { kind, name, version, options, .. } = self.codec.clone();
        Taken {
            codec: kind.id(),
            name,
            version,
            options,
            setting: self.codec.label(self.setting),
            bytes: self.bytes,
            decode: medians(&self.decode),
            encode: medians(&self.encode),
            decode_of_many: (!self.many.is_empty()).then(|| median(self.many)),
        }
    }
}

fn failed(path: &Path, error: &std::io::Error) -> Failure {
    Failure::output(Code::Io, &path.display().to_string(), error)
}

/// So that every round writes a new file.
fn remove(path: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(path, &error)),
        _ => Ok(()),
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn medians(costs: &[Cost]) -> Cost {
    let of = |part: fn(&Cost) -> f64| median(costs.iter().map(part).collect());
    Cost {
        wall: of(|cost| cost.wall),
        cpu: of(|cost| cost.cpu),
        memory: costs.iter().map(|cost| cost.memory).max().unwrap_or_default(),
    }
}

/// The tables for people, and the same for programs.
pub(super) fn report(taken: &[Taken], rounds: usize) -> (String, serde_json::Value) {
    let machine = machine();
    let mut text = format!(
        "One picture of {WIDTH}x{HEIGHT}, one thread, {rounds} rounds in turns, medians of wall-clock time. {machine}\n\n\
         | codec | version | options | setting | bytes |\n|---|---|---|---|---|\n"
    );
    for Taken { name, version, options, setting, bytes, .. } in taken {
        let _ = writeln!(text, "| {name} | {version} | {options} | {setting} | {bytes} |");
    }
    let Some(first) = taken.first() else { return (text, json!(null)) };
    let mine = &first.name;
    let _ = write!(
        text,
        "\n| codec | decode | {mine} to it | {mine} of many to it | memory | encode | {mine} to it | memory |\n\
         |---|---|---|---|---|---|---|---|\n"
    );
    for (at, of) in taken.iter().enumerate() {
        let ratio =
            |mine: f64, other: f64| if at > 0 { format!("{:.2}", mine / other) } else { String::new() };
        let _ = writeln!(
            text,
            "| {} | {:.1} ms | {} | {} | {:.0} MB | {:.0} ms | {} | {:.0} MB |",
            of.name,
            1e3 * of.decode.wall,
            ratio(first.decode.wall, of.decode.wall),
            first.decode_of_many.map_or(String::new(), |many| ratio(many, of.decode.wall)),
            of.decode.memory as f64 / 1e6,
            1e3 * of.encode.wall,
            ratio(first.encode.wall, of.encode.wall),
            of.encode.memory as f64 / 1e6,
        );
    }
    if let Some(many) = first.decode_of_many {
        let _ = writeln!(
            text,
            "\n{mine} of many: {:.1} ms for each of {AT_A_TIME} pictures that one process decodes.",
            1e3 * many
        );
    }
    text += "\nDecoders write pixels without compression: AVIF as Y'CbCr (y4m), the others as RGB (PPM).\n";
    (text, json!({ "machine": machine, "rounds": rounds, "codecs": taken }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mosaic_is_full_whatever_the_sizes() {
        let picture = |width, height, level| RgbImage::from_pixel(width, height, image::Rgb([level; 3]));
        for pictures in [vec![picture(7, 500, 1)], vec![picture(768, 512, 1), picture(512, 768, 2)]] {
            let whole = mosaic(&pictures).expect("a picture").pixels;
            assert_eq!(whole.dimensions(), (WIDTH, HEIGHT));
            assert!(whole.pixels().all(|pixel| pixel.0[0] > 0));
        }
        assert!(mosaic(&[]).is_none());
        assert!(mosaic(&[RgbImage::new(0, 3)]).is_none());
    }

    #[test]
    fn the_median_is_of_the_middle() {
        assert_eq!(median(vec![5.0, 1.0, 3.0]), 3.0);
        assert_eq!(median(Vec::new()), 0.0);
    }
}
