//! The built-in model: a bundle inside the program.

use once_cell::sync::OnceCell;

use crate::{Bundle, Error};

/// `onnx/models/sdl-7.sdlm`, trained by `onnx/train` (docs/results/generation-7.md, natural.md).
static BYTES: &[u8] = include_bytes!("../models/sdl-7.sdlm");

/// The bundle of the built-in model. Nothing is read from disk.
pub fn builtin() -> Result<Bundle, Error> {
    static BUNDLE: OnceCell<Bundle> = OnceCell::new();
    BUNDLE.get_or_try_init(|| Bundle::from_static("the built-in model", BYTES)).cloned()
}
