//! `sdldec`: SDL pictures to raw video.

mod imp;

use gst::glib;
use gst::prelude::*;

/// Which of a model's decoders makes the pixels.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, glib::Enum)]
#[repr(u32)]
#[enum_type(name = "GstSdlDecDecoder")]
#[non_exhaustive]
pub enum PixelDecoder {
    /// The one that the picture's author meant.
    #[default]
    #[enum_value(name = "Auto: the one that the author of the picture meant", nick = "auto")]
    Auto,
    /// As close to the source as the bytes allow.
    #[enum_value(name = "Fidelity: as close to the source as the bytes allow", nick = "fidelity")]
    Fidelity,
    /// What looks natural, and is less close.
    #[enum_value(name = "Natural: what looks natural, at the price of being less close", nick = "natural")]
    Natural,
}

glib::wrapper! {
    /// The element `sdldec`.
    pub struct SdlDec(ObjectSubclass<imp::SdlDec>)
        @extends gst_video::VideoDecoder, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "sdldec", gst::Rank::PRIMARY, SdlDec::static_type())
}
