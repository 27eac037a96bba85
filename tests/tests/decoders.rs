//! A bundle with two decoders: which one makes the pixels.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use image_sdl::onnx::{Backend, Bundle};
use image_sdl::{
    BundleRef, DecodeOptions, Decoder, EncodeOptions, Error, ErrorKind, Model, Picture, Settings, Synthesis,
    encode_with,
};
use sdl_tests::{backends, blocks, built_in, folder, options, photograph, psnr};

/// The bundle `blocks` with a second decoder that is 28 steps of 255 darker.
fn two_decoders() -> (tempfile::TempDir, Model) {
    let graph = std::fs::read(folder("bundles").join("blocks").join("synthesis.onnx")).unwrap();
    let middle = 128f32.to_le_bytes();
    let at = graph.windows(4).position(|bytes| bytes == middle).unwrap();
    let mut darker = graph;
    darker[at..at + 4].copy_from_slice(&100f32.to_le_bytes());
    blocks_with(&darker)
}

/// The bundle `blocks` with a second decoder.
fn blocks_with(natural: &[u8]) -> (tempfile::TempDir, Model) {
    let place = tempfile::tempdir().unwrap();
    let from = folder("bundles").join("blocks");
    for name in ["analysis.onnx", "synthesis.onnx"] {
        std::fs::copy(from.join(name), place.path().join(name)).unwrap();
    }
    std::fs::write(place.path().join("natural.onnx"), natural).unwrap();
    let manifest = std::fs::read_to_string(from.join("bundle.toml")).unwrap()
        + "\n[graphs.\"synthesis.natural\"]\nfile = \"natural.onnx\"\n";
    std::fs::write(place.path().join("bundle.toml"), manifest).unwrap();
    let packed = place.path().join("two.sdlm");
    Bundle::write_sdlm(place.path(), &packed).unwrap();
    let settings = Settings { backend: Backend::Rust, ..Settings::default() };
    let model = Model::with_settings(Bundle::open(packed).unwrap(), settings).unwrap();
    // Graphs are loaded when they are first used: the file must still be there.
    (place, model)
}

fn decode(model: &Model, bytes: &[u8], options: &DecodeOptions) -> Result<Picture, Error> {
    Decoder::new(bytes)?.with_model(model.clone()).decode(options)
}

fn mean(picture: &Picture) -> f64 {
    picture.pixels().iter().map(|&v| f64::from(v)).sum::<f64>() / picture.pixels().len() as f64
}

#[test]
fn the_author_chooses_the_decoder_and_the_reader_may_choose_another() {
    let (_place, model) = two_decoders();
    let source = photograph(60, 40, 64, 48);
    let plain = options(Backend::Rust, 1);
    for meant in [Synthesis::Fidelity, Synthesis::Natural] {
        let bytes =
            encode_with(&model, &source, &EncodeOptions::default().with_synthesis(meant)).unwrap().bytes;
        let header = Decoder::new(&bytes[..]).unwrap().header().clone();
        assert_eq!(header.natural, meant == Synthesis::Natural);
        assert!(matches!(header.bundle, BundleRef::Named(_)));
        let by = |synthesis| decode(&model, &bytes, &plain.clone().with_synthesis(synthesis)).unwrap();
        let (fidelity, natural) = (by(Synthesis::Fidelity), by(Synthesis::Natural));
        let darker = mean(&fidelity) - mean(&natural);
        assert!((20.0..=28.5).contains(&darker), "{darker}");
        let unasked = decode(&model, &bytes, &plain).unwrap();
        assert!(unasked == if meant == Synthesis::Natural { natural } else { fidelity });
    }
}

