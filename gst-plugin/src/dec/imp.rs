use std::collections::HashMap;
use std::io::Cursor;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gst::glib;
use gst::subclass::prelude::*;
use gst_tag::prelude::TagListExt;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;
use gst_video::video_codec_state::Readable;
use gst_video::{VideoCodecFrame, VideoCodecFrameFlags, VideoCodecState, VideoFormat};
use image_sdl::onnx::role;
use image_sdl::{
    BundleRef, DecodeOptions, Decoder, Error, Header, MAX_HEADER_BYTES, Metadata, Method, Model, Picture,
    Progress, Synthesis,
};

use super::PixelDecoder;
use crate::chain::{Chain, Link};
use crate::convert;
use crate::scan::{self, Found, MEDIA_TYPE, Scanner};
use crate::settings::{
    AUTO, cannot_run, engine, is_live, latency, tile_threads, unless_flushing, worker_count,
};
use crate::workers::{Bell, Courier, Halt, HandOn, Lost, Workers};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("sdldec", gst::DebugColorFlags::empty(), Some("SDL picture decoder"))
});

/// Bytes of a picture in the stream: far more than any useful one has.
const DEFAULT_MAX_SIZE: u32 = 64 << 20;
/// Bytes of a picture in memory.
const DEFAULT_MAX_ALLOC: u64 = 1 << 30;
/// Bytes that must be new before an unfinished picture is looked at again; then as many as are there already.
const LEAST_NEW: usize = 64;

#[derive(Debug, Clone)]
struct Settings {
    provider: Option<String>,
    device: u32,
    n_threads: i32,
    max_size: u32,
    max_alloc: u64,
    decoder: PixelDecoder,
    denoise_steps: i32,
}

impl Settings {
    fn options(&self) -> DecodeOptions {
        let mut options = DecodeOptions::default().with_max_bytes(self.max_alloc);
        options.synthesis = match self.decoder {
            PixelDecoder::Auto => None,
            PixelDecoder::Fidelity => Some(Synthesis::Fidelity),
            PixelDecoder::Natural => Some(Synthesis::Natural),
        };
        options.denoise_steps = u8::try_from(self.denoise_steps).ok();
        options
    }
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            provider: None,
            device: 0,
            n_threads: AUTO,
            max_size: DEFAULT_MAX_SIZE,
            max_alloc: DEFAULT_MAX_ALLOC,
            decoder: PixelDecoder::Auto,
            denoise_steps: AUTO,
        }
    }
}

/// A decoded picture.
struct Decoded {
    header: Header,
    picture: Picture,
    /// Time spent in the codec.
    time: Duration,
}

/// What became of a picture.
enum Outcome {
    Shown(Decoded),
    /// It is only the reference of others.
    Hidden,
}

struct State {
    /// Ends before the workers do.
    _courier: Courier,
    bell: Arc<Bell>,
    models: HashMap<BundleRef, Model>,
    workers: Workers<u32, Result<Outcome, Error>>,
    chain: Chain,
    /// There are delta pictures in this stream: a late picture may be the reference of one.
    has_delta: bool,
    /// Delta pictures cannot be decoded before the next key picture.
    waiting: bool,
    input: Option<VideoCodecState<'static, Readable>>,
    /// Format and size of the output.
    output: Option<(VideoFormat, u32, u32)>,
    /// The metadata whose tags were sent last.
    metadata: Metadata,
    /// An orientation was among them.
    turned: bool,
    scanner: Scanner,
    /// The scanner has nothing new to say before so many bytes are there.
    next_look: usize,
    /// What became of what the courier handed on.
    flow: Result<(), gst::FlowError>,
}

