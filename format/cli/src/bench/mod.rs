//! `sdl bench`: SDL against the other codecs of this machine, on real file bytes.
//!
//! `codecs` are programs, run by `process`; `runner` fills `store` with what `metrics` measure; `report` makes curves,
//! `bdrate` figures, tables and the page of them. `speed` is a measurement of its own, of time alone.

mod bdrate;
mod codecs;
pub(crate) mod metrics;
mod process;
mod report;
pub(crate) mod runner;
mod speed;
mod store;

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::args::{Bytes, EngineArgs, Jobs, MeasuringArgs};
use crate::failure::{Code, Failure};
use crate::files::{self, Input};
use crate::models::Models;
use crate::{output, source};
use codecs::{Codec, Kind};
use metrics::Measure as Metrics;
pub(crate) use process::{MEASURE, Measure};
use report::{Measured, Report};
use runner::{Original, Plan, Runner};
use store::Store;

pub(crate) const EXAMPLES: &str = "\
Examples:
  sdl bench kodak/ -o results/
  sdl bench kodak/ -o results/ --codecs sdl,avif --points 5 --range 0.1:1
  sdl bench kodak/ -o results/ --codecs sdl,avif --speed

Other codecs are programs of this machine (cjpeg, cwebp, avifenc, cjxl and their decoders); those that are not there are
named and left out. What is measured is kept in OUT/results.jsonl: a run that was stopped goes on where it was, and a run
with a new build of sdl measures SDL alone. OUT gets bench.html (the page), bench.md (printed as well), bench.json and
bench.csv. Times mean something with one job on a machine that does nothing else.";

#[derive(Debug, Args)]
pub(crate) struct Bench {
    /// Pictures and folders of pictures
    #[arg(required = true, value_name = "FOLDER")]
    inputs: Vec<PathBuf>,
    /// Folder for the results
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
    /// Codecs to measure; the first one is compared with the others
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "sdl-slow,sdl,jpeg,webp,avif,jxl"
    )]
    codecs: Vec<Kind>,
    /// Points of every curve
    #[arg(long, value_name = "N", default_value_t = 7, value_parser = clap::value_parser!(u8).range(2..=11))]
    points: u8,
    /// Bits a pixel that BD-rates are taken over
    #[arg(long, value_name = "LOW:HIGH", default_value = "0.05:0.5")]
    range: Range,
    /// Bits a pixel at which all codecs are brought to the same bytes, picture by picture
    #[arg(long = "match", value_name = "BPP,...", value_delimiter = ',', default_value = "0.1,0.2,0.4",
          value_parser = positive)]
    targets: Vec<f64>,
    /// Measure time alone, in so many rounds: one picture of 1920x1080 made of those given, about 0.25 bits a pixel, the same bytes
    /// in every codec, one thread. OUT gets speed.md (printed as well) and speed.json
    #[arg(long, value_name = "ROUNDS", num_args = 0..=1, default_missing_value = "15",
          value_parser = clap::value_parser!(u16).range(1..))]
    speed: Option<u16>,
    /// Pictures at a time; times are only good with one
    #[arg(short, long, value_name = "N|all", default_value = "1")]
    jobs: Jobs,
    /// Largest page; pictures that do not fit into it are left out, the best ones first
    #[arg(long, value_name = "BYTES[k|M]", default_value = "64M")]
    page_size: Bytes,
    #[command(flatten)]
    measuring: MeasuringArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// A picture to measure.
struct Listed {
    path: PathBuf,
    /// For reports.
    name: String,
}

/// Bits a pixel, from and to.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Range([f64; 2]);

impl FromStr for Range {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let parse = |text: &str| positive(text).ok();
        match given.split_once(':').map(|(low, high)| (parse(low), parse(high))) {
            Some((Some(low), Some(high))) if low < high => Ok(Range([low, high])),
            _ => Err("give two rates in bits a pixel, such as 0.05:0.5".to_owned()),
        }
    }
}

fn positive(given: &str) -> Result<f64, String> {
    match given.parse::<f64>() {
        Ok(bits) if bits.is_finite() && bits > 0.0 => Ok(bits),
        _ => Err("give positive numbers of bits a pixel".to_owned()),
    }
}

