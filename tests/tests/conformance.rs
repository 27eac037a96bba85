//! Every vector decodes to its sum, whatever decodes it.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]

use std::io::{self, Read};
use std::process::Command;
use std::sync::Arc;

use image_sdl::onnx::{Backend, RunOptions, role};
use image_sdl::{DecodeOptions, decode, encode_with};
use sdl_tests::{
    Container, Vector, backends, bless, blocks, built_in, decoder, folder, options, photograph, pixel_sum,
    read_vectors, recipes, write_vectors,
};

/// The index; written anew, once, with `BLESS=1`.
fn vectors() -> Vec<Vector> {
    static BLESSED: std::sync::Once = std::sync::Once::new();
    BLESSED.call_once(|| {
        if bless() {
            write_vectors();
        }
    });
    read_vectors()
}

#[test]
fn every_vector_decodes_to_its_sums_with_every_engine_on_one_and_two_threads() {
    for backend in backends() {
        for vector in vectors() {
            let bytes = vector.read();
            for threads in [1, 2] {
                let picture = decoder(&bytes[..], backend)
                    .and_then(|mut decoder| decoder.decode(&options(backend, threads)))
                    .unwrap_or_else(|error| panic!("{}, {backend:?}: {error}", vector.file));
                let found = Vector::of(&vector.file, vector.bundle.as_deref(), &picture);
                assert_eq!(found, vector, "{backend:?}, {threads} threads");
            }
        }
    }
}

#[test]
fn there_is_a_vector_for_every_recipe_and_no_other_file() {
    let listed: Vec<String> = vectors().into_iter().map(|vector| vector.file).collect();
    let made: Vec<String> = recipes().iter().map(|recipe| format!("{}.sdl", recipe.name)).collect();
    assert_eq!(listed, made);
    let mut there: Vec<String> = std::fs::read_dir(folder("vectors"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name != "vectors.toml")
        .collect();
    there.sort();
    let mut sorted = made;
    sorted.sort();
    assert_eq!(there, sorted, "remove the files that no recipe makes");
}

#[test]
fn alpha_and_metadata_of_a_vector_are_those_of_its_source() {
    let vectors = vectors();
    for recipe in recipes() {
        let vector = vectors.iter().find(|v| v.file == format!("{}.sdl", recipe.name)).unwrap();
        let bytes = vector.read();
        let picture = decoder(&bytes[..], Backend::Rust).unwrap().decode(&options(Backend::Rust, 1)).unwrap();
        assert_eq!(picture.alpha(), recipe.source.alpha(), "{}", recipe.name);
        assert_eq!(picture.metadata, recipe.source.metadata, "{}", recipe.name);
        let header = decoder(&bytes[..], Backend::Rust).unwrap().header().clone();
        assert_eq!(header.duration, recipe.options.duration, "{}", recipe.name);
    }
}

#[test]
fn a_container_read_from_its_description_is_written_back_byte_for_byte() {
    for vector in vectors() {
        let bytes = vector.read();
        assert_eq!(Container::parse(&bytes).to_bytes(), bytes, "{}", vector.file);
    }
}

/// Gives one byte at a time, and is interrupted in front of each.
struct Trickle<'a> {
    bytes: &'a [u8],
    interrupted: bool,
}

impl Read for Trickle<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.interrupted = !self.interrupted;
        if self.interrupted {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let count = buffer.len().min(1);
        self.bytes.read(&mut buffer[..count])
    }
}

#[test]
fn a_reader_that_gives_one_byte_at_a_time_gives_the_same_picture() {
    for vector in vectors().into_iter().filter(|vector| vector.width < 500) {
        let bytes = vector.read();
        let mut decoder = decoder(Trickle { bytes: &bytes, interrupted: false }, Backend::Rust).unwrap();
        let picture = decoder.decode(&options(Backend::Rust, 1)).unwrap();
        assert_eq!(pixel_sum(&picture), vector.sha256, "{}", vector.file);
    }
}

#[test]
fn metadata_may_be_asked_for_before_the_picture() {
    for vector in vectors().into_iter().filter(|vector| vector.icc.is_some()) {
        let bytes = vector.read();
        let mut decoder = decoder(&bytes[..], Backend::Rust).unwrap();
        let metadata = decoder.metadata().unwrap().clone();
        let picture = decoder.decode(&options(Backend::Rust, 1)).unwrap();
        assert_eq!(picture.metadata, metadata);
        assert_eq!(pixel_sum(&picture), vector.sha256, "{}", vector.file);
    }
}

