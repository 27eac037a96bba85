//! GStreamer elements for the SDL picture format: `sdlenc`, `sdldec`, `sdlparse`, and a type finder.
//!
//! A frame goes `convert` (frame to picture) -> `workers` (several at a time) -> `enc`; a picture goes `scan` (where it
//! begins and ends in a stream of bytes) -> `parse` or `dec` -> `workers` -> `convert`. Pictures that are coded against the one
//! before are joined by `chain`.
//!
//! The file on the plugin path registers itself. A program that has this crate as a dependency calls
//! [`plugin_register_static`] once after `gst::init`.
#![forbid(unsafe_code)]

mod chain;
mod convert;
mod dec;
mod enc;
mod parse;
mod scan;
mod settings;
mod typefind;
mod workers;

pub use dec::PixelDecoder;
pub use enc::KeyFrames;
pub use plugin::plugin_register_static;

fn plugin_init(plugin: &gst::Plugin) -> Result<(), gst::glib::BoolError> {
    typefind::register(plugin)?;
    parse::register(plugin)?;
    dec::register(plugin)?;
    enc::register(plugin)
}

/// What the macro makes has no documentation.
#[allow(missing_docs)]
mod plugin {
    use super::plugin_init;

    gst::plugin_define!(
        sdl,
        env!("CARGO_PKG_DESCRIPTION"),
        plugin_init,
        concat!(env!("CARGO_PKG_VERSION"), "-", env!("COMMIT_ID")),
        "MIT/X11",
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_NAME"),
        env!("CARGO_PKG_REPOSITORY"),
        env!("BUILD_REL_DATE")
    );
}
