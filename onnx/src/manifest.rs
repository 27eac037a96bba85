//! `bundle.toml`: what the numbers of a bundle mean.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::Error;

/// The manifest format written here, and the newest one read.
pub const FORMAT: i64 = 1;

/// The roles that graphs have in the pipeline.
pub mod role {
    /// Pixels to latent.
    pub const ANALYSIS: &str = "analysis";
    /// Latent to pixels.
    pub const SYNTHESIS: &str = "synthesis";
    /// Latent to pixels that look natural instead of being close; optional.
    pub const SYNTHESIS_NATURAL: &str = "synthesis.natural";
    /// Latent to hyper-latent; optional.
    pub const HYPER_ANALYSIS: &str = "hyper_analysis";
    /// Hyper-latent to the means of the latent; optional.
    pub const HYPER_SYNTHESIS: &str = "hyper_synthesis";
    /// A picture and what is missing from it when its latent is decoded, to what the latent should have more of; for encoders, optional.
    pub const CORRECTION: &str = "correction";
    /// One step of a diffusion model on the latent; optional.
    pub const DENOISER: &str = "denoiser";
}

/// One number for all channels, or one for each.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PerChannel {
    /// The same for all.
    All(f32),
    /// One for each channel.
    Each(Vec<f32>),
}

impl PerChannel {
    /// The number for a channel. Beyond the last one this is the last one; a checked manifest has them all.
    pub fn at(&self, channel: usize) -> f32 {
        match self {
            PerChannel::All(value) => *value,
            PerChannel::Each(values) => values.get(channel).or(values.last()).copied().unwrap_or(1.0),
        }
    }

    fn fits(&self, channels: usize, good: impl Fn(f32) -> bool) -> bool {
        match self {
            PerChannel::All(value) => good(*value),
            PerChannel::Each(values) => values.len() == channels && values.iter().all(|value| good(*value)),
        }
    }
}

/// The latent: (N, `channels`, H / `stride`, W / `stride`).
///
/// The analysis graph returns y; what is quantised is z = (y - shift) * scale, and the synthesis graph is given
/// y = z / scale + shift, as in diffusers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Latent {
    /// How many channels.
    pub channels: usize,
    /// How many pixels one position stands for, in each direction.
    pub stride: usize,
    /// The factor after the shift.
    #[serde(default = "one")]
    pub scale: PerChannel,
    /// What is taken off first.
    #[serde(default = "zero")]
    pub shift: PerChannel,
    /// The default step of the quantiser, in units of z.
    #[serde(default = "unit")]
    pub step: f32,
}

/// The pixels: what the graphs take and return.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Pixels {
    /// The values of black and white.
    #[serde(default = "unit_range")]
    pub range: [f32; 2],
    /// Absent: the synthesis graph returns (1, 3, H, W). p: it returns (1, H / p, W / p, p p 3), whose last axis is the
    /// block of p x p pixels at that position, row by row, red, green and blue of each together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packing: Option<usize>,
    /// Whether the synthesis graph returns the same bits everywhere.
    #[serde(default)]
    pub exact: bool,
}

impl Default for Pixels {
    fn default() -> Self {
        Pixels { range: unit_range(), packing: None, exact: false }
    }
}

/// How to cut a large picture, in latent positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tiling {
    /// How far from a position its pixels still depend on it.
    #[serde(default)]
    pub margin: usize,
    /// The native size of a tile; 0 is any.
    #[serde(default)]
    pub size: usize,
}

/// An input or output as a manifest gives it: its name, or its name and its number of dimensions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Port {
    /// The name alone.
    Name(String),
    /// Name and number of dimensions.
    Ranked {
        /// The name.
        name: String,
        /// The number of dimensions.
        rank: usize,
    },
}

impl Port {
    /// The name.
    pub fn name(&self) -> &str {
        match self {
            Port::Name(name) | Port::Ranked { name, .. } => name,
        }
    }

    /// The number of dimensions, if it is given.
    pub fn rank(&self) -> Option<usize> {
        match self {
            Port::Name(_) => None,
            Port::Ranked { rank, .. } => Some(*rank),
        }
    }
}

