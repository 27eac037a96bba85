//! How bytes lie: lines with a border around them, blocks of pixels as channels and back, planes.

use super::aligned::Aligned;

/// Channels to pixels, in blocks of `block` x `block`: (block, block, C), or with `apart` (C, block, block).
#[derive(Debug, Clone, Copy)]
pub(super) struct Unfolding {
    pub block: usize,
    pub apart: bool,
}

impl Unfolding {
    /// Writes (H, W, depth) `bytes`, `row` being W, as lines of pixels.
    pub fn write(self, bytes: &[u8], row: usize, depth: usize, lines: Lines<'_>) {
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

/// Lines of bytes with something before and after each.
pub(super) struct Lines<'a> {
    pub bytes: &'a mut [u8],
    pub line: usize,
    pub before: usize,
    pub after: usize,
}

/// Some lines of a picture, with a border of one pixel on every side: the first line is the border above.
pub(super) struct Frame {
    bytes: Aligned<u8>,
    line: usize,
    pixel: usize,
    border: u8,
    /// How many lines, with their neighbours, there is room for.
    pub band: usize,
    /// How many lines are there.
    pub lines: usize,
}

impl Frame {
    /// For `band` lines and their neighbours at a time; `block` lines come together.
    pub fn new(row: usize, channels: usize, border: u8, band: usize, block: usize) -> Self {
        let line = row * channels;
        let length = (band + 2 + block) * (line + 2 * channels);
        let bytes = Aligned::filled(length, |bytes| bytes.extend(std::iter::repeat_n(border, length)));
        Frame { bytes, line, pixel: channels, border, band, lines: 1 }
    }

    fn outer(&self) -> usize {
        self.line + 2 * self.pixel
    }

    /// The next lines, to be written.
    pub fn next(&mut self, count: usize) -> Lines<'_> {
        let (outer, first) = (self.outer(), self.lines);
        self.lines += count;
        let bytes = &mut self.bytes[first * outer..][..count * outer];
        Lines { bytes, line: self.line, before: self.pixel, after: self.pixel }
    }

    /// The next line is the border below.
    pub fn border(&mut self) {
        let border = self.border;
        self.next(1).bytes.fill(border);
    }

    pub fn first(&self, count: usize) -> &[u8] {
        &self.bytes[..count * self.outer()]
    }

    /// The first lines are done with.
    pub fn advance(&mut self, count: usize) {
        let outer = self.outer();
        self.bytes.copy_within(count * outer..self.lines * outer, 0);
        self.lines -= count;
    }
}

/// Lines of `line` bytes as positions of `depth` bytes, each a block of `block` lines.
pub(super) fn fold(bytes: &[u8], line: usize, block: usize, depth: usize, out: &mut [u8]) {
    let part = depth / block;
    for (lines, out) in bytes.chunks_exact(block * line).zip(out.chunks_exact_mut(line * block)) {
        for (i, line) in lines.chunks_exact(line).enumerate() {
            for (from, to) in line.chunks_exact(part).zip(out.chunks_exact_mut(depth)) {
                to[i * part..][..part].copy_from_slice(from);
            }
        }
    }
}

/// (M, C) values to (C, M).
pub(super) fn transposed(values: &[f32], channels: usize) -> Vec<f32> {
    let mut planes = vec![0.0; values.len()];
    transpose_into(values, channels, 0, &mut planes);
    planes
}

/// The rows (.., C) of a matrix from row `first` on to their columns of (C, M) `planes`.
pub(super) fn transpose_into(values: &[f32], channels: usize, first: usize, planes: &mut [f32]) {
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
