use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gst::glib;
use gst::subclass::prelude::*;
use gst_video::prelude::*;
use gst_video::subclass::prelude::*;
use gst_video::{VideoCodecFrame, VideoCodecFrameFlags, VideoInfo};
use image_sdl::{Analysed, EncodeOptions, Error, MAX_EFFORT, Model, Picture, Progress};

use super::KeyFrames;
use super::select::{self, Rules, Selector};
use crate::chain::{Chain, Link};
use crate::convert::{self, Pool};
use crate::scan::MEDIA_TYPE;
use crate::settings::{AUTO, cannot_run, engine, latency, tile_threads, unless_flushing, worker_count};
use crate::workers::{Bell, Courier, Halt, HandOn, Lost, Workers};

static CAT: LazyLock<gst::DebugCategory> = LazyLock::new(|| {
    gst::DebugCategory::new("sdlenc", gst::DebugColorFlags::empty(), Some("SDL picture encoder"))
});

const DEFAULT_QUALITY: u32 = image_sdl::DEFAULT_QUALITY as u32;
const DEFAULT_EFFORT: u32 = image_sdl::DEFAULT_EFFORT as u32;
const MAX_EFFORT_SETTING: u32 = MAX_EFFORT as u32;
const DEFAULT_INTERVAL: u64 = gst::ClockTime::SECOND.nseconds();
/// A person who walks through a picture of a room changes some 3 % of its brightness.
const DEFAULT_THRESHOLD: f64 = 0.05;
/// Bytes of frames that may wait behind a slow picture.
const MOST_HELD: usize = 128 << 20;
/// The largest side of a picture.
const MAX_SIDE: i32 = 65_535;

#[derive(Debug, Clone)]
struct Settings {
    quality: u32,
    target_size: u32,
    effort: u32,
    model: Option<String>,
    provider: Option<String>,
    device: u32,
    n_threads: i32,
    snapshot: bool,
    frame_duration: bool,
    key_frames: KeyFrames,
    interval: u64,
    min_interval: u64,
    threshold: f64,
    delta: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            quality: DEFAULT_QUALITY,
            target_size: 0,
            effort: DEFAULT_EFFORT,
            model: None,
            provider: None,
            device: 0,
            n_threads: AUTO,
            snapshot: false,
            frame_duration: false,
            key_frames: KeyFrames::default(),
            interval: DEFAULT_INTERVAL,
            min_interval: 0,
            threshold: DEFAULT_THRESHOLD,
            delta: false,
        }
    }
}

impl Settings {
    fn options(&self) -> EncodeOptions {
        let options = EncodeOptions::default().with_effort(self.effort as u8);
        match self.target_size {
            0 => options.with_quality(self.quality as u8),
            bytes => options.with_target_size(bytes.into()),
        }
    }

    fn rules(&self) -> Rules {
        // Where every frame becomes a picture anyway, the interval is that of the key pictures.
        let key_frames = match self.key_frames {
            KeyFrames::Every if self.delta => KeyFrames::Interval,
            other => other,
        };
        Rules {
            key_frames,
            interval: gst::ClockTime::from_nseconds(self.interval),
            min_interval: gst::ClockTime::from_nseconds(self.min_interval),
            threshold: self.threshold,
        }
    }

    /// How long the picture of a frame is shown, as far as that is known before the next one comes.
    fn duration(&self, frame: gst::ClockTime) -> Option<gst::ClockTime> {
        match self.key_frames {
            _ if self.delta => Some(frame),
            KeyFrames::Every => Some(frame),
            KeyFrames::Interval => Some(frame.max(gst::ClockTime::from_nseconds(self.interval))),
            KeyFrames::SceneChange | KeyFrames::Forced => None,
        }
    }
}

/// What became of a frame.
enum Outcome {
    File {
        bytes: Vec<u8>,
        /// It can be decoded on its own.
        key: bool,
        /// Time spent on making a picture of the frame, and on encoding it.
        times: (Duration, Duration),
    },
    /// It was not chosen, or came too late.
    Dropped,
    Unreadable(String),
    Failed(Error),
}

struct State {
    /// Ends before the workers do.
    _courier: Option<Courier>,
    model: Model,
    workers: Workers<u32, Outcome>,
    info: Option<VideoInfo>,
    selector: Selector,
    chain: Chain,
    pool: Arc<Pool>,
    snapshot_taken: bool,
    /// What became of what the courier handed on.
    flow: Result<(), gst::FlowError>,
}

