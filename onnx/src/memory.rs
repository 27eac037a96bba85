//! Memory for whole pictures.
//!
//! A leaf with `unsafe` in it: the advice to the system takes a pointer.
#![allow(unsafe_code)]

/// Zeros that are about to be written over, in large pages where the system has them for who asks: a picture's worth of small ones
/// takes the kernel longer than the products take that fill it.
#[must_use]
pub fn zeros<T: Clone + Default>(length: usize) -> Vec<T> {
    // As the system gives them, not touched yet.
    in_large_pages(vec![T::default(); length])
}

/// Room for so many, the same way.
#[must_use]
pub fn room<T>(length: usize) -> Vec<T> {
    in_large_pages(Vec::with_capacity(length))
}

fn in_large_pages<T>(vector: Vec<T>) -> Vec<T> {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 2 << 20;
        let (address, size) = (vector.as_ptr().addr(), vector.capacity() * size_of::<T>());
        if size >= PAGE {
            // Outwards: what lies beside it in the same page is likely such memory too.
            let (start, end) = (address & !(PAGE - 1), (address + size).next_multiple_of(PAGE));
            // SAFETY: the advice changes nothing that can be read, whosever memory it is, and may be refused.
            unsafe {
                libc::madvise(
                    vector.as_ptr().with_addr(start).cast_mut().cast(),
                    end - start,
                    libc::MADV_HUGEPAGE,
                )
            };
        }
    }
    vector
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeros_are_zeros_of_any_length() {
        for length in [0, 1, 4096, (2 << 20) - 1, 5 << 20] {
            assert!(zeros::<u8>(length).iter().all(|v| *v == 0) && zeros::<u8>(length).len() == length);
        }
        let mut values = zeros::<f32>(3 << 20);
        values.fill(1.0);
        assert!(values.iter().all(|v| *v == 1.0));
        let mut some = room::<f32>(3 << 20);
        some.extend_from_slice(&values);
        assert!(some == values && some.capacity() == 3 << 20);
    }
}
