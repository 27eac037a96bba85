//! What both codec elements are told: how many threads, and where the graphs run.

use gst::prelude::*;
use image_sdl::{Error, Model, Settings};

/// `n-threads`: as many as there are processors.
pub(crate) const AUTO: i32 = -1;

/// The workers that `n-threads` stands for; 0 is the streaming thread.
pub(crate) fn worker_count(n_threads: i32) -> usize {
    usize::try_from(n_threads).unwrap_or_else(|_| std::thread::available_parallelism().map_or(1, usize::from))
}

/// The threads for the tiles of one picture, 0 for every processor: that is for pictures that nothing else runs beside, and
/// for models that take all of them at once.
pub(crate) fn tile_threads(model: &Model, alone: bool) -> usize {
    if alone || model.is_large() { 0 } else { 1 }
}

/// How the graphs are run; an empty provider is the processor.
pub(crate) fn engine(provider: Option<&str>, device: u32) -> Settings {
    let provider = provider.filter(|name| !name.is_empty()).map(str::to_owned);
    Settings { provider, device, ..Settings::default() }
}

/// Why the graphs do not run, with the provider that was asked for: without any ONNX Runtime the error is about that alone.
pub(crate) fn cannot_run(provider: Option<&str>, error: &Error) -> String {
    match provider.filter(|name| !name.is_empty()) {
        Some(name) => format!("with provider `{name}`: {error}"),
        None => error.to_string(),
    }
}

/// Why an element did not get something done: a pad that is being flushed refuses everything, and that is no failure.
pub(crate) fn unless_flushing(src_pad: &gst::Pad, error: gst::FlowError) -> gst::FlowError {
    if src_pad.pad_flags().contains(gst::PadFlags::FLUSHING) { gst::FlowError::Flushing } else { error }
}

/// Whether something upstream makes frames in real time.
pub(crate) fn is_live(sink_pad: &gst::Pad) -> bool {
    let mut query = gst::query::Latency::new();
    sink_pad.peer_query(&mut query) && query.result().0
}

/// The latency of `threads` workers: a frame waits for those in front of it, and the work on it may take as long as all of
/// them have for it in a stream that keeps up. `None` where the framerate is not known.
pub(crate) fn latency(framerate: gst::Fraction, threads: usize) -> Option<gst::ClockTime> {
    let (frames, seconds) =
        (u64::try_from(framerate.numer()).ok().filter(|&n| n > 0)?, u64::try_from(framerate.denom()).ok()?);
    (gst::ClockTime::SECOND * threads.max(1) as u64).mul_div_round(seconds, frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_needs_a_framerate() {
        assert_eq!(latency(gst::Fraction::new(0, 1), 4), None);
        assert_eq!(latency(gst::Fraction::new(5, 1), 0), Some(gst::ClockTime::from_mseconds(200)));
        assert_eq!(latency(gst::Fraction::new(25, 1), 4), Some(gst::ClockTime::from_mseconds(160)));
    }
}
