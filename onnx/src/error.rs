//! What can go wrong, in words that say what, where, and what to do.

use std::path::PathBuf;

use crate::{BundleId, LibraryReport};

/// Everything this crate reports.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A tensor whose shape and data do not fit together.
    #[error("a tensor of shape {shape:?} needs {needed}, but {given} elements were given")]
    Shape {
        /// The shape asked for.
        shape: Vec<usize>,
        /// How many elements that shape has, in words (it may not fit in a number).
        needed: String,
        /// How many there were.
        given: usize,
    },
    /// A tensor of another element type than the caller asked for.
    #[error("the tensor holds {found}, and {wanted} was asked for")]
    ElementType {
        /// What the tensor holds.
        found: crate::ElementType,
        /// What was asked for.
        wanted: crate::ElementType,
    },
    /// An input that the graph cannot take.
    #[error("graph {graph}, input `{input}`: {problem}")]
    Input {
        /// Which graph.
        graph: String,
        /// Which input.
        input: String,
        /// What does not fit.
        problem: String,
    },
    /// An output that the graph does not have.
    #[error("graph {graph} has no output `{output}`; it has {known}")]
    Output {
        /// Which graph.
        graph: String,
        /// What was asked for.
        output: String,
        /// What there is.
        known: String,
    },
    /// An engine could not load a graph.
    #[error("{engine} cannot load graph {graph}: {reason}")]
    Load {
        /// Which graph.
        graph: String,
        /// Which engine.
        engine: String,
        /// Why, in the words of the engine.
        reason: String,
    },
    /// An engine failed while it ran a graph.
    #[error("{engine} failed in graph {graph}: {reason}")]
    Run {
        /// Which graph.
        graph: String,
        /// Which engine.
        engine: String,
        /// Why, in the words of the engine.
        reason: String,
    },
    /// A name that is no backend.
    #[error("`{given}` ({origin}) is no backend; use auto, ort or rust")]
    Backend {
        /// What was given.
        given: String,
        /// Where it came from: an argument or an environment variable.
        origin: &'static str,
    },
    /// A backend that this build does not have.
    #[error("this build has no {backend} backend; build sdl-onnx with its feature `{feature}`")]
    BackendNotBuilt {
        /// The backend.
        backend: &'static str,
        /// The cargo feature that has it.
        feature: &'static str,
    },
    /// No usable ONNX Runtime.
    #[error("{0}")]
    Library(Box<LibraryReport>),
    /// An execution provider that cannot be had. The graph is not run on the processor instead.
    #[error("execution provider `{provider}`: {problem}")]
    Provider {
        /// The provider asked for.
        provider: String,
        /// Why it cannot be had, and what to do.
        problem: String,
    },
    /// A file could not be read or written.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The reason.
        source: std::io::Error,
    },
    /// A bundle that is not what it should be.
    #[error("bundle {bundle} is damaged: {problem}")]
    Damaged {
        /// Which bundle: a path, or `built-in`.
        bundle: String,
        /// What is wrong, and where.
        problem: String,
    },
    /// A bundle written for a later version of this program.
    #[error(
        "bundle {bundle} has format {found}, and this program knows formats up to {known}; a newer version of it is needed"
    )]
    Newer {
        /// Which bundle.
        bundle: String,
        /// The format it names.
        found: i64,
        /// The newest format known here.
        known: i64,
    },
    /// A manifest that says something impossible.
    #[error("bundle {bundle}, bundle.toml: {problem}")]
    Manifest {
        /// Which bundle.
        bundle: String,
        /// What is wrong.
        problem: String,
    },
    /// A role that the bundle has no graph for.
    #[error("bundle {bundle} has no graph for `{role}`; it has {known}")]
    Role {
        /// Which bundle.
        bundle: String,
        /// The role asked for.
        role: String,
        /// The roles there are.
        known: String,
    },
    /// A graph that is not what its manifest says.
    #[error("bundle {bundle}, graph `{role}`: {problem}")]
    Signature {
        /// Which bundle.
        bundle: String,
        /// The role of the graph.
        role: String,
        /// What does not agree.
        problem: String,
    },
    /// A bundle that is not in the store.
    #[error(
        "no bundle `{wanted}` here; looked in {searched}. Get its .sdlm file and run: sdl model import FILE.sdlm"
    )]
    Missing {
        /// What was asked for.
        wanted: String,
        /// Where it was looked for.
        searched: String,
    },
    /// A name that several bundles have.
    #[error("`{wanted}` names several bundles: {found}; give more of the id, or NAME@VERSION")]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// The bundles that answer to it.
        found: String,
    },
    /// A name that another bundle has already.
    #[error(
        "the name {name} belongs to bundle {stored} at {}, and the new bundle is {new}; remove the old one first, \
         or give the new one another version", path.display()
    )]
    NameTaken {
        /// The name and version, NAME@VERSION.
        name: String,
        /// The bundle that has it.
        stored: BundleId,
        /// Where that one lies.
        path: PathBuf,
        /// The bundle that was to be imported.
        new: BundleId,
    },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io { action, path, source }
    }
}

/// "a, b, c", or "none".
pub(crate) fn listed<S: AsRef<str>>(names: impl IntoIterator<Item = S>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| name.as_ref().to_owned()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
