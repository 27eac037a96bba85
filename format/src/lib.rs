//! .
#[doc(hidden)]
pub mod entropy;
