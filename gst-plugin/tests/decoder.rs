//! `sdldec`, `sdlparse` and the type finder: whole, chopped, cut and broken streams.
#![allow(clippy::unwrap_used)]

mod common;

use common::*;
use gst::prelude::*;
use gst_check::Harness;
use gst_tag::prelude::TagListExt;
use image_sdl::{Alpha, Colour, DecodeOptions, EncodeOptions, Picture, SequenceDecoder};

const PARSED: &str = "image/x-sdl,parsed=true";

fn decoder(description: &str, caps: &str) -> Harness {
    init();
    let mut harness = Harness::new_parse(&format!("sdldec {description}"));
    harness.set_src_caps_str(caps);
    harness
}

fn stream(pictures: u32) -> Vec<u8> {
    (0..pictures).flat_map(file).collect()
}

/// Pixels as the library decodes them.
fn decoded(file: &[u8]) -> Vec<u8> {
    image_sdl::decode(file, &DecodeOptions::default()).unwrap().pixels().to_vec()
}

/// What comes out of `description` when the stream goes in, `step` bytes at a time.
fn fed(description: &str, stream: &[u8], step: usize) -> (Vec<Vec<u8>>, Vec<String>) {
    init();
    let mut harness = Harness::new_parse(description);
    let messages = bus(&harness);
    harness.set_src_caps_str("image/x-sdl");
    harness.push_event(gst::event::StreamStart::new("test"));
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::format::Bytes>::new()));
    for chunk in stream.chunks(step) {
        harness.push(gst::Buffer::from_mut_slice(chunk.to_vec())).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    let out = drain(&mut harness).iter().map(bytes).collect();
    (out, warnings(&messages))
}

#[test]
fn pixels_are_those_of_the_library_at_any_number_of_threads() {
    let expected: Vec<Vec<u8>> = (0..5).map(|n| decoded(&file(n))).collect();
    for threads in [-1, 0, 1, 4] {
        let mut harness = decoder(&format!("n-threads={threads}"), "image/x-sdl,parsed=true,framerate=5/1");
        (0..5).for_each(|n| {
            harness.push(buffer(file(n), n.into())).unwrap();
        });
        harness.push_event(gst::event::Eos::new());
        let out = drain(&mut harness);
        let times: Vec<u64> = out.iter().map(|b| b.pts().unwrap().mseconds()).collect();
        assert_eq!(times, [0, 200, 400, 600, 800]);
        assert_eq!(out.iter().map(bytes).collect::<Vec<_>>(), expected, "{threads} threads");
    }
}

#[test]
fn sizes_without_a_multiple_of_four_bytes_a_row_decode() {
    let (width, height) = (61, 35);
    let picture = Picture::new(width, height, Colour::Rgb, pixels(width, height, 0)).unwrap();
    let file = image_sdl::encode(&picture, &EncodeOptions::default()).unwrap();
    let mut harness = decoder("", PARSED);
    harness.push(buffer(file.clone(), 0)).unwrap();
    harness.push_event(gst::event::Eos::new());
    let out = bytes(&drain(&mut harness)[0]);
    let rows: Vec<u8> = out.chunks(184).flat_map(|row| &row[..183]).copied().collect();
    assert_eq!(rows, decoded(&file));
}

#[test]
fn grey_alpha_and_colorimetry_are_in_the_caps() {
    let plane = vec![77; (WIDTH * HEIGHT) as usize];
    let grey = Picture::new(WIDTH, HEIGHT, Colour::Grey, plane.clone()).unwrap();
    let alpha = picture(0).with_alpha(Alpha::Sixteen(vec![65_535 / 255 * 9; plane.len()])).unwrap();
    let cases = [
        (picture(0), "RGB", "sRGB"),
        (alpha, "RGBA", "sRGB"),
        (grey.clone(), "GRAY8", "1:4:7:1"),
        (grey.with_alpha(Alpha::Float(vec![0.5; plane.len()])).unwrap(), "RGBA", "sRGB"),
    ];
    let mut harness = decoder("n-threads=2", PARSED);
    for (n, (picture, format, colorimetry)) in cases.iter().enumerate() {
        let file = image_sdl::encode(picture, &EncodeOptions::default()).unwrap();
        harness.push(buffer(file, n as u64)).unwrap();
        if n + 1 == cases.len() {
            harness.push_event(gst::event::Eos::new());
        }
        let _ = (format, colorimetry);
    }
    let caps: Vec<(String, String)> = std::iter::from_fn(|| harness.try_pull_event())
        .filter_map(|event| match event.view() {
            gst::EventView::Caps(caps) => {
                let structure = caps.caps().structure(0).unwrap().to_owned();
                Some((structure.get("format").unwrap(), structure.get("colorimetry").unwrap()))
            }
            _ => None,
        })
        .collect();
    let expected: Vec<(String, String)> =
        cases.iter().map(|(_, format, colorimetry)| (format.to_string(), colorimetry.to_string())).collect();
    assert_eq!(caps, expected);
    let out = drain(&mut harness);
    assert_eq!(bytes(&out[1])[3], 9);
    assert_eq!(bytes(&out[3])[3], 128);
}

