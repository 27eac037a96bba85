//! A palette of the picture: up to 256 latent vectors, and an index for each position (docs/FORMAT.md section 6).
//!
//! The codec of 2022 that this project descends from. The palette is found by k-means, all in a fixed order of single
//! steps, so that the same latent gives the same file everywhere. With dither, the error of each position goes on to its
//! neighbours (Floyd and Steinberg 1976), in latent space: means over areas stay right, for the synthesis to average.

use byteorder::{ByteOrder, LE};

use super::codebook::{Codebook, distance, gather};
use crate::Error;
use crate::entropy::{LatentShape, universal};

/// Most entries of a palette.
pub(crate) const MAX_ENTRIES: usize = 256;
/// Positions that the search looks at; in larger pictures they are spread evenly.
const MAX_SAMPLES: usize = 1 << 14;
const ITERATIONS: usize = 16;
/// The largest value of an entry as it is stored.
const LEVELS: f32 = 255.0;

/// Entries as they are stored: 8 bits in the range of each channel.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Palette {
    ranges: Vec<[f32; 2]>,
    /// (entries, channels).
    bytes: Vec<u8>,
    codebook: Codebook,
}

impl Palette {
    /// A palette of at most `entries` vectors for a scaled latent (C, H, W).
    pub fn of(latent: &[f32], channels: usize, entries: usize) -> Self {
        let area = latent.len() / channels;
        let count = area.min(MAX_SAMPLES);
        let mut samples = vec![0.0; count * channels];
        for (i, sample) in samples.chunks_exact_mut(channels).enumerate() {
            gather(latent, area, i * area / count, sample);
        }
        let mut values = k_means(&samples, channels, entries.clamp(1, MAX_ENTRIES));
        sort(&mut values, channels);
        Self::quantised(channels, &values)
    }

    fn quantised(channels: usize, values: &[f32]) -> Self {
        let range = |c: usize| {
            let channel = values.iter().skip(c).step_by(channels);
            channel.fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], &v| [low.min(v), high.max(v)])
        };
        let ranges: Vec<[f32; 2]> = (0..channels).map(range).collect();
        let byte = |(i, v): (usize, &f32)| {
            let [low, high] = ranges[i % channels];
            if high > low { ((v - low) / (high - low) * LEVELS).round_ties_even() as u8 } else { 0 }
        };
        let bytes = values.iter().enumerate().map(byte).collect();
        Self::new(ranges, bytes)
    }

    fn new(ranges: Vec<[f32; 2]>, bytes: Vec<u8>) -> Self {
        let channels = ranges.len();
        let value = |(i, byte): (usize, &u8)| {
            let [low, high] = ranges[i % channels];
            low + (high - low) * (f32::from(*byte) / LEVELS)
        };
        let values = bytes.iter().enumerate().map(value).collect();
        Palette { bytes, codebook: Codebook::new(channels, values), ranges }
    }

    /// The vectors.
    pub fn codebook(&self) -> &Codebook {
        &self.codebook
    }

    /// The payload of its chunk.
    pub fn to_bytes(&self) -> Result<Vec<u8>, Error> {
        let (channels, entries) = (self.ranges.len(), self.codebook.entries());
        let mut payload = vec![(entries - 1) as u8];
        payload.extend(self.ranges.iter().flatten().flat_map(|v| v.to_le_bytes()));
        let symbols: Vec<i32> = (0..channels)
            .flat_map(|c| self.bytes.iter().skip(c).step_by(channels).map(|&b| i32::from(b)))
            .collect();
        let shape = LatentShape { channels, height: 1, width: entries };
        payload
            .extend(universal::encode(&symbols, shape).map_err(|error| Error::Parameter(error.to_string()))?);
        Ok(payload)
    }

    pub fn parse(payload: &[u8], channels: usize) -> Result<Self, Error> {
        let cut = || Error::corrupt("the palette is cut short");
        let (&last, rest) = payload.split_first().ok_or_else(cut)?;
        let entries = usize::from(last) + 1;
        let (ranges, data) = rest.split_at_checked(8 * channels).ok_or_else(cut)?;
        let ranges: Vec<[f32; 2]> =
            ranges.chunks_exact(8).map(|pair| [LE::read_f32(pair), LE::read_f32(&pair[4..])]).collect();
        if ranges.iter().any(|[low, high]| !(low.is_finite() && high.is_finite() && low <= high)) {
            return Err(Error::corrupt("a range of the palette is none"));
        }
        let symbols = universal::decode(data, LatentShape { channels, height: 1, width: entries })?;
        let mut bytes = vec![0; symbols.len()];
        for (i, &symbol) in symbols.iter().enumerate() {
            let byte = u8::try_from(symbol)
                .map_err(|_| Error::corrupt("an entry of the palette is out of range"))?;
            bytes[i % entries * channels + i / entries] = byte;
        }
        Ok(Self::new(ranges, bytes))
    }

    /// The index of each position of a latent (C, H, W), the error of each spread over those that come after it.
    pub fn dithered(&self, latent: &[f32], width: usize) -> Vec<u32> {
        /// Floyd and Steinberg's weights, in 1/16: right; below left, below, below right.
        const RIGHT: f32 = 7.0 / 16.0;
        const BELOW: [f32; 3] = [3.0 / 16.0, 5.0 / 16.0, 1.0 / 16.0];
        let channels = self.codebook.channels();
        let area = latent.len() / channels;
        // Errors of this row and of the next one, a position wider on either side.
        let mut rows = [vec![0.0; (width + 2) * channels], vec![0.0; (width + 2) * channels]];
        let mut vector = vec![0.0; channels];
        let mut indices = Vec::with_capacity(area);
        for at in 0..area {
            let x = at % width;
            if x == 0 {
                rows.swap(0, 1);
                rows[1].fill(0.0);
            }
            gather(latent, area, at, &mut vector);
            let [here, below] = &mut rows;
            for (value, error) in vector.iter_mut().zip(&here[(x + 1) * channels..]) {
                *value += error;
            }
            let index = self.codebook.nearest(&vector);
            for (c, (value, entry)) in vector.iter().zip(self.codebook.vector(index)).enumerate() {
                let error = value - entry;
                here[(x + 2) * channels + c] += error * RIGHT;
                for (dx, weight) in BELOW.iter().enumerate() {
                    below[(x + dx) * channels + c] += error * weight;
                }
            }
            indices.push(index as u32);
        }
        indices
    }
}

