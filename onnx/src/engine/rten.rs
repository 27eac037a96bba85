//! The engine in Rust alone, on rten.
//!
//! rten has tensors of f32, i32, i8 and u8; where a graph says i64, rten and this module say i32.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use ::rten::{
    DataType, Model as RtenModel, ModelOptions, NodeId, ThreadPool, Value, ValueOrView, ValueType, ValueView,
};
use once_cell::sync::Lazy;
use rten_tensor::prelude::*;
use rten_tensor::{Tensor as RtenTensor, TensorView as RtenView};

use super::signature::Signature;
use super::source::{LARGE, Model};
use super::{Bytes, wire};
use crate::{
    Dimension, ElementType, Engine, Error, Graph, GraphSource, RunOptions, Tensor, TensorData, TensorView,
    ValueInfo, ViewData,
};

const NAME: &str = "rten";

/// As in the workspace's version table; rten has no constant for it.
const VERSION: &str = "0.27";

pub(super) struct Rten;

pub(super) static ENGINE: Rten = Rten;

impl Engine for Rten {
    fn name(&self) -> &str {
        NAME
    }

    fn version(&self) -> String {
        VERSION.to_owned()
    }

    fn load(&self, source: &GraphSource, options: &RunOptions) -> Result<Box<dyn Graph>, Error> {
        #[cfg(target_arch = "x86_64")]
        if let Some(graph) = super::exact::load(source) {
            return Ok(graph);
        }
        load(source, options)
    }
}

/// rten follows a graph from its end with a call for each node of the longest chain, and the stack of a thread ends:
/// in 2 MiB behind 5000 of them. The UNet of Stable Diffusion 1.5 has some 2000, weights in half precision included.
const MOST_NODES: usize = 4000;

/// Fails unless the graph is one that rten can be given.
fn checked(bytes: &[u8], source: &GraphSource) -> Result<(), String> {
    let nodes = wire::check(bytes, source)?;
    if nodes > MOST_NODES {
        return Err(format!("it has {nodes} nodes, and {MOST_NODES} is the limit; ONNX Runtime has none"));
    }
    Ok(())
}

/// Loads any graph.
pub(super) fn load(source: &GraphSource, options: &RunOptions) -> Result<Box<dyn Graph>, Error> {
    let failed =
        |reason: String| Error::Load { graph: source.name().to_owned(), engine: NAME.to_owned(), reason };
    let load = || -> Result<RtenModel, String> {
        let mut loader = ModelOptions::with_all_ops();
        // Packed weights are a second copy of them.
        loader.prepack_weights(source.weight() <= LARGE);
        match source.model() {
            Model::File { model, external } => {
                let bytes = std::fs::read(model).map_err(|error| error.to_string())?;
                checked(&bytes, source)?;
                if external.is_empty() && model.extension().is_some_and(|extension| extension == "onnx") {
                    // Of an undeclared file of external data only the graph knows the name.
                    return loader.load_file(model).map_err(|error| error.to_string());
                }
                for path in external {
                    let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
                    let bytes =
                        std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
                    loader.external_data(&name.unwrap_or_default(), bytes);
                }
                loader.load(bytes).map_err(|error| error.to_string())
            }
            Model::Bytes { model, external } => {
                checked(model, source)?;
                for (name, bytes) in external {
                    match bytes {
                        Bytes::Static(bytes) => loader.external_data_static(name, bytes),
                        Bytes::Shared(bytes) => loader.external_data(name, bytes.to_vec()),
                    };
                }
                let loaded = match model {
                    Bytes::Static(bytes) => loader.load_static_slice(bytes),
                    Bytes::Shared(bytes) => loader.load(bytes.to_vec()),
                };
                loaded.map_err(|error| error.to_string())
            }
        }
    };
    let model = catch_unwind(load).unwrap_or_else(|_| Err("it panicked".to_owned())).map_err(failed)?;
    let infos = |ids: &[NodeId]| ids.iter().map(|id| info(&model, *id)).collect();
    let signature = Signature {
        graph: source.name().to_owned(),
        inputs: infos(model.input_ids()),
        outputs: infos(model.output_ids()),
    };
    Ok(Box::new(RtenGraph { model, signature, threads: options.thread_count() }))
}

fn info(model: &RtenModel, id: NodeId) -> ValueInfo {
    let node = model.node_info(id);
    let name = node.as_ref().and_then(|node| node.name()).unwrap_or_default().to_owned();
    let element_type = node.as_ref().and_then(|node| match node.dtype()? {
        ValueType::Tensor(DataType::Float) => Some(ElementType::F32),
        ValueType::Tensor(DataType::UInt8) => Some(ElementType::U8),
        ValueType::Tensor(DataType::Int8) => Some(ElementType::I8),
        ValueType::Tensor(DataType::Int32) => Some(ElementType::I32),
        _ => None,
    });
    let shape = node.as_ref().and_then(|node| node.shape()).map(|shape| {
        let dimensions = shape.into_iter().map(|dimension| match dimension {
            ::rten::Dimension::Fixed(size) => Dimension::Fixed(size),
            ::rten::Dimension::Symbolic(name) => Dimension::Any(name),
        });
        dimensions.collect()
    });
    ValueInfo { name, element_type, shape }
}

