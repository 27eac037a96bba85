//! From a graph to steps.
//!
//! A quantised graph says `DequantizeLinear, Conv, QuantizeLinear` where one product of integers is meant, and moves axes about so that
//! runtimes find what they like. Reading follows the values through all that, one node after the other, in a form of its own ([`Value`]):
//! what is a convention becomes nothing, what is arithmetic becomes a [`Step`]. Every node must be understood, else there is no program.

use std::collections::HashMap;
use std::rc::Rc;

use rten_onnx::onnx::{AttributeProto, DataType, GraphProto, NodeProto, TensorProto, ValueInfoProto};

use super::kernel::{self, Isa, LANES, Lie, Matrix, Requantiser};
use crate::memory::zeros;
use crate::{Dimension, ElementType, Error, Tensor, ValueInfo};

/// No decoder makes more pixels of a latent position, each way; a graph that does is after memory.
const LARGEST_FACTOR: usize = 256;

/// Bytes and the real numbers that they stand for: (byte - zero) * scale.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Scale {
    scale: f32,
    zero: u8,
}

/// Where a register stands: (H * factor, W * factor, channels), H and W being those of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    register: usize,
    channels: usize,
    factor: usize,
}

/// The order in which the graph sees a value; in its register the channels are always last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    /// (1, C, H, W)
    First,
    /// (1, H, W, C)
    Last,
    /// (1, H * W, C)
    Flat,
    /// (H, W, block, block, C): a space of channels that is about to become one of pixels.
    Blocks(usize),
    /// (H, block, W, block, C)
    Rows(usize),
}

/// A size in a shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Size {
    Fixed(i64),
    /// So many times the height of the input.
    Height(i64),
    Width(i64),
}

/// What a name of the graph stands for.
#[derive(Debug, Clone)]
enum Value {
    /// The input, (1, C, H, W).
    Input {
        channels: usize,
    },
    Constant(Constant),
    /// Weights with a scale for each output channel.
    Weights {
        shape: Vec<usize>,
        values: Rc<Vec<i8>>,
        scales: Rc<Vec<f32>>,
    },
    Bias {
        values: Vec<i32>,
        scales: Rc<Vec<f32>>,
    },
    Wide(Place, Order),
    Bytes(Place, Order, Scale),
    /// Bytes behind a `DequantizeLinear`.
    Real(Place, Order, Scale),
    /// A convolution of integers that waits for the scale of its output.
    Sums {
        of: Place,
        kind: Kind,
        bias: Vec<i32>,
        scales: Vec<f32>,
    },
    Shape(Vec<Size>),
}

#[derive(Debug, Clone)]
enum Constant {
    Floats(Vec<usize>, Rc<Vec<f32>>),
    Bytes(Vec<u8>),
    Weights(Vec<usize>, Rc<Vec<i8>>),
    Words(Vec<i32>),
    Sizes(Vec<i64>),
}

/// What a convolution of integers is.
#[derive(Debug, Clone)]
enum Kind {
    /// 1x1, (N, K).
    Pointwise(Rc<Vec<i8>>),
    /// 3x3, (9, C), and the byte that stands for 0 outside.
    Depthwise(Rc<Vec<i8>>, u8),
}

/// What is done, register to register.
#[derive(Debug)]
enum Step {
    /// The input times floating-point weights (K, N).
    FromInput {
        weights: Vec<f32>,
        bias: Vec<f32>,
        to: Place,
    },
    /// The same of bytes.
    FromBytes {
        of: Place,
        scale: Scale,
        weights: Vec<f32>,
        bias: Vec<f32>,
        to: Place,
    },
    Pointwise {
        of: Place,
        matrix: Matrix,
        requantiser: Requantiser,
        to: Place,
    },
    /// `of` is unfolded first, if `unfolding` says how.
    Depthwise {
        of: Place,
        unfolding: Option<Unfolding>,
        weights: Vec<i32>,
        border: u8,
        requantiser: Requantiser,
        to: Place,
    },
    Quantise {
        of: Place,
        scale: Scale,
        to: Place,
    },
    /// `to` is `of`, which nobody reads again, plus bytes.
    Add {
        of: Place,
        bytes: Place,
        scale: Scale,
        to: Place,
    },
    Round {
        of: Place,
        low: f32,
        high: f32,
        to: Place,
    },
    Unfold {
        of: Place,
        unfolding: Unfolding,
        to: Place,
    },
}

/// Channels to pixels, in blocks of `block` x `block`: (block, block, C), or with `apart` (C, block, block).
#[derive(Debug, Clone, Copy)]
struct Unfolding {
    block: usize,
    apart: bool,
}

impl Step {
    /// Whether it is a depthwise step that unfolds `place`.
    fn unfolds(&self, place: Place) -> bool {
        matches!(self, Step::Depthwise { of, unfolding: Some(_), .. } if *of == place)
    }

    fn writes(&self) -> Place {
        match self {
            Step::FromInput { to, .. }
            | Step::FromBytes { to, .. }
            | Step::Pointwise { to, .. }
            | Step::Depthwise { to, .. }
            | Step::Quantise { to, .. }
            | Step::Add { to, .. }
            | Step::Round { to, .. }
            | Step::Unfold { to, .. } => *to,
        }
    }

