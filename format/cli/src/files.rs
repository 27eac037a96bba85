//! Which files are read, which are written, and that they are written whole.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::failure::{Code, Failure};
use crate::output;

/// The name that means standard input or standard output.
const DASH: &str = "-";

/// Where something is read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Input {
    Stdin,
    File(PathBuf),
}

impl Input {
    pub fn name(&self) -> String {
        match self {
            Input::Stdin => "standard input".to_owned(),
            Input::File(path) => path.display().to_string(),
        }
    }

    pub fn path(&self) -> Option<&Path> {
        match self {
            Input::Stdin => None,
            Input::File(path) => Some(path),
        }
    }

    /// All of it, if that is no more than `limit` bytes.
    pub fn read(&self, limit: u64) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        let mut read = |from: &mut dyn Read| from.take(limit.saturating_add(1)).read_to_end(&mut bytes);
        match self {
            Input::Stdin => read(&mut io::stdin().lock()),
            Input::File(path) => File::open(path).and_then(|mut file| read(&mut file)),
        }
        .map_err(|error| Failure::input(&error))?;
        if bytes.len() as u64 > limit {
            let message = format!("it has more than {limit} bytes; raise --max-memory if it can be trusted");
            return Err(Failure::new(Code::Limits, message));
        }
        Ok(bytes)
    }
}

/// Where something is written to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Output {
    Stdout,
    File(PathBuf),
}

impl Output {
    pub fn name(&self) -> String {
        match self {
            Output::Stdout => "standard output".to_owned(),
            Output::File(path) => path.display().to_string(),
        }
    }

    /// Fails where something is there that shall stay.
    pub fn check_free(&self, no_overwrite: bool) -> Result<(), Failure> {
        match self {
            Output::File(path) if no_overwrite && path.symlink_metadata().is_ok() => {
                Err(Failure::new(Code::Io, format!("{} exists already (--no-overwrite)", path.display())))
            }
            _ => Ok(()),
        }
    }

    /// Writes all of it. A file appears whole or not at all, also when the run is stopped.
    pub fn write(&self, bytes: &[u8], no_overwrite: bool) -> Result<(), Failure> {
        self.write_with(no_overwrite, |out| out.write_all(bytes).map_err(Unwritten::Io))
    }

    /// The same of what `write` makes, which goes to a file as it comes.
    pub fn write_with<T>(
        &self,
        no_overwrite: bool,
        write: impl FnOnce(&mut dyn Target) -> Result<T, Unwritten>,
    ) -> Result<T, Failure> {
        let failed = |error: io::Error| Failure::output(Code::Io, &self.name(), &error);
        let unwritten = |error| match error {
            Unwritten::Io(error) => failed(error),
            Unwritten::Other(failure) => failure,
        };
        let path = match self {
            Output::Stdout => {
                let (made, bytes) = in_memory(write).map_err(unwritten)?;
                return output::result_bytes(&bytes).map(|()| made).map_err(failed);
            }
            Output::File(path) => path,
        };
        // What a link points to is written, and the link stays; a device or a pipe cannot be replaced, only written to.
        let path = &pointed_to(path);
        if path.metadata().is_ok_and(|about| !about.is_file() && !about.is_dir()) {
            let mut file = File::options().write(true).open(path).map_err(failed)?;
            let (made, bytes) = in_memory(write).map_err(unwritten)?;
            return file.write_all(&bytes).and_then(|()| file.flush()).map(|()| made).map_err(failed);
        }
        let _writing = PUBLISHING.read().unwrap_or_else(PoisonError::into_inner);
        self.check_free(no_overwrite)?;
        image_sdl::write_whole_with(path, |file| {
            let mut buffered = BufWriter::new(file);
            let made = write(&mut buffered)?;
            buffered.flush()?;
            Ok(made)
        })
        .map_err(unwritten)
    }
}

/// What a path leads to, be it there or not.
fn pointed_to(path: &Path) -> PathBuf {
    /// As many as Linux follows: more lead in a circle.
    const LINKS: usize = 40;
    let mut path = path.to_owned();
    for _ in 0..LINKS {
        if let Ok(real) = path.canonicalize() {
            return real;
        }
        let Ok(target) = path.read_link() else { break };
        path = path.parent().unwrap_or(Path::new("")).join(target);
    }
    path
}

/// What goes where nothing can be found again is made here first.
fn in_memory<T>(
    write: impl FnOnce(&mut dyn Target) -> Result<T, Unwritten>,
) -> Result<(T, Vec<u8>), Unwritten> {
    let mut bytes = Cursor::new(Vec::new());
    let made = write(&mut bytes)?;
    Ok((made, bytes.into_inner()))
}

/// What a picture can be written to.
pub(crate) trait Target: Write + Seek {}

impl<T: Write + Seek> Target for T {}

/// Why nothing was written.
pub(crate) enum Unwritten {
    Io(io::Error),
    Other(Failure),
}

