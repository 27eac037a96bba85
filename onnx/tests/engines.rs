//! Both engines on real graphs, against a reference in plain integers.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Barrier;

use common::{Numbers, backends, field, source, with};
use sdl_onnx::{Backend, Dimension, ElementType, Graph, RunOptions, Tensor, TensorView, engine};

fn load(backend: Backend, name: &str, threads: usize) -> Box<dyn Graph> {
    engine(backend).unwrap().load(&source(name), &with(backend, threads)).unwrap()
}

/// A picture of `channels` x `height` x `width` bytes.
struct Plane {
    channels: usize,
    height: usize,
    width: usize,
    bytes: Vec<u8>,
}

impl Plane {
    fn at(&self, channel: usize, y: isize, x: isize, outside: u8) -> u8 {
        let (inside_y, inside_x) = (usize::try_from(y), usize::try_from(x));
        match (inside_y, inside_x) {
            (Ok(y), Ok(x)) if y < self.height && x < self.width => {
                self.bytes[(channel * self.height + y) * self.width + x]
            }
            _ => outside,
        }
    }
}

/// `integer_layer` of tests/data/make.py.
struct Layer {
    inputs: usize,
    outputs: usize,
    kernel: usize,
    group: usize,
    zero_in: u8,
    zero_out: u8,
    weights: Vec<i64>,
    shifts: Vec<i64>,
    bias: Vec<i64>,
}

impl Layer {
    fn new(
        numbers: &mut Numbers,
        channels: (usize, usize),
        kernel: usize,
        group: usize,
        zeros: (u8, u8),
    ) -> Self {
        let (inputs, outputs) = channels;
        let count = outputs * (inputs / group) * kernel * kernel;
        let weights = (0..count).map(|_| numbers.between(-64, 64)).collect();
        let shifts = (0..outputs).map(|_| 6 + numbers.between(0, 2)).collect();
        let bias = (0..outputs).map(|_| numbers.between(-3000, 3000)).collect();
        Layer { inputs, outputs, kernel, group, zero_in: zeros.0, zero_out: zeros.1, weights, shifts, bias }
    }

    /// acc = conv + bias; round half to even of acc / 2^shift; clip.
    fn run(&self, from: &Plane) -> Plane {
        let (height, width) = (from.height, from.width);
        let (in_group, out_group) = (self.inputs / self.group, self.outputs / self.group);
        let mut bytes = Vec::new();
        for output in 0..self.outputs {
            let first = output / out_group * in_group;
            for y in 0..height as isize {
                for x in 0..width as isize {
                    let mut sum = self.bias[output];
                    for input in 0..in_group {
                        for dy in 0..self.kernel {
                            for dx in 0..self.kernel {
                                let weight = self.weights
                                    [((output * in_group + input) * self.kernel + dy) * self.kernel + dx];
                                let (at_y, at_x) = (y + dy as isize, x + dx as isize);
                                let half = (self.kernel / 2) as isize;
                                let value = from.at(first + input, at_y - half, at_x - half, self.zero_in);
                                sum += weight * (i64::from(value) - i64::from(self.zero_in));
                            }
                        }
                    }
                    let rounded = half_to_even(sum, self.shifts[output]);
                    bytes.push((rounded + i64::from(self.zero_out)).clamp(0, 255) as u8);
                }
            }
        }
        Plane { channels: self.outputs, height, width, bytes }
    }
}

fn half_to_even(value: i64, shift: i64) -> i64 {
    let (floor, rest, half) = (value >> shift, value & ((1 << shift) - 1), 1 << (shift - 1));
    floor + i64::from(rest > half || (rest == half && floor & 1 == 1))
}

/// DepthToSpace, mode CRD, blocks of 2: channel c * 4 + dy * 2 + dx.
fn depth_to_space(from: &Plane) -> Plane {
    let (channels, height, width) = (from.channels / 4, from.height * 2, from.width * 2);
    let mut bytes = Vec::new();
    for channel in 0..channels {
        for y in 0..height {
            for x in 0..width {
                let source = channel * 4 + y % 2 * 2 + x % 2;
                bytes.push(from.at(source, (y / 2) as isize, (x / 2) as isize, 0));
            }
        }
    }
    Plane { channels, height, width, bytes }
}

fn integer_decoder(latent: Plane) -> Plane {
    let mut numbers = Numbers(1);
    let layers = [
        Layer::new(&mut numbers, (16, 24), 1, 1, (128, 0)),
        Layer::new(&mut numbers, (24, 24), 3, 24, (0, 128)),
        Layer::new(&mut numbers, (24, 24), 5, 24, (128, 128)),
        Layer::new(&mut numbers, (24, 24), 1, 4, (128, 128)),
        Layer::new(&mut numbers, (24, 12), 1, 1, (128, 128)),
    ];
    depth_to_space(&layers.iter().fold(latent, |plane, layer| layer.run(&plane)))
}