/// One graph.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphEntry {
    /// The ONNX file.
    pub file: String,
    /// Files of external data that it refers to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub external: Vec<String>,
    /// The inputs, in the order in which the pipeline gives them. Empty: not declared, then the order of the graph.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<Port>,
    /// The outputs, in the order in which the pipeline takes them. Empty: not declared, then the order of the graph.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<Port>,
}

/// Trained entropy tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Tables {
    /// The file; its content is not this crate's business.
    pub file: String,
}

/// The codebook of a VQ model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Codebook {
    /// The file: 32-bit floats, little-endian, (entries, channels), as the synthesis graph takes them.
    pub file: String,
}

/// What the denoiser predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    Epsilon,
    /// The velocity v = sqrt(abar) noise - sqrt(1 - abar) sample (Salimans and Ho 2022).
    V,
    /// The clean sample.
    Sample,
}

/// The noise schedule that a denoiser was trained with.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Schedule {
    /// Variances in even steps (Ho et al. 2020).
    Linear {
        /// The first variance.
        beta_start: f64,
        /// The last variance.
        beta_end: f64,
        /// How many steps.
        train_steps: usize,
    },
    /// Standard deviations in even steps (Stable Diffusion).
    ScaledLinear {
        /// The first variance.
        beta_start: f64,
        /// The last variance.
        beta_end: f64,
        /// How many steps.
        train_steps: usize,
    },
    /// Squared cosine, variances capped at 0.999 (Nichol and Dhariwal 2021, equation 17).
    Cosine {
        /// How many steps.
        train_steps: usize,
    },
    /// The cumulated products themselves.
    Table {
        /// abar for every step, falling.
        alphas_cumprod: Vec<f64>,
    },
}

/// No model has more steps than this; a manifest with more is refused before anything is allocated.
const MOST_STEPS: usize = 100_000;

impl Schedule {
    /// How many steps the schedule has.
    pub fn train_steps(&self) -> usize {
        match self {
            Schedule::Linear { train_steps, .. }
            | Schedule::ScaledLinear { train_steps, .. }
            | Schedule::Cosine { train_steps } => *train_steps,
            Schedule::Table { alphas_cumprod } => alphas_cumprod.len(),
        }
    }

    /// abar of every step: how much of the variance at step t is signal, falling from nearly 1 to nearly 0.
    pub fn alphas_cumprod(&self) -> Vec<f64> {
        let product = |betas: &dyn Fn(usize) -> f64| {
            let mut abar = 1.0;
            (0..self.train_steps())
                .map(|step| {
                    abar *= 1.0 - betas(step);
                    abar
                })
                .collect()
        };
        let between = |from: f64, to: f64, step: usize, steps: usize| {
            if steps < 2 { from } else { from + (to - from) * step as f64 / (steps - 1) as f64 }
        };
        match self {
            Schedule::Linear { beta_start, beta_end, train_steps } => {
                product(&|step| between(*beta_start, *beta_end, step, *train_steps))
            }
            Schedule::ScaledLinear { beta_start, beta_end, train_steps } => {
                product(&|step| between(beta_start.sqrt(), beta_end.sqrt(), step, *train_steps).powi(2))
            }
            Schedule::Cosine { train_steps } => {
                const OFFSET: f64 = 0.008;
                const LARGEST: f64 = 0.999;
                let signal = |step: usize| {
                    let time = step as f64 / *train_steps as f64;
                    ((time + OFFSET) / (1.0 + OFFSET) * std::f64::consts::FRAC_PI_2).cos().powi(2)
                };
                product(&|step| (1.0 - signal(step + 1) / signal(step)).min(LARGEST))
            }
            Schedule::Table { alphas_cumprod } => alphas_cumprod.clone(),
        }
    }
}

/// A constant that the denoiser wants beside the latent and the timestep, such as the embedding of the empty prompt.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Condition {
    /// The input of the graph.
    pub input: String,
    /// The file: 32-bit floats, little-endian.
    pub file: String,
    /// The shape.
    pub shape: Vec<usize>,
}

