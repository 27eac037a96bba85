//! Latents to symbols and back.
//!
//! [`trained`]: bundles with a hyper-latent and frequency tables; [`delta`]: the same against the picture before.
//! [`scalar`]: all others, by the universal coder.

pub(crate) mod delta;
pub(crate) mod scalar;
pub(crate) mod trained;

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