fn latent(height: usize, width: usize) -> Plane {
    let mut numbers = Numbers(9);
    let bytes = (0..16 * height * width).map(|_| numbers.between(0, 255) as u8).collect();
    Plane { channels: 16, height, width, bytes }
}

#[test]
fn an_integer_decoder_gives_the_same_integers_in_both_engines_and_in_plain_rust() {
    for backend in backends() {
        for threads in [1, 2] {
            let graph = load(backend, "integer_decoder.onnx", threads);
            // Sizes around those of vector registers, and one that changes from run to run.
            for (height, width) in [(1, 1), (3, 5), (8, 8), (17, 31), (4, 64)] {
                let input = latent(height, width);
                let shape = [1, 16, height, width];
                let view = TensorView::u8(&shape, &input.bytes).unwrap();
                let outputs = graph.run(&[("latent", view)], &["pixels"]).unwrap();
                let expected = integer_decoder(latent(height, width));
                assert_eq!(outputs[0].shape(), [1, 3, 2 * height, 2 * width]);
                let bytes = outputs[0].as_u8().unwrap();
                assert!(bytes == expected.bytes, "{backend}, {threads} threads, {height} x {width}");
            }
        }
    }
    // The reference must be worth agreeing with: not a flat picture.
    let mut values = integer_decoder(latent(8, 8)).bytes;
    values.sort_unstable();
    values.dedup();
    assert!(values.len() > 50, "{} values", values.len());
}

#[test]
fn both_engines_run_the_operators_of_exported_decoders_alike() {
    let mut numbers = Numbers(5);
    let values: Vec<f32> = (0..8 * 6 * 10).map(|_| numbers.between(-255, 255) as f32).collect();
    let mut all: Vec<Vec<Tensor>> = Vec::new();
    for backend in backends() {
        let graph = load(backend, "operators.onnx", 1);
        let view = TensorView::f32(&[1, 8, 6, 10], &values).unwrap();
        let outputs = graph.run(&[("x", view)], &["bytes", "wide", "turned"]).unwrap();
        assert_eq!(outputs[0].shape(), [1, 8, 6, 10]);
        assert_eq!(outputs[1].shape(), [1, 2, 12, 20]);
        assert_eq!(outputs[2].shape(), [1, 4, 2, 60]);
        all.push(outputs);
    }
    assert!(all.windows(2).all(|pair| pair[0] == pair[1]));
}

#[test]
fn halves_are_rounded_to_even_and_the_zero_point_is_added_after() {
    let halves: Vec<f32> = (-300..300).map(|value| value as f32 / 2.0).collect();
    for backend in backends() {
        let graph = load(backend, "rounding.onnx", 1);
        // One value at a time takes the scalar tail of a vector loop, all of them take its body.
        for chunk in [1, 7, 600] {
            for values in halves.chunks(chunk) {
                let shape = [values.len()];
                let view = TensorView::f32(&shape, values).unwrap();
                let outputs = graph.run(&[("x", view)], &["rounded", "quantised"]).unwrap();
                let rounded: Vec<f32> = values.iter().map(|value| value.round_ties_even()).collect();
                let quantised: Vec<u8> =
                    rounded.iter().map(|value| (value + 128.0).clamp(0.0, 255.0) as u8).collect();
                assert_eq!(outputs[0].as_f32().unwrap(), rounded, "{backend}");
                assert_eq!(outputs[1].as_u8().unwrap(), quantised, "{backend}");
            }
        }
    }
}

