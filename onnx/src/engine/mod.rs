//! The engines behind one small trait: load a graph, run it on named tensors.

#[cfg(all(feature = "rten", target_arch = "x86_64"))]
mod exact;
mod library;
#[cfg(feature = "onnxruntime")]
mod ort;
#[cfg(feature = "onnxruntime")]
mod provider;
#[cfg(feature = "rten")]
mod rten;
mod signature;
mod source;
mod wire;

use std::fmt;
use std::str::FromStr;

pub use library::{LibraryReport, MINIMUM_ONNX_RUNTIME, Place, Verdict};
pub use source::{Bytes, GraphSource};

use crate::{ElementType, Error, Tensor, TensorView};

/// The size of one dimension of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Always this.
    Fixed(usize),
    /// Known when the graph is run; the name may be empty.
    Any(String),
}

/// Name, element type and shape of an input or output of a graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ValueInfo {
    /// The name.
    pub name: String,
    /// The element type, where the graph says it.
    pub element_type: Option<ElementType>,
    /// The dimensions, outermost first, where the graph says how many there are.
    pub shape: Option<Vec<Dimension>>,
}

/// A loaded graph. Any number of threads may run it at the same time.
pub trait Graph: Send + Sync + fmt::Debug {
    /// The inputs, in the order of the graph.
    fn inputs(&self) -> &[ValueInfo];

    /// The outputs, in the order of the graph.
    fn outputs(&self) -> &[ValueInfo];

    /// Runs the graph on `inputs` and returns the outputs named in `outputs`, in that order.
    ///
    /// Every input must be given once. Integers of 32 and 64 bits are converted to what the graph declares, those of 16 bits to
    /// floating point.
    fn run(&self, inputs: &[(&str, TensorView<'_>)], outputs: &[&str]) -> Result<Vec<Tensor>, Error>;

    /// Runs the graph, which has one input and one output, on `input`, and goes back through it: the gradient of a loss by the
    /// input, which lies as that does.
    ///
    /// `loss` gets the output and returns its gradient by it, which has as many values as the output. Rounding counts as if it were
    /// not there (straight-through), and values that are clipped have no gradient. `None` where the engine cannot do it: the exact
    /// engine can for decoders (see [`exact_engine`]), the others cannot.
    fn gradient(
        &self,
        input: &TensorView<'_>,
        loss: &mut dyn FnMut(&Tensor) -> Vec<f32>,
    ) -> Option<Result<Vec<f32>, Error>> {
        let _ = (input, loss);
        None
    }
}

/// Something that can run graphs.
pub trait Engine: Send + Sync {
    /// Its name, for people.
    fn name(&self) -> &str;

    /// Its version.
    fn version(&self) -> String;

    /// Loads a graph. Of `options`, the backend is not looked at.
    fn load(&self, source: &GraphSource, options: &RunOptions) -> Result<Box<dyn Graph>, Error>;
}

/// Which engine to use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Backend {
    /// What the environment variable `SDL_BACKEND` says; without it ONNX Runtime where one is found, else Rust. A bit-exact bundle
    /// decodes to the same pixels everywhere: without the variable it runs in Rust where the processor has the vectors for it
    /// (see [`exact_engine`]), which is faster, and ONNX Runtime is not even looked for.
    #[default]
    Auto,
    /// ONNX Runtime (`ort`).
    OnnxRuntime,
    /// The engine in Rust alone (`rust`).
    Rust,
}

/// The environment variable that decides what [`Backend::Auto`] is.
const BACKEND_VARIABLE: &str = "SDL_BACKEND";

impl Backend {
    fn parse(given: &str, origin: &'static str) -> Result<Self, Error> {
        match given.trim().to_ascii_lowercase().as_str() {
            "auto" | "" => Ok(Backend::Auto),
            "ort" => Ok(Backend::OnnxRuntime),
            "rust" => Ok(Backend::Rust),
            _ => Err(Error::Backend { given: given.to_owned(), origin }),
        }
    }
}

impl FromStr for Backend {
    type Err = Error;

    fn from_str(given: &str) -> Result<Self, Error> {
        Self::parse(given, "argument")
    }
}

impl fmt::Display for Backend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backend::Auto => "auto",
            Backend::OnnxRuntime => "ort",
            Backend::Rust => "rust",
        })
    }
}

/// How to run a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct RunOptions {
    /// Which engine.
    pub backend: Backend,
    /// Which execution provider of ONNX Runtime: `cpu` (also when there is none here), `cuda`, `tensorrt`, `coreml`,
    /// `directml`, `openvino`, `xnnpack`, `webgpu`. One that cannot be had is an error.
    pub provider: Option<String>,
    /// Which device of the provider, counted from 0.
    pub device: u32,
    /// How many threads one run may use; 0 is as many as there are processors.
    pub threads: usize,
}

impl RunOptions {
    /// `threads`, with 0 replaced by the number of processors.
    pub(crate) fn thread_count(&self) -> usize {
        if self.threads > 0 {
            self.threads
        } else {
            std::thread::available_parallelism().map_or(1, usize::from)
        }
    }

    /// The provider asked for, unless it is the plain processor.
    pub(crate) fn accelerator(&self) -> Option<&str> {
        self.provider.as_deref().filter(|name| !name.is_empty() && !name.eq_ignore_ascii_case("cpu"))
    }
}

