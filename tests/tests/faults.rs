//! Damaged and hostile files: an error with its reason, never a panic and never other pixels.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::time::{Duration, Instant};

use image_sdl::onnx::Backend;
use image_sdl::{Decoder, Error, ErrorKind, Picture};
use sdl_tests::{Container, Random, decoder, options, read_vectors};

/// Vectors in memory, by name.
fn vector(name: &str) -> Vec<u8> {
    read_vectors().into_iter().find(|v| v.file == format!("{name}.sdl")).unwrap().read()
}

fn decode(bytes: &[u8]) -> Result<Picture, Error> {
    decoder(bytes, Backend::Rust)?.decode(&options(Backend::Rust, 1))
}

fn verify(bytes: &[u8]) -> Result<(), Error> {
    decoder(bytes, Backend::Rust)?.verify(&options(Backend::Rust, 1)).map(|_| ())
}

/// The error of a file made from a sound one by `change`; checksums and length are right.
fn refused(name: &str, change: impl FnOnce(&mut Container)) -> Error {
    let mut container = Container::parse(&vector(name));
    change(&mut container);
    match decode(&container.to_bytes()) {
        Ok(_) => panic!("{name} was taken with this change"),
        Err(error) => error,
    }
}

#[test]
fn every_prefix_of_every_vector_is_an_error() {
    for vector in read_vectors() {
        let bytes = vector.read();
        for cut in 0..bytes.len() {
            let error = verify(&bytes[..cut]).expect_err(&vector.file);
            let kind = error.kind();
            assert_eq!(kind, ErrorKind::Corrupt, "{} cut at {cut}: {error}", vector.file);
        }
    }
}

#[test]
fn a_changed_bit_is_an_error_wherever_it_is() {
    const SMALL: usize = 400;
    let mut random = Random::new(1);
    let mut tried = 0;
    for vector in read_vectors() {
        let bytes = vector.read();
        for at in 0..bytes.len() {
            let bits: Vec<u32> =
                if bytes.len() <= SMALL { (0..8).collect() } else { vec![random.below(8) as u32] };
            for bit in bits {
                let mut bad = bytes.clone();
                bad[at] ^= 1 << bit;
                assert!(verify(&bad).is_err(), "{}, bit {bit} of byte {at}", vector.file);
                tried += 1;
            }
        }
    }
    assert!(tried > 10_000, "only {tried} bits were tried");
}

#[test]
fn a_header_of_65535_by_65535_meets_the_limit_at_once() {
    _ = decode(&vector("1x1"));
    for name in ["1x1", "blocks-1x1", "rgba8"] {
        let bytes = Container::parse(&vector(name)).with_size(65_535, 65_535).to_bytes();
        let start = Instant::now();
        let error = decode(&bytes).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(1), "{name}: {:?}", start.elapsed());
        assert!(matches!(error, Error::Limits { .. }), "{name}: {error}");
        assert_eq!(verify(&bytes).unwrap_err().kind(), ErrorKind::Limits);
    }
}

#[test]
fn a_limit_that_the_picture_just_meets_is_no_error_and_a_byte_less_is() {
    let bytes = vector("17x33");
    let with =
        |limit| decoder(&bytes[..], Backend::Rust)?.decode(&options(Backend::Rust, 1).with_max_bytes(limit));
    let (mut fails, mut works) = (0u64, 1 << 20);
    assert!(with(works).is_ok() && with(fails).is_err());
    while works - fails > 1 {
        let middle = fails + (works - fails) / 2;
        match with(middle) {
            Ok(_) => works = middle,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Limits);
                fails = middle;
            }
        }
    }
    assert!(works >= 17 * 33 * 3, "{works} bytes are less than the pixels");
}

#[test]
fn sizes_that_the_data_does_not_have_are_refused() {
    for (width, height) in [(0, 33), (17, 0), (0, 0)] {
        let bytes = Container::parse(&vector("17x33")).with_size(width, height).to_bytes();
        assert!(matches!(decode(&bytes), Err(Error::Corrupt(_))), "{width}x{height}");
    }
    // More or fewer tiles than the chunks that are there.
    let more = Container::parse(&vector("17x33")).with_size(2000, 33).to_bytes();
    assert!(decode(&more).unwrap_err().to_string().contains("1 of 2 tiles"));
    let fewer = Container::parse(&vector("tiles-across")).with_size(1000, 40).to_bytes();
    assert_eq!(decode(&fewer).unwrap_err().kind(), ErrorKind::Corrupt);
}

#[test]
fn what_a_newer_version_wrote_is_unsupported_and_not_damaged() {
    let changes: [fn(&mut Container); 4] = [
        |c| c.header[12] = 1,
        |c| c.header[13] |= 8,
        |c| c.chunks.insert(0, (b'Z', vec![1, 2, 3])),
        |c| c.chunks.push((0x80, Vec::new())),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let error = refused("17x33", change);
        assert_eq!(error.kind(), ErrorKind::Unsupported, "change {at}: {error}");
        assert!(error.to_string().contains("newer version"), "{error}");
    }
}

#[test]
fn an_unknown_chunk_in_small_letters_is_passed_over_wherever_it_stands() {
    let sound = Container::parse(&vector("metadata"));
    let expected = decode(&sound.to_bytes()).unwrap();
    for at in 0..=sound.chunks.len() {
        let mut container = sound.clone();
        container.chunks.insert(at, (b'z', vec![9; 300]));
        assert!(decode(&container.to_bytes()).unwrap() == expected, "at {at}");
    }
}

fn quantiser(container: &mut Container) -> &mut Vec<u8> {
    &mut container.chunks.iter_mut().find(|(kind, _)| *kind == b'Q').unwrap().1
}

