//! One decision: experts and counters, mixed (docs/FORMAT.md section E3.7).

use super::super::adaptive::{Average, BinaryCoder, Weights};
use super::super::logistic::LOGISTIC;

/// Logistic distributions: two around the prediction, one around the channel's mean.
pub(super) const EXPERTS: usize = 3;
const COUNTERS: usize = 2;
/// Experts, counters and a constant.
const INPUTS: usize = EXPERTS + COUNTERS + 1;
const BIAS: i32 = 256;
/// Places in the sequence of decisions: 0 is the side, 1 to 9 the steps upwards, 11 to 19 the steps downwards.
pub(super) const NODES: usize = 20;
pub(super) const LAST_STEP: usize = 9;
pub(super) const SCALE_CLASSES: usize = 16;
/// Mixer weights have 16 fractional bits; experts start with 0.27 each, counters with 0.15.
const EXPERT_WEIGHT: i32 = 17476;
const COUNTER_WEIGHT: i32 = 9830;
const MIXER_GAIN: i32 = 8;
const COUNTER_LIMIT: u32 = 60;

/// What is the same for all decisions of one symbol.
pub(super) struct Surroundings {
    pub scale_class: usize,
    /// W and N against the prediction, and the scale coarsely.
    pub difference_context: usize,
    /// The symbol of the channel before.
    pub earlier_context: usize,
}

/// Whether the symbol is beyond a threshold, as far as the experts can say.
pub(super) struct Decision {
    pub node: usize,
    pub threshold: i32,
    pub logits: [i32; EXPERTS],
    /// The first expert's probability, which a counter starts with.
    pub expected: i32,
}

/// The adaptive half of a decision's probability; kept over all channels.
pub(super) struct Mixers {
    by_node: Vec<Weights<INPUTS>>,
    by_scale: Vec<Weights<INPUTS>>,
    by_difference: Vec<Average>,
    by_value: Vec<Average>,
}

impl Mixers {
    pub fn new() -> Self {
        let mut weights = [EXPERT_WEIGHT; INPUTS];
        weights[EXPERTS..].fill(COUNTER_WEIGHT);
        weights[INPUTS - 1] = 0;
        let weights = Weights { values: weights, count: 0 };
        Self {
            by_node: vec![weights.clone(); NODES],
            by_scale: vec![weights; NODES * SCALE_CLASSES],
            by_difference: vec![Average::default(); NODES * 100],
            by_value: vec![Average::default(); NODES * 8 * 32],
        }
    }

    /// Codes one decision.
    #[inline]
    pub fn decide<C: BinaryCoder>(
        &mut self,
        coder: &mut C,
        surroundings: &Surroundings,
        decision: Decision,
        bit: bool,
    ) -> bool {
        let Decision { node, threshold, logits, expected } = decision;
        let table = &**LOGISTIC;
        let value = (threshold.clamp(-15, 15) + 15) as usize;
        let by_difference = &mut self.by_difference[node * 100 + surroundings.difference_context];
        let by_value = &mut self.by_value[(node * 8 + surroundings.earlier_context) * 32 + value];
        let mut inputs = [BIAS; INPUTS];
        inputs[..EXPERTS].copy_from_slice(&logits);
        for (input, counter) in inputs[EXPERTS..].iter_mut().zip([&mut *by_difference, &mut *by_value]) {
            if counter.count == 0 {
                *counter = Average { value: expected, count: 1 };
            }
            *input = table.stretch(counter.value);
        }

        let by_node = &mut self.by_node[node];
        let by_scale = &mut self.by_scale[surroundings.scale_class * NODES + node];
        let (first, second) = (by_node.logit(&inputs), by_scale.logit(&inputs));
        let probability = table.squash((first + second) >> 1);
        let bit = coder.code_bit(probability as u32, bit);

        let target = if bit { 65535 } else { 0 };
        by_node.learn(&inputs, first, target, MIXER_GAIN);
        by_scale.learn(&inputs, second, target, MIXER_GAIN);
        for counter in [by_difference, by_value] {
            counter.learn(target, COUNTER_LIMIT);
        }
        bit
    }
}
