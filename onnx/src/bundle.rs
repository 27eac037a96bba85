//! A model as data: one `.sdlm` file, a folder of the same content, or bytes in the program.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufWriter, Cursor, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use crate::archive::{self, Range, Refusal};
use crate::error::listed;
use crate::{Bytes, Error, Graph, GraphSource, Manifest, RunOptions, Tensor, session};

/// The name of the manifest in a bundle.
const MANIFEST: &str = "bundle.toml";
const LONGEST_MANIFEST: u64 = 1 << 20;
/// Folders in folders in a bundle.
const DEEPEST: usize = 8;

/// What a bundle is, as a number: BLAKE3 over all of its content, however it is packed.
///
/// The hash is taken over the bytes `sdl bundle 1\n`, and then, for every entry in the order of their names as bytes: the
/// length of the name (64 bits, little-endian), the name, the length of the content (likewise), and the 32 bytes of the
/// BLAKE3 hash of the content. In a folder, entries are the regular files whose names (and whose folders' names) do not
/// begin with a dot, named relative to it with forward slashes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BundleId([u8; 32]);

const ID_PREFIX: &[u8] = b"sdl bundle 1\n";

impl BundleId {
    /// The id with these bytes.
    pub const fn new(bytes: [u8; 32]) -> Self {
        BundleId(bytes)
    }

    /// All of it.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first 8 bytes: what a `.sdl` file names.
    pub fn short(&self) -> [u8; 8] {
        std::array::from_fn(|at| self.0[at])
    }

    /// Adds an entry to the hash that becomes an id.
    fn add(hasher: &mut blake3::Hasher, name: &str, length: u64, hash: &blake3::Hash) {
        hasher.update(&(name.len() as u64).to_le_bytes());
        hasher.update(name.as_bytes());
        hasher.update(&length.to_le_bytes());
        hasher.update(hash.as_bytes());
    }
}

/// 64 hexadecimal digits.
impl fmt::Display for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BundleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleId({self})")
    }
}

impl FromStr for BundleId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        match blake3::Hash::from_hex(text) {
            Ok(hash) => Ok(BundleId(*hash.as_bytes())),
            Err(error) => Err(Error::Damaged {
                bundle: text.to_owned(),
                problem: format!("this is no bundle id: {error}"),
            }),
        }
    }
}

struct Entry {
    range: Range,
    /// None of bytes in the program whose id was known.
    hash: Option<blake3::Hash>,
}

enum Content {
    File(PathBuf),
    Folder(PathBuf),
    Static(&'static [u8]),
}

struct Inner {
    label: String,
    id: BundleId,
    manifest: Manifest,
    entries: BTreeMap<String, Entry>,
    content: Content,
}

/// A bundle: a manifest, and the files it speaks of. Cheap to clone.
///
/// Opening reads everything once, for the id; nothing is kept in memory but the manifest.
#[derive(Clone)]
pub struct Bundle(Arc<Inner>);

impl fmt::Debug for Bundle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bundle").field("label", &self.0.label).field("id", &self.0.id).finish_non_exhaustive()
    }
}

