//! Where the bytes of a graph are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Above this many bytes of weights a graph is large: it is held once, and whatever trades memory for speed is left out.
pub(crate) const LARGE: u64 = 16 << 20;

/// Bytes that are cheap to hand around: part of the program, or shared.
#[derive(Clone, Debug)]
pub enum Bytes {
    /// Part of the program.
    Static(&'static [u8]),
    /// Shared on the heap.
    Shared(Arc<[u8]>),
}

impl std::ops::Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Static(bytes) => bytes,
            Bytes::Shared(bytes) => bytes,
        }
    }
}

impl From<&'static [u8]> for Bytes {
    fn from(bytes: &'static [u8]) -> Self {
        Bytes::Static(bytes)
    }
}

impl From<Arc<[u8]>> for Bytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Bytes::Shared(bytes)
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::Shared(bytes.into())
    }
}

/// An ONNX graph: bytes, or a file, which lets ONNX Runtime map the external data beside it.
#[derive(Clone, Debug)]
pub struct GraphSource {
    name: String,
    model: Model,
    /// Whether all external data was declared. If not, it may be in any file beside a graph in a file.
    sealed: bool,
}

#[derive(Clone, Debug)]
pub(crate) enum Model {
    Bytes { model: Bytes, external: Vec<(String, Bytes)> },
    File { model: PathBuf, external: Vec<PathBuf> },
}

impl GraphSource {
    /// A graph in memory. `name` is for messages.
    pub fn bytes(name: impl Into<String>, model: impl Into<Bytes>) -> Self {
        let model = Model::Bytes { model: model.into(), external: Vec::new() };
        GraphSource { name: name.into(), model, sealed: true }
    }

    /// A graph in a file. External data must lie beside it.
    pub fn file(model: impl Into<PathBuf>) -> Self {
        let model = model.into();
        let name = model.display().to_string();
        GraphSource { name, model: Model::File { model, external: Vec::new() }, sealed: false }
    }

    /// A graph in memory with a file of external data: `name` is what the graph calls it. A graph in a file looks for its
    /// external data itself, and `bytes` are not used.
    #[must_use]
    pub fn with_external(mut self, name: &str, bytes: impl Into<Bytes>) -> Self {
        if let Model::Bytes { external, .. } = &mut self.model {
            external.push((name.to_owned(), bytes.into()));
        }
        self
    }

    /// A graph in a file with a file of external data beside it: `name` is what the graph calls it.
    #[must_use]
    pub fn with_external_file(mut self, name: &str) -> Self {
        if let Model::File { model, external } = &mut self.model {
            external.push(model.with_file_name(name));
        }
        self
    }

    /// The same graph, to read no external data but what was declared.
    #[must_use]
    pub(crate) fn sealed(mut self) -> Self {
        self.sealed = true;
        self
    }

    /// Whether the graph may have values in a file that it calls `location`.
    pub(crate) fn declares(&self, location: &str) -> bool {
        match &self.model {
            Model::Bytes { external, .. } => external.iter().any(|(name, _)| name == location),
            Model::File { model, external } => {
                let beside = Path::new(location).file_name().is_some_and(|name| name == location);
                external.contains(&model.with_file_name(location)) || (beside && !self.sealed)
            }
        }
    }

    /// The same graph under another name in messages.
    #[must_use]
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = name.into();
        self
    }

    /// The name for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// How many bytes of weights a second copy of the loaded graph would cost, roughly.
    pub(crate) fn weight(&self) -> u64 {
        let on_disk = |path: &Path| std::fs::metadata(path).map_or(0, |file| file.len());
        match &self.model {
            Model::Bytes { model, external } => {
                model.len() as u64 + external.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>()
            }
            Model::File { model, external } => {
                // The two names that exporters give to external data, for a caller who did not say.
                let usual = [".data", "_data"].map(|end| {
                    let mut name = model.clone().into_os_string();
                    name.push(end);
                    PathBuf::from(name)
                });
                let unsaid = usual.iter().filter(|path| !external.contains(path));
                on_disk(model) + external.iter().chain(unsaid).map(|path| on_disk(path)).sum::<u64>()
            }
        }
    }
}
