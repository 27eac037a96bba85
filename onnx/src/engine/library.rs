//! Where libonnxruntime is looked for, in which order, and what was found.
//!
//! 1. the file that the environment variable `ORT_DYLIB_PATH` names; if it is set, nothing else is tried;
//! 2. beside the executable, and in `../lib` seen from there;
//! 3. the loader of the system;
//! 4. the `onnxruntime` wheels of the Python installations of this machine.
//!
//! The working folder is not searched: a library that somebody left there would run as the user who came by.

use std::fmt;
use std::path::{Path, PathBuf};

/// The oldest ONNX Runtime that can be used.
pub const MINIMUM_ONNX_RUNTIME: &str = "1.24";

const VARIABLE: &str = "ORT_DYLIB_PATH";

/// File names of the library, the plain one first.
const NAMES: &[&str] = if cfg!(windows) {
    &["onnxruntime.dll"]
} else if cfg!(target_vendor = "apple") {
    &["libonnxruntime.dylib"]
} else {
    &["libonnxruntime.so", "libonnxruntime.so.1"]
};

/// What became of one place.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Verdict {
    /// Nothing there.
    Absent,
    /// Something is there; it was not tried, because an earlier one was taken.
    Present,
    /// This is the library in use.
    Used {
        /// Its version, where the file tells it.
        version: Option<String>,
    },
    /// An ONNX Runtime before [`MINIMUM_ONNX_RUNTIME`].
    TooOld {
        /// Its version.
        version: String,
    },
    /// It cannot be used.
    Refused {
        /// Why.
        reason: String,
    },
}

/// One place where the library was looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What kind of place this is, for people.
    pub kind: &'static str,
    /// The file, or what was searched for.
    pub path: PathBuf,
    /// What became of it.
    pub verdict: Verdict,
}

/// Every place where the library was looked for, in order. As text, it says what is wrong and what to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LibraryReport {
    places: Vec<Place>,
    explicit: bool,
    trouble: Option<String>,
}

impl LibraryReport {
    /// The places, in the order in which they were searched.
    pub fn places(&self) -> &[Place] {
        &self.places
    }

    /// The place whose library is in use.
    pub fn used(&self) -> Option<&Place> {
        self.places.iter().find(|place| matches!(place.verdict, Verdict::Used { .. }))
    }

    /// The version of the library in use, where it is known.
    pub fn version(&self) -> Option<&str> {
        match &self.used()?.verdict {
            Verdict::Used { version } => version.as_deref(),
            _ => None,
        }
    }

    /// Whether `ORT_DYLIB_PATH` named the library: then a failure is the user's to know of, not ours to work around.
    pub fn is_explicit(&self) -> bool {
        self.explicit
    }
}

impl fmt::Display for LibraryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.used(), &self.trouble) {
            (_, Some(trouble)) => write!(f, "ONNX Runtime cannot be started: {trouble}")?,
            (Some(_), None) => write!(f, "ONNX Runtime {}", self.version().unwrap_or("of unknown version"))?,
            (None, None) if self.explicit => {
                write!(f, "the ONNX Runtime that {VARIABLE} names cannot be used")?
            }
            (None, None) => write!(f, "no ONNX Runtime {MINIMUM_ONNX_RUNTIME} or newer was found")?,
        }
        for Place { kind, path, verdict } in &self.places {
            write!(f, "\n  {kind}: {}: ", path.display())?;
            match verdict {
                Verdict::Absent => write!(f, "not there")?,
                Verdict::Present => write!(f, "there, not needed")?,
                Verdict::Used { version: Some(version) } => write!(f, "in use, version {version}")?,
                Verdict::Used { version: None } => write!(f, "in use")?,
                Verdict::TooOld { version } => {
                    write!(f, "version {version}, {MINIMUM_ONNX_RUNTIME} or newer is needed")?
                }
                Verdict::Refused { reason } => write!(f, "{reason}")?,
            }
        }
        match (self.used(), self.explicit) {
            (Some(_), _) => Ok(()),
            (None, true) => {
                write!(f, "\nCorrect {VARIABLE}, or unset it so that the usual places are searched.")
            }
            (None, false) => write!(
                f,
                "\nInstall one (for instance: pip install onnxruntime), or set {VARIABLE} to the file, \
                 or use the Rust backend (SDL_BACKEND=rust)."
            ),
        }
    }
}

