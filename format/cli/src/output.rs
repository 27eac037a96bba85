//! Standard output for results, standard error for everything else; neither panics when nobody listens.

use std::io::{self, IsTerminal, Write};

/// A line on standard error.
pub(crate) fn note(text: &str) {
    // Where even this fails there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// A line on standard output.
pub(crate) fn result(text: &str) -> io::Result<()> {
    result_bytes(format!("{text}\n").as_bytes())
}

/// Bytes on standard output.
pub(crate) fn result_bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

pub(crate) fn stdout_is_terminal() -> bool {
    io::stdout().is_terminal()
}

pub(crate) fn stderr_is_terminal() -> bool {
    io::stderr().is_terminal()
}
