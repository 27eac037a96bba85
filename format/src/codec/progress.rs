//! What a long encode or decode is at, and how to stop it.

use std::fmt;
use std::sync::Arc;

use crate::Error;

/// A part of the work that takes long with a large model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Stage {
    /// Pixels to latent.
    Analysis,
    /// One step of an encoder that refines the latent.
    Refinement,
    /// One prediction of the denoiser.
    Denoising,
    /// Latent to pixels.
    Synthesis,
    /// Decoding of candidates, by an encoder that searches.
    Search,
}

impl Stage {
    /// Its name, for people.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Analysis => "analysis",
            Stage::Refinement => "refinement",
            Stage::Denoising => "denoising",
            Stage::Synthesis => "synthesis",
            Stage::Search => "search",
        }
    }
}

/// Told before every run of a large graph which run of how many it is; `false` stops the work with [`Error::Interrupted`].
#[derive(Clone)]
pub struct Progress(Arc<dyn Fn(Stage, usize, usize) -> bool + Send + Sync>);

impl Progress {
    /// Calls `told(stage, done, of)` from whatever thread does the work.
    pub fn new(told: impl Fn(Stage, usize, usize) -> bool + Send + Sync + 'static) -> Self {
        Progress(Arc::new(told))
    }
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Progress")
    }
}

/// The same listener.
impl PartialEq for Progress {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Progress {}

/// Tells whoever listens.
pub(crate) fn tell(progress: &Option<Progress>, stage: Stage, done: usize, of: usize) -> Result<(), Error> {
    match progress {
        Some(Progress(told)) if !told(stage, done, of) => Err(Error::Interrupted),
        _ => Ok(()),
    }
}
