//! The built-in model: a bundle inside the program.

use once_cell::sync::OnceCell;

use crate::{Bundle, BundleId, Error};

/// `onnx/models/sdl-7.sdlm`, trained by `onnx/train` (docs/results/generation-7.md, natural.md).
static BYTES: &[u8] = include_bytes!("../models/sdl-7.sdlm");
/// Of those bytes: hashing them all took a fifth of the time that a small picture takes.
const ID: BundleId = BundleId::new([
    0xd8, 0x5a, 0xcd, 0x50, 0x1c, 0xb6, 0xb2, 0x38, 0xe4, 0xca, 0xc9, 0xf0, 0x30, 0x3e, 0x39, 0x1c, 0x3e,
    0x73, 0x99, 0xe9, 0x7b, 0x47, 0x66, 0x7f, 0x9d, 0x85, 0x6c, 0xca, 0xc8, 0x93, 0x9d, 0xe4,
]);

/// The bundle of the built-in model. Nothing is read from disk.
pub fn builtin() -> Result<Bundle, Error> {
    static BUNDLE: OnceCell<Bundle> = OnceCell::new();
    BUNDLE.get_or_try_init(|| Bundle::known("the built-in model", BYTES, ID)).cloned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_that_of_the_bytes() {
        let hashed = Bundle::from_static("the built-in model", BYTES).unwrap();
        let known = builtin().unwrap();
        assert_eq!((known.id(), known.manifest()), (hashed.id(), hashed.manifest()));
        assert!(known.entries().eq(hashed.entries()));
    }
}
