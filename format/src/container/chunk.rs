//! Chunks: type, length, payload, CRC-32C over the header of the file and all of the chunk.
//!
//! The checksum takes the header in, so that a changed bit there is found without bytes of its own. A type in capitals is
//! critical: who does not know it cannot show the picture. One in small letters may be skipped.

use std::io::Read;

use crate::{Error, Header, MAX_HEADER_BYTES, MIN_HEADER_BYTES};

/// The types of chunks, in the order in which they may stand.
pub(crate) mod chunk_type {
    /// Name of the picture that this one is coded against.
    pub const BEFORE: u8 = b'B';
    /// ICC profile of the source.
    pub const ICC: u8 = b'i';
    /// Exif, without the prefix `Exif\0\0`.
    pub const EXIF: u8 = b'e';
    /// XMP packet.
    pub const XMP: u8 = b'x';
    /// Name of the bundle, for people.
    pub const BUNDLE: u8 = b'b';
    /// Timestep and steps of the denoiser.
    pub const DENOISING: u8 = b'N';
    /// Windows of the synthesis and of the denoiser.
    pub const PLAN: u8 = b'T';
    /// Quantiser or palette of a bundle without tables.
    pub const QUANTISER: u8 = b'Q';
    /// Alpha plane.
    pub const ALPHA: u8 = b'A';
    /// Latent of one tile.
    pub const LATENT: u8 = b'L';
}

const KNOWN: [u8; 10] = [
    chunk_type::BEFORE,
    chunk_type::ICC,
    chunk_type::EXIF,
    chunk_type::XMP,
    chunk_type::BUNDLE,
    chunk_type::DENOISING,
    chunk_type::PLAN,
    chunk_type::QUANTISER,
    chunk_type::ALPHA,
    chunk_type::LATENT,
];
/// What is read at a time: memory grows with the bytes that are really there, not with a length that a file claims.
const STEP: usize = 1 << 16;

/// A chunk as it lies in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct ChunkInfo {
    /// Its type: a letter, capital where a reader must know it.
    pub kind: u8,
    /// Where it begins in the file.
    pub offset: u64,
    /// Bytes of its payload.
    pub length: u64,
}

impl ChunkInfo {
    /// What it holds, for people.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self.kind {
            chunk_type::BEFORE => "reference",
            chunk_type::ICC => "ICC profile",
            chunk_type::EXIF => "Exif",
            chunk_type::XMP => "XMP",
            chunk_type::BUNDLE => "name of the bundle",
            chunk_type::DENOISING => "denoising",
            chunk_type::PLAN => "tile plan",
            chunk_type::QUANTISER => "quantiser",
            chunk_type::ALPHA => "alpha plane",
            chunk_type::LATENT => "latent tile",
            _ => "unknown",
        }
    }
}

/// Whether the beginning of a file is that of a delta picture, which needs the picture before it. The header and one byte behind it
/// say so; where they are not there, the answer is no.
#[must_use]
pub fn is_delta(file: &[u8]) -> bool {
    let header = Header::parse(&file[..file.len().min(MAX_HEADER_BYTES)]).ok().flatten();
    header.is_some_and(|header| file.get(header.size()) == Some(&chunk_type::BEFORE))
}

/// Puts a file together.
pub(crate) struct ChunkWriter {
    header: Header,
    chunks: Vec<(u8, Vec<u8>)>,
}

impl ChunkWriter {
    pub fn new(header: Header) -> Self {
        ChunkWriter { header, chunks: Vec::new() }
    }

    pub fn push(&mut self, kind: u8, payload: Vec<u8>) {
        self.chunks.push((kind, payload));
    }

    /// The bytes of the file so far.
    pub fn len(&self) -> u64 {
        let chunk = |payload: &Vec<u8>| (1 + varint(payload.len()).len() + payload.len() + 4) as u64;
        self.header.size() as u64 + self.chunks.iter().map(|(_, payload)| chunk(payload)).sum::<u64>()
    }

