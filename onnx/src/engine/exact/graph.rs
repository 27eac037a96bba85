//! From a graph to steps.
//!
//! A quantised graph says `DequantizeLinear, Conv, QuantizeLinear` where one product of integers is meant, and moves axes about so that
//! runtimes find what they like. Reading follows the values through all that, one node after the other, in a form of its own ([`Value`]):
//! what is a convention becomes nothing, what is arithmetic becomes a [`Step`]. Every node must be understood, else there is no program.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::depthwise::Depthwise;
use super::kernel::{DIGIT_BITS, Isa, LANES, Matrix, Requantiser, RowSums, row_sums};
use super::lines::{Unfolding, transposed};
use super::messages::{Attribute, Graph, Node, Tensor, data_type};
use super::program::{Output, Place, Program, Scale, Step};
use crate::{Dimension, ElementType, ValueInfo};

/// No decoder makes more pixels of a latent position, each way; a graph that does is after memory.
const LARGEST_FACTOR: usize = 256;
/// The bits of a float below those of its exponent.
const FRACTION: u32 = (1 << 23) - 1;
/// Integers below it are exact in floating point.
const EXACT: u64 = 1 << 24;
/// What a number of the latent, and one of the hyper-latent, is never beyond (docs/FORMAT.md, section 5).
const LARGEST_LATENT: f64 = 2047.0;
const LARGEST_HYPER_LATENT: f64 = 127.0;
/// No tensor of these graphs has more axes.
const MOST_AXES: usize = 8;

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
    /// So many times the height of the coarsest grid.
    Height(i64),
    Width(i64),
}

/// What a name of the graph stands for.
#[derive(Debug, Clone)]
enum Value<'g> {
    /// The input, (1, C, H, W): what its factor is, and its channels.
    Input {
        channels: usize,
        factor: usize,
    },
    /// The input as bytes, which a `DequantizeLinear` is about to say the scale of.
    Levels(Place, Order),
    Constant(Constant<'g>),
    /// Weights, as bytes, with a scale for each output channel.
    Weights {
        shape: Vec<usize>,
        values: Cow<'g, [u8]>,
        scales: Rc<Vec<f32>>,
    },
    Bias {
        values: Rc<Vec<i32>>,
        scales: Rc<Vec<f32>>,
    },
    Wide(Place, Order),
    Bytes(Place, Order, Scale),
    /// Bytes behind a `DequantizeLinear`.
    Real(Place, Order, Scale),
    /// A convolution of integers that waits for the scale of its output.
    Sums {
        of: Place,
        kind: Kind<'g>,
        bias: Vec<i32>,
        scales: Vec<f32>,
        /// What no sum on the way is beyond.
        most: Vec<u64>,
    },
    Shape(Vec<Size>),
}

#[derive(Debug, Clone)]
enum Constant<'g> {
    Floats(Vec<usize>, Rc<Vec<f32>>),
    Bytes(Rc<Vec<u8>>),
    Weights(Vec<usize>, &'g [u8]),
    Words(Rc<Vec<i32>>),
    Sizes(Rc<Vec<i64>>),
}

