//! `sdl encode`: pictures to `.sdl` files.

use std::path::PathBuf;
use std::time::Instant;

use clap::{Args, ValueEnum};
use image::ImageFormat;
use image_sdl::{Denoise, EXTENSION, EncodeOptions, LatentMethod, Model, Rate, Synthesis, encode_with};
use serde_json::json;

use crate::args::{Bytes, EngineArgs, Jobs, ReportArgs};
use crate::batch::{self, Done, Words};
use crate::failure::Failure;
use crate::files::{self, Job, Naming};
use crate::models::Models;
use crate::progress::Line;
use crate::source::{self, Reading, Strip};

pub(crate) const EXAMPLES: &str = "\
Examples:
  sdl encode photo.jpg                      writes photo.sdl
  sdl encode photo.jpg small.sdl -q 20
  sdl encode holiday/ -o archive/ -j all    a folder with the folders in it
  sdl encode photo.png --target-size 8k
  convert photo.heic png:- | sdl encode - > photo.sdl

-q runs from 0 (smallest) to 100 (the best that the model can do, not lossless).
Pictures are read as PNG, JPEG, WebP, TIFF, BMP, GIF, PNM, TGA, QOI and SDL.
ICC profile, Exif and XMP are kept.
k, M and G are powers of 1000; Ki, Mi and Gi of 1024. `sdl --help` lists the exit codes.";

