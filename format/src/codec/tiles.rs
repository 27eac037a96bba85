//! Tiles: the latent is coded in squares of 64x64 positions, each on its own.
//!
//! The synthesis does not see these squares: it runs on any window of the whole latent with a margin as wide as its
//! receptive field, so the pixels do not depend on how the work was cut.

use sdl_onnx::memory::room;

use crate::latent::trained::Grid;

/// Latent positions on the side of a tile.
pub(crate) const TILE: usize = 64;

/// A rectangle of latent positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rect {
    pub y: usize,
    pub x: usize,
    pub height: usize,
    pub width: usize,
}

impl Rect {
    pub fn grid(self) -> Grid {
        Grid { height: self.height, width: self.width }
    }

    /// Wider by `margin` on every side, as far as `grid` goes.
    pub fn grown(self, margin: usize, grid: Grid) -> Rect {
        let (y, x) = (self.y.saturating_sub(margin), self.x.saturating_sub(margin));
        let bottom = (self.y + self.height + margin).min(grid.height);
        let right = (self.x + self.width + margin).min(grid.width);
        Rect { y, x, height: bottom - y, width: right - x }
    }
}

/// `grid` cut into rectangles of at most `height` x `width`, rows from the top.
pub(crate) fn cut(grid: Grid, height: usize, width: usize) -> Vec<Rect> {
    let mut rects = Vec::new();
    for y in (0..grid.height).step_by(height.max(1)) {
        for x in (0..grid.width).step_by(width.max(1)) {
            rects.push(Rect { y, x, height: height.min(grid.height - y), width: width.min(grid.width - x) });
        }
    }
    rects
}

/// The tiles of a latent, in the order of their chunks.
pub(crate) fn tiles(grid: Grid) -> Vec<Rect> {
    cut(grid, TILE, TILE)
}

/// The latent of a picture.
pub(crate) fn latent_grid(width: u32, height: u32, stride: usize) -> Grid {
    Grid { height: (height as usize).div_ceil(stride), width: (width as usize).div_ceil(stride) }
}

/// [`tiles`], (C, H, W) each, to one latent of the whole picture.
pub(crate) fn place<'a, T: Copy + 'a>(
    grid: Grid,
    channels: usize,
    rects: &[Rect],
    parts: impl Iterator<Item = &'a [T]>,
) -> Vec<T> {
    let parts: Vec<(&Rect, &[T])> = rects.iter().zip(parts).collect();
    let mut whole = room(channels * grid.area());
    for c in 0..channels {
        for band in parts.chunk_by(|(above, _), (rect, _)| above.y == rect.y) {
            for y in 0..band[0].0.height {
                for (rect, part) in band {
                    whole.extend_from_slice(&part[(c * rect.height + y) * rect.width..][..rect.width]);
                }
            }
        }
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::super::synthesis::part;
    use super::*;

    #[test]
    fn tiles_cover_every_position_once() {
        for (height, width) in [(1, 1), (64, 64), (65, 63), (200, 129)] {
            let mut seen = vec![0; height * width];
            for rect in tiles(Grid { height, width }) {
                assert!(rect.height <= TILE && rect.width <= TILE);
                for y in rect.y..rect.y + rect.height {
                    for x in rect.x..rect.x + rect.width {
                        seen[y * width + x] += 1;
                    }
                }
            }
            assert!(seen.iter().all(|&n| n == 1));
        }
    }

    #[test]
    fn tiles_become_the_latent_that_they_were_cut_from() {
        for (height, width) in [(1, 1), (64, 64), (65, 63), (200, 129)] {
            let grid = Grid { height, width };
            let latent: Vec<u32> = (0..3 * grid.area() as u32).collect();
            let rects = tiles(grid);
            let parts: Vec<_> = rects.iter().map(|rect| part(&latent, grid, *rect)).collect();
            assert!(place(grid, 3, &rects, parts.iter().map(|part| &**part)) == latent);
        }
    }
}