/// Where the library may be: the places that can be tried, and those that are not there.
#[cfg_attr(not(feature = "load-dynamic"), allow(dead_code))]
fn places() -> (bool, Vec<Place>) {
    let mut places = Vec::new();
    if let Some(given) = std::env::var_os(VARIABLE).filter(|given| !given.is_empty()) {
        let given = PathBuf::from(given);
        // A bare name is for the loader of the system; anything else is meant from the working folder.
        let path =
            if given.components().count() > 1 { std::path::absolute(&given).unwrap_or(given) } else { given };
        places.push(Place { kind: VARIABLE, path, verdict: Verdict::Present });
        return (true, places);
    }
    let here = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    if let Some(here) = &here {
        for folder in [here.clone(), here.join("..").join("lib")] {
            for name in NAMES {
                let path = folder.join(name);
                let verdict = if path.is_file() { Verdict::Present } else { Verdict::Absent };
                places.push(Place { kind: "beside the program", path, verdict });
            }
        }
        // `ort` looks beside the executable itself for a bare name, and panics where that is unknown.
        places.extend(NAMES.iter().map(|name| Place {
            kind: "system loader",
            path: PathBuf::from(name),
            verdict: Verdict::Present,
        }));
    }
    let kind = "Python wheel";
    for packages in python::package_folders() {
        let folder = packages.join("onnxruntime").join("capi");
        let mut found: Vec<PathBuf> = entries(&folder).into_iter().filter(|path| is_library(path)).collect();
        found.sort_by_key(|path| std::cmp::Reverse(version_in_name(path)));
        places.extend(found.into_iter().map(|path| Place { kind, path, verdict: Verdict::Present }));
    }
    if places.iter().all(|place| place.kind != kind) {
        let path = PathBuf::from("onnxruntime/capi in the site-packages of the Pythons here");
        places.push(Place { kind, path, verdict: Verdict::Absent });
    }
    (false, places)
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    paths.sort();
    paths
}

/// `libonnxruntime.so.1.31.1`, `libonnxruntime.1.31.1.dylib`, `onnxruntime.dll`; not the providers beside them.
fn is_library(path: &Path) -> bool {
    let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
    if cfg!(windows) {
        name.eq_ignore_ascii_case("onnxruntime.dll")
    } else if cfg!(target_vendor = "apple") {
        name.starts_with("libonnxruntime.") && name.ends_with(".dylib")
    } else {
        name.starts_with("libonnxruntime.so")
    }
}

/// The numbers of a file name, for sorting and for showing.
fn version_in_name(path: &Path) -> Vec<u32> {
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    name.split('.').filter_map(|part| part.parse().ok()).collect()
}

/// The folders where Python installations keep packages, without running any Python.
mod python {
    use std::path::PathBuf;

    use super::entries;

    pub(super) fn package_folders() -> Vec<PathBuf> {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let home = std::env::home_dir();
        let mut roots: Vec<PathBuf> =
            ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
        let mut folders = Vec::new();
        if let Some(home) = &home {
            roots.push(home.join(".local"));
            for version in entries(&home.join("Library").join("Python")) {
                folders.push(version.join("lib").join("python").join("site-packages"));
            }
        }
        roots.extend(["/usr/local", "/usr", "/opt/homebrew"].map(PathBuf::from));
        if let Some(pyenv) = variable("PYENV_ROOT").or_else(|| home.map(|home| home.join(".pyenv"))) {
            roots.extend(entries(&pyenv.join("versions")).into_iter().rev());
        }
        if let Some(programs) = variable("LOCALAPPDATA") {
            roots.extend(entries(&programs.join("Programs").join("Python")).into_iter().rev());
        }
        if let Some(roaming) = variable("APPDATA") {
            folders.extend(
                entries(&roaming.join("Python")).into_iter().map(|version| version.join("site-packages")),
            );
        }
        for root in roots {
            folders.push(root.join("Lib").join("site-packages"));
            for library in [root.join("lib"), root.join("lib64")] {
                let pythons = entries(&library).into_iter().filter(|path| {
                    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python3"))
                });
                for python in pythons.collect::<Vec<_>>().into_iter().rev() {
                    folders.extend(["site-packages", "dist-packages"].map(|packages| python.join(packages)));
                }
            }
        }
        let mut seen = std::collections::HashSet::new();
        folders.retain(|folder| folder.is_dir() && folder.canonicalize().is_ok_and(|real| seen.insert(real)));
        folders
    }
}

#[cfg(all(feature = "onnxruntime", feature = "load-dynamic"))]
mod loading {
    use std::io::Read;
    use std::path::{Path, PathBuf};

    use ort::LoadDynamicError;
    use ort::environment::Environment;

    use super::{LibraryReport, Verdict, places, quiet, version_in_name};

    /// Tries one place after the other until a library loads.
    pub(super) fn search() -> (LibraryReport, Option<Environment>) {
        let (explicit, places) = places();
        let mut report = LibraryReport { places, explicit, trouble: None };
        for place in &mut report.places {
            if place.verdict != Verdict::Present {
                continue;
            }
            match ort::init_from(&place.path) {
                Ok(builder) => {
                    place.verdict = Verdict::Used { version: None };
                    return match builder.with_name("sdl").with_telemetry(false).build() {
                        Ok(environment) => {
                            quiet(&environment);
                            (report, Some(environment))
                        }
                        Err(error) => {
                            report.trouble = Some(error.message().to_owned());
                            (report, None)
                        }
                    };
                }
                Err(LoadDynamicError::BadVersion { version_str: version, .. }) => {
                    place.verdict = Verdict::TooOld { version };
                }
                Err(LoadDynamicError::Dlopen { error, .. }) => {
                    // The words of the system are one level down.
                    let reason = std::error::Error::source(&error)
                        .map_or_else(|| error.to_string(), |cause| cause.to_string());
                    place.verdict = Verdict::Refused { reason };
                }
                Err(LoadDynamicError::MissingApi { .. }) => {
                    let reason = "a library, but not ONNX Runtime (it has no OrtGetApiBase)".to_owned();
                    place.verdict = Verdict::Refused { reason };
                }
                Err(error) => place.verdict = Verdict::Refused { reason: error.to_string() },
            }
        }
        (report, None)
    }

