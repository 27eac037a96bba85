//! Tells what is an SDL picture by its first bytes.

use gst::glib;
use image_sdl::{EXTENSION, Header, MAX_HEADER_BYTES, MIN_HEADER_BYTES};

use crate::scan::MEDIA_TYPE;

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    let caps = gst::Caps::new_empty_simple(MEDIA_TYPE);
    gst::TypeFind::register(
        Some(plugin),
        MEDIA_TYPE,
        gst::Rank::PRIMARY,
        Some(EXTENSION),
        Some(&caps),
        |stream| {
            let header = (MIN_HEADER_BYTES..=MAX_HEADER_BYTES)
                .step_by(4)
                .find_map(|length| Header::parse(stream.peek(0, length as u32)?).transpose());
            let Some(Ok(header)) = header else { return };
            let caps = gst::Caps::builder(MEDIA_TYPE)
                .field("width", i32::from(header.width))
                .field("height", i32::from(header.height))
                .build();
            stream.suggest(gst::TypeFindProbability::Maximum, &caps);
        },
    )
}
