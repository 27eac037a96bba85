//! Scalar quantisation for bundles without tables: a step and an offset for each channel, symbols by the universal coder.

use byteorder::{ByteOrder, LE};

use crate::Error;
use crate::entropy::{LatentShape, universal};

/// A channel's step is so many times the common one, in 1/64.
const UNIT: f32 = 64.0;
/// A channel's offset is a part of its step, in 1/256.
const PART: f32 = 256.0;

/// The quantiser of a picture: symbol s of channel c stands for (s + offset\[c\]) * step\[c\] in the bundle's scaled latent.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Quantiser {
    base: f32,
    /// For each channel: step in 1/64 of `base`, offset in 1/256 of that step.
    channels: Vec<(u8, i8)>,
}

impl Quantiser {
    /// The same step for all channels, no offset.
    pub fn even(step: f32, channels: usize) -> Self {
        Quantiser { base: step, channels: vec![(UNIT as u8, 0); channels] }
    }

    /// Steps that are `relative` times the common one, as far as the format can say it.
    pub fn with_relative(mut self, relative: &[f32]) -> Self {
        for ((step, _), relative) in self.channels.iter_mut().zip(relative) {
            *step = (relative * UNIT).round_ties_even().clamp(1.0, 255.0) as u8;
        }
        self
    }

    /// Offsets that put a symbol on the value that each channel of a latent (C, H, W) has most of, its median.
    pub fn centred(mut self, latent: &[f32]) -> Self {
        let area = latent.len() / self.channels.len();
        for (c, plane) in latent.chunks_exact(area).enumerate() {
            let mut values = plane.to_vec();
            let (_, median, _) = values.select_nth_unstable_by(area / 2, f32::total_cmp);
            let steps = *median / self.step(c);
            let part = (steps - steps.round_ties_even()) * PART;
            self.channels[c].1 = part.round_ties_even().clamp(-127.0, 127.0) as i8;
        }
        self
    }

    pub fn channels(&self) -> usize {
        self.channels.len()
    }

    /// The step of a channel.
    pub fn step(&self, channel: usize) -> f32 {
        self.base * (f32::from(self.channels[channel].0) / UNIT)
    }

    fn offset(&self, channel: usize) -> f32 {
        f32::from(self.channels[channel].1) / PART
    }

    /// The step whose error a uniform quantiser would have over all channels.
    pub fn mean_step(&self) -> f32 {
        let squares: f32 = (0..self.channels()).map(|c| self.step(c) * self.step(c)).sum();
        (squares / self.channels() as f32).sqrt()
    }

    /// The payload of its chunk: the common step alone where all channels have it, else step and offset of each behind it.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.base.to_le_bytes().to_vec();
        if self.channels.iter().any(|channel| *channel != (UNIT as u8, 0)) {
            bytes.extend(self.channels.iter().map(|(step, _)| step));
            bytes.extend(self.channels.iter().map(|(_, offset)| *offset as u8));
        }
        bytes
    }

    pub fn parse(bytes: &[u8], channels: usize) -> Result<Self, Error> {
        let wrong = || Error::corrupt(format!("{} bytes of quantiser for {channels} channels", bytes.len()));
        let (base, rest) = bytes.split_at_checked(4).ok_or_else(wrong)?;
        let base = LE::read_f32(base);
        if !base.is_finite() || base <= 0.0 {
            return Err(Error::corrupt("the quantiser's step is not a positive number"));
        }
        if rest.is_empty() {
            return Ok(Self::even(base, channels));
        }
        if rest.len() != 2 * channels {
            return Err(wrong());
        }
        let (steps, offsets) = rest.split_at(channels);
        if steps.contains(&0) {
            return Err(Error::corrupt("the quantiser's step of a channel is 0"));
        }
        let channels = steps.iter().zip(offsets).map(|(&step, &offset)| (step, offset as i8)).collect();
        Ok(Quantiser { base, channels })
    }

    /// Scaled latent (C, H, W) in units of its symbols.
    fn in_steps(&self, latent: &[f32]) -> Vec<f32> {
        let area = latent.len() / self.channels();
        let plane = |(c, plane): (usize, &[f32])| {
            let (inverse, offset) = (1.0 / self.step(c), self.offset(c));
            plane.iter().map(move |v| v * inverse - offset).collect::<Vec<_>>()
        };
        latent.chunks_exact(area).enumerate().flat_map(plane).collect()
    }

    /// The symbols of a scaled latent (C, H, W) and their code. With `strength` above 0 rounding weighs the error, in squared
    /// symbols, against `strength` for each bit.
    pub fn encode(
        &self,
        latent: &[f32],
        shape: LatentShape,
        strength: f32,
    ) -> Result<(Vec<i32>, Vec<u8>), Error> {
        let values = self.in_steps(latent);
        let coded = if strength > 0.0 {
            universal::encode_optimised(&values, shape, strength)
        } else {
            let symbols: Vec<i32> =
                values.iter().map(|v| v.round_ties_even().clamp(-1e6, 1e6) as i32).collect();
            universal::encode(&symbols, shape).map(|data| (symbols, data))
        };
        coded.map_err(|error| Error::Parameter(error.to_string()))
    }

    /// Symbols to scaled latent.
    pub fn dequantise(&self, symbols: &[i32]) -> Vec<f32> {
        let area = symbols.len() / self.channels();
        let plane = |(c, plane): (usize, &[i32])| {
            let (step, offset) = (self.step(c), self.offset(c));
            plane.iter().map(move |&s| (s as f32 + offset) * step).collect::<Vec<_>>()
        };
        symbols.chunks_exact(area).enumerate().flat_map(plane).collect()
    }
}

