//! The loops of the exact engine, for the vectors that the processor has.
//!
//! The one leaf of this crate with `unsafe` in it: functions for processor features that were found, and loads through pointers into
//! slices whose lengths were checked. Every variant gives the same integers: products of unsigned bytes with 7-bit weights, added
//! up to less than 2^24 (docs/FORMAT.md), then `round half to even (sum * 2^-s)`, which is exact in `f32`.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

/// Columns of a vector of sums.
pub(super) const LANES: usize = 16;
/// Bits of a digit of a weight: from -64 to 64, so that the AVX2 instructions do not saturate.
pub(super) const DIGIT_BITS: u32 = 7;
/// Rows that a product of matrices takes at a time.
const ROWS: usize = 6;
/// The same with the half as long vectors.
const ROWS_AVX2: usize = 4;

/// What the processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isa {
    Avx2,
    /// AVX-512 with its instructions for bytes (VNNI).
    Vnni,
}

impl Isa {
    /// The best there is; `None` where this engine would be slow.
    pub fn find() -> Option<Self> {
        let has_vnni = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        if has_vnni { Some(Isa::Vnni) } else { is_x86_feature_detected!("avx2").then_some(Isa::Avx2) }
    }
}

/// How sums become bytes.
#[derive(Debug)]
pub(super) struct Requantiser {
    /// Added to the sum of each output channel.
    pub bias: Vec<i32>,
    /// A power of two for each output channel.
    pub scale: Vec<f32>,
    pub zero: u8,
}

/// Weights (K, N) as the products take them: digits of [`DIGIT_BITS`] bits, the highest ones first, each (K / 4, N, 4).
#[derive(Debug)]
pub(super) struct Matrix {
    pub inputs: usize,
    pub outputs: usize,
    digits: Vec<Vec<i8>>,
}

impl Matrix {
    /// The digits of `weights` are (N, K) each; K is a multiple of 4 and N of [`LANES`].
    pub fn new(weights: &[Vec<i8>], inputs: usize) -> Option<Self> {
        let length = weights.first()?.len();
        let outputs = length.checked_div(inputs)?;
        if !inputs.is_multiple_of(4)
            || !outputs.is_multiple_of(LANES)
            || weights.iter().any(|digit| digit.len() != inputs * outputs)
            || outputs == 0
        {
            return None;
        }
        let packed = |digit: &Vec<i8>| {
            let mut packed = Vec::with_capacity(length);
            for k in (0..inputs).step_by(4) {
                for n in 0..outputs {
                    packed.extend_from_slice(&digit[n * inputs + k..][..4]);
                }
            }
            packed
        };
        Some(Matrix { inputs, outputs, digits: weights.iter().map(packed).collect() })
    }

    /// The weights (N, K), each the sum of its digits.
    pub fn weights(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.inputs * self.outputs];
        for digit in &self.digits {
            for (k, column) in digit.chunks_exact(4 * self.outputs).enumerate() {
                for (n, four) in column.chunks_exact(4).enumerate() {
                    let to = &mut weights[n * self.inputs + 4 * k..][..4];
                    let digit = (1 << DIGIT_BITS) as f32;
                    to.iter_mut().zip(four).for_each(|(to, &w)| *to = *to * digit + f32::from(w));
                }
            }
        }
        weights
    }
}

/// Columns of a product that are taken at a time: the first one, and how many vectors. As even as can be: three and three rather
/// than four and two.
fn blocks(columns: usize) -> impl Iterator<Item = (usize, usize)> {
    const MOST: usize = 4;
    let vectors = columns / LANES;
    let count = vectors.div_ceil(MOST);
    (0..count).map(move |block| {
        let [first, next] = [block, block + 1].map(|block| block * vectors / count);
        (first * LANES, next - first)
    })
}

/// Calls a function of a number of vectors, which is a constant in it.
macro_rules! with_vectors {
    ($count:expr, $call:ident::<$rows:literal>($($argument:expr),*)) => {
        match $count {
            1 => $call::<$rows, 1>($($argument),*),
            2 => $call::<$rows, 2>($($argument),*),
            3 => $call::<$rows, 3>($($argument),*),
            _ => $call::<$rows, 4>($($argument),*),
        }
    };
}