/// Centres of `samples` (one after another): the cluster of largest error is split until there are enough, then Lloyd's
/// iterations. Clusters that lose all their samples are left out.
fn k_means(samples: &[f32], channels: usize, entries: usize) -> Vec<f32> {
    let sample = |i: usize| &samples[i * channels..][..channels];
    let all: Vec<usize> = (0..samples.len() / channels).collect();
    let mut clusters = vec![Cluster::of(all, samples, channels)];
    while clusters.len() < entries {
        let widest = (0..clusters.len())
            .fold(0, |best, i| if clusters[i].spread > clusters[best].spread { i } else { best });
        if clusters[widest].spread <= 0.0 {
            break;
        }
        let Cluster { members, axis, centre, .. } = clusters.swap_remove(widest);
        let (below, above): (Vec<usize>, Vec<usize>) =
            members.into_iter().partition(|&i| sample(i)[axis] < centre[axis]);
        for part in [below, above] {
            if !part.is_empty() {
                clusters.push(Cluster::of(part, samples, channels));
            }
        }
    }
    let mut centres: Vec<f32> = clusters.into_iter().flat_map(|cluster| cluster.centre).collect();
    for _ in 0..ITERATIONS {
        let codebook = Codebook::new(channels, centres);
        let mut sums = vec![0.0f64; codebook.entries() * channels];
        let mut counts = vec![0u32; codebook.entries()];
        for vector in samples.chunks_exact(channels) {
            let index = codebook.nearest(vector);
            counts[index] += 1;
            for (sum, &v) in sums[index * channels..].iter_mut().zip(vector) {
                *sum += f64::from(v);
            }
        }
        let means = sums.chunks_exact(channels).zip(&counts).filter(|(_, count)| **count > 0);
        let next: Vec<f32> =
            means.flat_map(|(sum, &n)| sum.iter().map(move |s| (s / f64::from(n)) as f32)).collect();
        let moved = next.len() != codebook.entries() * channels
            || next.chunks_exact(channels).enumerate().any(|(i, v)| distance(v, codebook.vector(i)) > 0.0);
        centres = next;
        if !moved {
            break;
        }
    }
    centres
}

/// Samples that belong together.
struct Cluster {
    members: Vec<usize>,
    centre: Vec<f32>,
    /// The channel in which they differ most, and their squared error there.
    axis: usize,
    spread: f64,
}

impl Cluster {
    fn of(members: Vec<usize>, samples: &[f32], channels: usize) -> Self {
        let mut centre = Vec::with_capacity(channels);
        let (mut axis, mut spread) = (0, -1.0);
        for c in 0..channels {
            let values = || members.iter().map(|i| f64::from(samples[i * channels + c]));
            let mean = values().sum::<f64>() / members.len() as f64;
            // In the precision of the samples: a cluster of equal ones must have no spread at all.
            centre.push(mean as f32);
            let (low, high) = values().fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
            let error = if low < high && low < f64::from(mean as f32) {
                values().map(|v| (v - mean) * (v - mean)).sum()
            } else {
                0.0
            };
            if error > spread {
                (axis, spread) = (c, error);
            }
        }
        Cluster { members, centre, axis, spread }
    }
}

