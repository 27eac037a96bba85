//! The alpha plane, kept exactly (docs/FORMAT.md section 7).
//!
//! Each row: the difference of each sample to its left neighbour, most significant bytes first; all rows through zlib.

use std::io::{Read, Write};

use flate2::Compression;
use flate2::read::ZlibDecoder;
use flate2::write::ZlibEncoder;

use crate::{Alpha, AlphaDepth, Error};

pub(crate) fn encode(alpha: &Alpha, width: usize) -> Result<Vec<u8>, Error> {
    let samples: Vec<u32> = match alpha {
        Alpha::Eight(samples) => samples.iter().map(|&s| u32::from(s)).collect(),
        Alpha::Sixteen(samples) => samples.iter().map(|&s| u32::from(s)).collect(),
        Alpha::Float(samples) => samples.iter().map(|s| s.to_bits()).collect(),
    };
    let bits = alpha.depth().bits();
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::best());
    let mut planes = Vec::new();
    for row in samples.chunks(width) {
        planes.clear();
        for plane in (0..bits / 8).rev() {
            let mut left = 0u32;
            for &sample in row {
                planes.push((sample.wrapping_sub(left) >> (8 * plane)) as u8);
                left = sample;
            }
        }
        encoder.write_all(&planes)?;
    }
    Ok(encoder.finish()?)
}

pub(crate) fn decode(data: &[u8], depth: AlphaDepth, width: usize, height: usize) -> Result<Alpha, Error> {
    let bits = depth.bits();
    let bytes = usize::from(bits / 8);
    let mask = if bits == 32 { u32::MAX } else { (1 << bits) - 1 };
    let mut decoder = ZlibDecoder::new(data);
    let mut row = vec![0; width * bytes];
    let mut samples: Vec<u32> = Vec::new();
    for _ in 0..height {
        decoder.read_exact(&mut row).map_err(|e| Error::corrupt(format!("the alpha plane: {e}")))?;
        let mut left = 0u32;
        for x in 0..width {
            let difference =
                (0..bytes).fold(0u32, |value, plane| value << 8 | u32::from(row[plane * width + x]));
            left = left.wrapping_add(difference) & mask;
            samples.push(left);
        }
    }
    if decoder.read(&mut [0]).map_err(|e| Error::corrupt(format!("the alpha plane: {e}")))? != 0 {
        return Err(Error::corrupt("the alpha plane has more samples than the picture"));
    }
    Ok(match depth {
        AlphaDepth::Eight => Alpha::Eight(samples.into_iter().map(|s| s as u8).collect()),
        AlphaDepth::Sixteen => Alpha::Sixteen(samples.into_iter().map(|s| s as u16).collect()),
        AlphaDepth::Float => Alpha::Float(samples.into_iter().map(f32::from_bits).collect()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alpha_of_every_depth_is_kept_exactly() {
        let n = 37 * 11;
        let planes = [
            Alpha::Eight((0..n).map(|i| (i * 7) as u8).collect()),
            Alpha::Sixteen((0..n).map(|i| (i * 7919) as u16).collect()),
            Alpha::Float((0..n).map(|i| (i as f32 - 5.0) / 37.0).collect()),
            Alpha::Eight(vec![255; n]),
        ];
        for alpha in planes {
            let payload = encode(&alpha, 37).unwrap();
            assert_eq!(decode(&payload, alpha.depth(), 37, 11).unwrap(), alpha);
            assert!(decode(&payload[..payload.len() - 5], alpha.depth(), 37, 11).is_err());
            assert!(decode(&payload, alpha.depth(), 37, 10).is_err());
        }
        assert!(decode(&[], AlphaDepth::Eight, 1, 1).is_err());
    }
}
