//! `.sdlm` files: zip archives (APPNOTE 6.3.10) whose entries are stored, never compressed, so that each is a plain range
//! of bytes of the file.
//!
//! Written by hand for what a general reader would let pass: a compressed or encrypted entry, a name that leads
//! elsewhere, the same name twice, two entries over the same bytes, headers that contradict each other. Files above
//! 4 GiB use zip64. What is written is a function of the names and contents alone.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};

/// Entries begin at multiples of this, so that a mapped one is aligned for any element type and cache line.
const ALIGNMENT: u64 = 64;
/// No bundle has more entries.
pub(crate) const MOST_ENTRIES: usize = 4096;
const LONGEST_NAME: usize = 200;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
const LOCAL_LENGTH: u64 = 30;
const CENTRAL_LENGTH: u64 = 46;
const END_LENGTH: u64 = 22;
const END64_LENGTH: u64 = 56;
const LOCATOR64_LENGTH: u64 = 20;
/// 1 January 1980, midnight: the earliest date that zip has.
const DATE: u16 = 0x0021;
const VERSION_STORED: u16 = 10;
const VERSION_ZIP64: u16 = 45;
const FLAG_ENCRYPTED: u16 = 1;
const FLAG_DESCRIPTOR: u16 = 1 << 3;
const FULL16: u16 = u16::MAX;
const FULL32: u32 = u32::MAX;
const EXTRA_ZIP64: u16 = 1;
/// The extra field of Android's zipalign: padding.
const EXTRA_PADDING: u16 = 0xd935;

/// Where the bytes of an entry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Range {
    pub offset: u64,
    pub length: u64,
    pub crc32: u32,
}

/// Why an archive is refused.
pub(crate) enum Refusal {
    Io(io::Error),
    Damaged(String),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            Refusal::Damaged("it ends too early".to_owned())
        } else {
            Refusal::Io(error)
        }
    }
}

fn damaged<T>(problem: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Damaged(problem.into()))
}

/// Whether a name can be an entry: relative, forward slashes, plain characters, no part that is empty or begins with a dot.
pub(crate) fn good_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.split('/').all(|part| {
            !part.is_empty()
                && !part.starts_with('.')
                && !part.ends_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "._-+@".contains(c))
        })
}

