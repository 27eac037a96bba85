//! What the program settles for the libraries in its process before they start, and how it leaves them.
//!
//! The one leaf with `unsafe` in it: the environment belongs to the whole process, and only `main` knows that nobody else is
//! there yet.
#![allow(unsafe_code)]

use std::io::Write;

/// ONNX Runtime of Microsoft's making reports to its maker, and keeps a database in the user's home for that, which it writes
/// to and waits for at every start. Decoding a picture is nobody's business, and has no time for it.
const TELEMETRY: &str = "ORT_DISABLE_TELEMETRY";

/// To be called first in `main`: no other thread may be there.
pub(crate) fn prepare() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    keep_memory();
    if std::env::var_os(TELEMETRY).is_none() {
        // SAFETY: `main` has just begun, and has started no thread that could read the environment meanwhile.
        unsafe { std::env::set_var(TELEMETRY, "1") };
    }
}

/// Memory of one stage of a picture is used again for the next, and comes in large pages: left to itself the C library gives it
/// back each time, and the kernel takes longer to hand out clean small pages than a decoder to fill them. What is larger than 32 MB
/// is given back, as ever.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_memory() {
    const AHEAD: i32 = 64 << 20;
    const PAGE: usize = 2 << 20;
    let parameters =
        [(libc::M_MMAP_THRESHOLD, 32 << 20), (libc::M_TRIM_THRESHOLD, 256 << 20), (libc::M_TOP_PAD, AHEAD)];
    // SAFETY: these are numbers of the allocator, which checks them; the end of the heap is only asked for, and the advice changes
    // nothing that can be read, and may be refused.
    unsafe {
        for (parameter, bytes) in parameters {
            libc::mallopt(parameter, bytes);
        }
        let before = libc::sbrk(0);
        // More than the heap has: it grows by `AHEAD`, none of which is touched yet.
        drop(std::hint::black_box(Vec::<u8>::with_capacity(1 << 20)));
        let start = before.addr().next_multiple_of(PAGE);
        let end = libc::sbrk(0).addr() & !(PAGE - 1);
        libc::madvise(before.with_addr(start), end.saturating_sub(start), libc::MADV_HUGEPAGE);
    }
}

/// Ends the program without the destructors of libraries: the kernel takes memory back faster than ONNX Runtime gives it.
pub(crate) fn leave(code: u8) -> ! {
    // Whoever closed them has been told.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    signal_hook::low_level::exit(code.into())
}