    /// The registers that it reads.
    fn reads(&self) -> [Option<usize>; 2] {
        match self {
            Step::FromInput { .. } => [None, None],
            Step::Add { of, bytes, .. } => [Some(of.register), Some(bytes.register)],
            Step::FromBytes { of, .. }
            | Step::Pointwise { of, .. }
            | Step::Depthwise { of, .. }
            | Step::Quantise { of, .. }
            | Step::Round { of, .. }
            | Step::Unfold { of, .. } => [Some(of.register), None],
        }
    }
}

/// Whether one of the steps reads a register.
fn is_read(register: usize, steps: &[Step]) -> bool {
    steps.iter().any(|step| step.reads().contains(&Some(register)))
}

/// A graph as steps.
#[derive(Debug)]
pub(super) struct Program {
    steps: Vec<Step>,
    channels: usize,
    output: Output,
}

/// What comes out, and how.
#[derive(Debug, Clone, Copy)]
enum Output {
    /// (1, H, W, C)
    Bytes(Place),
    /// (1, C, H, W)
    Wide(Place),
}

/// A register that is filled.
enum Memory {
    Wide(Vec<f32>),
    Bytes(Vec<u8>),
}

impl Program {
    /// The program of a graph with its inputs and outputs.
    pub fn compile(graph: &GraphProto) -> Option<(Self, Vec<ValueInfo>, Vec<ValueInfo>)> {
        let ([input], [output]) = (&graph.input[..], &graph.output[..]) else { return None };
        let (input_info, output_info) = (info(input)?, info(output)?);
        let channels = match input_info.shape.as_deref()? {
            [Dimension::Fixed(1), Dimension::Fixed(channels), ..] if *channels > 0 => *channels,
            _ => return None,
        };
        let mut reader = Reader { values: HashMap::new(), steps: Vec::new(), registers: 0 };
        for tensor in &graph.initializer {
            reader.values.insert(tensor.name.clone()?, Value::Constant(constant(tensor)?));
        }
        reader.values.insert(input_info.name.clone(), Value::Input { channels });
        for node in &graph.node {
            let value = reader.node(node)?;
            let [name] = &node.output[..] else { return None };
            reader.values.insert(name.clone(), value);
        }
        let output = match reader.values.get(&output_info.name)? {
            Value::Bytes(place, Order::Last, _) => Output::Bytes(*place),
            Value::Wide(place, Order::First) => Output::Wide(*place),
            _ => return None,
        };
        if !reader.whole(output) {
            return None;
        }
        let program = Program { steps: reader.steps, channels, output };
        Some((program, vec![input_info], vec![output_info]))
    }

    /// Runs it on `planes`, (C, H, W).
    pub fn run(&self, isa: Isa, planes: &[f32], (height, width): (usize, usize)) -> Result<Tensor, Error> {
        debug_assert_eq!(planes.len(), self.channels * height * width);
        let size = |place: Place| height * width * place.factor * place.factor * place.channels;
        let mut registers = Registers::default();
        let mut rest = &self.steps[..];
        while let Some((step, later)) = rest.split_first() {
            rest = later;
            match step {
                Step::FromInput { weights, bias, to } => {
                    let mut out = registers.new_wide(size(*to));
                    kernel::wide_product(isa, (planes, Lie::Columns), weights, bias, &mut out);
                    registers.fill(to, Memory::Wide(out));
                }
                Step::FromBytes { of, scale, weights, bias, to } => {
                    let last = match rest {
                        [] => Some((*to, None)),
                        [Step::Round { of: rounded, low, high, to: end }] if rounded == to => {
                            Some((*end, Some((*low, *high))))
                        }
                        _ => None,
                    };
                    let from = (registers.bytes(of), of.channels, *scale);
                    // What comes out goes to its planes at once.
                    if let (Some((end, rounding)), Output::Wide(output)) = (last, self.output)
                        && end == output
                    {
                        let (height, width) = (height * end.factor, width * end.factor);
                        let mut planes = zeros(size(end));
                        from_bytes(isa, from, (weights, bias), |first, some| {
                            if let Some((low, high)) = rounding {
                                kernel::round(isa, some, low, high);
                            }
                            transpose_into(some, end.channels, first, &mut planes);
                        });
                        return Tensor::f32([1, end.channels, height, width], planes);
                    }
                    let mut out = vec![0.0; size(*to)];
                    from_bytes(isa, from, (weights, bias), |first, some| {
                        out[first * to.channels..][..some.len()].copy_from_slice(some);
                    });
                    registers.fill(to, Memory::Wide(out));
                }
                Step::Pointwise { of, .. } => {
                    let chain = self.chain(self.steps.len() - rest.len() - 1);
                    rest = &rest[chain.len() - 1..];
                    let to = chain[chain.len() - 1].writes();
                    if let Some((spatial, later)) = rest.split_first()
                        && spatial.unfolds(to)
                        && !is_read(to.register, later)
                    {
                        let used =
                            self.spatial(isa, (height, width), &mut registers, (chain, of), spatial, later);
                        rest = &later[used..];
                    } else {
                        let mut out = registers.new_bytes(size(to));
                        pointwise(isa, registers.bytes(of), chain, &mut out);
                        registers.fill(&to, Memory::Bytes(out));
                    }
                }
                Step::Depthwise { of, .. } => {
                    let used = self.spatial(isa, (height, width), &mut registers, (&[], of), step, later);
                    rest = &later[used..];
                }
                Step::Quantise { of, scale, to } => {
                    let mut out = registers.new_bytes(size(*to));
                    kernel::quantise(isa, registers.wide(of), scale.scale.recip(), scale.zero, &mut out);
                    registers.fill(to, Memory::Bytes(out));
                }
                Step::Add { of, bytes, scale, to } => {
                    let mut values = registers.take_wide(of);
                    kernel::add(isa, &mut values, registers.bytes(bytes), scale.scale, scale.zero);
                    registers.fill(to, Memory::Wide(values));
                }
                Step::Round { of, low, high, to } => {
                    let mut values = registers.take_wide(of);
                    kernel::round(isa, &mut values, *low, *high);
                    registers.fill(to, Memory::Wide(values));
                }
                Step::Unfold { of, unfolding, to } => {
                    let mut out = registers.new_bytes(size(*to));
                    let lines =
                        Lines { bytes: &mut out, line: width * to.factor * to.channels, before: 0, after: 0 };
                    unfolding.write(registers.bytes(of), width * of.factor, of.channels, lines);
                    registers.fill(to, Memory::Bytes(out));
                }
            }
            for register in step.reads().into_iter().flatten().filter(|register| !is_read(*register, rest)) {
                registers.release(register);
            }
        }
        let sides = |place: Place| (height * place.factor, width * place.factor);
        match self.output {
            Output::Bytes(place) => {
                let (height, width) = sides(place);
                let bytes = match registers.filled.remove(&place.register) {
                    Some(Memory::Bytes(bytes)) => bytes,
                    _ => Vec::new(),
                };
                Tensor::u8([1, height, width, place.channels], bytes)
            }
            Output::Wide(place) => {
                let (height, width) = sides(place);
                let planes = transposed(registers.wide(&place), place.channels);
                Tensor::f32([1, place.channels, height, width], planes)
            }
        }
    }