/// Thread pools at rest, by size. A run has one to itself: two runs in one pool of one thread would take turns.
static POOLS: Lazy<Mutex<HashMap<usize, Vec<Arc<ThreadPool>>>>> = Lazy::new(Mutex::default);

struct Threads {
    pool: Arc<ThreadPool>,
    count: usize,
}

impl Threads {
    fn take(count: usize) -> Self {
        let idle = POOLS.lock().unwrap_or_else(PoisonError::into_inner).get_mut(&count).and_then(Vec::pop);
        Threads { pool: idle.unwrap_or_else(|| Arc::new(ThreadPool::with_num_threads(count))), count }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        let mut pools = POOLS.lock().unwrap_or_else(PoisonError::into_inner);
        pools.entry(self.count).or_default().push(self.pool.clone());
    }
}

struct RtenGraph {
    model: RtenModel,
    signature: Signature,
    threads: usize,
}

impl std::fmt::Debug for RtenGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RtenGraph").field("signature", &self.signature).finish_non_exhaustive()
    }
}

impl RtenGraph {
    fn failed(&self, reason: impl Into<String>) -> Error {
        Error::Run { graph: self.signature.graph.clone(), engine: NAME.to_owned(), reason: reason.into() }
    }

    fn value<'v>(&self, name: &str, view: &TensorView<'v>) -> Result<ValueOrView<'v>, Error> {
        let shape = view.shape();
        Ok(match view.data() {
            ViewData::F32(data) => ValueView::from(RtenView::from_data(shape, data)).into(),
            ViewData::U8(data) => ValueView::from(RtenView::from_data(shape, data)).into(),
            ViewData::I8(data) => ValueView::from(RtenView::from_data(shape, data)).into(),
            ViewData::I16(data) => {
                let real: Vec<f32> = data.iter().copied().map(f32::from).collect();
                Value::from(RtenTensor::from_data(shape, real)).into()
            }
            ViewData::I32(data) => ValueView::from(RtenView::from_data(shape, data)).into(),
            ViewData::I64(data) => {
                let narrow: Result<Vec<i32>, _> = data.iter().copied().map(i32::try_from).collect();
                let narrow = narrow.map_err(|_| Error::Input {
                    graph: self.signature.graph.clone(),
                    input: name.to_owned(),
                    problem: "rten has 32-bit integers only, and a value does not fit".to_owned(),
                })?;
                Value::from(RtenTensor::from_data(shape, narrow)).into()
            }
        })
    }
}

fn tensor(value: Value) -> Option<Result<Tensor, Error>> {
    let shape = value.shape().to_vec();
    let data = match value {
        Value::FloatTensor(tensor) => TensorData::F32(tensor.into_data().into()),
        Value::UInt8Tensor(tensor) => TensorData::U8(tensor.into_data().into()),
        Value::Int8Tensor(tensor) => TensorData::I8(tensor.into_data().into()),
        Value::Int32Tensor(tensor) => TensorData::I32(tensor.into_data().into()),
        _ => return None,
    };
    Some(Tensor::new(shape, data))
}

impl Graph for RtenGraph {
    fn inputs(&self) -> &[ValueInfo] {
        &self.signature.inputs
    }

    fn outputs(&self) -> &[ValueInfo] {
        &self.signature.outputs
    }

    fn run(&self, inputs: &[(&str, TensorView<'_>)], outputs: &[&str]) -> Result<Vec<Tensor>, Error> {
        self.signature.check(inputs, outputs)?;
        let id = |name: &str| self.model.node_id(name).map_err(|error| self.failed(error.to_string()));
        let values: Vec<(NodeId, ValueOrView<'_>)> = inputs
            .iter()
            .map(|(name, view)| Ok((id(name)?, self.value(name, view)?)))
            .collect::<Result<_, Error>>()?;
        let ids: Vec<NodeId> = outputs.iter().map(|name| id(name)).collect::<Result<_, Error>>()?;
        let threads = Threads::take(self.threads);
        let options = ::rten::RunOptions::default().with_thread_pool(Some(threads.pool.clone()));
        // Arithmetic inside rten overflows with a panic in debug builds; a graph of somebody else may bring that about.
        let results = catch_unwind(AssertUnwindSafe(|| self.model.run(values, &ids, Some(options))))
            .map_err(|_| self.failed("it panicked"))?
            .map_err(|error| self.failed(error.to_string()))?;
        let named = results.into_iter().zip(outputs).map(|(value, name)| {
            tensor(value)
                .unwrap_or_else(|| Err(self.failed(format!("output `{name}` is no tensor of a known type"))))
        });
        named.collect()
    }
}