#[test]
fn a_picture_of_several_tiles_is_the_same_bytes_from_one_thread_and_from_three() {
    let source = photograph(0, 0, 1050, 300);
    let foreign = photograph(0, 0, 600, 530);
    for (model, source) in [(built_in(Backend::Auto), source), (blocks(Backend::Auto), foreign)] {
        let options = |threads| image_sdl::EncodeOptions::default().with_quality(30).with_threads(threads);
        let one = encode_with(&model, &source, &options(1)).unwrap().bytes;
        let three = encode_with(&model, &source, &options(3)).unwrap().bytes;
        assert!(one == three, "files differ");
        let pixels = |threads| {
            let mut decoder = decoder(&one[..], Backend::Auto).unwrap();
            decoder.decode(&DecodeOptions::default().with_threads(threads)).unwrap()
        };
        assert!(pixels(1) == pixels(3), "pixels differ");
    }
}

#[test]
fn graphs_of_a_small_bundle_stay_loaded_for_the_next_picture() {
    let bytes = vectors().into_iter().find(|vector| vector.file == "1x1.sdl").unwrap().read();
    decode(&bytes, &options(Backend::Rust, 1)).unwrap();
    for role in [role::SYNTHESIS, role::HYPER_SYNTHESIS] {
        let run = RunOptions { backend: Backend::Rust, threads: 1, ..RunOptions::default() };
        let graph = image_sdl::onnx::builtin().unwrap().graph(role, &run).unwrap();
        let weak = Arc::downgrade(&graph);
        drop(graph);
        assert!(weak.upgrade().is_some(), "nobody holds {role}");
    }
}

/// Set in the processes that [`in_a_process_of_its_own`] starts.
const INSIDE: &str = "SDL_TESTS_INSIDE";

/// Runs one test of this file again with other environment variables: a process cannot change its own safely.
fn in_a_process_of_its_own(test: &str, variables: &[(&str, &std::path::Path)]) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(INSIDE, "1").envs(variables.iter().copied());
    let output = command.output().unwrap();
    let words =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && words.contains("1 passed"), "{words}");
}

#[test]
fn a_bundle_in_the_folder_of_models_is_found_by_the_id_in_the_file() {
    let test = "a_bundle_in_the_folder_of_models_is_found_by_the_id_in_the_file";
    if std::env::var_os(INSIDE).is_none() {
        _ = vectors();
        return in_a_process_of_its_own(test, &[("SDL_MODEL_DIR", &folder("bundles"))]);
    }
    for vector in read_vectors().into_iter().filter(|vector| vector.bundle.is_some()) {
        let picture = decode(&vector.read(), &options(Backend::Rust, 1)).unwrap();
        assert_eq!(pixel_sum(&picture), vector.sha256, "{}", vector.file);
    }
}

#[test]
fn a_bundle_that_is_nowhere_is_an_error_that_names_it_and_what_to_do() {
    let test = "a_bundle_that_is_nowhere_is_an_error_that_names_it_and_what_to_do";
    if std::env::var_os(INSIDE).is_none() {
        _ = vectors();
        let empty = tempfile::tempdir().unwrap();
        return in_a_process_of_its_own(test, &[("SDL_MODEL_DIR", empty.path())]);
    }
    let vector = read_vectors().into_iter().find(|vector| vector.bundle.is_some()).unwrap();
    let error = decode(&vector.read(), &options(Backend::Rust, 1)).unwrap_err();
    assert_eq!(error.kind(), image_sdl::ErrorKind::Model, "{error}");
    let id: String = blocks(Backend::Rust).bundle().id().short().iter().map(|b| format!("{b:02x}")).collect();
    let words = error.to_string();
    assert!(words.contains(&id) && words.contains("sdl model import"), "{words}");
    // A new file also gives the name; another bundle of that name is not taken for it.
    let source = photograph(0, 0, 32, 32);
    let bytes =
        encode_with(&blocks(Backend::Rust), &source, &image_sdl::EncodeOptions::default()).unwrap().bytes;
    let said = |bytes: &[u8]| decode(bytes, &options(Backend::Rust, 1)).unwrap_err().to_string();
    let words = said(&bytes);
    let store = std::env::var("SDL_MODEL_DIR").unwrap();
    assert!(words.contains(&format!("blocks@1 (id {id})")) && words.contains(&store), "{words}");
    let other = std::path::Path::new(&store).join("blocks");
    std::fs::create_dir(&other).unwrap();
    for entry in std::fs::read_dir(folder("bundles").join("blocks")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), other.join(entry.file_name())).unwrap();
    }
    std::fs::write(other.join("more.txt"), "another content").unwrap();
    let words = said(&bytes);
    assert!(words.contains("is not used") && words.contains("another content"), "{words}");
    // One that lies under the name of the right one is found out when it is opened.
    let claimed = format!("blocks@1.{}", blocks(Backend::Rust).bundle().id());
    std::fs::rename(&other, std::path::Path::new(&store).join(claimed)).unwrap();
    assert!(said(&bytes).contains("its name says"), "{}", said(&bytes));
}