#[test]
fn streams_of_bytes_decode_at_every_chunk_size() {
    let expected: Vec<Vec<u8>> = (0..3).map(|n| decoded(&file(n))).collect();
    let stream = stream(3);
    for step in [1, 7, 100, 1024, stream.len()] {
        for description in ["sdldec", "sdlparse ! sdldec"] {
            let (out, warned) = fed(description, &stream, step);
            assert!(warned.is_empty(), "{warned:?}");
            assert!(out == expected, "{description}, {step} bytes at a time");
        }
    }
}

#[test]
fn junk_cut_pictures_and_a_cut_tail_cost_only_themselves() {
    let mut stream = b"junk \x93SD junk".to_vec();
    stream.extend(file(0));
    stream.extend(b"more junk \x93SDL\r\n\x1a\nand what looks like a header");
    stream.extend(&file(1)[..file(1).len() / 2]);
    stream.extend(file(2));
    stream.extend(&file(3)[..file(3).len() - 5]);
    let expected = [decoded(&file(0)), decoded(&file(2))];
    for step in [1, 33, 1024, stream.len()] {
        for description in ["sdldec", "sdlparse ! sdldec"] {
            let (out, warned) = fed(description, &stream, step);
            assert!(out == expected, "{description}, {step} bytes at a time: {} pictures", out.len());
            assert_eq!(warned.len(), 2, "{warned:?}");
        }
    }
}

#[test]
fn a_damaged_picture_is_a_warning_and_the_next_one_decodes() {
    let mut broken = file(1);
    let middle = broken.len() / 2;
    broken[middle] ^= 0x10;
    for threads in [0, 3] {
        let mut harness = decoder(&format!("n-threads={threads}"), PARSED);
        let messages = bus(&harness);
        for (n, data) in [file(0), broken.clone(), file(2)].into_iter().enumerate() {
            harness.push(buffer(data, n as u64)).unwrap();
        }
        harness.push_event(gst::event::Eos::new());
        let times: Vec<u64> = drain(&mut harness).iter().map(|b| b.pts().unwrap().mseconds()).collect();
        assert_eq!(times, [0, 400]);
        let warned = warnings(&messages);
        assert!(warned.len() == 1 && warned[0].contains("checksum"), "{warned:?}");
    }
}

#[test]
fn beyond_max_errors_a_damaged_picture_is_an_error() {
    let mut broken = file(1);
    let middle = broken.len() / 2;
    broken[middle] ^= 1;
    let mut harness = decoder("max-errors=1 n-threads=0", PARSED);
    let messages = bus(&harness);
    assert!(harness.push(buffer(broken.clone(), 0)).is_ok());
    assert_eq!(harness.push(buffer(broken, 1)), Err(gst::FlowError::Error));
    assert!(messages.pop_filtered(&[gst::MessageType::Error]).is_some());
}

#[test]
fn a_missing_bundle_is_an_error_that_names_it() {
    let mut other = file(0);
    other[19] = 200;
    let mut harness = decoder("", PARSED);
    let messages = bus(&harness);
    assert_eq!(harness.push(buffer(other, 0)), Err(gst::FlowError::Error));
    let message = messages.pop_filtered(&[gst::MessageType::Error]).unwrap();
    let gst::MessageView::Error(error) = message.view() else { panic!("{message:?}") };
    assert!(error.error().matches(gst::ResourceError::NotFound));
    assert!(error.debug().unwrap().contains("generation 200"), "{:?}", error.debug());
}

