//! Scalar quantisation for bundles without tables: a step for each channel, symbols by the universal coder.

use byteorder::{ByteOrder, LE};

use crate::Error;
use crate::entropy::{LatentShape, universal};

/// The quantiser of a picture: symbol s of channel c stands for s * step\[c\] in the bundle's scaled latent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Quantiser {
    pub step: Vec<f32>,
}

impl Quantiser {
    /// The payload of its chunk: one step for all channels (4 bytes), or one for each.
    pub fn to_bytes(&self) -> Vec<u8> {
        let all_equal = self.step.windows(2).all(|pair| pair[0] == pair[1]);
        let shown = if all_equal { &self.step[..1] } else { &self.step[..] };
        shown.iter().flat_map(|step| step.to_le_bytes()).collect()
    }

    pub fn parse(bytes: &[u8], channels: usize) -> Result<Self, Error> {
        let mut step: Vec<f32> = bytes.chunks_exact(4).map(LE::read_f32).collect();
        if bytes.len() != 4 && bytes.len() != 4 * channels {
            return Err(Error::corrupt(format!(
                "{} bytes of quantiser for {channels} channels",
                bytes.len()
            )));
        }
        if step.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err(Error::corrupt("a quantiser step is not a positive number"));
        }
        step.resize(channels, step[0]);
        Ok(Quantiser { step })
    }

    /// Scaled latent (C, H, W) to symbols.
    pub fn quantise(&self, latent: &[f32]) -> Vec<i32> {
        let area = latent.len() / self.step.len();
        let plane = |(plane, step): (&[f32], &f32)| {
            let inverse = 1.0 / step;
            plane
                .iter()
                .map(move |v| (v * inverse).round_ties_even().clamp(-1e6, 1e6) as i32)
                .collect::<Vec<_>>()
        };
        latent.chunks_exact(area).zip(&self.step).flat_map(plane).collect()
    }

    /// Symbols to scaled latent.
    pub fn dequantise(&self, symbols: &[i32]) -> Vec<f32> {
        let area = symbols.len() / self.step.len();
        let plane = |(plane, step): (&[i32], &f32)| {
            let step = *step;
            plane.iter().map(move |&s| s as f32 * step).collect::<Vec<_>>()
        };
        symbols.chunks_exact(area).zip(&self.step).flat_map(plane).collect()
    }
}

pub(crate) fn encode(symbols: &[i32], shape: LatentShape) -> Result<Vec<u8>, Error> {
    universal::encode(symbols, shape).map_err(|error| Error::Parameter(error.to_string()))
}

pub(crate) fn decode(bytes: &[u8], shape: LatentShape) -> Result<Vec<i32>, Error> {
    Ok(universal::decode(bytes, shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantiser_survives_in_the_short_and_the_long_form_and_hostile_steps_are_refused() {
        for step in [vec![0.5; 3], vec![0.5, 1.0, 2.0]] {
            let quantiser = Quantiser { step };
            assert_eq!(Quantiser::parse(&quantiser.to_bytes(), 3).unwrap(), quantiser);
        }
        for bad in [f32::NAN, 0.0, -1.0, f32::INFINITY] {
            assert!(Quantiser::parse(&bad.to_le_bytes(), 3).is_err());
        }
        assert!(Quantiser::parse(&[0; 8], 3).is_err());
    }
}
