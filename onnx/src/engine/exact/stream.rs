//! Runs a program: the lines of a picture go through all of its steps, some at a time, so that what is between the steps stays in
//! the cache.
//!
//! A step does the lines that are there of what it reads. A depthwise step is a line behind, and what its result is added to waits
//! for it: that is all that is kept from one time to the next.

use std::ops::Range;

use super::aligned::Aligned;
use super::depthwise::Depthwise;
use super::kernel::{self, Isa, Lie, Matrix, Out, Requantiser};
use super::lines::{Frame, Lines, Unfolding, fold, transpose_into};
use super::program::{Input, Output, Place, Program, Step};
use crate::{Elements, Error, Tensor, TensorData};

/// Bytes of the largest result that a step makes at a time, as far as whole lines allow.
const AT_A_TIME: usize = 128 << 10;
/// Positions that go through a chain of products together.
const TOGETHER: usize = 512;

impl Program {
    /// Runs it on `input`, whose height and width are multiples of its stride.
    pub fn run(&self, isa: Isa, input: Input<'_>, size: (usize, usize)) -> Result<Tensor, Error> {
        self.execute(isa, input, size, &mut Registers::default())
    }

    /// Runs it; `registers` may keep the bytes that steps leave.
    pub fn execute<'a>(
        &self,
        isa: Isa,
        input: Input<'a>,
        (height, width): (usize, usize),
        registers: &mut Registers<'a>,
    ) -> Result<Tensor, Error> {
        let grid = Grid { height: height / self.stride, width: width / self.stride };
        if let Input::Bytes(bytes) = input {
            registers.input = bytes;
        }
        let (Output::Bytes(end) | Output::Wide(end)) = self.output;
        let (rows, columns) = (grid.lines(end), grid.row(end));
        let mut planes = Aligned::default();
        if let Output::Wide(_) = self.output {
            planes = Aligned::zeros(rows * columns * end.channels);
        }
        for to in self.steps.iter().filter(|step| !step.is_wide()).map(Step::writes) {
            if registers.keeps || to == end {
                registers.bytes.entry(to).values = Aligned::zeros(grid.lines(to) * grid.line(to));
            }
        }
        let mut stages = self.stages(registers.keeps, grid);
        let band = self.band(grid);
        for top in (0..grid.height).step_by(band) {
            let source = Source { isa, input, channels: self.channels, known: grid.height.min(top + band) };
            for at in 0..stages.len() {
                let made = stages[at].run(source, grid, registers);
                if let Output::Wide(end) = self.output
                    && end == stages[at].to
                {
                    let values = registers.wide.lines(end, made.clone(), grid.line(end));
                    transpose_into(values, end.channels, made.start * columns, &mut planes);
                    registers.wide.release(end, made.end, grid.line(end));
                }
                for of in stages[at].reads() {
                    let readers = stages.iter().filter(|stage| stage.reads().any(|other| other == of));
                    let read = readers.map(|stage| stage.done).min().unwrap_or(0);
                    registers.release(of, read, grid.line(of));
                }
            }
        }
        match self.output {
            Output::Bytes(_) => {
                let bytes = match registers.keeps {
                    true => registers.bytes(&end).to_vec().into(),
                    false => Elements::of_engine(std::mem::take(&mut registers.bytes.entry(end).values)),
                };
                Tensor::new([1, rows, columns, end.channels], TensorData::U8(bytes))
            }
            Output::Wide(_) => {
                Tensor::new([1, end.channels, rows, columns], TensorData::F32(Elements::of_engine(planes)))
            }
        }
    }

    /// How many lines of the coarsest grid go together.
    fn band(&self, grid: Grid) -> usize {
        let bytes = |step: &Step| {
            let to = step.writes();
            grid.line(to) * to.factor * if step.is_wide() { size_of::<f32>() } else { 1 }
        };
        let largest = self.steps.iter().map(bytes).max().unwrap_or(0);
        (AT_A_TIME / largest.max(1)).max(1)
    }

    /// The steps, those together that read one another's results alone; each by itself where all results are kept.
    fn stages(&self, apart: bool, grid: Grid) -> Vec<Stage<'_>> {
        let is_read = |place: Place, by: &[Step]| by.iter().any(|step| step.reads().contains(&Some(place)));
        let mut stages = Vec::new();
        let mut rest = &self.steps[..];
        while let [first, later @ ..] = rest {
            let leads = !apart && matches!(first, Step::Pointwise { .. } | Step::Depthwise { .. });
            let mut count = 0;
            while leads
                && let Some(Step::Pointwise { of, .. }) = later.get(count)
                && *of == rest[count].writes()
                && !is_read(*of, &later[count + 1..])
            {
                count += 1;
            }
            stages.push(Stage::new(first, &later[..count], grid));
            rest = &later[count..];
        }
        stages
    }
}