    /// A depthwise step and the pointwise ones that alone read it, some lines at a time: what is between them stays in the cache.
    /// `source` are pointwise steps in front of it, on the bytes that they read. How many of the steps `later` were done with it.
    fn spatial(
        &self,
        isa: Isa,
        (height, width): (usize, usize),
        registers: &mut Registers,
        (source, from): (&[Step], &Place),
        step: &Step,
        later: &[Step],
    ) -> usize {
        let Step::Depthwise { of, unfolding, weights, border, requantiser, to } = step else { return 0 };
        let (row, column) = (width * to.factor, height * to.factor);
        let (line, outer) = (row * to.channels, (row + 2) * to.channels);
        let mut frame = registers.new_bytes((column + 2) * outer);
        let unfolding = unfolding.unwrap_or(Unfolding { block: 1, apart: false });
        let lines = Lines::framed(&mut frame, line, to.channels, *border);
        let (bytes, before) = (registers.bytes(from), width * from.factor);
        if source.is_empty() {
            unfolding.write(bytes, before, of.channels, lines);
        } else {
            let mut made = vec![0; before * of.channels];
            let groups = lines.bytes.chunks_exact_mut(unfolding.block * outer);
            for (bytes, group) in bytes.chunks_exact(before * from.channels).zip(groups) {
                pointwise(isa, bytes, source, &mut made);
                unfolding.write(&made, before, of.channels, Lines { bytes: group, ..lines });
            }
        }
        let chain = self.chain(self.steps.len() - later.len() - 1);
        let last = chain[chain.len() - 1].writes();
        let mut out = registers.new_bytes(column * row * last.channels);
        let band = (TOGETHER / row).max(1);
        let mut between = vec![0; if chain.len() > 1 { band * line } else { 0 }];
        for (at, out) in out.chunks_mut(band * row * last.channels).enumerate() {
            let count = out.len() / (row * last.channels);
            let frame = &frame[at * band * outer..][..(count + 2) * outer];
            if chain.len() > 1 {
                let between = &mut between[..count * line];
                kernel::depthwise(isa, frame, row, weights, requantiser, between);
                pointwise(isa, between, &chain[1..], out);
            } else {
                kernel::depthwise(isa, frame, row, weights, requantiser, out);
            }
        }
        registers.free.push(Memory::Bytes(frame));
        registers.fill(&last, Memory::Bytes(out));
        chain.len() - 1
    }

    /// The step `first` and the pointwise ones behind it that alone read what the one before them writes.
    fn chain(&self, first: usize) -> &[Step] {
        let mut end = first + 1;
        while let Some(Step::Pointwise { of, .. }) = self.steps.get(end)
            && *of == self.steps[end - 1].writes()
            && !is_read(of.register, &self.steps[end + 1..])
        {
            end += 1;
        }
        &self.steps[first..end]
    }
}

/// What steps have left, and memory for the next ones: a picture's worth of fresh memory costs more than a product.
#[derive(Default)]
struct Registers {
    filled: HashMap<usize, Memory>,
    free: Vec<Memory>,
}

impl Registers {
    fn bytes(&self, place: &Place) -> &[u8] {
        match self.filled.get(&place.register) {
            Some(Memory::Bytes(bytes)) => bytes,
            _ => &[],
        }
    }