pub(crate) fn decode(bytes: &[u8], shape: LatentShape) -> Result<Vec<i32>, Error> {
    Ok(universal::decode(bytes, shape)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantiser_survives_in_the_short_and_the_long_form_and_hostile_ones_are_refused() {
        let short = Quantiser::even(0.5, 3);
        let latent: Vec<f32> = (0..300).map(|i| i as f32 / 50.0).collect();
        let long = short.clone().with_relative(&[0.3, 1.0, 9.0]).centred(&latent);
        assert_eq!((short.to_bytes().len(), long.to_bytes().len()), (4, 10));
        for quantiser in [short, long] {
            assert_eq!(Quantiser::parse(&quantiser.to_bytes(), 3).unwrap(), quantiser);
        }
        for bad in [f32::NAN, 0.0, -1.0, f32::INFINITY] {
            assert!(Quantiser::parse(&bad.to_le_bytes(), 3).is_err());
        }
        let one = 1f32.to_le_bytes();
        for rest in [&[][..], &[64], &[64, 64, 64, 0, 0], &[64, 0, 64, 0, 0, 0]] {
            let bytes = [&one[..], rest].concat();
            assert_eq!(Quantiser::parse(&bytes, 3).is_err(), !rest.is_empty(), "{rest:?}");
        }
    }

    #[test]
    fn a_channel_around_a_value_between_symbols_is_kept_better_with_an_offset() {
        let latent: Vec<f32> = (0..512).map(|i| 0.5 + (i % 7) as f32 / 100.0).collect();
        let shape = LatentShape { channels: 1, height: 16, width: 32 };
        let error = |quantiser: &Quantiser| {
            let (symbols, data) = quantiser.encode(&latent, shape, 0.0).unwrap();
            assert_eq!(decode(&data, shape).unwrap(), symbols);
            let decoded = quantiser.dequantise(&symbols);
            latent.iter().zip(decoded).map(|(a, b)| (a - b).powi(2)).sum::<f32>()
        };
        let even = Quantiser::even(1.0, 1);
        assert!(error(&even.clone().centred(&latent)) < 0.02 * error(&even));
    }

    #[test]
    fn optimised_rounding_trades_error_for_bytes() {
        let wave = |i: usize| ((i % 64) as f32 / 9.0).sin() * 2.0 + ((i * 7919 % 101) as f32 / 101.0 - 0.5);
        let latent: Vec<f32> = (0..4096).map(wave).collect();
        let shape = LatentShape { channels: 1, height: 64, width: 64 };
        let quantiser = Quantiser::even(0.7, 1);
        let (plain, bytes) = quantiser.encode(&latent, shape, 0.0).unwrap();
        let (optimised, fewer) = quantiser.encode(&latent, shape, 0.1).unwrap();
        assert_eq!(decode(&fewer, shape).unwrap(), optimised);
        assert!(fewer.len() < bytes.len() * 95 / 100, "{} {}", fewer.len(), bytes.len());
        assert!(plain.iter().zip(&optimised).all(|(a, b)| (a - b).abs() <= 1));
    }
}