/// The implementation of `sdldec`.
#[derive(Default, glib::Properties)]
#[properties(wrapper_type = super::SdlDec)]
pub struct SdlDec {
    #[property(name = "provider", get, set, type = Option<String>, member = provider,
        blurb = "Execution provider of ONNX Runtime, for instance cuda (empty = processor)", mutable_ready)]
    #[property(name = "device", get, set, type = u32, member = device, default = 0,
        blurb = "Device of the execution provider, counted from 0", mutable_ready)]
    #[property(name = "n-threads", get, set, type = i32, member = n_threads, minimum = AUTO, maximum = 1024, default = AUTO,
        blurb = "Pictures that are decoded at the same time, which adds as many to the latency (-1 = number of processors, or in the streaming thread if the source is live; 0 = in the streaming thread)",
        mutable_ready)]
    #[property(name = "max-size", get, set, type = u32, member = max_size, minimum = 32, default = DEFAULT_MAX_SIZE,
        blurb = "The most bytes that a picture in a stream of bytes may have; larger ones are passed over", mutable_playing)]
    #[property(name = "max-alloc", get, set, type = u64, member = max_alloc, default = DEFAULT_MAX_ALLOC,
        blurb = "The most bytes of memory that the pixels and the latent of a picture may take", mutable_playing)]
    #[property(name = "decoder", get, set, type = PixelDecoder, member = decoder, builder(PixelDecoder::default())
        .blurb("Which decoder of the model makes the pixels; one that the model does not have is an error").mutable_ready())]
    #[property(name = "denoise-steps", get, set, type = i32, member = denoise_steps, minimum = AUTO, maximum = 255, default = AUTO,
        blurb = "Steps of the denoiser for pictures that are to be denoised (-1 = as each picture says, 0 = not at all)", mutable_playing)]
    settings: Mutex<Settings>,
    /// Locked by nobody but the holder of the stream lock, and never while a frame is pushed.
    state: Mutex<Option<State>>,
    halt: Arc<Halt>,
}

impl SdlDec {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn hand_on(&self, how: HandOn) -> Result<gst::FlowSuccess, gst::FlowError> {
        if how != HandOn::Finished
            && let Some(state) = self.state().as_mut()
        {
            std::mem::replace(&mut state.flow, Ok(()))?;
        }
        loop {
            let next = self.state().as_mut().and_then(|state| state.workers.next(how));
            let Some((number, outcome)) = next else { return Ok(gst::FlowSuccess::Ok) };
            // The base class frees the frames of what was given up.
            if self.halt.is_stopped() {
                return Err(gst::FlowError::Flushing);
            }
            self.finish_frame(number, outcome)?;
        }
    }

    /// What the courier does: hands on what is finished, as the streaming thread would with the next picture.
    fn deliver(&self) {
        let obj = self.obj();
        let _lock = obj.sink_pad().stream_lock();
        let flow = self.hand_on(HandOn::Finished);
        if let (Err(error), Some(state)) = (flow, self.state().as_mut()) {
            state.flow = Err(error);
        }
    }

    fn finish_frame(
        &self,
        number: u32,
        outcome: Result<Result<Outcome, Error>, Lost>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let obj = self.obj();
        let number = i32::try_from(number).map_err(|_| gst::FlowError::Error)?;
        let Some(mut frame) = obj.frame(number) else { return Ok(gst::FlowSuccess::Ok) };
        let decoded = match outcome {
            Ok(Ok(Outcome::Shown(decoded))) => decoded,
            Ok(Ok(Outcome::Hidden)) => return self.hide(frame),
            Ok(Err(error @ Error::MissingReference { .. })) => {
                // Nobody misses what is not to be shown: the key picture may come before that.
                let hidden = frame.flags().contains(VideoCodecFrameFlags::DECODE_ONLY);
                obj.release_frame(frame);
                if !hidden {
                    self.wait_for_key(&error);
                }
                return Ok(gst::FlowSuccess::Ok);
            }
            // Given up by a flush that was over before anybody looked.
            Ok(Err(Error::Interrupted)) => {
                obj.release_frame(frame);
                return Err(gst::FlowError::Flushing);
            }
            Ok(Err(error)) => {
                obj.release_frame(frame);
                return self.report(&error);
            }
            Err(Lost) => {
                obj.release_frame(frame);
                gst::element_imp_error!(self, gst::LibraryError::Failed, ["the decoder panicked"]);
                return Err(gst::FlowError::Error);
            }
        };
        gst::log!(CAT, imp = self, "frame {number}: decoded in {:?}", decoded.time);
        if let Some(state) = self.state().as_mut() {
            state.waiting = false;
        }
        self.negotiate_for(&decoded.header)?;
        let mut picture = decoded.picture;
        self.send_tags(std::mem::take(&mut picture.metadata));
        let row = picture.pixels().len() / usize::from(decoded.header.height);
        // Rows of raw video are padded to 4 bytes: where there is neither padding nor alpha, the pixels are the buffer.
        if picture.alpha().is_none() && row % 4 == 0 {
            frame.set_output_buffer(gst::Buffer::from_mut_slice(picture.into_parts().0));
        } else {
            obj.allocate_output_frame(&mut frame, None)?;
            self.write_rows(&mut frame, picture)?;
        }
        obj.finish_frame(frame)
    }

