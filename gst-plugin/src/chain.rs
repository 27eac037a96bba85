//! Sequences on several threads: what a picture leaves for the next one goes from worker to worker.

use std::sync::mpsc::{self, Receiver, Sender};

use image_sdl::{Error, Reference};

/// The end of a sequence: where its next picture is joined on.
#[derive(Debug, Default)]
pub(crate) struct Chain(Option<Receiver<Option<Reference>>>);

/// The place of one picture in a sequence: where its reference comes from, and where its own goes to.
///
/// Work is begun in the order of the links, so the one in front is finished or being worked on when this one waits for it; if it was
/// given up, nothing comes.
#[derive(Debug)]
pub(crate) struct Link {
    before: Option<Receiver<Option<Reference>>>,
    after: Sender<Option<Reference>>,
}

impl Chain {
    /// The next link.
    pub fn link(&mut self) -> Link {
        let (after, before) = mpsc::channel();
        Link { before: self.0.replace(before), after }
    }

    /// The next picture has none before it.
    pub fn cut(&mut self) {
        self.0 = None;
    }
}

impl Link {
    /// Does the work on a picture with what the one before left, and hands on what it leaves itself. A `key` picture waits for
    /// nobody. One that fails leaves things as they were.
    pub fn pass<T>(
        self,
        key: bool,
        work: impl FnOnce(Option<&Reference>) -> Result<(T, Option<Reference>), Error>,
    ) -> Result<T, Error> {
        let before = self.before.filter(|_| !key).and_then(|before| before.recv().ok().flatten());
        let (result, reference) = match work(before.as_ref()) {
            Ok((result, reference)) => (Ok(result), reference),
            Err(error) => (Err(error), before),
        };
        // Nobody listens behind the last picture.
        let _ = self.after.send(reference);
        result
    }
}
