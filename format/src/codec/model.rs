//! A model ready to code with: a bundle, its tables, and how to run its graphs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use once_cell::sync::{Lazy, OnceCell};
use sdl_onnx::{Backend, Bundle, BundleId, Graph, RunOptions, Store, role};

use super::parallel;
use crate::latent::codebook::Codebook;
use crate::latent::trained::{Grid, Tables};
use crate::{BundleRef, Error, Method};

/// How to run the graphs of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Settings {
    /// Which engine; the default is ONNX Runtime where one is found, else the one in Rust.
    pub backend: Backend,
    /// Execution provider of ONNX Runtime, by name; none is the processor.
    pub provider: Option<String>,
    /// Device of the provider.
    pub device: u32,
}

/// A model ready to encode and decode. Cheap to clone; weights are shared by the whole process.
#[derive(Debug, Clone)]
pub struct Model {
    bundle: Bundle,
    tables: Option<Arc<Tables>>,
    codebook: Option<Arc<Codebook>>,
    settings: Settings,
    graphs: Arc<Graphs>,
}

/// Loaded graphs by bundle, role and how they are run: `sdl_onnx` itself keeps none that nobody holds.
#[derive(Debug, Default)]
struct Graphs(Mutex<HashMap<GraphKey, Arc<dyn Graph>>>);

type GraphKey = (BundleId, String, Settings, usize);

/// The graphs of small bundles stay for the life of the process: a file opened on its own finds them loaded.
static SMALL: Lazy<Arc<Graphs>> = Lazy::new(Arc::default);

/// Graphs of more bytes run one tile at a time on all threads; smaller ones run a tile on each thread.
const LARGE_GRAPH_BYTES: u64 = 16 << 20;

impl Model {
    /// The built-in model: no file, no download.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] only if this build is broken.
    pub fn built_in() -> Result<Self, Error> {
        Self::with_settings(sdl_onnx::builtin()?, Settings::default())
    }

    /// A model from a bundle.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] or [`Error::Corrupt`] where its tables cannot be read.
    pub fn with_settings(bundle: Bundle, settings: Settings) -> Result<Self, Error> {
        let tables = shared_tables(&bundle)?;
        if let Some(tables) = &tables {
            let channels = bundle.manifest().latent.channels;
            if tables.channels != channels {
                return Err(Error::corrupt(format!(
                    "the tables of bundle {} are for {} channels, its latent has {channels}",
                    bundle.manifest().name,
                    tables.channels
                )));
            }
        }
        let latent = &bundle.manifest().latent;
        let scaled = |c, v: f32| (v - latent.shift.at(c)) * latent.scale.at(c);
        let codebook = match bundle.codebook()? {
            Some(bytes) => Some(Arc::new(Codebook::parse(&bytes, latent.channels, scaled)?)),
            None => None,
        };
        let graphs = if is_large(&bundle) { Arc::default() } else { Arc::clone(&SMALL) };
        Ok(Model { bundle, tables, codebook, settings, graphs })
    }

    /// By what a user typed: nothing, `builtin` or its own name for the built-in model, a path to a bundle, or a name in the store.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] where it is missing or damaged.
    pub fn find(wanted: &str, settings: Settings) -> Result<Self, Error> {
        let is_path = wanted.ends_with(".sdlm") || wanted.contains(std::path::is_separator);
        let bundle = match wanted {
            "" | "builtin" => sdl_onnx::builtin()?,
            path if is_path => Bundle::open(path)?,
            name => match sdl_onnx::builtin()? {
                ours if name == ours.manifest().name || name == ours.manifest().label() => ours,
                _ => Store::from_environment().find(name)?,
            },
        };
        Self::with_settings(bundle, settings)
    }