/// The diffusion model on the latent. Its graph takes the noisy latent and the timestep, in this order, and then the
/// conditions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Denoiser {
    /// What it predicts.
    pub prediction: Prediction,
    /// The noise schedule it was trained with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Constant inputs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// The whole manifest. Fields that are not known here are passed over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of the manifest, [`FORMAT`].
    pub format: i64,
    /// A short name: `a-z`, `0-9`, `.`, `_`, `-`.
    pub name: String,
    /// The version of the model: letters, digits, `.`, `_`, `-`.
    #[serde(default = "first")]
    pub version: String,
    /// The licence of the weights.
    pub licence: String,
    /// Where the weights come from, in words.
    #[serde(default)]
    pub source: String,
    /// The revision of that source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// The generation number, if this is a built-in model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub builtin: Option<u8>,
    /// The latent.
    pub latent: Latent,
    /// The pixels.
    #[serde(default)]
    pub pixels: Pixels,
    /// How to cut large pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tiling: Option<Tiling>,
    /// The graphs by [`role`].
    pub graphs: BTreeMap<String, GraphEntry>,
    /// Trained entropy tables.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tables: Option<Tables>,
    /// The codebook of a VQ model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codebook: Option<Codebook>,
    /// The diffusion model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub denoiser: Option<Denoiser>,
    /// BLAKE3 sums of files, in hexadecimal, against damage.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sums: BTreeMap<String, String>,
}

fn one() -> PerChannel {
    PerChannel::All(1.0)
}

fn zero() -> PerChannel {
    PerChannel::All(0.0)
}

fn unit() -> f32 {
    1.0
}

fn unit_range() -> [f32; 2] {
    [0.0, 1.0]
}

fn first() -> String {
    "1".to_owned()
}

/// What is wrong with the text of a manifest. It quotes that text: no more of it than one wants to read, and nothing that a terminal
/// takes for a command.
fn shown(error: &toml::de::Error) -> String {
    const LONGEST: usize = 400;
    let message = error.to_string();
    let mut short = String::new();
    for c in message.chars() {
        if short.len() >= LONGEST {
            short.push_str("...");
            break;
        }
        if c.is_control() && c != '\n' {
            short.extend(c.escape_default());
        } else {
            short.push(c);
        }
    }
    short
}

impl Manifest {
    /// Reads and checks a manifest. `bundle` is for messages.
    pub fn parse(text: &str, bundle: &str) -> Result<Self, Error> {
        let wrong = |problem: String| Error::Manifest { bundle: bundle.to_owned(), problem };
        let table: toml::Table = text.parse().map_err(|error: toml::de::Error| wrong(shown(&error)))?;
        // Before anything else is looked at: a newer format may mean anything by the rest.
        let format = table.get("format").and_then(toml::Value::as_integer);
        match format {
            Some(FORMAT) => {}
            Some(found) if found > FORMAT => {
                return Err(Error::Newer { bundle: bundle.to_owned(), found, known: FORMAT });
            }
            Some(found) => return Err(wrong(format!("there is no format {found}"))),
            None => return Err(wrong("`format` is missing; for this program it is 1".to_owned())),
        }
        let manifest: Manifest = table.try_into().map_err(|error: toml::de::Error| wrong(shown(&error)))?;
        manifest.check().map_err(wrong)?;
        Ok(manifest)
    }

    /// The manifest as text.
    pub fn to_toml(&self) -> Result<String, Error> {
        toml::to_string(self)
            .map_err(|error| Error::Manifest { bundle: self.label(), problem: error.to_string() })
    }