/// Orders entries so that those with the same upper bits of their index are near: halves along the widest channel, again
/// and again. The coder of the indices lives on it.
fn sort(values: &mut [f32], channels: usize) {
    let entries = values.len() / channels;
    if entries < 2 {
        return;
    }
    let extent = |c: usize| {
        let channel = values.iter().skip(c).step_by(channels);
        let (low, high) = channel.fold((f32::MAX, f32::MIN), |(l, h), &v| (l.min(v), h.max(v)));
        high - low
    };
    let axis = (1..channels).fold(0, |best, c| if extent(c) > extent(best) { c } else { best });
    let mut vectors: Vec<Vec<f32>> = values.chunks_exact(channels).map(<[f32]>::to_vec).collect();
    vectors.sort_by(|a, b| a[axis].total_cmp(&b[axis]));
    for (to, vector) in values.chunks_exact_mut(channels).zip(vectors) {
        to.copy_from_slice(&vector);
    }
    // The bits of the indices split at powers of two.
    let (lower, upper) = values.split_at_mut(entries.next_power_of_two() / 2 * channels);
    sort(lower, channels);
    sort(upper, channels);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four groups in two channels, with a little noise; integers, so that nothing depends on rounding.
    fn latent(area: usize) -> Vec<f32> {
        let noise = |i: usize| (i * 7919 % 11) as f32 / 100.0;
        let first = (0..area).map(|i| if i % 2 == 0 { -3.0 } else { 3.0 } + noise(i));
        let second = (0..area).map(|i| if i / 2 % 2 == 0 { -5.0 } else { 5.0 } + noise(i + 5));
        first.chain(second).collect()
    }

    fn error(palette: &Palette, latent: &[f32], indices: &[u32]) -> f32 {
        distance(&palette.codebook().latent(indices), latent) / latent.len() as f32
    }

    #[test]
    fn as_many_entries_as_groups_find_the_groups() {
        let latent = latent(400);
        let palette = Palette::of(&latent, 2, 4);
        assert_eq!(palette.codebook().entries(), 4);
        let indices = palette.codebook().indices(&latent);
        assert!(error(&palette, &latent, &indices) < 0.01);
        assert_eq!(Palette::of(&latent, 2, 4), palette);
        let more = Palette::of(&latent, 2, 64);
        assert!(error(&more, &latent, &more.codebook().indices(&latent)) < 0.002);
    }

    #[test]
    fn a_constant_latent_and_a_single_position_have_a_palette_of_one() {
        for latent in [vec![0.3; 2 * 50], vec![1.5, -2.5]] {
            let palette = Palette::of(&latent, 2, 256);
            assert_eq!(palette.codebook().entries(), 1);
            assert!(
                palette
                    .codebook()
                    .latent(&[0])
                    .iter()
                    .zip([latent[0], latent[latent.len() / 2]])
                    .all(|(a, b)| (a - b).abs() < 1e-6)
            );
        }
    }

    #[test]
    fn a_palette_survives_its_payload_and_every_cut_is_an_error() {
        for entries in [1, 2, 37, 256] {
            let palette = Palette::of(&latent(700), 2, entries);
            let payload = palette.to_bytes().unwrap();
            assert_eq!(Palette::parse(&payload, 2).unwrap(), palette);
            for cut in 0..17.min(payload.len()) {
                assert!(Palette::parse(&payload[..cut], 2).is_err(), "{cut}");
            }
        }
        let mut bad = Palette::of(&latent(700), 2, 4).to_bytes().unwrap();
        bad[1..5].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(Palette::parse(&bad, 2).is_err());
        bad[1..5].copy_from_slice(&1e30f32.to_le_bytes());
        assert!(Palette::parse(&bad, 2).unwrap_err().to_string().contains("range"));
    }

    #[test]
    fn dither_keeps_the_mean_of_an_area_that_no_entry_has() {
        let palette = Palette::quantised(1, &[0.0, 1.0]);
        let latent = vec![0.3; 64 * 64];
        assert!(palette.codebook().indices(&latent).iter().all(|&index| index == 0));
        let dithered = palette.codebook().latent(&palette.dithered(&latent, 64));
        let mean = dithered.iter().sum::<f32>() / dithered.len() as f32;
        assert!((mean - 0.3).abs() < 0.01, "{mean}");
    }
}
