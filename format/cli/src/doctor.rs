//! `sdl doctor`: which engine runs the models and why, what is missing, and whether it all works.

use std::time::Instant;

use clap::Args;
use image_sdl::onnx::{self, Backend, RunOptions, Store, Verdict};
use image_sdl::{Colour, DecodeOptions, EncodeOptions, Model, Picture, Settings, decode, encode_with};
use serde_json::{Value, json};

use crate::batch::SCHEMA;
use crate::failure::{Code, Failure};
use crate::output;
use crate::verify::sums;

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Print one JSON object on standard output
    #[arg(long)]
    json: bool,
}

const BACKENDS: [Backend; 2] = [Backend::OnnxRuntime, Backend::Rust];

impl Doctor {
    pub fn run(&self) -> Result<(), Failure> {
        let examined = Examined::now();
        let text = if self.json { examined.json().to_string() } else { examined.text() };
        output::result(&text).map_err(|error| Failure::output(Code::Io, "standard output", &error))?;
        if examined.healthy() { Ok(()) } else { Err(Failure::silent(Code::Model)) }
    }
}

/// What one engine did with the test picture.
struct Trial {
    backend: Backend,
    /// Name and version, or why there is none.
    engine: Result<String, String>,
    /// Bytes of the file, seconds to encode and to decode, and the sum of the pixels.
    outcome: Option<Result<Passed, String>>,
}

struct Passed {
    bytes: usize,
    encode: f64,
    decode: f64,
    pixels: String,
}

struct Examined {
    chosen: Result<Backend, String>,
    trials: Vec<Trial>,
    store: Store,
}

impl Examined {
    fn now() -> Self {
        let mut file = None;
        let trials = BACKENDS.into_iter().map(|backend| Trial::new(backend, &mut file)).collect();
        let chosen = onnx::auto_backend().map_err(|error| error.to_string());
        Examined { chosen, trials, store: Store::from_environment() }
    }

    fn passed(&self) -> impl Iterator<Item = &Passed> {
        self.trials.iter().filter_map(|trial| trial.outcome.as_ref()?.as_ref().ok())
    }

    /// Whether all engines that passed gave the same pixels; `None` where there are no two.
    fn agree(&self) -> Option<bool> {
        let sums: Vec<&String> = self.passed().map(|passed| &passed.pixels).collect();
        (sums.len() > 1).then(|| sums.windows(2).all(|pair| pair[0] == pair[1]))
    }

    /// The engine that is chosen works, no engine that is here fails, and they agree.
    fn healthy(&self) -> bool {
        let chosen_works = self.chosen.as_ref().is_ok_and(|chosen| {
            let trial = self.trials.iter().find(|trial| trial.backend == *chosen);
            trial.is_some_and(|trial| matches!(trial.outcome, Some(Ok(_))))
        });
        let none_fails = self.trials.iter().all(|trial| !matches!(trial.outcome, Some(Err(_))));
        chosen_works && none_fails && self.agree() != Some(false)
    }

    fn why(&self) -> String {
        match &self.chosen {
            Err(error) => format!("none: {error}"),
            Ok(backend) => {
                let engine = self
                    .trials
                    .iter()
                    .find(|trial| trial.backend == *backend)
                    .and_then(|trial| trial.engine.as_ref().ok())
                    .map_or_else(|| backend.to_string(), Clone::clone);
                let asked =
                    std::env::var("SDL_BACKEND").is_ok_and(|given| !matches!(given.trim(), "" | "auto"));
                let reason = match backend {
                    _ if asked => "because SDL_BACKEND says so",
                    Backend::Rust => "because no ONNX Runtime that can be used was found; it is slower",
                    _ => "because an ONNX Runtime was found",
                };
                format!("{engine}, {reason}")
            }
        }
    }

