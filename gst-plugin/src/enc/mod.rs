//! `sdlenc`: raw video to SDL pictures.

mod imp;
mod select;

use gst::glib;
use gst::prelude::*;

/// Which frames become pictures.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, glib::Enum)]
#[repr(u32)]
#[enum_type(name = "GstSdlEncKeyFrames")]
#[non_exhaustive]
pub enum KeyFrames {
    /// Every frame.
    #[default]
    #[enum_value(name = "Every: every frame", nick = "every")]
    Every,
    /// One each `interval`.
    #[enum_value(name = "Interval: the first frame, then one each `interval`", nick = "interval")]
    Interval,
    /// Those that differ from the last picture by more than a threshold.
    #[enum_value(
        name = "SceneChange: frames that differ from the last picture by `scene-change-threshold` or more, at least \
                `min-interval` after it",
        nick = "scene-change"
    )]
    SceneChange,
    /// Only those that a force-key-unit event asks for.
    #[enum_value(name = "Forced: only the frames that force-key-unit events ask for", nick = "forced")]
    Forced,
}

glib::wrapper! {
    /// The element `sdlenc`.
    pub struct SdlEnc(ObjectSubclass<imp::SdlEnc>)
        @extends gst_video::VideoEncoder, gst::Element, gst::Object;
}

pub(crate) fn register(plugin: &gst::Plugin) -> Result<(), glib::BoolError> {
    gst::Element::register(Some(plugin), "sdlenc", gst::Rank::PRIMARY, SdlEnc::static_type())
}