/// The coarsest grid of a picture.
#[derive(Clone, Copy)]
struct Grid {
    height: usize,
    width: usize,
}

impl Grid {
    /// The lines of a register.
    fn lines(self, place: Place) -> usize {
        self.height * place.factor
    }

    /// The positions of a line.
    fn row(self, place: Place) -> usize {
        self.width * place.factor
    }

    /// The elements of a line.
    fn line(self, place: Place) -> usize {
        self.row(place) * place.channels
    }
}

/// What goes in, as far as it is `known` by now: lines of the coarsest grid.
#[derive(Clone, Copy)]
struct Source<'a> {
    isa: Isa,
    input: Input<'a>,
    channels: usize,
    known: usize,
}

impl Source<'_> {
    /// The values of each plane from `first` on: (C, `count`). Bytes have no planes.
    fn columns(self, first: usize, count: usize, columns: &mut Aligned<f32>) {
        if columns.len() != self.channels * count {
            *columns = Aligned::zeros(self.channels * count);
        }
        let columns = columns.chunks_exact_mut(count);
        match self.input {
            Input::Values(all) => {
                let planes = all.chunks_exact(all.len() / self.channels);
                planes.zip(columns).for_each(|(plane, to)| to.copy_from_slice(&plane[first..][..count]));
            }
            Input::Integers(all) => {
                let planes = all.chunks_exact(all.len() / self.channels);
                planes
                    .zip(columns)
                    .for_each(|(plane, to)| kernel::widen(self.isa, &plane[first..][..count], to));
            }
            Input::Bytes(_) => {}
        }
    }
}

/// A step, and those behind it that run with it.
struct Stage<'a> {
    step: &'a Step,
    /// The product of the step, if it is one, and those behind it.
    chain: Chain<'a>,
    /// If the step is a depthwise one.
    spatial: Option<Spatial<'a>>,
    /// What came in last, if the step reads that.
    columns: Aligned<f32>,
    to: Place,
    /// How many lines of what the step reads have been read.
    done: usize,
}

impl<'a> Stage<'a> {
    fn new(step: &'a Step, behind: &'a [Step], grid: Grid) -> Self {
        let products = std::iter::once(step).chain(behind).filter_map(|step| match step {
            Step::Pointwise { matrix, requantiser, .. } => Some((matrix, requantiser)),
            _ => None,
        });
        let spatial = match step {
            Step::Depthwise { unfolding, convolution, border, to, .. } => {
                let unfolding = unfolding.unwrap_or(Unfolding { block: 1, apart: false });
                let band = (TOGETHER / grid.row(*to).max(1)).max(unfolding.block);
                let frame = Frame::new(grid.row(*to), to.channels, *border, band, unfolding.block);
                let between = Aligned::zeros(if behind.is_empty() { 0 } else { band * grid.line(*to) });
                Some(Spatial { convolution, unfolding, frame, between })
            }
            _ => None,
        };
        let to = behind.last().unwrap_or(step).writes();
        Stage {
            step,
            chain: Chain::new(products.collect()),
            spatial,
            columns: Aligned::default(),
            to,
            done: 0,
        }
    }

    fn reads(&self) -> impl Iterator<Item = Place> + use<> {
        self.step.reads().into_iter().flatten()
    }

    /// Does the lines that it can by now: which ones of its result.
    fn run(&mut self, source: Source<'_>, grid: Grid, registers: &mut Registers<'_>) -> Range<usize> {
        let there = |of: Place| match of.register {
            Place::INPUT => source.known * of.factor,
            _ => registers.end(of),
        };
        let end = self.reads().map(there).min().unwrap_or(source.known * self.to.factor);
        let lines = std::mem::replace(&mut self.done, end)..end;
        let made = match self.step {
            Step::Unfold { unfolding, .. } => lines.start * unfolding.block..end * unfolding.block,
            Step::Fold { block, .. } => lines.start / block..end / block,
            Step::Depthwise { of, unfolding, .. } => {
                let block = unfolding.map_or(1, |unfolding| unfolding.block);
                let last = usize::from(end < grid.lines(*of));
                (lines.start * block).saturating_sub(1)..(end * block).saturating_sub(last)
            }
            _ => lines.clone(),
        };
        if self.step.is_wide() {
            let mut entry = registers.wide.take(self.to);
            let out = entry.next(made.len(), grid.line(self.to));
            self.wide(source, grid, (lines, registers), out);
            *registers.wide.entry(self.to) = entry;
        } else {
            let mut entry = registers.bytes.take(self.to);
            let out = entry.next(made.len(), grid.line(self.to));
            self.bytes(source.isa, grid, (lines, registers), out);
            *registers.bytes.entry(self.to) = entry;
        }
        made
    }

