//! Vectors that stand for a whole latent position, and the indices that name them (docs/FORMAT.md section 6).
//!
//! The codebook of a VQ model comes with its bundle; a palette comes with the picture ([`super::palette`]).

use byteorder::{ByteOrder, LE};

use super::checksum_i32;
use crate::Error;
use crate::entropy::{LatentShape, index};
use crate::latent::trained::Grid;

/// Vectors of the scaled latent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Codebook {
    channels: usize,
    /// (entries, channels).
    values: Vec<f32>,
}

impl Codebook {
    /// `values` are entry by entry; there is at least one.
    pub fn new(channels: usize, values: Vec<f32>) -> Self {
        Codebook { channels, values }
    }

    /// The codebook file of a bundle: entry by entry, 32-bit floats, little endian, as the synthesis takes them.
    /// `scaled` turns a value of a channel into that of the scaled latent.
    pub fn parse(bytes: &[u8], channels: usize, scaled: impl Fn(usize, f32) -> f32) -> Result<Self, Error> {
        let entries = bytes.len() / (4 * channels);
        if !bytes.len().is_multiple_of(4 * channels) || !(1..=index::MAX_ENTRIES).contains(&entries) {
            return Err(Error::corrupt(format!(
                "the codebook of the bundle has {} bytes: no 1 to {} entries of {channels} channels",
                bytes.len(),
                index::MAX_ENTRIES
            )));
        }
        let values = bytes.chunks_exact(4).enumerate();
        let values: Vec<f32> = values.map(|(i, bytes)| scaled(i % channels, LE::read_f32(bytes))).collect();
        if values.iter().any(|v| !v.is_finite()) {
            return Err(Error::corrupt("the codebook of the bundle has a value that is not a number"));
        }
        Ok(Codebook { channels, values })
    }

    pub fn entries(&self) -> usize {
        self.values.len() / self.channels
    }

    pub fn channels(&self) -> usize {
        self.channels
    }

    pub fn vector(&self, index: usize) -> &[f32] {
        &self.values[index * self.channels..][..self.channels]
    }

    /// The entry next to a vector; of several the first.
    pub fn nearest(&self, vector: &[f32]) -> usize {
        let mut best = (f32::INFINITY, 0);
        for (index, entry) in self.values.chunks_exact(self.channels).enumerate() {
            let distance = distance(entry, vector);
            if distance < best.0 {
                best = (distance, index);
            }
        }
        best.1
    }

    /// The nearest entry of each position of a latent (C, H, W).
    pub fn indices(&self, latent: &[f32]) -> Vec<u32> {
        let area = latent.len() / self.channels;
        let mut vector = vec![0.0; self.channels];
        let one = |at| {
            gather(latent, area, at, &mut vector);
            self.nearest(&vector) as u32
        };
        (0..area).map(one).collect()
    }

    /// The latent (C, H, W) that indices stand for.
    pub fn latent(&self, indices: &[u32]) -> Vec<f32> {
        let channel = |c| indices.iter().map(move |&index| self.vector(index as usize)[c]);
        (0..self.channels).flat_map(channel).collect()
    }

    /// The payload of a latent chunk.
    pub fn encode_tile(&self, indices: &[u32], grid: Grid) -> Result<Vec<u8>, Error> {
        let data = index::encode(indices, self.entries(), grid.width)
            .map_err(|error| Error::Parameter(error.to_string()))?;
        Ok([&checksum(indices).to_le_bytes()[..], &data].concat())
    }

    /// The indices of a tile, and their checksum.
    pub fn decode_tile(&self, data: &[u8], shape: LatentShape) -> Result<(Vec<u32>, u32), Error> {
        let indices = index::decode(data, self.entries(), shape.height, shape.width)?;
        let sum = checksum(&indices);
        Ok((indices, sum))
    }
}

/// Squared distance.
pub(crate) fn distance(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The vector at a position of a latent (C, H, W).
pub(crate) fn gather(latent: &[f32], area: usize, at: usize, vector: &mut [f32]) {
    for (c, value) in vector.iter_mut().enumerate() {
        *value = latent[c * area + at];
    }
}

fn checksum(indices: &[u32]) -> u32 {
    checksum_i32(&indices.iter().map(|&index| index as i32).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_codebook_is_read_scaled_and_finds_the_nearest_entry() {
        let bytes: Vec<u8> = [0f32, 0.0, 4.0, 0.0, 0.0, 8.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        let codebook = Codebook::parse(&bytes, 2, |c, v| v * (1 + c) as f32).unwrap();
        assert_eq!((codebook.entries(), codebook.vector(2)), (3, &[0.0, 16.0][..]));
        // (C, H, W): three positions.
        let latent = [0.5, 3.0, 0.0, 1.0, 1.0, 9.0];
        let indices = codebook.indices(&latent);
        assert_eq!(indices, [0, 1, 2]);
        assert_eq!(codebook.latent(&indices), [0.0, 4.0, 0.0, 0.0, 0.0, 16.0]);
        for bad in [&bytes[..0], &bytes[..5], &bytes[..12]] {
            assert!(Codebook::parse(bad, 2, |_, v| v).is_err());
        }
        assert!(Codebook::parse(&f32::NAN.to_le_bytes(), 1, |_, v| v).is_err());
    }
}