/// The implementation of `sdlenc`.
#[derive(Default, glib::Properties)]
#[properties(wrapper_type = super::SdlEnc)]
pub struct SdlEnc {
    #[property(name = "quality", get, set, type = u32, member = quality, minimum = 0, maximum = 100, default = DEFAULT_QUALITY,
        blurb = "Quality of the pictures, 0 (smallest) to 100 (best); not used where target-size is set", mutable_playing)]
    #[property(name = "target-size", get, set, type = u32, member = target_size, default = 0,
        blurb = "The most bytes that a picture may have: each gets the best quality that fits (0 = use quality)", mutable_playing)]
    #[property(name = "effort", get, set, type = u32, member = effort, minimum = 1, maximum = MAX_EFFORT_SETTING,
        default = DEFAULT_EFFORT, blurb = "How much to try, 1 (fastest) to 9: 3 weighs errors against bits, 5 corrects latents, from 6 on they are refined, which takes seconds", mutable_playing)]
    #[property(name = "model", get, set, type = Option<String>, member = model,
        blurb = "Bundle to encode with: a name in the store, or the path of a .sdlm file or folder (empty = built in)", mutable_ready)]
    #[property(name = "provider", get, set, type = Option<String>, member = provider,
        blurb = "Execution provider of ONNX Runtime, for instance cuda (empty = processor)", mutable_ready)]
    #[property(name = "device", get, set, type = u32, member = device, default = 0,
        blurb = "Device of the execution provider, counted from 0", mutable_ready)]
    #[property(name = "n-threads", get, set, type = i32, member = n_threads, minimum = AUTO, maximum = 1024, default = AUTO,
        blurb = "Frames that are encoded at the same time, which adds as many to the latency (-1 = number of processors, 0 = in the streaming thread)",
        mutable_ready)]
    #[property(name = "snapshot", get, set, type = bool, member = snapshot, default = false,
        blurb = "Send EOS after encoding a frame, useful for snapshots", mutable_playing)]
    #[property(name = "frame-duration", get, set, type = bool, member = frame_duration, default = false,
        blurb = "Write the duration of each frame into its picture (4 bytes), so that a file of many plays at its own speed",
        mutable_playing)]
    #[property(name = "key-frames", get, set, type = KeyFrames, member = key_frames, builder(KeyFrames::default())
        .blurb("Which frames become pictures, with delta=true key pictures; frames that a force-key-unit event asks for always do").mutable_playing())]
    #[property(name = "interval", get, set, type = u64, member = interval, default = DEFAULT_INTERVAL,
        blurb = "Time from one picture to the next with key-frames=interval, in nanoseconds; from one key picture to the next with delta=true, also with key-frames=every",
        mutable_playing)]
    #[property(name = "min-interval", get, set, type = u64, member = min_interval, default = 0,
        blurb = "Least time from one picture to the next with key-frames=scene-change, in nanoseconds", mutable_playing)]
    #[property(name = "scene-change-threshold", get, set, type = f64, member = threshold, minimum = 0.0, maximum = 1.0,
        default = DEFAULT_THRESHOLD, blurb = "Mean difference of brightness from the last picture that makes a frame a new one with key-frames=scene-change, 0 to 1",
        mutable_playing)]
    #[property(name = "delta", get, set, type = bool, member = delta, default = false,
        blurb = "Make pictures of the frames between key pictures too, each coded as what changed since the picture before it", mutable_ready)]
    settings: Mutex<Settings>,
    /// Locked by nobody but the holder of the stream lock, and never while a frame is pushed.
    state: Mutex<Option<State>>,
    halt: Arc<Halt>,
}

impl SdlEnc {
    fn settings(&self) -> MutexGuard<'_, Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands on pictures. Whether one was among it.
    fn hand_on(&self, how: HandOn) -> Result<bool, gst::FlowError> {
        let mut picture = false;
        loop {
            let next = self.state().as_mut().and_then(|state| state.workers.next(how));
            let Some((number, outcome)) = next else { return Ok(picture) };
            // The base class frees the frames of what was given up.
            if self.halt.is_stopped() {
                return Err(gst::FlowError::Flushing);
            }
            picture |= matches!(outcome, Ok(Outcome::File { .. }));
            self.finish_frame(number, outcome)?;
        }
    }