    fn wide(&self, place: &Place) -> &[f32] {
        match self.filled.get(&place.register) {
            Some(Memory::Wide(values)) => values,
            _ => &[],
        }
    }

    fn take_wide(&mut self, place: &Place) -> Vec<f32> {
        match self.filled.remove(&place.register) {
            Some(Memory::Wide(values)) => values,
            _ => Vec::new(),
        }
    }

    fn fill(&mut self, place: &Place, memory: Memory) {
        self.filled.insert(place.register, memory);
    }

    fn release(&mut self, register: usize) {
        self.free.extend(self.filled.remove(&register));
    }

    /// Memory of this length; what is in it means nothing.
    fn new_bytes(&mut self, length: usize) -> Vec<u8> {
        let fits = |memory: &Memory| matches!(memory, Memory::Bytes(bytes) if bytes.capacity() >= length);
        match self.free.iter().position(fits).map(|at| self.free.swap_remove(at)) {
            Some(Memory::Bytes(mut bytes)) => {
                bytes.resize(length, 0);
                bytes
            }
            _ => zeros(length),
        }
    }

    fn new_wide(&mut self, length: usize) -> Vec<f32> {
        let fits = |memory: &Memory| matches!(memory, Memory::Wide(values) if values.capacity() >= length);
        match self.free.iter().position(fits).map(|at| self.free.swap_remove(at)) {
            Some(Memory::Wide(mut values)) => {
                values.resize(length, 0.0);
                values
            }
            _ => zeros(length),
        }
    }
}

/// Positions that go through a chain of products together: what is between two products stays in the cache.
const TOGETHER: usize = 512;

fn pointwise(isa: Isa, bytes: &[u8], chain: &[Step], out: &mut [u8]) {
    let steps: Vec<_> = chain
        .iter()
        .filter_map(|step| match step {
            Step::Pointwise { matrix, requantiser, .. } => Some((matrix, requantiser)),
            _ => None,
        })
        .collect();
    let (Some(((first, _), _)), Some((last, before))) = (steps.split_first(), steps.split_last()) else {
        return;
    };
    let widest = steps.iter().map(|(matrix, _)| matrix.outputs).max().unwrap_or(0);
    let mut between = [vec![0; TOGETHER * widest], vec![0; TOGETHER * widest]];
    let groups = bytes.chunks(TOGETHER * first.inputs).zip(out.chunks_mut(TOGETHER * last.0.outputs));
    for (bytes, out) in groups {
        let count = bytes.len() / first.inputs;
        let [mut now, mut next] = between.each_mut();
        let mut from = bytes;
        for (matrix, requantiser) in before {
            let to = &mut next[..count * matrix.outputs];
            kernel::product(isa, from, matrix, requantiser, to);
            std::mem::swap(&mut now, &mut next);
            from = &now[..count * matrix.outputs];
        }
        kernel::product(isa, from, last.0, last.1, out);
    }
}

/// Lines of bytes with something before and after each.
struct Lines<'a> {
    bytes: &'a mut [u8],
    line: usize,
    before: usize,
    after: usize,
}

impl<'a> Lines<'a> {
    /// Lines of `line` bytes in a frame of one pixel, which is filled with `border`.
    fn framed(frame: &'a mut [u8], line: usize, pixel: usize, border: u8) -> Self {
        let outer = line + 2 * pixel;
        let last = frame.len() - outer;
        frame[..outer].fill(border);
        frame[last..].fill(border);
        for row in frame[outer..last].chunks_exact_mut(outer) {
            row[..pixel].fill(border);
            row[pixel + line..].fill(border);
        }
        Lines { bytes: &mut frame[outer..last], line, before: pixel, after: pixel }
    }
}

impl Unfolding {
    /// Writes (H, W, depth) `bytes`, `row` being W, as lines of pixels.
    fn write(self, bytes: &[u8], row: usize, depth: usize, lines: Lines<'_>) {
        let Unfolding { block, apart } = self;
        let channels = depth / (block * block);
        let outer = lines.before + lines.line + lines.after;
        for (group, to) in bytes.chunks_exact(row * depth).zip(lines.bytes.chunks_exact_mut(block * outer)) {
            for (i, to) in to.chunks_exact_mut(outer).enumerate() {
                let to = to[lines.before..][..lines.line].chunks_exact_mut(block * channels);
                for (position, to) in group.chunks_exact(depth).zip(to) {
                    if apart {
                        for (j, to) in to.chunks_exact_mut(channels).enumerate() {
                            let from = position.iter().skip(i * block + j).step_by(block * block);
                            to.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
                        }
                    } else {
                        to.copy_from_slice(&position[i * block * channels..][..block * channels]);
                    }
                }
            }
        }
    }
}

/// Bytes (M, K) with their scale, times floating-point weights (K, N): `done` gets some rows after the others, with the number of
/// the first.
fn from_bytes(
    isa: Isa,
    (bytes, channels, scale): (&[u8], usize, Scale),
    (weights, bias): (&[f32], &[f32]),
    mut done: impl FnMut(usize, &mut [f32]),
) {
    let mut values = vec![0.0; TOGETHER * channels];
    let mut out = vec![0.0; TOGETHER * bias.len()];
    for (at, bytes) in bytes.chunks(TOGETHER * channels).enumerate() {
        let values = &mut values[..bytes.len()];
        let out = &mut out[..bytes.len() / channels * bias.len()];
        kernel::real(isa, bytes, scale.scale, scale.zero, values);
        kernel::wide_product(isa, (values, Lie::Rows), weights, bias, out);
        done(at * TOGETHER, out);
    }
}

