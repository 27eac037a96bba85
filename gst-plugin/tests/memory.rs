//! A long stream takes no more memory than a short one.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gst::prelude::*;

/// Kilobytes of this process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn memory_after_many_frames_is_that_after_a_thousand() {
    common::init();
    // An hour: SDL_FRAMES=100000 cargo test --release -p gst-plugin-sdl --test memory
    let frames: u64 = std::env::var("SDL_FRAMES").ok().and_then(|n| n.parse().ok()).unwrap_or(4000);
    let pipeline = gst::parse::launch(&format!(
        "videotestsrc num-buffers={frames} pattern=ball ! video/x-raw,format=RGB,width=16,height=16,framerate=25/1 \
         ! sdlenc ! sdlparse ! sdldec ! fakesink name=sink sync=false signal-handoffs=true"
    ))
    .unwrap();
    let sink = pipeline.downcast_ref::<gst::Bin>().unwrap().by_name("sink").unwrap();
    let (count, early) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (counted, noted) = (Arc::clone(&count), Arc::clone(&early));
    sink.connect("handoff", false, move |_| {
        if counted.fetch_add(1, Ordering::Relaxed) == 1000 {
            noted.store(resident(), Ordering::Relaxed);
        }
        None
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error];
    let end = pipeline.bus().unwrap().timed_pop_filtered(gst::ClockTime::from_seconds(3600), &kinds).unwrap();
    assert_eq!(end.type_(), gst::MessageType::Eos, "{end:?}");
    let (early, late) = (early.load(Ordering::Relaxed), resident());
    pipeline.set_state(gst::State::Null).unwrap();
    assert_eq!(count.load(Ordering::Relaxed), frames);
    println!("{early} kB after 1,000 frames, {late} kB after {frames}");
    assert!(late * 100 <= early * 105, "{early} kB after 1,000 frames, {late} kB after {frames}");
}
