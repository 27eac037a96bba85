//! Watches a server of SDL pictures: says how many arrive and how large they are.
//!
//! ```text
//! cargo run --release -p gst-plugin-sdl --example media_client -- http://127.0.0.1:8090/ 30
//! ```
//!
//! With `show` in place of a number the pictures are shown in a window until it is closed.
#![allow(missing_docs)]

use std::error::Error;
use std::time::Instant;

use gst::prelude::*;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let address = arguments.next().unwrap_or_else(|| "http://127.0.0.1:8090/".to_owned());
    let wanted = arguments.next().unwrap_or_else(|| "30".to_owned());
    gst::init()?;
    gstsdl::plugin_register_static()?;
    let sink = match wanted.parse::<u32>() {
        Ok(pictures) => format!("fakesink num-buffers={pictures} sync=false"),
        Err(_) => "videoconvert ! autovideosink sync=false".to_owned(),
    };
    let pipeline = gst::parse::launch(&format!(
        "souphttpsrc is-live=true location={address} ! multipartdemux ! identity name=files silent=true signal-handoffs=true ! sdldec \
         ! {sink}"
    ))?;
    let files = pipeline
        .downcast_ref::<gst::Bin>()
        .and_then(|bin| bin.by_name("files"))
        .ok_or("no element of this name")?;
    let start = Instant::now();
    files.connect("handoff", false, move |values| {
        if let Some(Ok(buffer)) = values.get(1).map(|value| value.get::<gst::Buffer>()) {
            println!("{:7.2} s: {} bytes", start.elapsed().as_secs_f64(), buffer.size());
        }
        None
    });
    pipeline.set_state(gst::State::Playing)?;
    let bus = pipeline.bus().ok_or("no bus")?;
    let end = bus.timed_pop_filtered(gst::ClockTime::NONE, &[gst::MessageType::Eos, gst::MessageType::Error]);
    pipeline.set_state(gst::State::Null)?;
    match end.as_ref().map(|message| message.view()) {
        Some(gst::MessageView::Error(error)) => {
            Err(format!("{} ({})", error.error(), error.debug().unwrap_or_default()).into())
        }
        _ => Ok(()),
    }
}
