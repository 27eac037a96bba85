//! `sdl compare`: files beside their original, on one page.

pub(crate) mod page;

use std::path::{Path, PathBuf};

use clap::Args;
use image::RgbImage;
use serde_json::json;

use crate::args::{EngineArgs, MeasuringArgs};
use crate::bench::metrics::{Measure, Metric, Scores};
use crate::bench::{decode_with_program, runner};
use crate::failure::{Code, Failure};
use crate::files::{self, Output, has_extension};
use crate::models::Models;
use crate::output;
use page::{Image, Item, Page};

pub(crate) const EXAMPLES: &str = "\
Examples:
  sdl compare photo.png photo.sdl photo.jpg           writes photo.compare.html
  sdl compare photo.png *.avif -o page.html

The page needs nothing but a browser. SDL, PNG, JPEG, WebP, TIFF, BMP, GIF, PNM, TGA and QOI are read here, AVIF by
`avifdec` and JPEG XL by `djxl` where those are installed. Bytes are those of the files as they are.";

#[derive(Debug, Args)]
pub(crate) struct Compare {
    /// The original
    #[arg(value_name = "ORIGINAL")]
    original: PathBuf,
    /// What was made of it
    #[arg(required = true, value_name = "FILES")]
    files: Vec<PathBuf>,
    /// The page [default: beside the original, ending in .compare.html]
    #[arg(short, long, value_name = "OUT")]
    output: Option<PathBuf>,
    /// Fail where the output exists
    #[arg(long)]
    no_overwrite: bool,
    #[command(flatten)]
    measuring: MeasuringArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl Compare {
    pub fn run(&self) -> Result<(), Failure> {
        let page = self.output.clone().unwrap_or_else(|| self.original.with_extension("compare.html"));
        let inputs = std::iter::once(&self.original).chain(&self.files).map(|path| files::identity(path));
        files::identity_apart(&page, &inputs.collect())?;
        let out = Output::File(page);
        out.check_free(self.no_overwrite)?;
        let settings = self.engine.settings();
        let measure = Measure::new(self.measuring.feature_model.as_deref(), &settings)?;
        let models = Models::new(settings);
        let original = self.read(&self.original, &models)?;
        let (mut codecs, mut items) = (Vec::new(), Vec::new());
        for path in &self.files {
            let name = path.display().to_string();
            let pixels = self.read(path, &models)?;
            let scores = measure.scores(&original, &pixels).map_err(|failure| failure.about(&name))?;
            let bytes = path.metadata().map_err(|error| Failure::input(&error).about(&name))?.len();
            let bpp = 8.0 * bytes as f64 / (f64::from(original.width()) * f64::from(original.height()));
            self.say(&name, bytes, bpp, &scores)?;
            codecs.push(json!({ "name": file_name(path), "about": name }));
            let (codec, image) = (items.len(), Some(Image::of(&pixels)?));
            items.push(Item { codec, label: String::new(), bytes, bpp, target: None, scores, image });
        }
        let metrics = page::measured(items.iter().map(|item| &item.scores));
        let mut page = Page::new(u64::MAX);
        let name = file_name(&self.original);
        page.add(&name, &original, items)?;
        let html = page.finish(&json!({
            "title": format!("{name}, compared"),
            "notes": [],
            "codecs": codecs,
            "metrics": page::metrics(&metrics),
            "targets": [],
        }))?;
        out.write(html.as_bytes(), self.no_overwrite)?;
        if !self.measuring.quiet {
            output::note(&format!("sdl: {} is the page", out.name()));
        }
        Ok(())
    }

    fn read(&self, path: &Path, models: &Models) -> Result<RgbImage, Failure> {
        let name = path.display().to_string();
        let pixels = if has_extension(path, &["avif", "jxl"]) {
            decode_with_program(path)
        } else {
            runner::read(path, name.clone(), models, self.measuring.max_memory.0)
                .map(|original| original.pixels)
        };
        pixels.map_err(|failure| failure.about(&name))
    }

    /// One line a file on standard output.
    fn say(&self, name: &str, bytes: u64, bpp: f64, scores: &Scores) -> Result<(), Failure> {
        if self.measuring.quiet {
            return Ok(());
        }
        let measured = |metric: Metric| {
            let value = metric.of(scores)?;
            Some(format!(", {} {value:.*}", metric.label(), metric.digits()))
        };
        let scores: String = Metric::ALL.into_iter().filter_map(measured).collect();
        output::result(&format!("{name}: {bytes} bytes ({bpp:.4} bpp){scores}"))
            .map_err(|error| Failure::output(Code::Io, "standard output", &error))
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}
