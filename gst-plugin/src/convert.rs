//! Frames to pictures and back.
//!
//! The codec takes and gives 8-bit RGB or grey. Y'CbCr is converted here by the matrix, range and chroma siting that its
//! caps name, so that no element in between can choose wrongly. Transfer function and primaries are left as they are:
//! BT.709 and sRGB video are shown alike by everything that shows them.

use gst_video::prelude::*;
use gst_video::{
    VideoColorMatrix, VideoColorPrimaries, VideoColorRange, VideoColorimetry, VideoFormat, VideoFrameRef,
    VideoInfo, VideoTransferFunction,
};
use image_sdl::{Alpha, Colour, Picture};

/// The raw formats that are taken as they are, best first.
pub(crate) const FORMATS: [VideoFormat; 19] = [
    VideoFormat::Rgb,
    VideoFormat::Rgba,
    VideoFormat::Gray8,
    VideoFormat::Gbr,
    VideoFormat::Nv12,
    VideoFormat::I420,
    VideoFormat::Gbra,
    VideoFormat::Rgbx,
    VideoFormat::Bgrx,
    VideoFormat::Xrgb,
    VideoFormat::Xbgr,
    VideoFormat::Bgra,
    VideoFormat::Argb,
    VideoFormat::Abgr,
    VideoFormat::Bgr,
    VideoFormat::Y444,
    VideoFormat::Y42b,
    VideoFormat::Yv12,
    VideoFormat::Nv21,
];

/// One component of a frame: where its samples lie.
struct Plane<'a> {
    data: &'a [u8],
    stride: usize,
    step: usize,
}

impl<'a> Plane<'a> {
    fn of(frame: &'a VideoFrameRef<&gst::BufferRef>, component: u8) -> Result<Self, String> {
        let info = frame.info();
        let stride = usize::try_from(info.comp_stride(component)).map_err(|_| "a negative stride")?;
        let step = usize::try_from(info.comp_pstride(component)).map_err(|_| "a negative pixel stride")?;
        let data = frame.comp_data(component.into()).map_err(|e| e.to_string())?;
        Ok(Plane { data, stride, step: step.max(1) })
    }

    /// `width` samples of row `y`.
    fn row(&self, y: usize, width: usize) -> Result<impl Iterator<Item = u8> + 'a, String> {
        let samples = self.data.get(y * self.stride..).ok_or("the buffer is smaller than its frame")?;
        if samples.len() < (width - 1) * self.step + 1 {
            return Err("the buffer is smaller than its frame".to_owned());
        }
        Ok(samples.iter().step_by(self.step).take(width).copied())
    }

    fn bytes(&self, y: usize, length: usize) -> Result<&'a [u8], String> {
        let start = y * self.stride;
        self.data.get(start..start + length).ok_or_else(|| "the buffer is smaller than its frame".to_owned())
    }
}

/// The picture that a frame shows.
pub(crate) fn picture(buffer: &gst::BufferRef, info: &VideoInfo) -> Result<Picture, String> {
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).map_err(|e| e.to_string())?;
    let (width, height) = (info.width() as usize, info.height() as usize);
    let format = info.format_info();
    let (colour, pixels) = if format.is_gray() {
        (Colour::Grey, grey(&frame, width, height)?)
    } else if format.is_yuv() {
        (Colour::Rgb, ycbcr(&frame, width, height)?)
    } else {
        (Colour::Rgb, rgb(&frame, width, height)?)
    };
    let picture = Picture::new(info.width(), info.height(), colour, pixels).map_err(|e| e.to_string())?;
    if !format.has_alpha() {
        return Ok(picture);
    }
    let plane = Plane::of(&frame, 3)?;
    let mut alpha = Vec::with_capacity(width * height);
    for y in 0..height {
        alpha.extend(plane.row(y, width)?);
    }
    picture.with_alpha(Alpha::Eight(alpha)).map_err(|e| e.to_string())
}

fn rgb(frame: &VideoFrameRef<&gst::BufferRef>, width: usize, height: usize) -> Result<Vec<u8>, String> {
    let planes = [Plane::of(frame, 0)?, Plane::of(frame, 1)?, Plane::of(frame, 2)?];
    let mut pixels = Vec::with_capacity(3 * width * height);
    for y in 0..height {
        if frame.info().format() == VideoFormat::Rgb {
            pixels.extend_from_slice(planes[0].bytes(y, 3 * width)?);
            continue;
        }
        let [red, green, blue] = &planes;
        let rows = red.row(y, width)?.zip(green.row(y, width)?).zip(blue.row(y, width)?);
        pixels.extend(rows.flat_map(|((r, g), b)| [r, g, b]));
    }
    Ok(pixels)
}