#[test]
fn limits_hold() {
    let too_small = file(0).len().min(file(1).len()) - 1;
    for element in ["sdldec", "sdlparse"] {
        let (out, _) = fed(&format!("{element} max-size={too_small}"), &stream(2), 100);
        assert!(out.is_empty());
    }
    let mut harness = decoder("max-alloc=10000", PARSED);
    let messages = bus(&harness);
    harness.push(buffer(file(0), 0)).unwrap();
    harness.push_event(gst::event::Eos::new());
    assert!(drain(&mut harness).is_empty());
    assert!(warnings(&messages)[0].contains("limit"));
}

#[test]
fn exif_and_xmp_come_out_as_tags() {
    init();
    let mut tags = gst::TagList::new();
    {
        let tags = tags.get_mut().unwrap();
        tags.add::<gst::tags::ImageOrientation>(&"rotate-90", gst::TagMergeMode::Append);
        tags.add::<gst::tags::DeviceModel>(&"Test camera", gst::TagMergeMode::Append);
    }
    let exif = bytes(&tags.to_exif_buffer_with_tiff_header().unwrap());
    let mut titled = gst::TagList::new();
    titled.get_mut().unwrap().add::<gst::tags::Title>(&"A title", gst::TagMergeMode::Append);
    let xmp = bytes(&titled.to_xmp_buffer(false, &["dc"]).unwrap());
    let mut picture = picture(0);
    picture.metadata.exif = Some(exif);
    picture.metadata.xmp = Some(xmp);
    let file = image_sdl::encode(&picture, &EncodeOptions::default()).unwrap();

    let mut harness = decoder("", PARSED);
    harness.push(buffer(file, 0)).unwrap();
    harness.push_event(gst::event::Eos::new());
    let found: Vec<gst::TagList> = std::iter::from_fn(|| harness.try_pull_event())
        .filter_map(|event| match event.view() {
            gst::EventView::Tag(tag) => Some(tag.tag_owned()),
            _ => None,
        })
        .collect();
    let text = format!("{found:?}");
    for expected in ["rotate-90", "Test camera", "A title"] {
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn after_a_flush_the_stream_starts_anew() {
    for description in ["sdldec n-threads=3", "sdlparse ! sdldec n-threads=3"] {
        init();
        let mut harness = Harness::new_parse(description);
        harness.set_src_caps_str("image/x-sdl");
        harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::format::Bytes>::new()));
        // Half a picture is in there when the flush comes.
        harness.push(gst::Buffer::from_mut_slice(file(0)[..file(0).len() / 2].to_vec())).unwrap();
        harness.push_event(gst::event::FlushStart::new());
        harness.push_event(gst::event::FlushStop::new(true));
        drain(&mut harness);
        harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::format::Bytes>::new()));
        harness.push(gst::Buffer::from_mut_slice(stream(2))).unwrap();
        harness.push_event(gst::event::Eos::new());
        let out: Vec<Vec<u8>> = drain(&mut harness).iter().map(bytes).collect();
        assert!(out == [decoded(&file(0)), decoded(&file(1))], "{description}: {}", out.len());
    }
}

#[test]
fn a_flush_while_caps_are_announced_is_no_error_and_they_are_announced_again() {
    init();
    for description in ["sdldec n-threads=0", "sdlparse"] {
        let mut harness = Harness::new_parse(description);
        let messages = bus(&harness);
        harness.set_src_caps_str(PARSED);
        flush_behind(&harness);
        assert_eq!(harness.push(buffer(file(0), 0)), Err(gst::FlowError::Flushing), "{description}");
        harness.push_event(gst::event::FlushStop::new(true));
        harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::ClockTime>::new()));
        harness.push(buffer(file(1), 1)).unwrap();
        harness.push_event(gst::event::Eos::new());
        assert_eq!(drain(&mut harness).len(), 1, "{description}");
        let caps = harness.sinkpad().unwrap().current_caps().unwrap();
        assert_eq!(caps.structure(0).unwrap().get::<i32>("width"), Ok(WIDTH as i32), "{description}");
        assert!(messages.pop_filtered(&[gst::MessageType::Error, gst::MessageType::Warning]).is_none());
    }
}

#[test]
fn a_picture_comes_out_without_a_next_one() {
    let mut harness = decoder("n-threads=2", PARSED);
    for n in 0..3 {
        harness.push(buffer(file(n), n.into())).unwrap();
        assert_eq!(bytes(&harness.pull().unwrap()), decoded(&file(n)));
    }
}