/// What a product becomes, (M, N).
pub(super) enum Out<'a> {
    /// Requantised.
    Bytes(&'a mut [u8]),
    /// Times the scale of the requantiser.
    Values(&'a mut [f32]),
}

/// (M, K) bytes times (K, N) weights.
pub(super) fn product(isa: Isa, bytes: &[u8], matrix: &Matrix, to: &Requantiser, mut out: Out<'_>) {
    let rows = bytes.len() / matrix.inputs;
    assert_eq!(bytes.len(), rows * matrix.inputs);
    let length = match &out {
        Out::Bytes(bytes) => bytes.len(),
        Out::Values(values) => values.len(),
    };
    assert_eq!(length, rows * matrix.outputs);
    let out = &mut out;
    assert!(to.bias.len() == matrix.outputs && to.scale.len() == matrix.outputs);
    let whole = rows - rows % ROWS;
    for (column, count) in blocks(matrix.outputs) {
        // SAFETY: `isa` was found on this processor, and the lengths that the loops go by were checked above.
        unsafe {
            match isa {
                Isa::Vnni => {
                    with_vectors!(count, product_vnni::<6>(bytes, matrix, to, out, column, 0..whole));
                    with_vectors!(count, product_vnni::<1>(bytes, matrix, to, out, column, whole..rows));
                }
                Isa::Avx2 => {
                    for half in 0..2 * count {
                        let column = column + half * LANES / 2;
                        product_avx2(bytes, matrix, to, out, column, rows);
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn product_vnni<const R: usize, const V: usize>(
    bytes: &[u8],
    matrix: &Matrix,
    to: &Requantiser,
    out: &mut Out<'_>,
    column: usize,
    rows: std::ops::Range<usize>,
) {
    let Matrix { inputs, outputs, digits } = matrix;
    let (inputs, outputs) = (*inputs, *outputs);
    let zero = _mm512_set1_epi32(to.zero.into());
    for row in rows.step_by(R) {
        let mut sums = [[_mm512_setzero_si512(); V]; R];
        for (digit, packed) in digits.iter().enumerate() {
            if digit > 0 {
                sums.iter_mut().flatten().for_each(|sum| *sum = _mm512_slli_epi32::<DIGIT_BITS>(*sum));
            }
            for k in (0..inputs).step_by(4) {
                let mut weights = [_mm512_setzero_si512(); V];
                for (v, weights) in weights.iter_mut().enumerate() {
                    // SAFETY: `packed` has inputs * outputs bytes, and column + 16 V <= outputs.
                    let at = unsafe { packed.as_ptr().add(k * outputs + (column + LANES * v) * 4) };
                    *weights = unsafe { _mm512_loadu_si512(at.cast()) };
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: row + R <= rows, and k + 4 <= inputs.
                    let at = unsafe { bytes.as_ptr().add((row + r) * inputs + k) };
                    let four = _mm512_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() });
                    for v in 0..V {
                        sums[v] = _mm512_dpbusd_epi32(sums[v], four, weights[v]);
                    }
                }
            }
        }
        for v in 0..V {
            let at = column + LANES * v;
            // SAFETY: both have `outputs` elements.
            let bias = unsafe { _mm512_loadu_si512(to.bias.as_ptr().add(at).cast()) };
            let scale = unsafe { _mm512_loadu_ps(to.scale.as_ptr().add(at)) };
            for (r, sums) in sums.iter().enumerate() {
                let sum = _mm512_cvtepi32_ps(_mm512_add_epi32(sums[v], bias));
                let at = (row + r) * outputs + at;
                // SAFETY: `out` has `outputs` elements for each row.
                match out {
                    Out::Bytes(bytes) => unsafe {
                        _mm_storeu_si128(bytes.as_mut_ptr().add(at).cast(), levels(sum, scale, zero));
                    },
                    Out::Values(values) => unsafe {
                        _mm512_storeu_ps(values.as_mut_ptr().add(at), _mm512_mul_ps(sum, scale));
                    },
                }
            }
        }
    }
}

/// Sixteen values times `scale`, rounded, from `zero` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn levels(values: __m512, scale: __m512, zero: __m512i) -> __m128i {
    let rounded = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(values, scale)), zero);
    let clipped = _mm512_min_epi32(_mm512_max_epi32(rounded, _mm512_setzero_si512()), _mm512_set1_epi32(255));
    _mm512_cvtepi32_epi8(clipped)
}

/// Eight columns. A pair of products stays below 2^15, because weights have 7 bits.
#[target_feature(enable = "avx2")]
unsafe fn product_avx2(
    bytes: &[u8],
    matrix: &Matrix,
    to: &Requantiser,
    out: &mut Out<'_>,
    column: usize,
    rows: usize,
) {
    const R: usize = ROWS_AVX2;
    let Matrix { inputs, outputs, digits } = matrix;
    let (inputs, outputs) = (*inputs, *outputs);
    let ones = _mm256_set1_epi16(1);
    for row in (0..rows).step_by(R) {
        let count = R.min(rows - row);
        let mut sums = [_mm256_setzero_si256(); R];
        for (digit, packed) in digits.iter().enumerate() {
            if digit > 0 {
                for sum in &mut sums {
                    *sum = _mm256_slli_epi32::<{ DIGIT_BITS as i32 }>(*sum);
                }
            }
            for k in (0..inputs).step_by(4) {
                // SAFETY: `packed` has inputs * outputs bytes, and column + 8 <= outputs.
                let at = unsafe { packed.as_ptr().add(k * outputs + column * 4) };
                let weights = unsafe { _mm256_loadu_si256(at.cast()) };
                for (r, sum) in sums.iter_mut().enumerate() {
                    // The last row stands in for those that are not there.
                    let row = row + r.min(count - 1);
                    // SAFETY: row < rows, and k + 4 <= inputs.
                    let at = unsafe { bytes.as_ptr().add(row * inputs + k) };
                    let four = _mm256_set1_epi32(unsafe { at.cast::<i32>().read_unaligned() });
                    let pairs = _mm256_maddubs_epi16(four, weights);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for (r, sum) in sums.iter().enumerate().take(count) {
            let mut eight = [0i32; 8];
            // SAFETY: the array has 32 bytes.
            unsafe { _mm256_storeu_si256(eight.as_mut_ptr().cast(), *sum) };
            let at = (row + r) * outputs + column;
            let (bias, scale) = (&to.bias[column..][..8], &to.scale[column..][..8]);
            match out {
                Out::Bytes(bytes) => {
                    let bytes = &mut bytes[at..][..8];
                    for i in 0..8 {
                        bytes[i] = level(eight[i] + bias[i], scale[i], to.zero);
                    }
                }
                Out::Values(values) => {
                    let values = &mut values[at..][..8];
                    for i in 0..8 {
                        values[i] = (eight[i] + bias[i]) as f32 * scale[i];
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn level(sum: i32, scale: f32, zero: u8) -> u8 {
    ((sum as f32 * scale).round_ties_even() + f32::from(zero)).clamp(0.0, 255.0) as u8
}

/// A depthwise 3x3 convolution of (H, W, C) bytes whose border is already there: `bytes` are (H + 2, W + 2, C), `weights` (9, C);
/// C is a multiple of [`LANES`].
pub(super) fn depthwise(
    isa: Isa,
    bytes: &[u8],
    width: usize,
    weights: &[i32],
    to: &Requantiser,
    out: &mut [u8],
) {
    let channels = to.bias.len();
    let height = out.len() / (width * channels);
    assert_eq!(out.len(), height * width * channels);
    assert_eq!(bytes.len(), (height + 2) * (width + 2) * channels);
    assert!(channels.is_multiple_of(LANES) && to.scale.len() == channels && weights.len() == 9 * channels);
    // SAFETY: `isa` was found on this processor, and the lengths that the loops go by were checked above.
    unsafe {
        match isa {
            Isa::Vnni => depthwise_avx512(bytes, width, weights, to, out),
            Isa::Avx2 => depthwise_avx2(bytes, width, weights, to, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn depthwise_avx512(bytes: &[u8], width: usize, weights: &[i32], to: &Requantiser, out: &mut [u8]) {
    let channels = to.bias.len();
    let stride = (width + 2) * channels;
    let zero = _mm512_set1_epi32(to.zero.into());
    for (y, line) in out.chunks_exact_mut(width * channels).enumerate() {
        for c in (0..channels).step_by(LANES) {
            // SAFETY: all have `channels` elements, the weights nine times as many.
            let bias = unsafe { _mm512_loadu_si512(to.bias.as_ptr().add(c).cast()) };
            let scale = unsafe { _mm512_loadu_ps(to.scale.as_ptr().add(c)) };
            let mut taps = [bias; 9];
            for (tap, to) in taps.iter_mut().enumerate() {
                *to = unsafe { _mm512_loadu_si512(weights.as_ptr().add(tap * channels + c).cast()) };
            }
            for x in 0..width {
                let mut sum = bias;
                for (tap, weights) in taps.iter().enumerate() {
                    let at = (y + tap / 3) * stride + (x + tap % 3) * channels + c;
                    // SAFETY: `bytes` has two rows and two columns more than `out`.
                    let from = unsafe { _mm_loadu_si128(bytes.as_ptr().add(at).cast()) };
                    sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(_mm512_cvtepu8_epi32(from), *weights));
                }
                let sum = _mm512_cvtepi32_ps(sum);
                // SAFETY: `line` has `channels` bytes for each of `width` positions.
                let to = unsafe { line.as_mut_ptr().add(x * channels + c) };
                unsafe { _mm_storeu_si128(to.cast(), levels(sum, scale, zero)) };
            }
        }
    }
}

#[target_feature(enable = "avx2")]
fn depthwise_avx2(bytes: &[u8], width: usize, weights: &[i32], to: &Requantiser, out: &mut [u8]) {
    let channels = to.bias.len();
    let stride = (width + 2) * channels;
    for (y, line) in out.chunks_exact_mut(width * channels).enumerate() {
        for (x, pixel) in line.chunks_exact_mut(channels).enumerate() {
            for (at, pixel) in pixel.chunks_exact_mut(LANES).enumerate() {
                let c = at * LANES;
                let mut sums = [0i32; LANES];
                sums.copy_from_slice(&to.bias[c..][..LANES]);
                for tap in 0..9 {
                    let from = &bytes[(y + tap / 3) * stride + (x + tap % 3) * channels + c..][..LANES];
                    let weights = &weights[tap * channels + c..][..LANES];
                    for i in 0..LANES {
                        sums[i] += i32::from(from[i]) * weights[i];
                    }
                }
                let scale = &to.scale[c..][..LANES];
                for i in 0..LANES {
                    pixel[i] = level(sums[i], scale[i], to.zero);
                }
            }
        }
    }
}

/// Where the values (M, K) of a wide product lie.
#[derive(Clone, Copy)]
pub(super) enum Lie {
    /// Row by row.
    Rows,
    /// Column by column.
    Columns,
}

/// The values (M, K) of a wide product, and the columns in which some rows have something. Most of a latent is 0: six positions side by
/// side have something in a third of its channels.
struct Wide<'a> {
    values: &'a [f32],
    /// From one row to the next, and from one column to the next.
    steps: [usize; 2],
    inputs: usize,
    /// Rows that share a list of columns.
    group: usize,
    /// For each group room for all columns, and how many there are.
    columns: Vec<u32>,
    counts: Vec<usize>,
}

impl<'a> Wide<'a> {
    fn new(values: &'a [f32], lie: Lie, [rows, inputs]: [usize; 2], group: usize) -> Self {
        assert_eq!(values.len(), rows * inputs);
        match lie {
            // What lies like this is dense.
            Lie::Rows => Wide {
                values,
                steps: [inputs, 1],
                inputs,
                group: usize::MAX,
                columns: (0..inputs as u32).collect(),
                counts: vec![inputs],
            },
            Lie::Columns => {
                let groups = rows.div_ceil(group);
                let (mut columns, mut counts) = (vec![0; groups * inputs], vec![0; groups]);
                for (k, column) in values.chunks_exact(rows.max(1)).enumerate() {
                    for (at, some) in column.chunks(group).enumerate() {
                        columns[at * inputs + counts[at]] = k as u32;
                        counts[at] += usize::from(some.iter().any(|value| *value != 0.0));
                    }
                }
                Wide { values, steps: [1, rows], inputs, group, columns, counts }
            }
        }
    }

    /// The columns of the rows around one.
    #[inline(always)]
    fn columns(&self, row: usize) -> impl Iterator<Item = usize> {
        let at = row / self.group;
        self.columns[at * self.inputs..][..self.counts[at]].iter().map(|&k| k as usize)
    }

    /// # Safety
    ///
    /// There must be such a row and such a column.
    #[inline(always)]
    unsafe fn value(&self, row: usize, column: usize) -> f32 {
        // SAFETY: there are rows * inputs values.
        unsafe { *self.values.as_ptr().add(row * self.steps[0] + column * self.steps[1]) }
    }
}

/// (M, K) values times (K, N) weights plus a bias: (M, N). Every sum is exact, so its order is free. N is a multiple of [`LANES`].
pub(super) fn wide_product(
    isa: Isa,
    (values, lie): (&[f32], Lie),
    weights: &[f32],
    bias: &[f32],
    out: &mut [f32],
) {
    let outputs = bias.len();
    let (rows, inputs) = (out.len() / outputs, weights.len() / outputs);
    assert!(outputs.is_multiple_of(LANES) && weights.len() == inputs * outputs);
    assert!(out.len() == rows * outputs);
    let group = match isa {
        Isa::Vnni => ROWS,
        Isa::Avx2 => ROWS_AVX2,
    };
    let from = &Wide::new(values, lie, [rows, inputs], group);
    let whole = rows - rows % ROWS;
    for (column, count) in blocks(outputs) {
        // SAFETY: `isa` was found on this processor, and the lengths that the loops go by were checked above.
        unsafe {
            match isa {
                Isa::Vnni => {
                    with_vectors!(count, wide_avx512::<6>(from, weights, bias, out, column, 0..whole));
                    with_vectors!(count, wide_avx512::<1>(from, weights, bias, out, column, whole..rows));
                }
                Isa::Avx2 => {
                    for half in 0..2 * count {
                        wide_avx2(from, weights, bias, out, column + half * LANES / 2);
                    }
                }
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn wide_avx512<const R: usize, const V: usize>(
    from: &Wide<'_>,
    weights: &[f32],
    bias: &[f32],
    out: &mut [f32],
    column: usize,
    rows: std::ops::Range<usize>,
) {
    let outputs = bias.len();
    for row in rows.step_by(R) {
        let mut sums = [[_mm512_setzero_ps(); V]; R];
        for (v, at) in (column..).step_by(LANES).take(V).enumerate() {
            // SAFETY: column + 16 V <= outputs.
            let bias = unsafe { _mm512_loadu_ps(bias.as_ptr().add(at)) };
            sums.iter_mut().for_each(|sums| sums[v] = bias);
        }
        for k in from.columns(row) {
            let mut now = [_mm512_setzero_ps(); V];
            for (v, now) in now.iter_mut().enumerate() {
                // SAFETY: as above, in row k.
                *now = unsafe { _mm512_loadu_ps(weights.as_ptr().add(k * outputs + column + LANES * v)) };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row + r is one of the rows, k one of the columns.
                let value = _mm512_set1_ps(unsafe { from.value(row + r, k) });
                for v in 0..V {
                    sums[v] = _mm512_fmadd_ps(value, now[v], sums[v]);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                // SAFETY: `out` has `outputs` values for each row.
                let to = unsafe { out.as_mut_ptr().add((row + r) * outputs + column + LANES * v) };
                unsafe { _mm512_storeu_ps(to, *sum) };
            }
        }
    }
}

#[target_feature(enable = "avx2")]
unsafe fn wide_avx2(from: &Wide<'_>, weights: &[f32], bias: &[f32], out: &mut [f32], column: usize) {
    const R: usize = ROWS_AVX2;
    let outputs = bias.len();
    let rows = out.len() / outputs;
    for row in (0..rows).step_by(R) {
        let count = R.min(rows - row);
        // SAFETY: column + 8 <= outputs.
        let mut sums = [unsafe { _mm256_loadu_ps(bias.as_ptr().add(column)) }; R];
        for k in from.columns(row) {
            // SAFETY: as above, in row k.
            let now = unsafe { _mm256_loadu_ps(weights.as_ptr().add(k * outputs + column)) };
            for (r, sum) in sums.iter_mut().enumerate() {
                // The last row stands in for those that are not there.
                let row = row + r.min(count - 1);
                // SAFETY: row is one of the rows, k one of the columns.
                let value = _mm256_set1_ps(unsafe { from.value(row, k) });
                *sum = _mm256_add_ps(*sum, _mm256_mul_ps(value, now));
            }
        }
        for (r, sum) in sums.iter().enumerate().take(count) {
            // SAFETY: `out` has `outputs` values for each row.
            unsafe { _mm256_storeu_ps(out.as_mut_ptr().add((row + r) * outputs + column), *sum) };
        }
    }
}

/// Values to bytes at a power of two, `inverse` being one over it.
pub(super) fn quantise(isa: Isa, values: &[f32], inverse: f32, zero: u8, out: &mut [u8]) {
    assert_eq!(values.len(), out.len());
    // SAFETY: `isa` was found on this processor, and both slices have one length.
    unsafe {
        match isa {
            Isa::Vnni => quantise_avx512(values, inverse, zero, out),
            Isa::Avx2 => quantise_avx2(values, inverse, zero, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn quantise_avx512(values: &[f32], inverse: f32, zero: u8, out: &mut [u8]) {
    let (scale, from) = (_mm512_set1_ps(inverse), _mm512_set1_epi32(zero.into()));
    let whole = values.len() - values.len() % LANES;
    for at in (0..whole).step_by(LANES) {
        // SAFETY: at + 16 is at most the length of both.
        let sixteen = unsafe { _mm512_loadu_ps(values.as_ptr().add(at)) };
        unsafe { _mm_storeu_si128(out.as_mut_ptr().add(at).cast(), levels(sixteen, scale, from)) };
    }
    quantise_avx2(&values[whole..], inverse, zero, &mut out[whole..]);
}

#[target_feature(enable = "avx2")]
fn quantise_avx2(values: &[f32], inverse: f32, zero: u8, out: &mut [u8]) {
    for (to, value) in out.iter_mut().zip(values) {
        *to = ((value * inverse).round_ties_even() + f32::from(zero)).clamp(0.0, 255.0) as u8;
    }
}

/// Makes of a loop one for each kind of vector; the compiler finds them.
macro_rules! for_vectors {
    ($(#[$about:meta])* $name:ident, $loop:ident, ($($argument:ident: $type:ty),*)) => {
        $(#[$about])*
        pub(super) fn $name(isa: Isa, $($argument: $type),*) {
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
            fn with_avx512($($argument: $type),*) {
                $loop($($argument),*);
            }
            #[target_feature(enable = "avx2")]
            fn with_avx2($($argument: $type),*) {
                $loop($($argument),*);
            }
            // SAFETY: `isa` was found on this processor.
            unsafe {
                match isa {
                    Isa::Vnni => with_avx512($($argument),*),
                    Isa::Avx2 => with_avx2($($argument),*),
                }
            }
        }
    };
}

for_vectors!(
    /// Adds bytes at a power of two to values.
    add, add_loop, (values: &mut [f32], bytes: &[u8], scale: f32, zero: u8)
);

#[inline(always)]
fn add_loop(values: &mut [f32], bytes: &[u8], scale: f32, zero: u8) {
    for (to, &byte) in values.iter_mut().zip(bytes) {
        *to += (f32::from(byte) - f32::from(zero)) * scale;
    }
}

for_vectors!(
    /// Adds to each pixel of a line those of another one beside it, times the weights (3, C) by which they have read it.
    spread, spread_loop, (to: &mut [f32], from: &[f32], weights: &[f32], channels: usize)
);

#[inline(always)]
fn spread_loop(to: &mut [f32], from: &[f32], weights: &[f32], channels: usize) {
    let row = to.len() / channels;
    for (x, to) in to.chunks_exact_mut(channels).enumerate() {
        for (dx, weights) in weights.chunks_exact(channels).enumerate() {
            let Some(beside) = (x + 1).checked_sub(dx).filter(|beside| *beside < row) else { continue };
            for ((to, from), weight) in to.iter_mut().zip(&from[beside * channels..][..channels]).zip(weights)
            {
                *to += from * weight;
            }
        }
    }
}

for_vectors!(
    /// Rounds to integers, half to even, and clips.
    round, round_loop, (values: &mut [f32], low: f32, high: f32)
);

#[inline(always)]
fn round_loop(values: &mut [f32], low: f32, high: f32) {
    for value in values {
        *value = value.round_ties_even().clamp(low, high);
    }
}
