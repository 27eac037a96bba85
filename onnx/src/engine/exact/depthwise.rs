//! Depthwise convolutions of bytes, for the vectors that the processor has.
//!
//! With `kernel` and `tiles` the one leaf of this crate with `unsafe` in it.
#![allow(unsafe_code)]

use std::arch::x86_64::*;

use super::kernel::{HALF, Isa, LANES, Requantiser, packed, rounded_avx2};

/// Places of a line that go together: the bytes of a vector.
const PLACES: usize = 4 * LANES;

/// The weights of a depthwise 3x3 convolution, and what becomes of its sums.
#[derive(Debug)]
pub(super) struct Depthwise {
    isa: Isa,
    /// (9, C), C a multiple of [`LANES`]
    pub weights: Vec<i8>,
    pub requantiser: Requantiser,
    /// What [`PLACES`] of a line, whatever their channels, are multiplied with, place after place until channels come at the same ones
    /// again; none for AVX2.
    lines: Vec<Line>,
}

/// Weights of four taps for each sum, (3, 4, 16, 4), the last three of nothing; and what becomes of the sums, (4, 16).
#[derive(Debug)]
#[repr(C, align(64))]
struct Line {
    taps: [[[[i8; 4]; LANES]; 4]; 3],
    bias: [[i32; LANES]; 4],
    scale: [[f32; LANES]; 4],
}

impl Depthwise {
    pub fn new(isa: Isa, weights: Vec<i8>, requantiser: Requantiser) -> Option<Self> {
        let channels = requantiser.bias.len();
        if !channels.is_multiple_of(LANES)
            || channels == 0
            || requantiser.scale.len() != channels
            || weights.len() != 9 * channels
        {
            return None;
        }
        let line = |first: usize| {
            // Unpacking brings the taps of a place side by side, and four places of each sixteen into each vector of sums.
            let quarters = [0, 1, 2, 3].map(|quarter| {
                std::array::from_fn(|lane| (first + lane / 4 * 16 + 4 * quarter + lane % 4) % channels)
            });
            let weight =
                |tap: usize, channel: usize| weights.get(tap * channels + channel).copied().unwrap_or(0);
            let four = |first: usize, channel| [0, 1, 2, 3].map(|tap| weight(first + tap, channel));
            Line {
                taps: [0, 4, 8]
                    .map(|tap| quarters.map(|channels: [usize; LANES]| channels.map(|c| four(tap, c)))),
                bias: quarters.map(|channels| channels.map(|c| requantiser.bias[c])),
                scale: quarters.map(|channels| channels.map(|c| requantiser.scale[c])),
            }
        };
        let lines = match isa {
            Isa::Avx2 => Vec::new(),
            Isa::Vnni | Isa::Amx => {
                let times = (1..=4).find(|times| (times * channels).is_multiple_of(PLACES)).unwrap_or(4);
                (0..times * channels).step_by(PLACES).map(line).collect()
            }
        };
        Some(Depthwise { isa, weights, requantiser, lines })
    }

    /// On (H, W, C) bytes whose border is already there, (H + 2, W + 2, C).
    pub fn run(&self, bytes: &[u8], width: usize, out: &mut [u8]) {
        let channels = self.requantiser.bias.len();
        let height = out.len() / (width * channels);
        assert_eq!(out.len(), height * width * channels);
        assert_eq!(bytes.len(), (height + 2) * (width + 2) * channels);
        // SAFETY: `isa` was found on this processor, and the lengths that the loops go by were checked above and in `new`.
        unsafe {
            match self.isa {
                Isa::Vnni | Isa::Amx => depthwise_avx512(bytes, width, self, out),
                Isa::Avx2 => depthwise_avx2(bytes, width, &self.weights, &self.requantiser, out),
            }
        }
    }
}

/// The bytes of four vectors side by side, place by place: four places of each sixteen in each.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn side_by_side([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let low = [_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d)];
    let high = [_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d)];
    [
        _mm512_unpacklo_epi16(low[0], low[1]),
        _mm512_unpackhi_epi16(low[0], low[1]),
        _mm512_unpacklo_epi16(high[0], high[1]),
        _mm512_unpackhi_epi16(high[0], high[1]),
    ]
}

/// Four taps at a time, as `vpdpbusd` takes them; the ninth with nothing.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn depthwise_avx512(bytes: &[u8], width: usize, with: &Depthwise, out: &mut [u8]) {
    let channels = with.requantiser.bias.len();
    let (length, stride) = (width * channels, (width + 2) * channels);
    let (none, zero) = (_mm512_setzero_si512(), _mm512_set1_epi16(with.requantiser.zero.into()));
    for (y, to) in out.chunks_exact_mut(length).enumerate() {
        for (at, line) in (0..length).step_by(PLACES).zip(with.lines.iter().cycle()) {
            let mask = u64::MAX >> (PLACES - PLACES.min(length - at));
            let tap = |tap: usize| {
                let from = (y + tap / 3) * stride + tap % 3 * channels + at;
                // SAFETY: `bytes` has two rows and two columns more than `out`; what is beyond the line is not read.
                unsafe { _mm512_maskz_loadu_epi8(mask, bytes.as_ptr().add(from).cast()) }
            };
            let taps = [[0, 1, 2, 3].map(tap), [4, 5, 6, 7].map(tap), [tap(8), none, none, none]];
            let taps = taps.map(|four| side_by_side(four));
            let scaled = [0, 1, 2, 3].map(|quarter| {
                // SAFETY: each has 64 bytes, aligned.
                let (mut sum, scale) = unsafe {
                    let bias = _mm512_load_si512(line.bias[quarter].as_ptr().cast());
                    (bias, _mm512_load_ps(line.scale[quarter].as_ptr()))
                };
                for (taps, weights) in taps.iter().zip(&line.taps) {
                    // SAFETY: as above.
                    let weights = unsafe { _mm512_load_si512(weights[quarter].as_ptr().cast()) };
                    sum = _mm512_dpbusd_epi32(sum, taps[quarter], weights);
                }
                _mm512_mul_ps(_mm512_cvtepi32_ps(sum), scale)
            });
            // SAFETY: the line goes on as far as the mask says.
            unsafe { _mm512_mask_storeu_epi8(to.as_mut_ptr().add(at).cast(), mask, packed(scaled, zero)) };
        }
    }
}