/// (M, C) values to (C, M).
fn transposed(values: &[f32], channels: usize) -> Vec<f32> {
    let mut planes = vec![0.0; values.len()];
    transpose_into(values, channels, 0, &mut planes);
    planes
}

/// The rows (.., C) of a matrix from row `first` on to their columns of (C, M) `planes`.
fn transpose_into(values: &[f32], channels: usize, first: usize, planes: &mut [f32]) {
    const ROWS: usize = 16;
    let rows = planes.len() / channels;
    // A few rows at a time: their lines stay in the cache while all planes are written.
    for (block, values) in values.chunks(ROWS * channels).enumerate() {
        for (c, plane) in planes.chunks_exact_mut(rows).enumerate() {
            let to = &mut plane[first + block * ROWS..][..values.len() / channels];
            for (to, row) in to.iter_mut().zip(values.chunks_exact(channels)) {
                *to = row[c];
            }
        }
    }
}

/// What reads a graph.
struct Reader {
    values: HashMap<String, Value>,
    steps: Vec<Step>,
    registers: usize,
}

impl Reader {
    fn register(&mut self, channels: usize, factor: usize) -> Place {
        self.registers += 1;
        Place { register: self.registers, channels, factor }
    }

    fn node(&mut self, node: &NodeProto) -> Option<Value> {
        if node.domain.as_deref().is_some_and(|domain| !domain.is_empty()) {
            return None;
        }
        let inputs: Vec<Value> =
            node.input.iter().map(|name| self.values.get(name).cloned()).collect::<Option<_>>()?;
        let attributes = Attributes(&node.attribute);
        match (node.op_type.as_deref()?, &inputs[..]) {
            ("Conv", [input, weights, bias]) => self.convolution(input, weights, bias, attributes),
            ("QuantizeLinear", [input, scale, zero]) => self.quantise(input, scale_of(scale, zero)?),
            ("DequantizeLinear", [input, scale, zero]) => dequantise(input, scale, zero, attributes),
            ("Transpose", [input]) => transpose(input, attributes.integers("perm")?),
            ("Shape", [input]) if attributes.is_empty() => shape_of(input),
            ("Slice", [Value::Shape(sizes), from, to]) => {
                let (from, to) = (index(from)?, index(to)?);
                Some(Value::Shape(sizes.get(from..to)?.to_vec()))
            }
            ("Concat", parts) if attributes.integer("axis", 0) == Some(0) => {
                let parts = parts.iter().map(sizes).collect::<Option<Vec<_>>>()?;
                Some(Value::Shape(parts.concat()))
            }
            ("Mul", [Value::Shape(sizes), Value::Constant(Constant::Sizes(by))]) => {
                let [by] = by[..] else { return None };
                let times = |size: &Size| match *size {
                    Size::Fixed(n) => n.checked_mul(by).map(Size::Fixed),
                    Size::Height(n) => n.checked_mul(by).map(Size::Height),
                    Size::Width(n) => n.checked_mul(by).map(Size::Width),
                };
                Some(Value::Shape(sizes.iter().map(times).collect::<Option<_>>()?))
            }
            ("Reshape", [input, shape]) if attributes.integer("allowzero", 0) == Some(0) => {
                self.reshape(input, &sizes(shape)?)
            }
            ("Add", [Value::Wide(a, order), Value::Real(b, other, scale)])
                if order == other && (a.channels, a.factor) == (b.channels, b.factor) =>
            {
                let to = self.register(a.channels, a.factor);
                self.steps.push(Step::Add { of: *a, bytes: *b, scale: *scale, to });
                Some(Value::Wide(to, *order))
            }
            ("DepthToSpace", [Value::Real(of, Order::First, scale)])
                if attributes.text("mode") == Some("CRD") =>
            {
                let to =
                    self.unfold(*of, usize::try_from(attributes.integer("blocksize", 0)?).ok()?, true)?;
                Some(Value::Real(to, Order::First, *scale))
            }
            ("Round", [Value::Wide(of, order)]) => {
                let to = self.register(of.channels, of.factor);
                self.steps.push(Step::Round { of: *of, low: f32::NEG_INFINITY, high: f32::INFINITY, to });
                Some(Value::Wide(to, *order))
            }
            ("Clip", [Value::Wide(of, order), low, high]) => {
                let (least, most) = (float(low)?, float(high)?);
                // What was just rounded; it is not read anywhere else, for the output is behind it.
                match self.steps.last_mut()? {
                    Step::Round { low, high, to, .. } if to == of && least <= most => {
                        (*low, *high) = (least, most);
                        Some(Value::Wide(*of, *order))
                    }
                    _ => None,
                }
            }
            _ => None,
        }
    }

