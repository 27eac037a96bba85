//! The loops of the exact engine, for the vectors that the processor has.
//!
//! With `depthwise` and `tiles` the one leaf of this crate with `unsafe` in it: functions for processor features that were found, and loads
//! through pointers into slices whose lengths were checked. Every variant gives the same integers: products of unsigned bytes with 7-bit weights, added
//! up to less than 2^24 (docs/FORMAT.md), then `round half to even (sum * 2^-s)`, which is exact in `f32`.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::borrow::Cow;

use super::aligned::Aligned;
use super::tiles;

/// Columns of a vector of sums.
pub(super) const LANES: usize = 16;
/// The same of the vectors of AVX2.
pub(super) const HALF: usize = LANES / 2;
/// Bits of a digit of a weight: from -64 to 64, so that the AVX2 instructions do not saturate.
pub(super) const DIGIT_BITS: u32 = 7;
/// Rows that a product of matrices takes at a time.
const ROWS: usize = 6;
/// What is out of the range of bytes; beyond 2^31 a conversion would come back at the other end.
const FAR: f32 = 512.0;
/// 1.5 * 2^23.
const UNIT: f32 = 12_582_912.0;
/// Weights of one sign whose products with bytes fit 16 bits together: 128 * 255 < 2^15.
const ROOM: i16 = 128;

/// What the processor has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isa {
    /// AVX2 and fused multiplication, which came together.
    Avx2,
    /// AVX-512 with its instructions for bytes (VNNI).
    Vnni,
    /// The same, and a unit for products of matrices (AMX).
    Amx,
}

impl Isa {
    /// The best there is; `None` where this engine would be slow.
    pub fn find() -> Option<Self> {
        let has_vnni = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vnni");
        let has_avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        match has_vnni {
            true if tiles::available() => Some(Isa::Amx),
            true => Some(Isa::Vnni),
            false => has_avx2.then_some(Isa::Avx2),
        }
    }

