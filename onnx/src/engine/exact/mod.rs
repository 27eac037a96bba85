//! The exact engine: graphs of integers, in the form of docs/FORMAT.md section 5.5, without a runtime.
//!
//! `messages` reads the file of such a graph, and `graph` makes of it, once, a `program`, a list of steps on bytes with the channels
//! last; `stream` runs them, and `gradient` goes back through them. `kernel` and `depthwise` have the loops, `tiles` those of matrix
//! units, `lines` what only moves bytes, and `aligned` the memory for all of it. The form fixes every bit, so that this engine may be
//! asked instead of any other one; what is not wholly of it is left to the others.

mod aligned;
mod depthwise;
mod gradient;
mod graph;
mod kernel;
mod lines;
mod messages;
mod program;
mod stream;
mod tiles;

use std::fmt;

use program::{Input, Program};

use super::signature::Signature;
use super::source::Model;
use crate::{Error, Graph, GraphSource, Tensor, TensorView, ValueInfo, ViewData};

const NAME: &str = "the exact engine";

/// A graph that this engine can run here, or `None`: another one says what is wrong with it.
pub(super) fn load(source: &GraphSource) -> Option<Box<dyn Graph>> {
    let isa = kernel::Isa::find()?;
    let read;
    let bytes: &[u8] = match source.model() {
        Model::Bytes { model, external } if external.is_empty() => model,
        Model::File { model, external } if external.is_empty() => {
            read = std::fs::read(model).ok()?;
            &read
        }
        _ => return None,
    };
    super::wire::check(bytes, source).ok()?;
    let (program, inputs, outputs) = graph::compile(isa, &messages::Graph::of_model(bytes)?)?;
    let signature = Signature { graph: source.name().to_owned(), inputs, outputs };
    Some(Box::new(ExactGraph { program, isa, signature }))
}

/// What it runs on here.
pub(super) fn vectors() -> Option<&'static str> {
    kernel::Isa::find().map(|isa| match isa {
        kernel::Isa::Amx => "AVX-512 with AMX",
        kernel::Isa::Vnni => "AVX-512 with VNNI",
        kernel::Isa::Avx2 => "AVX2",
    })
}

struct ExactGraph {
    program: Program,
    isa: kernel::Isa,
    signature: Signature,
}

impl fmt::Debug for ExactGraph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExactGraph").field("signature", &self.signature).finish_non_exhaustive()
    }
}

impl Graph for ExactGraph {
    fn inputs(&self) -> &[ValueInfo] {
        &self.signature.inputs
    }

    fn outputs(&self) -> &[ValueInfo] {
        &self.signature.outputs
    }

    fn run(&self, inputs: &[(&str, TensorView<'_>)], outputs: &[&str]) -> Result<Vec<Tensor>, Error> {
        self.signature.check(inputs, outputs)?;
        let [(_, input)] = inputs else { return Err(self.failed("it has one input")) };
        let (input, size) = self.input(input)?;
        let output = self.program.run(self.isa, input, size)?;
        // There is one output, and whoever asks twice gets it twice.
        Ok(vec![output; outputs.len()])
    }

    fn gradient(
        &self,
        input: &TensorView<'_>,
        loss: &mut dyn FnMut(&Tensor) -> Vec<f32>,
    ) -> Option<Result<Vec<f32>, Error>> {
        let gradient = || {
            let [info] = &self.signature.inputs[..] else { return Err(self.failed("it has one input")) };
            let outputs = self.signature.outputs.iter().map(|output| output.name.as_str());
            self.signature.check(&[(&info.name, *input)], &outputs.collect::<Vec<_>>())?;
            let (input, size) = self.input(input)?;
            self.program.gradient(self.isa, input, size, loss)
        };
        self.program.is_differentiable().then(gradient)
    }
}

impl ExactGraph {
    fn failed(&self, reason: &str) -> Error {
        Error::Run { graph: self.signature.graph.clone(), engine: NAME.to_owned(), reason: reason.to_owned() }
    }

    /// What lies in the input, and its height and width.
    fn input<'a>(&self, view: &TensorView<'a>) -> Result<(Input<'a>, (usize, usize)), Error> {
        let failed = |reason: &str| self.failed(reason);
        let &[1, a, b, c] = view.shape() else { return Err(failed("its input is one picture")) };
        // Bytes have their channels last.
        let (input, height, width) = match (view.data(), self.program.of_bytes) {
            (ViewData::F32(values), false) => (Input::Values(values), b, c),
            (ViewData::I16(integers), false) => (Input::Integers(integers), b, c),
            (ViewData::U8(bytes), true) => (Input::Bytes(bytes), a, b),
            _ => return Err(failed("its input is of another type")),
        };
        if height == 0 || width == 0 {
            return Err(failed("its input is empty"));
        }
        let stride = self.program.stride;
        if !height.is_multiple_of(stride) || !width.is_multiple_of(stride) {
            return Err(failed(&format!(
                "its input is {height}x{width}, and both must be multiples of {stride}"
            )));
        }
        Ok((input, (height, width)))
    }
}

#[cfg(test)]
mod tests {
    use rten_onnx::onnx::{AttributeProto, DataType, GraphProto, ModelProto, NodeProto, TensorProto};

