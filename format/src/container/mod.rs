//! The file: a header, then chunks, each under a checksum (docs/FORMAT.md sections 2 and 3).

mod chunk;
mod header;

pub use chunk::{ChunkInfo, is_delta};
pub(crate) use chunk::{ChunkReader, ChunkWriter, chunk_type};
pub use header::{AlphaDepth, BundleRef, Header, MAX_HEADER_BYTES, MIN_HEADER_BYTES, Method, SIGNATURE};

/// The media type of SDL files.
pub const MEDIA_TYPE: &str = "image/x-sdl";
/// The extension of SDL files, without the dot.
pub const EXTENSION: &str = "sdl";
