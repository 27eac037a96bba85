//! The SDL picture format: a picture stored as the quantised, entropy-coded latent of a neural network.
//!
//! With the `image` crate (feature `image`, on by default):
//!
//! ```no_run
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! image_sdl::register(); // once, when the program starts
//! let picture = image::open("photo.sdl")?;
//! image_sdl::save(&picture, "copy.sdl", &image_sdl::EncodeOptions::default().with_quality(40))?;
//! # Ok(())
//! # }
//! ```
//!
//! Without it, [`encode`] and [`Decoder`] work on a plain [`Picture`]; [`SequenceEncoder`] and [`SequenceDecoder`] on one after
//! the other, each coded as what changed since the one before.
//!
//! A picture goes through the stages of this crate in the order of its modules: `picture` (pixels), `codec` (graphs,
//! tiles, rate control), `latent` (quantised values to symbols), `entropy` (symbols to bytes), `container` (chunks, the
//! file). The file format is specified in `docs/FORMAT.md`.
#![forbid(unsafe_code)]
#![deny(missing_docs)]

#[cfg(feature = "image")]
mod adapter;
mod codec;
mod container;
#[doc(hidden)]
pub mod entropy;
mod error;
mod file;
mod latent;
mod picture;
mod vectors;

#[cfg(feature = "image")]
pub use adapter::{SdlDecoder, SdlEncoder, decode_dynamic, encode_dynamic, register, save};
pub use codec::{
    Analysed, DEFAULT_EFFORT, DEFAULT_QUALITY, DecodeOptions, Decoder, Denoise, Denoising, EncodeOptions,
    Encoded, LatentMethod, MAX_EFFORT, Model, Progress, Rate, Reference, ReferenceName, SequenceDecoder,
    SequenceEncoder, Settings, Stage, StageTimes, Synthesis, Verified, decode, encode, encode_with,
};
pub use container::{
    AlphaDepth, BundleRef, ChunkInfo, EXTENSION, Header, MAX_HEADER_BYTES, MEDIA_TYPE, MIN_HEADER_BYTES,
    Method, SIGNATURE, is_delta,
};
pub use error::{Error, ErrorKind};
pub use file::{write_whole, write_whole_with};
pub use picture::{Alpha, Colour, Metadata, Picture};
pub use sdl_onnx as onnx;