    /// A picture that is not to be shown.
    fn hide(&self, frame: VideoCodecFrame<'_>) -> Result<gst::FlowSuccess, gst::FlowError> {
        let obj = self.obj();
        if frame.flags().contains(VideoCodecFrameFlags::DECODE_ONLY) {
            obj.finish_frame(frame)
        } else {
            // Dropped because it is late, which is told upstream.
            obj.drop_frame(frame)
        }
    }

    /// Whether a frame ends in front of the segment, as those do from which a seek begins to decode.
    fn is_before_segment(&self, frame: &VideoCodecFrame<'_>) -> bool {
        let segment = self.obj().input_segment();
        let start = segment.downcast_ref::<gst::ClockTime>().and_then(|segment| segment.start());
        let end = frame.pts().zip(frame.duration()).map(|(pts, duration)| pts + duration);
        segment.rate() > 0.0 && start.zip(end).is_some_and(|(start, end)| end <= start)
    }

    /// A delta picture whose reference was lost, or has never been there: said once, and a key picture is asked for.
    fn wait_for_key(&self, error: &Error) {
        let first = match self.state().as_mut() {
            Some(state) => !std::mem::replace(&mut state.waiting, true),
            None => false,
        };
        gst::debug!(CAT, imp = self, "{error}");
        if first {
            gst::element_imp_warning!(
                self,
                gst::StreamError::Decode,
                ("Waiting for the next key picture"),
                ["{error}"]
            );
            let event = gst_video::UpstreamForceKeyUnitEvent::builder().all_headers(false).build();
            self.obj().sink_pad().push_event(event);
        }
    }

    /// A picture that cannot be shown: a warning, and an error beyond `max-errors`.
    fn report(&self, error: &Error) -> Result<gst::FlowSuccess, gst::FlowError> {
        gst::element_imp_warning!(self, gst::StreamError::Decode, ("Cannot decode a picture"), ["{error}"]);
        // The base class counts, and stays silent below its limit.
        let obj = self.obj();
        let text = "Too many pictures cannot be decoded";
        gst_video::video_decoder_error!(obj, 1, gst::StreamError::Decode, ("{text}"), ["{error}"])
    }

    fn negotiate_for(&self, header: &Header) -> Result<(), gst::FlowError> {
        let obj = self.obj();
        let format = convert::output_format(header);
        let output = (format, u32::from(header.width), u32::from(header.height));
        let input = {
            let guard = self.state();
            let Some(state) = guard.as_ref() else { return Err(gst::FlowError::Flushing) };
            if state.output == Some(output) {
                return Ok(());
            }
            state.input.clone()
        };
        let mut negotiated = obj.set_output_state(format, output.1, output.2, input.as_ref())?;
        let srgb = convert::srgb(format == VideoFormat::Gray8);
        let info = gst_video::VideoInfo::builder_from_info(negotiated.info()).colorimetry(&srgb).build();
        negotiated.set_info(info.map_err(|_| gst::FlowError::NotNegotiated)?);
        obj.negotiate(negotiated).map_err(|error| unless_flushing(obj.src_pad(), error))?;
        if let Some(state) = self.state().as_mut() {
            state.output = Some(output);
        }
        Ok(())
    }

