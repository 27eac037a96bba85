//! Latents to symbols and back.
//!
//! [`trained`]: bundles with frequency tables, which [`walk`] goes through, and their [`hyper`]-latent; [`delta`]: the same against the
//! picture before. All others: [`scalar`] by the universal coder, [`palette`] and [`codebook`] by the coder of indices.

pub(crate) mod channels;
pub(crate) mod codebook;
pub(crate) mod delta;
pub(crate) mod hyper;
pub(crate) mod palette;
pub(crate) mod scalar;
pub(crate) mod trained;
mod walk;

use std::sync::Arc;

use crate::Error;
use crate::entropy::LatentShape;

/// What the symbols of a bundle without tables stand for.
#[derive(Debug, Clone)]
pub(crate) enum Coding {
    Scalar(scalar::Quantiser),
    Palette(palette::Palette),
    Codebook(Arc<codebook::Codebook>),
}

impl Coding {
    /// The scaled latent (C, H, W) of a tile, and the checksum of its symbols.
    pub fn decode_tile(&self, data: &[u8], shape: LatentShape) -> Result<(Vec<f32>, u32), Error> {
        let vectors = match self {
            Coding::Scalar(quantiser) => {
                let symbols = scalar::decode(data, shape)?;
                return Ok((quantiser.dequantise(&symbols), checksum_i32(&symbols)));
            }
            Coding::Palette(palette) => palette.codebook(),
            Coding::Codebook(codebook) => codebook,
        };
        let (indices, sum) = vectors.decode_tile(data, shape)?;
        Ok((vectors.latent(&indices), sum))
    }
}

/// CRC-32C over integers as the format orders them: little endian, channel by channel, rows from the top.
pub(crate) fn checksum_i16(values: &[i16]) -> u32 {
    let mut crc = 0;
    let mut buffer = [0u8; 4096];
    for part in values.chunks(2048) {
        for (bytes, value) in buffer.chunks_exact_mut(2).zip(part) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        crc = crc32c::crc32c_append(crc, &buffer[..2 * part.len()]);
    }
    crc
}

/// The same for symbols of 32 bits.
pub(crate) fn checksum_i32(values: &[i32]) -> u32 {
    let mut crc = 0;
    let mut buffer = [0u8; 4096];
    for part in values.chunks(1024) {
        for (bytes, value) in buffer.chunks_exact_mut(4).zip(part) {
            bytes.copy_from_slice(&value.to_le_bytes());
        }
        crc = crc32c::crc32c_append(crc, &buffer[..4 * part.len()]);
    }
    crc
}
