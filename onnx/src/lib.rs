//! Model bundles, and the engines that run their graphs, for the SDL picture format.
//!
//! A [`Bundle`] is a model as data: ONNX graphs by role, tables, and a manifest that says what the numbers mean. A
//! [`Graph`] is one of its graphs, loaded; it takes named tensors and returns tensors. This crate knows tensors; it
//! knows nothing of pictures or of files of pictures.
//!
//! ```no_run
//! use sdl_onnx::{Bundle, RunOptions, TensorView, role};
//!
//! # fn main() -> Result<(), sdl_onnx::Error> {
//! let bundle = Bundle::open("taef2.sdlm")?;
//! let synthesis = bundle.graph(role::SYNTHESIS, &RunOptions::default())?;
//! let latent = vec![0.0f32; 32 * 8 * 12];
//! let input = &synthesis.inputs()[0].name;
//! let output = &synthesis.outputs()[0].name;
//! let pixels = synthesis.run(&[(input, TensorView::f32(&[1, 32, 8, 12], &latent)?)], &[output])?;
//! println!("{:?}", pixels[0].shape());
//! # Ok(())
//! # }
//! ```
//!
//! Two backends implement the same [`Graph`]: ONNX Runtime, looked for at run time (see [`LibraryReport`]), and Rust alone. In Rust,
//! graphs in the exact integer form that the built-in model has go to an engine of their own where the processor has
//! the vectors for it (see [`exact_engine`]), all others to rten. For graphs of that form every engine returns the same integers.
//!
//! Nothing here downloads anything, and no path or address found in a file is followed.
#![deny(unsafe_code)] // with the leaves that say so: engine/exact/kernel.rs, depthwise.rs and tiles.rs, and memory.rs
#![deny(missing_docs)]
// What only one engine uses is dead in a build without it.
#![cfg_attr(not(all(feature = "onnxruntime", feature = "rten")), allow(dead_code))]

mod archive;
#[cfg(feature = "builtin")]
mod builtin;
mod bundle;
mod engine;
mod error;
mod manifest;
pub mod memory;
mod session;
mod store;
mod tensor;

#[cfg(feature = "builtin")]
pub use builtin::builtin;
pub use bundle::{Bundle, BundleId};
pub use engine::{
    Backend, Bytes, Dimension, Engine, Graph, GraphSource, RunOptions, ValueInfo, auto_backend, engine,
    engine_for,
};
pub use engine::{LibraryReport, MINIMUM_ONNX_RUNTIME, Place, Verdict, exact_engine, providers, report};
pub use error::Error;
pub use manifest::{
    Codebook, Condition, Denoiser, FORMAT, GraphEntry, Latent, Manifest, PerChannel, Pixels, Port,
    Prediction, Schedule, Tables, Tiling, role,
};
pub use store::{Store, StoreEntry};
pub use tensor::{ElementType, Elements, Tensor, TensorData, TensorView, ViewData};
