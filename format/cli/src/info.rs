//! `sdl info`: what a file holds. Reads every chunk and its checksum; no model is loaded.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::PathBuf;

use clap::Args;
use image_sdl::onnx::{self, Store, StoreEntry};
use image_sdl::{
    BundleRef, ChunkInfo, Decoder, Denoising, EXTENSION, Header, Metadata, Method, ReferenceName,
};
use serde_json::json;

use crate::args::ReportArgs;
use crate::batch::{self, Done, Words};
use crate::failure::Failure;
use crate::files::{self, Found, Input};

pub(crate) const SCHEMA: &str = "\
--json prints one object a file, one line each; fields may be added, these stay (`schema` is 1):
  file, width, height, colour (rgb|grey), bits, alpha_bits (null without), lossless, quality, bytes, bpp,
  method (trained|scalar|palette|codebook), tiles, duration_us (null without), natural,
  reference (the picture that a delta picture needs; null for others), denoise: timestep, steps (null without),
  model: reference, name (null where unknown), here,
  metadata: icc, exif, xmp (bytes before compression; 0 is none),
  chunks: a list of type, name, offset, bytes
A file that cannot be read has file, error and exit_code. `sdl --help` lists the exit codes.";

/// The chunk type of one tile of the latent.
const LATENT: &str = "latent tile";

#[derive(Debug, Args)]
pub(crate) struct Info {
    /// Files and folders of files; `-` is standard input
    #[arg(required = true, value_name = "FILE")]
    inputs: Vec<PathBuf>,
    #[command(flatten)]
    report: ReportArgs,
}

impl Info {
    pub fn run(&self) -> Result<(), Failure> {
        let found = files::expand(&self.inputs, &|path| files::has_extension(path, &[EXTENSION]))?;
        let here = Here::look();
        let many = found.len() > 1;
        batch::run(
            &found,
            1,
            &self.report,
            Words::Result,
            |found| found.input.name(),
            |found| self.one(found, many, &here),
        )
    }

    fn one(&self, found: &Found, many: bool, here: &Here) -> Result<Done, Failure> {
        let input: Box<dyn Read> = match &found.input {
            Input::Stdin => Box::new(io::stdin().lock()),
            Input::File(path) => {
                Box::new(BufReader::new(File::open(path).map_err(|error| Failure::input(&error))?))
            }
        };
        let mut decoder = Decoder::new(input)?;
        let header = decoder.header().clone();
        // A damaged file still says what its header knows.
        let metadata = decoder.metadata().cloned();
        let denoising = decoder.denoising().ok().flatten();
        let label = decoder.bundle_label().ok().flatten().map(str::to_owned);
        let reference = decoder.reference().ok().flatten();
        let (metadata, chunks, failure) = match metadata {
            Err(error) => (Metadata::default(), Vec::new(), Some(error.into())),
            Ok(metadata) => match decoder.into_chunks() {
                Err(error) => (metadata, Vec::new(), Some(error.into())),
                Ok(chunks) => (metadata, chunks, None),
            },
        };
        let about = About { header, reference, metadata, label, denoising, chunks };
        let mut text = about.text(here, failure.is_none(), self.report.verbose > 0);
        if many {
            text = format!("{}:\n{text}", found.input.name());
        }
        Ok(Done { failure, ..Done::new(text, about.json(here)) })
    }
}

/// The models on this machine, by what files call them.
struct Here {
    built_in: Option<(u8, String)>,
    stored: Vec<StoreEntry>,
}

impl Here {
    fn look() -> Self {
        let built_in = onnx::builtin().ok().and_then(|bundle| {
            let manifest = bundle.manifest();
            Some((manifest.builtin?, manifest.label()))
        });
        Here { built_in, stored: Store::from_environment().list() }
    }

    fn label(&self, reference: BundleRef) -> Option<String> {
        match reference {
            BundleRef::BuiltIn(generation) => {
                self.built_in.as_ref().filter(|(ours, _)| *ours == generation).map(|(_, label)| label.clone())
            }
            BundleRef::Named(id) => self
                .stored
                .iter()
                .find(|entry| entry.id.short() == id)
                .map(|entry| format!("{}@{}", entry.name, entry.version)),
        }
    }
}

struct About {
    header: Header,
    reference: Option<ReferenceName>,
    metadata: Metadata,
    /// What the file itself calls its bundle.
    label: Option<String>,
    denoising: Option<Denoising>,
    chunks: Vec<ChunkInfo>,
}