    fn convolution(
        &mut self,
        input: &Value,
        weights: &Value,
        bias: &Value,
        attributes: Attributes<'_>,
    ) -> Option<Value> {
        let all =
            |name, wanted: i64| attributes.integers(name).is_none_or(|v| v.iter().all(|v| *v == wanted));
        let plain = ["kernel_shape", "pads", "group", "strides", "dilations"];
        if attributes.0.iter().any(|a| a.name.as_deref().is_none_or(|name| !plain.contains(&name)))
            || !all("strides", 1)
            || !all("dilations", 1)
        {
            return None;
        }
        let group = usize::try_from(attributes.integer("group", 1)?).ok()?;
        match (input, weights, bias) {
            (
                Value::Input { .. } | Value::Real(_, Order::First, _),
                Value::Constant(Constant::Floats(shape, weights)),
                Value::Constant(Constant::Floats(_, bias)),
            ) => {
                let (channels, factor) = match input {
                    Value::Real(place, ..) => (place.channels, place.factor),
                    Value::Input { channels } => (*channels, 1),
                    _ => return None,
                };
                if shape[..] != [bias.len(), channels, 1, 1]
                    || group != 1
                    || !all("pads", 0)
                    || bias.is_empty()
                {
                    return None;
                }
                let to = self.register(bias.len(), factor);
                let weights = transposed(weights, channels);
                let bias = bias.to_vec();
                self.steps.push(match input {
                    Value::Real(of, _, scale) => {
                        Step::FromBytes { of: *of, scale: *scale, weights, bias, to }
                    }
                    _ => Step::FromInput { weights, bias, to },
                });
                Some(Value::Wide(to, Order::First))
            }
            (
                Value::Real(of, Order::First, scale),
                Value::Weights { shape, values, scales },
                Value::Bias { values: bias, scales: of_bias },
            ) => {
                let outputs = bias.len();
                let scales: Vec<f32> = scales.iter().map(|by| scale.scale * by).collect();
                if outputs == 0 || scales != **of_bias || scales.len() != outputs {
                    return None;
                }
                let zero = i32::from(scale.zero);
                let (kind, each) =
                    if shape[..] == [outputs, of.channels, 1, 1] && group == 1 && all("pads", 0) {
                        (Kind::Pointwise(values.clone()), of.channels)
                    } else if shape[..] == [outputs, 1, 3, 3]
                        && group == outputs
                        && outputs == of.channels
                        && attributes.integers("pads")? == [1; 4]
                    {
                        (Kind::Depthwise(values.clone(), scale.zero), 9)
                    } else {
                        return None;
                    };
                // Every sum on the way stays below 2^24, whatever the bytes: that is what makes it exact.
                let most = |(bias, weights): (&i32, &[i8])| {
                    let sum: u64 = weights.iter().map(|w| 255 * u64::from(w.unsigned_abs())).sum();
                    sum + u64::from(bias.unsigned_abs()) < 1 << 24
                };
                if !bias.iter().zip(values.chunks_exact(each)).all(most) {
                    return None;
                }
                // (byte - zero) * weight, with the second part added up beforehand.
                let sum = |weights: &[i8]| weights.iter().map(|&w| i32::from(w)).sum::<i32>();
                let bias =
                    bias.iter().zip(values.chunks_exact(each)).map(|(b, w)| b - zero * sum(w)).collect();
                Some(Value::Sums { of: *of, kind, bias, scales })
            }
            _ => None,
        }
    }

    fn quantise(&mut self, input: &Value, scale: Scale) -> Option<Value> {
        match input {
            Value::Sums { of, kind, bias, scales } => {
                let scales: Vec<f32> = scales.iter().map(|by| by / scale.scale).collect();
                let channels = bias.len();
                if !channels.is_multiple_of(LANES) || !scales.iter().all(|by| is_power_of_two(*by)) {
                    return None;
                }
                let to = self.register(channels, of.factor);
                let requantiser = Requantiser { bias: bias.clone(), scale: scales, zero: scale.zero };
                let of = *of;
                let step = match kind {
                    Kind::Pointwise(weights) => {
                        Step::Pointwise { of, matrix: Matrix::new(weights, of.channels)?, requantiser, to }
                    }
                    Kind::Depthwise(weights, border) => {
                        let weights = (0..9)
                            .flat_map(|tap| weights.iter().skip(tap).step_by(9).map(|&w| i32::from(w)))
                            .collect();
                        let (of, unfolding) = self.unfolded(of);
                        Step::Depthwise { of, unfolding, weights, border: *border, requantiser, to }
                    }
                };
                self.steps.push(step);
                Some(Value::Bytes(to, Order::First, scale))
            }
            Value::Wide(of, order) => {
                let to = self.register(of.channels, of.factor);
                self.steps.push(Step::Quantise { of: *of, scale, to });
                Some(Value::Bytes(to, *order, scale))
            }
            // There and back.
            Value::Real(place, order, was) if *was == scale => Some(Value::Bytes(*place, *order, scale)),
            _ => None,
        }
    }

    fn unfold(&mut self, of: Place, block: usize, apart: bool) -> Option<Place> {
        let depth = block.checked_mul(block).filter(|area| *area > 0)?;
        if !of.channels.is_multiple_of(depth) || of.channels == 0 {
            return None;
        }
        let factor = of.factor.checked_mul(block).filter(|factor| *factor <= LARGEST_FACTOR)?;
        let to = self.register(of.channels / depth, factor);
        self.steps.push(Step::Unfold { of, unfolding: Unfolding { block, apart }, to });
        Some(to)
    }