/// Taps two by two, as `vpmaddwd` takes them; the ninth one with nothing.
#[target_feature(enable = "avx2")]
unsafe fn depthwise_avx2(bytes: &[u8], width: usize, weights: &[i8], to: &Requantiser, out: &mut [u8]) {
    const PAIRS: usize = 5;
    let channels = to.bias.len();
    let stride = (width + 2) * channels;
    let zero = _mm256_set1_epi32(to.zero.into());
    for (y, line) in out.chunks_exact_mut(width * channels).enumerate() {
        for c in (0..channels).step_by(LANES) {
            // Unpacking brings channels 0 to 3 and 8 to 11 into one vector and the others into the next; packing takes that back.
            // SAFETY: all have `channels` elements, the weights nine times as many.
            let bias = unsafe {
                let [a, b] = [0, HALF].map(|at| _mm256_loadu_si256(to.bias.as_ptr().add(c + at).cast()));
                [_mm256_permute2x128_si256::<0x20>(a, b), _mm256_permute2x128_si256::<0x31>(a, b)]
            };
            // SAFETY: as above.
            let scale = unsafe {
                let [a, b] = [0, HALF].map(|at| _mm256_loadu_ps(to.scale.as_ptr().add(c + at)));
                [_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b)]
            };
            let taps: [_; PAIRS] = std::array::from_fn(|pair| {
                let tap = |tap: usize| match weights.get(tap * channels + c..) {
                    // SAFETY: there are sixteen weights of each tap.
                    Some(weights) if tap < 9 => unsafe {
                        _mm256_cvtepi8_epi16(_mm_loadu_si128(weights.as_ptr().cast()))
                    },
                    _ => _mm256_setzero_si256(),
                };
                let (a, b) = (tap(2 * pair), tap(2 * pair + 1));
                [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)]
            });
            for x in 0..width {
                let mut sums = bias;
                for (pair, weights) in taps.iter().enumerate() {
                    let tap = |tap: usize| {
                        // The ninth tap's companion has no weight: the ninth itself will do.
                        let tap = tap.min(8);
                        let at = (y + tap / 3) * stride + (x + tap % 3) * channels + c;
                        // SAFETY: `bytes` has two rows and two columns more than `out`.
                        _mm256_cvtepu8_epi16(unsafe { _mm_loadu_si128(bytes.as_ptr().add(at).cast()) })
                    };
                    let (a, b) = (tap(2 * pair), tap(2 * pair + 1));
                    let both = [_mm256_unpacklo_epi16(a, b), _mm256_unpackhi_epi16(a, b)];
                    for i in 0..2 {
                        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(both[i], weights[i]));
                    }
                }
                let [low, high] = [0, 1].map(|i| rounded_avx2(_mm256_cvtepi32_ps(sums[i]), scale[i], zero));
                let words = _mm256_packs_epi32(low, high);
                let sixteen = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi16(words, words));
                // SAFETY: `line` has `channels` bytes for each of `width` positions.
                unsafe {
                    let to = line.as_mut_ptr().add(x * channels + c);
                    _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(sixteen));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel::tests::{all, numbers};
    use super::*;

    #[test]
    fn depthwise_convolutions_are_those_of_integers() {
        let mut next = numbers();
        let sizes = [(3, 5, 48), (1, 1, 16), (2, 9, 64), (4, 3, 192), (2, 7, 80)];
        for (isa, (height, width, channels)) in all().flat_map(|isa| sizes.map(|size| (isa, size))) {
            let mut bytes: Vec<u8> =
                (0..(height + 2) * (width + 2) * channels).map(|_| next(256) as u8).collect();
            let mut weights: Vec<i8> = (0..9 * channels).map(|_| (next(129) as i32 - 64) as i8).collect();
            let bias = (0..channels).map(|_| next(20_001) as i32 - 10_000).collect();
            // Sums that fit bytes, and some that are far beyond them.
            let scale = (0..channels).map(|c| if c % 7 == 3 { 65_536.0 } else { 1.0 / 256.0 }).collect();
            let to = Requantiser { bias, scale, zero: 128 * (next(2) as u8) };
            // Both at the ends of their range.
            bytes[..channels].fill(255);
            weights[..16].fill(-64);
            let with = Depthwise::new(isa, weights.clone(), to).unwrap();
            let mut found = vec![0; height * width * channels];
            with.run(&bytes, width, &mut found);
            for (at, level) in found.into_iter().enumerate() {
                let (y, x, c) = (at / channels / width, at / channels % width, at % channels);
                let tap = |tap: usize| {
                    let at = ((y + tap / 3) * (width + 2) + x + tap % 3) * channels + c;
                    i32::from(bytes[at]) * i32::from(weights[tap * channels + c])
                };
                let to = &with.requantiser;
                let sum = (0..9).map(tap).sum::<i32>() + to.bias[c];
                let wanted = (sum as f32 * to.scale[c]).round_ties_even() + f32::from(to.zero);
                assert_eq!(level, wanted.clamp(0.0, 255.0) as u8, "{isa:?} {height}x{width}x{channels}");
            }
        }
    }
}