impl From<io::Error> for Unwritten {
    fn from(error: io::Error) -> Self {
        Unwritten::Io(error)
    }
}

impl From<image::ImageError> for Unwritten {
    fn from(error: image::ImageError) -> Self {
        match error {
            image::ImageError::IoError(error) => Unwritten::Io(error),
            other => Unwritten::Other(other.into()),
        }
    }
}

/// Held for reading while a file is written; who stops the program takes it for writing and so waits for that moment.
static PUBLISHING: RwLock<()> = RwLock::new(());
static FINISHED: AtomicUsize = AtomicUsize::new(0);

/// One more output is there; it is said when the run is stopped.
pub(crate) fn count_finished() {
    FINISHED.fetch_add(1, Ordering::Relaxed);
}

/// Makes Ctrl-C and SIGTERM end the program between two files, never within one.
pub(crate) fn stop_between_files(total: usize) {
    /// As shells report a program that SIGINT ended.
    const STOPPED: i32 = 130;
    let stop = move || {
        let _nobody_writes = PUBLISHING.write().unwrap_or_else(PoisonError::into_inner);
        let finished = FINISHED.load(Ordering::Relaxed);
        // On a screen, the line that ^C or a progress bar stands on is left first.
        let line = if output::stderr_is_terminal() { "\n" } else { "" };
        output::note(&format!(
            "{line}sdl: stopped; {finished} of {total} files are done, no half file is left"
        ));
        // Without the destructors of libraries: other threads are still inside the engine.
        signal_hook::low_level::exit(STOPPED);
    };
    if let Err(error) = ctrlc::set_handler(stop) {
        output::note(&format!(
            "sdl: Ctrl-C cannot be caught ({error}); stopping may leave a hidden .partial file"
        ));
    }
}

/// An input, and where it lay in the folder that was given.
#[derive(Debug, Clone)]
pub(crate) struct Found {
    pub input: Input,
    pub relative: PathBuf,
}

/// Files for files, and for folders every file in them that `wanted` takes, in the order of their names.
pub(crate) fn expand(given: &[PathBuf], wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<Found>, Failure> {
    let mut found = Vec::new();
    for path in given {
        if path.as_os_str() == DASH {
            if found.iter().any(|found: &Found| found.input == Input::Stdin) {
                return Err(Failure::usage("standard input (`-`) can be read once"));
            }
            found.push(Found { input: Input::Stdin, relative: PathBuf::new() });
        } else if path.is_dir() {
            let before = found.len();
            walk(path, Path::new(""), wanted, &mut found);
            if found.len() == before {
                let message = format!("{}: the folder holds no file to work on", path.display());
                return Err(Failure::new(Code::Io, message));
            }
        } else {
            let relative = path.file_name().map(PathBuf::from).unwrap_or_default();
            found.push(Found { input: Input::File(path.clone()), relative });
        }
    }
    Ok(found)
}

fn walk(folder: &Path, relative: &Path, wanted: &dyn Fn(&Path) -> bool, found: &mut Vec<Found>) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        // Reading it as a file will say what is wrong, beside the failures of the others.
        found.push(Found { input: Input::File(folder.to_owned()), relative: relative.to_owned() });
        return;
    };
    let mut names: Vec<OsString> = entries.filter_map(|entry| Some(entry.ok()?.file_name())).collect();
    names.sort();
    for name in names.iter().filter(|name| !name.to_string_lossy().starts_with('.')) {
        let path = folder.join(name);
        let Ok(about) = path.symlink_metadata() else { continue };
        if about.is_dir() {
            walk(&path, &relative.join(name), wanted, found);
        } else if wanted(&path) && path.is_file() {
            // A link to a folder is not followed: it may lead back here.
            found.push(Found { input: Input::File(path), relative: relative.join(name) });
        }
    }
}

/// One file to make of another.
#[derive(Debug)]
pub(crate) struct Job {
    pub input: Input,
    pub output: Output,
    /// A folder was given for the output; it is made if it is missing.
    in_folder: bool,
}

impl Job {
    /// Makes the folder that the output goes to, if one was given.
    pub fn make_folder(&self) -> Result<(), Failure> {
        match &self.output {
            Output::File(path) if self.in_folder => {
                let folder = path.parent().unwrap_or(path);
                std::fs::create_dir_all(folder)
                    .map_err(|error| Failure::output(Code::Io, &folder.display().to_string(), &error))
            }
            _ => Ok(()),
        }
    }
}

/// How inputs become outputs.
pub(crate) struct Naming<'a> {
    /// What a folder is searched for.
    pub wanted: &'a dyn Fn(&Path) -> bool,
    /// The extension of outputs that have no name of their own.
    pub extension: &'a str,
    /// Put the extension behind the one that is there, instead of in its place.
    pub append: bool,
    /// Whether the last of two names is meant as an output.
    pub is_output: &'a dyn Fn(&Path) -> bool,
    /// Whether an output that is not there yet is meant as a file and not as a folder.
    pub is_file: &'a dyn Fn(&Path) -> bool,
}

