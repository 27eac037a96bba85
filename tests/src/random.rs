//! Numbers that are the same on every machine.

/// The linear congruential generator of Knuth (MMIX), its upper bits.
pub struct Random(u64);

impl Random {
    /// A sequence of its own for each seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Random(seed)
    }

    /// 31 bits.
    pub fn draw(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as u32
    }

    /// Below `limit`, which is not zero.
    pub fn below(&mut self, limit: usize) -> usize {
        self.draw() as usize % limit
    }

    /// A byte.
    pub fn byte(&mut self) -> u8 {
        (self.draw() >> 8) as u8
    }
}
