//! Which frames become pictures.

use gst::ClockTime;
use gst_video::prelude::*;
use gst_video::{VideoFrameRef, VideoInfo};

use super::KeyFrames;

/// What decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub key_frames: KeyFrames,
    pub interval: ClockTime,
    pub min_interval: ClockTime,
    pub threshold: f64,
}

/// Samples on a side of what is compared: enough to see a cut or somebody walking in, too few to see noise.
const SKETCH: usize = 32;

/// Mean brightness on a grid, of frames of any size.
type Sketch = [u8; SKETCH * SKETCH];

/// What was chosen last.
#[derive(Debug, Default)]
pub(super) struct Selector {
    last: Option<ClockTime>,
    /// With an interval: when the last picture was due, which does not drift with the times of frames.
    slot: Option<ClockTime>,
    sketch: Option<Box<Sketch>>,
}

impl Selector {
    /// Whether this frame becomes a picture. `forced` says that somebody asked for one.
    pub fn choose(
        &mut self,
        rules: &Rules,
        forced: bool,
        time: Option<ClockTime>,
        duration: Option<ClockTime>,
        frame: impl FnOnce() -> Option<Box<Sketch>>,
    ) -> bool {
        let since = |least: ClockTime| match (self.last, time) {
            // Time that runs backwards is a new stream.
            (Some(last), Some(now)) => now < last || now - last >= least,
            _ => true,
        };
        let chosen = match rules.key_frames {
            KeyFrames::Every => true,
            KeyFrames::Forced => forced,
            KeyFrames::Interval => {
                let running = self.last.zip(time).is_some_and(|(last, now)| now >= last);
                let due = self.slot.filter(|_| running).map(|slot| slot + rules.interval);
                // The frame that is nearest to when it is due, which may be a little before that.
                let early = duration.unwrap_or_default() / 2;
                let chosen = forced || due.zip(time).is_none_or(|(due, now)| now + early >= due);
                if chosen {
                    let slot = due.filter(|_| !forced).zip(time);
                    self.slot = slot
                        .filter(|&(due, now)| now < due + rules.interval)
                        .map_or(time, |(due, _)| Some(due));
                }
                chosen
            }
            KeyFrames::SceneChange => {
                if !forced && !since(rules.min_interval) {
                    return false;
                }
                let now = frame();
                let differs = match (&self.sketch, &now) {
                    (Some(last), Some(now)) => difference(last, now) >= rules.threshold,
                    _ => true,
                };
                if forced || differs {
                    self.sketch = now;
                }
                forced || differs
            }
        };
        if chosen {
            self.last = time;
        }
        chosen
    }

    /// The next frame is the first of its stream.
    pub fn reset(&mut self) {
        *self = Selector::default();
    }
}

/// Mean difference of two sketches, 0 to 1.
fn difference(a: &Sketch, b: &Sketch) -> f64 {
    let sum: u64 = a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    sum as f64 / (255 * a.len()) as f64
}

/// The sketch of a frame: luma, or green, which is most of it.
pub(super) fn sketch(buffer: &gst::BufferRef, info: &VideoInfo) -> Option<Box<Sketch>> {
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).ok()?;
    let component = if info.format_info().is_rgb() { 1 } else { 0 };
    let data = frame.comp_data(component.into()).ok()?;
    let info = frame.info();
    let stride = usize::try_from(info.comp_stride(component)).ok()?;
    let step = usize::try_from(info.comp_pstride(component)).ok()?.max(1);
    let (width, height) = (info.width() as usize, info.height() as usize);
    let mut sketch = Box::new([0; SKETCH * SKETCH]);
    for (at, cell) in sketch.iter_mut().enumerate() {
        let (row, column) = (at / SKETCH, at % SKETCH);
        let span = |i: usize, size: usize| {
            let start = i * size / SKETCH;
            start..((i + 1) * size / SKETCH).max(start + 1).min(size)
        };
        let (mut sum, mut count) = (0u32, 0u32);
        for y in span(row, height) {
            for x in span(column, width) {
                sum += u32::from(*data.get(y * stride + x * step)?);
                count += 1;
            }
        }
        *cell = (sum / count.max(1)) as u8;
    }
    Some(sketch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(key_frames: KeyFrames) -> Rules {
        Rules {
            key_frames,
            interval: ClockTime::from_mseconds(500),
            min_interval: ClockTime::from_mseconds(200),
            threshold: 0.1,
        }
    }

    fn chosen(rules: &Rules, level: impl Fn(u64) -> u8, forced: &[u64]) -> Vec<u64> {
        let mut selector = Selector::default();
        (0..20)
            .filter(|&n| {
                let time = Some(ClockTime::from_mseconds(100 * n));
                let grey = || Some(Box::new([level(n); SKETCH * SKETCH]));
                selector.choose(rules, forced.contains(&n), time, None, grey)
            })
            .collect()
    }

    #[test]
    fn an_interval_does_not_drift_with_jitter() {
        // 30 frames a second for a minute, up to 3 ms off, and a second of nothing in the middle.
        let jitter = |n: u64| (n * 7 + n / 3) % 7;
        let times =
            |off: u64| (0..1800).map(move |n| 3 + n * 100 / 3 - 3 * u64::from(n > 0) + jitter(n) + off);
        for duration in [None, Some(ClockTime::from_mseconds(33))] {
            let mut selector = Selector::default();
            let count = times(0)
                .chain(times(61_000))
                .filter(|&ms| {
                    let rules = rules(KeyFrames::Interval);
                    selector.choose(&rules, false, Some(ClockTime::from_mseconds(ms)), duration, || None)
                })
                .count();
            assert_eq!(count, 240, "{duration:?}");
        }
        // Half a frame early is nearer than half a frame late.
        let mut selector = Selector::default();
        let frame = Some(ClockTime::from_mseconds(70));
        let chosen: Vec<u64> = (0..20)
            .filter(|n| {
                let time = Some(ClockTime::from_mseconds(70 * n));
                selector.choose(&rules(KeyFrames::Interval), false, time, frame, || None)
            })
            .collect();
        assert_eq!(chosen, [0, 7, 14]);
    }

    #[test]
    fn each_rule_chooses_its_frames_and_forced_ones() {
        let still = |_| 100;
        assert_eq!(chosen(&rules(KeyFrames::Every), still, &[]).len(), 20);
        assert_eq!(chosen(&rules(KeyFrames::Interval), still, &[]), [0, 5, 10, 15]);
        assert_eq!(chosen(&rules(KeyFrames::Interval), still, &[7]), [0, 5, 7, 12, 17]);
        assert_eq!(chosen(&rules(KeyFrames::Forced), still, &[3, 4]), [3, 4]);
        assert_eq!(chosen(&rules(KeyFrames::SceneChange), still, &[9]), [0, 9]);
        // A cut at 6; another one right behind it waits for the least distance.
        let cuts = |n| {
            if n < 6 {
                10
            } else if n < 7 {
                200
            } else {
                90
            }
        };
        assert_eq!(chosen(&rules(KeyFrames::SceneChange), cuts, &[]), [0, 6, 8]);
        // Slow change adds up.
        assert_eq!(chosen(&rules(KeyFrames::SceneChange), |n| (4 * n) as u8, &[]), [0, 7, 14]);
    }
}