fn grey(frame: &VideoFrameRef<&gst::BufferRef>, width: usize, height: usize) -> Result<Vec<u8>, String> {
    let plane = Plane::of(frame, 0)?;
    let mut pixels = Vec::with_capacity(width * height);
    for y in 0..height {
        pixels.extend_from_slice(plane.bytes(y, width)?);
    }
    if frame.info().colorimetry().range() == VideoColorRange::Range16_235 {
        let table: [u8; 256] = std::array::from_fn(|v| {
            ((v as f32 - LUMA_BLACK as f32) * 255.0 / LUMA_SPAN).round().clamp(0.0, 255.0) as u8
        });
        pixels.iter_mut().for_each(|p| *p = table[usize::from(*p)]);
    }
    Ok(pixels)
}

/// Limited range of ITU-R BT.601 and BT.709: black, and the spans of luma and chroma.
const LUMA_BLACK: i32 = 16;
const LUMA_SPAN: f32 = 219.0;
const CHROMA_SPAN: f32 = 224.0;
/// Binary places of the coefficients.
const PLACES: u32 = 14;
/// Chroma is interpolated in sixteenths: quarters down times quarters across.
const CHROMA_PLACES: u32 = 4;

/// From Y'CbCr to R'G'B', in fixed point.
struct Matrix {
    black: i32,
    luma: i32,
    red_cr: i32,
    green_cb: i32,
    green_cr: i32,
    blue_cb: i32,
}

impl Matrix {
    fn of(info: &VideoInfo) -> Self {
        let colorimetry = info.colorimetry();
        // Kr and Kb.
        let (kr, kb) = match colorimetry.matrix() {
            VideoColorMatrix::Bt709 => (0.2126, 0.0722),
            VideoColorMatrix::Bt2020 => (0.2627, 0.0593),
            VideoColorMatrix::Smpte240m => (0.212, 0.087),
            VideoColorMatrix::Fcc => (0.30, 0.11),
            // What video of standard definition has, and what JPEG has.
            _ => (0.299, 0.114),
        };
        let full = colorimetry.range() == VideoColorRange::Range0_255;
        let (black, luma, chroma) =
            if full { (0, 1.0, 1.0) } else { (LUMA_BLACK, 255.0 / LUMA_SPAN, 255.0 / CHROMA_SPAN) };
        let kg = 1.0 - kr - kb;
        let fixed = |value: f32| (value * (1 << PLACES) as f32).round() as i32;
        // Chroma comes with CHROMA_PLACES more.
        let chroma = |value: f32| (value * chroma * (1 << (PLACES - CHROMA_PLACES)) as f32).round() as i32;
        Matrix {
            black,
            luma: fixed(luma),
            red_cr: chroma(2.0 * (1.0 - kr)),
            green_cb: chroma(2.0 * (1.0 - kb) * kb / kg),
            green_cr: chroma(2.0 * (1.0 - kr) * kr / kg),
            blue_cb: chroma(2.0 * (1.0 - kb)),
        }
    }

    fn row(&self, luma: &[u8], cb: &[i16], cr: &[i16], out: &mut [u8]) {
        const HALF: i32 = 1 << (PLACES - 1);
        let level = |value: i32| (value >> PLACES).clamp(0, 255) as u8;
        for (((pixel, &y), &cb), &cr) in out.chunks_exact_mut(3).zip(luma).zip(cb).zip(cr) {
            let (cb, cr) = (i32::from(cb), i32::from(cr));
            let y = (i32::from(y) - self.black) * self.luma + HALF;
            pixel[0] = level(y + self.red_cr * cr);
            pixel[1] = level(y - self.green_cb * cb - self.green_cr * cr);
            pixel[2] = level(y + self.blue_cb * cb);
        }
    }
}

/// Where a luma position lies among chroma positions: the one before it, and how many quarters it is on.
fn chroma_position(luma: usize, subsampled: bool, cosited: bool) -> (isize, i16) {
    match (subsampled, cosited) {
        (false, _) => (luma as isize, 0),
        (true, true) => ((luma / 2) as isize, if luma % 2 == 1 { 2 } else { 0 }),
        // Chroma lies between luma 2i and 2i + 1.
        (true, false) => {
            let quarters = 2 * luma as isize - 1;
            (quarters.div_euclid(4), quarters.rem_euclid(4) as i16)
        }
    }
}

/// A chroma row at the luma positions, centred on 0, in sixteenths.
struct Upsampler {
    size: (usize, usize),
    subsampled: (bool, bool),
    cosited: (bool, bool),
    blended: Vec<i16>,
}