    /// Wide values of `lines` of what the step reads.
    fn wide(
        &mut self,
        source: Source<'_>,
        grid: Grid,
        (lines, registers): (Range<usize>, &Registers<'_>),
        out: &mut [f32],
    ) {
        let values = |of: &Place| registers.wide.lines(*of, lines.clone(), grid.line(*of));
        let bytes = |of: &Place| registers.lines(*of, lines.clone(), grid.line(*of));
        let isa = source.isa;
        match self.step {
            Step::FromInput { weights, bias, to } => {
                let (first, count) = (lines.start * grid.row(*to), lines.len() * grid.row(*to));
                source.columns(first, count, &mut self.columns);
                kernel::wide_product(isa, (&self.columns, Lie::Columns), weights, bias, out);
            }
            Step::FromBytes { of, matrix, requantiser, .. } => {
                kernel::product(bytes(of), matrix, requantiser, Out::Values(out));
            }
            Step::FromWide { of, weights, bias, .. } => {
                kernel::wide_product(isa, (values(of), Lie::Rows), weights, bias, out);
            }
            Step::Add { of, bytes: added, scale, .. } => {
                kernel::add(isa, values(of), bytes(added), scale.scale, scale.zero, out);
            }
            Step::Round { of, low, high, .. } => kernel::round(isa, values(of), *low, *high, out),
            _ => {}
        }
    }

    /// Bytes of `lines` of what the step reads.
    fn bytes(
        &mut self,
        isa: Isa,
        grid: Grid,
        (lines, registers): (Range<usize>, &Registers<'_>),
        out: &mut [u8],
    ) {
        let bytes = |of: &Place| registers.lines(*of, lines.clone(), grid.line(*of));
        match self.step {
            Step::Pointwise { of, .. } => self.chain.run(bytes(of), out),
            Step::Depthwise { of, .. } => {
                let Some(spatial) = &mut self.spatial else { return };
                let is_last = lines.end == grid.lines(*of);
                let groups = bytes(of).chunks_exact(grid.line(*of));
                spatial.run((groups, is_last, grid.row(*of)), &mut self.chain, out);
            }
            Step::Quantise { of, scale, .. } => {
                let values = registers.wide.lines(*of, lines, grid.line(*of));
                kernel::quantise(isa, values, scale.scale.recip(), scale.zero, out);
            }
            Step::Unfold { of, unfolding, to } => {
                let to = Lines { bytes: out, line: grid.line(*to), before: 0, after: 0 };
                unfolding.write(bytes(of), grid.row(*of), of.channels, to);
            }
            Step::Fold { of, block, to } => fold(bytes(of), grid.line(*of), *block, to.channels, out),
            _ => {}
        }
    }
}

/// A depthwise convolution, some lines at a time.
struct Spatial<'a> {
    convolution: &'a Depthwise,
    unfolding: Unfolding,
    frame: Frame,
    /// What goes to the products behind it.
    between: Aligned<u8>,
}

impl Spatial<'_> {
    /// On `groups` of lines, `row` positions in each, the `last` ones of the picture or not.
    fn run(
        &mut self,
        (mut groups, is_last, row): (std::slice::ChunksExact<'_, u8>, bool, usize),
        chain: &mut Chain<'_>,
        mut out: &mut [u8],
    ) {
        let Spatial { convolution, unfolding, frame, between } = self;
        let (mut border, channels) = (is_last, convolution.requantiser.bias.len());
        let line = row * unfolding.block;
        loop {
            while frame.lines < frame.band + 2
                && let Some(group) = groups.next()
            {
                unfolding.write(group, row, group.len() / row, frame.next(unfolding.block));
            }
            if frame.lines < frame.band + 2 && std::mem::take(&mut border) {
                frame.border();
            }
            let count = frame.lines.saturating_sub(2).min(frame.band);
            let length = count * line * chain.outputs().unwrap_or(channels);
            let Some(now) = out.split_off_mut(..length).filter(|now| !now.is_empty()) else { return };
            if chain.products.is_empty() {
                convolution.run(frame.first(count + 2), line, now);
            } else {
                let between = &mut between[..count * line * channels];
                convolution.run(frame.first(count + 2), line, between);
                chain.run(between, now);
            }
            frame.advance(count);
        }
    }
}

/// Products of bytes one behind the other, some positions at a time, and memory for what is between them.
struct Chain<'a> {
    products: Vec<(&'a Matrix, &'a Requantiser)>,
    between: [Aligned<u8>; 2],
}