    /// NAME@VERSION.
    pub fn label(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// Every file that the manifest names.
    pub(crate) fn files(&self) -> impl Iterator<Item = &str> {
        let graphs =
            self.graphs.values().flat_map(|graph| std::iter::once(&graph.file).chain(&graph.external));
        let conditions =
            self.denoiser.iter().flat_map(|denoiser| denoiser.conditions.iter().map(|given| &given.file));
        let tables = self.tables.iter().map(|tables| &tables.file);
        let codebook = self.codebook.iter().map(|codebook| &codebook.file);
        graphs.chain(conditions).chain(tables).chain(codebook).chain(self.sums.keys()).map(String::as_str)
    }

    /// Every text of somebody's own words, and what it is.
    fn texts(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let roles = self.graphs.keys().map(|role| ("graphs", role.as_str()));
        let ports = self.graphs.values().flat_map(|entry| entry.inputs.iter().chain(&entry.outputs));
        let conditions = self.denoiser.iter().flat_map(|denoiser| &denoiser.conditions);
        [("licence", self.licence.as_str()), ("source", &self.source)]
            .into_iter()
            .chain(self.revision.iter().map(|text| ("revision", text.as_str())))
            .chain(roles)
            .chain(ports.map(|port| ("inputs and outputs", port.name())))
            .chain(conditions.map(|condition| ("denoiser.conditions", condition.input.as_str())))
            .chain(self.files().map(|file| ("file names", file)))
            .chain(self.sums.values().map(|sum| ("sums", sum.as_str())))
    }

    fn check(&self) -> Result<(), String> {
        const LONGEST_NAME: usize = 64;
        const MOST_CHANNELS: usize = 4096;
        const LARGEST_STRIDE: usize = 256;
        let word = |text: &str, also: fn(&char) -> bool| {
            !text.is_empty()
                && text.len() <= LONGEST_NAME
                && !text.starts_with('.')
                && text
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c) || also(&c))
        };
        let must = |holds: bool, problem: &str| if holds { Ok(()) } else { Err(problem.to_owned()) };
        must(
            word(&self.name, |_| false),
            "`name` must be 1 to 64 of a-z, 0-9, `.`, `_`, `-`, and not start with `.`",
        )?;
        must(
            word(&self.version, char::is_ascii_uppercase),
            "`version` must be 1 to 64 letters, digits, `.`, `_`, `-`, and not start with `.`",
        )?;
        // They are shown on terminals, which take some of these characters for commands.
        for (key, text) in self.texts() {
            must(!text.chars().any(char::is_control), &format!("`{key}` must not have control characters"))?;
        }
        let Latent { channels, stride, scale, shift, step } = &self.latent;
        must((1..=MOST_CHANNELS).contains(channels), "`latent.channels` must be 1 to 4096")?;
        must((1..=LARGEST_STRIDE).contains(stride), "`latent.stride` must be 1 to 256")?;
        must(
            scale.fits(*channels, |scale| scale.is_finite() && scale > 0.0),
            "`latent.scale` must be one positive number, or one for each channel",
        )?;
        must(
            shift.fits(*channels, f32::is_finite),
            "`latent.shift` must be one finite number, or one for each channel",
        )?;
        must(step.is_finite() && *step > 0.0, "`latent.step` must be positive")?;
        let Pixels { range: [black, white], packing, .. } = &self.pixels;
        must(
            black.is_finite() && white.is_finite() && black < white,
            "`pixels.range` must be two rising numbers",
        )?;
        must(
            packing.is_none_or(|p| p > 0 && p <= *stride && stride.is_multiple_of(p)),
            "`pixels.packing` must divide `latent.stride`",
        )?;
        must(!self.graphs.is_empty(), "there must be at least one graph")?;
        if let Some(Denoiser { schedule: Some(schedule), .. }) = &self.denoiser {
            must(
                (1..=MOST_STEPS).contains(&schedule.train_steps()),
                "`denoiser.schedule` must have 1 to 100000 steps",
            )?;
            let rising =
                |beta_start: f64, beta_end: f64| beta_start > 0.0 && beta_start <= beta_end && beta_end < 1.0;
            must(
                match schedule {
                    Schedule::Linear { beta_start, beta_end, .. }
                    | Schedule::ScaledLinear { beta_start, beta_end, .. } => rising(*beta_start, *beta_end),
                    Schedule::Cosine { .. } => true,
                    Schedule::Table { alphas_cumprod } => {
                        alphas_cumprod.iter().all(|abar| *abar > 0.0 && *abar <= 1.0)
                            && alphas_cumprod.is_sorted_by(|a, b| a >= b)
                    }
                },
                "`denoiser.schedule` must have variances between 0 and 1 that do not fall",
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
        format = 1
        name = "taef2"
        licence = "MIT"
        something_new = 7
        [latent]
        channels = 2
        stride = 8
        scale = [0.5, 2]
        [graphs.synthesis]
        file = "synthesis.onnx"
        inputs = ["latent"]
        outputs = [{ name = "pixels", rank = 4 }]
        [graphs."synthesis.natural"]
        file = "natural.onnx"
        [denoiser]
        prediction = "epsilon"
        schedule = { kind = "scaled_linear", beta_start = 0.00085, beta_end = 0.012, train_steps = 1000 }
    "#;

    #[test]
    fn a_manifest_is_read_with_its_defaults_and_written_back() {
        let manifest = Manifest::parse(TEXT, "x").unwrap();
        assert_eq!(manifest.label(), "taef2@1");
        assert_eq!((manifest.latent.scale.at(0), manifest.latent.scale.at(1)), (0.5, 2.0));
        assert_eq!(manifest.latent.shift.at(1), 0.0);
        assert_eq!(manifest.pixels, Pixels { range: [0.0, 1.0], packing: None, exact: false });
        assert_eq!(manifest.graphs["synthesis"].outputs[0].rank(), Some(4));
        assert!(manifest.graphs.contains_key(role::SYNTHESIS_NATURAL));
        assert_eq!(Manifest::parse(&manifest.to_toml().unwrap(), "x").unwrap(), manifest);
    }

    #[test]
    fn the_schedule_of_stable_diffusion_is_the_one_its_formula_gives() {
        let manifest = Manifest::parse(TEXT, "x").unwrap();
        let abar = manifest.denoiser.unwrap().schedule.unwrap().alphas_cumprod();
        assert_eq!(abar.len(), 1000);
        // numpy: cumprod(1 - linspace(sqrt(0.00085), sqrt(0.012), 1000) ** 2), first and last.
        assert!((abar[0] - 0.999_15).abs() < 1e-6, "{}", abar[0]);
        assert!((abar[999] - 0.004_660_1).abs() < 1e-6, "{}", abar[999]);
    }

    #[test]
    fn a_newer_format_is_told_apart_from_a_wrong_one() {
        let message = |text: String| Manifest::parse(&text, "b.sdlm").unwrap_err().to_string();
        assert!(
            message(TEXT.replace("format = 1", "format = 2").replace("stride = 8", "stride = false"))
                .contains("newer version")
        );
        assert!(message(TEXT.replace("format = 1", "format = 0")).contains("no format 0"));
        assert!(message(TEXT.replace("format = 1", "")).contains("`format` is missing"));
        assert!(message(TEXT.replace("channels = 2", "channels = 0")).contains("latent.channels"));
        assert!(message(TEXT.replace("[0.5, 2]", "[0.5]")).contains("latent.scale"));
        assert!(message(TEXT.replace("\"taef2\"", "\"../up\"")).contains("`name`"));
        for (from, to) in [
            ("\"MIT\"", r#""MIT\u001b[2J""#),
            ("licence =", r#"source = "\u0007"\nlicence ="#),
            ("\"latent\"", r#""\u001b]0;x""#),
            ("synthesis.natural", r#"\u009b"#),
        ] {
            let message = message(TEXT.replace(from, &to.replace("\\n", "\n")));
            assert!(message.contains("must not have control characters"), "{message}");
        }
        let quoted =
            message(TEXT.replace("format = 1", &format!("format = \u{1b}[2J{}", "x".repeat(10_000))));
        assert!(quoted.len() < 1000 && !quoted.contains('\u{1b}'), "{quoted}");
        assert!(message(TEXT.replace("= 0.012", "= 1.2")).contains("denoiser.schedule"));
        assert!(message("format = 1".to_owned()).contains("bundle b.sdlm, bundle.toml: "));
    }
}
