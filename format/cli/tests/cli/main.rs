//! The real program, run on small pictures.
#![allow(clippy::unwrap_used)]

#[cfg(unix)]
mod bench;
mod common;
mod examine;
mod failures;
mod folders;
mod metadata;
mod methods;
mod pictures;
