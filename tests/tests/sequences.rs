//! Delta pictures: what they save, that they are exact, and what happens without their reference.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use image_sdl::{
    Alpha, Analysed, Colour, DecodeOptions, Decoder, EncodeOptions, Error, ErrorKind, Picture, ReferenceName,
    SequenceDecoder, SequenceEncoder, decode, encode_with, is_delta,
};
use sdl_tests::{
    Random, backends, bless, blocks, built_in, folder, options, pixel_sum, psnr, scene, static_camera,
};

fn quality(quality: u8) -> EncodeOptions {
    EncodeOptions::default().with_quality(quality)
}

/// The files of some pictures in a sequence.
fn files(pictures: &[Picture], options: &EncodeOptions) -> Vec<Vec<u8>> {
    let mut encoder = SequenceEncoder::new(built_in(backends()[0])).unwrap();
    pictures.iter().map(|picture| encoder.encode(picture, options).unwrap().bytes).collect()
}

/// A small sequence: a disc that crosses a cut of a scene.
fn small(count: u32) -> Vec<Picture> {
    let base = scene(150, 110);
    (0..count)
        .map(|n| {
            let mut pixels = base.pixels().to_vec();
            for y in 30..70 {
                for x in 20 + 9 * n..50 + 9 * n {
                    let at = 3 * (y * 150 + x) as usize;
                    pixels[at..at + 3].copy_from_slice(&[200, (x * 5) as u8, 30]);
                }
            }
            Picture::new(150, 110, Colour::Rgb, pixels).unwrap()
        })
        .collect()
}

#[test]
fn a_static_camera_takes_a_fifth_of_the_bytes_at_the_same_quality() {
    let model = built_in(backends()[0]);
    for level in [30, 80] {
        let mut encoder = SequenceEncoder::new(model.clone()).unwrap();
        let mut decoder = SequenceDecoder::new();
        let (mut keys, mut deltas, mut loss) = (0, 0, 0.0);
        // From 5 on a picture by itself is corrected, and one of a sequence is not.
        let options = quality(level).with_effort(4);
        for frame in 0..4 {
            let picture = static_camera(frame);
            let file = encoder.encode(&picture, &options).unwrap();
            let shown = decoder.decode(&file.bytes, &DecodeOptions::default()).unwrap();
            let key = encode_with(&model, &picture, &options).unwrap().bytes;
            assert_eq!(file.delta, frame > 0);
            assert_eq!(is_delta(&file.bytes), file.delta);
            if !file.delta {
                assert!(file.bytes == key, "the first of a sequence is an ordinary file");
                continue;
            }
            let wanted = decode(&key, &DecodeOptions::default()).unwrap();
            keys += key.len();
            deltas += file.bytes.len();
            loss += psnr(wanted.pixels(), picture.pixels()) - psnr(shown.pixels(), picture.pixels());
        }
        assert!(5 * deltas <= keys, "quality {level}: {deltas} bytes, {keys} of key pictures");
        assert!(loss / 3.0 < 0.15, "quality {level}: {loss} dB lost over three pictures");
    }
}

#[test]
fn what_does_not_change_costs_next_to_nothing() {
    let picture = scene(1100, 80);
    let files = files(&[picture.clone(), picture.clone(), picture], &quality(40));
    // Header, name of the reference, an empty chunk for each of two tiles.
    assert!(files[1].len() <= 46 && files[2].len() == files[1].len(), "{} bytes", files[1].len());
}

#[test]
fn pixels_are_the_same_with_every_engine_on_one_and_two_threads() {
    let files = files(&small(4), &quality(60));
    let sums = |backend, threads| -> Vec<String> {
        let mut decoder = SequenceDecoder::new();
        let decode = |file: &Vec<u8>| pixel_sum(&decoder.decode(file, &options(backend, threads)).unwrap());
        files.iter().map(decode).collect()
    };
    let expected = sums(backends()[0], 1);
    for backend in backends() {
        for threads in [1, 2] {
            assert_eq!(sums(backend, threads), expected, "{backend:?}, {threads} threads");
        }
    }
}

#[test]
fn analysis_ahead_gives_the_files_of_the_sequence() {
    let (pictures, model) = (small(3), built_in(backends()[0]));
    let options = quality(45);
    let ahead: Vec<Analysed<'_>> =
        pictures.iter().map(|picture| Analysed::new(&model, picture, &options).unwrap()).collect();
    let mut before = None;
    for (analysed, expected) in ahead.iter().zip(files(&pictures, &options)) {
        let (encoded, reference) = analysed.encode(before.as_ref()).unwrap();
        assert!(encoded.bytes == expected);
        assert_eq!(reference.name(), ReferenceName::of(&expected));
        before = Some(reference);
    }
}

