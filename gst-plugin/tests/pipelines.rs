//! The tools of GStreamer with the plugin as a file on its path: what users type.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

const SOURCE: &str = "videotestsrc num-buffers=5 ! video/x-raw,format=RGB,width=160,height=120,framerate=5/1";
/// Longer than the slowest of these takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A place of its own for each test, and in it a folder with nothing but the plugin: the newest that was built with this test.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        let built = std::env::current_exe().unwrap().parent().unwrap().join("libgstsdl.so");
        std::fs::create_dir(place.path("plugin")).unwrap();
        // A link: each copy would be 30 MB.
        std::os::unix::fs::symlink(built, place.path("plugin/libgstsdl.so")).unwrap();
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command
            .current_dir(self.0.path())
            .env("GST_PLUGIN_PATH", self.path("plugin"))
            .env("SDL_MODEL_DIR", self.path("models"))
            // Kept from one test to the next: what GStreamer finds out about its other plugins takes seconds.
            .env("GST_REGISTRY", Path::new(env!("CARGO_TARGET_TMPDIR")).join("gst-registry.bin"))
            .env("G_DEBUG", "fatal_warnings")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn start(&self, line: &str) -> Running {
        let mut words = line.split_whitespace();
        let tool = words.next().unwrap();
        Running(Some(self.command(tool).args(words).spawn().unwrap()), line.to_owned())
    }

    /// What a tool says; it must end well, and in time.
    fn run(&self, line: &str) -> String {
        let output = self.start(line).finish();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{line}\n{text}");
        text
    }

    /// Buffers that reach a sink at the end of a pipeline.
    fn count(&self, pipeline: &str) -> usize {
        let said =
            self.run(&format!("gst-launch-1.0 -v {pipeline} ! fakesink name=last silent=false sync=false"));
        said.matches("last-message = chain").count()
    }
}

struct Running(Option<Child>, String);