#[test]
fn the_orientation_of_one_picture_is_not_that_of_the_next() {
    init();
    let mut tags = gst::TagList::new();
    tags.get_mut().unwrap().add::<gst::tags::ImageOrientation>(&"rotate-90", gst::TagMergeMode::Append);
    let mut turned = picture(0);
    turned.metadata.exif = Some(bytes(&tags.to_exif_buffer_with_tiff_header().unwrap()));
    let mut harness = decoder("n-threads=0", PARSED);
    for (n, picture) in [turned.clone(), picture(1), picture(2), turned].iter().enumerate() {
        let file = image_sdl::encode(picture, &EncodeOptions::default()).unwrap();
        harness.push(buffer(file, n as u64)).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    let found: Vec<String> = std::iter::from_fn(|| harness.try_pull_event())
        .filter_map(|event| match event.view() {
            gst::EventView::Tag(tag) => {
                tag.tag().get::<gst::tags::ImageOrientation>().map(|value| value.get().to_owned())
            }
            _ => None,
        })
        .collect();
    assert_eq!(found, ["rotate-90", "rotate-0", "rotate-90"]);
}

#[test]
fn late_pictures_are_dropped_before_they_are_decoded() {
    for (description, expected) in [("qos=true", vec![0, 2200]), ("qos=false", vec![0, 200, 2200])] {
        let mut harness =
            decoder(&format!("n-threads=0 {description}"), "image/x-sdl,parsed=true,framerate=5/1");
        harness.push(buffer(file(0), 0)).unwrap();
        let second = gst::ClockTime::SECOND.nseconds() as i64;
        let qos =
            gst::event::Qos::builder(gst::QOSType::Underflow, 1.0, second).timestamp(gst::ClockTime::ZERO);
        harness.push_upstream_event(qos.build());
        harness.push(buffer(file(1), 1)).unwrap();
        harness.push(buffer(file(2), 11)).unwrap();
        harness.push_event(gst::event::Eos::new());
        let times: Vec<u64> = drain(&mut harness).iter().map(|b| b.pts().unwrap().mseconds()).collect();
        assert_eq!(times, expected, "{description}");
    }
}

#[test]
fn what_demuxers_make_of_our_tracks_is_taken() {
    for caps in [
        "video/x-gst-fourcc-sdl0,width=160,height=120,framerate=5/1",
        "video/x-unknown,codec-id=V_SDL",
        "video/x-unknown,fourcc=SDL0,width=160,height=120",
    ] {
        let mut harness = decoder("", caps);
        harness.push(buffer(file(0), 0)).unwrap();
        harness.push_event(gst::event::Eos::new());
        assert_eq!(drain(&mut harness).len(), 1, "{caps}");
    }
}

fn times(description: &str, caps: &str, stream: &[u8]) -> (Vec<Option<u64>>, gst::Fraction) {
    init();
    let mut harness = Harness::new_parse(description);
    harness.set_src_caps_str(caps);
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::format::Bytes>::new()));
    harness.push(gst::Buffer::from_mut_slice(stream.to_vec())).unwrap();
    harness.push_event(gst::event::Eos::new());
    let times = drain(&mut harness).iter().map(|b| b.pts().map(gst::ClockTime::mseconds)).collect();
    let caps = harness.sinkpad().unwrap().current_caps().unwrap();
    (times, caps.structure(0).unwrap().get("framerate").unwrap())
}

#[test]
fn the_parser_gives_times_from_the_header_from_caps_or_from_its_property() {
    let timed: Vec<u8> = (0..3)
        .flat_map(|n| {
            let mut options = EncodeOptions::default();
            options.duration = Some(40_000);
            image_sdl::encode(&picture(n), &options).unwrap()
        })
        .collect();
    let every = |ms: u64| (0..3).map(|n| Some(n * ms)).collect::<Vec<_>>();
    assert_eq!(times("sdlparse", "image/x-sdl", &timed), (every(40), gst::Fraction::new(25, 1)));
    let plain = stream(3);
    assert_eq!(
        times("sdlparse framerate=10/1", "image/x-sdl", &plain),
        (every(100), gst::Fraction::new(10, 1))
    );
    assert_eq!(
        times("sdlparse framerate=10/1", "image/x-sdl", &timed),
        (every(100), gst::Fraction::new(10, 1))
    );
    let caps = "image/x-sdl,framerate=5/1";
    assert_eq!(times("sdlparse", caps, &plain), (every(200), gst::Fraction::new(5, 1)));
    assert_eq!(times("sdlparse", "image/x-sdl", &plain).1, gst::Fraction::new(0, 1));
}