/// Little-endian numbers off the front of a slice.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        match self.0.split_first_chunk::<N>() {
            Some((head, rest)) => {
                self.0 = rest;
                Ok(*head)
            }
            None => damaged("a zip header ends too early"),
        }
    }

    fn u16(&mut self) -> Result<u16, Refusal> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    fn u32(&mut self) -> Result<u32, Refusal> {
        Ok(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, Refusal> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn skip(&mut self, length: usize) -> Result<(), Refusal> {
        match self.0.get(length..) {
            Some(rest) => {
                self.0 = rest;
                Ok(())
            }
            None => damaged("a zip header ends too early"),
        }
    }
}

/// `length` bytes at `offset`, which must lie within `total`.
fn read_at(file: &mut (impl Read + Seek), offset: u64, length: u64, total: u64) -> Result<Vec<u8>, Refusal> {
    if offset.checked_add(length).is_none_or(|end| end > total) {
        return damaged(format!("it points to byte {offset}, and the file has {total}"));
    }
    let Ok(length) = usize::try_from(length) else {
        return damaged("a length is too large for this machine");
    };
    file.seek(SeekFrom::Start(offset))?;
    let mut bytes = vec![0; length];
    file.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// The entries of an archive, sorted by name. Nothing is read but headers.
pub(crate) fn list(file: &mut (impl Read + Seek)) -> Result<BTreeMap<String, Range>, Refusal> {
    let total = file.seek(SeekFrom::End(0))?;
    let (count, directory, directory_length, directory_limit) = find_directory(file, total)?;
    let count = match usize::try_from(count) {
        Ok(count) if count <= MOST_ENTRIES => count,
        _ => return damaged(format!("it has {count} entries, and {MOST_ENTRIES} is the limit")),
    };
    // Everything between the headers is names and extra fields, which are short.
    const LONGEST_EXTRA: u64 = 4096;
    if directory_length > count as u64 * (CENTRAL_LENGTH + LONGEST_NAME as u64 + LONGEST_EXTRA) {
        return damaged(format!("its directory of {count} entries has {directory_length} bytes"));
    }
    if directory.checked_add(directory_length).is_none_or(|end| end > directory_limit) {
        return damaged("its directory overlaps what ends the file");
    }
    let bytes = read_at(file, directory, directory_length, total)?;
    let mut fields = Fields(&bytes);
    let mut entries = BTreeMap::new();
    let mut ends = BTreeMap::new();
    for _ in 0..count {
        let (name, header, range) = central_header(&mut fields)?;
        let Some(name) = name else { continue };
        let range = check_local(file, &name, header, range, directory)?;
        ends.insert((header, range.offset), range.offset + range.length);
        if entries.insert(name.clone(), range).is_some() {
            return damaged(format!("entry `{name}` is there twice"));
        }
    }
    let mut free_from = 0;
    for ((header, _), end) in ends {
        if header < free_from {
            return damaged(format!("two entries share the bytes at {header}"));
        }
        free_from = end;
    }
    Ok(entries)
}

/// How many entries, where the directory is, how long it is, and what it must end before.
fn find_directory(file: &mut (impl Read + Seek), total: u64) -> Result<(u64, u64, u64, u64), Refusal> {
    // Without a comment, which is what everybody writes, the end record is the end of the file.
    let Some(end) = total.checked_sub(END_LENGTH) else { return damaged("it is too short for a zip file") };
    let bytes = read_at(file, end, END_LENGTH, total)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != END {
        return damaged("it is no zip file, or it is cut off");
    }
    if fields.u32()? != 0 {
        return damaged("it is one of several volumes");
    }
    let (here, count, length, offset) = (fields.u16()?, fields.u16()?, fields.u32()?, fields.u32()?);
    if here != count {
        return damaged("it is one of several volumes");
    }
    if fields.u16()? != 0 {
        return damaged("it has a zip comment");
    }
    if count != FULL16 && length != FULL32 && offset != FULL32 {
        return Ok((count.into(), offset.into(), length.into(), end));
    }
    let Some(locator) = end.checked_sub(LOCATOR64_LENGTH) else {
        return damaged("its zip64 locator is missing");
    };
    let bytes = read_at(file, locator, LOCATOR64_LENGTH, total)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != LOCATOR64 {
        return damaged("its zip64 locator is missing");
    }
    fields.skip(4)?;
    let at = fields.u64()?;
    let bytes = read_at(file, at, END64_LENGTH, total)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != END64 {
        return damaged("its zip64 end record is missing");
    }
    // Record length, versions, volume numbers, entries on this volume.
    fields.skip(8 + 2 + 2 + 4 + 4 + 8)?;
    let (count, length, offset) = (fields.u64()?, fields.u64()?, fields.u64()?);
    Ok((count, offset, length, at))
}

/// Name, offset of the local header, and length of one entry; no name for a folder. The offset of the bytes is not known yet.
fn central_header(fields: &mut Fields<'_>) -> Result<(Option<String>, u64, Range), Refusal> {
    if fields.u32()? != CENTRAL {
        return damaged("its directory is garbled");
    }
    fields.skip(4)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.skip(4)?;
    let crc32 = fields.u32()?;
    let (packed, plain) = (fields.u32()?, fields.u32()?);
    let (name_length, extra_length, comment_length) = (fields.u16()?, fields.u16()?, fields.u16()?);
    fields.skip(2 + 2 + 4)?;
    let header = fields.u32()?;
    let name = fields.0.get(..usize::from(name_length)).map(<[u8]>::to_vec);
    fields.skip(name_length.into())?;
    let mut extra = Fields(fields.0.get(..usize::from(extra_length)).unwrap_or_default());
    fields.skip(extra_length.into())?;
    fields.skip(comment_length.into())?;
    let name = String::from_utf8_lossy(&name.unwrap_or_default()).into_owned();
    if name.strip_suffix('/').is_some_and(good_name) && plain == 0 {
        return Ok((None, 0, Range { offset: 0, length: 0, crc32: 0 }));
    }
    if !good_name(&name) {
        return damaged(format!(
            "entry `{}` has a name that is not allowed (relative, plain characters, no `..`)",
            name.escape_default()
        ));
    }
    if flags & FLAG_ENCRYPTED != 0 {
        return damaged(format!("entry `{name}` is encrypted"));
    }
    if flags & FLAG_DESCRIPTOR != 0 {
        return damaged(format!(
            "entry `{name}` has its length behind it (a data descriptor), which is not allowed"
        ));
    }
    if method != 0 {
        return damaged(format!(
            "entry `{name}` is compressed (method {method}); a bundle is stored: zip -0, or sdl model pack"
        ));
    }
    let (mut packed, mut plain, mut header) = (u64::from(packed), u64::from(plain), u64::from(header));
    while extra.0.len() >= 4 {
        let (kind, length) = (extra.u16()?, extra.u16()?);
        let mut body = Fields(extra.0.get(..usize::from(length)).unwrap_or_default());
        extra.skip(length.into())?;
        if kind == EXTRA_ZIP64 {
            for value in [&mut plain, &mut packed, &mut header] {
                if *value == u64::from(FULL32) {
                    *value = body.u64()?;
                }
            }
        }
    }
    if packed != plain {
        return damaged(format!("entry `{name}` is stored, yet has two lengths"));
    }
    Ok((Some(name), header, Range { offset: 0, length: plain, crc32 }))
}

/// Reads the local header, which says where the bytes begin and must agree with the directory.
fn check_local(
    file: &mut (impl Read + Seek),
    name: &str,
    header: u64,
    range: Range,
    directory: u64,
) -> Result<Range, Refusal> {
    let bytes = read_at(file, header, LOCAL_LENGTH, directory)?;
    let mut fields = Fields(&bytes);
    if fields.u32()? != LOCAL {
        return damaged(format!("entry `{name}` has no header at byte {header}"));
    }
    fields.skip(2)?;
    let (flags, method) = (fields.u16()?, fields.u16()?);
    fields.skip(4)?;
    let (crc32, packed, plain) = (fields.u32()?, fields.u32()?, fields.u32()?);
    let (name_length, extra_length) = (fields.u16()?, fields.u16()?);
    let local_name = read_at(file, header + LOCAL_LENGTH, name_length.into(), directory)?;
    let agrees = |short: u32| short == FULL32 || u64::from(short) == range.length;
    let same = local_name == name.as_bytes()
        && crc32 == range.crc32
        && method == 0
        && flags & (FLAG_ENCRYPTED | FLAG_DESCRIPTOR) == 0
        && agrees(packed)
        && agrees(plain);
    if !same {
        return damaged(format!("the two headers of entry `{name}` contradict each other"));
    }
    let offset = header + LOCAL_LENGTH + u64::from(name_length) + u64::from(extra_length);
    match offset.checked_add(range.length) {
        Some(end) if end <= directory => Ok(Range { offset, ..range }),
        _ => damaged(format!("entry `{name}` runs past the end of the entries")),
    }
}

/// Writes an archive: the entries in the order given, which must be sorted by name.
pub(crate) struct Writer<W> {
    out: W,
    at: u64,
    written: Vec<(String, u64, u64, u32)>,
}

fn put(bytes: &mut Vec<u8>, fields: &[&[u8]]) {
    fields.iter().for_each(|field| bytes.extend_from_slice(field));
}

/// A number for a 32-bit field, or the mark that the zip64 field has it.
fn short(value: u64) -> u32 {
    u32::try_from(value).unwrap_or(FULL32)
}

impl<W: Write> Writer<W> {
    pub fn new(out: W) -> Self {
        Writer { out, at: 0, written: Vec::new() }
    }

    /// Writes one entry of `length` bytes, whose sum is known already.
    pub fn entry(&mut self, name: &str, length: u64, crc32: u32, mut content: impl Read) -> io::Result<()> {
        let large = length >= u64::from(FULL32);
        let mut extra = Vec::new();
        if large {
            put(
                &mut extra,
                &[
                    &EXTRA_ZIP64.to_le_bytes(),
                    &16u16.to_le_bytes(),
                    &length.to_le_bytes(),
                    &length.to_le_bytes(),
                ],
            );
        }
        const PADDING_HEADER: u64 = 4;
        let plain = self.at + LOCAL_LENGTH + name.len() as u64 + extra.len() as u64 + PADDING_HEADER;
        let padding = (ALIGNMENT - plain % ALIGNMENT) % ALIGNMENT;
        put(&mut extra, &[&EXTRA_PADDING.to_le_bytes(), &(padding as u16).to_le_bytes()]);
        extra.resize(extra.len() + padding as usize, 0);
        let mut header = Vec::new();
        put(&mut header, &[&LOCAL.to_le_bytes()]);
        self.common(&mut header, name, length, crc32, &extra);
        put(&mut header, &[name.as_bytes(), &extra]);
        self.out.write_all(&header)?;
        let copied = io::copy(&mut content.by_ref().take(length), &mut self.out)?;
        if copied != length {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{name} became shorter while it was read"),
            ));
        }
        self.written.push((name.to_owned(), self.at, length, crc32));
        self.at += header.len() as u64 + length;
        Ok(())
    }

    /// The fields that both headers of an entry have.
    fn common(&self, header: &mut Vec<u8>, name: &str, length: u64, crc32: u32, extra: &[u8]) {
        let version = if length >= u64::from(FULL32) { VERSION_ZIP64 } else { VERSION_STORED };
        let (flags, method, time) = (0u16, 0u16, 0u16);
        let pair = |a: u16, b: u16| [a.to_le_bytes(), b.to_le_bytes()].concat();
        put(header, &[&pair(version, flags), &pair(method, time), &DATE.to_le_bytes(), &crc32.to_le_bytes()]);
        put(header, &[&short(length).to_le_bytes(), &short(length).to_le_bytes()]);
        // Names are at most LONGEST_NAME bytes, extra fields below a hundred.
        put(header, &[&pair(name.len() as u16, extra.len() as u16)]);
    }

    /// Writes the directory.
    pub fn finish(mut self) -> io::Result<W> {
        let directory = self.at;
        let mut bytes = Vec::new();
        for (name, at, length, crc32) in &self.written {
            let mut extra = Vec::new();
            if *length >= u64::from(FULL32) || *at >= u64::from(FULL32) {
                let mut body = Vec::new();
                if *length >= u64::from(FULL32) {
                    put(&mut body, &[&length.to_le_bytes(), &length.to_le_bytes()]);
                }
                if *at >= u64::from(FULL32) {
                    put(&mut body, &[&at.to_le_bytes()]);
                }
                put(&mut extra, &[&EXTRA_ZIP64.to_le_bytes(), &(body.len() as u16).to_le_bytes(), &body]);
            }
            put(&mut bytes, &[&CENTRAL.to_le_bytes(), &VERSION_ZIP64.to_le_bytes()]);
            self.common(&mut bytes, name, *length, *crc32, &extra);
            // Comment length, volume, internal and external attributes.
            put(&mut bytes, &[&[0; 2 + 2 + 2 + 4], &short(*at).to_le_bytes(), name.as_bytes(), &extra]);
        }
        let (count, length) = (self.written.len() as u64, bytes.len() as u64);
        let end64 = directory + length;
        if directory >= u64::from(FULL32) || length >= u64::from(FULL32) {
            put(&mut bytes, &[&END64.to_le_bytes(), &(END64_LENGTH - 12).to_le_bytes()]);
            put(&mut bytes, &[&VERSION_ZIP64.to_le_bytes(), &VERSION_ZIP64.to_le_bytes(), &[0; 8]]);
            put(&mut bytes, &[&count.to_le_bytes(), &count.to_le_bytes(), &length.to_le_bytes()]);
            put(&mut bytes, &[&directory.to_le_bytes(), &LOCATOR64.to_le_bytes(), &[0; 4]]);
            put(&mut bytes, &[&end64.to_le_bytes(), &1u32.to_le_bytes()]);
        }
        // At most MOST_ENTRIES, so the count always fits.
        let count = (count as u16).to_le_bytes();
        put(&mut bytes, &[&END.to_le_bytes(), &[0; 4], &count, &count]);
        put(&mut bytes, &[&short(length).to_le_bytes(), &short(directory).to_le_bytes(), &[0; 2]]);
        self.out.write_all(&bytes)?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    #[test]
    fn names_that_lead_elsewhere_are_no_names() {
        for good in ["bundle.toml", "a/b.onnx", "tables-1.bin", "x.onnx.data"] {
            assert!(good_name(good), "{good}");
        }
        for bad in ["", "/x", "../x", "a/../b", "a//b", "a/", "C:x", "a\\b", ".hidden", "a b", "ä", "x."] {
            assert!(!good_name(bad), "{bad}");
        }
    }

    #[test]
    fn entries_are_aligned_and_found_again() {
        let mut writer = Writer::new(Vec::new());
        for (name, content) in [("a", &b"12345"[..]), ("b/c", b""), ("d", b"xyz")] {
            writer.entry(name, content.len() as u64, crc32fast::hash(content), content).unwrap();
        }
        let bytes = writer.finish().unwrap();
        let Ok(entries) = list(&mut Cursor::new(&bytes)) else { panic!("refused") };
        assert_eq!(entries.keys().collect::<Vec<_>>(), ["a", "b/c", "d"]);
        assert!(entries.values().all(|range| range.offset % ALIGNMENT == 0));
        let range = entries["d"];
        assert_eq!(&bytes[range.offset as usize..][..range.length as usize], b"xyz");
    }

    #[test]
    fn no_single_changed_byte_of_a_header_makes_the_reader_panic() {
        let mut writer = Writer::new(Vec::new());
        writer.entry("a", 3, crc32fast::hash(b"abc"), &b"abc"[..]).unwrap();
        let bytes = writer.finish().unwrap();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = bytes.clone();
                changed[at] = value;
                let _ = list(&mut Cursor::new(&changed));
            }
            assert!(list(&mut Cursor::new(&bytes[..at])).is_err(), "cut at {at}");
        }
    }
}