#[test]
fn quality_and_target_size_hold_from_picture_to_picture() {
    let pictures = small(4);
    let mut encoder = SequenceEncoder::new(built_in(backends()[0])).unwrap();
    let mut decoder = SequenceDecoder::new();
    let key = encoder.encode(&pictures[0], &quality(20)).unwrap();
    let settings = [quality(90), EncodeOptions::default().with_target_size(400), quality(5).with_effort(1)];
    decoder.decode(&key.bytes, &DecodeOptions::default()).unwrap();
    for (picture, options) in pictures[1..].iter().zip(settings) {
        let file = encoder.encode(picture, &options).unwrap();
        assert!(file.delta);
        if let image_sdl::Rate::Size(size) = options.rate {
            assert!(file.bytes.len() as u64 <= size);
        }
        decoder.decode(&file.bytes, &DecodeOptions::default()).unwrap();
    }
    // A size that cannot be reached leaves the sequence as it was.
    let impossible = EncodeOptions::default().with_target_size(20);
    assert_eq!(encoder.encode(&pictures[0], &impossible).unwrap_err().kind(), ErrorKind::Target);
    let file = encoder.encode(&pictures[1], &quality(50)).unwrap();
    decoder.decode(&file.bytes, &DecodeOptions::default()).unwrap();
}

#[test]
fn alpha_is_exact_and_is_left_away_where_it_does_not_change() {
    let plane = |seed: u32| Alpha::Eight((0..150 * 110).map(|i| ((i + seed) * 7 % 251) as u8).collect());
    let pictures: Vec<Picture> = small(3)
        .into_iter()
        .zip([0, 0, 1])
        .map(|(picture, seed)| picture.with_alpha(plane(seed)).unwrap())
        .collect();
    let files = files(&pictures, &quality(30));
    let mut decoder = SequenceDecoder::new();
    for (file, picture) in files.iter().zip(&pictures) {
        let shown = decoder.decode(file, &DecodeOptions::default()).unwrap();
        assert_eq!(shown.alpha(), picture.alpha());
    }
    let has_alpha = |file: &[u8]| {
        let chunks = Decoder::new(file).unwrap().into_chunks().unwrap();
        chunks.iter().any(|chunk| chunk.name() == "alpha plane")
    };
    assert_eq!(files.iter().map(|file| has_alpha(file)).collect::<Vec<_>>(), [true, false, true]);
}

#[test]
fn another_size_or_a_restart_begins_with_a_key_picture() {
    let mut encoder = SequenceEncoder::new(built_in(backends()[0])).unwrap();
    let mut key = |picture: &Picture, restart: bool| {
        if restart {
            encoder.restart();
        }
        !encoder.encode(picture, &quality(30)).unwrap().delta
    };
    let (small, other) = (scene(60, 40), scene(61, 40));
    assert!(key(&small, false) && !key(&small, false));
    assert!(key(&other, false) && !key(&other, false));
    assert!(key(&other, true));
    let alpha = other.clone().with_alpha(Alpha::Eight(vec![9; 61 * 40])).unwrap();
    assert!(key(&alpha, false) && key(&other, false));
}

#[test]
fn a_delta_picture_without_its_reference_is_an_error_that_names_it() {
    let files = files(&small(4), &quality(40));
    let options = DecodeOptions::default();
    let wanted = |n: usize| ReferenceName::of(&files[n]);
    let missing = |error: Error| match error {
        Error::MissingReference { wanted, found } => (wanted, found),
        other => panic!("{other}"),
    };
    let error = decode(&files[1], &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Reference);
    assert!(error.to_string().contains(&wanted(0).to_string()), "{error}");
    let mut checked = Decoder::new(&files[1][..]).unwrap();
    assert_eq!(checked.reference().unwrap(), Some(wanted(0)));
    assert_eq!(checked.verify(&options).unwrap_err().kind(), ErrorKind::Reference);

    // One picture is lost: the next one says so, and when the lost one comes after all, everything goes on.
    let mut decoder = SequenceDecoder::new();
    assert_eq!(missing(decoder.decode(&files[1], &options).unwrap_err()), (wanted(0), None));
    decoder.decode(&files[0], &options).unwrap();
    assert_eq!(missing(decoder.decode(&files[2], &options).unwrap_err()), (wanted(1), Some(wanted(0))));
    decoder.decode(&files[1], &options).unwrap();
    let before = pixel_sum(&decoder.decode(&files[2], &options).unwrap());
    // And a key picture starts anew at any time.
    for file in &files[..2] {
        decoder.decode(file, &options).unwrap();
    }
    assert_eq!(pixel_sum(&decoder.decode(&files[2], &options).unwrap()), before);
}