impl Upsampler {
    fn of(info: &VideoInfo) -> Self {
        let format = info.format_info();
        let subsampled = (format.w_sub()[1] > 0, format.h_sub()[1] > 0);
        let site = info.chroma_site();
        use gst_video::VideoChromaSite as Site;
        // Nothing said: as MPEG-2 and H.264 have it.
        let across = site.intersects(Site::H_COSITED) || !site.intersects(Site::NONE);
        Upsampler {
            size: (
                (info.width() as usize).div_ceil(1 + usize::from(subsampled.0)),
                (info.height() as usize).div_ceil(1 + usize::from(subsampled.1)),
            ),
            subsampled,
            cosited: (across, site.intersects(Site::V_COSITED)),
            blended: Vec::new(),
        }
    }

    fn row(&mut self, plane: &Plane<'_>, y: usize, out: &mut [i16]) -> Result<(), String> {
        let (width, height) = self.size;
        let clamped = |at: isize, size: usize| at.clamp(0, size as isize - 1) as usize;
        let (above, part) = chroma_position(y, self.subsampled.1, self.cosited.1);
        let (first, second) = (clamped(above, height), clamped(above + 1, height));
        self.blended.clear();
        if part == 0 {
            self.blended.extend(plane.row(first, width)?.map(|v| 4 * (i16::from(v) - 128)));
        } else {
            let rows = plane.row(first, width)?.zip(plane.row(second, width)?);
            self.blended
                .extend(rows.map(|(a, b)| (4 - part) * (i16::from(a) - 128) + part * (i16::from(b) - 128)));
        }
        let blended = &self.blended;
        if !self.subsampled.0 {
            out.iter_mut().zip(blended).for_each(|(out, v)| *out = 4 * v);
            return Ok(());
        }
        let at = |x: usize| blended[x.min(width - 1)];
        if self.cosited.0 {
            for (x, pair) in out.chunks_mut(2).enumerate() {
                pair[0] = 4 * at(x);
                if let Some(second) = pair.get_mut(1) {
                    *second = 2 * at(x) + 2 * at(x + 1);
                }
            }
        } else {
            for (x, pair) in out.chunks_mut(2).enumerate() {
                pair[0] = at(x.saturating_sub(1)) + 3 * at(x);
                if let Some(second) = pair.get_mut(1) {
                    *second = 3 * at(x) + at(x + 1);
                }
            }
        }
        Ok(())
    }
}

fn ycbcr(frame: &VideoFrameRef<&gst::BufferRef>, width: usize, height: usize) -> Result<Vec<u8>, String> {
    let info = frame.info();
    let matrix = Matrix::of(info);
    let (luma, cb, cr) = (Plane::of(frame, 0)?, Plane::of(frame, 1)?, Plane::of(frame, 2)?);
    let mut upsampler = Upsampler::of(info);
    let mut pixels = vec![0; 3 * width * height];
    let (mut blue, mut red) = (vec![0; width], vec![0; width]);
    for (y, out) in pixels.chunks_exact_mut(3 * width).enumerate() {
        upsampler.row(&cb, y, &mut blue)?;
        upsampler.row(&cr, y, &mut red)?;
        matrix.row(luma.bytes(y, width)?, &blue, &red, out);
    }
    Ok(pixels)
}

/// The colorimetry of pictures.
pub(crate) fn srgb(grey: bool) -> VideoColorimetry {
    VideoColorimetry::new(
        VideoColorRange::Range0_255,
        // Grey has no use for a matrix, and GStreamer gives it this one.
        if grey { VideoColorMatrix::Bt601 } else { VideoColorMatrix::Rgb },
        VideoTransferFunction::Srgb,
        VideoColorPrimaries::Bt709,
    )
}

/// What a decoded picture becomes.
pub(crate) fn output_format(header: &image_sdl::Header) -> VideoFormat {
    match (header.alpha.is_some(), header.grey) {
        (true, _) => VideoFormat::Rgba,
        (false, true) => VideoFormat::Gray8,
        (false, false) => VideoFormat::Rgb,
    }
}

/// The samples of a picture in its [`output_format`], rows without padding.
pub(crate) fn samples(picture: Picture) -> Vec<u8> {
    let colour = picture.colour();
    let (pixels, alpha, _) = picture.into_parts();
    let Some(alpha) = alpha else { return pixels };
    let alpha: Vec<u8> = match alpha {
        Alpha::Eight(alpha) => alpha,
        Alpha::Sixteen(alpha) => {
            alpha.iter().map(|&a| ((u32::from(a) * 255 + 32_767) / 65_535) as u8).collect()
        }
        Alpha::Float(alpha) => alpha.iter().map(|a| (a * 255.0).round().clamp(0.0, 255.0) as u8).collect(),
    };
    match colour {
        Colour::Grey => pixels.iter().zip(alpha).flat_map(|(&v, a)| [v, v, v, a]).collect(),
        Colour::Rgb => pixels.chunks_exact(3).zip(alpha).flat_map(|(p, a)| [p[0], p[1], p[2], a]).collect(),
    }
}
