//! `sdl model`: the bundles on this machine.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use image_sdl::onnx::{self, Bundle, BundleId, Store};
use image_sdl::{Model as Loaded, Settings};
use serde_json::{Value, json};

use crate::failure::{Code, EXIT_CODES, Failure};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Model {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the built-in model and those in the store
    #[command(after_help = EXIT_CODES)]
    List {
        /// Print a JSON object a model, one line each
        #[arg(long)]
        json: bool,
    },
    /// Show what a model is and what it consists of
    #[command(after_help = EXIT_CODES)]
    Show {
        /// Name, NAME@VERSION, beginning of an id, path of a bundle, or `builtin`
        #[arg(value_name = "NAME|PATH", default_value = "builtin")]
        name: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Copy a bundle into the store, so that files that name it can be decoded
    #[command(after_help = EXIT_CODES)]
    Import {
        /// A .sdlm file, or a folder of the same content
        path: PathBuf,
    },
    /// Pack a folder as a .sdlm file
    #[command(after_help = EXIT_CODES)]
    Pack {
        /// Folder with bundle.toml and what that speaks of
        folder: PathBuf,
        /// File to write
        #[arg(value_name = "OUT.sdlm")]
        out: PathBuf,
    },
}

impl Model {
    pub fn run(&self) -> Result<(), Failure> {
        match &self.command {
            Command::List { json } => list(*json),
            Command::Show { name, json } => show(name, *json),
            Command::Import { path } => {
                let entry = Store::from_environment().import(path)?;
                print(&format!(
                    "{}@{} ({}) is at {}",
                    entry.name,
                    entry.version,
                    short(entry.id),
                    entry.path.display()
                ))
            }
            Command::Pack { folder, out } => {
                if out.is_dir() {
                    let message = format!("{}: a folder of that name is there", out.display());
                    return Err(Failure::new(Code::Io, message));
                }
                if lies_in(out, folder) {
                    return Err(Failure::usage(format!(
                        "{} lies in the folder that is packed, and would be a part of it; name an output elsewhere",
                        out.display()
                    )));
                }
                let bundle = Bundle::write_sdlm(folder, out)?;
                print(&format!("{}: {}, id {}", out.display(), bundle.manifest().label(), bundle.id()))
            }
        }
    }
}

/// Whether a file of that name is in the folder or below it, be it there or not.
fn lies_in(file: &Path, folder: &Path) -> bool {
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    match (parent.canonicalize(), folder.canonicalize()) {
        (Ok(parent), Ok(folder)) => parent.starts_with(folder),
        _ => false,
    }
}

fn print(text: &str) -> Result<(), Failure> {
    output::result(text).map_err(|error| Failure::output(Code::Io, "standard output", &error))
}

/// What files name a bundle by.
fn short(id: BundleId) -> String {
    id.short().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn size(bundle: &Bundle) -> u64 {
    bundle.entries().map(|(_, bytes)| bytes).sum()
}

fn list(as_json: bool) -> Result<(), Failure> {
    let store = Store::from_environment();
    let mut rows: Vec<(Result<Bundle, onnx::Error>, String, String)> =
        vec![(onnx::builtin(), "built-in".to_owned(), "built into the program".to_owned())];
    for entry in store.list() {
        let name = format!("{}@{}", entry.name, entry.version);
        rows.push((entry.open(), name, entry.path.display().to_string()));
    }
    for (path, error) in store.broken() {
        rows.push((Err(error), "broken".to_owned(), path.display().to_string()));
    }
    let mut code = None;
    for (bundle, name, place) in rows {
        let (text, object) = match bundle {
            Ok(bundle) => {
                let manifest = bundle.manifest();
                (
                    format!(
                        "{:24} {} {:>8.1} MB  {}  {place}",
                        manifest.label(),
                        short(bundle.id()),
                        size(&bundle) as f64 / 1e6,
                        manifest.licence
                    ),
                    json!({
                        "name": manifest.name,
                        "version": manifest.version,
                        "short_id": short(bundle.id()),
                        "id": bundle.id().to_string(),
                        "licence": manifest.licence,
                        "bytes": size(&bundle),
                        "builtin": manifest.builtin,
                        "place": place,
                    }),
                )
            }
            Err(error) => {
                code = Some(Code::Model);
                (
                    format!("{name:24} BROKEN: {error}  {place}"),
                    json!({ "place": place, "error": error.to_string() }),
                )
            }
        };
        print(&if as_json { object.to_string() } else { text })?;
    }
    code.map_or(Ok(()), |code| Err(Failure::silent(code)))
}

fn show(name: &str, as_json: bool) -> Result<(), Failure> {
    let model = Loaded::find(name, Settings::default())?;
    let bundle = model.bundle();
    let manifest = bundle.manifest();
    let graphs: Vec<(&String, Vec<&str>, u64)> = manifest
        .graphs
        .iter()
        .map(|(role, graph)| {
            let files: Vec<&str> =
                std::iter::once(&graph.file).chain(&graph.external).map(String::as_str).collect();
            let bytes =
                bundle.entries().filter(|(name, _)| files.contains(name)).map(|(_, bytes)| bytes).sum();
            (role, files, bytes)
        })
        .collect();
    if as_json {
        let graphs: Vec<Value> = graphs
            .iter()
            .map(|(role, files, bytes)| json!({ "role": role, "files": files, "bytes": bytes }))
            .collect();
        let entries: Vec<Value> =
            bundle.entries().map(|(name, bytes)| json!({ "name": name, "bytes": bytes })).collect();
        return print(
            &json!({
                "name": manifest.name,
                "version": manifest.version,
                "id": bundle.id().to_string(),
                "short_id": short(bundle.id()),
                "reference": model.reference().to_string(),
                "licence": manifest.licence,
                "source": manifest.source,
                "revision": manifest.revision,
                "builtin": manifest.builtin,
                "method": model.method().name(),
                "stride": manifest.latent.stride,
                "channels": manifest.latent.channels,
                "exact": manifest.pixels.exact,
                "denoiser": manifest.denoiser.is_some(),
                "bytes": size(bundle),
                "graphs": graphs,
                "entries": entries,
                "place": bundle.label(),
            })
            .to_string(),
        );
    }
    let mut text = format!("{}\n", manifest.label());
    let mut line = |name: &str, value: String| {
        if !value.is_empty() {
            text += &format!("{name:9} {value}\n");
        }
    };
    line("id", bundle.id().to_string());
    line("in files", model.reference().to_string());
    line("place", bundle.label().to_owned());
    line("licence", manifest.licence.clone());
    line("source", manifest.source.clone());
    line("revision", manifest.revision.clone().unwrap_or_default());
    line("latent", format!("{} channels, stride {}", manifest.latent.channels, manifest.latent.stride));
    line("method", model.method().name().to_owned());
    let exact =
        if manifest.pixels.exact { "the same bits on every machine" } else { "may differ in the last bits" };
    line("pixels", exact.to_owned());
    for (role, files, bytes) in graphs {
        line("graph", format!("{role}: {bytes} bytes, {}", files.join(" + ")));
    }
    line("size", format!("{} bytes in {} files", size(bundle), bundle.entries().count()));
    print(text.trim_end())
}