#[test]
fn a_model_without_trained_tables_makes_no_sequences() {
    let error = SequenceEncoder::new(blocks(backends()[0])).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Parameter);
    assert!(error.to_string().contains("blocks"), "{error}");
}

#[test]
fn every_flipped_bit_and_every_cut_of_a_delta_picture_is_an_error() {
    let files = files(&small(2), &quality(30));
    let options = DecodeOptions::default().with_threads(1);
    let reference = {
        let mut decoder = Decoder::new(&files[0][..]).unwrap();
        decoder.follow(None, &options).unwrap().unwrap()
    };
    let try_decode = |file: &[u8]| Decoder::new(file)?.follow(Some(&reference), &options).map(drop);
    try_decode(&files[1]).unwrap();
    for bit in 0..8 * files[1].len() {
        let mut bad = files[1].clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(try_decode(&bad).is_err(), "bit {bit}");
    }
    for cut in 0..files[1].len() {
        assert!(try_decode(&files[1][..cut]).is_err(), "cut at {cut}");
    }
}

/// The files and sums of a sequence that must decode as it did when it was made; written anew, as the other vectors are, with
/// `BLESS=1`.
#[test]
fn the_sequence_of_the_vectors_decodes_to_its_sums() {
    let place = folder("sequence");
    let name = |n: usize| place.join(format!("{n}.sdl"));
    if bless() {
        std::fs::create_dir_all(&place).unwrap();
        let mut sums = String::new();
        let mut decoder = SequenceDecoder::new();
        for (n, file) in files(&small(4), &quality(40)).iter().enumerate() {
            std::fs::write(name(n), file).unwrap();
            sums += &(pixel_sum(&decoder.decode(file, &DecodeOptions::default()).unwrap()) + "\n");
        }
        std::fs::write(place.join("sha256"), sums).unwrap();
    }
    let sums = std::fs::read_to_string(place.join("sha256")).unwrap();
    let mut decoder = SequenceDecoder::new();
    for (n, sum) in sums.lines().enumerate() {
        let file = std::fs::read(name(n)).unwrap();
        assert_eq!(is_delta(&file), n > 0);
        assert_eq!(pixel_sum(&decoder.decode(&file, &DecodeOptions::default()).unwrap()), sum, "picture {n}");
    }
    assert_eq!(sums.lines().count(), 4);
}

/// The chunks of a file with the data of its last one changed, under right checksums.
fn with_payload(file: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut container = sdl_tests::Container::parse(file);
    change(&mut container.chunks.last_mut().unwrap().1);
    container.to_bytes()
}

#[test]
fn hostile_data_under_right_checksums_is_an_error_and_never_a_panic() {
    let files = files(&small(2), &quality(30));
    let options = DecodeOptions::default().with_threads(1);
    let reference = {
        let mut decoder = Decoder::new(&files[0][..]).unwrap();
        decoder.follow(None, &options).unwrap().unwrap()
    };
    let sound = {
        let mut decoder = Decoder::new(&files[1][..]).unwrap();
        decoder.follow(Some(&reference), &options).unwrap();
        decoder.decode(&options).unwrap()
    };
    let mut random = Random::new(11);
    for _ in 0..300 {
        let bad = with_payload(&files[1], |payload| {
            for _ in 0..=random.below(4) {
                let at = 4 + random.below(payload.len() - 4);
                payload[at] ^= 1 << random.below(8);
            }
        });
        let mut decoder = Decoder::new(&bad[..]).unwrap();
        // Two changes may undo each other, and the last bits of a range coder may say the same in two ways.
        if decoder.follow(Some(&reference), &options).is_ok() {
            assert!(decoder.decode(&options).unwrap().pixels() == sound.pixels());
        }
    }
    let short = with_payload(&files[1], |payload| payload.truncate(3));
    assert!(Decoder::new(&short[..]).unwrap().follow(Some(&reference), &options).is_err());
}
