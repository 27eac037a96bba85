//! `sdl decode`: `.sdl` files to another format.

use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use image_sdl::{DecodeOptions, Decoder, EXTENSION, Synthesis};
use serde_json::json;

use crate::args::{Bytes, EngineArgs, Jobs, ReportArgs};
use crate::batch::{self, Done, Words};
use crate::failure::Failure;
use crate::files::{self, Job, Naming, Output};
use crate::models::Models;
use crate::progress::Line;
use crate::sink::{self, Format};

pub(crate) const EXAMPLES: &str = "\
Examples:
  sdl decode photo.sdl                      writes photo.png
  sdl decode photo.sdl photo.jpg
  sdl decode archive/ -o pictures/ --output-format webp
  sdl decode - --output-format ppm < photo.sdl | display -

ICC profile, Exif and XMP are written where the format takes them; what it does not take is said.
k, M and G are powers of 1000; Ki, Mi and Gi of 1024. `sdl --help` lists the exit codes.";

#[derive(Debug, Args)]
pub(crate) struct Decode {
    /// Files and folders of files; `-` is standard input. Of two names the last is the output unless it ends in .sdl or is
    /// a folder
    #[arg(required = true, value_name = "IN")]
    inputs: Vec<PathBuf>,
    /// File, or folder for many files, or `-` for standard output [default: beside the input]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Format to write: png, jpeg, webp (lossless), tiff, bmp, tga, qoi, ppm, pgm or pam [default: what the extension of
    /// OUT says, else png]
    #[arg(long, value_name = "FMT", ignore_case = true, hide_possible_values = true)]
    output_format: Option<Format>,
    /// Threads; with many files, so many files at a time
    #[arg(short, long, value_name = "N|all", default_value = "all")]
    jobs: Jobs,
    /// Model, by name or path, for files that name it [default: the one that the file names]
    #[arg(long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// Name outputs photo.sdl.png instead of photo.png
    #[arg(long)]
    keep_extension: bool,
    /// Fail where the output exists
    #[arg(long)]
    no_overwrite: bool,
    /// Refuse pictures that need more
    #[arg(long, value_name = "BYTES[k|M|G]", default_value = "1Gi")]
    max_memory: Bytes,
    /// Decoder of the model that makes the pixels: `fidelity` stays close to the source, `natural` looks better and is less close
    /// [default: the one that the file's author meant]
    #[arg(long, value_name = "fidelity|natural")]
    decoder: Option<Synthesis>,
    /// Steps of the denoiser, instead of those that the file says: fewer are faster, 0 is none. Files that are not to be denoised
    /// stay as they are
    #[arg(long, value_name = "N")]
    denoise_steps: Option<u8>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    report: ReportArgs,
}

/// Whether the last of two names is meant as an output.
fn is_output(path: &Path) -> bool {
    !path.is_dir() && !files::has_extension(path, &[EXTENSION])
}

impl Decode {
    pub fn run(&self) -> Result<(), Failure> {
        let naming = Naming {
            wanted: &|path| files::has_extension(path, &[EXTENSION]),
            extension: self.output_format.unwrap_or(Format::Png).extension(),
            append: self.keep_extension,
            is_output: &is_output,
            is_file: &|path| Format::from_path(path).is_some(),
        };
        let jobs = files::plan(&self.inputs, self.output.as_deref(), &naming)?;
        files::check_stdout(&jobs, self.report.json)?;
        let formats = jobs.iter().map(|job| self.format(&job.output)).collect::<Result<Vec<_>, _>>()?;
        let jobs: Vec<(Job, Format)> = jobs.into_iter().zip(formats).collect();
        let models = Models::new(self.engine.settings());
        if let Some(name) = &self.model {
            models.named(name)?;
        }
        files::stop_between_files(jobs.len());
        let (workers, threads) = batch::share(self.jobs.count(), jobs.len());
        batch::run(
            &jobs,
            workers,
            &self.report,
            Words::Report,
            |(job, _)| job.input.name(),
            |(job, format)| self.one(job, *format, &models, threads, &Line::new(jobs.len(), &self.report)),
        )
    }

    fn format(&self, output: &Output) -> Result<Format, Failure> {
        match (self.output_format, output) {
            (Some(format), _) => Ok(format),
            (None, Output::Stdout) => Ok(Format::Png),
            (None, Output::File(path)) => Format::from_path(path).ok_or_else(|| {
                Failure::usage(format!(
                    "{}: the extension names no format that can be written; use --output-format",
                    path.display()
                ))
            }),
        }
    }

    fn one(
        &self,
        job: &Job,
        format: Format,
        models: &Models,
        threads: usize,
        line: &Line,
    ) -> Result<Done, Failure> {
        let began = Instant::now();
        job.output.check_free(self.no_overwrite)?;
        let bytes = job.input.read(self.max_memory.0)?;
        let mut decoder = Decoder::new(Cursor::new(&bytes))?;
        let header = decoder.header().clone();
        let model = models.for_file(&mut decoder)?;
        let mut options = DecodeOptions::default().with_threads(threads).with_max_bytes(self.max_memory.0);
        options.synthesis = self.decoder;
        options.denoise_steps = self.denoise_steps;
        options.progress = line.listener();
        let started = Instant::now();
        let mut decoder = decoder.with_model(model);
        let picture = decoder.decode(&options)?;
        let coding = started.elapsed().as_secs_f64();
        let times = decoder.stage_times();
        let (width, height) = (picture.width(), picture.height());
        job.make_folder()?;
        let (written, notes) =
            job.output.write_with(self.no_overwrite, |out| sink::write(picture, format, out))?;
        files::count_finished();

        let pixels = u64::from(width) * u64::from(height);
        let size = bytes.len() as u64;
        let bpp = size as f64 * 8.0 / pixels as f64;
        let speed = pixels as f64 / 1e6 / coding.max(1e-9);
        let mut text = format!(
            "{} -> {}: {width}x{height}, {size} bytes ({bpp:.4} bpp) to {} bytes, {:.2} s, {speed:.2} MP/s",
            job.input.name(),
            job.output.name(),
            written,
            began.elapsed().as_secs_f64()
        );
        if self.report.verbose > 0 {
            text += &format!(
                "\n  hyper-synthesis {:.3} s, entropy {:.3} s, denoising {:.3} s, synthesis {:.3} s, decoding {:.3} s; {threads} thread(s)",
                times.hyper_synthesis.as_secs_f64(),
                times.entropy.as_secs_f64(),
                times.denoising.as_secs_f64(),
                times.synthesis.as_secs_f64(),
                times.total.as_secs_f64(),
            );
        }
        let json = json!({
            "output": job.output.name(),
            "format": format.extension(),
            "width": width,
            "height": height,
            "bytes": size,
            "bpp": bpp,
            "quality": header.quality,
            "model": header.bundle.to_string(),
            "output_bytes": written,
            "seconds": began.elapsed().as_secs_f64(),
            "megapixels_per_second": speed,
            "notes": notes,
        });
        Ok(Done { notes, size: Some((size, pixels)), ..Done::new(text, json) })
    }
}