#[test]
fn a_graph_says_what_it_takes_and_returns() {
    for backend in backends() {
        let graph = load(backend, "integer_decoder.onnx", 1);
        let [input] = graph.inputs() else { panic!("one input") };
        assert_eq!((input.name.as_str(), input.element_type), ("latent", Some(ElementType::U8)));
        let shape = input.shape.as_ref().unwrap();
        assert_eq!(shape[..2], [Dimension::Fixed(1), Dimension::Fixed(16)]);
        assert_eq!(shape[2], Dimension::Any("h".to_owned()));
        assert_eq!(graph.outputs()[0].name, "pixels");
        assert_eq!(graph.outputs()[0].shape.as_ref().unwrap().len(), 4);
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused_in_the_same_words_by_both_engines() {
    for backend in backends() {
        let graph = load(backend, "integer_decoder.onnx", 1);
        let message = |name, view| graph.run(&[(name, view)], &["pixels"]).unwrap_err().to_string();
        let bytes = [0; 16 * 4];
        let good = TensorView::u8(&[1, 16, 2, 2], &bytes).unwrap();
        let floats = [0.0; 16 * 4];
        assert!(message("x", good).ends_with("input `x`: the graph has no such input; it has latent"));
        assert!(
            message("latent", TensorView::f32(&[1, 16, 2, 2], &floats).unwrap())
                .ends_with("the graph wants u8, and f32 was given")
        );
        assert!(
            message("latent", TensorView::u8(&[1, 8, 4, 2], &bytes).unwrap())
                .contains("the graph wants shape [1, 16, h, w], and [1, 8, 4, 2] was given")
        );
        assert!(message("latent", TensorView::u8(&[64], &bytes).unwrap()).contains("and [64] was given"));
        assert!(graph.run(&[], &["pixels"]).unwrap_err().to_string().ends_with("input `latent`: not given"));
        assert!(
            graph.run(&[("latent", good)], &["depth"]).unwrap_err().to_string().ends_with("it has pixels"),
            "{backend}"
        );
        // And after all this it still works.
        assert!(graph.run(&[("latent", good)], &["pixels"]).is_ok());
    }
}

#[test]
fn a_timestep_may_be_given_in_32_or_64_bits() {
    for backend in backends() {
        let graph = load(backend, "denoiser.onnx", 1);
        let shape = [1, 2, 1, 2];
        let sample = TensorView::f32(&shape, &[1.0, 2.0, 3.0, 4.0]).unwrap();
        let embedding = TensorView::f32(&[1, 1, 1, 1], &[0.5]).unwrap();
        for step in [TensorView::i64(&[1], &[7]).unwrap(), TensorView::i32(&[1], &[7]).unwrap()] {
            let inputs = [("sample", sample), ("timestep", step), ("embedding", embedding)];
            let outputs = graph.run(&inputs, &["prediction"]).unwrap();
            assert_eq!(outputs[0].as_f32().unwrap(), [7.5, 14.5, 21.5, 28.5], "{backend}");
        }
    }
}

#[test]
fn what_a_graph_takes_in_floating_point_may_be_given_in_16_bits() {
    for backend in backends() {
        let graph = load(backend, "denoiser.onnx", 1);
        let shape = [1, 2, 1, 2];
        let embedding = TensorView::f32(&[1, 1, 1, 1], &[0.5]).unwrap();
        let step = TensorView::i64(&[1], &[7]).unwrap();
        for sample in [
            TensorView::f32(&shape, &[1.0, -2.0, 3.0, 4.0]).unwrap(),
            TensorView::i16(&shape, &[1, -2, 3, 4]).unwrap(),
        ] {
            let inputs = [("sample", sample), ("timestep", step), ("embedding", embedding)];
            let outputs = graph.run(&inputs, &["prediction"]).unwrap();
            assert_eq!(outputs[0].as_f32().unwrap(), [7.5, -13.5, 21.5, 28.5], "{backend}");
        }
    }
}

#[test]
fn many_threads_run_one_graph_at_the_same_time() {
    const CALLERS: usize = 8;
    for backend in backends() {
        let graph = load(backend, "integer_decoder.onnx", 1);
        let expected = integer_decoder(latent(16, 16)).bytes;
        let together = Barrier::new(CALLERS);
        std::thread::scope(|scope| {
            for _ in 0..CALLERS {
                scope.spawn(|| {
                    let input = latent(16, 16);
                    together.wait();
                    for _ in 0..4 {
                        let view = TensorView::u8(&[1, 16, 16, 16], &input.bytes).unwrap();
                        let outputs = graph.run(&[("latent", view)], &["pixels"]).unwrap();
                        assert!(outputs[0].as_u8().unwrap() == expected);
                    }
                });
            }
        });
    }
}

#[test]
fn external_data_is_found_beside_the_graph_and_in_memory() {
    let mut numbers = Numbers(3);
    let weights: Vec<f32> = (0..16).map(|_| numbers.between(-8, 8) as f32).collect();
    let input = [1.0, 2.0, 3.0, 4.0];
    let expected: Vec<f32> =
        weights.chunks(4).map(|row| row.iter().zip(input).map(|(w, x)| w * x).sum()).collect();
    let bytes = |name| std::fs::read(common::data(name)).unwrap();
    let sources = [
        source("external.onnx"),
        source("external.onnx").with_external_file("external.onnx.data"),
        sdl_onnx::GraphSource::bytes("in memory", bytes("external.onnx"))
            .with_external("external.onnx.data", bytes("external.onnx.data")),
    ];
    for backend in backends() {
        for (at, source) in sources.iter().enumerate() {
            let graph = engine(backend).unwrap().load(source, &with(backend, 1)).unwrap();
            let view = TensorView::f32(&[1, 4, 1, 1], &input).unwrap();
            let outputs = graph.run(&[("x", view)], &["y"]).unwrap();
            assert_eq!(outputs[0].as_f32().unwrap(), expected, "{backend}, source {at}");
        }
    }
}

#[test]
fn bytes_that_are_no_graph_are_an_error_that_names_graph_and_engine() {
    for backend in backends() {
        for bytes in [
            &b""[..],
            b"this is no graph",
            &[0xff; 64],
            &std::fs::read(common::data("operators.onnx")).unwrap()[..900],
        ] {
            let source = sdl_onnx::GraphSource::bytes("broken.onnx", bytes.to_vec());
            let error = engine(backend).unwrap().load(&source, &with(backend, 1)).unwrap_err().to_string();
            assert!(error.contains("broken.onnx") && error.contains("cannot load"), "{error}");
        }
    }
}

/// One `Relu` behind the other, from x to y.
fn chain(count: usize) -> sdl_onnx::GraphSource {
    let name = |at: usize| {
        if at == 0 {
            "x".to_owned()
        } else if at == count {
            "y".to_owned()
        } else {
            at.to_string()
        }
    };
    let node = |at: usize| {
        let ports = [field(1, name(at).as_bytes()), field(2, name(at + 1).as_bytes())].concat();
        field(1, &[ports, field(4, b"Relu")].concat())
    };
    let port = |number: u8, name: &str| {
        let shape = field(2, &field(1, &[8, 1]));
        let tensor = field(2, &field(1, &[vec![8, 1], shape].concat()));
        field(number, &[field(1, name.as_bytes()), tensor].concat())
    };
    let nodes: Vec<u8> = (0..count).flat_map(node).collect();
    let graph = [nodes, port(11, "x"), port(12, "y")].concat();
    sdl_onnx::GraphSource::bytes("chain", common::model(&graph))
}

/// In a test's thread, whose stack is a quarter of the main one's.
#[test]
fn a_chain_of_nodes_runs_or_is_refused_and_does_not_overflow_the_stack() {
    let options = with(Backend::Rust, 1);
    let engine = engine(Backend::Rust).unwrap();
    let graph = engine.load(&chain(4000), &options).unwrap();
    let view = TensorView::f32(&[1], &[7.0]).unwrap();
    assert_eq!(graph.run(&[("x", view)], &["y"]).unwrap()[0].as_f32().unwrap(), [7.0]);
    for count in [4001, 20_000] {
        let message = engine.load(&chain(count), &options).unwrap_err().to_string();
        assert!(message.contains(&format!("it has {count} nodes")), "{message}");
    }
}

#[test]
fn a_provider_that_is_not_there_is_an_error_that_names_it() {
    if backends().len() < 2 {
        return;
    }
    for provider in ["cuda", "tensorrt", "coreml", "directml", "openvino", "xnnpack", "webgpu", "abacus"] {
        let options = RunOptions { provider: Some(provider.to_owned()), ..RunOptions::default() };
        let result = sdl_onnx::engine_for(&options).unwrap().load(&source("rounding.onnx"), &options);
        let compiled = sdl_onnx::providers().contains(&(provider, true));
        match result {
            Ok(_) => assert!(compiled, "{provider}"),
            Err(error) => assert!(error.to_string().contains(&format!("`{provider}`")), "{error}"),
        }
    }
    let cpu = RunOptions { provider: Some("CPU".to_owned()), ..RunOptions::default() };
    assert!(sdl_onnx::engine_for(&cpu).unwrap().load(&source("rounding.onnx"), &cpu).is_ok());
}

/// Graphs come from files of other people: loading a broken one may fail, and may not hang, crash or take all memory.
#[test]
fn no_single_changed_byte_of_a_graph_stops_the_process() {
    for name in ["operators.onnx", "rounding.onnx", "external.onnx"] {
        let good = std::fs::read(common::data(name)).unwrap();
        for at in 0..good.len() {
            for value in [0, 0x7f, 0xff, good[at] ^ 1] {
                let mut bytes = good.clone();
                bytes[at] = value;
                let source = sdl_onnx::GraphSource::bytes("changed", bytes);
                let _ = engine(Backend::Rust).unwrap().load(&source, &with(Backend::Rust, 1));
            }
        }
    }
}