/// All jobs, or why no file at all is touched.
pub(crate) fn plan(given: &[PathBuf], out: Option<&Path>, naming: &Naming<'_>) -> Result<Vec<Job>, Failure> {
    let (given, out) = match (given, out) {
        ([input, last], None) if last.as_os_str() == DASH || (naming.is_output)(last) => {
            (std::slice::from_ref(input), Some(last.as_path()))
        }
        _ => (given, out),
    };
    let found = expand(given, naming.wanted)?;
    let one = given.len() == 1 && found.len() == 1 && !given[0].is_dir();
    let jobs = found
        .into_iter()
        .map(|found| {
            let (output, in_folder) = output_for(&found, out, one, naming)?;
            Ok(Job { input: found.input, output, in_folder })
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    check(&jobs)?;
    Ok(jobs)
}

/// The output, and whether it lies in a folder that was given.
fn output_for(
    found: &Found,
    out: Option<&Path>,
    one: bool,
    naming: &Naming<'_>,
) -> Result<(Output, bool), Failure> {
    let named = |path: &Path| {
        if naming.append {
            let mut name = path.as_os_str().to_owned();
            name.push(".");
            name.push(naming.extension);
            PathBuf::from(name)
        } else {
            path.with_extension(naming.extension)
        }
    };
    match (out, &found.input) {
        (None, Input::Stdin) => Ok((Output::Stdout, false)),
        (None, Input::File(path)) => Ok((Output::File(named(path)), false)),
        (Some(out), _) if out.as_os_str() == DASH => {
            if one {
                Ok((Output::Stdout, false))
            } else {
                Err(Failure::usage("standard output (`-`) takes one picture, and several are given"))
            }
        }
        (Some(out), _) if one && !is_folder(out) => Ok((Output::File(out.to_owned()), false)),
        (Some(out), _) if out.is_file() || ((naming.is_file)(out) && !out.is_dir()) => {
            Err(Failure::usage(format!("{} is one file; give -o a folder for several inputs", out.display())))
        }
        (Some(_), Input::Stdin) => {
            Err(Failure::usage("what comes from standard input has no name: give -o a file"))
        }
        (Some(out), Input::File(_)) => Ok((Output::File(out.join(named(&found.relative))), true)),
    }
}

/// Whether a folder is meant.
fn is_folder(path: &Path) -> bool {
    path.is_dir() || path.to_string_lossy().ends_with(std::path::is_separator)
}

/// No two inputs become one output, and no output is an input.
fn check(jobs: &[Job]) -> Result<(), Failure> {
    let inputs: HashSet<PathBuf> = jobs.iter().filter_map(|job| job.input.path()).map(identity).collect();
    let mut outputs: HashMap<PathBuf, &Job> = HashMap::new();
    for job in jobs {
        let Output::File(path) = &job.output else { continue };
        let identity = identity_apart(path, &inputs)?;
        if let Some(other) = outputs.insert(identity, job) {
            return Err(Failure::usage(format!(
                "{} and {} would both become {}; nothing was written (--keep-extension keeps them apart where \
                 only the extension differs)",
                other.input.name(),
                job.input.name(),
                path.display()
            )));
        }
    }
    Ok(())
}

/// The identity of an output, which must not be that of an input.
pub(crate) fn identity_apart(output: &Path, inputs: &HashSet<PathBuf>) -> Result<PathBuf, Failure> {
    let identity = identity(output);
    if inputs.contains(&identity) {
        let name = output.display();
        return Err(Failure::usage(format!(
            "{name} is an input and would be overwritten; name another output"
        )));
    }
    Ok(identity)
}

/// The same for every way to write the path of one file.
pub(crate) fn identity(path: &Path) -> PathBuf {
    if let Ok(real) = path.canonicalize() {
        return real;
    }
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    match (absolute.parent().map(Path::canonicalize), absolute.file_name()) {
        (Some(Ok(folder)), Some(name)) => folder.join(name),
        _ => absolute,
    }
}

/// Whether a path has one of these extensions.
pub(crate) fn has_extension(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().map(|given| given.to_string_lossy().to_ascii_lowercase());
    extension.is_some_and(|given| extensions.contains(&given.as_str()))
}

/// Pictures go to standard output alone, and not onto a screen.
pub(crate) fn check_stdout(jobs: &[Job], json: bool) -> Result<(), Failure> {
    if jobs.iter().all(|job| job.output != Output::Stdout) {
        return Ok(());
    }
    if json {
        return Err(Failure::usage("standard output takes the picture or --json, not both"));
    }
    if output::stdout_is_terminal() {
        return Err(Failure::usage("a picture is not for the terminal: name an output, or redirect it"));
    }
    Ok(())
}