impl<'a> Chain<'a> {
    fn new(products: Vec<(&'a Matrix, &'a Requantiser)>) -> Self {
        let before = products.iter().rev().skip(1);
        let widest = before.map(|(matrix, _)| matrix.outputs).max().unwrap_or(0);
        Chain { products, between: [TOGETHER * widest; 2].map(Aligned::zeros) }
    }

    /// The channels of the last one.
    fn outputs(&self) -> Option<usize> {
        self.products.last().map(|(matrix, _)| matrix.outputs)
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

/// What steps have left and others have yet to read.
#[derive(Default)]
pub(super) struct Registers<'a> {
    /// What is in [`Place::INPUT`].
    input: &'a [u8],
    bytes: Table<u8>,
    wide: Table<f32>,
    /// All bytes stay, and so every step runs by itself.
    keeps: bool,
}

impl Registers<'_> {
    /// They keep all bytes that steps leave.
    pub fn keeping() -> Self {
        Registers { keeps: true, ..Registers::default() }
    }

    /// All bytes of a register, if they were kept.
    pub fn bytes(&self, place: &Place) -> &[u8] {
        match place.register {
            Place::INPUT => self.input,
            register => self.bytes.entries.get(register).map_or(&[], |entry| &entry.values),
        }
    }

    fn lines(&self, place: Place, lines: Range<usize>, line: usize) -> &[u8] {
        match place.register {
            Place::INPUT => &self.input[lines.start * line..lines.end * line],
            _ => self.bytes.lines(place, lines, line),
        }
    }

    /// How many lines a register has had.
    fn end(&self, place: Place) -> usize {
        let [bytes, wide] = [self.bytes.end(place), self.wide.end(place)];
        bytes.max(wide)
    }

    /// The lines before `end` are done with.
    fn release(&mut self, place: Place, end: usize, line: usize) {
        if !self.keeps {
            self.bytes.release(place, end, line);
        }
        self.wide.release(place, end, line);
    }
}

/// Registers of one kind, by their numbers, and memory that none of them needs: a band's worth of fresh memory costs more than a
/// product.
#[derive(Default)]
struct Table<T> {
    entries: Vec<Entry<T>>,
    free: Vec<Aligned<T>>,
}

/// Some lines of a register.
#[derive(Default)]
struct Entry<T> {
    values: Aligned<T>,
    lines: Range<usize>,
}

impl<T: Copy + Default> Table<T> {
    fn entry(&mut self, place: Place) -> &mut Entry<T> {
        if self.entries.len() <= place.register {
            self.entries.resize_with(place.register + 1, Entry::default);
        }
        &mut self.entries[place.register]
    }

    fn end(&self, place: Place) -> usize {
        self.entries.get(place.register).map_or(0, |entry| entry.lines.end)
    }

    fn lines(&self, place: Place, lines: Range<usize>, line: usize) -> &[T] {
        self.entries.get(place.register).map_or(&[], |entry| {
            let first = entry.lines.start;
            &entry.values[(lines.start - first) * line..(lines.end - first) * line]
        })
    }

    /// Takes a register away, for more lines to be written.
    fn take(&mut self, place: Place) -> Entry<T> {
        let mut entry = std::mem::take(self.entry(place));
        if entry.values.is_empty() {
            entry.values = self.free.pop().unwrap_or_default();
        }
        entry
    }

    /// The lines before `end` are done with.
    fn release(&mut self, place: Place, end: usize, line: usize) {
        let Some(entry) = self.entries.get_mut(place.register).filter(|entry| entry.lines.end > 0) else {
            return;
        };
        let Range { start, end: last } = entry.lines;
        entry.lines.start = end;
        if end == last {
            self.free.push(std::mem::take(&mut entry.values));
        } else {
            entry.values.copy_within((end - start) * line..(last - start) * line, 0);
        }
    }
}

impl<T: Copy + Default> Entry<T> {
    /// The next lines, to be written.
    fn next(&mut self, count: usize, line: usize) -> &mut [T] {
        let first = self.lines.len() * line;
        self.lines.end += count;
        let length = self.lines.len() * line;
        if self.values.len() < length {
            let mut values = Aligned::zeros(length);
            values[..first].copy_from_slice(&self.values[..first]);
            self.values = values;
        }
        &mut self.values[first..length]
    }
}