    /// This one, and those that a processor has which has this one.
    #[cfg(test)]
    pub fn and_lesser(self) -> impl Iterator<Item = Self> {
        [Isa::Amx, Isa::Vnni, Isa::Avx2].into_iter().skip_while(move |isa| *isa != self)
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

/// Weights (K, N) as the products take them: digits of [`DIGIT_BITS`] bits, the highest ones first. Each digit is (N / B, K / 4, B, 4)
/// with B columns side by side: all of them, or what a vector of AVX2 or a tile has.
#[derive(Debug)]
pub(super) struct Matrix {
    pub inputs: usize,
    pub outputs: usize,
    isa: Isa,
    block: usize,
    digits: Vec<Aligned<[i8; 4]>>,
    /// For each digit and each block of AVX2: how many times in a row products of four inputs are added in 16 bits, until they go
    /// on in 32. Most weights are far from the largest, so that four go together; going on costs as much as a product.
    runs: Vec<Vec<u8>>,
}

impl Matrix {
    /// The digits of `weights`, as bytes, are (N, K) each; K is a multiple of 4 and N of [`LANES`].
    pub fn new(isa: Isa, weights: &[Cow<'_, [u8]>], inputs: usize) -> Option<Self> {
        let length = weights.first()?.len();
        let outputs = length.checked_div(inputs)?;
        if !inputs.is_multiple_of(4)
            || !outputs.is_multiple_of(LANES)
            || weights.iter().any(|digit| digit.len() != inputs * outputs)
            || outputs == 0
        {
            return None;
        }
        let block = match isa {
            Isa::Vnni => outputs,
            Isa::Avx2 => HALF,
            Isa::Amx => LANES,
        };
        let packed = |digit: &Cow<'_, [u8]>| {
            let row = inputs / 4;
            Aligned::filled(length / 4, |packed| {
                for rows in digit.as_chunks().0.chunks_exact(block * row) {
                    for k in 0..row {
                        packed.extend(
                            rows[k..].iter().step_by(row).map(|four: &[u8; 4]| four.map(|w| w as i8)),
                        );
                    }
                }
            })
        };
        let digits: Vec<_> = weights.iter().map(packed).collect();
        let runs = match isa {
            Isa::Vnni | Isa::Amx => Vec::new(),
            Isa::Avx2 => {
                let blocks = digits.iter().flat_map(|digit| digit.as_flattened().chunks_exact(HALF * inputs));
                // SAFETY: `isa` was found on this processor.
                blocks.map(|block| unsafe { runs(block) }).collect()
            }
        };
        Some(Matrix { inputs, outputs, isa, block, digits, runs })
    }

    /// The digits, the highest one first.
    pub fn digits(&self) -> impl ExactSizeIterator<Item = &[i8]> {
        self.digits.iter().map(|digit| digit.as_flattened())
    }

    /// The weights (N, K), each the sum of its digits.
    pub fn weights(&self) -> Vec<f32> {
        let mut weights = vec![0.0; self.inputs * self.outputs];
        for digit in self.digits() {
            for (block, columns) in digit.chunks_exact(self.block * self.inputs).enumerate() {
                for (k, column) in columns.chunks_exact(4 * self.block).enumerate() {
                    for (n, four) in column.chunks_exact(4).enumerate() {
                        let to = &mut weights[(block * self.block + n) * self.inputs + 4 * k..][..4];
                        let digit = (1 << DIGIT_BITS) as f32;
                        to.iter_mut().zip(four).for_each(|(to, &w)| *to = *to * digit + f32::from(w));
                    }
                }
            }
        }
        weights
    }
}

/// The runs of a block, (K / 4, [`HALF`], 4).
#[target_feature(enable = "avx2")]
fn runs(block: &[i8]) -> Vec<u8> {
    let (none, ones, room) = (_mm256_setzero_si256(), _mm256_set1_epi8(1), _mm256_set1_epi16(ROOM));
    let mut runs = Vec::new();
    // What the positive weights of each sum of 16 bits add up to, and the negative ones; two of each four go into one.
    let mut sums = [none; 2];
    for line in block.chunks_exact(4 * HALF) {
        // SAFETY: it has 32 bytes.
        let weights = unsafe { _mm256_loadu_si256(line.as_ptr().cast()) };
        let signs = [weights, _mm256_sub_epi8(none, weights)];
        let next = signs.map(|weights| _mm256_maddubs_epi16(_mm256_max_epi8(weights, none), ones));
        sums = [0, 1].map(|sign| _mm256_add_epi16(sums[sign], next[sign]));
        let beyond = _mm256_cmpgt_epi16(_mm256_max_epi16(sums[0], sums[1]), room);
        match runs.last_mut() {
            Some(run) if _mm256_testz_si256(beyond, beyond) == 1 && *run < u8::MAX => *run += 1,
            _ => {
                runs.push(1);
                sums = next;
            }
        }
    }
    runs
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
pub(super) fn product(bytes: &[u8], matrix: &Matrix, to: &Requantiser, mut out: Out<'_>) {
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
    // SAFETY: `isa` was found on this processor, and the lengths that the loops go by were checked above.
    unsafe {
        match matrix.isa {
            Isa::Amx => tiles::product(bytes, matrix, to, out),
            Isa::Vnni => {
                for (column, count) in blocks(matrix.outputs) {
                    with_vectors!(count, product_vnni::<6>(bytes, matrix, to, out, column, 0..whole));
                    with_vectors!(count, product_vnni::<1>(bytes, matrix, to, out, column, whole..rows));
                }
            }
            Isa::Avx2 => {
                for column in (0..matrix.outputs).step_by(HALF) {
                    product_avx2::<ROWS>(bytes, matrix, to, out, column, 0..whole);
                    product_avx2::<1>(bytes, matrix, to, out, column, whole..rows);
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
    let Matrix { inputs, outputs, .. } = matrix;
    let (inputs, outputs) = (*inputs, *outputs);
    let zero = _mm512_set1_epi32(to.zero.into());
    for row in rows.step_by(R) {
        let mut sums = [[_mm512_setzero_si512(); V]; R];
        for (digit, packed) in matrix.digits().enumerate() {
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
                // SAFETY: `out` has `outputs` elements for each row.
                unsafe { put(_mm512_add_epi32(sums[v], bias), scale, zero, out, (row + r) * outputs + at) };
            }
        }
    }
}

/// Sixteen sums to where they belong, from `at` on.
///
/// # Safety
///
/// There are sixteen elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn put(sums: __m512i, scale: __m512, zero: __m512i, out: &mut Out<'_>, at: usize) {
    let sums = _mm512_cvtepi32_ps(sums);
    // SAFETY: as above.
    match out {
        Out::Bytes(bytes) => unsafe {
            _mm_storeu_si128(bytes.as_mut_ptr().add(at).cast(), levels(sums, scale, zero));
        },
        Out::Values(values) => unsafe {
            _mm512_storeu_ps(values.as_mut_ptr().add(at), _mm512_mul_ps(sums, scale));
        },
    }
}

/// Four times sixteen values, rounded half to even and clipped: bytes from `zero` on, in words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn levels_of_four(values: [__m512; 4], zero: __m512i) -> __m512i {
    // The quarters of the four side by side.
    const ORDER: [i32; LANES] = [0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15];
    // SAFETY: it has sixteen elements.
    let order = unsafe { _mm512_loadu_si512(ORDER.as_ptr().cast()) };
    _mm512_permutexvar_epi32(order, packed(values, zero))
}

/// The same, but for their order: the first quarters of all four, then the second ones, and so on.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn packed(values: [__m512; 4], zero: __m512i) -> __m512i {
    let far = _mm512_set1_ps(FAR);
    // What is too small converts to the least integer, and packing clips.
    let [a, b, c, d] = values.map(|values| _mm512_cvtps_epi32(_mm512_min_ps(values, far)));
    let words = [_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d)];
    let [low, high] = words.map(|words| _mm512_adds_epi16(words, zero));
    _mm512_packus_epi16(low, high)
}

/// Sixteen values times `scale`, rounded, from `zero` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn levels(values: __m512, scale: __m512, zero: __m512i) -> __m128i {
    // There a unit is the last bit of a value: adding it rounds half to even, and the lowest byte is that of the integer.
    let unit = _mm512_set1_ps(UNIT);
    let low = _mm512_sub_ps(unit, _mm512_cvtepi32_ps(zero));
    let high = _mm512_add_ps(low, _mm512_set1_ps(255.0));
    let rounded = _mm512_fmadd_ps(values, scale, unit);
    let clipped = _mm512_max_ps(_mm512_min_ps(rounded, high), low);
    _mm512_cvtepi32_epi8(_mm512_add_epi32(_mm512_castps_si512(clipped), zero))
}

/// Eight columns. A pair of products stays below 2^15, because weights have 7 bits.
#[target_feature(enable = "avx2")]
unsafe fn product_avx2<const R: usize>(
    bytes: &[u8],
    matrix: &Matrix,
    to: &Requantiser,
    out: &mut Out<'_>,
    column: usize,
    rows: std::ops::Range<usize>,
) {
    let (inputs, outputs) = (matrix.inputs, matrix.outputs);
    let ones = _mm256_set1_epi16(1);
    let zero = _mm256_set1_epi32(to.zero.into());
    // SAFETY: both have `outputs` elements, and column + 8 <= outputs.
    let bias = unsafe { _mm256_loadu_si256(to.bias.as_ptr().add(column).cast()) };
    let scale = unsafe { _mm256_loadu_ps(to.scale.as_ptr().add(column)) };
    for row in rows.step_by(R) {
        // SAFETY: row + R <= rows.
        let from: [*const u8; R] = std::array::from_fn(|r| unsafe { bytes.as_ptr().add((row + r) * inputs) });
        let mut sums = [_mm256_setzero_si256(); R];
        for (digit, packed) in matrix.digits().enumerate() {
            if digit > 0 {
                for sum in &mut sums {
                    *sum = _mm256_slli_epi32::<{ DIGIT_BITS as i32 }>(*sum);
                }
            }
            let packed = &packed[column * inputs..][..HALF * inputs];
            let mut k = 0;
            for &run in &matrix.runs[(digit * outputs + column) / HALF] {
                let mut pairs = [_mm256_setzero_si256(); R];
                for _ in 0..run {
                    // SAFETY: the runs of a block add up to inputs / 4, and it has 8 * inputs bytes.
                    let weights = unsafe { _mm256_loadu_si256(packed.as_ptr().add(HALF * k).cast()) };
                    for (pairs, from) in pairs.iter_mut().zip(from) {
                        // SAFETY: k + 4 <= inputs.
                        let four = unsafe { from.add(k).cast::<i32>().read_unaligned() };
                        let products = _mm256_maddubs_epi16(_mm256_set1_epi32(four), weights);
                        *pairs = _mm256_add_epi16(*pairs, products);
                    }
                    k += 4;
                }
                for (sum, pairs) in sums.iter_mut().zip(pairs) {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for (r, sum) in sums.iter().enumerate() {
            let sum = _mm256_cvtepi32_ps(_mm256_add_epi32(*sum, bias));
            let at = (row + r) * outputs + column;
            // SAFETY: `out` has `outputs` elements for each row.
            match out {
                Out::Bytes(bytes) => unsafe {
                    _mm_storel_epi64(bytes.as_mut_ptr().add(at).cast(), levels_avx2(sum, scale, zero));
                },
                Out::Values(values) => unsafe {
                    _mm256_storeu_ps(values.as_mut_ptr().add(at), _mm256_mul_ps(sum, scale));
                },
            }
        }
    }
}

/// Eight values times `scale`, rounded, from `zero` on; not yet clipped.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn rounded_avx2(values: __m256, scale: __m256, zero: __m256i) -> __m256i {
    let scaled = _mm256_mul_ps(values, scale);
    let near = _mm256_max_ps(_mm256_min_ps(scaled, _mm256_set1_ps(FAR)), _mm256_set1_ps(-FAR));
    _mm256_add_epi32(_mm256_cvtps_epi32(near), zero)
}

/// Eight values times `scale`, rounded, from `zero` on: bytes, in the lower half.
#[inline]
#[target_feature(enable = "avx2")]
fn levels_avx2(values: __m256, scale: __m256, zero: __m256i) -> __m128i {
    let rounded = rounded_avx2(values, scale, zero);
    let words = _mm_packs_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256::<1>(rounded));
    _mm_packus_epi16(words, words)
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
    fn new(isa: Isa, values: &'a [f32], lie: Lie, [rows, inputs]: [usize; 2]) -> Self {
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
                let groups = rows.div_ceil(ROWS);
                let (mut columns, mut counts) = (vec![0; groups * inputs], vec![0; groups]);
                for (k, column) in values.chunks_exact(rows.max(1)).enumerate() {
                    find(isa, column, k as u32, &mut columns, &mut counts);
                }
                Wide { values, steps: [1, rows], inputs, group: ROWS, columns, counts }
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
    let from = &Wide::new(isa, values, lie, [rows, inputs]);
    let whole = rows - rows % ROWS;
    // SAFETY: `isa` was found on this processor, and the lengths that the loops go by were checked above.
    unsafe {
        match isa {
            Isa::Vnni | Isa::Amx => {
                for (column, count) in blocks(outputs) {
                    with_vectors!(count, wide_avx512::<6>(from, weights, bias, out, column, 0..whole));
                    with_vectors!(count, wide_avx512::<1>(from, weights, bias, out, column, whole..rows));
                }
            }
            Isa::Avx2 => {
                // Side by side for each sixteen columns, and some rows after the others: what comes in and the weights stay in the
                // cache.
                const SOME: usize = 8 * ROWS;
                let mut packed = Vec::with_capacity(weights.len());
                for column in (0..outputs).step_by(LANES) {
                    weights
                        .chunks_exact(outputs)
                        .for_each(|row| packed.extend_from_slice(&row[column..][..LANES]));
                }
                for first in (0..rows).step_by(SOME) {
                    let last = rows.min(first + SOME);
                    let middle = whole.clamp(first, last);
                    for column in (0..outputs).step_by(LANES) {
                        let weights = &packed[column * inputs..][..LANES * inputs];
                        wide_avx2::<ROWS>(from, weights, bias, out, column, first..middle);
                        wide_avx2::<1>(from, weights, bias, out, column, middle..last);
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

/// Sixteen columns, whose `weights` are (K, 16).
#[target_feature(enable = "avx2,fma")]
unsafe fn wide_avx2<const R: usize>(
    from: &Wide<'_>,
    weights: &[f32],
    bias: &[f32],
    out: &mut [f32],
    column: usize,
    rows: std::ops::Range<usize>,
) {
    let outputs = bias.len();
    // SAFETY: sixteen values are there, because column + 16 <= outputs.
    let load = |from: &[f32]| unsafe { [0, HALF].map(|at| _mm256_loadu_ps(from.as_ptr().add(at))) };
    let bias = load(&bias[column..][..LANES]);
    for row in rows.step_by(R) {
        let mut sums = [bias; R];
        for k in from.columns(row) {
            // SAFETY: k is one of the columns of what comes in, and a row of the weights.
            let now = load(unsafe { weights.get_unchecked(LANES * k..LANES * (k + 1)) });
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: row + r is one of the rows, k one of the columns.
                let value = _mm256_set1_ps(unsafe { from.value(row + r, k) });
                for (sum, now) in sums.iter_mut().zip(now) {
                    *sum = _mm256_fmadd_ps(value, now, *sum);
                }
            }
        }
        for (r, sums) in sums.iter().enumerate() {
            for (sum, at) in sums.iter().zip([0, HALF]) {
                // SAFETY: `out` has `outputs` values for each row.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr().add((row + r) * outputs + column + at), *sum) };
            }
        }
    }
}

/// Values to bytes at a power of two, `inverse` being one over it.
pub(super) fn quantise(isa: Isa, values: &[f32], inverse: f32, zero: u8, out: &mut [u8]) {
    assert_eq!(values.len(), out.len());
    // SAFETY: `isa` was found on this processor, and both slices have one length.
    unsafe {
        match isa {
            Isa::Vnni | Isa::Amx => quantise_avx512(values, inverse, zero, out),
            Isa::Avx2 => quantise_avx2(values, inverse, zero, out),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn quantise_avx512(values: &[f32], inverse: f32, zero: u8, out: &mut [u8]) {
    const FOUR: usize = 4 * LANES;
    let (scale, from) = (_mm512_set1_ps(inverse), _mm512_set1_epi16(zero.into()));
    let whole = values.len() - values.len() % FOUR;
    for at in (0..whole).step_by(FOUR) {
        // SAFETY: at + 64 is at most the length of both.
        unsafe {
            let load = |n| _mm512_loadu_ps(values.as_ptr().add(at + n * LANES));
            let scaled = [0, 1, 2, 3].map(|n| _mm512_mul_ps(load(n), scale));
            _mm512_storeu_si512(out.as_mut_ptr().add(at).cast(), levels_of_four(scaled, from));
        }
    }
    quantise_avx2(&values[whole..], inverse, zero, &mut out[whole..]);
}

#[target_feature(enable = "avx2")]
fn quantise_avx2(values: &[f32], inverse: f32, zero: u8, out: &mut [u8]) {
    let (scale, from) = (_mm256_set1_ps(inverse), _mm256_set1_epi32(zero.into()));
    let mut whole = values.chunks_exact(HALF);
    let mut to = out.chunks_exact_mut(HALF);
    for (values, to) in whole.by_ref().zip(to.by_ref()) {
        // SAFETY: both have eight elements.
        let eight = levels_avx2(unsafe { _mm256_loadu_ps(values.as_ptr()) }, scale, from);
        unsafe { _mm_storel_epi64(to.as_mut_ptr().cast(), eight) };
    }
    for (to, value) in to.into_remainder().iter_mut().zip(whole.remainder()) {
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
                    Isa::Vnni | Isa::Amx => with_avx512($($argument),*),
                    Isa::Avx2 => with_avx2($($argument),*),
                }
            }
        }
    };
}

for_vectors!(
    /// Lists column `k` for those groups of [`ROWS`] rows that have something in it.
    find, find_loop, (column: &[f32], k: u32, columns: &mut [u32], counts: &mut [usize])
);

#[inline(always)]
fn find_loop(column: &[f32], k: u32, columns: &mut [u32], counts: &mut [usize]) {
    let lists = columns.chunks_exact_mut(columns.len() / counts.len().max(1)).zip(counts);
    let (groups, rest) = column.as_chunks::<ROWS>();
    // Without its sign a number is 0 where its bits are.
    let bits = |some: &[f32]| some.iter().fold(0, |bits, value| bits | value.to_bits() << 1);
    for ((list, count), bits) in lists.zip(groups.iter().map(|some| bits(some)).chain([bits(rest)])) {
        list[*count] = k;
        *count += usize::from(bits != 0);
    }
}

for_vectors!(
    /// Integers as values.
    widen, widen_loop, (integers: &[i16], out: &mut [f32])
);

#[inline(always)]
fn widen_loop(integers: &[i16], out: &mut [f32]) {
    out.iter_mut().zip(integers).for_each(|(to, &integer)| *to = integer.into());
}

for_vectors!(
    /// Values plus bytes at a power of two.
    add, add_loop, (values: &[f32], bytes: &[u8], scale: f32, zero: u8, out: &mut [f32])
);

#[inline(always)]
fn add_loop(values: &[f32], bytes: &[u8], scale: f32, zero: u8, out: &mut [f32]) {
    for ((to, value), &byte) in out.iter_mut().zip(values).zip(bytes) {
        *to = value + (f32::from(byte) - f32::from(zero)) * scale;
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

/// What the weights of an output add up to, and what their magnitudes do.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowSums {
    pub values: i32,
    pub magnitudes: u64,
}

for_vectors!(
    /// The sums of rows of `each` weights, as bytes.
    row_sums, row_sums_loop, (weights: &[u8], each: usize, sums: &mut [RowSums])
);

#[inline(always)]
fn row_sums_loop(weights: &[u8], each: usize, sums: &mut [RowSums]) {
    for (row, sums) in weights.chunks_exact(each).zip(sums) {
        // In 32 bits as long as they cannot be too many: that takes a fraction of the time.
        for row in row.chunks(1 << 16) {
            let (mut values, mut magnitudes) = (0, 0);
            for &weight in row {
                values += i32::from(weight as i8);
                magnitudes += u32::from((weight as i8).unsigned_abs());
            }
            sums.values = sums.values.wrapping_add(values);
            sums.magnitudes += u64::from(magnitudes);
        }
    }
}

for_vectors!(
    /// Values as integers, half to even, and clipped.
    round, round_loop, (values: &[f32], low: f32, high: f32, out: &mut [f32])
);

#[inline(always)]
fn round_loop(values: &[f32], low: f32, high: f32, out: &mut [f32]) {
    for (to, value) in out.iter_mut().zip(values) {
        *to = value.round_ties_even().clamp(low, high);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What this processor has.
    pub fn all() -> impl Iterator<Item = Isa> {
        Isa::find().into_iter().flat_map(Isa::and_lesser)
    }

    /// Numbers below a bound, the same every time.
    pub fn numbers() -> impl FnMut(u32) -> u32 {
        let mut state = 5u32;
        move |below| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) % below
        }
    }

    fn requantiser(channels: usize, scale: f32, next: &mut impl FnMut(u32) -> u32) -> Requantiser {
        let bias = (0..channels).map(|_| next(20_001) as i32 - 10_000).collect();
        Requantiser { bias, scale: vec![scale; channels], zero: 128 }
    }

    #[test]
    fn products_are_those_of_integers_whatever_the_weights_and_the_rows() {
        let mut next = numbers();
        // All at the ends of their range, most small, and none but one.
        let kinds: [fn(u32) -> i8; 3] = [
            |n| if n.is_multiple_of(2) { 64 } else { -64 },
            |n| ((n % 129) as i32 - 64) as i8 / if n.is_multiple_of(9) { 1 } else { 4 },
            |n| if n == 0 { 64 } else { 0 },
        ];
        for (isa, kind) in all().flat_map(|isa| kinds.map(|kind| (isa, kind))) {
            for (rows, inputs, outputs, digits) in
                [(1, 4, 16, 1), (13, 96, 48, 1), (6, 256, 80, 2), (50, 48, 16, 2), (64, 120, 96, 1)]
            {
                let weights: Vec<Vec<i8>> =
                    (0..digits).map(|_| (0..inputs * outputs).map(|_| kind(next(1000))).collect()).collect();
                let bytes: Vec<u8> =
                    (0..rows * inputs).map(|_| 255 - next(256) as u8 / (1 + next(3) as u8)).collect();
                let as_bytes = |digit: &Vec<i8>| digit.iter().map(|w| *w as u8).collect::<Cow<'_, [u8]>>();
                let matrix =
                    Matrix::new(isa, &weights.iter().map(as_bytes).collect::<Vec<_>>(), inputs).unwrap();
                let of = |n: usize, k: usize| {
                    weights
                        .iter()
                        .fold(0, |sum, digit| (sum << DIGIT_BITS) + i32::from(digit[n * inputs + k]))
                };
                let whole = matrix.weights();
                assert!((0..inputs * outputs).all(|at| whole[at] == of(at / inputs, at % inputs) as f32));
                let to = requantiser(outputs, 1.0 / 4096.0, &mut next);
                let mut values = vec![0.0; rows * outputs];
                product(&bytes, &matrix, &to, Out::Values(&mut values));
                let mut levels = vec![0; rows * outputs];
                product(&bytes, &matrix, &to, Out::Bytes(&mut levels));
                for (at, (value, level)) in values.iter().zip(levels).enumerate() {
                    let (row, n) = (at / outputs, at % outputs);
                    let row = bytes[row * inputs..][..inputs].iter().enumerate();
                    let sum: i32 = row.map(|(k, byte)| i32::from(*byte) * of(n, k)).sum::<i32>() + to.bias[n];
                    let wanted = sum as f32 / 4096.0;
                    assert_eq!(*value, wanted, "{isa:?} {rows}x{inputs}x{outputs}");
                    assert_eq!(level, (wanted.round_ties_even() + 128.0).clamp(0.0, 255.0) as u8);
                }
            }
        }
    }

    #[test]
    fn sums_of_rows_are_those_of_their_weights_with_every_kind_of_vector() {
        let weights = [1, 255, 128, 127, 0, 3, 200, 200, 200];
        for isa in all() {
            for copies in [1, 100, 30_000] {
                let weights: Vec<u8> = weights.chunks(3).flat_map(|row| row.repeat(copies)).collect();
                let mut sums = [RowSums::default(); 3];
                row_sums(isa, &weights, 3 * copies, &mut sums);
                let found = sums.map(|sums| (sums.values, sums.magnitudes));
                let times = |value: i32, magnitude: u64| (value * copies as i32, magnitude * copies as u64);
                assert_eq!(found, [times(-128, 130), times(130, 130), times(-168, 168)]);
            }
        }
    }

    #[test]
    fn wide_products_and_bytes_of_values_are_exact_at_every_length() {
        let mut next = numbers();
        for isa in all() {
            for (rows, inputs, outputs) in [(1, 3, 16), (7, 5, 48), (101, 33, 32)] {
                let mut some =
                    |count: usize| (0..count).map(|_| next(401) as f32 - 200.0).collect::<Vec<_>>();
                let (values, weights, bias) = (some(rows * inputs), some(inputs * outputs), some(outputs));
                for lie in [Lie::Rows, Lie::Columns] {
                    let value = |row: usize, k: usize| match lie {
                        Lie::Rows => values[row * inputs + k],
                        Lie::Columns => values[k * rows + row],
                    };
                    let mut found = vec![0.0; rows * outputs];
                    wide_product(isa, (&values, lie), &weights, &bias, &mut found);
                    for (at, found) in found.into_iter().enumerate() {
                        let (row, n) = (at / outputs, at % outputs);
                        let sum: f32 = (0..inputs).map(|k| value(row, k) * weights[k * outputs + n]).sum();
                        assert_eq!(found, sum + bias[n]);
                    }
                }
            }
            let values = [0.5, 1.5, -0.5, 127.5, 1e9, -1e9, 3.0e38, -3.0e38, 126.5, -128.5, 2.4];
            let wanted = [128, 130, 128, 255, 255, 0, 255, 0, 254, 0, 130];
            // Vectors of all kinds, and what is left behind them.
            let (values, wanted) = (values.repeat(13), wanted.repeat(13));
            let mut bytes = vec![0; values.len()];
            quantise(isa, &values, 1.0, 128, &mut bytes);
            assert_eq!(bytes, wanted);
        }
    }
}
