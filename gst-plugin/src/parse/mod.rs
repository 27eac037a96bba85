//! `sdlparse`: a stream of bytes to SDL pictures.

mod imp;

use gst::glib;
use gst::prelude::*;

glib::wrapper! {
    /// The element `sdlparse`.
    pub struct SdlParse(ObjectSubclass<imp::SdlParse>)
        @extends gst_base::BaseParse, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "sdlparse", gst::Rank::PRIMARY + 1, SdlParse::static_type())
}
