//! `sdldec`: SDL pictures to raw video.

mod imp;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element `sdldec`.
    pub struct SdlDec(ObjectSubclass<imp::SdlDec>)
        @extends gst_video::VideoDecoder, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "sdldec", gst::Rank::PRIMARY, SdlDec::static_type())
}