    /// The model that a file names. Nothing is downloaded, no path is taken from the file.
    ///
    /// # Errors
    ///
    /// [`Error::MissingBundle`] with what to do.
    pub fn for_file(reference: BundleRef, settings: Settings) -> Result<Self, Error> {
        let bundle = match reference {
            BundleRef::BuiltIn(generation) => {
                let bundle = sdl_onnx::builtin()?;
                let ours = bundle.manifest().builtin;
                if ours != Some(generation) {
                    let older = ours.is_some_and(|ours| ours > generation);
                    return Err(Error::MissingBundle(format!(
                        "the file needs the built-in model of generation {generation}, and this program has generation {}; \
                         use {} version of SDL",
                        ours.map_or_else(|| "none".to_owned(), |g| g.to_string()),
                        if older { "an earlier" } else { "a newer" }
                    )));
                }
                bundle
            }
            BundleRef::Named(id) => Store::from_environment().find_short(id)?,
        };
        Self::with_settings(bundle, settings)
    }

    /// The bundle.
    #[must_use]
    pub fn bundle(&self) -> &Bundle {
        &self.bundle
    }

    /// How its graphs are run.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How files name it.
    #[must_use]
    pub fn reference(&self) -> BundleRef {
        // Anybody may write a generation into a manifest; files that name it are decoded by the program's own.
        let is_ours = |_: &u8| sdl_onnx::builtin().is_ok_and(|ours| ours.id() == self.bundle.id());
        match self.bundle.manifest().builtin.filter(is_ours) {
            Some(generation) => BundleRef::BuiltIn(generation),
            None => BundleRef::Named(self.bundle.id().short()),
        }
    }

    /// The latent method it codes with, unless an encoder is asked for another.
    #[must_use]
    pub fn method(&self) -> Method {
        match (&self.tables, &self.codebook) {
            (Some(_), _) => Method::Trained,
            (None, Some(_)) => Method::Codebook,
            (None, None) => Method::Scalar,
        }
    }

    /// Loads every graph that decoding needs, so that the first picture is as fast as the next.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] where the engine or a graph fails.
    pub fn warm_up(&self) -> Result<(), Error> {
        self.load(role::SYNTHESIS, &[role::HYPER_SYNTHESIS])
    }

    /// Loads every graph that encoding needs, so that the first picture is as fast as the next.
    ///
    /// # Errors
    ///
    /// [`Error::Model`] where the engine or a graph fails.
    pub fn warm_up_encoder(&self) -> Result<(), Error> {
        self.load(role::ANALYSIS, &[role::HYPER_ANALYSIS, role::HYPER_SYNTHESIS])?;
        if self.bundle.has(role::CORRECTION) {
            self.load(role::SYNTHESIS, &[role::CORRECTION])
        } else {
            Ok(())
        }
    }

    /// Loads a graph, and those that only a model with tables has, as a run on all threads will ask for them.
    fn load(&self, first: &str, with_tables: &[&str]) -> Result<(), Error> {
        let (_, threads) = self.share(parallel::thread_count(0));
        let with_tables = if self.tables.is_some() { with_tables } else { &[] };
        std::iter::once(&first).chain(with_tables).try_for_each(|role| self.graph(role, threads).map(drop))
    }

    /// One run of its graphs takes every thread or an accelerator: it is no use to work on several pictures at a time.
    #[must_use]
    pub fn is_large(&self) -> bool {
        is_large(&self.bundle) || self.settings.provider.as_deref().is_some_and(|p| p != "cpu")
    }

    pub(crate) fn tables(&self) -> Option<&Tables> {
        self.tables.as_deref()
    }

    pub(crate) fn codebook(&self) -> Option<&Arc<Codebook>> {
        self.codebook.as_ref()
    }

    pub(crate) fn stride(&self) -> usize {
        self.bundle.manifest().latent.stride
    }

    pub(crate) fn channels(&self) -> usize {
        self.bundle.manifest().latent.channels
    }

    /// The latent positions that the picture is filled up to a multiple of: hyper-latent positions are never cut.
    pub(crate) fn padded(&self, grid: Grid) -> Grid {
        if self.tables.is_some() { grid.padded() } else { grid }
    }