    /// If `place` is what the last step unfolded: what it was before, and that step no more. Whoever else reads it finds nothing
    /// there, which [`whole`](Self::whole) sees.
    fn unfolded(&mut self, place: Place) -> (Place, Option<Unfolding>) {
        match self.steps.last() {
            Some(&Step::Unfold { of, unfolding, to }) if to == place => {
                self.steps.pop();
                (of, Some(unfolding))
            }
            _ => (place, None),
        }
    }

    fn reshape(&mut self, input: &Value, shape: &[Size]) -> Option<Value> {
        let (place, order) = match input {
            Value::Wide(place, order) | Value::Bytes(place, order, _) => (*place, *order),
            _ => return None,
        };
        let [factor, channels] = [place.factor, place.channels].map(|n| n as i64);
        let with = |place: Place, order: Order| match input {
            Value::Bytes(_, _, scale) => Value::Bytes(place, order, *scale),
            _ => Value::Wide(place, order),
        };
        let whole = [Size::Fixed(1), Size::Height(factor), Size::Width(factor), Size::Fixed(channels)];
        match (order, shape) {
            (Order::Last, [Size::Fixed(0 | 1), Size::Fixed(-1), Size::Fixed(c)]) if *c == channels => {
                Some(with(place, Order::Flat))
            }
            (Order::Flat, shape) if shape == whole => Some(with(place, Order::Last)),
            (
                Order::Last,
                [Size::Height(h), Size::Width(w), Size::Fixed(b), Size::Fixed(again), Size::Fixed(c)],
            ) if (*h, *w) == (factor, factor)
                && b == again
                && b.checked_mul(*b)?.checked_mul(*c)? == channels =>
            {
                Some(with(place, Order::Blocks(usize::try_from(*b).ok()?)))
            }
            (Order::Rows(block), [Size::Fixed(1), Size::Height(h), Size::Width(w), Size::Fixed(c)]) => {
                let Value::Bytes(_, _, scale) = input else { return None };
                let b = block as i64;
                if (*h, *w) != (factor * b, factor * b) || *c != channels / (b * b) {
                    return None;
                }
                Some(Value::Bytes(self.unfold(place, block, false)?, Order::Last, *scale))
            }
            _ => None,
        }
    }

    /// Whether every step reads what one before it has left: written, and not taken over for another result.
    fn whole(&self, output: Output) -> bool {
        let mut there = Vec::new();
        for step in &self.steps {
            if !step.reads().iter().flatten().all(|register| there.contains(register)) {
                return false;
            }
            if let Step::Add { of, .. } | Step::Round { of, .. } = step {
                there.retain(|register| *register != of.register);
            }
            there.push(step.writes().register);
        }
        let (Output::Bytes(end) | Output::Wide(end)) = output;
        there.contains(&end.register)
    }
}

fn transpose(input: &Value, axes: &[i64]) -> Option<Value> {
    let turned = |order: Order| match (order, axes) {
        (Order::First, [0, 2, 3, 1]) => Some(Order::Last),
        (Order::Last, [0, 3, 1, 2]) => Some(Order::First),
        (Order::Blocks(block), [0, 2, 1, 3, 4]) => Some(Order::Rows(block)),
        _ => None,
    };
    match input {
        Value::Wide(place, order) => Some(Value::Wide(*place, turned(*order)?)),
        Value::Bytes(place, order, scale) => Some(Value::Bytes(*place, turned(*order)?, *scale)),
        _ => None,
    }
}

fn dequantise(input: &Value, scale: &Value, zero: &Value, attributes: Attributes<'_>) -> Option<Value> {
    match input {
        Value::Bytes(place, order, was) if *was == scale_of(scale, zero)? => {
            Some(Value::Real(*place, *order, *was))
        }
        Value::Constant(constant) if attributes.integer("axis", 1) == Some(0) => {
            let Value::Constant(Constant::Floats(_, scales)) = scale else { return None };
            if !scales.iter().all(|scale| is_power_of_two(*scale)) {
                return None;
            }
            match (constant, zero) {
                (Constant::Weights(shape, values), Value::Constant(Constant::Weights(_, zero)))
                    if zero.iter().all(|z| *z == 0)
                        && shape.first() == Some(&scales.len())
                        && values.iter().all(|w| w.unsigned_abs() <= 64) =>
                {
                    Some(Value::Weights {
                        shape: shape.clone(),
                        values: values.clone(),
                        scales: scales.clone(),
                    })
                }
                (Constant::Words(values), Value::Constant(Constant::Words(zero)))
                    if zero.iter().all(|z| *z == 0)
                        && values.len() == scales.len()
                        && values.iter().all(|b| b.unsigned_abs() < 1 << 24) =>
                {
                    Some(Value::Bias { values: values.clone(), scales: scales.clone() })
                }
                _ => None,
            }
        }
        _ => None,
    }
}

fn shape_of(input: &Value) -> Option<Value> {
    let (place, order) = match input {
        Value::Wide(place, order) | Value::Bytes(place, order, _) => (place, order),
        _ => return None,
    };
    let [factor, channels] = [place.factor, place.channels].map(|n| n as i64);
    let (height, width, channels) = (Size::Height(factor), Size::Width(factor), Size::Fixed(channels));
    match order {
        Order::First => Some(Value::Shape(vec![Size::Fixed(1), channels, height, width])),
        Order::Last => Some(Value::Shape(vec![Size::Fixed(1), height, width, channels])),
        _ => None,
    }
}

