//! One picture every N seconds of a video, all in one file: previews for a seek bar.
//!
//! The file is SDL pictures one after another; each says how long it is shown, so a player runs through them, and
//! picture k begins where the k before it end (`sdlparse` finds them).
//!
//! ```text
//! cargo run --release -p gst-plugin-sdl --example preview_sheet -- film.webm film.sdl 10 160
//! ```
#![allow(missing_docs)]

use std::error::Error;

use gst::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [video, sheet, rest @ ..] = arguments.as_slice() else {
        return Err("preview_sheet VIDEO SHEET [SECONDS [WIDTH]]".into());
    };
    let seconds: u64 = rest.first().map_or(Ok(10), |s| s.parse())?;
    let width: u32 = rest.get(1).map_or(Ok(160), |s| s.parse())?;
    gst::init()?;
    gstsdl::plugin_register_static()?;
    // videorate picks a frame for each interval, whatever the framerate of the film.
    let pipeline = gst::parse::launch(&format!(
        "filesrc name=video ! decodebin ! videorate ! video/x-raw,framerate=1/{seconds} ! videoscale \
         ! video/x-raw,width={width},pixel-aspect-ratio=1/1 ! sdlenc frame-duration=true quality=30 ! filesink name=sheet"
    ))?;
    let bin = pipeline.downcast_ref::<gst::Bin>().ok_or("no pipeline")?;
    for (name, path) in [("video", video), ("sheet", sheet)] {
        bin.by_name(name).ok_or("no element of this name")?.set_property("location", path);
    }
    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().ok_or("no bus")?;
    let end = bus.timed_pop_filtered(gst::ClockTime::NONE, &[gst::MessageType::Eos, gst::MessageType::Error]);
    pipeline.set_state(gst::State::Null)?;
    if let Some(gst::MessageView::Error(error)) = end.as_ref().map(|message| message.view()) {
        return Err(format!("{} ({})", error.error(), error.debug().unwrap_or_default()).into());
    }
    Ok(())
}