#[test]
fn a_decoder_that_the_bundle_does_not_have_is_an_error_where_it_is_asked_for() {
    let model = blocks(Backend::Rust);
    let source = photograph(60, 40, 32, 32);
    let natural = EncodeOptions::default().with_synthesis(Synthesis::Natural);
    let error = encode_with(&model, &source, &natural).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model);
    assert!(error.to_string().contains("`synthesis.natural`"), "{error}");

    let bytes = encode_with(&model, &source, &EncodeOptions::default()).unwrap().bytes;
    let plain = options(Backend::Rust, 1);
    let error = decode(&model, &bytes, &plain.clone().with_synthesis(Synthesis::Natural)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model);
    assert!(error.to_string().contains("`synthesis.natural`"), "{error}");

    // A wish of the author alone is none: the format says that `fidelity` takes its place.
    let mut container = sdl_tests::Container::parse(&bytes);
    container.header[13] |= 4;
    let wished = decode(&model, &container.to_bytes(), &plain).unwrap();
    assert!(wished == decode(&model, &bytes, &plain).unwrap());
}

#[test]
fn a_decoder_that_nobody_asks_for_is_not_loaded() {
    let (_place, model) = blocks_with(b"no graph");
    let source = photograph(60, 40, 32, 32);
    let bytes = encode_with(&model, &source, &EncodeOptions::default()).unwrap().bytes;
    let plain = options(Backend::Rust, 1);
    decode(&model, &bytes, &plain).unwrap();
    let error = decode(&model, &bytes, &plain.with_synthesis(Synthesis::Natural)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Model, "{error}");
}

#[test]
fn the_built_in_model_has_both_decoders_for_the_same_bits() {
    let backend = backends()[0];
    let (model, source) = (built_in(backend), photograph(60, 40, 200, 140));
    let plain = options(backend, 1);
    let encode = |meant| {
        let options = EncodeOptions::default().with_quality(30).with_synthesis(meant);
        encode_with(&model, &source, &options).unwrap().bytes
    };
    let (fidelity, natural) = (encode(Synthesis::Fidelity), encode(Synthesis::Natural));
    // They differ in a flag, and in the sums of the chunks, which are over the header too.
    assert_eq!(fidelity.len(), natural.len());
    let [mut one, other] = [&fidelity, &natural].map(|bytes| sdl_tests::Container::parse(bytes));
    one.header[13] |= 4;
    assert_eq!(one.to_bytes(), other.to_bytes());

    let as_meant = [&fidelity, &natural].map(|bytes| decode(&model, bytes, &plain).unwrap());
    for bytes in [&fidelity, &natural] {
        for (synthesis, expected) in [Synthesis::Fidelity, Synthesis::Natural].into_iter().zip(&as_meant) {
            assert!(decode(&model, bytes, &plain.clone().with_synthesis(synthesis)).unwrap() == *expected);
        }
    }
    assert!(as_meant[0] != as_meant[1]);
    let [fidelity, natural] = as_meant.map(|picture| psnr(source.pixels(), picture.pixels()));
    assert!((natural - fidelity).abs() < 2.0, "{natural} dB and {fidelity} dB");
}

#[test]
fn only_the_built_in_model_is_called_by_its_generation() {
    let ours = image_sdl::onnx::builtin().unwrap();
    let place = tempfile::tempdir().unwrap();
    let copy = |name: &str, changed: bool| {
        let to = place.path().join(name);
        std::fs::create_dir(&to).unwrap();
        for (file, _) in ours.entries() {
            let mut bytes = ours.read(file).unwrap().to_vec();
            if file == "bundle.toml" && changed {
                bytes.extend_from_slice(b"\n# Another one.\n");
            }
            std::fs::write(to.join(file), bytes).unwrap();
        }
        Model::with_settings(Bundle::open(&to).unwrap(), Settings::default()).unwrap()
    };
    assert!(matches!(copy("same", false).reference(), BundleRef::BuiltIn(_)));
    // Its manifest has a generation as well, and its files would be decoded by the model in the program.
    let other = copy("other", true);
    assert!(other.bundle().manifest().builtin.is_some());
    assert_eq!(other.reference(), BundleRef::Named(other.bundle().id().short()));
}

#[test]
fn the_built_in_model_is_found_by_its_own_name() {
    let ours = image_sdl::onnx::builtin().unwrap();
    let label = ours.manifest().label();
    for name in ["", "builtin", ours.manifest().name.as_str(), label.as_str()] {
        assert_eq!(Model::find(name, Settings::default()).unwrap().bundle().id(), ours.id(), "{name}");
    }
}
