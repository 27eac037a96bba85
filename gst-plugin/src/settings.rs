//! What both codec elements are told: how many threads, and where the graphs run.

use image_sdl::Settings;

/// `n-threads`: as many as there are processors.
pub(crate) const AUTO: i32 = -1;

/// The workers that `n-threads` stands for; 0 is the streaming thread.
pub(crate) fn worker_count(n_threads: i32) -> usize {
    usize::try_from(n_threads).unwrap_or_else(|_| std::thread::available_parallelism().map_or(1, usize::from))
}

/// How the graphs are run; an empty provider is the processor.
pub(crate) fn engine(provider: Option<&str>, device: u32) -> Settings {
    let provider = provider.filter(|name| !name.is_empty()).map(str::to_owned);
    Settings { provider, device, ..Settings::default() }
}

/// Whether something upstream makes frames in real time.
pub(crate) fn is_live(sink_pad: &gst::Pad) -> bool {
    use gst::prelude::*;
    let mut query = gst::query::Latency::new();
    sink_pad.peer_query(&mut query) && query.result().0
}