/// What the environment says, if it does.
fn given_backend() -> Result<Option<Backend>, Error> {
    let Some(given) = std::env::var_os(BACKEND_VARIABLE) else { return Ok(None) };
    let backend = Backend::parse(&given.to_string_lossy(), "environment variable SDL_BACKEND")?;
    Ok(Some(backend).filter(|backend| *backend != Backend::Auto))
}

/// What [`Backend::Auto`] is on this machine, now: never `Auto` itself.
///
/// A library that `ORT_DYLIB_PATH` names and that cannot be loaded is an error, and so is a wrong `SDL_BACKEND`.
pub fn auto_backend() -> Result<Backend, Error> {
    if let Some(backend) = given_backend()? {
        return Ok(backend);
    }
    if !cfg!(feature = "onnxruntime") {
        return Ok(Backend::Rust);
    }
    match engine(Backend::OnnxRuntime) {
        Ok(_) => Ok(Backend::OnnxRuntime),
        Err(Error::Library(report)) if cfg!(feature = "rten") && !report.is_explicit() => Ok(Backend::Rust),
        Err(error) => Err(error),
    }
}

/// The engine of a backend.
pub fn engine(backend: Backend) -> Result<&'static dyn Engine, Error> {
    match backend {
        Backend::Auto => engine(auto_backend()?),
        #[cfg(feature = "onnxruntime")]
        Backend::OnnxRuntime => ort::engine(),
        #[cfg(not(feature = "onnxruntime"))]
        Backend::OnnxRuntime => Err(Error::BackendNotBuilt { backend: "ort", feature: "onnxruntime" }),
        #[cfg(feature = "rten")]
        Backend::Rust => Ok(&rten::ENGINE),
        #[cfg(not(feature = "rten"))]
        Backend::Rust => Err(Error::BackendNotBuilt { backend: "rust", feature: "rten" }),
    }
}

/// The backend that `options` ask for, never [`Backend::Auto`]: one that can serve the provider they name.
pub(crate) fn resolve(options: &RunOptions) -> Result<Backend, Error> {
    match (options.backend, options.accelerator()) {
        (Backend::Auto, None) => auto_backend(),
        (Backend::Auto, Some(_)) => Ok(Backend::OnnxRuntime),
        (Backend::Rust, Some(provider)) => Err(Error::Provider {
            provider: provider.to_owned(),
            problem: "the Rust backend has no execution providers; use backend ort".to_owned(),
        }),
        (backend, _) => Ok(backend),
    }
}

/// The backend for a graph of a bit-exact bundle: where there is an exact engine, no other one is looked for, let alone loaded.
pub(crate) fn resolve_exact(options: &RunOptions) -> Result<Backend, Error> {
    if exact_engine(options).is_some() { Ok(Backend::Rust) } else { resolve(options) }
}

/// Whether the exact engine, which is part of [`Backend::Rust`], runs bit-exact bundles: the vectors of this
/// processor that it uses. `None` where `options` or the environment ask for another engine, the processor has no vectors that it
/// can use, or this build has no Rust backend.
pub fn exact_engine(options: &RunOptions) -> Option<&'static str> {
    let backend = match options.backend {
        Backend::Auto => given_backend().ok()?.unwrap_or(Backend::Rust),
        asked => asked,
    };
    if backend != Backend::Rust || options.accelerator().is_some() {
        return None;
    }
    #[cfg(all(feature = "rten", target_arch = "x86_64"))]
    return exact::vectors();
    #[cfg(not(all(feature = "rten", target_arch = "x86_64")))]
    return None;
}

/// The engine that `options` ask for.
pub fn engine_for(options: &RunOptions) -> Result<&'static dyn Engine, Error> {
    engine(resolve(options)?).map_err(|error| match (error, options.accelerator()) {
        // Who asked for a provider is told of that, not only of the library that it lives in.
        (Error::Library(report), Some(provider)) => {
            Error::Provider { provider: provider.to_owned(), problem: report.to_string() }
        }
        (error, _) => error,
    })
}

/// Where ONNX Runtime was looked for, and what was found there.
pub fn report() -> LibraryReport {
    library::survey()
}

/// Every execution provider this crate knows, with whether this build has it compiled in.
pub fn providers() -> Vec<(&'static str, bool)> {
    #[cfg(feature = "onnxruntime")]
    return provider::KNOWN.to_vec();
    #[cfg(not(feature = "onnxruntime"))]
    return Vec::new();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backends_have_the_names_that_people_type() {
        for backend in [Backend::Auto, Backend::OnnxRuntime, Backend::Rust] {
            assert_eq!(backend.to_string().parse::<Backend>().unwrap(), backend);
        }
        assert_eq!(
            "gpu".parse::<Backend>().unwrap_err().to_string(),
            "`gpu` (argument) is no backend; use auto, ort or rust"
        );
    }

    #[test]
    fn the_rust_backend_refuses_a_provider_and_names_it() {
        let options =
            RunOptions { backend: Backend::Rust, provider: Some("cuda".to_owned()), ..RunOptions::default() };
        assert!(resolve(&options).unwrap_err().to_string().contains("`cuda`"));
    }
}