impl Running {
    fn finish(mut self) -> Output {
        let mut child = self.0.take().unwrap();
        let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let read = std::thread::spawn(move || {
            let mut text = Vec::new();
            out.read_to_end(&mut text).unwrap();
            text
        });
        let read_errors = std::thread::spawn(move || {
            let mut text = Vec::new();
            err.read_to_end(&mut text).unwrap();
            text
        });
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if start.elapsed() > PATIENCE {
                child.kill().unwrap();
                let said = String::from_utf8_lossy(&read.join().unwrap()).into_owned();
                panic!("{} does not end\n{said}", self.1);
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Output { status, stdout: read.join().unwrap(), stderr: read_errors.join().unwrap() }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn the_plugin_loads_with_all_its_elements() {
    let place = Place::new();
    let said = place.run("gst-inspect-1.0 sdl");
    for name in ["sdlenc", "sdldec", "sdlparse", "image/x-sdl: sdl"] {
        assert!(said.contains(name), "{said}");
    }
    for element in ["sdlenc", "sdldec", "sdlparse"] {
        place.run(&format!("gst-inspect-1.0 --exists --atleast-version=0.1 {element}"));
        let said = place.run(&format!("gst-inspect-1.0 {element}"));
        assert!(!said.contains("Unknown"), "{said}");
    }
}

#[test]
fn what_cargo_c_installs_goes_where_gstreamer_looks_and_names_libraries_that_are_there() {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    assert_eq!(manifest["lib"]["name"].as_str(), Some("gstsdl"));
    let capi = &manifest["package"]["metadata"]["capi"];
    assert_eq!(capi["library"]["install_subdir"].as_str(), Some("gstreamer-1.0"));
    // A plugin has neither a version in its name nor a header.
    assert_eq!(capi["library"]["versioning"].as_bool(), Some(false));
    assert_eq!(capi["header"]["enabled"].as_bool(), Some(false));
    let place = Place::new();
    let libraries = capi["pkg_config"]["requires_private"].as_str().unwrap();
    place.run(&format!("pkg-config --exists --print-errors {}", libraries.replace(',', " ")));
    // Every crate of GStreamer that is linked is in it.
    for (_, dependency) in manifest["dependencies"].as_table().unwrap() {
        if let Some(package) = dependency.get("package").and_then(toml::Value::as_str) {
            assert!(libraries.split(", ").any(|name| name == format!("{package}-1.0")), "{package}");
        }
    }
}

#[test]
fn a_file_is_found_played_and_described() {
    let place = Place::new();
    place.run(&format!("gst-launch-1.0 -q {SOURCE} ! sdlenc ! filesink location=x"));
    let uri = format!("file://{}", place.path("x").display());
    assert!(place.run("gst-typefind-1.0 x").contains("image/x-sdl, width=(int)160, height=(int)120"));
    let described = place.run(&format!("gst-discoverer-1.0 {uri}"));
    assert!(described.contains("image/x-sdl") && described.contains("Width: 160"), "{described}");
    assert_eq!(place.count("filesrc location=x ! decodebin"), 5);
    assert_eq!(place.count("filesrc location=x ! decodebin3"), 5);
    assert_eq!(place.count(&format!("uridecodebin uri={uri}")), 5);
    assert_eq!(place.count("filesrc location=x blocksize=1000 ! sdldec"), 5);
    assert_eq!(place.count("filesrc location=x ! sdlparse ! sdldec"), 5);
    assert_eq!(place.count("filesrc location=x ! decodebin ! imagefreeze num-buffers=3"), 3);
    for player in ["playbin", "playbin3"] {
        let said =
            place.run(&format!("gst-launch-1.0 -v {player} uri={uri} video-sink=fakesink\u{20}name=v"));
        assert!(!said.contains("ERROR"), "{said}");
    }
}

#[test]
fn a_file_is_that_of_the_library_and_a_png_comes_back() {
    let place = Place::new();
    place.run(&format!(
        "gst-launch-1.0 -q {SOURCE} ! tee name=t ! queue ! sdlenc quality=70 ! filesink location=x.sdl \
         t. ! queue ! filesink location=x.rgb"
    ));
    let raw = place.read("x.rgb");
    let options = image_sdl::EncodeOptions::default().with_quality(70);
    let expected: Vec<u8> = raw
        .chunks_exact(160 * 120 * 3)
        .flat_map(|pixels| {
            let picture = image_sdl::Picture::new(160, 120, image_sdl::Colour::Rgb, pixels.to_vec()).unwrap();
            image_sdl::encode(&picture, &options).unwrap()
        })
        .collect();
    assert!(place.read("x.sdl") == expected);
    place.run("gst-launch-1.0 -q filesrc location=x.sdl ! sdldec ! videoconvert ! pngenc snapshot=true ! filesink location=x.png");
    assert!(place.read("x.png").starts_with(b"\x89PNG"));
}

#[test]
fn a_snapshot_of_an_endless_source_is_one_picture() {
    let place = Place::new();
    place.run("gst-launch-1.0 -q videotestsrc ! video/x-raw,width=160,height=120 ! sdlenc snapshot=true ! filesink location=x.sdl");
    let bytes = place.read("x.sdl");
    let header = image_sdl::Header::parse(&bytes).unwrap().unwrap();
    assert_eq!(bytes.len(), header.length as usize);
}

#[test]
fn one_file_a_picture_is_written_and_read() {
    let place = Place::new();
    place.run(&format!("gst-launch-1.0 -q {SOURCE} ! sdlenc ! multifilesink location=%04d.sdl"));
    place.run(&format!("gst-launch-1.0 -q {SOURCE} ! sdlenc ! filesink location=all"));
    let joined: Vec<u8> = (0..5).flat_map(|n| place.read(&format!("{n:04}.sdl"))).collect();
    assert!(joined == place.read("all"));
    assert_eq!(
        place.count("multifilesrc location=%04d.sdl caps=image/x-sdl,framerate=5/1 ! sdlparse ! sdldec"),
        5
    );
    let said = place.run(
        "gst-launch-1.0 -v imagesequencesrc location=%04d.sdl framerate=5/1 ! sdldec ! fakesink silent=false",
    );
    assert!(said.contains("pts: 0:00:00.800000000"), "{said}");
}

#[test]
fn a_file_with_durations_plays_at_its_own_speed() {
    let place = Place::new();
    place.run(&format!("gst-launch-1.0 -q {SOURCE} ! sdlenc frame-duration=true ! filesink location=x.sdl"));
    let said = place.run("gst-launch-1.0 -v filesrc location=x.sdl ! decodebin ! fakesink silent=false");
    assert!(said.contains("pts: 0:00:00.800000000") && said.contains("framerate=(fraction)5/1"), "{said}");
    let described = place.run(&format!("gst-discoverer-1.0 file://{}", place.path("x.sdl").display()));
    assert!(described.contains("Frame rate: 5/1"), "{described}");
}

#[test]
fn stock_carriers_keep_every_picture() {
    let place = Place::new();
    place.run(&format!("gst-launch-1.0 -q {SOURCE} ! sdlenc ! gdppay ! filesink location=x.gdp"));
    assert_eq!(place.count("filesrc location=x.gdp ! gdpdepay ! sdldec"), 5);
    place.run(&format!("gst-launch-1.0 -q {SOURCE} ! sdlenc ! multipartmux ! filesink location=x.multipart"));
    assert_eq!(place.count("filesrc location=x.multipart ! multipartdemux ! sdldec"), 5);
    assert_eq!(place.count("filesrc location=x.multipart ! decodebin"), 5);
}

#[test]
fn delta_pictures_are_fewer_bytes_in_every_carrier() {
    let place = Place::new();
    let source = SOURCE.replace("videotestsrc num-buffers=5", "videotestsrc num-buffers=10 pattern=ball");
    place.run(&format!("gst-launch-1.0 -q {source} ! sdlenc ! filesink location=keys.sdl"));
    for (pay, read) in [
        ("filesink location=x", "filesrc location=x ! decodebin"),
        (
            "multifilesink location=%04d.sdl",
            "multifilesrc location=%04d.sdl caps=image/x-sdl,framerate=5/1 ! sdlparse ! sdldec",
        ),
        ("gdppay ! filesink location=x.gdp", "filesrc location=x.gdp ! gdpdepay ! sdldec"),
        (
            "multipartmux ! filesink location=x.multipart",
            "filesrc location=x.multipart ! multipartdemux ! sdldec",
        ),
    ] {
        place.run(&format!("gst-launch-1.0 -q {source} ! sdlenc delta=true ! {pay}"));
        assert_eq!(place.count(read), 10, "{pay}");
    }
    let (keys, all) = (place.read("keys.sdl").len(), place.read("x").len());
    assert!(all < keys, "{all} bytes, {keys} of key pictures alone");
}

/// A way to keep pictures in a film. No muxer of GStreamer knows SDL: it is told that they are something else, and then the code of the
/// track is changed in the file.
struct Film {
    muxer: &'static str,
    demuxer: &'static str,
    /// What the muxer is told.
    caps: &'static str,
    /// The code of the track that it writes, and ours.
    codes: [&'static [u8]; 2],
    /// The file says which pictures are key pictures.
    keys: bool,
}

const FILMS: [Film; 3] = [
    Film {
        muxer: "matroskamux",
        demuxer: "matroskademux",
        caps: "image/jpeg",
        codes: [b"MJPG", b"SDL0"],
        keys: true,
    },
    Film { muxer: "qtmux", demuxer: "qtdemux", caps: "video/x-h263", codes: [b"h263", b"sdl0"], keys: true },
    // Every picture of JPEG is a key picture, so the file does not say it of any.
    Film { muxer: "qtmux", demuxer: "qtdemux", caps: "image/jpeg", codes: [b"jpeg", b"sdl0"], keys: false },
];

impl Film {
    /// Writes 20 pictures, 5 a second, a key picture each second.
    fn write(&self, place: &Place) {
        let source = SOURCE.replace("videotestsrc num-buffers=5", "videotestsrc num-buffers=20 pattern=ball");
        let Film { muxer, caps, codes: [theirs, ours], .. } = self;
        place.run(&format!(
            "gst-launch-1.0 -q {source} ! sdlenc delta=true interval=1000000000 ! capssetter replace=true join=false \
             caps={caps},width=160,height=120,framerate=5/1 ! {muxer} ! filesink location=film"
        ));
        let mut film = place.read("film");
        let header = film.windows(4).position(|bytes| bytes == b"stsd").unwrap_or(0);
        let at = header + film[header..].windows(theirs.len()).position(|bytes| bytes == *theirs).unwrap();
        film[at..at + ours.len()].copy_from_slice(ours);
        std::fs::write(place.path("film"), film).unwrap();
    }
}

#[test]
fn tracks_that_demuxers_do_not_know_are_played() {
    for film in FILMS {
        let place = Place::new();
        film.write(&place);
        for decode in [&format!("{} ! sdldec", film.demuxer), "decodebin"] {
            assert_eq!(
                place.count(&format!("filesrc location=film ! {decode}")),
                20,
                "{} {decode}",
                film.caps
            );
        }
    }
}

/// The frames that are shown, in milliseconds and pixels, and the warnings: from the beginning, or behind a seek.
fn shown(description: &str, seek: Option<(gst::SeekFlags, u64)>) -> (Vec<(u64, Vec<u8>)>, Vec<String>) {
    use gst::prelude::*;
    let description = format!("{description} ! fakesink name=sink sync=false signal-handoffs=true");
    let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    pipeline.by_name("sink").unwrap().connect("handoff", false, move |values| {
        let buffer = values[1].get::<gst::Buffer>().unwrap();
        sender.send((buffer.pts().unwrap().mseconds(), common::bytes(&buffer))).unwrap();
        None
    });
    let patience = gst::ClockTime::from_seconds(PATIENCE.as_secs());
    if let Some((flags, to)) = seek {
        // What is there before the seek is not handed off.
        pipeline.set_state(gst::State::Paused).unwrap();
        pipeline.state(patience).0.unwrap();
        pipeline.seek_simple(gst::SeekFlags::FLUSH | flags, gst::ClockTime::from_mseconds(to)).unwrap();
        pipeline.state(patience).0.unwrap();
    }
    pipeline.set_state(gst::State::Playing).unwrap();
    let mut warnings = Vec::new();
    let kinds = [gst::MessageType::Eos, gst::MessageType::Error, gst::MessageType::Warning];
    loop {
        let message = pipeline.bus().unwrap().timed_pop_filtered(patience, &kinds).unwrap();
        match message.view() {
            gst::MessageView::Eos(_) => break,
            gst::MessageView::Warning(warning) => warnings.push(warning.error().to_string()),
            other => panic!("{description}: {other:?}"),
        }
    }
    pipeline.set_state(gst::State::Null).unwrap();
    (receiver.try_iter().collect(), warnings)
}

#[test]
fn seeks_into_a_sequence_show_what_playing_shows() {
    use gst::SeekFlags;
    common::init();
    // Both are in the middle of delta pictures, with key pictures at whole seconds. `first` is where pictures begin.
    let check = |description: &str, first: &dyn Fn(SeekFlags, u64) -> u64| {
        let (all, warnings) = shown(description, None);
        assert!(all.len() == 20 && warnings.is_empty(), "{description}: {} {warnings:?}", all.len());
        for (flags, to) in [SeekFlags::ACCURATE, SeekFlags::KEY_UNIT]
            .into_iter()
            .flat_map(|flags| [(flags, 600), (flags, 2400)])
        {
            let (seen, warnings) = shown(description, Some((flags, to)));
            let first = first(flags, to);
            assert_eq!(seen.first().map(|(time, _)| *time), Some(first), "{description} {flags:?} {to}");
            let expected = all.iter().position(|(time, _)| *time == first).unwrap();
            assert!(seen == all[expected..], "{description} {flags:?} {to}");
            // Who has to wait is told so.
            assert_eq!(warnings.len(), usize::from(first > to), "{description} {flags:?} {to}: {warnings:?}");
            assert!(
                warnings.iter().all(|text| text.contains("Waiting for the next key picture")),
                "{warnings:?}"
            );
        }
    };
    for film in FILMS {
        let place = Place::new();
        film.write(&place);
        let first = |flags: SeekFlags, to: u64| match (film.keys, flags) {
            // A file that does not know key pictures leads to a delta picture.
            (false, _) => to.next_multiple_of(1000),
            (true, SeekFlags::KEY_UNIT) => to / 1000 * 1000,
            (true, _) => to,
        };
        check(
            &format!("filesrc location={} ! {} ! sdldec", place.path("film").display(), film.demuxer),
            &first,
        );
    }
    let place = Place::new();
    let source = SOURCE.replace("videotestsrc num-buffers=5", "videotestsrc num-buffers=20 pattern=ball");
    place.run(&format!(
        "gst-launch-1.0 -q {source} ! sdlenc delta=true interval=1000000000 frame-duration=true ! filesink location=x.sdl"
    ));
    // The base class of parsers goes to the very picture, whatever it is asked for.
    check(&format!("filesrc location={} ! sdlparse ! sdldec", place.path("x.sdl").display()), &|_, to| to);
}

#[test]
fn the_program_writes_the_same_file_and_reads_it() {
    let place = Place::new();
    let program = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("sdl");
    if !program.exists() {
        eprintln!("=== SKIPPED: {} has not been built ===", program.display());
        return;
    }
    place.run(&format!(
        "gst-launch-1.0 -q {} ! tee name=t ! queue ! sdlenc quality=35 effort=7 ! filesink location=x.sdl \
         t. ! queue ! pngenc ! filesink location=x.png",
        SOURCE.replace("num-buffers=5", "num-buffers=1")
    ));
    let sdl = program.display();
    // pngenc writes a gamma and no profile: the samples are taken as they are.
    place.run(&format!("{sdl} encode x.png y.sdl -q 35 -e 7 --strip=all"));
    assert!(place.read("x.sdl") == place.read("y.sdl"));
    place.run(&format!("{sdl} decode x.sdl y.png"));
    place.run(&format!("{sdl} verify x.sdl"));
    assert!(place.read("y.png").starts_with(b"\x89PNG"));
}

#[test]
fn a_model_with_two_decoders_shows_the_one_that_is_asked_for() {
    let place = Place::new();
    // The bundle `blocks`, and a second decoder that is 28 of 255 darker.
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/bundles/blocks");
    let folder = place.path("models").join("two");
    std::fs::create_dir_all(&folder).unwrap();
    for name in ["analysis.onnx", "synthesis.onnx"] {
        std::fs::copy(from.join(name), folder.join(name)).unwrap();
    }
    let mut graph = std::fs::read(from.join("synthesis.onnx")).unwrap();
    let at = graph.windows(4).position(|bytes| bytes == 128f32.to_le_bytes()).unwrap();
    graph[at..at + 4].copy_from_slice(&100f32.to_le_bytes());
    std::fs::write(folder.join("natural.onnx"), graph).unwrap();
    let manifest = std::fs::read_to_string(from.join("bundle.toml")).unwrap()
        + "\n[graphs.\"synthesis.natural\"]\nfile = \"natural.onnx\"\n";
    std::fs::write(folder.join("bundle.toml"), manifest).unwrap();

    place.run(&format!("gst-launch-1.0 -q {SOURCE} ! sdlenc model=models/two ! filesink location=x.sdl"));
    let mean = |decoder: &str| {
        place.run(&format!(
            "gst-launch-1.0 -q filesrc location=x.sdl ! sdldec decoder={decoder} ! filesink location=x.rgb"
        ));
        let samples = place.read("x.rgb");
        samples.iter().map(|&v| f64::from(v)).sum::<f64>() / samples.len() as f64
    };
    let (auto, fidelity, natural) = (mean("auto"), mean("fidelity"), mean("natural"));
    assert!(auto == fidelity && natural < fidelity - 10.0, "{auto} {fidelity} {natural}");
}

#[test]
fn caps_change_in_a_running_pipeline() {
    let place = Place::new();
    place.run(
        "gst-launch-1.0 -q concat name=c ! sdlenc ! filesink location=x.sdl \
         videotestsrc num-buffers=3 ! video/x-raw,format=RGB,width=64,height=48,framerate=5/1 ! c. \
         videotestsrc num-buffers=2 ! video/x-raw,format=RGB,width=128,height=96,framerate=5/1 ! c.",
    );
    for decode in ["sdldec", "sdlparse ! sdldec", "decodebin"] {
        assert_eq!(place.count(&format!("filesrc location=x.sdl ! {decode}")), 5, "{decode}");
    }
}

#[test]
fn junk_and_a_cut_tail_do_not_stop_a_pipeline() {
    let place = Place::new();
    place.run(&format!("gst-launch-1.0 -q {SOURCE} ! sdlenc ! multifilesink location=%d.sdl"));
    let mut file = std::fs::File::create(place.path("x.sdl")).unwrap();
    for n in 0..4 {
        file.write_all(b"junk \x93SDL junk").unwrap();
        file.write_all(&place.read(&format!("{n}.sdl"))).unwrap();
    }
    let cut = place.read("4.sdl");
    file.write_all(&cut[..cut.len() / 2]).unwrap();
    drop(file);
    for decode in ["sdldec", "sdlparse ! sdldec"] {
        assert_eq!(place.count(&format!("filesrc location=x.sdl ! {decode}")), 4, "{decode}");
    }
}

#[test]
fn key_frames_of_a_video_file_become_pictures() {
    let place = Place::new();
    place.run(
        "gst-launch-1.0 -q videotestsrc num-buffers=20 pattern=ball ! video/x-raw,width=160,height=120,framerate=10/1 \
         ! vp8enc keyframe-max-dist=5 deadline=1 ! webmmux ! filesink location=x.webm",
    );
    // Key frames alone pass.
    let pictures = place.count(
        "filesrc location=x.webm ! matroskademux ! identity drop-buffer-flags=delta-unit ! vp8dec ! videoconvert ! sdlenc",
    );
    assert!((4..=6).contains(&pictures), "{pictures}");
    // Or one each half second, whatever the codec did.
    let said = place.run(
        "gst-launch-1.0 -v filesrc location=x.webm ! decodebin ! videoconvert ! sdlenc key-frames=interval \
         interval=500000000 ! fakesink silent=false",
    );
    assert_eq!(said.matches("last-message = chain").count(), 4, "{said}");
    assert_eq!(said.matches("(type: gap").count(), 16, "{said}");
}

#[test]
fn rtp_over_udp_brings_the_pictures() {
    let place = Place::new();
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let receiver = place.start(&format!(
        "gst-launch-1.0 -v udpsrc port={port} timeout=20000000000 buffer-size=8000000 \
         caps=application/x-rtp,media=application,clock-rate=90000,encoding-name=X-GST,payload=96 \
         ! rtpjitterbuffer ! rtpgstdepay ! sdldec ! fakesink silent=false num-buffers=5"
    ));
    std::thread::sleep(Duration::from_millis(700));
    let _sender = place.start(&format!(
        "gst-launch-1.0 -q videotestsrc is-live=true ! video/x-raw,format=RGB,width=160,height=120,framerate=15/1 \
         ! sdlenc ! rtpgstpay config-interval=1 ! udpsink host=127.0.0.1 port={port}"
    ));
    let output = receiver.finish();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.matches("last-message = chain").count() >= 5, "{said}");
}

#[test]
fn tcp_serves_who_comes_late() {
    let place = Place::new();
    for (pay, receive) in [("gdppay", "gdpdepay ! sdldec"), ("identity", "sdlparse ! sdldec")] {
        let port = free_port();
        let _server = place.start(&format!(
            "gst-launch-1.0 -q videotestsrc is-live=true ! video/x-raw,format=RGB,width=160,height=120,framerate=15/1 \
             ! sdlenc ! {pay} ! tcpserversink host=127.0.0.1 port={port} sync-method=latest"
        ));
        std::thread::sleep(Duration::from_millis(1000));
        let said = place.run(&format!(
            "gst-launch-1.0 -v tcpclientsrc host=127.0.0.1 port={port} ! {receive} ! fakesink silent=false num-buffers=5"
        ));
        assert!(said.matches("last-message = chain").count() >= 5, "{pay}: {said}");
    }
}

#[test]
fn srt_brings_the_pictures() {
    let place = Place::new();
    let port = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let _sender = place.start(&format!(
        "gst-launch-1.0 -q videotestsrc is-live=true ! video/x-raw,format=RGB,width=160,height=120,framerate=15/1 \
         ! sdlenc ! gdppay ! srtsink uri=srt://:{port} wait-for-connection=false"
    ));
    std::thread::sleep(Duration::from_millis(1000));
    let said = place.run(&format!(
        "gst-launch-1.0 -v srtsrc uri=srt://127.0.0.1:{port} ! gdpdepay ! sdldec ! fakesink silent=false num-buffers=5"
    ));
    assert!(said.matches("last-message = chain").count() >= 5, "{said}");
}

#[test]
fn an_rtsp_server_brings_the_pictures() {
    let place = Place::new();
    let port = free_port();
    let server = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/rtsp_server.py");
    // The system's Python: that is the one that has the bindings.
    let _server = place.start(&format!("/usr/bin/python3 {server} {port}"));
    std::thread::sleep(Duration::from_millis(2000));
    let said = place.run(&format!(
        "gst-launch-1.0 -v uridecodebin uri=rtsp://127.0.0.1:{port}/sdl ! fakesink silent=false sync=false num-buffers=5"
    ));
    assert!(said.matches("last-message = chain").count() >= 5, "{said}");
}

#[test]
fn a_timed_file_can_be_sought_in() {
    use gst::prelude::*;
    common::init();
    let place = Place::new();
    let source = SOURCE.replace("num-buffers=5", "num-buffers=20");
    place.run(&format!("gst-launch-1.0 -q {source} ! sdlenc frame-duration=true ! filesink location=x.sdl"));
    for decode in ["sdlparse ! sdldec", "decodebin"] {
        let description = format!(
            "filesrc location={} ! {decode} ! fakesink name=sink sync=false",
            place.path("x.sdl").display()
        );
        let pipeline = gst::parse::launch(&description).unwrap().downcast::<gst::Pipeline>().unwrap();
        pipeline.set_state(gst::State::Paused).unwrap();
        pipeline.state(gst::ClockTime::from_seconds(20)).0.unwrap();
        let flags = gst::SeekFlags::FLUSH | gst::SeekFlags::KEY_UNIT;
        pipeline.seek_simple(flags, gst::ClockTime::from_seconds(2)).unwrap();
        pipeline.state(gst::ClockTime::from_seconds(20)).0.unwrap();
        let sink = pipeline.by_name("sink").unwrap();
        let sample: gst::Sample = sink.property("last-sample");
        let time = sample.buffer().unwrap().pts().unwrap();
        assert!((1600..=2400).contains(&time.mseconds()), "{decode}: {time}");
        pipeline.set_state(gst::State::Null).unwrap();
    }
}

#[test]
fn the_media_server_serves_many_viewers() {
    let place = Place::new();
    let examples = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples");
    let port = free_port();
    let _server = place.start(&format!("{} --port {port}", examples.join("media_server").display()));
    std::thread::sleep(Duration::from_millis(1500));
    let client = examples.join("media_client").display().to_string();
    let viewers: Vec<Running> =
        (0..4).map(|_| place.start(&format!("{client} http://127.0.0.1:{port}/ 5"))).collect();
    for viewer in viewers {
        let output = viewer.finish();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stdout).lines().count() >= 5);
    }
    assert_eq!(place.count(&format!("souphttpsrc location=http://127.0.0.1:{port}/snapshot ! decodebin")), 1);
}

#[test]
fn a_preview_sheet_has_a_picture_every_few_seconds() {
    let place = Place::new();
    place.run(
        "gst-launch-1.0 -q videotestsrc num-buffers=40 pattern=ball ! video/x-raw,width=320,height=240,framerate=4/1 \
         ! vp8enc deadline=1 ! webmmux ! filesink location=film.webm",
    );
    let examples = std::env::current_exe().unwrap().ancestors().nth(2).unwrap().join("examples");
    place.run(&format!("{} film.webm film.sdl 2 80", examples.join("preview_sheet").display()));
    let pictures = place.count("filesrc location=film.sdl ! decodebin");
    assert!((5..=6).contains(&pictures), "{pictures}");
}

#[test]
fn live_at_15_frames_a_second_drops_nothing() {
    let place = Place::new();
    let said = place.run(
        "gst-launch-1.0 -v videotestsrc is-live=true num-buffers=30 ! video/x-raw,format=RGB,width=160,height=120,framerate=15/1 \
         ! sdlenc ! sdldec ! fakesink sync=true silent=false",
    );
    assert_eq!(said.matches("last-message = chain").count(), 30);
}

#[test]
fn nothing_leaks() {
    let place = Place::new();
    let mut command = place.command("gst-launch-1.0");
    let line = format!("-q {SOURCE} ! sdlenc n-threads=2 ! sdlparse ! sdldec n-threads=2 ! fakesink");
    command
        .args(line.split_whitespace())
        .env("GST_TRACERS", "leaks(check-refs=true)")
        .env("GST_DEBUG", "GST_TRACER:7")
        .env("GST_DEBUG_NO_COLOR", "1");
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let leaked: Vec<&str> = said
        .lines()
        .filter(|line| line.contains("object-alive, ") && !line.contains("format string"))
        .collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}