    /// The version of a library that is loaded: ONNX Runtime has no call for it, but an ELF file carries a symbol
    /// version `VERS_1.31.1`, and the files of the wheels carry it in their name.
    pub(super) fn version_of(path: &Path) -> Option<String> {
        let path = if path.is_file() { path.to_owned() } else { mapped()? };
        let path = path.canonicalize().unwrap_or(path);
        symbol_version(&path).or_else(|| {
            let numbers: Vec<String> = version_in_name(&path).iter().map(u32::to_string).collect();
            (numbers.len() > 1).then(|| numbers.join("."))
        })
    }

    /// The file that the loader of the system found (Linux).
    fn mapped() -> Option<PathBuf> {
        let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
        let line = maps.lines().find(|line| line.contains("/libonnxruntime.so"))?;
        Some(PathBuf::from(&line[line.find('/')?..]))
    }

    fn symbol_version(path: &Path) -> Option<String> {
        const MARK: &[u8] = b"VERS_";
        /// No version is longer than this.
        const LONGEST: usize = 32;
        let mut file = std::fs::File::open(path).ok()?;
        let mut window = Vec::new();
        loop {
            let read = file.by_ref().take(1 << 20).read_to_end(&mut window).ok()?;
            let marks = window.windows(MARK.len()).enumerate().filter(|(_, bytes)| *bytes == MARK);
            for (at, _) in marks {
                let text = &window[at + MARK.len()..(at + MARK.len() + LONGEST).min(window.len())];
                let version: Vec<u8> =
                    text.iter().copied().take_while(|byte| byte.is_ascii_digit() || *byte == b'.').collect();
                if version.len() > 2 && version.len() < text.len() && version.contains(&b'.') {
                    return String::from_utf8(version).ok();
                }
            }
            if read == 0 {
                return None;
            }
            window.drain(..window.len().saturating_sub(MARK.len() + LONGEST));
        }
    }
}

#[cfg(all(feature = "onnxruntime", not(feature = "load-dynamic")))]
mod loading {
    use std::path::{Path, PathBuf};

    use ort::environment::Environment;

    use super::{LibraryReport, Place, Verdict, quiet};

    /// Nothing says it.
    pub(super) fn version_of(_: &Path) -> Option<String> {
        None
    }

    /// The library is part of the program.
    pub(super) fn search() -> (LibraryReport, Option<Environment>) {
        let verdict = Verdict::Used { version: None };
        let place = Place { kind: "linked", path: PathBuf::from("part of this program"), verdict };
        let mut report = LibraryReport { places: vec![place], explicit: false, trouble: None };
        match ort::init().with_name("sdl").with_telemetry(false).build() {
            Ok(environment) => {
                quiet(&environment);
                (report, Some(environment))
            }
            Err(error) => {
                report.trouble = Some(error.message().to_owned());
                (report, None)
            }
        }
    }
}

/// What goes wrong comes back as an error; standard error belongs to the program.
#[cfg(feature = "onnxruntime")]
fn quiet(environment: &ort::environment::Environment) {
    environment.set_log_level(ort::logging::LogLevel::Fatal);
}

/// The search is done once a process: a library cannot be unloaded.
#[cfg(feature = "onnxruntime")]
static SEARCH: once_cell::sync::OnceCell<(LibraryReport, Option<ort::environment::Environment>)> =
    once_cell::sync::OnceCell::new();

/// The environment of ONNX Runtime, or why there is none.
#[cfg(feature = "onnxruntime")]
pub(super) fn environment() -> Result<&'static ort::environment::Environment, crate::Error> {
    let (report, environment) = SEARCH.get_or_init(loading::search);
    environment.as_ref().ok_or_else(|| crate::Error::Library(Box::new(report.clone())))
}

/// What the search found.
pub(super) fn survey() -> LibraryReport {
    #[cfg(feature = "onnxruntime")]
    {
        // Who decodes a picture does not wait for this: the library is read for it, megabytes.
        static VERSION: once_cell::sync::OnceCell<Option<String>> = once_cell::sync::OnceCell::new();
        let mut report = SEARCH.get_or_init(loading::search).0.clone();
        for Place { path, verdict, .. } in &mut report.places {
            if let Verdict::Used { version } = verdict {
                version.clone_from(VERSION.get_or_init(|| loading::version_of(path)));
            }
        }
        report
    }
    #[cfg(not(feature = "onnxruntime"))]
    LibraryReport {
        trouble: Some(
            "this build has no ort backend; build sdl-onnx with its feature `onnxruntime`".to_owned(),
        ),
        ..LibraryReport::default()
    }
}
