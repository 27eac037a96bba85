//! Files that appear whole or not at all.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

/// Writes `bytes` as [`write_whole_with`] does.
///
/// # Errors
///
/// Those of the file system; the unfinished file is removed.
pub fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    write_whole_with(path, |file| file.write_all(bytes))
}

/// Lets `write` fill a file beside `path`, and renames it: an interrupted run, or a full disk, leaves what was there before.
///
/// # Errors
///
/// Those of the file system and of `write`; the unfinished file is removed.
pub fn write_whole_with<T, E: From<std::io::Error>>(
    path: &Path,
    write: impl FnOnce(&mut File) -> Result<T, E>,
) -> Result<T, E> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    if path.file_name().is_none() {
        return Err(std::io::Error::other("the path names no file").into());
    }
    // Not made of the name of the file, which may be as long as a name can be.
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_file_name(format!(".sdl-{}-{count}.partial", std::process::id()));
    let whole = || {
        let mut file = File::create_new(&beside)?;
        // Before there is something to read. A file system that knows no permissions is no reason to write nothing.
        if let Ok(about) = path.metadata()
            && about.is_file()
        {
            let _ = file.set_permissions(about.permissions());
        }
        let written = write(&mut file)?;
        // A folder in the place of the file is not replaced: rename would say so less clearly.
        if path.is_dir() {
            return Err(std::io::Error::new(
                std::io::ErrorKind::IsADirectory,
                "a folder of that name is there",
            )
            .into());
        }
        // What takes the place of a file is on the disk before: else a power cut could cost both. What is new can be made again.
        if path.exists() {
            file.sync_data()?;
        }
        std::fs::rename(&beside, path)?;
        Ok(written)
    };
    whole().inspect_err(|_| {
        // Best effort: the first error is the one that matters.
        let _ = std::fs::remove_file(&beside);
    })
}
