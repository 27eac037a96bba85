//! Symbols to bytes and back: the range coder, and the two models that drive it.
//!
//! - [`RangeEncoder`], [`RangeDecoder`]: integer arithmetic coding, one byte at a time.
//! - [`CdfTable`], [`CdfSet`]: frozen tables of a bundle, for models with a trained hyper-latent.
//! - [`universal`]: an adaptive coder for latents of any autoencoder.
//! - [`index`]: an adaptive coder for indices into a palette or a codebook.
//! - `adaptive`, `logistic`: what those two share.
//!
//! Everything here is integer arithmetic whose results are part of the format (docs/FORMAT.md part II): a change of one
//! constant makes old files unreadable.

mod adaptive;
pub mod index;
mod logistic;
mod range;
mod tables;
pub mod universal;

pub(crate) use adaptive::{Average, BinaryCoder};
pub use range::{MAX_OVERRUN, RangeDecoder, RangeEncoder};
pub use tables::{CdfSet, CdfTable, MAX_SYMBOLS, MAX_TABLES, MIN_SET_BYTES, SYMBOL_LIMIT};
pub use universal::LatentShape;

/// What can be wrong with entropy-coded data, or with what is to be coded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntropyError {
    /// The decoder needed more bytes than the encoder can have left out.
    #[error("entropy-coded data ends {missing} bytes too early; the file is cut or damaged")]
    Overrun {
        /// Bytes read past the end, beyond what an encoder may drop.
        missing: usize,
    },
    /// More bytes than the symbols need.
    #[error("{unused} bytes of entropy-coded data are left over; the file is damaged")]
    Trailing {
        /// Bytes that were never read.
        unused: usize,
    },
    /// An escape code or a symbol lies outside what any encoder writes.
    #[error("entropy-coded data holds a symbol beyond +-2^20; the file is damaged")]
    Corrupt,
    /// A table of frequencies is not a probability distribution in the form of the format.
    #[error("frequency table {table}: {reason}")]
    InvalidTable {
        /// Which table of the set, from 0.
        table: usize,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// A symbol to be encoded is beyond what the bitstream can hold.
    #[error("symbol {symbol} is beyond +-2^20; use a larger quantiser step")]
    SymbolRange {
        /// The symbol.
        symbol: i32,
    },
    /// The number of symbols is not the one the shape asks for.
    #[error("{symbols} symbols given for a latent shape of {expected}")]
    ShapeMismatch {
        /// Symbols given.
        symbols: usize,
        /// Symbols of the shape (`usize::MAX` where the product overflows).
        expected: usize,
    },
}

/// FNV-1a, 64 bits: names the bytes of a known-answer test.
#[cfg(test)]
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}