    /// What Exif and XMP say, as tags, whenever it changes.
    fn send_tags(&self, metadata: Metadata) {
        let tags = {
            let mut guard = self.state();
            let Some(state) = guard.as_mut() else { return };
            if state.metadata == metadata {
                return;
            }
            let mut tags = gst::TagList::new();
            let mut merge = |found: Result<gst::TagList, glib::BoolError>, kind: &str| match found {
                Ok(found) => tags = tags.merge(&found, gst::TagMergeMode::Keep),
                Err(error) => gst::warning!(CAT, imp = self, "{kind} is not understood: {error}"),
            };
            if let Some(exif) = &metadata.exif {
                let buffer = gst::Buffer::from_slice(exif.clone());
                merge(gst::TagList::from_exif_buffer_with_tiff_header(&buffer), "Exif");
            }
            if let Some(xmp) = &metadata.xmp {
                merge(gst::TagList::from_xmp_buffer(&gst::Buffer::from_slice(xmp.clone())), "XMP");
            }
            // The orientation of one picture is not that of the next one, but elements behind keep it.
            let orientation = |tags: &gst::TagList| tags.get::<gst::tags::ImageOrientation>().is_some();
            let turned = orientation(&tags);
            if state.turned && !turned {
                tags.make_mut().add::<gst::tags::ImageOrientation>(&"rotate-0", gst::TagMergeMode::Replace);
            }
            state.turned = turned;
            state.metadata = metadata;
            tags
        };
        self.obj().merge_tags(Some(&tags), gst::TagMergeMode::Replace);
    }

    fn write_rows(&self, frame: &mut VideoCodecFrame<'_>, picture: Picture) -> Result<(), gst::FlowError> {
        let info = self.obj().output_state().map(|state| state.info().clone());
        let (Some(info), Some(buffer)) = (info, frame.output_buffer_mut()) else {
            return Err(gst::FlowError::Error);
        };
        let mut target = gst_video::VideoFrameRef::from_buffer_ref_writable(buffer, &info)
            .map_err(|_| gst::FlowError::Error)?;
        let stride = usize::try_from(target.plane_stride()[0]).map_err(|_| gst::FlowError::Error)?;
        let plane = target.plane_data_mut(0).map_err(|_| gst::FlowError::Error)?;
        convert::write(picture, stride, plane).ok_or(gst::FlowError::Error)
    }

    /// The model that a picture names.
    fn model(&self, header: &Header, file: &[u8], settings: &Settings) -> Result<Model, gst::FlowError> {
        if let Some(model) = self.state().as_ref().and_then(|state| state.models.get(&header.bundle).cloned())
        {
            return Ok(model);
        }
        let engine = engine(settings.provider.as_deref(), settings.device);
        let found = Decoder::new(file).and_then(|mut decoder| decoder.find_model(engine));
        let model = found.map_err(|error| {
            gst::element_imp_error!(
                self,
                gst::ResourceError::NotFound,
                ("The model of this picture is missing"),
                ["{error}"]
            );
            gst::FlowError::Error
        })?;
        if settings.decoder == PixelDecoder::Natural && !model.bundle().has(role::SYNTHESIS_NATURAL) {
            gst::element_imp_error!(
                self,
                gst::LibraryError::Settings,
                ("The model of this picture has no natural decoder"),
                [
                    "bundle {} has none; use decoder=auto or decoder=fidelity",
                    model.bundle().manifest().label()
                ]
            );
            return Err(gst::FlowError::Error);
        }
        model.warm_up().map_err(|error| {
            gst::element_imp_error!(
                self,
                gst::LibraryError::Init,
                ("Cannot run the model"),
                ["{}", cannot_run(settings.provider.as_deref(), &error)]
            );
            gst::FlowError::Error
        })?;
        if let Some(state) = self.state().as_mut() {
            state.models.insert(header.bundle, model.clone());
        }
        Ok(model)
    }
}

