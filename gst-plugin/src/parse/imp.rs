use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use gst::glib;
use gst::subclass::prelude::*;
use gst_base::prelude::*;
use gst_base::subclass::prelude::*;
use image_sdl::{Header, MIN_HEADER_BYTES, SIGNATURE};

use crate::scan::{Found, MEDIA_TYPE, Scanner};
use crate::settings::unless_flushing;

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("sdlparse", gst::DebugColorFlags::empty(), Some("SDL picture parser"))
});

const DEFAULT_MAX_SIZE: u32 = 64 << 20;
/// Not known, or not constant.
const NO_FRAMERATE: gst::Fraction = gst::Fraction::new_raw(0, 1);
/// Microseconds of a second: the unit of the duration in the header.
const MICROSECONDS: i32 = 1_000_000;
/// Places of key pictures that are remembered: a stream may have no end.
const MOST_KEYS: usize = 4096;

#[derive(Debug, Clone, Copy)]
struct Settings {
    framerate: gst::Fraction,
    max_size: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { framerate: NO_FRAMERATE, max_size: DEFAULT_MAX_SIZE }
    }
}

#[derive(Debug, Default)]
struct State {
    scanner: Scanner,
    /// What upstream says of the stream.
    sink_caps: Option<gst::Caps>,
    /// Width, height and framerate of the caps that were sent last.
    sent: Option<(u16, u16, gst::Fraction)>,
    /// Where key pictures have been seen.
    keys: BTreeSet<gst::ClockTime>,
}

/// The implementation of `sdlparse`.
#[derive(Default, glib::Properties)]
#[properties(wrapper_type = super::SdlParse)]
pub struct SdlParse {
    #[property(name = "framerate", get, set, type = gst::Fraction, member = framerate,
        minimum = gst::Fraction::new(0, 1), maximum = gst::Fraction::new(i32::MAX, 1), default_value = gst::Fraction::new(0, 1),
        blurb = "Pictures a second in a stream without times (0/1 = as upstream or the pictures themselves say)", mutable_ready)]
    #[property(name = "max-size", get, set, type = u32, member = max_size, minimum = 32, default = DEFAULT_MAX_SIZE,
        blurb = "The most bytes that a picture may have; larger ones are passed over", mutable_playing)]
    settings: Mutex<Settings>,
    state: Mutex<State>,
}

impl SdlParse {
    fn settings(&self) -> Settings {
        *self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Caps for this picture, if they are not those of the picture before.
    fn announce(&self, header: &Header) -> Result<(), gst::FlowError> {
        let obj = self.obj();
        let (caps, now) = {
            let state = self.state();
            let upstream = state.sink_caps.as_ref().and_then(|caps| caps.structure(0));
            let given = upstream.and_then(|s| s.get::<gst::Fraction>("framerate").ok());
            let own = header
                .duration
                .and_then(|us| i32::try_from(us).ok())
                .filter(|&us| us > 0)
                .map(|us| gst::Fraction::new(MICROSECONDS, us));
            let framerate = [Some(self.settings().framerate), given, own]
                .into_iter()
                .flatten()
                .find(|rate| rate.numer() > 0)
                .unwrap_or(NO_FRAMERATE);
            let now = (header.width, header.height, framerate);
            if state.sent == Some(now) {
                return Ok(());
            }
            let mut structure = upstream
                .filter(|s| s.name() == MEDIA_TYPE)
                .map_or_else(|| gst::Structure::new_empty(MEDIA_TYPE), ToOwned::to_owned);
            structure.set("parsed", true);
            structure.set("width", i32::from(header.width));
            structure.set("height", i32::from(header.height));
            structure.set("framerate", framerate);
            (gst::Caps::builder_full().structure(structure).build(), now)
        };
        let (_, _, framerate) = now;
        if framerate.numer() > 0 {
            obj.set_frame_rate(framerate, 0, 0);
        }
        gst::debug!(CAT, imp = self, "{caps}");
        if obj.src_pad().push_event(gst::event::Caps::new(&caps)) {
            // Not before: what a flush swallows must be sent again.
            self.state().sent = Some(now);
            Ok(())
        } else {
            Err(unless_flushing(obj.src_pad(), gst::FlowError::NotNegotiated))
        }
    }
}

impl SdlParse {
    /// Tells the base class, whose index does not tell key pictures from others, to begin a seek at the last key picture that is known
    /// before that time.
    fn lead_in(&self, to: gst::ClockTime) {
        let (key, framerate) = {
            let state = self.state();
            let (Some(&key), Some((_, _, framerate))) = (state.keys.range(..=to).next_back(), state.sent)
            else {
                return;
            };
            (key, framerate)
        };
        let (Ok(numer), Ok(denom)) = (u64::try_from(framerate.numer()), u64::try_from(framerate.denom()))
        else {
            return;
        };
        let frames = (to - key).nseconds().mul_div_ceil(numer, denom * gst::ClockTime::SECOND.nseconds());
        if let Some(frames) = frames.and_then(|frames| u32::try_from(frames).ok()).filter(|_| numer > 0) {
            self.obj().set_frame_rate(framerate, frames, 0);
        }
    }
}

#[glib::object_subclass]
impl ObjectSubclass for SdlParse {
    const NAME: &'static str = "GstSdlParse";
    type Type = super::SdlParse;
    type ParentType = gst_base::BaseParse;
}

#[glib::derived_properties]
impl ObjectImpl for SdlParse {}

impl GstObjectImpl for SdlParse {}

impl ElementImpl for SdlParse {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "SDL picture parser",
                "Codec/Parser/Image",
                "Finds SDL pictures in a stream of bytes",
                "The SDL developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let side = || gst::IntRange::new(1, i32::from(u16::MAX));
            let sink = gst::Caps::new_empty_simple(MEDIA_TYPE);
            let src = gst::Caps::builder(MEDIA_TYPE)
                .field("parsed", true)
                .field("width", side())
                .field("height", side())
                .field("framerate", gst::FractionRange::new(NO_FRAMERATE, gst::Fraction::new(i32::MAX, 1)))
                .build();
            [("sink", gst::PadDirection::Sink, sink), ("src", gst::PadDirection::Src, src)]
                .into_iter()
                .filter_map(|(name, direction, caps)| {
                    gst::PadTemplate::new(name, direction, gst::PadPresence::Always, &caps).ok()
                })
                .collect()
        });
        &TEMPLATES
    }
}

