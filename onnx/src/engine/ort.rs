//! The engine on ONNX Runtime.
//!
//! `Session::run` takes `&mut self`, so a graph holds a pool of sessions: tiles run in parallel, each on the threads of
//! its own session. A large graph, and one on an accelerator, has a single session for which callers queue.

use std::fmt::Debug;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use once_cell::sync::OnceCell;
use ort::ep;
use ort::session::builder::{AutoDevicePolicy, SessionBuilder};
use ort::session::{OutputSelector, Session, SessionInputValue};
use ort::value::{DynValue, PrimitiveTensorElementType, TensorElementType, TensorRef, ValueType};

use super::signature::Signature;
use super::source::{LARGE, Model};
use super::{library, provider, wire};
use crate::tensor::Elements;
use crate::{
    Dimension, ElementType, Engine, Error, Graph, GraphSource, RunOptions, Tensor, TensorData, TensorView,
    ValueInfo, ViewData,
};

const NAME: &str = "ONNX Runtime";

struct OnnxRuntime {
    environment: &'static ort::environment::Environment,
}

/// The engine, if a library is found.
pub(super) fn engine() -> Result<&'static dyn Engine, Error> {
    static ENGINE: OnceCell<OnnxRuntime> = OnceCell::new();
    let engine =
        ENGINE.get_or_try_init(|| library::environment().map(|environment| OnnxRuntime { environment }))?;
    Ok(engine)
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &str {
        NAME
    }

    fn version(&self) -> String {
        let least = format!("{} or newer", super::MINIMUM_ONNX_RUNTIME);
        library::survey().version().map_or(least, str::to_owned)
    }

    fn load(&self, source: &GraphSource, options: &RunOptions) -> Result<Box<dyn Graph>, Error> {
        let accelerated = options.accelerator().is_some();
        let single = accelerated || source.weight() > LARGE;
        let limit = if single { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
        let loader =
            Loader { environment: self.environment, source: source.clone(), options: options.clone() };
        loader.check()?;
        let session = loader.session()?;
        let graph = source.name().to_owned();
        let inputs = session.inputs().iter().map(|value| info(value.name(), value.dtype())).collect();
        let outputs = session.outputs().iter().map(|value| info(value.name(), value.dtype())).collect();
        Ok(Box::new(OrtGraph {
            signature: Signature { graph, inputs, outputs },
            pool: Pool {
                state: Mutex::new(PoolState { idle: vec![session], made: 1 }),
                freed: Condvar::new(),
                limit,
            },
            // A graph that gets no second session needs its bytes no more.
            loader: (limit > 1).then_some(loader),
        }))
    }
}

fn info(name: &str, value: &ValueType) -> ValueInfo {
    let (element_type, shape) = match value {
        ValueType::Tensor { ty, shape, dimension_symbols } => {
            let dimensions = shape.iter().zip(dimension_symbols.iter()).map(|(&size, symbol)| {
                usize::try_from(size).map_or_else(|_| Dimension::Any(symbol.to_string()), Dimension::Fixed)
            });
            (element_type(*ty), Some(dimensions.collect()))
        }
        _ => (None, None),
    };
    ValueInfo { name: name.to_owned(), element_type, shape }
}

fn element_type(value: TensorElementType) -> Option<ElementType> {
    match value {
        TensorElementType::Float32 => Some(ElementType::F32),
        TensorElementType::Uint8 => Some(ElementType::U8),
        TensorElementType::Int8 => Some(ElementType::I8),
        TensorElementType::Int32 => Some(ElementType::I32),
        TensorElementType::Int64 => Some(ElementType::I64),
        _ => None,
    }
}

/// What makes one session more.
struct Loader {
    environment: &'static ort::environment::Environment,
    source: GraphSource,
    options: RunOptions,
}

impl Loader {
    fn failed(&self, reason: impl Into<String>) -> Error {
        Error::Load { graph: self.source.name().to_owned(), engine: NAME.to_owned(), reason: reason.into() }
    }

    /// Fails unless the graph is an ONNX model that reads no file which was not declared: ONNX Runtime opens any.
    fn check(&self) -> Result<(), Error> {
        let read;
        let bytes: &[u8] = match self.source.model() {
            Model::Bytes { model, .. } => model,
            Model::File { model, .. } => {
                read = std::fs::read(model).map_err(|error| self.failed(error.to_string()))?;
                &read
            }
        };
        wire::check(bytes, &self.source).map(|_| ()).map_err(|reason| self.failed(reason))
    }

