//! A graph as steps on bytes and on wide values, channels last, and what runs them.
//!
//! `graph` makes the steps. Steps that read one another's results alone run together, some positions or lines at a time: what is
//! between them stays in the cache.

use std::collections::HashMap;

use super::depthwise::Depthwise;
use super::kernel::{self, Isa, Lie, Matrix, Out, Requantiser};
use super::lines::{Frame, Lines, Unfolding, fold, transpose_into, transposed};
use crate::memory::zeros;
use crate::{Error, Tensor};

/// Bytes and the real numbers that they stand for: (byte - zero) * scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scale {
    pub scale: f32,
    pub zero: u8,
}

/// Where a register stands: (H * factor, W * factor, channels), H and W being those of the coarsest grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub register: usize,
    pub channels: usize,
    pub factor: usize,
}

impl Place {
    /// The register that bytes come in; others are counted from 1.
    pub const INPUT: usize = 0;
}

/// What is done, register to register.
#[derive(Debug)]
pub(super) enum Step {
    /// The input times floating-point weights (K, N).
    FromInput {
        weights: Vec<f32>,
        bias: Vec<f32>,
        to: Place,
    },
    /// Bytes to values.
    FromBytes {
        of: Place,
        matrix: Matrix,
        /// Without a zero.
        requantiser: Requantiser,
        to: Place,
    },
    /// Values times floating-point weights (K, N).
    FromWide {
        of: Place,
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
        convolution: Depthwise,
        border: u8,
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
    /// Pixels to channels: each block of `block` x `block` as (block, block, C).
    Fold {
        of: Place,
        block: usize,
        to: Place,
    },
}

impl Step {
    /// Whether it is a depthwise step that unfolds `place`.
    pub fn unfolds(&self, place: Place) -> bool {
        matches!(self, Step::Depthwise { of, unfolding: Some(_), .. } if *of == place)
    }

    pub fn writes(&self) -> Place {
        match self {
            Step::FromInput { to, .. }
            | Step::FromBytes { to, .. }
            | Step::FromWide { to, .. }
            | Step::Pointwise { to, .. }
            | Step::Depthwise { to, .. }
            | Step::Quantise { to, .. }
            | Step::Add { to, .. }
            | Step::Round { to, .. }
            | Step::Unfold { to, .. }
            | Step::Fold { to, .. } => *to,
        }
    }