impl Bench {
    pub fn run(&self) -> Result<(), Failure> {
        let pictures = self.pictures()?;
        let (codecs, absent) = self.find_codecs()?;
        let settings = self.engine.settings();
        let measure = Metrics::new(self.measuring.feature_model.as_deref(), &settings)?;
        let folder =
            |error: std::io::Error| Failure::output(Code::Io, &self.output.display().to_string(), &error);
        std::fs::create_dir_all(&self.output).map_err(folder)?;
        let output = self.output.canonicalize().map_err(folder)?;
        let store = Store::open(&output.join("results.jsonl"))?;
        clear_working_folders(&output);
        let mut targets = self.targets.clone();
        targets.sort_by(f64::total_cmp);
        targets.dedup();
        let plan = Plan { points: self.points.into(), targets, jobs: self.jobs.count() };
        let runner = Runner { plan: &plan, store: &store, measure: &measure, out: &output };
        let models = Models::new(settings);
        if let Some(rounds) = self.speed {
            return self.measure_speed(&runner, &pictures, codecs, &models, rounds.into());
        }
        let read = |picture: &Listed| {
            runner::read(&picture.path, picture.name.clone(), &models, self.measuring.max_memory.0)
        };
        let (measured, failed) = self.measure_all(&runner, &pictures, &codecs, &read);
        if measured.is_empty() {
            return Err(Failure::silent(failed.first().map_or(Code::Failure, |failed| failed.code)));
        }
        let mut report = Report::new(&runner, &codecs, &measured, self.range.0);
        report.notes.extend(absent.iter().map(|absent| format!("Left out: {absent}.")));
        if !measure.has_features() {
            report.notes.push(
                "SqueezeNet feature distance: not measured; --feature-model names its graph.".to_owned(),
            );
        }
        report.notes.extend(failed.iter().map(|failed| format!("Failed: {}", failed.message)));
        let text = report.write(&|index| read(&pictures[index]), self.page_size.0)?;
        if !self.measuring.quiet {
            output::result(&text).map_err(|error| Failure::output(Code::Io, "standard output", &error))?;
            output::note(&format!("sdl: {} is the page of it", output.join("bench.html").display()));
        }
        failed.first().map_or(Ok(()), |failed| Err(Failure::silent(failed.code)))
    }

    fn pictures(&self) -> Result<Vec<Listed>, Failure> {
        let wanted = |path: &Path| files::has_extension(path, source::EXTENSIONS);
        let found = files::expand(&self.inputs, &wanted)?;
        found
            .into_iter()
            .map(|found| match found.input {
                Input::File(path) => Ok(Listed { path, name: found.relative.display().to_string() }),
                Input::Stdin => {
                    Err(Failure::usage("give files or folders: a picture is read more than once"))
                }
            })
            .collect()
    }

    /// The codecs of this machine, and what is to be said of the others.
    fn find_codecs(&self) -> Result<(Vec<Codec>, Vec<String>), Failure> {
        let (mut found, mut absent): (Vec<Codec>, Vec<String>) = (Vec::new(), Vec::new());
        for kind in &self.codecs {
            if found.iter().any(|codec| codec.kind == *kind) {
                continue;
            }
            let codec = match kind {
                Kind::Sdl(_) => Some(Codec::sdl(*kind, &self.engine.settings(), self.engine.words())?),
                other => Codec::find(*other),
            };
            match codec {
                Some(codec) => found.push(codec),
                None => absent.push(format!("{} ({} not found)", kind.id(), kind.programs().join(" or "))),
            }
        }
        absent.iter().for_each(|absent| self.note(&format!("sdl: left out: {absent}")));
        if found.is_empty() {
            let known: Vec<_> = Kind::value_variants().iter().map(|kind| kind.id()).collect();
            return Err(Failure::usage(format!("no codec to measure; known are {}", known.join(", "))));
        }
        Ok((found, absent))
    }