    use super::*;
    use crate::{Manifest, RunOptions, TensorData, role};

    /// Levels of pixels, the same every time, and their shape.
    fn levels(height: usize, width: usize) -> ([usize; 4], Vec<u8>) {
        let values = (0..height * width * 3).map(|i| (i * i / 7 + 31 * i) as u8).collect();
        ([1, height, width, 3], values)
    }

    /// Numbers that a decoder may meet, the same every time; some channels have nothing.
    fn input(graph: &dyn Graph, height: usize, width: usize, spread: i32) -> (Vec<usize>, Vec<f32>) {
        let Some([_, crate::Dimension::Fixed(channels), ..]) = graph.inputs()[0].shape.as_deref() else {
            panic!("an input of fixed channels")
        };
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as i32 % (2 * spread + 1) - spread) as f32
        };
        let is_empty = |i: usize| i / (height * width) % 5 < 2;
        let values = (0..channels * height * width).map(|i| if is_empty(i) { 0.0 } else { next() }).collect();
        (vec![1, *channels, height, width], values)
    }

    /// What the file of such a graph becomes.
    fn compile(isa: kernel::Isa, graph: &GraphProto) -> Option<(Program, Vec<ValueInfo>, Vec<ValueInfo>)> {
        let bytes = ModelProto { graph: Some(graph.clone()), ..Default::default() }.write_buf().unwrap();
        graph::compile(isa, &messages::Graph::of_model(&bytes)?)
    }

    /// A graph of the built-in model.
    fn built_in(role: &str) -> GraphProto {
        let source = crate::builtin().unwrap().graph_source(role).unwrap();
        let Model::Bytes { model, .. } = source.model() else { panic!("built in") };
        ModelProto::parse_buf(model).unwrap().graph.unwrap()
    }

    /// The graph of the built-in decoder.
    fn synthesis() -> GraphProto {
        built_in(role::SYNTHESIS)
    }

    fn node(operator: &str, input: &[&str], output: &str) -> NodeProto {
        NodeProto {
            op_type: Some(operator.to_owned()),
            input: input.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output.to_owned()],
            ..Default::default()
        }
    }

    fn with_integer(name: &str, value: i64) -> AttributeProto {
        AttributeProto { name: Some(name.to_owned()), i: Some(value), ..Default::default() }
    }

    fn initializer<'g>(graph: &'g mut GraphProto, name: &str) -> &'g mut TensorProto {
        graph.initializer.iter_mut().find(|tensor| tensor.name.as_deref() == Some(name)).unwrap()
    }

    #[test]
    fn the_graphs_of_the_built_in_model_give_what_rten_gives_with_every_kind_of_vector() {
        let bundle = crate::builtin().unwrap();
        let manifest: &Manifest = bundle.manifest();
        let roles = [role::SYNTHESIS, role::SYNTHESIS_NATURAL, role::HYPER_SYNTHESIS];
        for role in roles.into_iter().filter(|role| manifest.graphs.contains_key(*role)) {
            let source = bundle.graph_source(role).unwrap();
            let other = super::super::rten::load(&source, &RunOptions::default()).unwrap();
            let Some(best) = kernel::Isa::find() else { return };
            let Model::Bytes { model, .. } = source.model() else { panic!("built in") };
            let model = ModelProto::parse_buf(model).unwrap();
            // The last one goes through in several bands.
            for (height, width, spread) in [(1, 1, 40), (3, 7, 127), (8, 5, 2047), (13, 16, 9), (23, 41, 300)]
            {
                let spread = if role == role::HYPER_SYNTHESIS { spread.min(127) } else { spread };
                let (shape, values) = input(&*other, height, width, spread);
                let integers: Vec<i16> = values.iter().map(|v| *v as i16).collect();
                let view = TensorView::f32(&shape, &values).unwrap();
                let (from, to) = (&other.inputs()[0].name, &other.outputs()[0].name);
                let wanted = other.run(&[(from, view)], &[to]).unwrap();
                for isa in best.and_lesser() {
                    let (program, inputs, outputs) = compile(isa, model.graph.as_ref().unwrap())
                        .unwrap_or_else(|| panic!("{role} is of the exact form"));
                    let signature = Signature { graph: role.to_owned(), inputs, outputs };
                    let graph = ExactGraph { program, isa, signature };
                    assert_eq!(graph.inputs(), other.inputs());
                    let found = graph.run(&[(from, view)], &[to]).unwrap();
                    assert_eq!(found[0].shape(), wanted[0].shape(), "{role} {height}x{width}");
                    assert!(found == wanted, "{role} {height}x{width} {isa:?}");
                    let found =
                        graph.run(&[(from, TensorView::i16(&shape, &integers).unwrap())], &[to]).unwrap();
                    assert!(found == wanted, "{role} {height}x{width} {isa:?}, of 16 bits");
                    assert!(matches!(found[0].data(), TensorData::U8(_) | TensorData::F32(_)));
                }
            }
        }
    }

    #[test]
    fn a_damaged_graph_is_left_to_others_or_runs_without_a_panic() {
        let bundle = crate::builtin().unwrap();
        for (role, height, width) in [(role::HYPER_SYNTHESIS, 2, 3), (role::ANALYSIS, 32, 48)] {
            let source = bundle.graph_source(role).unwrap();
            let Model::Bytes { model, .. } = source.model() else { panic!("built in") };
            let mut state = 7usize;
            let mut next = |below: usize| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 33) % below
            };
            let mut ran = 0;
            for round in 0..600 {
                let mut bytes = model.to_vec();
                for _ in 0..1 + round % 4 {
                    // Nodes and names stand at the ends, weights in between.
                    let (length, edge) = (bytes.len(), 6000);
                    let at = if next(2) == 0 { next(edge) } else { length - 1 - next(edge) };
                    bytes[at] ^= 1 << next(8);
                }
                let damaged = GraphSource::bytes("damaged", bytes);
                let Some(graph) = load(&damaged) else { continue };
                let (shape, values, bytes);
                let view = if graph.inputs()[0].element_type == Some(crate::ElementType::U8) {
                    (shape, bytes) = levels(height, width);
                    TensorView::u8(&shape, &bytes)
                } else {
                    let made = input(&*graph, height, width, 100);
                    (shape, values) = (made.0.try_into().unwrap(), made.1);
                    TensorView::f32(&shape, &values)
                };
                let Ok(view) = view else { continue };
                let (from, to) = (graph.inputs()[0].name.clone(), graph.outputs()[0].name.clone());
                ran += u32::from(graph.run(&[(&from, view)], &[&to]).is_ok());
            }
            assert!(ran > 0, "some bits of {role} change nothing but a name or a weight");
        }
    }

    #[test]
    fn the_analysis_of_the_built_in_model_is_that_of_rten_but_for_the_order_of_its_last_sums() {
        let bundle = crate::builtin().unwrap();
        let source = bundle.graph_source(role::ANALYSIS).unwrap();
        let other = super::super::rten::load(&source, &RunOptions::default()).unwrap();
        let Some(ours) = load(&source) else { return };
        let (from, to) = ("picture", "latent");
        for (height, width) in [(16, 16), (48, 80), (160, 32)] {
            let (shape, values) = levels(height, width);
            let view = TensorView::u8(&shape, &values).unwrap();
            let wanted = other.run(&[(from, view)], &[to]).unwrap().remove(0);
            let found = ours.run(&[(from, view)], &[to]).unwrap().remove(0);
            assert_eq!(found.shape(), wanted.shape());
            let (found, wanted) = (found.into_f32().unwrap(), wanted.into_f32().unwrap());
            let furthest = found.iter().zip(wanted.iter()).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(furthest < 1e-4, "{height}x{width}: {furthest}");
        }
        let (shape, values) = levels(17, 16);
        let view = TensorView::u8(&shape, &values).unwrap();
        assert!(ours.run(&[(from, view)], &[to]).unwrap_err().to_string().contains("multiples of 16"));
    }

    #[test]
    fn a_convolution_that_skips_only_rows_or_only_columns_is_left_to_others() {
        let Some(isa) = kernel::Isa::find() else { return };
        for axis in [0, 1] {
            let graph = &mut synthesis();
            assert!(compile(isa, graph).is_some());
            let mut attributes = graph.node.iter_mut().flat_map(|node| &mut node.attribute);
            let strides = attributes.find(|a| a.name.as_deref() == Some("strides")).unwrap();
            strides.ints[axis] = 2;
            assert!(compile(isa, graph).is_none());
        }
    }

    #[test]
    fn a_constant_without_a_zero_point_has_one_of_0() {
        let Some(isa) = kernel::Isa::find() else { return };
        let graph = &mut synthesis();
        let wanted = format!("{:?}", compile(isa, graph).unwrap());
        let of_constants = |node: &&mut rten_onnx::onnx::NodeProto| {
            node.op_type.as_deref() == Some("DequantizeLinear")
                && node.attribute.iter().any(|a| a.name.as_deref() == Some("axis"))
        };
        graph.node.iter_mut().filter(of_constants).for_each(|node| node.input.truncate(2));
        assert!(format!("{:?}", compile(isa, graph).unwrap()) == wanted);
        // Bytes that are computed have one of 128.
        let of_bytes = |node: &&mut rten_onnx::onnx::NodeProto| {
            node.op_type.as_deref() == Some("DequantizeLinear") && node.input.len() == 3
        };
        graph.node.iter_mut().find(of_bytes).unwrap().input.truncate(2);
        assert!(compile(isa, graph).is_none());
    }

    #[test]
    fn an_attribute_that_changes_what_a_node_does_is_left_to_others() {
        let Some(isa) = kernel::Isa::find() else { return };
        let compiles = |operator: &str, attributes: &[AttributeProto]| {
            let graph = &mut synthesis();
            let node = graph.node.iter_mut().find(|node| node.op_type.as_deref() == Some(operator)).unwrap();
            node.attribute.extend_from_slice(attributes);
            compile(isa, graph).is_some()
        };
        for operator in ["DequantizeLinear", "QuantizeLinear"] {
            assert!(compiles(operator, &[with_integer("block_size", 0)]));
            assert!(!compiles(operator, &[with_integer("block_size", 16)]));
        }
        assert!(!compiles("Shape", &[with_integer("end", 2)]));
        // Twice is once too often: which one counts?
        assert!(!compiles("DequantizeLinear", &[with_integer("axis", 0)]));
        // A scale for each block has as many axes as the weights.
        let graph = &mut synthesis();
        let scale = graph.node[0].input[1].clone();
        initializer(graph, &scale).dims.extend([1, 1, 1]);
        assert!(compile(isa, graph).is_none());
    }

    #[test]
    fn a_value_is_clipped_in_place_only_where_nobody_else_sees_it() {
        let Some(isa) = kernel::Isa::find() else { return };
        let compiles = |change: &dyn Fn(&mut GraphProto)| {
            let mut graph = built_in(role::HYPER_SYNTHESIS);
            change(&mut graph);
            compile(isa, &graph).is_some()
        };
        let clip = |input: &str, output: &str| {
            let last = built_in(role::HYPER_SYNTHESIS).node.pop().unwrap();
            assert_eq!(last.op_type.as_deref(), Some("Clip"));
            node("Clip", &[input, &last.input[1], &last.input[2]], output)
        };
        let rounded = built_in(role::HYPER_SYNTHESIS).node.pop().unwrap().input[0].clone();
        assert!(compiles(&|_| {}));
        // One behind the other, one beside the other, and one beside the output.
        assert!(!compiles(&|graph| {
            graph.node.last_mut().unwrap().output[0] = "once".to_owned();
            graph.node.push(clip("once", "mean"));
        }));
        assert!(!compiles(&|graph| graph.node.push(clip(&rounded, "other"))));
        assert!(!compiles(&|graph| {
            graph.node.last_mut().unwrap().output[0] = "other".to_owned();
            graph.output[0].name = Some(rounded.clone());
        }));
    }

    #[test]
    fn a_shape_has_no_more_sizes_than_a_tensor_has_axes() {
        let Some(isa) = kernel::Isa::find() else { return };
        let compiles = |sizes: i64| {
            let graph = &mut synthesis();
            graph.initializer.push(TensorProto {
                name: Some("sizes".to_owned()),
                data_type: Some(DataType::INT64),
                dims: vec![sizes],
                int64_data: vec![1; sizes as usize],
                ..Default::default()
            });
            let twice = NodeProto {
                attribute: vec![with_integer("axis", 0)],
                ..node("Concat", &["sizes", "sizes"], "twice")
            };
            graph.node.insert(0, twice);
            compile(isa, graph).is_some()
        };
        assert!(compiles(4) && !compiles(5));
    }

    #[test]
    fn a_node_that_leads_nowhere_changes_nothing() {
        let Some(isa) = kernel::Isa::find() else { return };
        let graph = &mut synthesis();
        let wanted = compile(isa, graph).unwrap().0.steps.len();
        // The last product once more, of the bytes that come out.
        let last = graph.node.len() - 1;
        let quantised = graph.node[last].input[0].clone();
        let quantise = graph.node.iter().find(|node| node.output[0] == quantised).unwrap().clone();
        let [scale, zero] = [1, 2].map(|at| quantise.input[at].as_str());
        let by = initializer(graph, scale).raw_data.as_ref().unwrap().borrow().to_vec();
        let mut constant = |name: &str, kind: DataType, dims: &[i64], raw: Vec<u8>| {
            graph.initializer.push(TensorProto {
                name: Some(name.to_owned()),
                data_type: Some(kind),
                dims: dims.to_vec(),
                raw_data: Some(raw.into()),
                ..Default::default()
            });
        };
        let one = 1f32.to_le_bytes();
        constant("dead_w", DataType::INT8, &[48, 48, 1, 1], vec![0; 48 * 48]);
        constant("dead_ws", DataType::FLOAT, &[48], one.repeat(48));
        constant("dead_b", DataType::INT32, &[48], vec![0; 4 * 48]);
        constant("dead_bs", DataType::FLOAT, &[48], by.repeat(48));
        let axis = |node: NodeProto| NodeProto { attribute: vec![with_integer("axis", 0)], ..node };
        graph.node.extend([
            node("DequantizeLinear", &[&quantised, scale, zero], "dead_1"),
            axis(node("DequantizeLinear", &["dead_w", "dead_ws"], "dead_2")),
            axis(node("DequantizeLinear", &["dead_b", "dead_bs"], "dead_3")),
            node("Conv", &["dead_1", "dead_2", "dead_3"], "dead_4"),
            node("QuantizeLinear", &["dead_4", scale, zero], "dead_5"),
        ]);
        let (program, inputs, outputs) = compile(isa, graph).expect("it is of the exact form");
        assert_eq!(program.steps.len(), wanted);
        let graph =
            ExactGraph { program, isa, signature: Signature { graph: "dead".to_owned(), inputs, outputs } };
        let (shape, values) = input(&graph, 2, 3, 300);
        let view = TensorView::f32(&shape, &values).unwrap();
        assert!(graph.run(&[("latent", view)], &["pixels"]).is_ok());
    }

    #[test]
    fn a_decoder_whose_sums_are_not_exact_is_left_to_others() {
        let Some(isa) = kernel::Isa::find() else { return };
        for role in [role::SYNTHESIS, role::HYPER_SYNTHESIS] {
            let mut graph = built_in(role);
            assert!(compile(isa, &graph).is_some(), "{role}");
            // The bias of the first product: a unit that is no multiple of the weights' leaves no room for the sums.
            let first = graph.node.iter().find(|node| node.op_type.as_deref() == Some("Conv")).unwrap();
            let bias = first.input[2].clone();
            let bias = initializer(&mut graph, &bias);
            let mut raw = bias.raw_data.as_ref().unwrap().borrow().to_vec();
            raw[..4].copy_from_slice(&1.1f32.to_le_bytes());
            bias.raw_data = Some(raw.into());
            assert!(compile(isa, &graph).is_none(), "{role}");
        }
    }

    #[test]
    fn weights_of_two_digits_are_those_of_floating_point() {
        let Some(isa) = kernel::Isa::find() else { return };
        let run = |graph: &rten_onnx::onnx::GraphProto| {
            let (program, inputs, outputs) = compile(isa, graph)?;
            let signature = Signature { graph: "digits".to_owned(), inputs, outputs };
            let graph = ExactGraph { program, isa, signature };
            let (shape, values) = input(&graph, 3, 5, 300);
            let view = TensorView::f32(&shape, &values).unwrap();
            Some(graph.run(&[("latent", view)], &["pixels"]).unwrap())
        };
        let graph = &mut synthesis();
        let wanted = run(graph).unwrap();
        // The first convolution's weights are a sum of digits.
        let maker = |graph: &rten_onnx::onnx::GraphProto, name: &str| {
            graph.node.iter().find(|node| node.output[0] == name).unwrap().input.clone()
        };
        let first =
            graph.node.iter().position(|node| node.input.first().is_some_and(|name| name == "latent"));
        let first = first.unwrap();
        let digits: Vec<[String; 2]> = maker(graph, &graph.node[first].input[1])
            .iter()
            .map(|digit| maker(graph, digit).try_into().expect("integers and scales"))
            .collect();
        let tensor = |graph: &rten_onnx::onnx::GraphProto, name: &String| {
            let tensor = graph.initializer.iter().find(|tensor| tensor.name.as_ref() == Some(name)).unwrap();
            (tensor.dims.clone(), tensor.raw_data.as_ref().unwrap().borrow().to_vec())
        };
        let mut dims = Vec::new();
        let mut sum: Vec<f32> = Vec::new();
        for [integers, scales] in &digits {
            let (shape, bytes) = tensor(graph, integers);
            let (_, scales) = tensor(graph, scales);
            let scales = scales.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            let rows = bytes.chunks_exact(bytes.len() / shape[0] as usize).zip(scales);
            let values = rows.flat_map(|(row, scale)| row.iter().map(move |&b| f32::from(b as i8) * scale));
            sum =
                if sum.is_empty() { values.collect() } else { values.zip(sum).map(|(a, b)| a + b).collect() };
            dims = shape;
        }
        let float = TensorProto {
            name: Some("float".to_owned()),
            data_type: Some(DataType::FLOAT),
            dims,
            raw_data: Some(sum.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>().into()),
            ..Default::default()
        };
        graph.initializer.push(float);
        let sum = std::mem::replace(&mut graph.node[first].input[1], "float".to_owned());
        assert!(run(graph).expect("it is of the exact form") == wanted);
        // Digits of other shapes are not those of one weight.
        graph.node[first].input[1] = sum;
        let low = graph.initializer.iter_mut().find(|t| t.name.as_ref() == Some(&digits[1][0])).unwrap();
        low.dims = vec![low.dims[0], low.dims[1] / 2, 2, 1];
        assert!(run(graph).is_none());
    }

    #[test]
    fn a_graph_of_floating_point_is_left_to_others() {
        let bundle = crate::builtin().unwrap();
        assert!(load(&bundle.graph_source(role::HYPER_ANALYSIS).unwrap()).is_none());
    }
}
