//! Where bundles lie on this machine.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use crate::bundle::{partial, sync_folder_of};
use crate::error::listed;
use crate::{Bundle, BundleId, Error};

const VARIABLE: &str = "SDL_MODEL_DIR";
const SYSTEM: &str = "/usr/share/sdl/models";
const EXTENSION: &str = "sdlm";

/// The folders that are searched for bundles, the one that is written to first.
///
/// A bundle in a store is called `NAME@VERSION.ID.sdlm`, or without `.sdlm` if it is a folder. One with another name,
/// copied there by hand, is opened to learn what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Store {
    folders: Vec<PathBuf>,
}

/// A bundle in a store, not opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreEntry {
    /// The short name.
    pub name: String,
    /// The version.
    pub version: String,
    /// The id. It comes from the file name, and is checked when the bundle is opened.
    pub id: BundleId,
    /// The file or folder.
    pub path: PathBuf,
}

impl StoreEntry {
    fn label(&self) -> String {
        format!("{}@{}", self.name, self.version)
    }

    /// What the name of a file in a store says.
    fn from_path(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let stem = name.strip_suffix(EXTENSION).and_then(|stem| stem.strip_suffix('.')).unwrap_or(name);
        let (label, id) = stem.rsplit_once('.')?;
        let (name, version) = label.split_once('@')?;
        let id = id.parse().ok()?;
        Some(StoreEntry { name: name.to_owned(), version: version.to_owned(), id, path: path.to_owned() })
    }

    /// Opens the bundle, and fails unless it is the one that the name of its file says.
    pub fn open(&self) -> Result<Bundle, Error> {
        let bundle = Bundle::open(&self.path)?;
        if bundle.id() == self.id {
            return Ok(bundle);
        }
        Err(Error::Damaged {
            bundle: self.path.display().to_string(),
            problem: format!(
                "its content has the id {}, and its name says {}; import it again",
                bundle.id(),
                self.id
            ),
        })
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::from_environment()
    }
}

impl Store {
    /// The store of the user: `$SDL_MODEL_DIR`, else `$XDG_DATA_HOME/sdl/models`, else `~/.local/share/sdl/models`; and
    /// behind it `/usr/share/sdl/models`.
    pub fn from_environment() -> Self {
        let variable = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let models = |data: PathBuf| data.join("sdl").join("models");
        let own = variable(VARIABLE)
            // The XDG specification: a path that is not absolute counts as none.
            .or_else(|| variable("XDG_DATA_HOME").filter(|path| path.is_absolute()).map(models))
            .or_else(|| std::env::home_dir().map(|home| models(home.join(".local").join("share"))));
        Store { folders: own.into_iter().chain([PathBuf::from(SYSTEM)]).collect() }
    }

    /// A store in these folders alone; imports go to the first.
    pub fn at(folders: impl IntoIterator<Item = PathBuf>) -> Self {
        Store { folders: folders.into_iter().collect() }
    }

    /// The folders, in the order in which they are searched.
    pub fn folders(&self) -> &[PathBuf] {
        &self.folders
    }

    /// Every bundle there is, by folder and name. What cannot be opened is passed over; see [`Store::broken`].
    pub fn list(&self) -> Vec<StoreEntry> {
        self.scan().filter_map(Result::ok).collect()
    }

    /// What lies in the store and cannot be used, and why.
    pub fn broken(&self) -> Vec<(PathBuf, Error)> {
        self.scan().filter_map(Result::err).map(|broken| *broken).collect()
    }

    fn scan(&self) -> impl Iterator<Item = Result<StoreEntry, Box<(PathBuf, Error)>>> {
        self.folders.iter().flat_map(|folder| candidates(folder)).map(|path| {
            match StoreEntry::from_path(&path) {
                Some(entry) => Ok(entry),
                None => match Bundle::open(&path) {
                    Ok(bundle) => {
                        let manifest = bundle.manifest();
                        let (name, version) = (manifest.name.clone(), manifest.version.clone());
                        Ok(StoreEntry { name, version, id: bundle.id(), path })
                    }
                    Err(error) => Err(Box::new((path, error))),
                },
            }
        })
    }

    /// The bundle with this name, `NAME@VERSION`, id, or beginning of an id (8 digits or more), opened and verified.
    pub fn find(&self, wanted: &str) -> Result<Bundle, Error> {
        /// Shorter beginnings of an id look like names.
        const SHORTEST_ID: usize = 8;
        let hex = wanted.len() >= SHORTEST_ID && wanted.bytes().all(|byte| byte.is_ascii_hexdigit());
        let lower = wanted.to_ascii_lowercase();
        let answers = |entry: &StoreEntry| {
            entry.name == wanted
                || entry.label() == wanted
                || (hex && entry.id.to_string().starts_with(&lower))
        };
        let found: Vec<StoreEntry> = self.list().into_iter().filter(answers).collect();
        // The same bundle in two folders is one bundle.
        let mut seen = std::collections::HashSet::new();
        let bundles: Vec<&StoreEntry> = found.iter().filter(|entry| seen.insert(entry.id)).collect();
        if bundles.len() > 1 {
            return Err(Error::Ambiguous {
                wanted: wanted.to_owned(),
                found: listed(bundles.iter().map(|entry| format!("{} ({})", entry.label(), entry.id))),
            });
        }
        self.open_one(&found, wanted)
    }

