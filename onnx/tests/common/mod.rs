//! What the tests share.
#![allow(dead_code)]

use std::path::PathBuf;

use sdl_onnx::{Backend, Error, GraphSource, RunOptions};

pub fn data(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join("data").join(name)
}

pub fn source(name: &str) -> GraphSource {
    GraphSource::file(data(name))
}

pub fn with(backend: Backend, threads: usize) -> RunOptions {
    RunOptions { backend, threads, ..RunOptions::default() }
}

/// The backends to test: always Rust, and ONNX Runtime where it is found. Where it is not, this says so; with
/// `SDL_REQUIRE_ORT=1` it fails.
pub fn backends() -> Vec<Backend> {
    match sdl_onnx::engine(Backend::OnnxRuntime) {
        Ok(_) => vec![Backend::OnnxRuntime, Backend::Rust],
        Err(error @ Error::Library(_)) => {
            assert!(std::env::var_os("SDL_REQUIRE_ORT").is_none_or(|value| value != "1"), "{error}");
            eprintln!("\n=== SKIPPED: no ONNX Runtime, tested the Rust backend alone ===\n{error}\n");
            vec![Backend::Rust]
        }
        Err(error) => panic!("{error}"),
    }
}

/// A field of a protobuf message that has bytes in it.
pub fn field(number: u8, content: &[u8]) -> Vec<u8> {
    let mut bytes = vec![number << 3 | 2];
    let mut length = content.len();
    while length > 0x7f {
        bytes.push(length as u8 | 0x80);
        length >>= 7;
    }
    bytes.push(length as u8);
    bytes.extend(content);
    bytes
}

/// An ONNX model of the content of its graph.
pub fn model(graph: &[u8]) -> Vec<u8> {
    let operators = field(8, &[16, 20]);
    [vec![8, 10], operators, field(7, &[&field(2, b"g"), graph].concat())].concat()
}

/// The generator of `tests/data/make.py`.
pub struct Numbers(pub u32);

impl Numbers {
    pub fn between(&mut self, low: i64, high: i64) -> i64 {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        low + i64::from(self.0 >> 16) % (high - low + 1)
    }
}