    fn text(&self) -> String {
        let mut text = format!(
            "sdl {} on {} {}, {} processors\n\n",
            env!("CARGO_PKG_VERSION"),
            std::env::consts::OS,
            std::env::consts::ARCH,
            std::thread::available_parallelism().map_or(1, usize::from),
        );
        text += &match onnx::exact_engine(&RunOptions::default()) {
            Some(vectors) => format!(
                "Bit-exact models, such as the built-in one: the exact engine, with {vectors}; it needs no library\nOther models: {}\n\n",
                self.why()
            ),
            None => format!("Engine: {}\n\n", self.why()),
        };
        let report = onnx::report().to_string();
        text += &format!("Where ONNX Runtime was looked for: {report}\n\n");
        let (with, without): (Vec<_>, Vec<_>) =
            onnx::providers().into_iter().partition(|(_, compiled)| *compiled);
        let names = |list: Vec<(&'static str, bool)>| {
            list.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ")
        };
        text +=
            &format!("Providers in this build, where the ONNX Runtime in use has them: {}\n", names(with));
        if !without.is_empty() {
            text += &format!("  not: {} (build with the feature of that name)\n", names(without));
        }
        text += "\n";
        text += &match onnx::builtin() {
            Ok(bundle) => format!(
                "Built-in model: {}, {} bytes, id {}\n",
                bundle.manifest().label(),
                bundle.entries().map(|(_, bytes)| bytes).sum::<u64>(),
                bundle.id()
            ),
            Err(error) => format!("Built-in model: BROKEN: {error}\n"),
        };
        text += "\nModel store:\n";
        for folder in self.store.folders() {
            let state = if folder.is_dir() { "" } else { " (not there)" };
            text += &format!("  folder {}{state}\n", folder.display());
        }
        let entries = self.store.list();
        if entries.is_empty() {
            text +=
                "  no models; files of the built-in one need none, for others: sdl model import FILE.sdlm\n";
        }
        for entry in entries {
            let state = entry.open().map_or_else(|error| format!(" BROKEN: {error}"), |_| String::new());
            text += &format!("  {}@{} at {}{state}\n", entry.name, entry.version, entry.path.display());
        }
        for (path, error) in self.store.broken() {
            text += &format!("  {} is BROKEN: {error}\n", path.display());
        }
        text += "\nSelf-test (encode and decode a small picture):\n";
        for trial in &self.trials {
            let name = trial.engine.as_deref().unwrap_or("not available");
            let outcome = match &trial.outcome {
                None => String::new(),
                Some(Err(error)) => format!(": FAILED: {error}"),
                Some(Ok(passed)) => format!(
                    ": OK, {} bytes, encode {:.0} ms, decode {:.0} ms, pixels {}",
                    passed.bytes,
                    passed.encode * 1e3,
                    passed.decode * 1e3,
                    &passed.pixels[..16]
                ),
            };
            text += &format!("  {} ({name}){outcome}\n", trial.backend);
        }
        text += match self.agree() {
            Some(true) => "  both engines decode the same file to the same pixels",
            Some(false) => "  THE ENGINES DISAGREE about the pixels of the same file; please report it",
            None => "  one engine alone: nothing to compare",
        };
        text
    }