#[derive(Debug, Args)]
pub(crate) struct Encode {
    /// Pictures and folders of pictures; `-` is standard input. Of two names the last is the output if it ends in .sdl or
    /// is `-`
    #[arg(required = true, value_name = "IN")]
    inputs: Vec<PathBuf>,
    /// File, or folder for many files, or `-` for standard output [default: beside the input]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Quality, 0 (smallest) to 100 (best)
    #[arg(short, long, value_name = "0..100", default_value_t = image_sdl::DEFAULT_QUALITY, value_parser = clap::value_parser!(u8).range(0..=100))]
    quality: u8,
    /// At most so many bytes a file, metadata counted; up to ten candidates are encoded for it, which takes long from an effort of 6 on
    #[arg(long, value_name = "BYTES[k|M]", conflicts_with_all = ["quality", "target_bpp"])]
    target_size: Option<Bytes>,
    /// At most so many bits a pixel, the whole file counted
    #[arg(long, value_name = "B", conflicts_with = "quality", value_parser = positive)]
    target_bpp: Option<f64>,
    /// How much to try, 1 (fastest) to 9: 1 and 2 round to the nearest, 3 and 4 weigh errors against bits, 5 corrects the latent once, 6
    /// to 9 refine it in 3, 6, 12 and 24 steps, which takes seconds. At the same --quality these files are better, and may be larger; for
    /// the same picture 9 needs 2 to 6 % fewer bits than 5
    #[arg(short, long, value_name = "1..9", default_value_t = image_sdl::DEFAULT_EFFORT, value_parser = clap::value_parser!(u8).range(1..=9))]
    effort: u8,
    /// Threads; with many files, so many files at a time
    #[arg(short, long, value_name = "N|all", default_value = "all")]
    jobs: Jobs,
    /// Leave metadata out; without a profile pixels are sRGB, without Exif they are turned upright
    #[arg(long, value_name = "all|exif|xmp|icc", num_args = 0..=1, require_equals = true, value_delimiter = ',',
          default_missing_value = "all", hide_possible_values = true)]
    strip: Vec<Part>,
    /// Model, by name or path; see `sdl model list` [default: the built-in one]
    #[arg(long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// Format of the input, where its content does not tell (tga)
    #[arg(long, value_name = "FMT", value_parser = input_format)]
    input_format: Option<ImageFormat>,
    /// Name outputs photo.jpg.sdl instead of photo.sdl
    #[arg(long)]
    keep_extension: bool,
    /// Fail where the output exists
    #[arg(long)]
    no_overwrite: bool,
    /// Refuse files of more bytes, and pictures whose samples take more once they are read. The encoder's own memory, at the default
    /// effort about 24 bytes a pixel, is not counted
    #[arg(long, value_name = "BYTES[k|M|G]", default_value = "4Gi")]
    max_memory: Bytes,
    /// Decoder of the model that the file shall be shown with
    #[arg(long, value_name = "fidelity|natural", default_value = "fidelity", hide_default_value = true)]
    decoder: Synthesis,
    /// How a model without tables of its own codes its latent [default: what the model is made for]
    #[arg(long, value_name = "scalar|palette|codebook", hide_possible_values = true)]
    method: Option<MethodName>,
    /// With --method palette: spread errors over neighbours (Floyd and Steinberg)
    #[arg(long)]
    dither: bool,
    /// Whether the file is denoised when it is decoded, if the model has a denoiser: `off`, or a part of its noise schedule and a
    /// number of steps, such as 0.04:4 [default: as the quantiser needs it; -e 8 tries what is best]
    #[arg(long, value_name = "auto|off|STRENGTH:STEPS", default_value = "auto", hide_default_value = true,
          value_parser = denoise)]
    denoise: Denoise,
    /// A whole recipe: sd-2022 is 256 vectors of 8 bits, dithered, and 4 denoising steps at strength 0.04 where the model has a denoiser
    #[arg(long, value_name = "NAME", conflicts_with_all = ["method", "dither", "denoise", "quality", "target_size", "target_bpp"])]
    preset: Option<Preset>,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    report: ReportArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    All,
    Exif,
    Xmp,
    Icc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum MethodName {
    Scalar,
    Palette,
    Codebook,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Preset {
    #[value(name = "sd-2022")]
    Sd2022,
}

fn denoise(given: &str) -> Result<Denoise, String> {
    match given {
        "auto" => return Ok(Denoise::Auto),
        "off" => return Ok(Denoise::Off),
        _ => {}
    }
    let parts = given.split_once(':').and_then(|(strength, steps)| {
        let strength =
            strength.parse().ok().filter(|strength| (f32::MIN_POSITIVE..1.0).contains(strength))?;
        Some(Denoise::Strength(strength, steps.parse().ok().filter(|steps| *steps > 0)?))
    });
    parts.ok_or_else(|| {
        "give auto, off, or a strength below 1 and a number of steps, such as 0.04:4".to_owned()
    })
}

fn positive(given: &str) -> Result<f64, String> {
    match given.parse::<f64>() {
        Ok(bits) if bits.is_finite() && bits > 0.0 => Ok(bits),
        _ => Err("give a positive number".to_owned()),
    }
}

fn input_format(given: &str) -> Result<ImageFormat, String> {
    ImageFormat::from_extension(given)
        .filter(ImageFormat::reading_enabled)
        .ok_or_else(|| format!("no known format; known are {}", source::EXTENSIONS.join(", ")))
}

impl Encode {
    pub fn run(&self) -> Result<(), Failure> {
        let out = self.output.as_deref();
        let naming = Naming {
            wanted: &|path| files::has_extension(path, source::EXTENSIONS),
            extension: EXTENSION,
            append: self.keep_extension,
            is_output: &|path| files::has_extension(path, &[EXTENSION]),
            is_file: &|path| files::has_extension(path, &[EXTENSION]),
        };
        let jobs = files::plan(&self.inputs, out, &naming)?;
        files::check_stdout(&jobs, self.report.json)?;
        let models = Models::new(self.engine.settings());
        let model = models.named(self.model.as_deref().unwrap_or_default())?;
        files::stop_between_files(jobs.len());
        let (workers, threads) = batch::share(self.jobs.count(), jobs.len());
        batch::run(
            &jobs,
            workers,
            &self.report,
            Words::Report,
            |job| job.input.name(),
            |job| self.one(job, &models, &model, threads, &Line::new(jobs.len(), &self.report)),
        )
    }

    fn rate(&self) -> Rate {
        match (self.target_size, self.target_bpp) {
            (Some(Bytes(size)), _) => Rate::Size(size),
            (None, Some(bits)) => Rate::BitsPerPixel(bits),
            (None, None) => Rate::Quality(self.quality),
        }
    }

    fn strip(&self) -> Strip {
        let has = |part| self.strip.contains(&part) || self.strip.contains(&Part::All);
        Strip { icc: has(Part::Icc), exif: has(Part::Exif), xmp: has(Part::Xmp) }
    }

    /// What the user asked for, as far as it is no matter of the engine.
    fn options(&self, model: &Model, threads: usize) -> Result<EncodeOptions, Failure> {
        let mut options = EncodeOptions::default().with_effort(self.effort).with_threads(threads);
        options.rate = self.rate();
        options.synthesis = self.decoder;
        options.denoise = self.denoise;
        if self.dither && self.method != Some(MethodName::Palette) {
            return Err(Failure::usage("--dither is for --method palette"));
        }
        options.method = self.method.map(|method| match method {
            MethodName::Scalar => LatentMethod::Scalar,
            MethodName::Palette => LatentMethod::Palette { dither: self.dither },
            MethodName::Codebook => LatentMethod::Codebook,
        });
        Ok(match self.preset {
            Some(Preset::Sd2022) => options.with_preset_2022(model),
            None => options,
        })
    }

    fn one(
        &self,
        job: &Job,
        models: &Models,
        model: &Model,
        threads: usize,
        line: &Line,
    ) -> Result<Done, Failure> {
        let began = Instant::now();
        job.output.check_free(self.no_overwrite)?;
        let bytes = job.input.read(self.max_memory.0)?;
        let reading = Reading {
            format: self.input_format,
            strip: self.strip(),
            max_memory: self.max_memory.0,
            threads,
            models,
        };
        let (picture, notes) = source::read(&bytes, job.input.path(), &reading)?;
        let read = bytes.len();
        drop(bytes);
        let started = Instant::now();
        let mut options = self.options(model, threads)?;
        options.progress = line.listener();
        let encoded = encode_with(model, &picture, &options)?;
        let coding = started.elapsed().as_secs_f64();
        job.make_folder()?;
        job.output.write(&encoded.bytes, self.no_overwrite)?;
        files::count_finished();

        let (width, height) = (picture.width(), picture.height());
        let pixels = u64::from(width) * u64::from(height);
        let size = encoded.bytes.len() as u64;
        let bpp = size as f64 * 8.0 / pixels as f64;
        let speed = pixels as f64 / 1e6 / coding.max(1e-9);
        let mut text = format!(
            "{} -> {}: {width}x{height}, {size} bytes ({bpp:.4} bpp), quality {}, {:.2} s, {speed:.2} MP/s",
            job.input.name(),
            job.output.name(),
            encoded.quality,
            began.elapsed().as_secs_f64()
        );
        if self.report.verbose > 0 {
            if let Some(denoising) = encoded.denoising {
                text += &format!(
                    "\n  to be denoised from timestep {} in {} step(s)",
                    denoising.timestep, denoising.steps
                );
            }
            if let Some(error) = encoded.latent_error {
                text += &format!("\n  squared error of the latent {error:.5}");
            }
            let length = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
            text += &format!(
                "\n  read {read} bytes; ICC {}, Exif {}, XMP {} bytes; model {} on {}; effort {}, {threads} thread(s), \
                 coding {coding:.3} s",
                length(&picture.metadata.icc),
                length(&picture.metadata.exif),
                length(&picture.metadata.xmp),
                model.bundle().manifest().label(),
                model.settings().backend,
                self.effort,
            );
        }
        let json = json!({
            "output": job.output.name(),
            "width": width,
            "height": height,
            "bytes": size,
            "bpp": bpp,
            "quality": encoded.quality,
            "model": model.reference().to_string(),
            "latent_error": encoded.latent_error,
            "denoise": encoded.denoising.map(|d| json!({ "timestep": d.timestep, "steps": d.steps })),
            "seconds": began.elapsed().as_secs_f64(),
            "megapixels_per_second": speed,
            "notes": notes,
        });
        Ok(Done { notes, size: Some((size, pixels)), ..Done::new(text, json) })
    }
}