/// The work on a picture, on any thread. Of one that is hidden, only what the next one needs.
fn decode(
    mut decoder: Decoder<Cursor<&[u8]>>,
    header: Header,
    options: &DecodeOptions,
    delta: bool,
    link: Link,
    hidden: bool,
) -> Result<Outcome, Error> {
    if hidden && header.method != Method::Trained {
        // No other can be coded against it.
        return Ok(Outcome::Hidden);
    }
    let mut time = Duration::ZERO;
    // Waiting for the picture before is no time of this one.
    link.pass(!delta, |before| {
        let start = Instant::now();
        let reference = decoder.follow(before, options)?;
        time = start.elapsed();
        Ok(((), reference))
    })?;
    if hidden {
        return Ok(Outcome::Hidden);
    }
    let start = Instant::now();
    let picture = decoder.decode(options)?;
    time += start.elapsed();
    Ok(Outcome::Shown(Decoded { header, picture, time }))
}

/// Whether the caps promise one whole picture a buffer, as those of demuxers do.
fn is_parsed(state: &VideoCodecState<'static, Readable>) -> bool {
    let structure = state.caps().and_then(|caps| caps.structure(0));
    structure.is_some_and(|s| s.name() != MEDIA_TYPE || s.get::<bool>("parsed").unwrap_or(false))
}

#[glib::object_subclass]
impl ObjectSubclass for SdlDec {
    const NAME: &'static str = "GstSdlDec";
    type Type = super::SdlDec;
    type ParentType = gst_video::VideoDecoder;
}

#[glib::derived_properties]
impl ObjectImpl for SdlDec {}

impl GstObjectImpl for SdlDec {}

impl ElementImpl for SdlDec {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "SDL picture decoder",
                "Codec/Decoder/Image",
                "Decodes SDL pictures with the neural network that they name",
                "The SDL developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            // Behind the first: what demuxers make of tracks that are marked as SDL.
            let sink = gst::Caps::builder_full()
                .structure(gst::Structure::new_empty(MEDIA_TYPE))
                .structure(gst::Structure::new_empty("video/x-gst-fourcc-sdl0"))
                .structure(gst::Structure::builder("video/x-unknown").field("codec-id", "V_SDL").build())
                .structure(gst::Structure::builder("video/x-unknown").field("fourcc", "SDL0").build())
                .build();
            let src = gst_video::VideoCapsBuilder::new()
                .format_list([VideoFormat::Rgb, VideoFormat::Rgba, VideoFormat::Gray8])
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

    fn change_state(
        &self,
        transition: gst::StateChange,
    ) -> Result<gst::StateChangeSuccess, gst::StateChangeError> {
        if transition == gst::StateChange::PausedToReady {
            // The streaming thread may be waiting for a picture, and its end is waited for.
            self.halt.stop();
        }
        self.parent_change_state(transition)
    }
}