    pub fn finish(mut self) -> Result<Vec<u8>, Error> {
        let length = self.len();
        self.header.length = u32::try_from(length).map_err(|_| {
            Error::Parameter(format!("the file would have {length} bytes; the format ends at 4 GiB"))
        })?;
        let head = self.header.to_bytes();
        let mut file = Vec::with_capacity(length as usize);
        file.extend_from_slice(&head);
        for (kind, payload) in self.chunks {
            let start = file.len();
            file.push(kind);
            file.extend(varint(payload.len()));
            file.extend_from_slice(&payload);
            let crc = crc32c::crc32c_append(crc32c::crc32c(&head), &file[start..]);
            file.extend(crc.to_le_bytes());
        }
        Ok(file)
    }
}

/// LEB128: 7 bits a byte, low ones first, the top bit set on all but the last.
fn varint(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Reads the header at once, chunks one by one.
pub(crate) struct ChunkReader<R> {
    input: R,
    header: Header,
    head: Vec<u8>,
    position: u64,
    /// Of every byte that has been read.
    hash: blake3::Hasher,
    /// What has been read, for those who ask what a file consists of.
    seen: Vec<ChunkInfo>,
}

impl<R: Read> ChunkReader<R> {
    /// Reads the header and not a byte more.
    pub fn new(mut input: R) -> Result<Self, Error> {
        let mut head = Vec::with_capacity(MAX_HEADER_BYTES);
        let mut wanted = MIN_HEADER_BYTES;
        loop {
            let before = head.len();
            head.resize(wanted, 0);
            let read = read_up_to(&mut input, &mut head[before..])?;
            head.truncate(before + read);
            if let Some(header) = Header::parse(&head)? {
                let position = head.len() as u64;
                let mut hash = blake3::Hasher::new();
                hash.update(&head);
                return Ok(ChunkReader { input, header, head, position, hash, seen: Vec::new() });
            }
            if before + read < wanted {
                return Err(Error::Truncated { found: head.len() as u64, place: "header" });
            }
            wanted += 4;
        }
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Every chunk that has been read, unknown ones too.
    pub fn seen(&self) -> &[ChunkInfo] {
        &self.seen
    }

    /// The hash of what has been read: of the file, when the end has been reached.
    pub fn hash(&self) -> blake3::Hash {
        self.hash.finalize()
    }

    fn left(&self) -> u64 {
        u64::from(self.header.length).saturating_sub(self.position)
    }

    fn byte(&mut self, place: &'static str) -> Result<u8, Error> {
        if self.left() == 0 {
            return Err(Error::corrupt(format!(
                "the {place} does not fit into the length that the header says"
            )));
        }
        let mut byte = [0];
        if read_up_to(&mut self.input, &mut byte)? == 0 {
            return Err(Error::Truncated { found: self.position, place });
        }
        self.position += 1;
        self.hash.update(&byte);
        Ok(byte[0])
    }

    /// The next chunk that this version knows: its type and payload; `None` at the end.
    pub fn next(&mut self) -> Result<Option<(u8, Vec<u8>)>, Error> {
        loop {
            if self.left() == 0 {
                // Something after the end is no part of the picture, and nobody wants it silently lost.
                let mut more = [0];
                return match read_up_to(&mut self.input, &mut more)? {
                    0 => Ok(None),
                    _ => Err(Error::corrupt(format!(
                        "bytes follow the end of the picture at {}",
                        self.position
                    ))),
                };
            }
            let start = self.position;
            let mut crc = crc32c::crc32c(&self.head);
            let kind = self.byte("chunk type")?;
            crc = crc32c::crc32c_append(crc, &[kind]);
            let mut length = 0u64;
            for shift in (0..35).step_by(7) {
                let byte = self.byte("chunk length")?;
                crc = crc32c::crc32c_append(crc, &[byte]);
                length |= u64::from(byte & 0x7f) << shift;
                if byte & 0x80 == 0 {
                    // One way to write each length: a file has one form.
                    if byte == 0 && shift > 0 {
                        return Err(Error::corrupt(format!(
                            "the length of the chunk at {start} is not minimal"
                        )));
                    }
                    break;
                }
                if shift == 28 {
                    return Err(Error::corrupt(format!("the length of the chunk at {start} has no end")));
                }
            }
            if length.saturating_add(4) > self.left() {
                return Err(Error::corrupt(format!(
                    "the chunk at {start} claims {length} bytes where {} are left",
                    self.left()
                )));
            }
            let chunk = ChunkInfo { kind, offset: start, length };
            let is_known = KNOWN.contains(&kind);
            let mut payload = Vec::new();
            while (payload.len() as u64) < length {
                let before = payload.len();
                let step = STEP.min(usize::try_from(length).unwrap_or(usize::MAX) - before);
                payload.resize(before + step, 0);
                let read = read_up_to(&mut self.input, &mut payload[before..])?;
                self.position += read as u64;
                if read < step {
                    let place = if is_known { chunk.name() } else { "chunk" };
                    return Err(Error::Truncated { found: self.position, place });
                }
            }
            crc = crc32c::crc32c_append(crc, &payload);
            self.hash.update(&payload);
            let mut stored = [0; 4];
            for byte in &mut stored {
                *byte = self.byte("checksum")?;
            }
            if crc != u32::from_le_bytes(stored) {
                return Err(Error::Checksum(format!("the chunk at {start}")));
            }
            self.seen.push(chunk);
            if is_known {
                return Ok(Some((kind, payload)));
            }
            if !kind.is_ascii_lowercase() {
                return Err(Error::Unsupported(format!(
                    "the file has a critical chunk of unknown type {kind:#04x}"
                )));
            }
        }
    }
}

/// Fills `buffer` as far as the input goes.
fn read_up_to(input: &mut impl Read, buffer: &mut [u8]) -> Result<usize, Error> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BundleRef, Method};

    fn file(chunks: &[(u8, &[u8])]) -> Vec<u8> {
        let header = Header {
            length: 0,
            width: 3,
            height: 4,
            quality: 5,
            grey: false,
            natural: false,
            alpha: None,
            method: Method::Trained,
            bundle: BundleRef::BuiltIn(0),
            duration: None,
        };
        let mut writer = ChunkWriter::new(header);
        for (kind, payload) in chunks {
            writer.push(*kind, payload.to_vec());
        }
        let length = writer.len();
        let file = writer.finish().unwrap();
        assert_eq!(file.len() as u64, length);
        file
    }

    fn read(bytes: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, Error> {
        let mut reader = ChunkReader::new(bytes)?;
        let mut chunks = Vec::new();
        while let Some(chunk) = reader.next()? {
            chunks.push(chunk);
        }
        Ok(chunks)
    }

    #[test]
    fn chunks_come_back_and_unknown_ones_are_skipped_or_refused_by_their_case() {
        let long = vec![7; 300_000];
        assert_eq!(
            read(&file(&[(b'e', b"exif"), (b'z', b"?"), (b'L', &long)])).unwrap(),
            [(b'e', b"exif".to_vec()), (b'L', long)]
        );
        assert!(matches!(read(&file(&[(b'Z', b"?")])), Err(Error::Unsupported(_))));
    }

    #[test]
    fn every_changed_bit_every_cut_and_every_appended_byte_is_an_error() {
        let good = file(&[(b'e', b"abc"), (b'L', b"latent")]);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&bad).is_err(), "bit {bit}");
        }
        for cut in 0..good.len() {
            assert!(read(&good[..cut]).is_err(), "cut at {cut}");
        }
        let mut longer = good;
        longer.push(0);
        assert!(matches!(read(&longer), Err(Error::Corrupt(_))));
    }

    #[test]
    fn a_chunk_that_claims_gigabytes_is_refused_before_anything_is_allocated() {
        let mut bytes = file(&[(b'L', b"x")]);
        bytes.truncate(MIN_HEADER_BYTES);
        bytes[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        bytes.extend([b'L', 0xf0, 0xff, 0xff, 0xff, 0x0e]);
        assert!(matches!(read(&bytes), Err(Error::Truncated { place: "latent tile", .. })));
    }
}
