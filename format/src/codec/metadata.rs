//! Profile, Exif and XMP: as they came, through zlib.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use crate::container::{ChunkWriter, chunk_type};
use crate::{Error, Metadata};

/// More than this is no metadata but a bomb.
const MAX_BYTES: u64 = 64 << 20;

pub(crate) fn write(metadata: &Metadata, writer: &mut ChunkWriter) -> Result<(), Error> {
    let parts = [
        (chunk_type::ICC, &metadata.icc),
        (chunk_type::EXIF, &metadata.exif),
        (chunk_type::XMP, &metadata.xmp),
    ];
    for (kind, bytes) in parts {
        if let Some(bytes) = bytes {
            if bytes.len() as u64 > MAX_BYTES {
                return Err(Error::Parameter(format!(
                    "{} bytes of metadata; the format takes 64 MiB",
                    bytes.len()
                )));
            }
            let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
            encoder.write_all(bytes)?;
            writer.push(kind, encoder.finish()?);
        }
    }
    Ok(())
}

/// Puts a chunk where it belongs; a second one of a kind is an error.
pub(crate) fn read(kind: u8, payload: &[u8], metadata: &mut Metadata) -> Result<(), Error> {
    let (slot, name) = match kind {
        chunk_type::ICC => (&mut metadata.icc, "profile"),
        chunk_type::EXIF => (&mut metadata.exif, "Exif"),
        _ => (&mut metadata.xmp, "XMP"),
    };
    if slot.is_some() {
        return Err(Error::corrupt(format!("the {name} is there twice")));
    }
    let mut bytes = Vec::new();
    ZlibDecoder::new(payload)
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::corrupt(format!("the {name}: {e}")))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::corrupt(format!("the {name} has more than 64 MiB")));
    }
    *slot = Some(bytes);
    Ok(())
}