    fn session(&self) -> Result<Session, Error> {
        let provider = match provider::dispatch(&self.options)? {
            // With its arena, also for large graphs: without it the decoder of Stable Diffusion takes a tenth more time for a
            // tenth less memory (docs/results/latent-methods.md).
            None => ep::CPU::default().with_arena_allocator(true).build().error_on_failure(),
            Some(provider) => provider,
        };
        let reported = |error: ort::Error| self.failed(error.message());
        let name = provider.name();
        let mut builder =
            self.configured().map_err(reported)?.with_execution_providers([provider]).map_err(|error| {
                Error::Provider { provider: name.to_owned(), problem: error.message().to_owned() }
            })?;
        match self.source.model() {
            Model::File { model, .. } => builder.commit_from_file(model).map_err(reported),
            Model::Bytes { model, external } => {
                for (name, bytes) in external {
                    let bytes: std::sync::Arc<[u8]> = match bytes {
                        super::Bytes::Static(bytes) => (*bytes).into(),
                        super::Bytes::Shared(bytes) => bytes.clone(),
                    };
                    builder = builder
                        .with_external_initializer_file_in_memory(name, bytes)
                        .map_err(|error| reported(ort::Error::new(error.message())))?;
                }
                builder.commit_from_memory(model).map_err(reported)
            }
        }
    }

    fn configured(&self) -> Result<SessionBuilder, ort::Error> {
        let plain = |error: ort::Error<SessionBuilder>| ort::Error::new(error.message());
        Session::builder(self.environment)?
            // By default `ort` lets ONNX Runtime choose a provider, which on macOS is always CoreML: not exact.
            .with_auto_device(AutoDevicePolicy::PreferCPU)
            .map_err(plain)?
            .with_no_environment_execution_providers()
            .map_err(plain)?
            .with_intra_threads(self.options.thread_count())
            .map_err(plain)?
            .with_inter_threads(1)
            .map_err(plain)?
            // A library must not burn the processors of its host while it waits for the next picture.
            .with_intra_op_spinning(false)
            .map_err(plain)?
            // Patterns are remembered per input shape; pictures have many.
            .with_memory_pattern(false)
            .map_err(plain)
    }
}

/// Sessions at rest, and how many there are in all.
struct PoolState {
    idle: Vec<Session>,
    made: usize,
}

struct Pool {
    state: Mutex<PoolState>,
    freed: Condvar,
    limit: usize,
}

/// A panic of another caller leaves the pool in order: sessions are taken out and put back whole.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A session of one's own: one at rest, else a new one while the limit allows, else the next that comes back.
    fn take(&self, make: impl FnOnce() -> Result<Session, Error>) -> Result<Lease<'_>, Error> {
        let mut state = locked(&self.state);
        loop {
            if let Some(session) = state.idle.pop() {
                return Ok(Lease { pool: self, session: Some(session) });
            }
            if state.made < self.limit {
                state.made += 1;
                drop(state);
                // The lease is there first, so that a failure gives the place back.
                let mut lease = Lease { pool: self, session: None };
                lease.session = Some(make()?);
                return Ok(lease);
            }
            state = self.freed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

struct Lease<'a> {
    pool: &'a Pool,
    session: Option<Session>,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let mut state = locked(&self.pool.state);
        match self.session.take() {
            Some(session) => state.idle.push(session),
            None => state.made -= 1,
        }
        drop(state);
        self.pool.freed.notify_one();
    }
}

struct OrtGraph {
    signature: Signature,
    pool: Pool,
    loader: Option<Loader>,
}

impl std::fmt::Debug for OrtGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OrtGraph").field("signature", &self.signature).finish_non_exhaustive()
    }
}

impl OrtGraph {
    fn failed(&self, reason: impl Into<String>) -> Error {
        Error::Run { graph: self.signature.graph.clone(), engine: NAME.to_owned(), reason: reason.into() }
    }