impl BaseParseImpl for SdlParse {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        *self.state() = State::default();
        self.obj().set_min_frame_size(MIN_HEADER_BYTES as u32);
        Ok(())
    }

    fn set_sink_caps(&self, caps: &gst::Caps) -> Result<(), gst::LoggableError> {
        let mut state = self.state();
        state.sink_caps = Some(caps.clone());
        state.sent = None;
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::FlushStop {
            self.state().scanner.reset();
        }
        self.parent_sink_event(event)
    }

    fn src_event(&self, event: gst::Event) -> bool {
        if let gst::EventView::Seek(seek) = event.view()
            && let (_, _, gst::SeekType::Set, gst::GenericFormattedValue::Time(Some(to)), ..) = seek.get()
        {
            self.lead_in(to);
        }
        self.parent_src_event(event)
    }

    fn handle_frame(
        &self,
        mut frame: gst_base::BaseParseFrame,
    ) -> Result<(gst::FlowSuccess, u32), gst::FlowError> {
        let obj = self.obj();
        let settings = self.settings();
        let (found, available, delta, is_picture) = {
            let Some(buffer) = frame.buffer() else { return Err(gst::FlowError::Error) };
            let map = buffer.map_readable().map_err(|_| gst::FlowError::Error)?;
            let found = self.state().scanner.scan(&map, settings.max_size as usize);
            (found, map.size(), image_sdl::is_delta(&map), map.starts_with(&SIGNATURE))
        };
        let cut = !matches!(found, Found::Junk(_)) && is_picture;
        let lost = match found {
            Found::Picture(header) => {
                obj.set_min_frame_size(MIN_HEADER_BYTES as u32);
                self.announce(&header)?;
                if let Some(buffer) = frame.buffer_mut() {
                    if delta {
                        buffer.set_flags(gst::BufferFlags::DELTA_UNIT);
                    } else {
                        buffer.unset_flags(gst::BufferFlags::DELTA_UNIT);
                    }
                }
                if let (Some(us), Some(buffer)) = (header.duration, frame.buffer_mut())
                    && settings.framerate.numer() == 0
                    && buffer.duration().is_none()
                {
                    buffer.set_duration(gst::ClockTime::from_useconds(us.into()));
                }
                return Ok((obj.finish_frame(frame, header.length)?, 0));
            }
            Found::NeedMore(needed) if !obj.is_draining() => {
                // Not at once all that is needed: the picture may have been cut, and the next be there long before.
                let next = needed.min(2 * available.max(MIN_HEADER_BYTES));
                obj.set_min_frame_size(u32::try_from(next).unwrap_or(u32::MAX));
                return Ok((gst::FlowSuccess::Ok, 0));
            }
            Found::NeedMore(_) => available,
            Found::Junk(length) | Found::Cut(length) => length,
        };
        obj.set_min_frame_size(MIN_HEADER_BYTES as u32);
        gst::debug!(CAT, imp = self, "{lost} bytes are no whole picture");
        // Behind a seek it is what was there before that is cut.
        if cut && !obj.src_pad().pad_flags().contains(gst::PadFlags::FLUSHING) {
            gst::element_imp_warning!(
                self,
                gst::StreamError::Decode,
                ("A picture is cut"),
                ["{lost} bytes of it are there"]
            );
        }
        Ok((gst::FlowSuccess::Ok, u32::try_from(lost).unwrap_or(u32::MAX)))
    }

    fn pre_push_frame(
        &self,
        frame: &mut gst_base::BaseParseFrame,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        if let Some(buffer) = frame.buffer()
            && !buffer.flags().contains(gst::BufferFlags::DELTA_UNIT)
        {
            let mut state = self.state();
            let keys = &mut state.keys;
            keys.extend(buffer.pts());
            if keys.len() > MOST_KEYS {
                // Every second one: a seek then begins a little earlier than it must.
                let mut kept = false;
                keys.retain(|_| {
                    kept = !kept;
                    kept
                });
            }
        }
        // Without the flag that asks for it, the base class does not drop pictures in front of the segment: those behind a seek may be
        // coded against them. The decoder does not show them.
        Ok(gst::FlowSuccess::Ok)
    }
}