#[test]
fn the_type_finder_knows_a_picture_by_its_content_alone() {
    init();
    let factory = gst::Registry::get()
        .find_feature("image/x-sdl", gst::TypeFindFactory::static_type())
        .unwrap()
        .downcast::<gst::TypeFindFactory>()
        .unwrap();
    let find = |data: &[u8]| {
        let mut find = gst::SliceTypeFind::new(data);
        factory.call_function(&mut find);
        (find.probability, find.caps.map(|caps| caps.to_string()))
    };
    let (probability, caps) = find(&file(0));
    assert_eq!(probability, Some(gst::TypeFindProbability::Maximum));
    assert!(caps.unwrap().contains("width=(int)160, height=(int)120"));
    assert_eq!(find(b"\x89PNG\r\n\x1a\n and more bytes than a header has").0, None);
    assert_eq!(find(&file(0)[..12]).0, None);
}

#[test]
fn mutated_streams_never_crash_or_hang() {
    // More of them: SDL_MUTATIONS=10000 cargo test --release -p gst-plugin-sdl mutated
    let rounds = std::env::var("SDL_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(150u32);
    let streams = [stream(2), sequence(3, 3).concat()];
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut random = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for round in 0..rounds {
        let mut data = streams[round as usize / 3 % 2].clone();
        for _ in 0..=random(4) {
            let at = random(data.len());
            match random(5) {
                0 => data[at] ^= 1 << random(8),
                1 => data[at] = random(256) as u8,
                2 => data.truncate(at.max(1)),
                3 => {
                    data.drain(at..(at + random(40)).min(data.len()));
                    data.push(0);
                }
                _ => {
                    // In the header, where it hurts.
                    let at = random(32).min(data.len() - 1);
                    data[at] ^= 1 << random(8);
                }
            }
        }
        let description = ["sdldec", "sdlparse ! sdldec", "sdldec n-threads=0"][round as usize % 3];
        init();
        let mut harness = Harness::new_parse(description);
        harness.set_src_caps_str("image/x-sdl");
        harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::format::Bytes>::new()));
        for chunk in data.chunks(1 + random(3000)) {
            // A missing bundle ends the stream, and that is right.
            if harness.push(gst::Buffer::from_mut_slice(chunk.to_vec())).is_err() {
                break;
            }
        }
        harness.push_event(gst::event::Eos::new());
        assert!(drain(&mut harness).len() <= 3);
    }
}

/// Pixels of a sequence as the library decodes them.
fn decoded_sequence(files: &[Vec<u8>]) -> Vec<Vec<u8>> {
    let mut decoder = SequenceDecoder::new();
    let decode = |file: &Vec<u8>| decoder.decode(file, &DecodeOptions::default()).unwrap().pixels().to_vec();
    files.iter().map(decode).collect()
}

#[test]
fn delta_pictures_decode_to_the_pixels_of_the_library_at_any_number_of_threads() {
    let files = sequence(8, 5);
    let expected = decoded_sequence(&files);
    for threads in [-1, 0, 1, 4] {
        let mut harness = decoder(&format!("n-threads={threads}"), PARSED);
        for (n, file) in files.iter().enumerate() {
            harness.push(buffer(file.clone(), n as u64)).unwrap();
        }
        harness.push_event(gst::event::Eos::new());
        assert!(drain(&mut harness).iter().map(bytes).eq(expected.iter().cloned()), "{threads} threads");
    }
    for description in ["sdldec", "sdlparse ! sdldec n-threads=3"] {
        let (out, warned) = fed(description, &files.concat(), 100);
        assert!(out == expected && warned.is_empty(), "{description}: {warned:?}");
    }
}

