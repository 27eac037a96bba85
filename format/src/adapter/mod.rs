//! The `image` crate's side: registration, decoder, encoder. Types of `image` stay in here.

mod colour;
mod convert;
mod decoder;
mod encoder;

use std::ffi::OsString;

pub use decoder::{SdlDecoder, decode_dynamic};
pub use encoder::{SdlEncoder, encode_dynamic, save};

use crate::{EXTENSION, Error, ErrorKind, SIGNATURE};
use image::error::{
    DecodingError, EncodingError, ImageError, ImageFormatHint, LimitError, LimitErrorKind, ParameterError,
    ParameterErrorKind, UnsupportedError, UnsupportedErrorKind,
};

/// Registers the format with the `image` crate: `image::open("x.sdl")`, `ImageReader` and `load_from_memory` work from then
/// on, by extension and by content. Call it once, when the program starts.
///
/// Returns `false` where somebody has registered the extension `sdl` before; then nothing is changed.
pub fn register() -> bool {
    let hook: image::hooks::DecodingHook = Box::new(|reader| Ok(Box::new(SdlDecoder::new(reader)?)));
    let accepted = image::hooks::register_decoding_hook(OsString::from(EXTENSION), hook);
    if accepted {
        image::hooks::register_format_detection_hook(OsString::from(EXTENSION), &SIGNATURE, None);
    }
    accepted
}

fn hint() -> ImageFormatHint {
    ImageFormatHint::Name("SDL".to_owned())
}

/// An error of decoding, in the words of `image`.
fn decoding(error: Error) -> ImageError {
    match error.kind() {
        ErrorKind::Limits => ImageError::Limits(LimitError::from_kind(LimitErrorKind::InsufficientMemory)),
        ErrorKind::Unsupported => ImageError::Unsupported(UnsupportedError::from_format_and_kind(
            hint(),
            UnsupportedErrorKind::GenericFeature(error.to_string()),
        )),
        ErrorKind::Io => match error {
            Error::Io(error) => ImageError::IoError(error),
            other => ImageError::Decoding(DecodingError::new(hint(), other)),
        },
        _ => ImageError::Decoding(DecodingError::new(hint(), error)),
    }
}

/// An error of encoding, in the words of `image`.
fn encoding(error: Error) -> ImageError {
    match error {
        Error::Io(error) => ImageError::IoError(error),
        error if error.kind() == ErrorKind::Parameter => {
            ImageError::Parameter(ParameterError::from_kind(ParameterErrorKind::Generic(error.to_string())))
        }
        error => ImageError::Encoding(EncodingError::new(hint(), error)),
    }
}
