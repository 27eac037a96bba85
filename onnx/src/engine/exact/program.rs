//! A graph as steps on bytes and on wide values, channels last. `graph` makes them, `stream` runs them.

use super::depthwise::Depthwise;
use super::kernel::{Matrix, Requantiser};
use super::lines::Unfolding;

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
    /// `to` is `of`, which no later step reads, plus bytes.
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

    /// Whether it writes values, and not bytes.
    pub fn is_wide(&self) -> bool {
        matches!(
            self,
            Step::FromInput { .. }
                | Step::FromBytes { .. }
                | Step::FromWide { .. }
                | Step::Add { .. }
                | Step::Round { .. }
        )
    }

    /// What it reads.
    pub fn reads(&self) -> [Option<Place>; 2] {
        match self {
            Step::FromInput { .. } => [None, None],
            Step::Add { of, bytes, .. } => [Some(*of), Some(*bytes)],
            Step::FromBytes { of, .. }
            | Step::FromWide { of, .. }
            | Step::Pointwise { of, .. }
            | Step::Depthwise { of, .. }
            | Step::Quantise { of, .. }
            | Step::Round { of, .. }
            | Step::Unfold { of, .. }
            | Step::Fold { of, .. } => [Some(*of), None],
        }
    }
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
