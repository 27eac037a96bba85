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
    if std::env::var_os(TELEMETRY).is_none() {
        // SAFETY: `main` has just begun, and has started no thread that could read the environment meanwhile.
        unsafe { std::env::set_var(TELEMETRY, "1") };
    }
}

/// Ends the program without the destructors of libraries: the kernel takes memory back faster than ONNX Runtime gives it.
pub(crate) fn leave(code: u8) -> ! {
    // Whoever closed them has been told.
    let _ = std::io::stdout().flush();
    let _ = std::io::stderr().flush();
    signal_hook::low_level::exit(code.into())
}