#[test]
fn chunks_that_are_missing_doubled_or_in_the_wrong_place_are_refused() {
    let twice = |kind: u8| {
        move |c: &mut Container| {
            let at = c.chunks.iter().position(|(k, _)| *k == kind).unwrap();
            let copy = c.chunks[at].clone();
            c.chunks.insert(at, copy);
        }
    };
    let without = |kind: u8| move |c: &mut Container| c.chunks.retain(|(k, _)| *k != kind);
    let errors = [
        refused("metadata", twice(b'i')),
        refused("metadata", twice(b'e')),
        refused("metadata", twice(b'x')),
        refused("rgba8", twice(b'A')),
        refused("17x33", twice(b'L')),
        refused("blocks-17x33", twice(b'Q')),
        refused("rgba8", without(b'A')),
        refused("17x33", without(b'L')),
        refused("blocks-17x33", without(b'Q')),
        refused("metadata", |c| c.chunks.rotate_left(1)),
        refused("tiles-across", |c| c.chunks.reverse()),
        refused("17x33", |c| c.chunks.push((b'A', Vec::new()))),
        refused("17x33", |c| c.chunks[0].1.clear()),
        refused("17x33", |c| c.chunks[0].1.truncate(4)),
        refused("17x33", |c| c.chunks[0].1.extend([0; 8])),
        refused("blocks-17x33", |c| *quantiser(c) = f32::NAN.to_le_bytes().to_vec()),
        refused("blocks-17x33", |c| *quantiser(c) = 0f32.to_le_bytes().to_vec()),
    ];
    for (at, error) in errors.iter().enumerate() {
        let diverged = matches!(error, Error::Diverged { .. });
        assert!(diverged || error.kind() == ErrorKind::Corrupt, "case {at}: {error}");
    }
}

#[test]
fn bytes_after_the_end_are_refused() {
    for vector in read_vectors() {
        let mut bytes = vector.read();
        bytes.push(0);
        assert!(matches!(verify(&bytes), Err(Error::Corrupt(_))), "{}", vector.file);
    }
}

#[test]
fn a_file_of_another_generation_says_which_one_it_needs() {
    let error = refused("17x33", |c| c.header[19] = 200);
    assert!(matches!(error, Error::MissingBundle(_)), "{error}");
    let words = error.to_string();
    assert!(words.contains("generation 200") && words.contains("a newer version"), "{words}");
}

#[test]
fn a_file_that_claims_another_method_than_its_own_is_refused() {
    const METHOD: u8 = 0x30;
    for name in ["17x33", "blocks-17x33", "blocks-palette"] {
        let own = vector(name)[13] & METHOD;
        for claimed in (0..4).map(|code| code << 4).filter(|claimed| *claimed != own) {
            let error = refused(name, |c| c.header[13] = c.header[13] & !METHOD | claimed);
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name} as {claimed:#x}: {error}");
        }
    }
}

#[test]
fn a_palette_that_is_none_is_refused() {
    fn palette(c: &mut Container) -> &mut Vec<u8> {
        &mut c.chunks.iter_mut().find(|(kind, _)| *kind == b'Q').unwrap().1
    }
    let errors = [
        refused("blocks-palette", |c| c.chunks.retain(|(kind, _)| *kind != b'Q')),
        refused("blocks-palette", |c| palette(c).clear()),
        refused("blocks-palette", |c| palette(c).truncate(60)),
        refused("blocks-palette", |c| palette(c)[1..5].copy_from_slice(&f32::NAN.to_le_bytes())),
        refused("blocks-palette", |c| palette(c)[1..5].copy_from_slice(&f32::MAX.to_le_bytes())),
        // More and fewer entries than were written.
        refused("blocks-palette", |c| palette(c)[0] = 255),
        refused("blocks-palette", |c| palette(c)[0] = 0),
        // A plan and a denoiser that the bundle does not have.
        refused("blocks-palette", |c| c.chunks.insert(0, (b'T', vec![65, 0, 8, 0]))),
        refused("17x33", |c| c.chunks.insert(0, (b'N', vec![3, 0, 1]))),
    ];
    for (at, error) in errors.iter().enumerate() {
        assert_eq!(error.kind(), ErrorKind::Corrupt, "case {at}: {error}");
    }
}

#[test]
fn what_is_no_sdl_file_is_told_from_what_is_a_cut_one() {
    assert!(matches!(
        Decoder::new(&b"\x89PNG\r\n\x1a\n and more than twenty bytes"[..]),
        Err(Error::NotSdl(_))
    ));
    assert!(matches!(Decoder::new(&b""[..]), Err(Error::Truncated { .. })));
    // A transfer in text mode takes the carriage return away.
    let mut bytes = vector("1x1");
    let at = bytes.windows(2).position(|pair| pair == b"\r\n").unwrap();
    bytes.remove(at);
    let error = Decoder::new(&bytes[..]).unwrap_err();
    assert!(error.to_string().contains("binary mode"), "{error}");
}

#[test]
fn metadata_of_more_than_64_mib_is_not_written_and_cut_metadata_is_not_read() {
    let mut bomb = Picture::new(1, 1, image_sdl::Colour::Grey, vec![0]).unwrap();
    bomb.metadata.xmp = Some(vec![0; (64 << 20) + 1]);
    let error = image_sdl::encode(&bomb, &image_sdl::EncodeOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parameter, "{error}");
    for kind in [b'i', b'e', b'x'] {
        let error = refused("metadata", |c| {
            let payload = &mut c.chunks.iter_mut().find(|(k, _)| *k == kind).unwrap().1;
            payload.truncate(payload.len() / 2);
        });
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
}
