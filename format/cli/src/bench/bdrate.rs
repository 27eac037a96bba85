//! Bjøntegaard's rate difference (ITU-T VCEG-M33), with piecewise cubic Hermite interpolation instead of one polynomial.

use serde::Serialize;

/// Quality at a rate; more quality is better.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Point {
    /// Bits a pixel, more than 0.
    pub bpp: f64,
    pub quality: f64,
}

/// How many bits one codec needs where another needs 100, at equal quality.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct BdRate {
    /// Per cent: -20 is a fifth fewer bits than the anchor.
    pub percent: f64,
    /// The quality that the average is taken over: lowest and highest.
    pub quality: [f64; 2],
    /// The rates of the tested codec there.
    pub bpp: [f64; 2],
}

/// The rate of `test` against that of `anchor`, averaged over quality in the logarithm, where the tested codec is within
/// `range` (bits a pixel) and both curves have points. `None` where that is nowhere.
pub(crate) fn bd_rate(anchor: &[Point], test: &[Point], range: [f64; 2]) -> Option<BdRate> {
    let (anchor, test) = (Curve::new(anchor)?, Curve::new(test)?);
    let low = anchor.x[0].max(test.quality_at(range[0].ln()));
    let high = anchor.end().min(test.quality_at(range[1].ln()));
    if high <= low {
        return None;
    }
    let mean = (test.integral(low, high) - anchor.integral(low, high)) / (high - low);
    Some(BdRate {
        percent: 100.0 * mean.exp_m1(),
        quality: [low, high],
        bpp: [test.at(low).exp(), test.at(high).exp()],
    })
}

/// Log rate over quality: monotone cubic Hermite pieces (Fritsch and Butland 1984, the slopes of PCHIP).
struct Curve {
    x: Vec<f64>,
    y: Vec<f64>,
    slopes: Vec<f64>,
}

impl Curve {
    /// Of the points in the order of their rates, those whose quality is above all before. `None` for less than two.
    fn new(points: &[Point]) -> Option<Self> {
        let mut points: Vec<Point> = points
            .iter()
            .copied()
            .filter(|p| p.bpp > 0.0 && p.bpp.is_finite() && p.quality.is_finite())
            .collect();
        points.sort_by(|a, b| a.bpp.total_cmp(&b.bpp));
        let (mut x, mut y): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
        for point in points {
            if x.last().is_none_or(|last| point.quality > *last) {
                x.push(point.quality);
                y.push(point.bpp.ln());
            }
        }
        let slopes = slopes(&x, &y)?;
        Some(Curve { x, y, slopes })
    }

    fn end(&self) -> f64 {
        self.x[self.x.len() - 1]
    }

    fn at(&self, quality: f64) -> f64 {
        let after = self.x.partition_point(|x| *x < quality).clamp(1, self.x.len() - 1);
        let i = after - 1;
        let h = self.x[after] - self.x[i];
        let t = (quality - self.x[i]) / h;
        (1.0 + 2.0 * t) * (1.0 - t).powi(2) * self.y[i]
            + t * (1.0 - t).powi(2) * h * self.slopes[i]
            + t * t * (3.0 - 2.0 * t) * self.y[after]
            + t * t * (t - 1.0) * h * self.slopes[after]
    }

    /// The quality at a rate, or at the end of the curve that is nearest to it.
    fn quality_at(&self, log_rate: f64) -> f64 {
        let (mut low, mut high) = (self.x[0], self.end());
        if log_rate <= self.y[0] {
            return low;
        }
        if log_rate >= self.at(high) {
            return high;
        }
        // Halved until nothing is left between them; the curve is monotone.
        for _ in 0..f64::MANTISSA_DIGITS {
            let middle = f64::midpoint(low, high);
            if self.at(middle) < log_rate { low = middle } else { high = middle }
        }
        f64::midpoint(low, high)
    }

    /// Simpson's rule is exact for cubics, so it is used from knot to knot.
    fn integral(&self, low: f64, high: f64) -> f64 {
        let inside = self.x.iter().copied().filter(|x| low < *x && *x < high);
        let knots: Vec<f64> = std::iter::once(low).chain(inside).chain(std::iter::once(high)).collect();
        let piece =
            |a: f64, b: f64| (b - a) / 6.0 * (self.at(a) + 4.0 * self.at(f64::midpoint(a, b)) + self.at(b));
        knots.windows(2).map(|ends| piece(ends[0], ends[1])).sum()
    }
}

