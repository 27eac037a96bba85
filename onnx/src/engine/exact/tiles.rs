//! Products of bytes on the matrix unit of a processor (AMX): 16 rows, 16 columns and up to 64 inputs in one instruction.
//!
//! With `kernel` and `depthwise` the one leaf of this crate with `unsafe` in it. The standard library has these instructions for unstable Rust only, so that
//! they are written out here; nothing else touches their registers, and none of it outlives a product.
#![allow(unsafe_code)]

use std::arch::asm;
use std::arch::x86_64::*;

use once_cell::sync::OnceCell;

use super::aligned::Aligned;
use super::kernel::{DIGIT_BITS, LANES, Matrix, Out, Requantiser, levels_of_four};

/// Rows of a tile, and columns of sums in one.
const SIDE: usize = LANES;
/// Inputs that a tile has at most.
const DEPTH: usize = 64;
/// Rows, and columns, that are summed at a time: two tiles of each, whose four products take all eight registers.
const BLOCK: usize = 2 * SIDE;

/// Whether the processor has such a unit and the system lets this process use it.
pub(super) fn available() -> bool {
    static AVAILABLE: OnceCell<bool> = OnceCell::new();
    *AVAILABLE.get_or_init(|| is_there() && is_permitted())
}

fn is_there() -> bool {
    const TILES_OF_BYTES: u32 = 1 << 24 | 1 << 25;
    // SAFETY: every processor that this is compiled for has this instruction; newer standard libraries know that it is safe.
    #[allow(unused_unsafe)]
    unsafe {
        __cpuid(0).eax >= 7 && __cpuid_count(7, 0).edx & TILES_OF_BYTES == TILES_OF_BYTES
    }
}

/// Linux keeps room for the registers of those processes alone that ask for it.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_int = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_ulong = 18;
    // SAFETY: it reads and writes no memory of this process.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}

/// How large the tiles are: sums in registers 0 to 3, rows in 4 and 5, weights in 6 and 7.
#[repr(C, align(64))]
struct Config {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Config {
    fn new(depth: usize) -> Self {
        let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
        for tile in 0..8 {
            let (bytes, lines) = match tile {
                0..=3 => (4 * SIDE, SIDE),
                4..=5 => (depth, SIDE),
                _ => (4 * SIDE, depth / 4),
            };
            (row_bytes[tile], rows[tile]) = (bytes as u16, lines as u8);
        }
        Config { palette: 1, start: 0, reserved: [0; 14], row_bytes, rows }
    }
}

/// Sums of a block, row by row.
#[repr(C, align(64))]
struct Sums([i32; BLOCK * BLOCK]);

/// (M, K) bytes times (K, N) weights, as [`kernel::product`](super::kernel::product), which has checked the lengths.
///
/// # Safety
///
/// The matrix is one for [`Isa::Amx`](super::kernel::Isa::Amx), which was found here.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn product(bytes: &[u8], matrix: &Matrix, to: &Requantiser, out: &mut Out<'_>) {
    let (inputs, outputs, count_of_digits) = (matrix.inputs, matrix.outputs, matrix.digits().len());
    let depth = (4..=DEPTH).rev().step_by(4).find(|depth| inputs.is_multiple_of(*depth)).unwrap_or(4);
    let config = Config::new(depth);
    // SAFETY: the processor has tiles, and this is a layout that it takes.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &config, options(nostack, readonly, preserves_flags)) };
    let zero = _mm512_set1_epi16(to.zero.into());
    let rows = bytes.len() / inputs;
    // The last rows, and others of nothing.
    let rest = &bytes[rows / BLOCK * BLOCK * inputs..];
    let mut padded = Aligned::zeros(if rest.is_empty() { 0 } else { BLOCK * inputs });
    padded[..rest.len()].copy_from_slice(rest);
    let [mut sums, mut lower] = [const { Sums([0; BLOCK * BLOCK]) }; 2];
    for row in (0..rows).step_by(BLOCK) {
        let from = bytes[row * inputs..].get(..BLOCK * inputs).unwrap_or(&padded);
        for column in (0..outputs).step_by(BLOCK) {
            let columns = BLOCK.min(outputs - column);
            for (digit, packed) in matrix.digits().enumerate() {
                let weights = &packed[column * inputs..][..columns * inputs];
                let to = if digit == 0 { &mut sums } else { &mut lower };
                // SAFETY: the tiles are configured, and the bytes are those of 32 rows.
                unsafe { multiply(from, weights, inputs, depth, to) };
                // The last of several is added on the way to bytes.
                if digit > 0 && digit + 1 < count_of_digits {
                    let both = sums.0.iter_mut().zip(&lower.0);
                    both.for_each(|(sum, lower)| *sum = (*sum << DIGIT_BITS) + lower);
                }
            }
            let count = BLOCK.min(rows - row);
            for tile in (0..columns).step_by(SIDE) {
                // SAFETY: both have `outputs` elements.
                let bias = unsafe { _mm512_loadu_si512(to.bias.as_ptr().add(column + tile).cast()) };
                let scale = unsafe { _mm512_loadu_ps(to.scale.as_ptr().add(column + tile)) };
                let scaled = |at: usize| {
                    // SAFETY: a row has two tiles of sums.
                    let load = |from: &Sums| unsafe {
                        _mm512_load_si512(from.0.as_ptr().add(at * BLOCK + tile).cast())
                    };
                    let mut sum = load(&sums);
                    if count_of_digits > 1 {
                        sum = _mm512_add_epi32(_mm512_slli_epi32::<DIGIT_BITS>(sum), load(&lower));
                    }
                    _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(sum, bias)), scale)
                };
                let place = |at: usize| (row + at) * outputs + column + tile;
                match out {
                    Out::Values(values) => (0..count).for_each(|at| {
                        // SAFETY: there are `outputs` elements for each row.
                        unsafe { _mm512_storeu_ps(values.as_mut_ptr().add(place(at)), scaled(at)) };
                    }),
                    Out::Bytes(bytes) => {
                        for first in (0..count).step_by(4) {
                            let four = levels_of_four([0, 1, 2, 3].map(|at| scaled(first + at)), zero);
                            let four = [
                                _mm512_extracti32x4_epi32::<0>(four),
                                _mm512_extracti32x4_epi32::<1>(four),
                                _mm512_extracti32x4_epi32::<2>(four),
                                _mm512_extracti32x4_epi32::<3>(four),
                            ];
                            for (at, sixteen) in (first..count).zip(four) {
                                // SAFETY: as above.
                                unsafe {
                                    _mm_storeu_si128(bytes.as_mut_ptr().add(place(at)).cast(), sixteen)
                                };
                            }
                        }
                    }
                }
            }
        }
    }
    // SAFETY: as above.
    unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
}

