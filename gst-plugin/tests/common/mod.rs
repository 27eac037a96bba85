//! What the tests of the elements share.
#![allow(dead_code, clippy::unwrap_used)]

use std::sync::Once;

use gst::prelude::*;
use image_sdl::{Colour, EncodeOptions, Model, Picture, SequenceEncoder};

pub const WIDTH: u32 = 160;
pub const HEIGHT: u32 = 120;

/// GStreamer with our elements in it.
pub fn init() {
    static INIT: Once = Once::new();
    INIT.call_once(|| {
        gst::init().unwrap();
        gstsdl::plugin_register_static().unwrap();
    });
}

/// RGB pixels of a picture with something in it; every `seed` another.
pub fn pixels(width: u32, height: u32, seed: u32) -> Vec<u8> {
    let mut pixels = Vec::with_capacity((3 * width * height) as usize);
    for y in 0..height {
        for x in 0..width {
            let wave = ((x + 13 * seed) as f32 / 9.0).sin() * ((y + 7 * seed) as f32 / 11.0).cos();
            let level = 128.0 + 90.0 * wave;
            pixels.extend([level as u8, (x + 5 * seed) as u8, (y * 2 + seed) as u8]);
        }
    }
    pixels
}

pub fn picture(seed: u32) -> Picture {
    Picture::new(WIDTH, HEIGHT, Colour::Rgb, pixels(WIDTH, HEIGHT, seed)).unwrap()
}

/// The file that the library makes of [`picture`].
pub fn file(seed: u32) -> Vec<u8> {
    image_sdl::encode(&picture(seed), &EncodeOptions::default()).unwrap()
}

/// RGB pixels of a scene in which only a small square moves.
pub fn moving(number: u32) -> Vec<u8> {
    let mut pixels = pixels(WIDTH, HEIGHT, 0);
    for y in 40..64 {
        for x in 8 + 8 * (number % 12)..32 + 8 * (number % 12) {
            let at = (3 * (y * WIDTH + x)) as usize;
            pixels[at..at + 3].copy_from_slice(&[230, (x * 3) as u8, 20]);
        }
    }
    pixels
}

/// The files of a sequence of [`moving`] frames, a key picture every `interval`.
pub fn sequence(count: u32, interval: u32) -> Vec<Vec<u8>> {
    let mut encoder = SequenceEncoder::new(Model::built_in().unwrap()).unwrap();
    (0..count)
        .map(|number| {
            if number % interval == 0 {
                encoder.restart();
            }
            let picture = Picture::new(WIDTH, HEIGHT, Colour::Rgb, moving(number)).unwrap();
            encoder.encode(&picture, &EncodeOptions::default()).unwrap().bytes
        })
        .collect()
}

pub fn raw_caps(format: &str) -> String {
    format!("video/x-raw,format={format},width={WIDTH},height={HEIGHT},framerate=5/1")
}

/// A frame of 1/5 second.
pub fn buffer(data: Vec<u8>, number: u64) -> gst::Buffer {
    init();
    let mut buffer = gst::Buffer::from_mut_slice(data);
    let duration = gst::ClockTime::from_mseconds(200);
    let reference = buffer.get_mut().unwrap();
    reference.set_pts(number * duration);
    reference.set_duration(duration);
    buffer
}

pub fn frame(seed: u32) -> gst::Buffer {
    buffer(pixels(WIDTH, HEIGHT, seed), seed.into())
}

pub fn bytes(buffer: &gst::Buffer) -> Vec<u8> {
    buffer.map_readable().unwrap().to_vec()
}

/// Everything that came out, in order.
pub fn drain(harness: &mut gst_check::Harness) -> Vec<gst::Buffer> {
    std::iter::from_fn(|| harness.try_pull()).collect()
}

/// A pad of the element itself: a harness that reads a description may have put it into a bin.
pub fn own_pad(harness: &gst_check::Harness, name: &str) -> gst::Pad {
    let pad = harness.element().unwrap().static_pad(name).unwrap();
    let own = pad.downcast_ref::<gst::GhostPad>().and_then(|ghost| ghost.target());
    own.unwrap_or(pad)
}

/// A flush has come as far as what the element sends, and not yet to what it is given: as where one begins while it works.
pub fn flush_behind(harness: &gst_check::Harness) {
    own_pad(harness, "src").push_event(gst::event::FlushStart::new());
}

/// A bus for the element of a harness.
pub fn bus(harness: &gst_check::Harness) -> gst::Bus {
    let bus = gst::Bus::new();
    harness.element().unwrap().set_bus(Some(&bus));
    bus
}

pub fn warnings(bus: &gst::Bus) -> Vec<String> {
    std::iter::from_fn(|| bus.pop_filtered(&[gst::MessageType::Warning]))
        .filter_map(|message| match message.view() {
            gst::MessageView::Warning(warning) => warning.debug().map(|debug| debug.to_string()),
            _ => None,
        })
        .collect()
}