#[test]
fn without_its_reference_a_decoder_says_so_once_asks_for_a_key_picture_and_waits_for_it() {
    let files = sequence(9, 6);
    let expected = decoded_sequence(&files);
    for threads in [0, 3] {
        let mut harness = decoder(&format!("n-threads={threads} max-errors=0"), PARSED);
        let messages = bus(&harness);
        // The second picture is lost: the next ones cannot be decoded, up to the key picture.
        for n in [0, 2, 3, 4, 5, 6, 7, 8] {
            harness.push(buffer(files[n].clone(), n as u64)).unwrap();
        }
        harness.push_event(gst::event::Eos::new());
        let out = drain(&mut harness);
        let shown: Vec<u64> = out.iter().map(|b| b.pts().unwrap().mseconds() / 200).collect();
        assert_eq!(shown, [0, 6, 7, 8], "{threads} threads");
        assert!(out.iter().zip(shown).all(|(out, n)| bytes(out) == expected[n as usize]));
        let warned = warnings(&messages);
        assert!(warned.len() == 1 && warned[0].contains("delta picture"), "{warned:?}");
        let asked = std::iter::from_fn(|| harness.try_pull_upstream_event())
            .filter(|event| gst_video::ForceKeyUnitEvent::is(event))
            .count();
        assert_eq!(asked, 1);
    }
}

#[test]
fn who_joins_in_the_middle_begins_with_the_next_key_picture() {
    let files = sequence(9, 6);
    let expected = decoded_sequence(&files);
    let (out, warned) = fed("sdlparse ! sdldec", &files[3..].concat(), 500);
    assert!(out == expected[6..], "{} pictures", out.len());
    assert_eq!(warned.len(), 1);
}

#[test]
fn the_parser_marks_delta_pictures() {
    init();
    let files = sequence(5, 3);
    let mut harness = Harness::new_parse("sdlparse");
    harness.set_src_caps_str("image/x-sdl");
    harness.push_event(gst::event::Segment::new(&gst::FormattedSegment::<gst::format::Bytes>::new()));
    harness.push(gst::Buffer::from_mut_slice(files.concat())).unwrap();
    harness.push_event(gst::event::Eos::new());
    let out = drain(&mut harness);
    let delta: Vec<bool> = out.iter().map(|b| b.flags().contains(gst::BufferFlags::DELTA_UNIT)).collect();
    assert_eq!(delta, [false, true, true, false, true]);
    assert!(out.iter().map(bytes).eq(files));
}

#[test]
fn late_pictures_of_a_sequence_are_not_shown_and_those_after_them_are_right() {
    let files = sequence(6, 6);
    let expected = decoded_sequence(&files);
    let mut harness = decoder("n-threads=0 qos=true", "image/x-sdl,parsed=true,framerate=5/1");
    harness.push(buffer(files[0].clone(), 0)).unwrap();
    harness.push(buffer(files[1].clone(), 1)).unwrap();
    let second = gst::ClockTime::SECOND.nseconds() as i64;
    let qos = gst::event::Qos::builder(gst::QOSType::Underflow, 1.0, second).timestamp(gst::ClockTime::ZERO);
    harness.push_upstream_event(qos.build());
    for (n, time) in [(2, 2), (3, 3), (4, 20), (5, 21)] {
        harness.push(buffer(files[n].clone(), time)).unwrap();
    }
    harness.push_event(gst::event::Eos::new());
    let out: Vec<Vec<u8>> = drain(&mut harness).iter().map(bytes).collect();
    assert!(out == [0, 1, 4, 5].map(|n| expected[n].clone()), "{} pictures", out.len());
}

#[test]
fn a_decoder_that_the_model_does_not_have_is_an_error_that_says_so() {
    let has_natural = image_sdl::onnx::builtin().unwrap().has(image_sdl::onnx::role::SYNTHESIS_NATURAL);
    for choice in ["auto", "fidelity", "natural"] {
        let mut harness = decoder(&format!("decoder={choice} denoise-steps=2"), PARSED);
        let messages = bus(&harness);
        let pushed = harness.push(buffer(file(0), 0));
        harness.push_event(gst::event::Eos::new());
        let out = drain(&mut harness);
        if choice != "natural" || has_natural {
            assert_eq!((pushed, out.len()), (Ok(gst::FlowSuccess::Ok), 1), "{choice}");
            assert!(choice == "natural" || bytes(&out[0]) == decoded(&file(0)), "{choice}");
            continue;
        }
        assert_eq!(pushed, Err(gst::FlowError::Error));
        let message = messages.pop_filtered(&[gst::MessageType::Error]).unwrap();
        let gst::MessageView::Error(error) = message.view() else { panic!("{message:?}") };
        assert!(error.error().matches(gst::LibraryError::Settings));
        assert!(error.debug().unwrap().contains("decoder=fidelity"), "{:?}", error.debug());
    }
}