impl About {
    fn bpp(&self) -> f64 {
        let pixels = f64::from(self.header.width) * f64::from(self.header.height);
        f64::from(self.header.length) * 8.0 / pixels
    }

    fn tiles(&self) -> usize {
        self.chunks.iter().filter(|chunk| chunk.name() == LATENT).count()
    }

    fn metadata_sizes(&self) -> [(&'static str, usize); 3] {
        let length = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        let Metadata { icc, exif, xmp } = &self.metadata;
        [("ICC", length(icc)), ("Exif", length(exif)), ("XMP", length(xmp))]
    }

    fn text(&self, here: &Here, whole: bool, verbose: bool) -> String {
        let header = &self.header;
        let colour = if header.grey { "grey" } else { "RGB" };
        let alpha = header.alpha.map_or_else(String::new, |depth| format!(" + {}-bit alpha", depth.bits()));
        let mut text =
            format!("SDL image, {}x{}, lossy (neural), 8-bit {colour}{alpha}", header.width, header.height);
        let model = match here.label(header.bundle) {
            Some(label) => format!("{} ({label}), here", header.bundle),
            None => {
                let label = self.label.as_ref().map_or_else(String::new, |label| format!(" ({label})"));
                format!("{}{label}, not here", header.bundle)
            }
        };
        text += &format!("\nmodel:    {model}\nquality:  {}", header.quality);
        text += &format!("\nsize:     {} bytes, {:.4} bpp", header.length, self.bpp());
        text += &format!("\nlatent:   {}", header.method.name());
        if whole {
            text += &match self.tiles() {
                1 => ", 1 tile".to_owned(),
                tiles => format!(", {tiles} tiles"),
            };
            let parts: Vec<String> = self
                .metadata_sizes()
                .into_iter()
                .filter(|(_, bytes)| *bytes > 0)
                .map(|(name, bytes)| format!("{name} {bytes} bytes"))
                .collect();
            text += &format!(
                "\nmetadata: {}",
                if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
            );
        }
        if let Some(Denoising { timestep, steps }) = self.denoising {
            text += &format!("\ndenoise:  from timestep {timestep} in {steps} step(s)");
        }
        if header.natural {
            text += "\ndecoder:  natural";
        }
        if let Some(reference) = self.reference {
            text += &format!("\ndelta:    against picture {reference}; not decodable without it");
        }
        if let Some(duration) = header.duration {
            text += &format!("\nshown:    {:.6} s", f64::from(duration) / 1e6);
        }
        if verbose {
            for chunk in &self.chunks {
                text += &format!(
                    "\nchunk:    {} at {}, {} bytes, {}",
                    char::from(chunk.kind).escape_default(),
                    chunk.offset,
                    chunk.length,
                    chunk.name()
                );
            }
        }
        text
    }

    fn json(&self, here: &Here) -> serde_json::Value {
        let header = &self.header;
        let label = here.label(header.bundle);
        let [icc, exif, xmp] = self.metadata_sizes().map(|(_, bytes)| bytes);
        let chunks: Vec<_> = self
            .chunks
            .iter()
            .map(|chunk| {
                json!({
                    "type": char::from(chunk.kind).escape_default().to_string(),
                    "name": chunk.name(),
                    "offset": chunk.offset,
                    "bytes": chunk.length,
                })
            })
            .collect();
        json!({
            "width": header.width,
            "height": header.height,
            "colour": if header.grey { "grey" } else { "rgb" },
            "bits": 8,
            "alpha_bits": header.alpha.map(image_sdl::AlphaDepth::bits),
            "lossless": false,
            "quality": header.quality,
            "bytes": header.length,
            "bpp": self.bpp(),
            "method": match header.method {
                Method::Trained => "trained",
                Method::Scalar => "scalar",
                Method::Palette => "palette",
                Method::Codebook => "codebook",
                other => other.name(),
            },
            "tiles": self.tiles(),
            "duration_us": header.duration,
            "natural": header.natural,
            "reference": self.reference.map(|reference| reference.to_string()),
            "denoise": self.denoising.map(|d| json!({ "timestep": d.timestep, "steps": d.steps })),
            "model": { "reference": header.bundle.to_string(), "name": label.as_ref().or(self.label.as_ref()), "here": label.is_some() },
            "metadata": { "icc": icc, "exif": exif, "xmp": xmp },
            "chunks": chunks,
        })
    }
}