    fn json(&self) -> Value {
        let places: Vec<Value> = onnx::report()
            .places()
            .iter()
            .map(|place| {
                let (verdict, detail) = match &place.verdict {
                    Verdict::Absent => ("absent", None),
                    Verdict::Present => ("present", None),
                    Verdict::Used { version } => ("used", version.clone()),
                    Verdict::TooOld { version } => ("too old", Some(version.clone())),
                    Verdict::Refused { reason } => ("refused", Some(reason.clone())),
                    _ => ("unknown", None),
                };
                json!({
                    "kind": place.kind,
                    "path": place.path.display().to_string(),
                    "verdict": verdict,
                    "detail": detail,
                })
            })
            .collect();
        let providers: Vec<Value> = onnx::providers()
            .into_iter()
            .map(|(name, compiled)| json!({ "name": name, "compiled": compiled }))
            .collect();
        let trials: Vec<Value> = self
            .trials
            .iter()
            .map(|trial| {
                let passed = trial.outcome.as_ref().and_then(|outcome| outcome.as_ref().ok());
                let error = match (&trial.engine, &trial.outcome) {
                    (Err(error), _) | (_, Some(Err(error))) => Some(error.clone()),
                    _ => None,
                };
                json!({
                    "backend": trial.backend.to_string(),
                    "engine": trial.engine.as_ref().ok(),
                    "ok": passed.is_some(),
                    "error": error,
                    "bytes": passed.map(|passed| passed.bytes),
                    "encode_seconds": passed.map(|passed| passed.encode),
                    "decode_seconds": passed.map(|passed| passed.decode),
                    "pixels_sha256": passed.map(|passed| passed.pixels.clone()),
                })
            })
            .collect();
        let models: Vec<Value> = self
            .store
            .list()
            .into_iter()
            .map(|entry| {
                let error = entry.open().err().map(|error| error.to_string());
                json!({
                    "name": entry.name,
                    "version": entry.version,
                    "id": entry.id.to_string(),
                    "path": entry.path.display().to_string(),
                    "error": error,
                })
            })
            .collect();
        let broken: Vec<Value> = self
            .store
            .broken()
            .into_iter()
            .map(|(path, error)| json!({ "path": path.display().to_string(), "error": error.to_string() }))
            .collect();
        let folders: Vec<String> =
            self.store.folders().iter().map(|folder| folder.display().to_string()).collect();
        json!({
            "schema": SCHEMA,
            "version": env!("CARGO_PKG_VERSION"),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "healthy": self.healthy(),
            "backend": self.chosen.as_ref().ok().map(ToString::to_string),
            "reason": self.why(),
            "exact_engine": onnx::exact_engine(&RunOptions::default()),
            "onnx_runtime": { "version": onnx::report().version(), "places": places },
            "providers": providers,
            "builtin": onnx::builtin().ok().map(|bundle| json!({
                "name": bundle.manifest().label(),
                "id": bundle.id().to_string(),
            })),
            "store": { "folders": folders, "models": models, "broken": broken },
            "tests": trials,
            "same_pixels": self.agree(),
        })
    }
}

impl Trial {
    /// Encodes with this engine, and decodes the file of the first engine that could make one: only decoding is normative.
    fn new(backend: Backend, file: &mut Option<Vec<u8>>) -> Self {
        let engine = match onnx::engine(backend) {
            Ok(engine) => format!("{} {}", engine.name(), engine.version()),
            Err(error) => {
                // The places are listed once, above.
                let text = error.to_string();
                let first = text.lines().next().unwrap_or_default().to_owned();
                return Trial { backend, engine: Err(first), outcome: None };
            }
        };
        let outcome = attempt(backend, file).map_err(|error| error.to_string());
        Trial { backend, engine: Ok(engine), outcome: Some(outcome) }
    }
}

fn attempt(backend: Backend, file: &mut Option<Vec<u8>>) -> Result<Passed, image_sdl::Error> {
    let settings = Settings { backend, ..Settings::default() };
    let model = Model::with_settings(onnx::builtin()?, settings.clone())?;
    let began = Instant::now();
    let made = encode_with(&model, &test_picture()?, &EncodeOptions::default())?.bytes;
    let encode = began.elapsed().as_secs_f64();
    let bytes = made.len();
    let options = DecodeOptions::default().with_settings(settings);
    let began = Instant::now();
    let own = decode(&made, &options)?;
    let decode_seconds = began.elapsed().as_secs_f64();
    let pixels = match file {
        Some(first) => sums(&decode(first, &options)?).0,
        None => {
            *file = Some(made);
            sums(&own).0
        }
    };
    Ok(Passed { bytes, encode, decode: decode_seconds, pixels })
}

/// Ramps with a disc on them: smooth parts and an edge.
fn test_picture() -> Result<Picture, image_sdl::Error> {
    const WIDTH: u32 = 96;
    const HEIGHT: u32 = 64;
    let pixel = |x: u32, y: u32| {
        let inside = (x as i32 - 40).pow(2) + (y as i32 - 30).pow(2) < 400;
        if inside { [230, 60, 40] } else { [(x * 2) as u8, (y * 3) as u8, (x + y) as u8] }
    };
    let pixels = (0..HEIGHT).flat_map(|y| (0..WIDTH).flat_map(move |x| pixel(x, y))).collect();
    Picture::new(WIDTH, HEIGHT, Colour::Rgb, pixels)
}