/// What a convolution of integers is.
#[derive(Debug, Clone)]
enum Kind<'g> {
    /// 1x1: the digits of the weights (N, K).
    Pointwise(Vec<Cow<'g, [u8]>>),
    /// 3x3, (9, C), and the byte that stands for 0 outside.
    Depthwise(Cow<'g, [u8]>, u8),
}

/// The program of a graph for some vectors, with its inputs and outputs.
pub(super) fn compile(isa: Isa, graph: &Graph<'_>) -> Option<(Program, Vec<ValueInfo>, Vec<ValueInfo>)> {
    let ([input_info], [output_info]) = (&graph.inputs[..], &graph.outputs[..]) else { return None };
    let of_bytes = input_info.element_type == Some(ElementType::U8);
    let channels = match input_info.shape.as_deref()? {
        [Dimension::Fixed(1), .., Dimension::Fixed(channels)] if of_bytes && *channels > 0 => *channels,
        [Dimension::Fixed(1), Dimension::Fixed(channels), ..] if !of_bytes && *channels > 0 => *channels,
        _ => return None,
    };
    let stride = stride(graph)?;
    // An encoder takes bytes, and is not promised to the bit; what makes bytes of values makes pixels of a latent.
    let largest = match output_info.element_type {
        _ if of_bytes => None,
        Some(ElementType::U8) => Some(LARGEST_LATENT),
        _ => Some(LARGEST_HYPER_LATENT),
    };
    let output_name = output_info.name.as_str();
    let mut readers: HashMap<&str, usize> = HashMap::new();
    for name in graph.nodes.iter().flat_map(|node| &node.inputs).chain([&output_name]) {
        *readers.entry(name).or_default() += 1;
    }
    let mut reader = Reader {
        isa,
        largest,
        readers,
        rounded: None,
        values: HashMap::new(),
        steps: Vec::new(),
        registers: 0,
    };
    for tensor in &graph.initializers {
        reader.values.insert(tensor.name, Value::Constant(constant(tensor)?));
    }
    let input = Place { register: Place::INPUT, channels, factor: stride };
    let value =
        if of_bytes { Value::Levels(input, Order::Last) } else { Value::Input { channels, factor: stride } };
    reader.values.insert(&input_info.name, value);
    for node in &graph.nodes {
        let value = reader.node(node)?;
        let [name] = node.outputs[..] else { return None };
        reader.values.insert(name, value);
    }
    let output = match reader.values.get(output_name)? {
        Value::Bytes(place, Order::Last, _) => Output::Bytes(*place),
        Value::Wide(place, Order::First) => Output::Wide(*place),
        _ => return None,
    };
    reader.drop_dead(output);
    if !reader.whole(of_bytes, output) {
        return None;
    }
    let program = Program { steps: reader.steps, of_bytes, channels, stride, output };
    Some((program, graph.inputs.clone(), graph.outputs.clone()))
}

/// What reads a graph.
struct Reader<'g> {
    isa: Isa,
    /// What no value of the input is beyond, if the graph is a decoder's and must be exact for all of them.
    largest: Option<f64>,
    /// How many inputs of nodes, and outputs of the graph, have a name.
    readers: HashMap<&'g str, usize>,
    /// The value that the last `Round` made.
    rounded: Option<&'g str>,
    values: HashMap<&'g str, Value<'g>>,
    steps: Vec<Step>,
    registers: usize,
}

impl<'g> Reader<'g> {
    fn register(&mut self, channels: usize, factor: usize) -> Place {
        self.registers += 1;
        Place { register: self.registers, channels, factor }
    }

