//! `sdl verify`: whether files are whole and decode to what was encoded.

use std::io::Cursor;
use std::path::PathBuf;

use clap::Args;
use image_sdl::{Alpha, DecodeOptions, Decoder, EXTENSION, Picture};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::args::{Bytes, EngineArgs, Jobs, ReportArgs};
use crate::batch::{self, Done, Words};
use crate::failure::Failure;
use crate::files::{self, Found};
use crate::models::Models;

#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// Files and folders of files; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// Decode the pixels too, and print the SHA-256 of their 8-bit sRGB samples and of the alpha plane
    #[arg(long)]
    pixels: bool,
    /// Threads; with many files, so many files at a time
    #[arg(short, long, value_name = "N|all", default_value = "all")]
    jobs: Jobs,
    /// Model, by name or path, for files that name it [default: the one that the file names]
    #[arg(long, value_name = "NAME|PATH")]
    model: Option<String>,
    /// Refuse pictures that need more
    #[arg(long, value_name = "BYTES[k|M|G]", default_value = "1Gi")]
    max_memory: Bytes,
    #[command(flatten)]
    engine: EngineArgs,
    #[command(flatten)]
    report: ReportArgs,
}

impl Verify {
    pub fn run(&self) -> Result<(), Failure> {
        let found = files::expand(&self.inputs, &|path| files::has_extension(path, &[EXTENSION]))?;
        let models = Models::new(self.engine.settings());
        if let Some(name) = &self.model {
            models.named(name)?;
        }
        let (workers, threads) = batch::share(self.jobs.count(), found.len());
        batch::run(
            &found,
            workers,
            &self.report,
            Words::Result,
            |found| found.input.name(),
            |found| self.one(found, &models, threads),
        )
    }

    fn one(&self, found: &Found, models: &Models, threads: usize) -> Result<Done, Failure> {
        let bytes = found.input.read(self.max_memory.0)?;
        let mut decoder = Decoder::new(Cursor::new(&bytes))?;
        let model = models.for_file(&mut decoder)?;
        let mut decoder = decoder.with_model(model);
        let options = DecodeOptions::default().with_threads(threads).with_max_bytes(self.max_memory.0);
        let name = found.input.name();
        // Decoding checks all that verifying checks.
        let (text, json) = if self.pixels {
            let picture = decoder.decode(&options)?;
            let (pixels, alpha) = sums(&picture);
            let alpha_text = alpha.as_ref().map_or_else(String::new, |sum| format!(", alpha sha256 {sum}"));
            (
                format!("{name}: OK, pixels sha256 {pixels}{alpha_text}"),
                json!({ "ok": true, "pixels_sha256": pixels, "alpha_sha256": alpha }),
            )
        } else {
            let tiles = decoder.verify(&options)?.tiles;
            let plural = if tiles == 1 { "" } else { "s" };
            (format!("{name}: OK, {tiles} tile{plural}"), json!({ "ok": true, "tiles": tiles }))
        };
        Ok(Done::new(text, json))
    }
}

/// SHA-256 of the pixels, and of the alpha plane in little-endian samples.
pub(crate) fn sums(picture: &Picture) -> (String, Option<String>) {
    let hex =
        |bytes: &[u8]| Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let alpha = picture.alpha().map(|alpha| match alpha {
        Alpha::Eight(samples) => hex(samples),
        Alpha::Sixteen(samples) => hex(&samples.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()),
        Alpha::Float(samples) => hex(&samples.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>()),
    });
    (hex(picture.pixels()), alpha)
}