    /// How many tiles to work on at a time when `threads` are there, and how many threads each run gets.
    pub(crate) fn share(&self, threads: usize) -> (usize, usize) {
        if self.is_large() { (1, threads) } else { (threads, 1) }
    }

    pub(crate) fn graph(&self, role: &str, threads: usize) -> Result<Arc<dyn Graph>, Error> {
        let options = RunOptions {
            backend: self.settings.backend,
            provider: self.settings.provider.clone(),
            device: self.settings.device,
            threads,
        };
        let key = (self.bundle.id(), role.to_owned(), self.settings.clone(), threads);
        let kept = || self.graphs.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(graph) = kept().get(&key) {
            return Ok(Arc::clone(graph));
        }
        // Loading takes long, so nobody waits for the lock meanwhile; two who come at once are given one graph.
        let graph = self.bundle.graph(role, &options)?;
        kept().insert(key, Arc::clone(&graph));
        Ok(graph)
    }

    /// Fails, naming what there is, unless the bundle has a graph for a role.
    pub(crate) fn require(&self, role: &str) -> Result<(), Error> {
        if self.bundle.has(role) {
            return Ok(());
        }
        let manifest = self.bundle.manifest();
        let known: Vec<&str> = manifest.graphs.keys().map(String::as_str).collect();
        Err(Error::Model(sdl_onnx::Error::Role {
            bundle: manifest.label(),
            role: role.to_owned(),
            known: known.join(", "),
        }))
    }

    /// The engine that runs its graphs, for people.
    pub(crate) fn engine_name(&self) -> String {
        let options = RunOptions {
            backend: self.settings.backend,
            provider: self.settings.provider.clone(),
            ..RunOptions::default()
        };
        let exact = sdl_onnx::exact_engine(&options).filter(|_| self.bundle.manifest().pixels.exact);
        if let Some(vectors) = exact {
            return format!("the exact engine with {vectors}");
        }
        sdl_onnx::engine_for(&options)
            .map_or_else(|_| "?".to_owned(), |e| format!("{} {}", e.name(), e.version()))
    }
}

/// What to say of a bundle that a file needs and that is not here.
pub(crate) fn missing(id: &str, label: Option<&str>, searched: &str) -> String {
    let named = label.map_or_else(|| format!("bundle {id}"), |label| format!("bundle {label} (id {id})"));
    let same_name = label.and_then(|label| {
        let of = |entry: &sdl_onnx::StoreEntry| format!("{}@{}", entry.name, entry.version) == label;
        Store::from_environment().list().into_iter().find(of)
    });
    let other = same_name.map_or_else(String::new, |entry| {
        format!(
            " The {} at {} has another content (id {}) and is not used.",
            label.unwrap_or_default(),
            entry.path.display(),
            entry.id
        )
    });
    format!(
        "the file needs {named}, which is not here; looked in {searched}.{other} Make it with its exporter (onnx/export) or get its \
         .sdlm file, then run: sdl model import FILE.sdlm"
    )
}

fn is_large(bundle: &Bundle) -> bool {
    bundle.entries().any(|(_, bytes)| bytes > LARGE_GRAPH_BYTES)
}

type Cell = Arc<OnceCell<Option<Arc<Tables>>>>;

/// The tables of a bundle, parsed once a process.
fn shared_tables(bundle: &Bundle) -> Result<Option<Arc<Tables>>, Error> {
    static PARSED: Mutex<Option<HashMap<[u8; 32], Cell>>> = Mutex::new(None);
    let cell = {
        let mut parsed = PARSED.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(parsed.get_or_insert_default().entry(*bundle.id().as_bytes()).or_default())
    };
    cell.get_or_try_init(|| match bundle.tables()? {
        Some(bytes) => Ok(Some(Arc::new(Tables::parse(&bytes)?))),
        None => Ok(None),
    })
    .cloned()
}