impl VideoDecoderImpl for SdlDec {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        self.obj().set_packetized(false);
        let threads = worker_count(self.settings().n_threads);
        self.halt.resume();
        let bell = Arc::<Bell>::default();
        let cannot = |e| gst::error_msg!(gst::ResourceError::Failed, ["cannot start a thread: {e}"]);
        let workers = Workers::new(threads, &self.halt, &bell).map_err(cannot)?;
        let weak = self.obj().downgrade();
        let deliver = move || {
            if let Some(element) = weak.upgrade() {
                element.imp().deliver();
            }
        };
        *self.state() = Some(State {
            _courier: Courier::new(&bell, deliver).map_err(cannot)?,
            bell,
            models: HashMap::new(),
            workers,
            chain: Chain::default(),
            has_delta: false,
            waiting: false,
            input: None,
            output: None,
            metadata: Metadata::default(),
            turned: false,
            scanner: Scanner::default(),
            next_look: 0,
            flow: Ok(()),
        });
        Ok(())
    }

    fn stop(&self) -> Result<(), gst::ErrorMessage> {
        // Dropped after the lock is released: it waits for what the workers have begun.
        let state = self.state().take();
        drop(state);
        Ok(())
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::FlushStart {
            self.halt.stop();
        }
        if let gst::EventView::Segment(segment) = event.view() {
            // A source of buffers with times gives one picture each.
            let whole = segment.segment().format() == gst::Format::Time
                || self.state().as_ref().and_then(|state| state.input.as_ref()).is_some_and(is_parsed);
            self.obj().set_packetized(whole);
        }
        self.parent_sink_event(event)
    }

    fn set_format(&self, state: &VideoCodecState<'static, Readable>) -> Result<(), gst::LoggableError> {
        let obj = self.obj();
        match self.hand_on(HandOn::Everything) {
            Ok(_) => {}
            // Nobody wants the old pictures any more; the next ones may be wanted.
            Err(gst::FlowError::Flushing | gst::FlowError::Eos) => {
                if let Some(state) = self.state().as_mut() {
                    state.workers.clear();
                }
            }
            Err(error) => return Err(gst::loggable_error!(CAT, "cannot drain: {error}")),
        }
        if is_parsed(state) {
            obj.set_packetized(true);
        }
        let n_threads = self.settings().n_threads;
        let mut guard = self.state();
        let Some(own) = guard.as_mut() else { return Ok(()) };
        own.input = Some(state.clone());
        own.output = None;
        let threads = if n_threads == AUTO && is_live(obj.sink_pad()) { 0 } else { worker_count(n_threads) };
        if threads != own.workers.threads() {
            own.workers = Workers::new(threads, &self.halt, &own.bell)
                .map_err(|e| gst::loggable_error!(CAT, "cannot start a thread: {e}"))?;
        }
        drop(guard);
        let fps = state.info().fps();
        if let Some(latency) = latency(fps, threads) {
            obj.set_latency(latency, latency);
        }
        Ok(())
    }

    fn parse(
        &self,
        _frame: &VideoCodecFrame,
        adapter: &gst_base::Adapter,
        at_eos: bool,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let obj = self.obj();
        let max_size = self.settings().max_size as usize;
        loop {
            let available = adapter.available();
            let found = {
                let mut guard = self.state();
                let Some(state) = guard.as_mut() else { return Err(gst::FlowError::Flushing) };
                if available == 0 || (available < state.next_look && !at_eos) {
                    return Ok(gst_video::VIDEO_DECODER_FLOW_NEED_DATA);
                }
                // Not all that is there for each of many pictures.
                let copy = |length: usize| {
                    adapter.copy_bytes(0, length.min(available)).map_err(|_| gst::FlowError::Error)
                };
                let start = copy(MAX_HEADER_BYTES)?;
                let bytes = copy(scan::reach(&start, max_size))?;
                let found = state.scanner.scan(&bytes, max_size);
                state.next_look = match found {
                    Found::NeedMore(needed) => needed.min(available + available.max(LEAST_NEW)),
                    _ => 0,
                };
                found
            };
            let lost = match found {
                Found::Picture(header) => {
                    obj.add_to_frame(i32::try_from(header.length).map_err(|_| gst::FlowError::Error)?);
                    return obj.have_frame();
                }
                Found::NeedMore(_) if !at_eos => return Ok(gst_video::VIDEO_DECODER_FLOW_NEED_DATA),
                Found::Junk(0) => return Ok(gst_video::VIDEO_DECODER_FLOW_NEED_DATA),
                Found::Junk(length) => {
                    gst::debug!(CAT, imp = self, "{length} bytes are no picture");
                    adapter.flush(length);
                    continue;
                }
                Found::NeedMore(_) => available,
                Found::Cut(length) => length,
            };
            adapter.flush(lost);
            self.report(&Error::Truncated { found: lost as u64, place: "stream" })?;
        }
    }

    fn handle_frame(&self, mut frame: VideoCodecFrame) -> Result<gst::FlowSuccess, gst::FlowError> {
        let obj = self.obj();
        let number = frame.system_frame_number();
        let late = obj.is_qos() && obj.max_decode_time(&frame) < 0;
        let buffer = frame.input_buffer_owned();
        let Some(buffer) = buffer.and_then(|buffer| buffer.into_mapped_buffer_readable().ok()) else {
            return Err(gst::FlowError::Error);
        };
        let delta = image_sdl::is_delta(&buffer);
        let has_delta = self.state().as_mut().is_some_and(|state| {
            state.has_delta |= delta;
            state.has_delta
        });
        if self.is_before_segment(&frame) {
            frame.set_flags(VideoCodecFrameFlags::DECODE_ONLY);
        }
        let hidden = late || frame.flags().contains(VideoCodecFrameFlags::DECODE_ONLY);
        if hidden {
            gst::debug!(
                CAT,
                imp = self,
                "frame {number} is {}",
                if late { "late" } else { "before the segment" }
            );
        }
        if late && !has_delta {
            return self.hide(frame);
        }
        drop(frame);
        let settings = self.settings().clone();
        let header = Header::parse(&buffer).and_then(|header| {
            header.ok_or(Error::Truncated { found: buffer.size() as u64, place: "header" })
        });
        let outcome = match header {
            Ok(header) => Ok((self.model(&header, &buffer, &settings)?, header)),
            Err(error) => Err(error),
        };
        // A model that takes every thread: one picture at a time.
        let wait = outcome.as_ref().is_ok_and(|(model, _)| model.is_large());
        if let Some(state) = self.state().as_mut() {
            match outcome {
                Err(error) => state.workers.push_done(number, Err(error)),
                Ok((model, header)) => {
                    let alone = state.workers.threads() > 0 && state.workers.is_idle();
                    let threads = tile_threads(&model, alone);
                    let wanted = state.workers.wanted();
                    let options = settings
                        .options()
                        .with_threads(threads)
                        .with_progress(Progress::new(move |_, _, _| wanted()));
                    let link = state.chain.link();
                    state.workers.push(number, move || {
                        let decoder = Decoder::new(Cursor::new(buffer.as_slice()))?.with_model(model);
                        decode(decoder, header, &options, delta, link, hidden)
                    });
                }
            }
        }
        self.hand_on(if wait { HandOn::Everything } else { HandOn::MakeRoom })
    }

    fn drain(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.hand_on(HandOn::Everything)
    }

    fn finish(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        self.hand_on(HandOn::Everything)
    }

    fn flush(&self) -> bool {
        if let Some(state) = self.state().as_mut() {
            state.workers.clear();
            state.chain.cut();
            state.waiting = false;
            state.scanner.reset();
            state.next_look = 0;
            state.flow = Ok(());
        }
        self.halt.resume();
        true
    }

    fn decide_allocation(&self, query: &mut gst::query::Allocation) -> Result<(), gst::LoggableError> {
        self.parent_decide_allocation(query)?;
        if query.find_allocation_meta::<gst_video::VideoMeta>().is_some()
            && let Some((pool, size, min, max)) = query
                .allocation_pools()
                .next()
                .and_then(|(pool, size, min, max)| Some((pool?, size, min, max)))
        {
            let mut config = pool.config();
            config.add_option(gst_video::BUFFER_POOL_OPTION_VIDEO_META);
            pool.set_config(config)
                .map_err(|_| gst::loggable_error!(CAT, "the pool does not take its own options"))?;
            query.set_nth_allocation_pool(0, Some(&pool), size, min, max);
        }
        Ok(())
    }
}