    fn measure_speed(
        &self,
        runner: &Runner<'_>,
        pictures: &[Listed],
        codecs: Vec<Codec>,
        models: &Models,
        rounds: usize,
    ) -> Result<(), Failure> {
        let read = |picture: &Listed| {
            let read = runner::read(&picture.path, picture.name.clone(), models, self.measuring.max_memory.0);
            read.map(|original| original.pixels).map_err(|failure| failure.about(&picture.name))
        };
        let pictures = pictures.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let original = speed::mosaic(&pictures).ok_or_else(|| Failure::usage("there is no picture"))?;
        let codecs: Vec<_> = codecs.into_iter().map(Codec::for_speed).collect();
        let bar = self.bar(rounds * codecs.len());
        let taken = speed::measure(runner, &original, &codecs, rounds, &|| bar.inc(1))?;
        bar.finish_and_clear();
        let (text, json) = speed::report(&taken, rounds);
        report::save(runner.out, "speed.md", text.as_bytes())?;
        report::save(runner.out, "speed.json", format!("{json:#}\n").as_bytes())?;
        if self.measuring.quiet {
            return Ok(());
        }
        output::result(&text).map_err(|error| Failure::output(Code::Io, "standard output", &error))
    }

    /// The originals that could be read, and what failed.
    fn measure_all(
        &self,
        runner: &Runner<'_>,
        pictures: &[Listed],
        codecs: &[Codec],
        read: &(dyn Fn(&Listed) -> Result<Original, Failure> + Sync),
    ) -> (Vec<Measured>, Vec<Failure>) {
        let all: usize = pictures.len() * codecs.iter().map(|codec| runner.count(codec)).sum::<usize>();
        let bar = self.bar(all);
        let next = AtomicUsize::new(0);
        let measured = Mutex::new(Vec::new());
        let failures = Mutex::new(Vec::new());
        let fail = |name: &str, failure: Failure| {
            let failure = failure.about(name);
            bar.suspend(|| failure.print());
            failures.lock().unwrap_or_else(PoisonError::into_inner).push(failure);
        };
        let work = || {
            while let index = next.fetch_add(1, Ordering::Relaxed)
                && let Some(picture) = pictures.get(index)
            {
                let original = match read(picture) {
                    Ok(original) => original,
                    Err(failure) => {
                        fail(&picture.name, failure);
                        continue;
                    }
                };
                for codec in codecs {
                    bar.set_message(format!("{} {}", original.name, codec.name));
                    if let Err(failure) = runner.run(&original, codec, &|| bar.inc(1)) {
                        fail(&original.name, failure);
                    }
                }
                let Original { name, digest, .. } = original;
                let mut measured = measured.lock().unwrap_or_else(PoisonError::into_inner);
                measured.push(Measured { index, name, digest });
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..runner.plan.jobs.min(pictures.len()) {
                scope.spawn(work);
            }
        });
        bar.finish_and_clear();
        let mut measured = measured.into_inner().unwrap_or_else(PoisonError::into_inner);
        measured.sort_unstable_by_key(|picture| picture.index);
        (measured, failures.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn bar(&self, all: usize) -> ProgressBar {
        let show = !self.measuring.quiet && output::stderr_is_terminal();
        let target = if show { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len}, {elapsed} ({eta} left) {msg}");
        ProgressBar::with_draw_target(Some(all as u64), target)
            .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    fn note(&self, text: &str) {
        if !self.measuring.quiet {
            output::note(text);
        }
    }
}

/// The pixels of a file that another program of this machine reads: AVIF or JPEG XL.
pub(crate) fn decode_with_program(file: &Path) -> Result<image::RgbImage, Failure> {
    let kind = if files::has_extension(file, &[Kind::Avif.id()]) { Kind::Avif } else { Kind::Jxl };
    let codec = Codec::find(kind).ok_or_else(|| {
        Failure::new(Code::Failure, format!("{} is needed to read it", kind.programs().join(" with ")))
    })?;
    codec.pixels(file)
}

/// Removes what a run that was stopped left behind.
fn clear_working_folders(out: &Path) {
    let Ok(entries) = std::fs::read_dir(out) else { return };
    for entry in entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(runner::WORKING)) {
        // One that cannot be removed does no harm.
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_two_rates_in_order() {
        assert_eq!("0.05:0.5".parse(), Ok(Range([0.05, 0.5])));
        for wrong in ["", "0.1", "0.5:0.1", "0:1", "-1:1", "a:b", "0.1:inf", "0.1:0.1"] {
            assert!(wrong.parse::<Range>().is_err(), "{wrong}");
        }
    }
}