    /// What the courier does: hands on what is finished, as the streaming thread would with the next frame.
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
        outcome: Result<Outcome, Lost>,
    ) -> Result<gst::FlowSuccess, gst::FlowError> {
        let obj = self.obj();
        let number = i32::try_from(number).map_err(|_| gst::FlowError::Error)?;
        let Some(mut frame) = obj.frame(number) else { return Ok(gst::FlowSuccess::Ok) };
        // A frame that ends in an error stays with the base class, which frees it when the element stops.
        match outcome {
            Ok(Outcome::File { bytes, key, times: (convert, encode) }) => {
                gst::log!(
                    CAT,
                    imp = self,
                    "frame {number}: {} bytes, {}; converted in {convert:?}, encoded in {encode:?}",
                    bytes.len(),
                    if key { "key" } else { "delta" }
                );
                // The base class marks all others as delta units.
                if key {
                    frame.set_flags(VideoCodecFrameFlags::SYNC_POINT);
                }
                frame.set_output_buffer(gst::Buffer::from_mut_slice(bytes));
                obj.finish_frame(frame)
            }
            Ok(Outcome::Dropped) => self.drop_frame(frame),
            // The next frame may fit: a warning, and a gap where this one was.
            Ok(Outcome::Failed(error @ Error::Target { .. })) => {
                gst::element_imp_warning!(self, gst::StreamError::Encode, ["{error}"]);
                self.drop_frame(frame)
            }
            Ok(Outcome::Unreadable(problem)) => {
                drop(frame);
                gst::element_imp_error!(
                    self,
                    gst::StreamError::Format,
                    ("Cannot read a frame"),
                    ["{problem}"]
                );
                Err(gst::FlowError::Error)
            }
            // Given up by a flush that was over before anybody looked.
            Ok(Outcome::Failed(Error::Interrupted)) => Err(gst::FlowError::Flushing),
            Ok(Outcome::Failed(error)) => {
                drop(frame);
                gst::element_imp_error!(self, gst::StreamError::Encode, ["{error}"]);
                Err(gst::FlowError::Error)
            }
            Err(Lost) => {
                drop(frame);
                gst::element_imp_error!(self, gst::LibraryError::Failed, ["the encoder panicked"]);
                Err(gst::FlowError::Error)
            }
        }
    }

    /// No picture of this frame: what is behind learns that nothing comes for it.
    fn drop_frame(&self, frame: VideoCodecFrame<'_>) -> Result<gst::FlowSuccess, gst::FlowError> {
        let obj = self.obj();
        let (pts, duration) = (frame.pts(), frame.duration());
        let flow = obj.finish_frame(frame)?;
        if let Some(pts) = pts {
            obj.src_pad().push_event(gst::event::Gap::builder(pts).duration(duration).build());
        }
        Ok(flow)
    }
}

/// How a frame is coded.
enum Coding {
    /// On its own.
    Key,
    /// In a sequence, as a key picture or not.
    Sequence { key: bool, link: Link },
}

/// The work on a frame, on any thread.
fn encode(
    model: &Model,
    buffer: &gst::BufferRef,
    info: &VideoInfo,
    options: &EncodeOptions,
    coding: Coding,
    pool: &Pool,
) -> Outcome {
    let start = Instant::now();
    let picture = match convert::picture(buffer, info, pool) {
        Ok(picture) => picture,
        Err(problem) => return Outcome::Unreadable(problem),
    };
    let converted = start.elapsed();
    let encoded = match coding {
        Coding::Key => image_sdl::encode_with(model, &picture, options),
        Coding::Sequence { key, link } => encode_next(model, &picture, options, key, link),
    };
    let encode = start.elapsed() - converted;
    pool.give_back(picture);
    match encoded {
        Ok(encoded) => {
            Outcome::File { bytes: encoded.bytes, key: !encoded.delta, times: (converted, encode) }
        }
        Err(error) => Outcome::Failed(error),
    }
}

/// The next picture of a sequence: the graphs run beside those of the frame before, and only then is it waited for.
fn encode_next(
    model: &Model,
    picture: &Picture,
    options: &EncodeOptions,
    key: bool,
    link: Link,
) -> Result<image_sdl::Encoded, Error> {
    let analysed = Analysed::new(model, picture, options)?;
    link.pass(key, |before| {
        let (encoded, reference) = analysed.encode(before)?;
        Ok((encoded, Some(reference)))
    })
}

#[glib::object_subclass]
impl ObjectSubclass for SdlEnc {
    const NAME: &'static str = "GstSdlEnc";
    type Type = super::SdlEnc;
    type ParentType = gst_video::VideoEncoder;
}

#[glib::derived_properties]
impl ObjectImpl for SdlEnc {}