fn sizes(value: &Value) -> Option<Vec<Size>> {
    match value {
        Value::Shape(sizes) => Some(sizes.clone()),
        Value::Constant(Constant::Sizes(sizes)) => Some(sizes.iter().copied().map(Size::Fixed).collect()),
        _ => None,
    }
}

fn index(value: &Value) -> Option<usize> {
    match value {
        Value::Constant(Constant::Sizes(sizes)) => match sizes[..] {
            [one] => usize::try_from(one).ok(),
            _ => None,
        },
        _ => None,
    }
}

fn float(value: &Value) -> Option<f32> {
    match value {
        Value::Constant(Constant::Floats(_, values)) => match values[..] {
            [one] => Some(one),
            _ => None,
        },
        _ => None,
    }
}

fn scale_of(scale: &Value, zero: &Value) -> Option<Scale> {
    let scale = float(scale).filter(|scale| is_power_of_two(*scale))?;
    match zero {
        Value::Constant(Constant::Bytes(zero)) => match zero[..] {
            [zero] => Some(Scale { scale, zero }),
            _ => None,
        },
        _ => None,
    }
}

fn is_power_of_two(value: f32) -> bool {
    const FRACTION: u32 = (1 << 23) - 1;
    value.is_normal() && value > 0.0 && value.to_bits() & FRACTION == 0
}

/// The attributes of a node.
#[derive(Clone, Copy)]
struct Attributes<'a>(&'a [AttributeProto]);

impl<'a> Attributes<'a> {
    fn is_empty(self) -> bool {
        self.0.is_empty()
    }

    fn get(self, name: &str) -> Option<&'a AttributeProto> {
        self.0.iter().find(|attribute| attribute.name.as_deref() == Some(name))
    }

    fn integers(self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|attribute| &attribute.ints[..])
    }

    /// The default of the standard where there is none.
    fn integer(self, name: &str, default: i64) -> Option<i64> {
        match self.get(name) {
            Some(attribute) => attribute.i,
            None => Some(default),
        }
    }

    fn text(self, name: &str) -> Option<&'a str> {
        self.get(name)?.s.as_deref()
    }
}

fn constant(tensor: &TensorProto) -> Option<Constant> {
    if !tensor.external_data.is_empty() {
        return None;
    }
    let shape: Vec<usize> = tensor.dims.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1usize, |all, &d| all.checked_mul(d))?;
    let raw = tensor.raw_data.as_ref().map(|raw| raw.borrow());
    let raw = raw.as_deref().map(Vec::as_slice).filter(|raw| !raw.is_empty());
    /// Little-endian elements of a size.
    fn elements<const N: usize, T>(raw: &[u8], of: impl Fn([u8; N]) -> T) -> Vec<T> {
        raw.chunks_exact(N).filter_map(|bytes| Some(of(bytes.try_into().ok()?))).collect()
    }
    let constant = match (tensor.data_type?, raw) {
        (DataType::FLOAT, Some(raw)) => Constant::Floats(shape, Rc::new(elements(raw, f32::from_le_bytes))),
        (DataType::FLOAT, None) => Constant::Floats(shape, Rc::new(tensor.float_data.clone())),
        (DataType::UINT8, Some(raw)) => Constant::Bytes(raw.to_vec()),
        (DataType::INT8, Some(raw)) => {
            Constant::Weights(shape, Rc::new(raw.iter().map(|&b| b as i8).collect()))
        }
        (DataType::INT32, Some(raw)) => Constant::Words(elements(raw, i32::from_le_bytes)),
        (DataType::INT32, None) => Constant::Words(tensor.int32_data.clone()),
        (DataType::INT64, Some(raw)) => Constant::Sizes(elements(raw, i64::from_le_bytes)),
        (DataType::INT64, None) => Constant::Sizes(tensor.int64_data.clone()),
        _ => return None,
    };
    let found = match &constant {
        Constant::Floats(_, values) => values.len(),
        Constant::Bytes(values) => values.len(),
        Constant::Weights(_, values) => values.len(),
        Constant::Words(values) => values.len(),
        Constant::Sizes(values) => values.len(),
    };
    (found == count).then_some(constant)
}

fn info(value: &ValueInfoProto) -> Option<ValueInfo> {
    let tensor = value.r#type.as_ref()?.tensor_type.as_ref()?;
    let element_type = match tensor.elem_type {
        Some(DataType::FLOAT) => Some(ElementType::F32),
        Some(DataType::UINT8) => Some(ElementType::U8),
        _ => None,
    };
    let dimension = |d: &rten_onnx::onnx::Dimension| match d.dim_value.map(usize::try_from) {
        Some(Ok(size)) => Dimension::Fixed(size),
        _ => Dimension::Any(d.dim_param.clone().unwrap_or_default()),
    };
    let shape = tensor.shape.as_ref().map(|shape| shape.dim.iter().map(dimension).collect());
    Some(ValueInfo { name: value.name.clone()?, element_type, shape })
}
