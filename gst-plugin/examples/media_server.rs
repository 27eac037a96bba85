//! Serves a camera or any other source as SDL pictures over HTTP, to many viewers at once.
//!
//! Each frame is encoded once, whatever the number of viewers; a viewer that is too slow misses pictures and holds up
//! nobody. The answer is `multipart/x-mixed-replace`, as that of a web camera, with `image/x-sdl` parts; `/snapshot` is
//! the newest picture alone.
//!
//! ```text
//! cargo run --release -p gst-plugin-sdl --example media_server -- --port 8090
//! cargo run --release -p gst-plugin-sdl --example media_server -- --source "v4l2src ! videoconvert" --quality 30
//! ```
#![allow(missing_docs)]

use std::error::Error;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use gst::prelude::*;

const BOUNDARY: &str = "sdl-picture";
/// A viewer that takes nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(10);
const DEFAULT_SOURCE: &str =
    "videotestsrc is-live=true pattern=ball ! video/x-raw,format=RGB,width=320,height=240,framerate=15/1";

/// The newest picture, and its number.
#[derive(Default)]
struct Newest {
    picture: Mutex<(u64, Option<gst::Buffer>)>,
    changed: Condvar,
}

impl Newest {
    fn set(&self, buffer: gst::Buffer) {
        let mut picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        *picture = (picture.0 + 1, Some(buffer));
        self.changed.notify_all();
    }

    /// A picture with another number than `seen`.
    fn after(&self, seen: u64) -> Option<(u64, gst::Buffer)> {
        let picture = self.picture.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |picture: &mut (u64, Option<gst::Buffer>)| picture.0 == seen || picture.1.is_none();
        let (picture, _) =
            self.changed.wait_timeout_while(picture, PATIENCE, same).unwrap_or_else(PoisonError::into_inner);
        (picture.0 != seen).then(|| Some((picture.0, picture.1.clone()?))).flatten()
    }
}

fn serve(mut viewer: TcpStream, newest: &Newest) -> Result<(), Box<dyn Error>> {
    viewer.set_write_timeout(Some(PATIENCE))?;
    viewer.set_read_timeout(Some(PATIENCE))?;
    let mut request = String::new();
    BufReader::new(viewer.try_clone()?).read_line(&mut request)?;
    let path = request.split_whitespace().nth(1).unwrap_or("/");
    if path == "/snapshot" {
        let (_, buffer) = newest.after(0).ok_or("no picture yet")?;
        let picture = buffer.map_readable()?;
        write!(
            viewer,
            "HTTP/1.1 200 OK\r\nContent-Type: image/x-sdl\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            picture.len()
        )?;
        return Ok(viewer.write_all(&picture)?);
    }
    write!(
        viewer,
        "HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary={BOUNDARY}\r\nCache-Control: no-store\r\n\
         Connection: close\r\n\r\n"
    )?;
    let mut seen = 0;
    while let Some((number, buffer)) = newest.after(seen) {
        let picture = buffer.map_readable()?;
        let mut part =
            format!("--{BOUNDARY}\r\nContent-Type: image/x-sdl\r\nContent-Length: {}\r\n\r\n", picture.len())
                .into_bytes();
        part.extend_from_slice(&picture);
        part.extend_from_slice(b"\r\n");
        viewer.write_all(&part)?;
        seen = number;
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut port, mut quality, mut source) = (8090u16, 50u32, DEFAULT_SOURCE.to_owned());
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--port" => port = value.parse()?,
            "--quality" => quality = value.parse()?,
            "--source" => source = value,
            _ => return Err(format!("unknown: {name}; known are --port, --quality, --source").into()),
        }
    }
    gst::init()?;
    gstsdl::plugin_register_static()?;
    let newest = Arc::new(Newest::default());
    let pipeline = gst::parse::launch(&format!(
        "{source} ! queue leaky=downstream max-size-buffers=2 ! sdlenc name=encoder ! fakesink name=sink signal-handoffs=true sync=false"
    ))?
    .downcast::<gst::Pipeline>()
    .map_err(|_| "the source is no pipeline")?;
    let encoder = pipeline.by_name("encoder").ok_or("no encoder")?;
    encoder.set_property("quality", quality);
    let sink = pipeline.by_name("sink").ok_or("no sink")?;
    let pictures = Arc::clone(&newest);
    sink.connect("handoff", false, move |values| {
        if let Some(Ok(buffer)) = values.get(1).map(|value| value.get::<gst::Buffer>()) {
            pictures.set(buffer);
        }
        None
    });

    let listener = TcpListener::bind(("127.0.0.1", port))?;
    println!("pictures at http://{}/, the newest alone at /snapshot", listener.local_addr()?);
    std::thread::spawn(move || {
        for viewer in listener.incoming().flatten() {
            let newest = Arc::clone(&newest);
            std::thread::spawn(move || {
                if let Err(error) = serve(viewer, &newest) {
                    eprintln!("a viewer left: {error}");
                }
            });
        }
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
