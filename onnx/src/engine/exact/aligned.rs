//! Memory that vectors and tiles are read from.

use std::fmt;
use std::ops::{Deref, DerefMut};

use crate::memory::{room, zeros};

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Elements of which the first lies at the start of a line of the cache: what a processor reads across two of them takes it three times
/// as long, tiles of a matrix unit above all.
pub(super) struct Aligned<T> {
    memory: Vec<T>,
    first: usize,
}

impl<T> Default for Aligned<T> {
    fn default() -> Self {
        Aligned { memory: Vec::new(), first: 0 }
    }
}

impl<T: Copy + Default> Aligned<T> {
    /// Elements to put in front of the first one, at most.
    const MARGIN: usize = LINE / size_of::<T>();

    fn first(memory: &[T]) -> usize {
        memory.as_ptr().align_offset(LINE).min(Self::MARGIN)
    }

    /// Zeros that are about to be written over.
    pub fn zeros(length: usize) -> Self {
        let mut memory = zeros(length + Self::MARGIN);
        let first = Self::first(&memory);
        memory.truncate(first + length);
        Aligned { memory, first }
    }

    /// What `fill` appends: at most `length` elements, or they come to lie elsewhere.
    pub fn filled(length: usize, fill: impl FnOnce(&mut Vec<T>)) -> Self {
        let mut memory = room(length + Self::MARGIN);
        let first = Self::first(&memory);
        memory.resize(first, T::default());
        fill(&mut memory);
        Aligned { memory, first }
    }
}

impl<T> Deref for Aligned<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &self.memory[self.first..]
    }
}

impl<T: fmt::Debug> fmt::Debug for Aligned<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> AsRef<[T]> for Aligned<T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

impl<T> DerefMut for Aligned<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut self.memory[self.first..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aligned_elements_lie_at_the_start_of_a_line() {
        for length in [0, 1, 63, 1000, 3 << 20] {
            let mut bytes = Aligned::<u8>::zeros(length);
            assert!(bytes.as_ptr().addr().is_multiple_of(LINE) && *bytes == vec![0; length]);
            bytes.fill(1);
            let values = Aligned::filled(length, |memory| memory.extend((0..length).map(|at| at as f32)));
            assert!(values.as_ptr().addr().is_multiple_of(LINE) && values.len() == length);
            assert!(values.iter().enumerate().all(|(at, value)| at as f32 == *value));
        }
    }
}