impl GstObjectImpl for SdlEnc {}

impl ElementImpl for SdlEnc {
    fn metadata() -> Option<&'static gst::subclass::ElementMetadata> {
        static METADATA: LazyLock<gst::subclass::ElementMetadata> = LazyLock::new(|| {
            gst::subclass::ElementMetadata::new(
                "SDL picture encoder",
                "Codec/Encoder/Image",
                "Encodes raw video as SDL pictures with a neural network",
                "The SDL developers",
            )
        });
        Some(&METADATA)
    }

    fn pad_templates() -> &'static [gst::PadTemplate] {
        static TEMPLATES: LazyLock<Vec<gst::PadTemplate>> = LazyLock::new(|| {
            let sink = gst_video::VideoCapsBuilder::new()
                .format_list(convert::FORMATS)
                .width_range(1..=MAX_SIDE)
                .height_range(1..=MAX_SIDE)
                .build();
            let src = gst::Caps::builder(MEDIA_TYPE)
                .field("parsed", true)
                .field("width", gst::IntRange::new(1, MAX_SIDE))
                .field("height", gst::IntRange::new(1, MAX_SIDE))
                .field(
                    "framerate",
                    gst::FractionRange::new(gst::Fraction::new(0, 1), gst::Fraction::new(i32::MAX, 1)),
                )
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

impl VideoEncoderImpl for SdlEnc {
    fn start(&self) -> Result<(), gst::ErrorMessage> {
        let settings = self.settings().clone();
        let engine = engine(settings.provider.as_deref(), settings.device);
        let wanted = settings.model.as_deref().unwrap_or_default();
        let model = Model::find(wanted, engine)
            .map_err(|e| gst::error_msg!(gst::ResourceError::NotFound, ("Cannot open the model"), ["{e}"]))?;
        if settings.delta {
            image_sdl::SequenceEncoder::new(model.clone()).map_err(|e| {
                gst::error_msg!(gst::LibraryError::Settings, ("delta=true is not for this model"), ["{e}"])
            })?;
        }
        model.warm_up_encoder().map_err(|e| {
            gst::error_msg!(
                gst::LibraryError::Init,
                ("Cannot run the model"),
                ["{}", cannot_run(settings.provider.as_deref(), &e)]
            )
        })?;
        let threads = worker_count(settings.n_threads);
        let threads = if model.is_large() { threads.min(1) } else { threads };
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
        let courier = if threads > 0 { Some(Courier::new(&bell, deliver).map_err(cannot)?) } else { None };
        *self.state() = Some(State {
            _courier: courier,
            model,
            workers,
            info: None,
            selector: Selector::default(),
            chain: Chain::default(),
            pool: Arc::default(),
            snapshot_taken: false,
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

    fn set_format(
        &self,
        state: &gst_video::VideoCodecState<'static, gst_video::video_codec_state::Readable>,
    ) -> Result<(), gst::LoggableError> {
        let obj = self.obj();
        match self.hand_on(HandOn::Everything) {
            Ok(_) => {}
            // Nobody wants the old frames any more; the next ones may be wanted.
            Err(gst::FlowError::Flushing | gst::FlowError::Eos) => {
                if let Some(state) = self.state().as_mut() {
                    state.workers.clear();
                }
            }
            Err(error) => return Err(gst::loggable_error!(CAT, "cannot drain: {error}")),
        }
        let info = state.info().clone();
        let threads = match self.state().as_mut() {
            Some(state) => {
                state.info = Some(info.clone());
                state.selector.reset();
                state.chain.cut();
                // Another size: nothing is taken from the old one again.
                state.pool = Arc::default();
                state.workers.hold(MOST_HELD / info.size().max(1));
                state.workers.threads()
            }
            None => 0,
        };
        let fps = info.fps();
        if let Some(latency) = latency(fps, threads) {
            obj.set_latency(latency, latency);
        }
        let caps = gst::Caps::builder(MEDIA_TYPE).field("parsed", true).build();
        let mut output = obj
            .set_output_state(caps, Some(state))
            .map_err(|_| gst::loggable_error!(CAT, "cannot set the output caps"))?;
        // Whatever the frames were, a picture is sRGB.
        let srgb = convert::srgb(output.info().format_info().is_gray());
        let info = gst_video::VideoInfo::builder_from_info(output.info())
            .colorimetry(&srgb)
            .chroma_site(gst_video::VideoChromaSite::empty())
            .build()
            .map_err(|e| gst::loggable_error!(CAT, "{e}"))?;
        output.set_info(info);
        match obj.negotiate(output).map_err(|error| unless_flushing(obj.src_pad(), error)) {
            // The base class does it again with the next picture.
            Ok(()) | Err(gst::FlowError::Flushing) => Ok(()),
            Err(_) => Err(gst::loggable_error!(CAT, "downstream takes no SDL pictures")),
        }
    }

    fn sink_event(&self, event: gst::Event) -> bool {
        if event.type_() == gst::EventType::FlushStart {
            self.halt.stop();
        }
        self.parent_sink_event(event)
    }

    fn handle_frame(&self, frame: VideoCodecFrame) -> Result<gst::FlowSuccess, gst::FlowError> {
        let settings = self.settings().clone();
        let obj = self.obj();
        {
            let mut guard = self.state();
            let Some(State {
                model,
                workers,
                info: Some(info),
                selector,
                chain,
                pool,
                snapshot_taken,
                flow,
                ..
            }) = guard.as_mut()
            else {
                return Err(gst::FlowError::NotNegotiated);
            };
            std::mem::replace(flow, Ok(()))?;
            *snapshot_taken &= settings.snapshot;
            if *snapshot_taken {
                drop(guard);
                obj.finish_frame(frame)?;
                return Err(gst::FlowError::Eos);
            }
            let number = frame.system_frame_number();
            let buffer = frame.input_buffer_owned();
            let forced = frame.flags().contains(VideoCodecFrameFlags::FORCE_KEYFRAME);
            let late = !forced && obj.is_qos() && obj.max_encode_time(&frame) < 0;
            let chosen = !late
                && selector.choose(&settings.rules(), forced, frame.pts(), frame.duration(), || {
                    select::sketch(buffer.as_deref()?, info)
                });
            let duration = frame
                .duration()
                .filter(|_| settings.frame_duration)
                .and_then(|d| settings.duration(d))
                .and_then(|d| u32::try_from(d.useconds()).ok());
            drop(frame);
            match buffer {
                Some(buffer) if chosen || (settings.delta && !late) => {
                    let coding = if settings.delta {
                        Coding::Sequence { key: chosen, link: chain.link() }
                    } else {
                        Coding::Key
                    };
                    let threads = tile_threads(model, workers.threads() > 0 && workers.is_idle());
                    let wanted = workers.wanted();
                    let mut options = settings
                        .options()
                        .with_threads(threads)
                        .with_progress(Progress::new(move |_, _, _| wanted()));
                    options.duration = duration;
                    let (model, info, pool) = (model.clone(), info.clone(), Arc::clone(pool));
                    workers.push(number, move || encode(&model, &buffer, &info, &options, coding, &pool));
                }
                _ => workers.push_done(number, Outcome::Dropped),
            }
        }
        let how = if settings.snapshot { HandOn::Everything } else { HandOn::MakeRoom };
        let picture = self.hand_on(how)?;
        if settings.snapshot && picture {
            if let Some(state) = self.state().as_mut() {
                state.snapshot_taken = true;
            }
            return Err(gst::FlowError::Eos);
        }
        Ok(gst::FlowSuccess::Ok)
    }

    fn finish(&self) -> Result<gst::FlowSuccess, gst::FlowError> {
        if let Some(state) = self.state().as_mut() {
            std::mem::replace(&mut state.flow, Ok(()))?;
        }
        self.hand_on(HandOn::Everything)?;
        Ok(gst::FlowSuccess::Ok)
    }

    fn flush(&self) -> bool {
        if let Some(state) = self.state().as_mut() {
            state.workers.clear();
            state.selector.reset();
            state.chain.cut();
            state.snapshot_taken = false;
            state.flow = Ok(());
        }
        self.halt.resume();
        true
    }

    fn propose_allocation(&self, query: &mut gst::query::Allocation) -> Result<(), gst::LoggableError> {
        query.add_allocation_meta::<gst_video::VideoMeta>(None);
        self.parent_propose_allocation(query)?;
        // Frames are held while they are encoded: a pool of fewer keeps workers waiting.
        let threads = self.state().as_ref().map_or(0, |state| state.workers.threads());
        let least = u32::try_from(threads + 1).unwrap_or(u32::MAX);
        let first = query.allocation_pools().next();
        if let Some((pool, size, min, max)) = first {
            let max = if max == 0 { 0 } else { max.max(least) };
            query.set_nth_allocation_pool(0, pool.as_ref(), size, min.max(least), max);
        }
        Ok(())
    }
}