    fn value<'v>(&self, name: &str, view: &TensorView<'v>) -> Result<SessionInputValue<'v>, Error> {
        let shape = view.shape().to_vec();
        let declared = self.signature.declared(name);
        let value = match (view.data(), declared) {
            (ViewData::I32(data), Some(ElementType::I64)) => {
                let wide: Vec<i64> = data.iter().copied().map(i64::from).collect();
                ort::value::Tensor::from_array((shape, wide)).map(SessionInputValue::from)
            }
            (ViewData::I64(data), Some(ElementType::I32)) => {
                let narrow: Result<Vec<i32>, _> = data.iter().copied().map(i32::try_from).collect();
                let narrow = narrow.map_err(|_| Error::Input {
                    graph: self.signature.graph.clone(),
                    input: name.to_owned(),
                    problem: "the graph wants i32, and a value does not fit in it".to_owned(),
                })?;
                ort::value::Tensor::from_array((shape, narrow)).map(SessionInputValue::from)
            }
            (ViewData::I16(data), _) => {
                let real: Vec<f32> = data.iter().copied().map(f32::from).collect();
                ort::value::Tensor::from_array((shape, real)).map(SessionInputValue::from)
            }
            (ViewData::F32(data), _) => {
                TensorRef::from_array_view((shape, data)).map(SessionInputValue::from)
            }
            (ViewData::U8(data), _) => TensorRef::from_array_view((shape, data)).map(SessionInputValue::from),
            (ViewData::I8(data), _) => TensorRef::from_array_view((shape, data)).map(SessionInputValue::from),
            (ViewData::I32(data), _) => {
                TensorRef::from_array_view((shape, data)).map(SessionInputValue::from)
            }
            (ViewData::I64(data), _) => {
                TensorRef::from_array_view((shape, data)).map(SessionInputValue::from)
            }
        };
        value.map_err(|error| self.failed(format!("input `{name}`: {}", error.message())))
    }

    fn tensor(&self, name: &str, value: DynValue) -> Result<Tensor, Error> {
        macro_rules! extract {
            ($variant:ident, $type:ty) => {{
                let (shape, _) =
                    value.try_extract_tensor::<$type>().map_err(|error| self.failed(error.message()))?;
                let shape: Result<Vec<usize>, _> = shape.iter().map(|&size| usize::try_from(size)).collect();
                let shape = shape.map_err(|_| self.failed(format!("output `{name}` has a negative size")))?;
                let value = value.downcast().map_err(|error| self.failed(error.message()))?;
                Tensor::new(shape, TensorData::$variant(Elements::of_engine(Output::<$type>(value))))
            }};
        }
        match value.dtype().tensor_type() {
            Some(TensorElementType::Float32) => extract!(F32, f32),
            Some(TensorElementType::Uint8) => extract!(U8, u8),
            Some(TensorElementType::Int8) => extract!(I8, i8),
            Some(TensorElementType::Int32) => extract!(I32, i32),
            Some(TensorElementType::Int64) => extract!(I64, i64),
            other => Err(self.failed(format!("output `{name}` is {other:?}, which is not handled here"))),
        }
    }
}

/// An output in the memory of ONNX Runtime, known to be readable from here.
struct Output<T: PrimitiveTensorElementType + Debug>(ort::value::Tensor<T>);

impl<T: PrimitiveTensorElementType + Debug> AsRef<[T]> for Output<T> {
    fn as_ref(&self) -> &[T] {
        self.0.extract_tensor().1
    }
}

impl Graph for OrtGraph {
    fn inputs(&self) -> &[ValueInfo] {
        &self.signature.inputs
    }

    fn outputs(&self) -> &[ValueInfo] {
        &self.signature.outputs
    }

    fn run(&self, inputs: &[(&str, TensorView<'_>)], outputs: &[&str]) -> Result<Vec<Tensor>, Error> {
        self.signature.check(inputs, outputs)?;
        let values: Vec<(&str, SessionInputValue<'_>)> = inputs
            .iter()
            .map(|(name, view)| Ok((*name, self.value(name, view)?)))
            .collect::<Result<_, Error>>()?;
        let selected =
            outputs.iter().fold(OutputSelector::no_default(), |selected, name| selected.with(*name));
        let options = ort::session::RunOptions::new()
            .map_err(|error| self.failed(error.message()))?
            .with_outputs(selected);
        let mut lease = self.pool.take(|| match &self.loader {
            Some(loader) => loader.session(),
            None => Err(self.failed("a second session was asked for")),
        })?;
        let Some(session) = &mut lease.session else { return Err(self.failed("no session")) };
        let mut results =
            session.run_with_options(values, &options).map_err(|error| self.failed(error.message()))?;
        outputs
            .iter()
            .map(|name| {
                let value =
                    results.remove(name).ok_or_else(|| self.failed(format!("output `{name}` is missing")))?;
                self.tensor(name, value)
            })
            .collect()
    }
}