/// The products of 32 rows (32, `inputs`) with `weights` (1 or 2, `inputs` / 4, 16, 4), `depth` inputs at a time. Where there is but one tile
/// of columns, the sums of the second mean nothing.
///
/// # Safety
///
/// The tiles are configured for `depth`, which divides `inputs`.
unsafe fn multiply(bytes: &[u8], weights: &[i8], inputs: usize, depth: usize, sums: &mut Sums) {
    let second = weights.get(SIDE * inputs..).filter(|second| !second.is_empty()).unwrap_or(weights);
    // SAFETY: the rows are 32, of `inputs` bytes; what is read of both weights is `inputs` times sixteen columns.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "2:",
            "tileloadd tmm4, [{upper} + {inputs}]",
            "tileloadd tmm6, [{first} + {line}]",
            "tileloadd tmm5, [{lower} + {inputs}]",
            "tdpbusd tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{second} + {line}]",
            "tdpbusd tmm2, tmm5, tmm6",
            "tdpbusd tmm1, tmm4, tmm7",
            "tdpbusd tmm3, tmm5, tmm7",
            "add {upper}, {depth}",
            "add {lower}, {depth}",
            "add {first}, {step}",
            "add {second}, {step}",
            "dec {count}",
            "jnz 2b",
            "tilestored [{sums} + {row}], tmm0",
            "tilestored [{sums} + {row} + {right}], tmm1",
            "tilestored [{sums} + {row} + {below}], tmm2",
            "tilestored [{sums} + {row} + {right} + {below}], tmm3",
            upper = inout(reg) bytes.as_ptr() => _,
            lower = inout(reg) bytes.as_ptr().add(SIDE * inputs) => _,
            first = inout(reg) weights.as_ptr() => _,
            second = inout(reg) second.as_ptr() => _,
            count = inout(reg) inputs / depth => _,
            inputs = in(reg) inputs,
            depth = in(reg) depth,
            step = in(reg) SIDE * depth,
            line = in(reg) 4 * SIDE,
            row = in(reg) 4 * BLOCK,
            sums = in(reg) sums,
            right = const 4 * SIDE,
            below = const 4 * BLOCK * SIDE,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
