//! What can go wrong, in words that say where and what to do.

use thiserror::Error;

/// What an error is about: what a caller decides by, and the exit code of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The caller's parameters do not fit.
    Parameter,
    /// The file is damaged, cut, hostile, or not an SDL file.
    Corrupt,
    /// The file needs a newer version of this program.
    Unsupported,
    /// The file is a delta picture, and the picture that it needs is not here.
    Reference,
    /// A bundle or an engine is missing or broken.
    Model,
    /// Reading or writing failed.
    Io,
    /// The picture is larger than the limits allow.
    Limits,
    /// The size asked for cannot be reached.
    Target,
    /// The caller asked to stop.
    Interrupted,
}

/// An error of encoding or decoding.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The first bytes are not those of an SDL file.
    #[error("not an SDL file: {0}")]
    NotSdl(&'static str),
    /// The file ends too early.
    #[error("the file is cut short: it ends after {found} bytes in the {place}")]
    Truncated {
        /// Bytes read before the end.
        found: u64,
        /// What was being read.
        place: &'static str,
    },
    /// Something in the file contradicts the format.
    #[error("the file is damaged: {0}")]
    Corrupt(String),
    /// A checksum does not match.
    #[error("the file is damaged: the checksum of {0} does not match")]
    Checksum(String),
    /// The decoded latent is not the one that was encoded, although every byte of the file is right.
    #[error(
        "tile {tile} decodes to another latent than the encoder had, though the file is intact: the engine `{engine}` \
         computes the bundle differently; try another with SDL_BACKEND, and please report it"
    )]
    Diverged {
        /// The tile, in raster order.
        tile: usize,
        /// The engine that ran.
        engine: String,
    },
    /// The file uses what this version does not know.
    #[error("{0}; a newer version of SDL may read it")]
    Unsupported(String),
    /// The bundle that the file names is not here.
    #[error("{0}")]
    MissingBundle(String),
    /// A delta picture was given without the picture that it is coded against.
    #[error(
        "this is a delta picture, coded against picture {wanted}, and {}; decode its sequence from a key picture on",
        found.map_or_else(|| "no picture came before it".to_owned(), |found| format!("the one before it was {found}"))
    )]
    MissingReference {
        /// The picture that it needs.
        wanted: crate::ReferenceName,
        /// The picture that was there.
        found: Option<crate::ReferenceName>,
    },
    /// A bundle or an engine failed.
    #[error(transparent)]
    Model(#[from] sdl_onnx::Error),
    /// The picture needs more than the limits allow.
    #[error("{what} needs {needed}, and the limit is {limit}; raise the limit if the file can be trusted")]
    Limits {
        /// What is too large.
        what: &'static str,
        /// How much it needs, with its unit.
        needed: String,
        /// How much is allowed, with its unit.
        limit: String,
    },
    /// The caller's parameters do not fit.
    #[error("{0}")]
    Parameter(String),
    /// No setting makes the file as small as was asked for.
    #[error("the smallest file of this picture is {smallest} bytes, more than the {asked} asked for")]
    Target {
        /// The smallest file that can be made.
        smallest: u64,
        /// What was asked for.
        asked: u64,
    },
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The caller asked to stop.
    #[error("stopped")]
    Interrupted,
}

impl Error {
    /// What the error is about.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Error::NotSdl(_) | Error::Truncated { .. } | Error::Corrupt(_) | Error::Checksum(_) => {
                ErrorKind::Corrupt
            }
            Error::Unsupported(_) => ErrorKind::Unsupported,
            Error::MissingBundle(_) | Error::Model(_) | Error::Diverged { .. } => ErrorKind::Model,
            Error::MissingReference { .. } => ErrorKind::Reference,
            Error::Limits { .. } => ErrorKind::Limits,
            Error::Parameter(_) => ErrorKind::Parameter,
            Error::Target { .. } => ErrorKind::Target,
            Error::Io(_) => ErrorKind::Io,
            Error::Interrupted => ErrorKind::Interrupted,
        }
    }

    pub(crate) fn corrupt(what: impl Into<String>) -> Self {
        Error::Corrupt(what.into())
    }
}

impl From<crate::entropy::EntropyError> for Error {
    fn from(error: crate::entropy::EntropyError) -> Self {
        Error::Corrupt(error.to_string())
    }
}
