//! Time of encoding and decoding, whole and by stage, on one thread, with each engine there is.
//!
//! `cargo bench -p image-sdl --bench codec`; ONNX Runtime is measured where it is found (`ORT_DYLIB_PATH`).

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use image::imageops::{FilterType, resize};
use image_sdl::onnx::{self, Backend};
use image_sdl::{
    Colour, DecodeOptions, Decoder, EncodeOptions, Model, Picture, Settings, StageTimes, encode_with,
    register,
};

const SIZES: [(u32, u32); 2] = [(768, 512), (1920, 1080)];
const QUALITY: u8 = 50;

/// The engines that are there, with their names.
fn engines() -> Vec<(&'static str, Model)> {
    let named = [("onnxruntime", Backend::OnnxRuntime), ("rust", Backend::Rust)];
    let found = named.into_iter().filter(|(name, backend)| match onnx::engine(*backend) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("=== SKIPPED: {name}: {error} ===");
            false
        }
    });
    let model = |backend| {
        let settings = Settings { backend, ..Settings::default() };
        Model::with_settings(onnx::builtin().expect("a built-in model"), settings).expect("its tables")
    };
    found.map(|(name, backend)| (name, model(backend))).collect()
}

/// The photograph of the tests, resized.
fn picture(width: u32, height: u32) -> Picture {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/pictures/nyc.png");
    let photograph = image::open(path).expect("the photograph").into_rgb8();
    let pixels = resize(&photograph, width, height, FilterType::CatmullRom).into_raw();
    Picture::new(width, height, Colour::Rgb, pixels).expect("a picture")
}

fn encode_options() -> EncodeOptions {
    EncodeOptions::default().with_quality(QUALITY).with_threads(1)
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    group.sample_size(10);
    for (width, height) in SIZES {
        let picture = picture(width, height);
        group.throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        for (name, model) in engines() {
            model.warm_up().expect("the graphs load");
            group.bench_function(BenchmarkId::new(name, format!("{width}x{height}")), |bencher| {
                bencher.iter(|| encode_with(&model, black_box(&picture), &encode_options()).expect("a file"));
            });
        }
    }
    group.finish();
}

/// What is left of a decode without graphs and entropy coding: chunks, tiles, copies.
fn rest(times: &StageTimes) -> Duration {
    times.total.saturating_sub(times.hyper_synthesis + times.entropy + times.synthesis)
}

/// A name, and the part of the time that it stands for.
type Stage = (&'static str, fn(&StageTimes) -> Duration);

const STAGES: [Stage; 5] = [
    ("whole", |times| times.total),
    ("hyper-synthesis", |times| times.hyper_synthesis),
    ("entropy", |times| times.entropy),
    ("synthesis", |times| times.synthesis),
    ("rest", rest),
];

fn decode(criterion: &mut Criterion) {
    let options = DecodeOptions::default().with_threads(1);
    for (width, height) in SIZES {
        let mut group = criterion.benchmark_group(format!("decode {width}x{height}"));
        group.sample_size(10);
        group.throughput(Throughput::Elements(u64::from(width) * u64::from(height)));
        let picture = picture(width, height);
        for (name, model) in engines() {
            let file = encode_with(&model, &picture, &encode_options()).expect("a file").bytes;
            // Held while measuring: graphs live as long as somebody uses them.
            let mut keep = Decoder::new(&file[..]).expect("a header").with_model(model.clone());
            keep.decode(&options).expect("a picture");
            for (stage, part) in STAGES {
                group.bench_function(BenchmarkId::new(name, stage), |bencher| {
                    bencher.iter_custom(|count| {
                        let once = || {
                            let decoder = Decoder::new(black_box(&file[..])).expect("a header");
                            let mut decoder = decoder.with_model(model.clone());
                            black_box(decoder.decode(&options).expect("a picture"));
                            // Criterion cannot plan with a time of zero.
                            part(&decoder.stage_times()).max(Duration::from_nanos(1))
                        };
                        (0..count).map(|_| once()).sum()
                    });
                });
            }
        }
        group.finish();
    }
}

fn dimensions(criterion: &mut Criterion) {
    register();
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("picture.sdl");
    let (_, model) = engines().into_iter().next().expect("an engine");
    let (width, height) = SIZES[0];
    let file = encode_with(&model, &picture(width, height), &encode_options()).expect("a file").bytes;
    std::fs::write(&path, file).expect("the file is written");
    criterion.bench_function("image_dimensions of a file", |bencher| {
        bencher.iter(|| image::image_dimensions(black_box(&path)).expect("dimensions"));
    });
}

criterion_group!(benches, encode, decode, dimensions);
criterion_main!(benches);