fn slopes(x: &[f64], y: &[f64]) -> Option<Vec<f64>> {
    let widths: Vec<f64> = x.windows(2).map(|x| x[1] - x[0]).collect();
    let secants: Vec<f64> = y.windows(2).zip(&widths).map(|(y, h)| (y[1] - y[0]) / h).collect();
    let inner = widths.windows(2).zip(secants.windows(2)).map(|(h, d)| {
        if d[0] * d[1] <= 0.0 {
            return 0.0;
        }
        let (first, second) = (2.0 * h[1] + h[0], h[1] + 2.0 * h[0]);
        (first + second) / (first / d[0] + second / d[1])
    });
    Some(std::iter::once(*secants.first()?).chain(inner).chain(secants.last().copied()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn points(pairs: &[(f64, f64)]) -> Vec<Point> {
        pairs.iter().map(|&(bpp, quality)| Point { bpp, quality }).collect()
    }

    const JPEG: &[(f64, f64)] =
        &[(0.11, 21.7), (0.2, 25.4), (0.37, 28.1), (0.54, 29.9), (0.86, 32.2), (1.3, 34.5)];
    const OTHER: &[(f64, f64)] = &[(0.05, 24.0), (0.12, 26.6), (0.22, 28.3), (0.35, 29.5), (0.51, 30.2)];

    #[test]
    fn a_codec_that_needs_three_quarters_of_the_bits_has_minus_25() {
        let fewer: Vec<_> = JPEG.iter().map(|&(bpp, quality)| (0.75 * bpp, quality)).collect();
        let found = bd_rate(&points(JPEG), &points(&fewer), [0.01, 10.0]).unwrap();
        assert!((found.percent + 25.0).abs() < 1e-9, "{found:?}");
        assert_eq!(found.quality, [21.7, 34.5]);
        assert!((found.bpp[0] - 0.75 * 0.11).abs() < 1e-9);
    }

    /// The references: the same formula in NumPy, which samples the interpolation.
    #[test]
    fn curves_of_another_shape_agree_with_another_implementation() {
        let found = bd_rate(&points(JPEG), &points(OTHER), [0.01, 10.0]).unwrap();
        assert!((found.percent + 50.22).abs() < 0.05, "{found:?}");
        let back = bd_rate(&points(OTHER), &points(JPEG), [0.01, 10.0]).unwrap();
        assert!(((1.0 + found.percent / 100.0) * (1.0 + back.percent / 100.0) - 1.0).abs() < 1e-6);
    }

    #[test]
    fn the_range_is_that_of_the_tested_codec() {
        let found = bd_rate(&points(JPEG), &points(OTHER), [0.12, 0.35]).unwrap();
        assert!(
            (found.quality[0] - 26.6).abs() < 1e-6 && (found.quality[1] - 29.5).abs() < 1e-6,
            "{found:?}"
        );
        assert!((found.bpp[0] - 0.12).abs() < 1e-6 && (found.bpp[1] - 0.35).abs() < 1e-6);
    }

    #[test]
    fn without_a_common_quality_there_is_no_figure() {
        assert_eq!(bd_rate(&points(JPEG), &points(&[(0.1, 40.0), (0.2, 50.0)]), [0.01, 10.0]), None);
        assert_eq!(bd_rate(&points(JPEG), &points(&[(0.1, 25.0)]), [0.01, 10.0]), None);
        assert_eq!(bd_rate(&points(JPEG), &points(OTHER), [2.0, 3.0]), None);
    }

    #[test]
    fn points_that_cost_more_for_less_are_left_out() {
        let mut bent = points(OTHER);
        bent.push(Point { bpp: 0.3, quality: 27.0 });
        assert_eq!(
            bd_rate(&points(JPEG), &bent, [0.01, 10.0]),
            bd_rate(&points(JPEG), &points(OTHER), [0.01, 10.0])
        );
    }
}
