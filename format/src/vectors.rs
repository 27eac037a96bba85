//! Loops in two variants, for processors with AVX2 and for all others.

/// Whether the processor has AVX2.
#[cfg(target_arch = "x86_64")]
pub(crate) type Vectors = Option<archmage::X64V3Token>;
#[cfg(not(target_arch = "x86_64"))]
pub(crate) type Vectors = ();

/// What [`for_vectors`] asks for.
pub(crate) fn vectors() -> Vectors {
    #[cfg(target_arch = "x86_64")]
    archmage::SimdToken::summon()
}

/// Gives a loop a variant for AVX2, and one without on its own: inside a larger function the compiler does without vectors, at
/// several times the time. Where both are there already, what chooses between them.
macro_rules! for_vectors {
    ($(#[$about:meta])* fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? = $v3:ident, $plain:ident) => {
        $(#[$about])*
        #[inline]
        fn $name(vectors: $crate::vectors::Vectors, $($argument: $type),*) $(-> $result)? {
            #[cfg(target_arch = "x86_64")]
            if let Some(token) = vectors {
                return $v3(token, $($argument),*);
            }
            #[cfg(not(target_arch = "x86_64"))]
            let () = vectors;
            $plain($($argument),*)
        }
    };
    ($(#[$about:meta])* fn $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)? = $loop:ident, $v3:ident, $plain:ident) => {
        $crate::vectors::for_vectors!($(#[$about])* fn $name($($argument: $type),*) $(-> $result)? = $v3, $plain);

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