impl Bundle {
    /// Opens a `.sdlm` file, or a folder of the same content.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, Error> {
        let path = path.as_ref();
        let label = path.display().to_string();
        let about = std::fs::metadata(path).map_err(Error::io("open the bundle", path))?;
        // External data is found relative to the graph, whatever the working folder is by then.
        let path = std::path::absolute(path).map_err(Error::io("find", path))?;
        if about.is_dir() {
            let names = folder_names(&path, &label)?;
            let hashed = hash_entries(&label, names, |name, _| Ok(Box::new(File::open(path.join(name))?)))?;
            return Self::build(label, hashed, Content::Folder(path));
        }
        let mut file = File::open(&path).map_err(Error::io("open the bundle", &path))?;
        let names = archive::list(&mut file).map_err(refused(&label, &path))?;
        let hashed = hash_entries(&label, names, |_, range| {
            let mut file = file.try_clone()?;
            file.seek(SeekFrom::Start(range.offset))?;
            Ok(Box::new(file.take(range.length)))
        })?;
        Self::build(label, hashed, Content::File(path))
    }

    /// A `.sdlm` file that is part of the program. `label` is for messages.
    pub fn from_static(label: &str, bytes: &'static [u8]) -> Result<Self, Error> {
        let names = archive::list(&mut Cursor::new(bytes)).map_err(refused(label, Path::new(label)))?;
        let hashed =
            hash_entries(label, names, |_, range| Ok(Box::new(slice(bytes, range).unwrap_or_default())))?;
        Self::build(label.to_owned(), hashed, Content::Static(bytes))
    }

    /// The same of one whose id is known: nothing is read but its headers and its manifest.
    #[cfg(feature = "builtin")]
    pub(crate) fn known(label: &str, bytes: &'static [u8], id: BundleId) -> Result<Self, Error> {
        let names = archive::list(&mut Cursor::new(bytes)).map_err(refused(label, Path::new(label)))?;
        let manifest =
            names.get(MANIFEST).and_then(|range| slice(bytes, *range)).unwrap_or_default().to_vec();
        let entries = names.into_iter().map(|(name, range)| (name, Entry { range, hash: None })).collect();
        Self::build(label.to_owned(), Hashed { id, entries, manifest }, Content::Static(bytes))
    }

    fn build(label: String, hashed: Hashed, content: Content) -> Result<Self, Error> {
        let Hashed { id, entries, manifest } = hashed;
        let wrong = |problem: String| Error::Manifest { bundle: label.clone(), problem };
        let text = std::str::from_utf8(&manifest).map_err(|_| wrong("it is not UTF-8".to_owned()))?;
        let manifest = Manifest::parse(text, &label)?;
        if let Some(missing) = manifest.files().find(|name| !entries.contains_key(*name)) {
            let known = listed(entries.keys());
            return Err(wrong(format!(
                "it speaks of `{missing}`, which is not in the bundle; there is {known}"
            )));
        }
        for (role, graph) in &manifest.graphs {
            if let Some(file) = graph.external.iter().find(|file| beside(&graph.file, file).is_none()) {
                return Err(wrong(format!(
                    "graph `{role}`: external data `{file}` must be in the folder of `{}`",
                    graph.file
                )));
            }
        }
        for (name, sum) in &manifest.sums {
            let Some(hash) = entries.get(name).and_then(|entry| entry.hash) else { continue };
            let found = hash.to_hex();
            if !found.eq_ignore_ascii_case(sum) {
                return Err(Error::Damaged {
                    bundle: label,
                    problem: format!("`{name}` has BLAKE3 sum {found}, and bundle.toml says {sum}"),
                });
            }
        }
        Ok(Bundle(Arc::new(Inner { label, id, manifest, entries, content })))
    }

    /// Packs a folder as a `.sdlm` file; the same content always becomes the same bytes.
    ///
    /// The file is written under another name and renamed at the end, so `out` is never half a bundle.
    pub fn write_sdlm(folder: impl AsRef<Path>, out: impl AsRef<Path>) -> Result<Self, Error> {
        let (bundle, out) = (Self::open(folder)?, out.as_ref());
        let partial = partial(out);
        let written = bundle.write_to(&partial).and_then(|()| {
            std::fs::rename(&partial, out).map_err(Error::io("rename to", out))?;
            sync_folder_of(out);
            Ok(())
        });
        if let Err(error) = written {
            let _ = std::fs::remove_file(&partial);
            return Err(error);
        }
        Self::open(out)
    }

    fn write_to(&self, path: &Path) -> Result<(), Error> {
        let failed = |error| Error::io("write", path)(error);
        let mut writer = archive::Writer::new(BufWriter::new(File::create_new(path).map_err(failed)?));
        for (name, entry) in &self.0.entries {
            let content = self.reader(name, entry.range)?;
            writer.entry(name, entry.range.length, entry.range.crc32, content).map_err(failed)?;
        }
        let out = writer.finish().map_err(failed)?;
        let file = out.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)
    }

    /// The id.
    pub fn id(&self) -> BundleId {
        self.0.id
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.0.manifest
    }

    /// Where it was opened from, for messages.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// Whether there is a graph for a role.
    pub fn has(&self, role: &str) -> bool {
        self.0.manifest.graphs.contains_key(role)
    }

    /// Names and lengths of all entries.
    pub fn entries(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0.entries.iter().map(|(name, entry)| (name.as_str(), entry.range.length))
    }

    fn reader(&self, name: &str, range: Range) -> Result<Box<dyn Read>, Error> {
        Ok(match &self.0.content {
            Content::Static(bytes) => Box::new(slice(bytes, range).unwrap_or_default()),
            Content::Folder(folder) => {
                let path = folder.join(name);
                Box::new(File::open(&path).map_err(Error::io("open", path))?.take(range.length))
            }
            Content::File(path) => {
                let open = || {
                    let mut file = File::open(path)?;
                    file.seek(SeekFrom::Start(range.offset))?;
                    Ok(file.take(range.length))
                };
                Box::new(open().map_err(Error::io("open", path))?)
            }
        })
    }

    /// The content of an entry. It is checked once more against what was there when the bundle was opened.
    pub fn read(&self, name: &str) -> Result<Bytes, Error> {
        let damaged = |problem: String| Error::Damaged { bundle: self.0.label.clone(), problem };
        let entry = self.0.entries.get(name).ok_or_else(|| damaged(format!("there is no entry `{name}`")))?;
        if let Content::Static(bytes) = self.0.content {
            return slice(bytes, entry.range)
                .map(Bytes::Static)
                .ok_or_else(|| damaged(format!("`{name}` is out of range")));
        }
        let length = usize::try_from(entry.range.length)
            .map_err(|_| damaged(format!("`{name}` is too large for this machine")))?;
        // One allocation of the right size, filled in place: an `Arc` made from a `Vec` would copy it.
        let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, length).collect();
        let changed = || damaged(format!("`{name}` has changed since the bundle was opened"));
        let target = Arc::get_mut(&mut bytes).ok_or_else(changed)?;
        match self.reader(name, entry.range)?.read_exact(target) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(changed()),
            other => other.map_err(Error::io("read", &self.0.label))?,
        }
        if entry.hash != Some(blake3::hash(&bytes)) {
            return Err(changed());
        }
        Ok(Bytes::Shared(bytes))
    }

    /// The trained entropy tables, if the bundle has some.
    pub fn tables(&self) -> Result<Option<Bytes>, Error> {
        self.0.manifest.tables.as_ref().map(|tables| self.read(&tables.file)).transpose()
    }

    /// The codebook of a VQ model, if the bundle has one.
    pub fn codebook(&self) -> Result<Option<Bytes>, Error> {
        self.0.manifest.codebook.as_ref().map(|codebook| self.read(&codebook.file)).transpose()
    }

    /// The constant inputs of the denoiser, by name.
    pub fn conditions(&self) -> Result<Vec<(String, Tensor)>, Error> {
        let conditions = self.0.manifest.denoiser.iter().flat_map(|denoiser| &denoiser.conditions);
        let read = |condition: &crate::Condition| {
            let bytes = self.read(&condition.file)?;
            let values =
                bytes.chunks_exact(4).map(|four| f32::from_le_bytes([four[0], four[1], four[2], four[3]]));
            let tensor =
                Tensor::f32(condition.shape.clone(), values.collect()).map_err(|error| Error::Manifest {
                    bundle: self.0.label.clone(),
                    problem: format!("condition `{}`, `{}`: {error}", condition.input, condition.file),
                })?;
            Ok((condition.input.clone(), tensor))
        };
        conditions.map(read).collect()
    }

    /// Where the graph of a role is: a path for a folder, so that external data can be mapped, else bytes.
    pub fn graph_source(&self, role: &str) -> Result<GraphSource, Error> {
        let graph = self.0.manifest.graphs.get(role).ok_or_else(|| Error::Role {
            bundle: self.0.label.clone(),
            role: role.to_owned(),
            known: listed(self.0.manifest.graphs.keys()),
        })?;
        let name = format!("{role} of {}", self.0.manifest.label());
        let externals = graph.external.iter().filter_map(|file| Some((file, beside(&graph.file, file)?)));
        if let Content::Folder(folder) = &self.0.content {
            let source = GraphSource::file(folder.join(&graph.file)).named(name).sealed();
            return Ok(externals.fold(source, |source, (_, beside)| source.with_external_file(beside)));
        }
        let source = GraphSource::bytes(name, self.read(&graph.file)?);
        externals.map(|(file, beside)| Ok((self.read(file)?, beside))).try_fold(source, |source, external| {
            let (bytes, beside): (Bytes, &str) = external?;
            Ok(source.with_external(beside, bytes))
        })
    }

    /// The graph of a role, loaded. Calls with the same options, from anywhere in the process, share one.
    ///
    /// Its inputs and outputs are in the order of the manifest, if that declares them.
    pub fn graph(&self, role: &str, options: &RunOptions) -> Result<Arc<dyn Graph>, Error> {
        session::graph(self, role, options)
    }
}