    /// The first of some copies of a bundle that is whole; if none is, what is wrong with the first.
    fn open_one(&self, copies: &[StoreEntry], wanted: &str) -> Result<Bundle, Error> {
        let mut first = None;
        for copy in copies {
            match copy.open() {
                Ok(bundle) => return Ok(bundle),
                Err(error) => first = first.or(Some(error)),
            }
        }
        Err(first.unwrap_or_else(|| self.missing(wanted)))
    }

    /// The bundle that a `.sdl` file names by the first 8 bytes of its id, opened and verified.
    pub fn find_short(&self, short: [u8; 8]) -> Result<Bundle, Error> {
        let digits: String = short.iter().map(|byte| format!("{byte:02x}")).collect();
        let found: Vec<StoreEntry> =
            self.list().into_iter().filter(|entry| entry.id.short() == short).collect();
        self.open_one(&found, &digits)
    }

    fn missing(&self, wanted: &str) -> Error {
        let searched = listed(self.folders.iter().map(|folder| folder.display().to_string()));
        Error::Missing { wanted: wanted.to_owned(), searched }
    }

    /// Copies a `.sdlm` file, or a folder of the same content, into the store.
    ///
    /// The copy is verified before it gets its name. A bundle that is there already is left alone, and a damaged copy of it
    /// gives way; another bundle with the same name and version is refused.
    pub fn import(&self, path: impl AsRef<Path>) -> Result<StoreEntry, Error> {
        let path = path.as_ref();
        let bundle = Bundle::open(path)?;
        let (manifest, id) = (bundle.manifest(), bundle.id());
        let label = manifest.label();
        let mut damaged = Vec::new();
        for known in self.list().into_iter().filter(|entry| entry.label() == label) {
            if known.id != id {
                return Err(Error::NameTaken { name: label, stored: known.id, path: known.path, new: id });
            }
            if known.open().is_ok() {
                return Ok(known);
            }
            damaged.push(known.path);
        }
        let Some(folder) = self.folders.first() else { return Err(self.missing(&label)) };
        std::fs::create_dir_all(folder).map_err(Error::io("create the folder", folder))?;
        let is_folder = path.is_dir();
        let target = folder.join(if is_folder {
            format!("{label}.{id}")
        } else {
            format!("{label}.{id}.{EXTENSION}")
        });
        let entry = StoreEntry {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            id,
            path: target.clone(),
        };
        let partial = partial(&target);
        let copied =
            copy(&bundle, path, &partial).map_err(Error::io("copy the bundle to", &partial)).and_then(|()| {
                let copy = Bundle::open(&partial)?;
                if copy.id() != id {
                    return Err(Error::Damaged {
                        bundle: partial.display().to_string(),
                        problem: format!(
                            "the copy has the id {}, and the original {id}; is the disk full?",
                            copy.id()
                        ),
                    });
                }
                put(&partial, &target, id)
            });
        if let Err(error) = copied {
            remove(&partial);
            return Err(error);
        }
        // Folders behind the first one are not written to.
        damaged
            .iter()
            .filter(|path| **path != target && path.parent() == Some(folder))
            .for_each(|path| remove(path));
        sync_folder_of(&target);
        Ok(entry)
    }
}

/// Gives what was copied its name, in place of a damaged copy. If somebody else was faster with a folder, theirs stays.
fn put(partial: &Path, target: &Path, id: BundleId) -> Result<(), Error> {
    // A file takes the place of another one in one step; a folder only that of an empty one.
    let Err(error) = std::fs::rename(partial, target) else { return Ok(()) };
    if !target.exists() {
        return Err(Error::io("rename to", target)(error));
    }
    if Bundle::open(target).is_ok_and(|there| there.id() == id) {
        remove(partial);
        return Ok(());
    }
    remove(target);
    match std::fs::rename(partial, target) {
        Ok(()) => Ok(()),
        Err(_) if Bundle::open(target).is_ok_and(|there| there.id() == id) => {
            remove(partial);
            Ok(())
        }
        Err(error) => Err(Error::io("rename to", target)(error)),
    }
}

/// Bundles in a folder: `.sdlm` files, and folders with a manifest; not what is still being written.
fn candidates(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
            let packed = path.extension().is_some_and(|extension| extension == EXTENSION) && path.is_file();
            !hidden && (packed || path.join("bundle.toml").is_file())
        })
        .collect();
    paths.sort();
    paths
}

fn copy(bundle: &Bundle, from: &Path, to: &Path) -> io::Result<()> {
    let one = |from: &Path, to: &Path| {
        let mut target = File::create_new(to)?;
        io::copy(&mut File::open(from)?, &mut target)?;
        target.sync_all()
    };
    if !from.is_dir() {
        return one(from, to);
    }
    std::fs::create_dir(to)?;
    for (name, _) in bundle.entries() {
        let target = to.join(name);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        one(&from.join(name), &target)?;
    }
    Ok(())
}

/// Removes a file or folder, if it is there.
fn remove(path: &Path) {
    let _ = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
}