    /// The registers that it reads.
    pub fn reads(&self) -> [Option<usize>; 2] {
        match self {
            Step::FromInput { .. } => [None, None],
            Step::Add { of, bytes, .. } => [Some(of.register), Some(bytes.register)],
            Step::FromBytes { of, .. }
            | Step::FromWide { of, .. }
            | Step::Pointwise { of, .. }
            | Step::Depthwise { of, .. }
            | Step::Quantise { of, .. }
            | Step::Round { of, .. }
            | Step::Unfold { of, .. }
            | Step::Fold { of, .. } => [Some(of.register), None],
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
    pub steps: Vec<Step>,
    /// Whether the input is bytes, (H, W, C), and not values, (C, H, W).
    pub of_bytes: bool,
    pub channels: usize,
    /// How many times as high and wide as the coarsest grid the input is: its height and width are multiples of it.
    pub stride: usize,
    pub output: Output,
}

/// What comes out, and how.
#[derive(Debug, Clone, Copy)]
pub(super) enum Output {
    /// (1, H, W, C)
    Bytes(Place),
    /// (1, C, H, W)
    Wide(Place),
}

/// What goes in.
#[derive(Clone, Copy)]
pub(super) enum Input<'a> {
    /// (C, H, W)
    Values(&'a [f32]),
    /// (C, H, W)
    Integers(&'a [i16]),
    /// (H, W, C)
    Bytes(&'a [u8]),
}

impl Input<'_> {
    /// `values` of each of `channels` planes from `first` on: (C, `count`). Bytes have no planes.
    fn columns(self, channels: usize, first: usize, count: usize, values: &mut Vec<f32>) {
        values.clear();
        match self {
            Input::Values(all) => {
                let planes = all.chunks_exact(all.len() / channels);
                planes.for_each(|plane| values.extend_from_slice(&plane[first..][..count]));
            }
            Input::Integers(all) => {
                let planes = all.chunks_exact(all.len() / channels);
                planes.for_each(|plane| values.extend(plane[first..][..count].iter().map(|&v| f32::from(v))));
            }
            Input::Bytes(_) => {}
        }
    }
}

impl Program {
    /// Runs it on `input`, whose height and width are multiples of its stride.
    pub fn run(&self, isa: Isa, input: Input<'_>, size: (usize, usize)) -> Result<Tensor, Error> {
        self.execute(isa, input, size, &mut Registers::default())
    }

    /// Runs it; `registers` may keep what steps leave.
    pub fn execute<'a>(
        &self,
        isa: Isa,
        input: Input<'a>,
        (height, width): (usize, usize),
        registers: &mut Registers<'a>,
    ) -> Result<Tensor, Error> {
        if let Input::Bytes(bytes) = input {
            registers.input = bytes;
        }
        let (height, width) = (height / self.stride, width / self.stride);
        let size = |place: Place| height * width * place.factor * place.factor * place.channels;
        let keeps = registers.keeps;
        let mut rest = &self.steps[..];
        while let Some((step, later)) = rest.split_first() {
            rest = later;
            match step {
                Step::FromInput { weights, bias, to } => {
                    let mut out = registers.new_wide(size(*to));
                    let mut values = Vec::new();
                    for (at, out) in out.chunks_mut(TOGETHER * to.channels).enumerate() {
                        input.columns(self.channels, at * TOGETHER, out.len() / to.channels, &mut values);
                        kernel::wide_product(isa, (&values, Lie::Columns), weights, bias, out);
                    }
                    registers.fill(to, Memory::Wide(out));
                }
                Step::FromBytes { of, matrix, requantiser, to } => {
                    let last = match rest {
                        [] => Some((*to, None)),
                        [Step::Round { of: rounded, low, high, to: end }] if rounded == to => {
                            Some((*end, Some((*low, *high))))
                        }
                        _ => None,
                    };
                    // What comes out goes to its planes at once.
                    if let (Some((end, rounding)), Output::Wide(output)) = (last, self.output)
                        && end == output
                    {
                        let (height, width) = (height * end.factor, width * end.factor);
                        let mut planes = zeros(size(end));
                        from_bytes(registers.bytes(of), (matrix, requantiser), |first, some| {
                            if let Some((low, high)) = rounding {
                                kernel::round(isa, some, low, high);
                            }
                            transpose_into(some, end.channels, first, &mut planes);
                        });
                        return Tensor::f32([1, end.channels, height, width], planes);
                    }
                    let mut out = registers.new_wide(size(*to));
                    kernel::product(registers.bytes(of), matrix, requantiser, Out::Values(&mut out));
                    registers.fill(to, Memory::Wide(out));
                }
                Step::FromWide { of, weights, bias, to } => {
                    let mut out = registers.new_wide(size(*to));
                    kernel::wide_product(isa, (registers.wide(of), Lie::Rows), weights, bias, &mut out);
                    registers.fill(to, Memory::Wide(out));
                }
                Step::Pointwise { of, .. } => {
                    let chain = self.chain(self.steps.len() - rest.len() - 1, keeps);
                    rest = &rest[chain.len() - 1..];
                    let to = chain[chain.len() - 1].writes();
                    if let Some((spatial, later)) = rest.split_first()
                        && spatial.unfolds(to)
                        && !is_read(to.register, later)
                        && !keeps
                    {
                        let used = self.spatial((height, width), registers, (chain, of), spatial, later);
                        rest = &later[used..];
                    } else {
                        let mut out = registers.new_bytes(size(to));
                        Chain::new(chain).run(registers.bytes(of), &mut out);
                        registers.fill(&to, Memory::Bytes(out));
                    }
                }
                Step::Depthwise { of, .. } => {
                    let used = self.spatial((height, width), registers, (&[], of), step, later);
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
                Step::Fold { of, block, to } => {
                    let line = width * of.factor * of.channels;
                    if let Some((Step::FromBytes { of: folded, matrix, requantiser, to: end }, later)) =
                        rest.split_first()
                        && folded == to
                        && !is_read(to.register, later)
                        && !keeps
                    {
                        let mut out = registers.new_wide(size(*end));
                        from_blocks(registers.bytes(of), line, *block, (matrix, requantiser), &mut out);
                        registers.fill(end, Memory::Wide(out));
                        rest = later;
                    } else {
                        let mut out = registers.new_bytes(size(*to));
                        fold(registers.bytes(of), line, *block, to.channels, &mut out);
                        registers.fill(to, Memory::Bytes(out));
                    }
                }
            }
            if !keeps {
                let read = step.reads().into_iter().flatten();
                read.filter(|register| !is_read(*register, rest)).for_each(|it| registers.release(it));
            }
        }
        let sides = |place: Place| (height * place.factor, width * place.factor);
        match self.output {
            Output::Bytes(place) => {
                let (height, width) = sides(place);
                let bytes = match registers.filled.get_mut(&place.register) {
                    Some(Memory::Bytes(bytes)) if keeps => bytes.clone(),
                    Some(Memory::Bytes(bytes)) => std::mem::take(bytes),
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
        (height, width): (usize, usize),
        registers: &mut Registers<'_>,
        (source, from): (&[Step], &Place),
        step: &Step,
        later: &[Step],
    ) -> usize {
        let Step::Depthwise { of, unfolding, convolution, border, to } = step else { return 0 };
        let (row, column) = (width * to.factor, height * to.factor);
        let unfolding = unfolding.unwrap_or(Unfolding { block: 1, apart: false });
        let chain = self.chain(self.steps.len() - later.len() - 1, registers.keeps);
        let last = chain[chain.len() - 1].writes();
        let mut out = registers.new_bytes(column * row * last.channels);
        let band = (TOGETHER / row).max(1);
        let mut between = vec![0; if chain.len() > 1 { band * row * to.channels } else { 0 }];
        let mut made = vec![0; if source.is_empty() { 0 } else { width * from.factor * of.channels }];
        let mut groups = registers.bytes(from).chunks_exact(width * from.factor * from.channels);
        let (mut source, mut behind) = (Chain::new(source), Chain::new(&chain[1..]));
        let mut frame = Frame::new(row, to.channels, *border, band, unfolding.block);
        for out in out.chunks_mut(band * row * last.channels) {
            let count = out.len() / (row * last.channels);
            while frame.lines < count + 2 {
                match groups.next() {
                    Some(bytes) if made.is_empty() => {
                        unfolding.write(bytes, width * from.factor, of.channels, frame.next(unfolding.block));
                    }
                    Some(bytes) => {
                        source.run(bytes, &mut made);
                        unfolding.write(&made, width * from.factor, of.channels, frame.next(unfolding.block));
                    }
                    None => frame.border(),
                }
            }
            if chain.len() > 1 {
                let between = &mut between[..count * row * to.channels];
                convolution.run(frame.first(count + 2), row, between);
                behind.run(between, out);
            } else {
                convolution.run(frame.first(count + 2), row, out);
            }
            frame.advance(count);
        }
        registers.fill(&last, Memory::Bytes(out));
        chain.len() - 1
    }

    /// The step `first` and the pointwise ones behind it that alone read what the one before them writes; `first` by itself if
    /// everything is kept.
    fn chain(&self, first: usize, keeps: bool) -> &[Step] {
        let mut end = first + 1;
        while !keeps
            && let Some(Step::Pointwise { of, .. }) = self.steps.get(end)
            && *of == self.steps[end - 1].writes()
            && !is_read(of.register, &self.steps[end + 1..])
        {
            end += 1;
        }
        &self.steps[first..end]
    }
}

/// A register that is filled.
enum Memory {
    Wide(Vec<f32>),
    Bytes(Vec<u8>),
}

/// What steps have left, and memory for the next ones: a picture's worth of fresh memory costs more than a product.
#[derive(Default)]
pub(super) struct Registers<'a> {
    /// What is in [`Place::INPUT`].
    input: &'a [u8],
    filled: HashMap<usize, Memory>,
    free: Vec<Memory>,
    /// All that steps leave stays, and so every step runs by itself.
    keeps: bool,
}

impl Registers<'_> {
    /// They keep what all steps leave, but for what [`Step::Add`] and [`Step::Round`] take over.
    pub fn keeping() -> Self {
        Registers { keeps: true, ..Registers::default() }
    }

    pub fn bytes(&self, place: &Place) -> &[u8] {
        match self.filled.get(&place.register) {
            None if place.register == Place::INPUT => self.input,
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
        match self.take_free(fits) {
            Some(Memory::Bytes(mut bytes)) => {
                bytes.resize(length, 0);
                bytes
            }
            _ => zeros(length),
        }
    }

    fn new_wide(&mut self, length: usize) -> Vec<f32> {
        let fits = |memory: &Memory| matches!(memory, Memory::Wide(values) if values.capacity() >= length);
        match self.take_free(fits) {
            Some(Memory::Wide(mut values)) => {
                values.resize(length, 0.0);
                values
            }
            _ => zeros(length),
        }
    }

    /// What fits; where nothing does, all is given back, so that the allocator can make of it what is wanted.
    fn take_free(&mut self, fits: impl Fn(&Memory) -> bool) -> Option<Memory> {
        let found = self.free.iter().position(fits).map(|at| self.free.swap_remove(at));
        if found.is_none() {
            self.free.clear();
        }
        found
    }
}

/// Positions that go through a chain of products together: what is between two products stays in the cache.
const TOGETHER: usize = 512;

/// Pointwise steps one behind the other, and memory for what is between them.
struct Chain<'a> {
    products: Vec<(&'a Matrix, &'a Requantiser)>,
    between: [Vec<u8>; 2],
}

impl<'a> Chain<'a> {
    fn new(steps: &'a [Step]) -> Self {
        let products: Vec<_> = steps
            .iter()
            .filter_map(|step| match step {
                Step::Pointwise { matrix, requantiser, .. } => Some((matrix, requantiser)),
                _ => None,
            })
            .collect();
        let before = products.iter().rev().skip(1);
        let widest = before.map(|(matrix, _)| matrix.outputs).max().unwrap_or(0);
        Chain { products, between: [vec![0; TOGETHER * widest], vec![0; TOGETHER * widest]] }
    }

    fn run(&mut self, bytes: &[u8], out: &mut [u8]) {
        let Some(((first, _), ((last, to), before))) = self.products.first().zip(self.products.split_last())
        else {
            return;
        };
        let groups = bytes.chunks(TOGETHER * first.inputs).zip(out.chunks_mut(TOGETHER * last.outputs));
        for (bytes, out) in groups {
            let count = bytes.len() / first.inputs;
            let [mut now, mut next] = self.between.each_mut();
            let mut from = bytes;
            for (matrix, requantiser) in before {
                let to = &mut next[..count * matrix.outputs];
                kernel::product(from, matrix, requantiser, Out::Bytes(to));
                std::mem::swap(&mut now, &mut next);
                from = &now[..count * matrix.outputs];
            }
            kernel::product(from, last, to, Out::Bytes(out));
        }
    }
}

/// The product of bytes (M, K), (M, N): `done` gets some rows after the others, with the number of the first.
fn from_bytes(bytes: &[u8], (matrix, to): (&Matrix, &Requantiser), mut done: impl FnMut(usize, &mut [f32])) {
    let mut out = vec![0.0; TOGETHER * matrix.outputs];
    for (at, bytes) in bytes.chunks(TOGETHER * matrix.inputs).enumerate() {
        let out = &mut out[..bytes.len() / matrix.inputs * matrix.outputs];
        kernel::product(bytes, matrix, to, Out::Values(out));
        done(at * TOGETHER, out);
    }
}

/// The product of lines of `line` bytes, folded to positions of K bytes, each a block of `block` lines, and (K, N): some lines at a time,
/// which stay in the cache between the two.
fn from_blocks(
    bytes: &[u8],
    line: usize,
    block: usize,
    (matrix, to): (&Matrix, &Requantiser),
    out: &mut [f32],
) {
    let group = block * line;
    let mut folded = vec![0; group * (TOGETHER * matrix.inputs / group).max(1)];
    let lines = bytes.chunks(folded.len()).zip(out.chunks_mut(folded.len() / matrix.inputs * matrix.outputs));
    for (lines, out) in lines {
        let folded = &mut folded[..lines.len()];
        fold(lines, line, block, matrix.inputs, folded);
        kernel::product(folded, matrix, to, Out::Values(out));
    }
}
