//! What the tests across rooms share: sources, bundles, engines, and a reading of the container of its own.
#![forbid(unsafe_code)]

mod camera;
mod container;
mod engines;
mod pictures;
mod random;
mod vectors;

pub use camera::static_camera;
pub use container::Container;
pub use engines::{backends, blocks, built_in, options};
pub use pictures::{checkerboard, gradient, grey, photograph, psnr, scene, text};
pub use random::Random;
pub use vectors::{
    Recipe, Vector, bless, decoder, folder, layout, pixel_sum, read_vectors, recipes, sum, write_vectors,
};

/// An Exif block with one tag: the orientation (1 to 8).
#[must_use]
pub fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"II*\0\x08\0\0\0\x01\0".to_vec();
    // Tag 0x0112, type 3 (16 bits), one value; then no further directory.
    block.extend([0x12, 0x01, 3, 0, 1, 0, 0, 0, orientation, 0, 0, 0, 0, 0, 0, 0]);
    block
}

/// A profile as bytes that do not depend on the clock.
///
/// # Panics
///
/// If the profile has no form in bytes.
#[must_use]
pub fn profile(profile: &moxcms::ColorProfile) -> Vec<u8> {
    /// When the profile was made: ICC.1:2022, table 17.
    const DATE: std::ops::Range<usize> = 24..36;
    let mut bytes = profile.encode().expect("a profile");
    bytes[DATE].fill(0);
    bytes
}
