//! Models and the engines that run them.

use std::sync::OnceLock;

use image_sdl::onnx::{self, Backend, Bundle};
use image_sdl::{DecodeOptions, Model, Settings};

/// The backends to test: always Rust, and ONNX Runtime where it is found. Where it is not, this says so; with
/// `SDL_REQUIRE_ORT=1` it fails.
///
/// # Panics
///
/// With `SDL_REQUIRE_ORT=1` and no ONNX Runtime.
#[must_use]
pub fn backends() -> Vec<Backend> {
    match onnx::engine(Backend::OnnxRuntime) {
        Ok(_) => vec![Backend::OnnxRuntime, Backend::Rust],
        Err(error @ onnx::Error::Library(_)) => {
            assert!(std::env::var_os("SDL_REQUIRE_ORT").is_none_or(|value| value != "1"), "{error}");
            eprintln!("\n=== SKIPPED: no ONNX Runtime, tested the Rust backend alone ===\n{error}\n");
            vec![Backend::Rust]
        }
        Err(error) => panic!("{error}"),
    }
}

/// How to decode with this backend and this many threads.
#[must_use]
pub fn options(backend: Backend, threads: usize) -> DecodeOptions {
    DecodeOptions::default().with_threads(threads).with_settings(settings(backend))
}

fn settings(backend: Backend) -> Settings {
    Settings { backend, ..Settings::default() }
}

/// The built-in model.
///
/// # Panics
///
/// If this build has none.
#[must_use]
pub fn built_in(backend: Backend) -> Model {
    let bundle = onnx::builtin().expect("a built-in model");
    Model::with_settings(bundle, settings(backend)).expect("its tables")
}

/// The bundle without tables in `bundles/blocks`.
///
/// # Panics
///
/// If it is not there.
#[must_use]
pub fn blocks(backend: Backend) -> Model {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    let open = || Bundle::open(crate::folder("bundles").join("blocks")).expect("the bundle `blocks`");
    Model::with_settings(BUNDLE.get_or_init(open).clone(), settings(backend))
        .expect("a bundle without tables")
}