    fn node(&mut self, node: &Node<'g>) -> Option<Value<'g>> {
        if !node.domain.is_empty() {
            return None;
        }
        // Sums that nobody quantises are values, but for two that are the digits of one.
        let is_sums = |name: &&str| matches!(self.values.get(name), Some(Value::Sums { .. }));
        let stays = match node.operator {
            "QuantizeLinear" => true,
            "Add" => node.inputs.iter().all(is_sums),
            _ => false,
        };
        if !stays {
            for name in &node.inputs {
                if let Some(Value::Sums { .. }) = self.values.get(name) {
                    let sums = self.values.remove(name)?;
                    let wide = self.widen(sums)?;
                    self.values.insert(name, wide);
                }
            }
        }
        let inputs: Vec<Value<'g>> =
            node.inputs.iter().map(|name| self.values.get(name).cloned()).collect::<Option<_>>()?;
        let attributes = Attributes(&node.attributes);
        if !attributes.all_known(node.operator) {
            return None;
        }
        match (node.operator, &inputs[..]) {
            ("Conv", [input, weights, bias]) => self.convolution(input, weights, bias, attributes),
            ("QuantizeLinear", [input, scale, zero]) => self.quantise(input, scale_of(scale, zero)?),
            ("DequantizeLinear", [input, scale, zero]) => dequantise(input, scale, Some(zero), attributes),
            ("DequantizeLinear", [input, scale]) => dequantise(input, scale, None, attributes),
            ("Transpose", [input]) => transpose(input, attributes.integers("perm")?),
            ("Shape", [input]) => shape_of(input),
            ("Slice", [Value::Shape(sizes), from, to]) => {
                let (from, to) = (index(from)?, index(to)?);
                Some(Value::Shape(sizes.get(from..to)?.to_vec()))
            }
            ("Concat", parts) if attributes.integer("axis", 0) == Some(0) => {
                let parts = parts.iter().map(sizes).collect::<Option<Vec<_>>>()?.concat();
                // A few nodes that double it would take all memory.
                (parts.len() <= MOST_AXES).then_some(Value::Shape(parts))
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
            ("Add", [high @ Value::Sums { .. }, low]) => joined(high, low),
            ("Add", [high @ Value::Weights { .. }, low]) => added(high, low),
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
                self.rounded = node.outputs.first().copied();
                Some(Value::Wide(to, *order))
            }
            ("Clip", [Value::Wide(of, order), low, high]) => {
                let (least, most) = (float(low)?, float(high)?);
                // What was just rounded, and is read nowhere else: the step clips as well.
                let name = node.inputs.first().filter(|name| self.rounded.as_ref() == Some(name))?;
                if self.readers.get(name) != Some(&1) {
                    return None;
                }
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
        input: &Value<'g>,
        weights: &Value<'g>,
        bias: &Value<'g>,
        attributes: Attributes<'_>,
    ) -> Option<Value<'g>> {
        let all =
            |name, wanted: i64| attributes.integers(name).is_none_or(|v| v.iter().all(|v| *v == wanted));
        if !all("dilations", 1) {
            return None;
        }
        let group = usize::try_from(attributes.integer("group", 1)?).ok()?;
        // Patches side by side are channels of a coarser grid, and the convolution is then one of 1x1.
        let patch = match attributes.integers("strides") {
            Some(strides) => usize::try_from(*strides.first()?).ok()?,
            None => 1,
        };
        if !all("strides", patch as i64) {
            return None;
        }
        let mut folded_weights = None;
        let (input, weights) = match (input, weights) {
            _ if patch == 1 => (input, weights),
            (Value::Real(of, Order::First, scale), Value::Weights { shape, values, scales })
                if group == 1
                    && shape.get(1..) == Some(&[of.channels, patch, patch][..])
                    && of.factor.is_multiple_of(patch) =>
            {
                let depth = of.channels.checked_mul(patch * patch)?;
                let to = match self.steps.last() {
                    // For the other digit of the weights.
                    Some(Step::Fold { of: folded, block, to }) if (folded, *block) == (of, patch) => *to,
                    _ => {
                        let to = self.register(depth, of.factor / patch);
                        self.steps.push(Step::Fold { of: *of, block: patch, to });
                        to
                    }
                };
                let weights = Value::Weights {
                    shape: vec![shape[0], depth, 1, 1],
                    values: folded(values, of.channels, patch).into(),
                    scales: scales.clone(),
                };
                (&Value::Real(to, Order::First, *scale), &*folded_weights.insert(weights))
            }
            _ => return None,
        };
        match (input, weights, bias) {
            (
                Value::Input { .. } | Value::Wide(_, Order::First),
                Value::Constant(Constant::Floats(shape, weights)),
                Value::Constant(Constant::Floats(_, bias)),
            ) => {
                let (channels, factor) = match input {
                    Value::Wide(place, _) => (place.channels, place.factor),
                    Value::Input { channels, factor } => (*channels, *factor),
                    _ => return None,
                };
                if shape[..] != [bias.len(), channels, 1, 1]
                    || group != 1
                    || !all("pads", 0)
                    || bias.is_empty()
                    || !bias.len().is_multiple_of(LANES)
                {
                    return None;
                }
                // Of other values than those of the input it is not known how large they get.
                let is_input = matches!(input, Value::Input { .. });
                if self.largest.is_some_and(|largest| !is_input || !is_exact(weights, bias, largest)) {
                    return None;
                }
                let to = self.register(bias.len(), factor);
                let weights = transposed(weights, channels);
                let bias = bias.to_vec();
                self.steps.push(match input {
                    Value::Wide(of, _) => Step::FromWide { of: *of, weights, bias, to },
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
                        (Kind::Pointwise(vec![values.clone()]), of.channels)
                    } else if shape[..] == [outputs, 1, 3, 3]
                        && group == outputs
                        && outputs == of.channels
                        && attributes.integers("pads")? == [1; 4]
                    {
                        (Kind::Depthwise(values.clone(), scale.zero), 9)
                    } else {
                        return None;
                    };
                let mut sums = vec![RowSums::default(); outputs];
                row_sums(self.isa, values, each, &mut sums);
                // Every sum on the way stays below 2^24, whatever the bytes: that is what makes it exact.
                let most =
                    |(bias, sums): (&i32, &RowSums)| 255 * sums.magnitudes + u64::from(bias.unsigned_abs());
                let most: Vec<u64> = bias.iter().zip(&sums).map(most).collect();
                if most.iter().any(|most| *most >= EXACT) {
                    return None;
                }
                // (byte - zero) * weight, with the second part added up beforehand.
                let bias = bias.iter().zip(&sums).map(|(bias, sums)| bias - zero * sums.values).collect();
                Some(Value::Sums { of: *of, kind, bias, scales, most })
            }
            _ => None,
        }
    }

    fn widen(&mut self, sums: Value<'_>) -> Option<Value<'g>> {
        let Value::Sums { of, kind: Kind::Pointwise(weights), bias, scales, .. } = sums else { return None };
        if !bias.len().is_multiple_of(LANES) {
            return None;
        }
        let to = self.register(bias.len(), of.factor);
        let matrix = Matrix::new(self.isa, &weights, of.channels)?;
        let requantiser = Requantiser { bias, scale: scales, zero: 0 };
        self.steps.push(Step::FromBytes { of, matrix, requantiser, to });
        Some(Value::Wide(to, Order::First))
    }

    fn quantise(&mut self, input: &Value<'_>, scale: Scale) -> Option<Value<'g>> {
        match input {
            Value::Sums { of, kind, bias, scales, .. } => {
                let scales: Vec<f32> = scales.iter().map(|by| by / scale.scale).collect();
                let channels = bias.len();
                if !channels.is_multiple_of(LANES) || !scales.iter().all(|by| is_power_of_two(*by)) {
                    return None;
                }
                let to = self.register(channels, of.factor);
                let requantiser = Requantiser { bias: bias.clone(), scale: scales, zero: scale.zero };
                let of = *of;
                let step = match kind {
                    Kind::Pointwise(weights) => Step::Pointwise {
                        of,
                        matrix: Matrix::new(self.isa, weights, of.channels)?,
                        requantiser,
                        to,
                    },
                    Kind::Depthwise(weights, border) => {
                        let tap = |tap| weights.iter().skip(tap).step_by(9).map(|&w| w as i8);
                        let weights = (0..9).flat_map(tap).collect();
                        let convolution = Depthwise::new(self.isa, weights, requantiser)?;
                        let (of, unfolding) = self.unfolded(of);
                        Step::Depthwise { of, unfolding, convolution, border: *border, to }
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

    fn reshape(&mut self, input: &Value<'_>, shape: &[Size]) -> Option<Value<'g>> {
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

    /// Leaves out what does not lead to the output.
    fn drop_dead(&mut self, output: Output) {
        let (Output::Bytes(end) | Output::Wide(end)) = output;
        let mut needed = HashSet::from([end.register]);
        let mut dead = Vec::new();
        for step in self.steps.iter().rev() {
            let is_needed = needed.contains(&step.writes().register);
            if is_needed {
                needed.extend(step.reads().into_iter().flatten().map(|of| of.register));
            }
            dead.push(!is_needed);
        }
        self.steps.retain(|_| dead.pop() == Some(false));
    }

    /// Whether every step reads what one before it has left: written, and not taken over for another result. The input is there if it
    /// is bytes, and is not what comes out.
    fn whole(&self, of_bytes: bool, output: Output) -> bool {
        let mut there = Vec::from_iter(of_bytes.then_some(Place::INPUT));
        for step in &self.steps {
            if !step.reads().iter().flatten().all(|of| there.contains(&of.register)) {
                return false;
            }
            if let Step::Add { of, .. } | Step::Round { of, .. } = step {
                there.retain(|register| *register != of.register);
            }
            there.push(step.writes().register);
        }
        let (Output::Bytes(end) | Output::Wide(end)) = output;
        end.register != Place::INPUT && there.contains(&end.register)
    }
}

/// How many times as high and wide as the coarsest grid the input is, if the graph goes from fine to coarse.
fn stride(graph: &Graph<'_>) -> Option<usize> {
    // Two convolutions of one value are the digits of one.
    let mut strides = HashMap::new();
    for node in &graph.nodes {
        if let Some(stride) = Attributes(&node.attributes).integers("strides").and_then(<[i64]>::first) {
            strides.insert(node.inputs.first(), *stride);
        }
    }
    let mut strides = strides.into_values().map(|s| usize::try_from(s).ok());
    let stride = strides.try_fold(1usize, |all, s| all.checked_mul(s?))?;
    (1..=LARGEST_FACTOR).contains(&stride).then_some(stride)
}

/// Two convolutions of the same bytes, added: one, if they are the digits of one.
fn joined<'g>(high: &Value<'g>, low: &Value<'g>) -> Option<Value<'g>> {
    let (
        Value::Sums {
            of,
            kind: Kind::Pointwise(high),
            bias: high_bias,
            scales: high_scales,
            most: high_most,
        },
        Value::Sums { of: other, kind: Kind::Pointwise(low), bias, scales, most },
    ) = (high, low)
    else {
        return None;
    };
    let digit = 1 << DIGIT_BITS;
    if of != other || bias.len() != high_bias.len() || high.len() + low.len() != 2 {
        return None;
    }
    if !scales.iter().zip(high_scales).all(|(low, high)| low * digit as f32 == *high) {
        return None;
    }
    let most: Vec<u64> = most.iter().zip(high_most).map(|(low, high)| low + digit * high).collect();
    if most.iter().any(|most| *most >= EXACT) {
        return None;
    }
    let bias = bias.iter().zip(high_bias).map(|(low, high)| low + digit as i32 * high).collect();
    let kind = Kind::Pointwise([&high[..], &low[..]].concat());
    Some(Value::Sums { of: *of, kind, bias, scales: scales.clone(), most })
}

/// Whether every sum of values up to `largest` times the weights (N, K) of an output, and its bias, is exact in whatever order: all of
/// it below 2^24 of the unit that weights and bias are multiples of.
fn is_exact(weights: &[f32], bias: &[f32], largest: f64) -> bool {
    weights.chunks_exact((weights.len() / bias.len().max(1)).max(1)).zip(bias).all(|(weights, bias)| {
        let unit = weights.iter().fold(unit(*bias), |least, weight| unit(*weight).min(least));
        // Several sums side by side: there is nothing to round in them where the answer is yes.
        let mut sums = [0.0; 8];
        let (whole, rest) = weights.as_chunks::<8>();
        for weights in whole {
            sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += f64::from(weight.abs()));
        }
        let sum: f64 = rest.iter().map(|weight| f64::from(weight.abs())).chain(sums).sum();
        // Not so where one of them is no number; that all of them are 0 is another way to be exact.
        let unit = f64::from(f32::from_bits(unit.wrapping_add(1)));
        unit == 0.0 || (f64::from(bias.abs()) + largest * sum) / unit < EXACT as f64
    })
}

/// The largest power of two that a finite number is a multiple of, as bits, which are in the order of such numbers; less one, so
/// that 0 is a multiple of all.
#[inline(always)]
fn unit(value: f32) -> u32 {
    let value = value.abs();
    // What it has more than without the lowest one of its digits.
    let rest = value - f32::from_bits(value.to_bits() & (value.to_bits().wrapping_sub(1) | !FRACTION));
    (if rest > 0.0 { rest } else { value }).to_bits().wrapping_sub(1)
}

/// The digits of weights, added: weights of floating point.
fn added<'g>(high: &Value<'g>, low: &Value<'g>) -> Option<Value<'g>> {
    let (
        Value::Weights { shape, values: high, scales: high_scales },
        Value::Weights { shape: other, values: low, scales },
    ) = (high, low)
    else {
        return None;
    };
    if shape != other || high.len() != low.len() || high_scales.len() != scales.len() {
        return None;
    }
    let each = high.len().checked_div(scales.len())?.max(1);
    let mut sum = Vec::with_capacity(high.len());
    for (at, (high, low)) in high.chunks_exact(each).zip(low.chunks_exact(each)).enumerate() {
        let by = [high_scales[at], scales[at]];
        sum.extend(
            high.iter()
                .zip(low)
                .map(|(&high, &low)| f32::from(high as i8) * by[0] + f32::from(low as i8) * by[1]),
        );
    }
    Some(Value::Constant(Constant::Floats(shape.clone(), Rc::new(sum))))
}

/// Weights (N, C, size, size) as (N, size, size, C): in the order of [`Step::Fold`].
fn folded<T: Copy>(weights: &[T], channels: usize, size: usize) -> Vec<T> {
    let area = size * size;
    let mut folded = Vec::with_capacity(weights.len());
    for weights in weights.chunks_exact(channels * area) {
        (0..area).for_each(|at| folded.extend(weights[at..].iter().step_by(area)));
    }
    folded
}

fn transpose<'g>(input: &Value<'g>, axes: &[i64]) -> Option<Value<'g>> {
    let turned = |order: Order| match (order, axes) {
        (Order::First, [0, 2, 3, 1]) => Some(Order::Last),
        (Order::Last, [0, 3, 1, 2]) => Some(Order::First),
        (Order::Blocks(block), [0, 2, 1, 3, 4]) => Some(Order::Rows(block)),
        _ => None,
    };
    match input {
        Value::Wide(place, order) => Some(Value::Wide(*place, turned(*order)?)),
        Value::Bytes(place, order, scale) => Some(Value::Bytes(*place, turned(*order)?, *scale)),
        Value::Levels(place, order) => Some(Value::Levels(*place, turned(*order)?)),
        _ => None,
    }
}

/// A constant without a `zero` has one of 0.
fn dequantise<'g>(
    input: &Value<'g>,
    scale: &Value<'g>,
    zero: Option<&Value<'g>>,
    attributes: Attributes<'_>,
) -> Option<Value<'g>> {
    match input {
        Value::Bytes(place, order, was) if *was == scale_of(scale, zero?)? => {
            Some(Value::Real(*place, *order, *was))
        }
        Value::Levels(place, order) => Some(Value::Real(*place, *order, scale_of(scale, zero?)?)),
        Value::Constant(constant) if attributes.integer("axis", 1) == Some(0) => {
            let Value::Constant(Constant::Floats(shape, scales)) = scale else { return None };
            // One for all or one for each channel, and not one for each block.
            if shape.len() > 1 || !scales.iter().all(|scale| is_power_of_two(*scale)) {
                return None;
            }
            let is_zero = match (constant, zero) {
                (_, None) => true,
                (Constant::Weights(..), Some(Value::Constant(Constant::Weights(_, zero)))) => {
                    zero.iter().all(|z| *z == 0)
                }
                (Constant::Words(_), Some(Value::Constant(Constant::Words(zero)))) => {
                    zero.iter().all(|z| *z == 0)
                }
                _ => false,
            };
            match constant {
                Constant::Weights(shape, values)
                    if is_zero
                        && shape.first() == Some(&scales.len())
                        && values.iter().fold(0, |most, &w| (w as i8).unsigned_abs().max(most)) <= 64 =>
                {
                    Some(Value::Weights {
                        shape: shape.clone(),
                        values: Cow::Borrowed(values),
                        scales: scales.clone(),
                    })
                }
                Constant::Words(values)
                    if is_zero
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

fn shape_of<'g>(input: &Value<'g>) -> Option<Value<'g>> {
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

fn sizes(value: &Value<'_>) -> Option<Vec<Size>> {
    match value {
        Value::Shape(sizes) => Some(sizes.clone()),
        Value::Constant(Constant::Sizes(sizes)) if sizes.len() <= MOST_AXES => {
            Some(sizes.iter().copied().map(Size::Fixed).collect())
        }
        _ => None,
    }
}

fn index(value: &Value<'_>) -> Option<usize> {
    match value {
        Value::Constant(Constant::Sizes(sizes)) => match sizes[..] {
            [one] => usize::try_from(one).ok(),
            _ => None,
        },
        _ => None,
    }
}

fn float(value: &Value<'_>) -> Option<f32> {
    match value {
        Value::Constant(Constant::Floats(shape, values)) => match values[..] {
            [one] if shape.len() <= 1 => Some(one),
            _ => None,
        },
        _ => None,
    }
}

fn scale_of(scale: &Value<'_>, zero: &Value<'_>) -> Option<Scale> {
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
    value.is_normal() && value > 0.0 && value.to_bits() & FRACTION == 0
}

/// The attributes of a node.
#[derive(Clone, Copy)]
struct Attributes<'a>(&'a [Attribute<'a>]);

impl<'a> Attributes<'a> {
    /// Whether there are none but those that an operator is read with here, and those that change nothing by their value, which is
    /// the default of the standard; each once.
    fn all_known(self, operator: &str) -> bool {
        let known: &[(&str, Option<i64>)] = match operator {
            "Conv" => &[
                ("dilations", None),
                ("group", None),
                ("kernel_shape", None),
                ("pads", None),
                ("strides", None),
            ],
            "QuantizeLinear" | "DequantizeLinear" => &[
                ("axis", None),
                ("block_size", Some(0)),
                ("output_dtype", Some(0)),
                ("precision", Some(0)),
                ("saturate", Some(1)),
            ],
            "Transpose" => &[("perm", None)],
            "Concat" => &[("axis", None)],
            "Reshape" => &[("allowzero", None)],
            "DepthToSpace" => &[("blocksize", None), ("mode", None)],
            _ => &[],
        };
        self.0.iter().enumerate().all(|(at, attribute)| {
            let is_known = known.iter().any(|(name, value)| {
                attribute.name == *name && (value.is_none() || attribute.integer == *value)
            });
            is_known && self.0[..at].iter().all(|other| other.name != attribute.name)
        })
    }

    fn get(self, name: &str) -> Option<&'a Attribute<'a>> {
        self.0.iter().find(|attribute| attribute.name == name)
    }

    fn integers(self, name: &str) -> Option<&'a [i64]> {
        self.get(name).map(|attribute| &attribute.integers[..])
    }

    /// The default of the standard where there is none.
    fn integer(self, name: &str, default: i64) -> Option<i64> {
        match self.get(name) {
            Some(attribute) => attribute.integer,
            None => Some(default),
        }
    }

    fn text(self, name: &str) -> Option<&'a str> {
        self.get(name)?.text
    }
}

fn constant<'g>(tensor: &Tensor<'g>) -> Option<Constant<'g>> {
    if tensor.is_external {
        return None;
    }
    let shape: Vec<usize> = tensor.shape.iter().map(|&d| usize::try_from(d).ok()).collect::<Option<_>>()?;
    let count = shape.iter().try_fold(1usize, |all, &d| all.checked_mul(d))?;
    /// Little-endian elements of a size.
    fn elements<const N: usize, T>(raw: &[u8], of: impl Fn([u8; N]) -> T) -> Vec<T> {
        raw.as_chunks().0.iter().map(|bytes| of(*bytes)).collect()
    }
    let raw = Some(tensor.raw).filter(|raw| !raw.is_empty());
    let constant = match (tensor.data_type, raw) {
        (data_type::FLOAT, Some(raw)) => Constant::Floats(shape, Rc::new(elements(raw, f32::from_le_bytes))),
        (data_type::FLOAT, None) => Constant::Floats(shape, Rc::new(tensor.floats.clone())),
        (data_type::UINT8, Some(raw)) => Constant::Bytes(Rc::new(raw.to_vec())),
        (data_type::INT8, Some(raw)) => Constant::Weights(shape, raw),
        (data_type::INT32, Some(raw)) => Constant::Words(Rc::new(elements(raw, i32::from_le_bytes))),
        (data_type::INT32, None) => {
            Constant::Words(Rc::new(tensor.words.iter().map(|&word| word as i32).collect()))
        }
        (data_type::INT64, Some(raw)) => Constant::Sizes(Rc::new(elements(raw, i64::from_le_bytes))),
        (data_type::INT64, None) => Constant::Sizes(Rc::new(tensor.sizes.clone())),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_a_multiple_of_its_unit_and_of_nothing_larger() {
        for (value, wanted) in [
            (-1.0, 1.0),
            (0.75, 0.25),
            (-96.0, 32.0),
            (16_777_215.0, 1.0),
            (1.0 + f32::EPSILON, f32::EPSILON),
            (f32::MIN_POSITIVE, f32::MIN_POSITIVE),
            (f32::from_bits(12), f32::from_bits(4)),
        ] {
            assert_eq!(f32::from_bits(unit(value) + 1), wanted, "{value}");
        }
        assert_eq!(unit(0.0), u32::MAX);
    }
}
