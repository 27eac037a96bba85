//! The symbols of a channel with the margin that its neighbourhoods reach into.

/// Extra columns on each side of a plane, and extra rows above.
pub(super) const MARGIN: usize = 2;

/// The symbols, or the prediction errors, of one channel, with a margin: zeros above, and everywhere else the
/// nearest value that is known when it is needed.
#[derive(Clone)]
pub(super) struct Plane {
    pub values: Vec<i32>,
    pub stride: usize,
}

impl Plane {
    pub fn new(height: usize, width: usize) -> Self {
        let stride = width + 2 * MARGIN;
        Self { values: vec![0; (height + MARGIN + 1) * stride], stride }
    }

    /// Where the first value of a row is.
    pub fn row(&self, y: usize) -> usize {
        (y + MARGIN) * self.stride + MARGIN
    }

    /// Before a row is coded, its left margin repeats the first value of the row above.
    pub fn begin_row(&mut self, y: usize) {
        let start = self.row(y);
        let above = self.values[start - self.stride];
        self.values[start - MARGIN..start].fill(if y == 0 { 0 } else { above });
    }

    /// After it, both margins repeat its own ends.
    pub fn end_row(&mut self, y: usize) {
        let (start, width) = (self.row(y), self.stride - 2 * MARGIN);
        let (first, last) = (self.values[start], self.values[start + width - 1]);
        self.values[start - MARGIN..start].fill(first);
        self.values[start + width..start + width + MARGIN].fill(last);
    }

    /// After the last row, the row below repeats it.
    pub fn end(&mut self, height: usize) {
        let start = (height - 1 + MARGIN) * self.stride;
        self.values.copy_within(start..start + self.stride, start + self.stride);
    }

    /// W, N, NW, NE, WW, NN: in the order of their weight in the prior.
    #[inline]
    pub fn causal(&self, i: usize) -> [i32; 6] {
        let (v, s) = (&self.values, self.stride);
        [v[i - 1], v[i - s], v[i - s - 1], v[i - s + 1], v[i - 2], v[i - 2 * s]]
    }

    /// NNE, NEE, NNW, NWW.
    #[inline]
    pub fn outer(&self, i: usize) -> [i32; 4] {
        let (v, s) = (&self.values, self.stride);
        [v[i - 2 * s + 1], v[i - s + 2], v[i - 2 * s - 1], v[i - s - 2]]
    }

    /// The place itself, W, E, N, S, NW, NE, SW, SE.
    #[inline]
    pub fn around(&self, i: usize) -> [i32; 9] {
        let (v, s) = (&self.values, self.stride);
        let (n, c, d) = (&v[i - s - 1..i - s + 2], &v[i - 1..i + 2], &v[i + s - 1..i + s + 2]);
        [c[1], c[0], c[2], n[1], d[1], n[0], n[2], d[0], d[2]]
    }
}
