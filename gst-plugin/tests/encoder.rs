//! `sdlenc`: the same bytes as the library, in order, at the right times.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use gst::prelude::*;
use gst_check::Harness;
use image_sdl::{Alpha, Colour, EncodeOptions, Picture};

fn encoder(description: &str, caps: &str) -> Harness {
    init();
    let mut harness = Harness::new_parse(&format!("sdlenc {description}"));
    harness.set_src_caps_str(caps);
    harness
}

fn files(description: &str, caps: &str, frames: impl IntoIterator<Item = gst::Buffer>) -> Vec<Vec<u8>> {
    let mut harness = encoder(description, caps);
    for frame in frames {
        harness.push(frame).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    drain(&mut harness).iter().map(bytes).collect()
}

#[test]
fn files_are_those_of_the_library_at_any_number_of_threads() {
    let expected: Vec<Vec<u8>> = (0..6).map(file).collect();
    for threads in [-1, 0, 1, 4] {
        let made = files(&format!("n-threads={threads}"), &raw_caps("RGB"), (0..6).map(frame));
        assert_eq!(made, expected, "{threads} threads");
    }
}

#[test]
fn quality_effort_and_target_size_are_those_of_the_library() {
    let settings = [
        ("quality=10", EncodeOptions::default().with_quality(10)),
        ("quality=90 effort=1", EncodeOptions::default().with_quality(90).with_effort(1)),
        ("target-size=1500", EncodeOptions::default().with_target_size(1500)),
    ];
    for (description, options) in settings {
        let expected = image_sdl::encode(&picture(3), &options).unwrap();
        assert_eq!(files(description, &raw_caps("RGB"), [frame(3)]), [expected], "{description}");
    }
}

#[test]
fn a_size_that_cannot_be_reached_is_a_warning_and_a_gap() {
    let mut harness = encoder("target-size=30", &raw_caps("RGB"));
    let element = harness.element().unwrap();
    let messages = gst::Bus::new();
    element.set_bus(Some(&messages));
    harness.push(frame(0)).unwrap();
    harness.push_event(gst::event::Eos::new());
    assert!(drain(&mut harness).is_empty());
    assert!(warnings(&messages)[0].contains("30 asked for"));
}

#[test]
fn every_layout_of_the_same_pixels_gives_the_same_file() {
    let rgb = pixels(WIDTH, HEIGHT, 2);
    let expected = file(2);
    let packed = |order: [usize; 4]| -> Vec<u8> {
        rgb.chunks_exact(3).flat_map(|p| order.map(|c| p.get(c).copied().unwrap_or(0))).collect()
    };
    let planar: Vec<u8> =
        [1, 2, 0].iter().flat_map(|&c| rgb.chunks_exact(3).map(move |p| p[c]).collect::<Vec<_>>()).collect();
    let bgr: Vec<u8> = rgb.chunks_exact(3).flat_map(|p| [p[2], p[1], p[0]]).collect();
    let layouts = [
        ("RGBx", packed([0, 1, 2, 3])),
        ("BGRx", packed([2, 1, 0, 3])),
        ("xRGB", packed([3, 0, 1, 2])),
        ("xBGR", packed([3, 2, 1, 0])),
        ("BGR", bgr),
        ("GBR", planar),
    ];
    for (format, data) in layouts {
        assert_eq!(
            files("", &raw_caps(format), [buffer(data, 0)]),
            std::slice::from_ref(&expected),
            "{format}"
        );
    }
}

#[test]
fn alpha_and_grey_are_kept() {
    let rgb = pixels(WIDTH, HEIGHT, 1);
    let alpha: Vec<u8> = (0..WIDTH * HEIGHT).map(|i| (i % 251) as u8).collect();
    let rgba: Vec<u8> = rgb.chunks_exact(3).zip(&alpha).flat_map(|(p, &a)| [p[0], p[1], p[2], a]).collect();
    let with_alpha = picture(1).with_alpha(Alpha::Eight(alpha)).unwrap();
    let expected = image_sdl::encode(&with_alpha, &EncodeOptions::default()).unwrap();
    assert_eq!(files("", &raw_caps("RGBA"), [buffer(rgba, 0)]), [expected]);

    let grey: Vec<u8> = rgb.chunks_exact(3).map(|p| p[0]).collect();
    let picture = Picture::new(WIDTH, HEIGHT, Colour::Grey, grey.clone()).unwrap();
    let expected = image_sdl::encode(&picture, &EncodeOptions::default()).unwrap();
    assert_eq!(files("", &raw_caps("GRAY8"), [buffer(grey, 0)]), [expected]);
}

#[test]
fn rows_with_padding_give_the_same_file() {
    init();
    let (row, stride) = (3 * WIDTH as usize, 3 * WIDTH as usize + 68);
    let mut padded = vec![0xee; stride * HEIGHT as usize];
    for (to, from) in padded.chunks_exact_mut(stride).zip(pixels(WIDTH, HEIGHT, 4).chunks_exact(row)) {
        to[..row].copy_from_slice(from);
    }
    let mut frame = buffer(padded, 0);
    gst_video::VideoMeta::add_full(
        frame.get_mut().unwrap(),
        gst_video::VideoFrameFlags::empty(),
        gst_video::VideoFormat::Rgb,
        WIDTH,
        HEIGHT,
        &[0],
        &[stride as i32],
    )
    .unwrap();
    assert_eq!(files("", &raw_caps("RGB"), [frame]), [file(4)]);
    // And an element in front learns that it may pad.
    let mut harness = encoder("", &raw_caps("RGB"));
    let caps = raw_caps("RGB").parse::<gst::Caps>().unwrap();
    let mut query = gst::query::Allocation::new(Some(&caps), true);
    assert!(harness.element().unwrap().static_pad("sink").unwrap().query(&mut query));
    assert!(query.find_allocation_meta::<gst_video::VideoMeta>().is_some());
    harness.push_event(gst::event::Eos::new());
}

#[test]
fn a_pool_in_front_learns_how_many_frames_are_held() {
    let harness = encoder("n-threads=5", &raw_caps("RGB"));
    let caps = raw_caps("RGB").parse::<gst::Caps>().unwrap();
    let mut query = gst::query::Allocation::new(Some(&caps), true);
    assert!(harness.element().unwrap().static_pad("sink").unwrap().query(&mut query));
    let (_, size, least, _) = query.allocation_pools().next().unwrap();
    assert!(size >= 3 * WIDTH * HEIGHT && least >= 6, "{size} {least}");
}

#[test]
fn flat_colours_in_every_matrix_and_range_come_out_right() {
    // Luma and chroma of pure red by the standards: ITU-R BT.601, BT.709, BT.2020 (limited), and JPEG (full).
    let reds = [
        ("bt601", [81u8, 90, 240]),
        ("bt709", [63, 102, 240]),
        ("bt2020", [74, 97, 240]),
        ("1:4:0:0", [76, 85, 255]),
    ];
    init();
    for (colorimetry, [y, cb, cr]) in reds {
        for format in ["I420", "NV12", "Y444", "YV12", "NV21", "Y42B"] {
            let luma = (WIDTH * HEIGHT) as usize;
            let chroma = match format {
                "Y444" => luma,
                "Y42B" => luma / 2,
                _ => luma / 4,
            };
            let mut data = vec![y; luma];
            match format {
                "NV12" => data.extend([cb, cr].repeat(chroma)),
                "NV21" => data.extend([cr, cb].repeat(chroma)),
                "YV12" => data.extend([vec![cr; chroma], vec![cb; chroma]].concat()),
                _ => data.extend([vec![cb; chroma], vec![cr; chroma]].concat()),
            }
            let caps = format!("{},colorimetry={colorimetry}", raw_caps(format));
            let made = files("quality=100", &caps, [buffer(data, 0)]);
            // The conversion may be off by one from pure red: try those, the file says which it was.
            let close =
                [[255, 0, 0], [254, 0, 0], [255, 1, 0], [255, 0, 1], [254, 0, 1], [255, 1, 1], [254, 1, 0]];
            let found = close.iter().any(|colour| {
                let flat = Picture::new(WIDTH, HEIGHT, Colour::Rgb, colour.repeat(luma)).unwrap();
                let options = EncodeOptions::default().with_quality(100);
                image_sdl::encode(&flat, &options).unwrap() == made[0]
            });
            assert!(found, "{format} {colorimetry}");
        }
    }
}

#[test]
fn caps_times_and_flags_are_those_of_the_frames() {
    let mut harness = encoder("", &raw_caps("RGB"));
    harness.push(frame(0)).unwrap();
    harness.push(frame(1)).unwrap();
    harness.push_event(gst::event::Eos::new());
    let out = drain(&mut harness);
    for (n, buffer) in (0u64..).zip(&out) {
        assert_eq!(buffer.pts(), frame(n as u32).pts());
        assert_eq!(buffer.duration(), Some(gst::ClockTime::from_mseconds(200)));
        assert!(!buffer.flags().contains(gst::BufferFlags::DELTA_UNIT));
    }
    let caps = harness.sinkpad().unwrap().current_caps().unwrap();
    let structure = caps.structure(0).unwrap();
    assert_eq!(structure.name(), "image/x-sdl");
    assert_eq!(structure.get::<i32>("width"), Ok(WIDTH as i32));
    assert_eq!(structure.get::<bool>("parsed"), Ok(true));
    assert_eq!(structure.get::<gst::Fraction>("framerate"), Ok(gst::Fraction::new(5, 1)));
}

#[test]
fn latency_is_that_of_the_frames_in_flight() {
    for (threads, frames) in [(0, 1), (1, 1), (4, 4)] {
        let mut harness = encoder(&format!("n-threads={threads}"), &raw_caps("RGB"));
        harness.push(frame(0)).unwrap();
        let mut query = gst::query::Latency::new();
        harness.element().unwrap().static_pad("src").unwrap().query(&mut query);
        assert_eq!(query.result().1, frames * gst::ClockTime::from_mseconds(200));
        harness.push_event(gst::event::Eos::new());
    }
}

#[test]
fn a_header_can_carry_the_duration() {
    let made = files("frame-duration=true", &raw_caps("RGB"), [frame(0)]);
    let header = image_sdl::Header::parse(&made[0]).unwrap().unwrap();
    assert_eq!(header.duration, Some(200_000));
}

#[test]
fn the_duration_is_that_of_the_picture_where_it_is_known() {
    for (mode, expected) in [
        ("interval interval=600000000", Some(600_000)),
        ("interval interval=600000000 delta=true", Some(200_000)),
        ("interval interval=100000000", Some(200_000)),
        ("scene-change", None),
        ("forced", None),
    ] {
        let mut harness = encoder(&format!("frame-duration=true key-frames={mode}"), &raw_caps("RGB"));
        let ask = gst_video::UpstreamForceKeyUnitEvent::builder().all_headers(false).build();
        harness.push_upstream_event(ask);
        (0..4).for_each(|n| {
            harness.push(frame(n)).unwrap();
        });
        harness.push_event(gst::event::Eos::new());
        let made = drain(&mut harness);
        assert!(!made.is_empty());
        for picture in made {
            let header = image_sdl::Header::parse(&bytes(&picture)).unwrap().unwrap();
            assert_eq!(header.duration, expected, "{mode}");
        }
    }
}

/// Numbers of the frames that became pictures, and of those that became gaps.
fn chosen(harness: &mut Harness) -> (Vec<u64>, Vec<u64>) {
    let number = |time: gst::ClockTime| time.mseconds() / 200;
    let pictures = drain(harness).iter().map(|b| number(b.pts().unwrap())).collect();
    let gaps = std::iter::from_fn(|| harness.try_pull_event())
        .filter_map(|event| match event.view() {
            gst::EventView::Gap(gap) => {
                let (time, duration) = gap.get();
                assert_eq!(duration, Some(gst::ClockTime::from_mseconds(200)));
                Some(number(time))
            }
            _ => None,
        })
        .collect();
    (pictures, gaps)
}

#[test]
fn an_interval_leaves_gaps_between_pictures() {
    for threads in [0, 3] {
        let description = format!("n-threads={threads} key-frames=interval interval=600000000");
        let mut harness = encoder(&description, &raw_caps("RGB"));
        (0..8).for_each(|n| {
            harness.push(frame(n)).unwrap();
        });
        harness.push_event(gst::event::Eos::new());
        assert_eq!(chosen(&mut harness), (vec![0, 3, 6], vec![1, 2, 4, 5, 7]), "{threads} threads");
    }
}

#[test]
fn scene_changes_become_pictures() {
    let mut harness = encoder("key-frames=scene-change", &raw_caps("RGB"));
    for n in 0..9u64 {
        let level = if (3..6).contains(&n) { 200 } else { 20 };
        harness.push(buffer(vec![level; (3 * WIDTH * HEIGHT) as usize], n)).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    assert_eq!(chosen(&mut harness), (vec![0, 3, 6], vec![1, 2, 4, 5, 7, 8]));
}

#[test]
fn forced_key_units_become_pictures_and_are_announced() {
    let mut harness = encoder("key-frames=forced", &raw_caps("RGB"));
    harness.push(frame(0)).unwrap();
    let upstream = gst_video::UpstreamForceKeyUnitEvent::builder().all_headers(false).build();
    harness.push_upstream_event(upstream);
    harness.push(frame(1)).unwrap();
    harness.push(frame(2)).unwrap();
    let downstream = gst_video::DownstreamForceKeyUnitEvent::builder()
        .running_time(gst::ClockTime::from_mseconds(600))
        .build();
    harness.push_event(downstream);
    harness.push(frame(3)).unwrap();
    harness.push(frame(4)).unwrap();
    harness.push_event(gst::event::Eos::new());
    let pictures: Vec<u64> = drain(&mut harness).iter().map(|b| b.pts().unwrap().mseconds() / 200).collect();
    assert_eq!(pictures, [1, 3]);
    let announced = std::iter::from_fn(|| harness.try_pull_event())
        .filter(|event| gst_video::ForceKeyUnitEvent::is(event))
        .count();
    assert_eq!(announced, 2);
}

#[test]
fn late_frames_are_dropped_before_they_are_encoded() {
    let late = |harness: &mut Harness| {
        // The sink was a second behind at the first frame: what is due before 2 s cannot make it.
        let second = gst::ClockTime::SECOND.nseconds() as i64;
        let qos =
            gst::event::Qos::builder(gst::QOSType::Underflow, 1.0, second).timestamp(gst::ClockTime::ZERO);
        harness.push_upstream_event(qos.build());
    };
    for (description, expected) in [("qos=true", vec![0, 11]), ("qos=false", vec![0, 1, 11])] {
        let mut harness = encoder(&format!("n-threads=0 {description}"), &raw_caps("RGB"));
        harness.push(frame(0)).unwrap();
        late(&mut harness);
        harness.push(frame(1)).unwrap();
        harness.push(frame(11)).unwrap();
        harness.push_event(gst::event::Eos::new());
        assert_eq!(chosen(&mut harness).0, expected, "{description}");
    }
}

#[test]
fn a_snapshot_is_one_picture_and_the_end() {
    let mut harness = encoder("snapshot=true", &raw_caps("RGB"));
    assert_eq!(harness.push(frame(0)), Err(gst::FlowError::Eos));
    assert_eq!(harness.push(frame(1)), Err(gst::FlowError::Eos));
    assert_eq!(drain(&mut harness).len(), 1);
    // A seek asks for another one, and so does whoever switches it off and on.
    harness.push_event(gst::event::FlushStart::new());
    harness.push_event(gst::event::FlushStop::new(true));
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    assert_eq!(harness.push(frame(2)), Err(gst::FlowError::Eos));
    assert_eq!(drain(&mut harness).len(), 1);
    let bin = harness.element().unwrap().downcast::<gst::Bin>().unwrap();
    let element = bin.iterate_elements().into_iter().next().unwrap().unwrap();
    element.set_property("snapshot", false);
    harness.push(frame(3)).unwrap();
    element.set_property("snapshot", true);
    assert_eq!(harness.push(frame(4)), Err(gst::FlowError::Eos));
    assert_eq!(drain(&mut harness).len(), 2);
}

#[test]
fn a_picture_comes_out_without_a_next_frame() {
    let mut harness = encoder("n-threads=2", &raw_caps("RGB"));
    for n in 0..3 {
        harness.push(frame(n)).unwrap();
        assert_eq!(bytes(&harness.pull().unwrap()), file(n));
    }
}

#[test]
fn a_flush_while_caps_change_is_no_error() {
    let mut harness = encoder("n-threads=0", &raw_caps("RGB"));
    harness.push(frame(0)).unwrap();
    flush_behind(&harness);
    let caps = "video/x-raw,format=RGB,width=64,height=48,framerate=5/1".parse::<gst::Caps>().unwrap();
    // Who pushes caps is not told what became of them, and would not know that they were refused.
    assert!(own_pad(&harness, "sink").send_event(gst::event::Caps::new(&caps)));
    assert!(harness.push_event(gst::event::Caps::new(&caps)));
    harness.push_event(gst::event::FlushStop::new(true));
    drain(&mut harness);
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    harness.push(buffer(pixels(64, 48, 1), 1)).unwrap();
    harness.push_event(gst::event::Eos::new());
    assert_eq!(drain(&mut harness).len(), 1);
    let caps = harness.sinkpad().unwrap().current_caps().unwrap();
    assert_eq!(caps.structure(0).unwrap().get::<i32>("width"), Ok(64));
}

/// Refining a picture takes seconds, and nobody waits for one that is not wanted.
#[test]
fn a_stop_ends_a_running_encode() {
    // One more worker than there are frames: pushing does not wait.
    let slow = || {
        let mut harness = encoder("effort=9 n-threads=2", &raw_caps("RGB"));
        let start = std::time::Instant::now();
        harness.push(frame(0)).unwrap();
        (harness, start)
    };
    let (mut harness, start) = slow();
    harness.pull().unwrap();
    let whole = start.elapsed();

    let (harness, start) = slow();
    let messages = bus(&harness);
    harness.element().unwrap().set_state(gst::State::Null).unwrap();
    assert!(start.elapsed() < whole / 2, "{:?} of {whole:?}", start.elapsed());
    assert!(messages.pop_filtered(&[gst::MessageType::Error]).is_none());
}

#[test]
fn caps_change_while_running_without_losing_a_frame() {
    let mut harness = encoder("n-threads=3", &raw_caps("RGB"));
    (0..3).for_each(|n| {
        harness.push(frame(n)).unwrap();
    });
    harness.set_src_caps_str("video/x-raw,format=RGB,width=64,height=48,framerate=5/1");
    (3..5).for_each(|n| {
        harness.push(buffer(pixels(64, 48, n), n.into())).unwrap();
    });
    harness.push_event(gst::event::Eos::new());
    let widths: Vec<u16> = drain(&mut harness)
        .iter()
        .map(|b| image_sdl::Header::parse(&bytes(b)).unwrap().unwrap().width)
        .collect();
    assert_eq!(widths, [160, 160, 160, 64, 64]);
}

#[test]
fn after_a_flush_nothing_old_comes_out() {
    let mut harness = encoder("n-threads=4", &raw_caps("RGB"));
    (0..2).for_each(|n| {
        harness.push(frame(n)).unwrap();
    });
    harness.push_event(gst::event::FlushStart::new());
    harness.push_event(gst::event::FlushStop::new(true));
    drain(&mut harness);
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    (5..8).for_each(|n| {
        harness.push(frame(n)).unwrap();
    });
    harness.push_event(gst::event::Eos::new());
    let made: Vec<Vec<u8>> = drain(&mut harness).iter().map(bytes).collect();
    assert_eq!(made, [file(5), file(6), file(7)]);
}

#[test]
fn a_missing_model_is_an_error_that_names_it() {
    init();
    let element = gst::ElementFactory::make("sdlenc").property("model", "no-such-bundle").build().unwrap();
    let messages = gst::Bus::new();
    element.set_bus(Some(&messages));
    assert!(element.set_state(gst::State::Paused).is_err());
    let message = messages.pop_filtered(&[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(error) = message.view() else { panic!("{message:?}") };
    assert!(error.error().matches(gst::ResourceError::NotFound));
    assert!(error.debug().unwrap().contains("no-such-bundle"));
    element.set_state(gst::State::Null).unwrap();
}

#[test]
fn a_provider_that_is_not_there_is_an_error_that_names_it() {
    init();
    let element = gst::ElementFactory::make("sdlenc").property("provider", "abacus").build().unwrap();
    let messages = gst::Bus::new();
    element.set_bus(Some(&messages));
    assert!(element.set_state(gst::State::Paused).is_err());
    let message = messages.pop_filtered(&[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(error) = message.view() else { panic!("{message:?}") };
    assert!(error.debug().unwrap().contains("abacus"));
    element.set_state(gst::State::Null).unwrap();
}

/// Whether each of these pictures can be decoded on its own: its flag, which must say what its bytes say.
fn keys(pictures: &[gst::Buffer]) -> Vec<bool> {
    let key = |buffer: &gst::Buffer| {
        let delta = buffer.flags().contains(gst::BufferFlags::DELTA_UNIT);
        assert_eq!(image_sdl::is_delta(&bytes(buffer)), delta);
        !delta
    };
    pictures.iter().map(key).collect()
}

#[test]
fn delta_pictures_fill_the_time_between_key_pictures_at_any_number_of_threads() {
    let expected = sequence(9, 4);
    for threads in [-1, 0, 1, 4] {
        for mode in ["", "key-frames=interval"] {
            let description = format!("n-threads={threads} delta=true interval=800000000 {mode}");
            let mut harness = encoder(&description, &raw_caps("RGB"));
            (0..9).for_each(|n| {
                harness.push(buffer(moving(n), n.into())).unwrap();
            });
            harness.push_event(gst::event::Eos::new());
            let out = drain(&mut harness);
            assert!(out.iter().map(bytes).eq(expected.iter().cloned()), "{description}");
            assert_eq!(keys(&out), [true, false, false, false, true, false, false, false, true]);
            let times: Vec<u64> = out.iter().map(|b| b.pts().unwrap().mseconds()).collect();
            assert_eq!(times, (0..9).map(|n| 200 * n).collect::<Vec<_>>());
        }
    }
}

#[test]
fn key_pictures_come_when_asked_for_after_a_flush_and_with_new_caps() {
    let mut harness = encoder("delta=true key-frames=forced n-threads=3", &raw_caps("RGB"));
    let push = |harness: &mut Harness, numbers: std::ops::Range<u32>| {
        for n in numbers {
            harness.push(buffer(moving(n), n.into())).unwrap();
        }
    };
    push(&mut harness, 0..2);
    let ask = gst_video::UpstreamForceKeyUnitEvent::builder().all_headers(false).build();
    harness.push_upstream_event(ask);
    push(&mut harness, 2..4);
    harness.set_src_caps_str(&raw_caps("BGR"));
    push(&mut harness, 4..6);
    let before = drain(&mut harness);
    harness.push_event(gst::event::FlushStart::new());
    harness.push_event(gst::event::FlushStop::new(true));
    let lost = drain(&mut harness);
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
    push(&mut harness, 6..8);
    harness.push_event(gst::event::Eos::new());
    let after = drain(&mut harness);
    let found = keys(&before);
    assert!(found.starts_with(&[true, false, true, false]), "{found:?}");
    let middle = keys(&[before, lost].concat());
    assert!(middle.get(4).is_none_or(|key| *key), "{middle:?}");
    assert_eq!(keys(&after), [true, false]);
}

#[test]
fn a_picture_that_does_not_fit_leaves_the_sequence_whole() {
    // The third frame is another scene, which takes more than what changes.
    let mut harness = encoder("delta=true key-frames=forced target-size=700", &raw_caps("RGB"));
    let messages = bus(&harness);
    for n in 0..5u32 {
        let noise = (0..3 * WIDTH * HEIGHT).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let data = if n == 2 { noise } else { moving(n) };
        harness.push(buffer(data, n.into())).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    let out = drain(&mut harness);
    let mut decoder = image_sdl::SequenceDecoder::new();
    for picture in &out {
        assert!(picture.size() <= 700);
        decoder.decode(&bytes(picture), &image_sdl::DecodeOptions::default()).unwrap();
    }
    assert_eq!(out.len() + warnings(&messages).len(), 5);
}
