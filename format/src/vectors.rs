//! Loops in three variants, for processors with AVX-512, with AVX2, and for all others.

/// Whether the processor has AVX-512, and AVX2.
#[cfg(target_arch = "x86_64")]
pub(crate) type Vectors = (Option<archmage::X64V4Token>, Option<archmage::X64V3Token>);
#[cfg(not(target_arch = "x86_64"))]
#[derive(Debug, Clone, Copy)]
pub(crate) struct Vectors;

/// What [`for_vectors`] asks for.
pub(crate) fn vectors() -> Vectors {
    #[cfg(target_arch = "x86_64")]
    {
        use archmage::SimdToken;
        (SimdToken::summon(), SimdToken::summon())
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vectors
}

/// What it may be asked for here: every variant that this processor has.
#[cfg(test)]
pub(crate) fn all_vectors() -> Vec<Vectors> {
    #[cfg(target_arch = "x86_64")]
    return vec![vectors(), (None, vectors().1), (None, None)];
    #[cfg(not(target_arch = "x86_64"))]
    vec![Vectors]
}

/// Gives a loop variants for AVX-512 and for AVX2, and one without on its own: inside a larger function the compiler does without
/// vectors, at several times the time. Where all are there already, what chooses between them.
macro_rules! for_vectors {
    (
        $(#[$about:meta])* fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?
        = $v4:ident, $v3:ident, $plain:ident
    ) => {
        $(#[$about])*
        #[inline]
        fn $name(vectors: $crate::vectors::Vectors, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            match vectors {
                (Some(token), _) => return $v4(token, $($argument),*),
                (None, Some(token)) => return $v3(token, $($argument),*),
                (None, None) => (),
            }
            #[cfg(not(target_arch = "x86_64"))]
            let $crate::vectors::Vectors = vectors;
            $plain($($argument),*)
        }
    };
    (
        $(#[$about:meta])* fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?
        = $loop:ident, $v4:ident, $v3:ident, $plain:ident
    ) => {
        $crate::vectors::for_vectors!(
            $(#[$about])* fn $name($($argument: $type),*) $(-> $result)? = $v4, $v3, $plain
        );

        #[cfg(target_arch = "x86_64")]
        #[archmage::arcane]
        fn $v4(_token: archmage::X64V4Token, $($argument: $type),*) $(-> $result)? {
            $loop($($argument),*)
        }

        #[cfg(target_arch = "x86_64")]
        #[archmage::arcane]
        fn $v3(_token: archmage::X64V3Token, $($argument: $type),*) $(-> $result)? {
            $loop($($argument),*)
        }

        #[inline(never)]
        fn $plain($($argument: $type),*) $(-> $result)? {
            $loop($($argument),*)
        }
    };
}

pub(crate) use for_vectors;
