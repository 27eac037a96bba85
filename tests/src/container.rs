//! The container read and written a second time, from its description, so that damage can be made under right checksums.

const FIXED: usize = 20;
const NAMED: u8 = 0xff;
const FLAG_DURATION: u8 = 2;

/// A file taken apart: what a header says need not be true.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The header; its length field is put right by [`Container::to_bytes`].
    pub header: Vec<u8>,
    /// Types and payloads.
    pub chunks: Vec<(u8, Vec<u8>)>,
}

impl Container {
    /// Takes a sound file apart.
    ///
    /// # Panics
    ///
    /// If the file is not sound.
    #[must_use]
    pub fn parse(file: &[u8]) -> Self {
        let named = if file[19] == NAMED { 8 } else { 0 };
        let duration = if file[13] & FLAG_DURATION != 0 { 4 } else { 0 };
        let (header, mut rest) = file.split_at(FIXED + named + duration);
        let length = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
        assert_eq!(length as usize, file.len());
        let mut chunks = Vec::new();
        while !rest.is_empty() {
            let chunk = rest;
            let kind = rest[0];
            rest = &rest[1..];
            let mut length = 0;
            for shift in (0..).step_by(7) {
                length |= usize::from(rest[0] & 0x7f) << shift;
                let last = rest[0] < 0x80;
                rest = &rest[1..];
                if last {
                    break;
                }
            }
            let (payload, after) = rest.split_at(length);
            let (crc, after) = after.split_at(4);
            let checked = &chunk[..chunk.len() - after.len() - 4];
            let expected = crc32c::crc32c_append(crc32c::crc32c(header), checked);
            assert_eq!(crc, expected.to_le_bytes());
            chunks.push((kind, payload.to_vec()));
            rest = after;
        }
        Container { header: header.to_vec(), chunks }
    }

    /// The file, with its length and checksums.
    ///
    /// # Panics
    ///
    /// If it has more than 4 GiB.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut parts = Vec::new();
        for (kind, payload) in &self.chunks {
            let mut chunk = vec![*kind];
            let mut length = payload.len();
            while length >= 0x80 {
                chunk.push(length as u8 | 0x80);
                length >>= 7;
            }
            chunk.push(length as u8);
            chunk.extend(payload);
            parts.push(chunk);
        }
        let length = self.header.len() + parts.iter().map(|part| part.len() + 4).sum::<usize>();
        let mut file = self.header.clone();
        file[8..12].copy_from_slice(&u32::try_from(length).expect("a small file").to_le_bytes());
        let seed = crc32c::crc32c(&file);
        for part in parts {
            file.extend(&part);
            file.extend(crc32c::crc32c_append(seed, &part).to_le_bytes());
        }
        file
    }

    /// Bytes that the range coder wrote: latent chunks without their checksum of the latent.
    #[must_use]
    pub fn coded_bytes(&self) -> usize {
        self.chunks.iter().filter(|(kind, _)| *kind == b'L').map(|(_, payload)| payload.len() - 4).sum()
    }

    /// Sets width and height in the header.
    #[must_use]
    pub fn with_size(mut self, width: u16, height: u16) -> Self {
        self.header[14..16].copy_from_slice(&width.to_le_bytes());
        self.header[16..18].copy_from_slice(&height.to_le_bytes());
        self
    }
}
