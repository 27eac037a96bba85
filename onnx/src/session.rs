//! Loaded graphs, shared by everybody in the process.
//!
//! The cache holds weak references: a graph lives as long as somebody uses it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use once_cell::sync::{Lazy, OnceCell};

use crate::engine::{self, Backend};
use crate::error::listed;
use crate::{
    Bundle, BundleId, Error, Graph, Manifest, Port, RunOptions, Tensor, TensorView, ValueInfo, role,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    bundle: BundleId,
    role: String,
    backend: Backend,
    provider: Option<String>,
    device: u32,
    threads: usize,
}

static CACHE: Lazy<Mutex<HashMap<Key, Weak<Shared>>>> = Lazy::new(Mutex::default);

/// A place for a graph; the first caller fills it while the others wait.
#[derive(Debug, Default)]
struct Shared(OnceCell<Loaded>);

#[derive(Debug)]
struct Loaded {
    graph: Box<dyn Graph>,
    inputs: Vec<ValueInfo>,
    outputs: Vec<ValueInfo>,
}

impl Graph for Shared {
    fn inputs(&self) -> &[ValueInfo] {
        self.0.get().map_or(&[], |loaded| &loaded.inputs)
    }

    fn outputs(&self) -> &[ValueInfo] {
        self.0.get().map_or(&[], |loaded| &loaded.outputs)
    }

    fn run(&self, inputs: &[(&str, TensorView<'_>)], outputs: &[&str]) -> Result<Vec<Tensor>, Error> {
        match self.0.get() {
            Some(loaded) => loaded.graph.run(inputs, outputs),
            // Nobody is given one before it is filled.
            None => Err(Error::Run {
                graph: "?".to_owned(),
                engine: "the cache".to_owned(),
                reason: "the graph is not loaded".to_owned(),
            }),
        }
    }

    fn gradient(
        &self,
        input: &TensorView<'_>,
        loss: &mut dyn FnMut(&Tensor) -> Vec<f32>,
    ) -> Option<Result<Vec<f32>, Error>> {
        self.0.get()?.graph.gradient(input, loss)
    }
}

pub(crate) fn graph(bundle: &Bundle, role: &str, options: &RunOptions) -> Result<Arc<dyn Graph>, Error> {
    // The encoder of such a bundle is not promised to the bit, but made of the same integers.
    let exact = bundle.manifest().pixels.exact;
    let backend = if exact { engine::resolve_exact(options)? } else { engine::resolve(options)? };
    let key = Key {
        bundle: bundle.id(),
        role: role.to_owned(),
        backend,
        provider: options.accelerator().map(str::to_ascii_lowercase),
        device: options.device,
        threads: options.thread_count(),
    };
    let shared = {
        let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
        match cache.get(&key).and_then(Weak::upgrade) {
            Some(shared) => shared,
            None => {
                cache.retain(|_, weak| weak.strong_count() > 0);
                let shared = Arc::new(Shared::default());
                cache.insert(key, Arc::downgrade(&shared));
                shared
            }
        }
    };
    // A failure leaves the place empty, and the next caller tries again.
    shared.0.get_or_try_init(|| {
        let options = &RunOptions { backend, ..options.clone() };
        let graph = engine::engine_for(options)?.load(&bundle.graph_source(role)?, options)?;
        let problem = |problem: String| Error::Signature {
            bundle: bundle.label().to_owned(),
            role: role.to_owned(),
            problem,
        };
        let (inputs, outputs) = agree(bundle.manifest(), role, &*graph).map_err(problem)?;
        Ok::<_, Error>(Loaded { graph, inputs, outputs })
    })?;
    Ok(shared)
}

/// The inputs and outputs in the order of the manifest, if the graph is what the manifest says.
fn agree(
    manifest: &Manifest,
    name: &str,
    graph: &dyn Graph,
) -> Result<(Vec<ValueInfo>, Vec<ValueInfo>), String> {
    let declared = manifest.graphs.get(name);
    let declared =
        |which: fn(&crate::GraphEntry) -> &Vec<Port>| declared.map(which).map_or(&[][..], Vec::as_slice);
    let inputs = ordered("input", declared(|entry| &entry.inputs), graph.inputs())?;
    let outputs = ordered("output", declared(|entry| &entry.outputs), graph.outputs())?;
    if let Some(extra) = graph.inputs().iter().find(|info| inputs.iter().all(|known| known.name != info.name))
    {
        return Err(format!("the graph has an input `{}` that bundle.toml does not declare", extra.name));
    }
    // (N, C, H, W) goes in, and four axes come out.
    const PICTURE_RANK: usize = 4;
    let of_pictures =
        [role::ANALYSIS, role::SYNTHESIS, role::SYNTHESIS_NATURAL, role::CORRECTION, role::DENOISER];
    let picture = of_pictures.contains(&name);
    for (kind, info) in [("input", inputs.first()), ("output", outputs.first())] {
        // Whoever runs a graph, of whatever role, gives it something and takes something out.
        let Some(info) = info else { return Err(format!("the graph has no {kind}")) };
        if let Some(shape) = info.shape.as_ref().filter(|shape| picture && shape.len() != PICTURE_RANK) {
            return Err(format!(
                "{kind} `{}` has {} dimensions, and {PICTURE_RANK} are needed (N, C, H, W)",
                info.name,
                shape.len()
            ));
        }
    }
    Ok((inputs, outputs))
}

fn ordered(kind: &str, declared: &[Port], found: &[ValueInfo]) -> Result<Vec<ValueInfo>, String> {
    if declared.is_empty() {
        return Ok(found.to_vec());
    }
    let one = |port: &Port| {
        let info = found.iter().find(|info| info.name == port.name()).ok_or_else(|| {
            let known = listed(found.iter().map(|info| &info.name));
            format!("bundle.toml declares the {kind} `{}`, and the graph has {known}", port.name())
        })?;
        match (port.rank(), info.shape.as_ref().map(Vec::len)) {
            (Some(wanted), Some(rank)) if wanted != rank => Err(format!(
                "bundle.toml gives the {kind} `{}` {wanted} dimensions, and the graph gives it {rank}",
                info.name
            )),
            _ => Ok(info.clone()),
        }
    };
    declared.iter().map(one).collect()
}