/// The name of `file` seen from the folder of `graph`, if it is in there.
fn beside<'a>(graph: &str, file: &'a str) -> Option<&'a str> {
    match graph.rsplit_once('/') {
        Some((folder, _)) => file.strip_prefix(folder)?.strip_prefix('/'),
        None => Some(file),
    }
}

fn slice(bytes: &'static [u8], range: Range) -> Option<&'static [u8]> {
    let (offset, length) = (usize::try_from(range.offset).ok()?, usize::try_from(range.length).ok()?);
    bytes.get(offset..offset.checked_add(length)?)
}

fn refused(label: &str, path: &Path) -> impl FnOnce(Refusal) -> Error {
    let (label, path) = (label.to_owned(), path.to_owned());
    move |refusal| match refusal {
        Refusal::Io(source) => Error::Io { action: "read the bundle", path, source },
        Refusal::Damaged(problem) => Error::Damaged { bundle: label, problem },
    }
}

/// The regular files of a folder and of the folders in it, by name relative to it.
fn folder_names(folder: &Path, label: &str) -> Result<BTreeMap<String, Range>, Error> {
    let damaged = |problem: String| Error::Damaged { bundle: label.to_owned(), problem };
    let mut names = BTreeMap::new();
    let mut todo = vec![(folder.to_owned(), String::new(), 0)];
    while let Some((path, prefix, depth)) = todo.pop() {
        if depth > DEEPEST {
            return Err(damaged(format!("`{prefix}` is more than {DEEPEST} folders deep")));
        }
        for entry in std::fs::read_dir(&path).map_err(Error::io("list", &path))? {
            let entry = entry.map_err(Error::io("list", &path))?;
            let file_name = entry.file_name();
            let name = file_name.to_string_lossy();
            if name.starts_with('.') {
                continue;
            }
            let name = format!("{prefix}{name}");
            if !archive::good_name(&name) {
                return Err(damaged(format!(
                    "`{}` is not allowed as a name in a bundle",
                    name.escape_default()
                )));
            }
            if entry.file_type().map_err(Error::io("look at", entry.path()))?.is_dir() {
                todo.push((entry.path(), format!("{name}/"), depth + 1));
                continue;
            }
            let about = std::fs::metadata(entry.path()).map_err(Error::io("look at", entry.path()))?;
            if !about.is_file() {
                return Err(damaged(format!("`{name}` is not a regular file")));
            }
            names.insert(name, Range { offset: 0, length: about.len(), crc32: 0 });
            if names.len() > archive::MOST_ENTRIES {
                return Err(damaged(format!("it has more than {} files", archive::MOST_ENTRIES)));
            }
        }
    }
    Ok(names)
}

struct Hashed {
    id: BundleId,
    entries: BTreeMap<String, Entry>,
    manifest: Vec<u8>,
}

/// Reads every entry once: its hash, its CRC (which must be that of the archive, if it has one), and the manifest.
fn hash_entries<'r>(
    label: &str,
    names: BTreeMap<String, Range>,
    open: impl Fn(&str, Range) -> io::Result<Box<dyn Read + 'r>>,
) -> Result<Hashed, Error> {
    let damaged = |problem: String| Error::Damaged { bundle: label.to_owned(), problem };
    let mut id = blake3::Hasher::new();
    id.update(ID_PREFIX);
    let mut entries = BTreeMap::new();
    let mut manifest = None;
    let mut buffer = vec![0; 1 << 18];
    for (name, mut range) in names {
        let declared = range;
        let io_failed = |error: io::Error| Error::io("read", format!("{label}, entry {name}"))(error);
        let mut content = open(&name, range).map_err(io_failed)?;
        let (mut blake3, mut crc32) = (blake3::Hasher::new(), crc32fast::Hasher::new());
        let mut kept = Vec::new();
        let mut length = 0u64;
        loop {
            let read = match content.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(io_failed(error)),
            };
            blake3.update(&buffer[..read]);
            crc32.update(&buffer[..read]);
            length += read as u64;
            if name == MANIFEST {
                kept.extend_from_slice(&buffer[..read]);
                if length > LONGEST_MANIFEST {
                    return Err(damaged(format!("{MANIFEST} has more than {LONGEST_MANIFEST} bytes")));
                }
            }
        }
        if length != range.length {
            return Err(damaged(format!(
                "entry `{name}` has {length} bytes, and should have {}",
                range.length
            )));
        }
        range.crc32 = crc32.finalize();
        if range.offset != 0 && range.crc32 != declared.crc32 {
            return Err(damaged(format!(
                "entry `{name}` has CRC {:08x}, and should have {:08x}: the file was cut, changed or badly copied",
                range.crc32, declared.crc32
            )));
        }
        if name == MANIFEST {
            manifest = Some(kept);
        }
        let hash = blake3.finalize();
        BundleId::add(&mut id, &name, length, &hash);
        entries.insert(name, Entry { range, hash: Some(hash) });
    }
    let manifest = manifest.ok_or_else(|| damaged(format!("it has no {MANIFEST}: this is no bundle")))?;
    Ok(Hashed { id: BundleId(*id.finalize().as_bytes()), entries, manifest })
}

/// A name under which a file or folder is written before it is whole, another one for each call: threads, and processes in
/// containers that all have the same number, do so at the same time.
pub(crate) fn partial(path: &Path) -> PathBuf {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let call = CALLS.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_nanos());
    path.with_file_name(format!(".{name}.{}-{call}-{now:x}.partial", std::process::id()))
}

/// Makes a rename last. Not every system can do this to a folder; then there is nothing to do.
pub(crate) fn sync_folder_of(path: &Path) {
    if let Some(folder) = path.parent() {
        let _ = File::open(folder).and_then(|folder| folder.sync_all());
    }
}
