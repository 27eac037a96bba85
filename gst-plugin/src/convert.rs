//! Frames to pictures and back.
//!
//! The codec takes and gives 8-bit RGB or grey. Y'CbCr is converted here by the matrix, range and chroma siting that its
//! caps name, so that no element in between can choose wrongly. Transfer function and primaries are left as they are:
//! BT.709 and sRGB video are shown alike by everything that shows them.

use std::sync::{Mutex, MutexGuard, PoisonError};

use archmage::{SimdToken, X64V3Token};
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

    /// The samples of row `y`, as many as `to` has.
    #[inline(always)]
    fn read(&self, y: usize, to: &mut [u8]) -> Result<(), String> {
        let length = (to.len() - 1) * self.step + 1;
        let samples = self.bytes(y, length)?;
        // Known steps are loops that the compiler makes fast.
        match self.step {
            1 => to.copy_from_slice(samples),
            2 => spread::<2>(samples, to),
            3 => spread::<3>(samples, to),
            4 => spread::<4>(samples, to),
            step => to.iter_mut().zip(samples.iter().step_by(step)).for_each(|(to, v)| *to = *v),
        }
        Ok(())
    }

    fn bytes(&self, y: usize, length: usize) -> Result<&'a [u8], String> {
        let start = y * self.stride;
        self.data.get(start..start + length).ok_or_else(|| "the buffer is smaller than its frame".to_owned())
    }
}

/// Every `STEP`th sample; the last one has nothing behind it.
#[inline(always)]
fn spread<const STEP: usize>(samples: &[u8], to: &mut [u8]) {
    let (groups, rest) = samples.as_chunks::<STEP>();
    to.iter_mut().zip(groups).for_each(|(to, group)| *to = group[0]);
    if let ([.., last], [value, ..]) = (to, rest) {
        *last = *value;
    }
}

/// Memory of pictures that are done with, for the next ones. New memory costs more than filling it: the kernel hands it out page by
/// page, as zeros.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many samples, to be written over.
    fn take(&self, length: usize) -> Vec<u8> {
        let mut free = self.free();
        let found = free.iter().position(|samples| samples.len() == length).map(|at| free.swap_remove(at));
        drop(free);
        found.unwrap_or_else(|| vec![0; length])
    }

    /// Takes the memory of a picture back.
    pub fn give_back(&self, picture: Picture) {
        let (pixels, alpha, _) = picture.into_parts();
        let mut free = self.free();
        free.push(pixels);
        if let Some(Alpha::Eight(alpha)) = alpha {
            free.push(alpha);
        }
    }
}

/// The picture that a frame shows, in memory from `pool`.
pub(crate) fn picture(buffer: &gst::BufferRef, info: &VideoInfo, pool: &Pool) -> Result<Picture, String> {
    picture_by(X64V3Token::summon(), buffer, info, pool)
}

/// What is there if the processor has AVX2.
type Vectors = Option<X64V3Token>;

fn picture_by(
    vectors: Vectors,
    buffer: &gst::BufferRef,
    info: &VideoInfo,
    pool: &Pool,
) -> Result<Picture, String> {
    let frame = VideoFrameRef::from_buffer_ref_readable(buffer, info).map_err(|e| e.to_string())?;
    let (width, height) = (info.width() as usize, info.height() as usize);
    let format = info.format_info();
    let colour = if format.is_gray() { Colour::Grey } else { Colour::Rgb };
    let mut pixels = pool.take(colour.channels() * width * height);
    let mut alpha = format.has_alpha().then(|| pool.take(width * height));
    match vectors {
        #[cfg(target_arch = "x86_64")]
        Some(token) => convert_v3(token, &frame, width, &mut pixels, alpha.as_deref_mut())?,
        _ => convert(None, &frame, width, &mut pixels, alpha.as_deref_mut())?,
    }
    let picture = Picture::new(info.width(), info.height(), colour, pixels).map_err(|e| e.to_string())?;
    match alpha {
        Some(alpha) => picture.with_alpha(Alpha::Eight(alpha)).map_err(|e| e.to_string()),
        None => Ok(picture),
    }
}

/// [`convert`] and all that is inlined into it, compiled for AVX2.
#[cfg(target_arch = "x86_64")]
#[archmage::arcane]
fn convert_v3(
    token: X64V3Token,
    frame: &VideoFrameRef<&gst::BufferRef>,
    width: usize,
    pixels: &mut [u8],
    alpha: Option<&mut [u8]>,
) -> Result<(), String> {
    convert(Some(token), frame, width, pixels, alpha)
}

#[inline(always)]
fn convert(
    vectors: Vectors,
    frame: &VideoFrameRef<&gst::BufferRef>,
    width: usize,
    pixels: &mut [u8],
    alpha: Option<&mut [u8]>,
) -> Result<(), String> {
    let format = frame.info().format_info();
    if format.is_gray() {
        grey(frame, width, pixels)
    } else if format.is_yuv() {
        ycbcr(vectors, frame, width, pixels)
    } else {
        rgb(vectors, frame, width, pixels, alpha)
    }
}

#[inline(always)]
fn rgb(
    vectors: Vectors,
    frame: &VideoFrameRef<&gst::BufferRef>,
    width: usize,
    pixels: &mut [u8],
    alpha: Option<&mut [u8]>,
) -> Result<(), String> {
    let planes = [Plane::of(frame, 0)?, Plane::of(frame, 1)?, Plane::of(frame, 2)?];
    let mut rows = [vec![0; width], vec![0; width], vec![0; width]];
    let packed = frame.info().n_planes() == 1;
    let whole = Plane { data: frame.plane_data(0).map_err(|e| e.to_string())?, ..planes[0] };
    let order = [0, 1, 2].map(|component| frame.info().comp_poffset(component) as usize);
    let mut alpha = match alpha {
        Some(alpha) => {
            let place = frame.info().comp_poffset(3) as usize;
            Some((Plane::of(frame, 3)?, place, alpha.chunks_exact_mut(width)))
        }
        None => None,
    };
    for (y, out) in pixels.chunks_exact_mut(3 * width).enumerate() {
        match (packed, whole.step, order) {
            (true, 3, [0, 1, 2]) => out.copy_from_slice(whole.bytes(y, 3 * width)?),
            (true, 3, _) => reorder::<3>(whole.bytes(y, 3 * width)?, order, out),
            (true, 4, _) => reorder_words(vectors, whole.bytes(y, 4 * width)?, order, out),
            _ => {
                for (plane, row) in planes.iter().zip(&mut rows) {
                    plane.read(y, row)?;
                }
                interleave(vectors, &rows, out);
            }
        }
        // Alpha row by row: the row is in the cache now.
        if let Some((plane, place, rows)) = &mut alpha
            && let Some(row) = rows.next()
        {
            if packed {
                byte_of_words(whole.bytes(y, 4 * width)?, *place, row);
            } else {
                plane.read(y, row)?;
            }
        }
    }
    Ok(())
}

/// Red, green and blue from their places in groups of `STEP` bytes.
#[inline(always)]
fn reorder<const STEP: usize>(row: &[u8], order: [usize; 3], out: &mut [u8]) {
    let [red, green, blue] = order.map(|place| place.min(STEP - 1));
    for (pixel, group) in out.chunks_exact_mut(3).zip(row.chunks_exact(STEP)) {
        pixel.copy_from_slice(&[group[red], group[green], group[blue]]);
    }
}

/// Pixels that are worked on at a time: they stay in registers and the first cache.
const BLOCK: usize = 64;

/// The same from groups of four bytes, whole words at a time.
#[inline(always)]
fn reorder_words(vectors: Vectors, row: &[u8], order: [usize; 3], out: &mut [u8]) {
    let [red, green, blue] = order.map(|place| 8 * place.min(3) as u32);
    let mut words = [0; BLOCK];
    for (pixels, out) in row.chunks(4 * BLOCK).zip(out.chunks_mut(3 * BLOCK)) {
        for (word, group) in words.iter_mut().zip(pixels.as_chunks().0) {
            let group = u32::from_le_bytes(*group);
            *word = group >> red & 0xff | (group >> green & 0xff) << 8 | (group >> blue & 0xff) << 16;
        }
        pack(vectors, &words, out);
    }
}

/// One byte of each group of four, whole words at a time.
#[inline(always)]
fn byte_of_words(row: &[u8], place: usize, out: &mut [u8]) {
    let shift = 8 * place.min(3) as u32;
    for (to, group) in out.iter_mut().zip(row.as_chunks().0) {
        *to = (u32::from_le_bytes(*group) >> shift) as u8;
    }
}

#[inline(always)]
fn interleave(vectors: Vectors, [red, green, blue]: &[Vec<u8>; 3], out: &mut [u8]) {
    let mut words = [0; BLOCK];
    let planes = red.chunks(BLOCK).zip(green.chunks(BLOCK)).zip(blue.chunks(BLOCK));
    for (((red, green), blue), out) in planes.zip(out.chunks_mut(3 * BLOCK)) {
        for (((word, &r), &g), &b) in words.iter_mut().zip(red).zip(green).zip(blue) {
            *word = u32::from(r) | u32::from(g) << 8 | u32::from(b) << 16;
        }
        pack(vectors, &words, out);
    }
}

/// Pixels of 24 bits, as many as fit into `out`, one behind the other.
#[inline(always)]
fn pack(vectors: Vectors, words: &[u32; BLOCK], out: &mut [u8]) {
    let (groups, rest) = out.as_chunks_mut::<12>();
    let done = 4 * groups.len();
    match vectors {
        #[cfg(target_arch = "x86_64")]
        Some(token) => pack_fours_v3(token, words, groups),
        _ => pack_fours(words, groups),
    }
    for (out, word) in rest.chunks_exact_mut(3).zip(&words[done.min(BLOCK)..]) {
        out.copy_from_slice(&word.to_le_bytes()[..3]);
    }
}

/// Four pixels are three words, which even a processor without a shuffle of bytes writes at once.
#[inline(always)]
fn pack_fours(words: &[u32; BLOCK], out: &mut [[u8; 12]]) {
    for (out, four) in out.iter_mut().zip(words.as_chunks::<4>().0) {
        let low = u64::from(four[0]) | u64::from(four[1]) << 24 | u64::from(four[2]) << 48;
        *out = twelve(low, four[2] >> 16 | four[3] << 8);
    }
}

#[inline(always)]
fn twelve(low: u64, high: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&low.to_le_bytes());
    bytes[8..].copy_from_slice(&high.to_le_bytes());
    bytes
}

/// The same with that shuffle.
#[cfg(target_arch = "x86_64")]
#[archmage::arcane(import_intrinsics)]
fn pack_fours_v3(_token: X64V3Token, words: &[u32; BLOCK], out: &mut [[u8; 12]]) {
    let places = _mm_setr_epi8(0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14, -1, -1, -1, -1);
    for (out, four) in out.iter_mut().zip(words.as_chunks::<4>().0) {
        let [a, b, c, d] = four.map(u32::cast_signed);
        let packed = _mm_shuffle_epi8(_mm_setr_epi32(a, b, c, d), places);
        let (low, high) = (_mm_extract_epi64::<0>(packed), _mm_extract_epi32::<2>(packed));
        *out = twelve(low.cast_unsigned(), high.cast_unsigned());
    }
}

fn grey(frame: &VideoFrameRef<&gst::BufferRef>, width: usize, pixels: &mut [u8]) -> Result<(), String> {
    let plane = Plane::of(frame, 0)?;
    for (y, out) in pixels.chunks_exact_mut(width).enumerate() {
        out.copy_from_slice(plane.bytes(y, width)?);
    }
    if frame.info().colorimetry().range() == VideoColorRange::Range16_235 {
        let table: [u8; 256] = std::array::from_fn(|v| {
            ((v as f32 - LUMA_BLACK as f32) * 255.0 / LUMA_SPAN).round().clamp(0.0, 255.0) as u8
        });
        pixels.iter_mut().for_each(|p| *p = table[usize::from(*p)]);
    }
    Ok(())
}

/// Limited range of ITU-R BT.601 and BT.709: black, and the spans of luma and chroma.
const LUMA_BLACK: i32 = 16;
const LUMA_SPAN: f32 = 219.0;
const CHROMA_SPAN: f32 = 224.0;
/// Binary places of the sums; with the places below everything fits in 16 bits, which is what makes it fast.
const SUM_PLACES: u32 = 5;
/// Binary places of luma and of its coefficient; their product loses 16.
const LUMA_PLACES: u32 = 7;
const LUMA_COEFFICIENT_PLACES: u32 = SUM_PLACES + 16 - LUMA_PLACES;
/// The same for chroma, which is signed.
const CHROMA_PLACES: u32 = 8;
const CHROMA_COEFFICIENT_PLACES: u32 = SUM_PLACES + 16 - CHROMA_PLACES;

/// A coefficient for each pixel of a block: only where the compiler sees 16 bits being loaded on both sides does it multiply
/// 16 bits, four times as fast as 32.
type Coefficient = [i16; BLOCK];

/// From Y'CbCr to R'G'B', in fixed point.
struct Matrix {
    black: i16,
    luma: Coefficient,
    red_cr: Coefficient,
    green_cb: Coefficient,
    green_cr: Coefficient,
    blue_cb: Coefficient,
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
        let fixed = |value: f32, places: u32| [(value * (1 << places) as f32).round() as i16; BLOCK];
        let chroma = |value: f32| fixed(value * chroma, CHROMA_COEFFICIENT_PLACES);
        Matrix {
            black: black as i16,
            luma: fixed(luma, LUMA_COEFFICIENT_PLACES),
            red_cr: chroma(2.0 * (1.0 - kr)),
            green_cb: chroma(2.0 * (1.0 - kb) * kb / kg),
            green_cr: chroma(2.0 * (1.0 - kr) * kr / kg),
            blue_cb: chroma(2.0 * (1.0 - kb)),
        }
    }

    /// A row of pixels, interleaved.
    #[inline(always)]
    fn row(&self, vectors: Vectors, luma: &[u8], cb: &[i16], cr: &[i16], out: &mut [u8]) {
        let blocks = luma.chunks(BLOCK).zip(cb.chunks(BLOCK)).zip(cr.chunks(BLOCK));
        for (((luma, cb), cr), out) in blocks.zip(out.chunks_mut(3 * BLOCK)) {
            pack(vectors, &self.block(&filled(luma), &filled(cb), &filled(cr)), out);
        }
    }

    /// Pixels of 24 bits. Arrays of a known size that lie nowhere else: the compiler takes 8 pixels at a time.
    #[inline(always)]
    fn block(&self, luma: &[u8; BLOCK], cb: &[i16; BLOCK], cr: &[i16; BLOCK]) -> [u32; BLOCK] {
        const HALF: i16 = 1 << (SUM_PLACES - 1);
        let high = |a: i16, b: i16| ((i32::from(a) * i32::from(b)) >> 16) as i16;
        let level = |value: i16| (value >> SUM_PLACES).clamp(0, 255);
        let mut red_green = [0i16; BLOCK];
        let mut blue = [0i16; BLOCK];
        for i in 0..BLOCK {
            let y = high((i16::from(luma[i]) - self.black) << LUMA_PLACES, self.luma[i]) + HALF;
            let red = level(y + high(cr[i], self.red_cr[i]));
            let green = level(y - high(cb[i], self.green_cb[i]) - high(cr[i], self.green_cr[i]));
            red_green[i] = red | green << 8;
            blue[i] = level(y + high(cb[i], self.blue_cb[i]));
        }
        std::array::from_fn(|i| u32::from(red_green[i] as u16) | u32::from(blue[i] as u16) << 16)
    }
}

/// A block of which the last one of a row fills only a part.
#[inline(always)]
fn filled<T: Copy + Default>(part: &[T]) -> [T; BLOCK] {
    part.try_into().unwrap_or_else(|_| {
        let mut block = [T::default(); BLOCK];
        block[..part.len()].copy_from_slice(part);
        block
    })
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

/// A chroma row at the luma positions, centred on 0, with [`CHROMA_PLACES`].
struct Upsampler {
    size: (usize, usize),
    subsampled: (bool, bool),
    cosited: (bool, bool),
    /// Two rows of the plane, and their numbers.
    rows: [(Option<usize>, Vec<u8>); 2],
    /// The row between two others, in quarters, with a copy of the border on each side.
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
        let width = (info.width() as usize).div_ceil(1 + usize::from(subsampled.0));
        let height = (info.height() as usize).div_ceil(1 + usize::from(subsampled.1));
        Upsampler {
            size: (width, height),
            subsampled,
            cosited: (across, site.intersects(Site::V_COSITED)),
            rows: [(None, vec![0; width]), (None, vec![0; width])],
            blended: vec![0; width + 2],
        }
    }

    #[inline(always)]
    fn row(&mut self, plane: &Plane<'_>, y: usize, out: &mut [i16]) -> Result<(), String> {
        let (width, height) = self.size;
        let clamped = |at: isize, size: usize| at.clamp(0, size as isize - 1) as usize;
        let (above, part) = chroma_position(y, self.subsampled.1, self.cosited.1);
        // The lower one of a pair of rows is the upper one of the next.
        let wanted = [clamped(above, height), clamped(above + 1, height)];
        if self.rows[1].0 == Some(wanted[0]) {
            self.rows.swap(0, 1);
        }
        for ((number, row), wanted) in self.rows.iter_mut().zip(wanted) {
            if *number != Some(wanted) {
                plane.read(wanted, row)?;
                *number = Some(wanted);
            }
        }
        let [(_, first), (_, second)] = &self.rows;
        for ((to, &a), &b) in self.blended[1..].iter_mut().zip(first).zip(second) {
            *to = (4 - part) * (i16::from(a) - 128) + part * (i16::from(b) - 128);
        }
        self.blended[0] = self.blended[1];
        self.blended[width + 1] = self.blended[width];

        // Quarters down and quarters across are sixteenths.
        const REST: u32 = CHROMA_PLACES - 4;
        if !self.subsampled.0 {
            out.iter_mut().zip(&self.blended[1..]).for_each(|(out, v)| *out = (4 * v) << REST);
            return Ok(());
        }
        let pairs = out.len().div_ceil(2);
        let near =
            self.blended[..pairs].iter().zip(&self.blended[1..=pairs]).zip(&self.blended[2..pairs + 2]);
        let (whole, last) = out.as_chunks_mut::<2>();
        if self.cosited.0 {
            for (out, ((_, &at), &behind)) in whole.iter_mut().zip(near.clone()) {
                *out = [(4 * at) << REST, (2 * (at + behind)) << REST];
            }
        } else {
            for (out, ((&before, &at), &behind)) in whole.iter_mut().zip(near.clone()) {
                *out = [(before + 3 * at) << REST, (3 * at + behind) << REST];
            }
        }
        // An odd width: the last one has no partner.
        if let ([last], Some(((&before, &at), _))) = (last, near.last()) {
            *last = if self.cosited.0 { 4 * at } else { before + 3 * at } << REST;
        }
        Ok(())
    }
}

#[inline(always)]
fn ycbcr(
    vectors: Vectors,
    frame: &VideoFrameRef<&gst::BufferRef>,
    width: usize,
    pixels: &mut [u8],
) -> Result<(), String> {
    let info = frame.info();
    let matrix = Matrix::of(info);
    let (luma, cb, cr) = (Plane::of(frame, 0)?, Plane::of(frame, 1)?, Plane::of(frame, 2)?);
    let (mut blue_at, mut red_at) = (Upsampler::of(info), Upsampler::of(info));
    let (mut blue, mut red) = (vec![0; width], vec![0; width]);
    for (y, out) in pixels.chunks_exact_mut(3 * width).enumerate() {
        for (upsampler, plane, row) in [(&mut blue_at, &cb, &mut blue), (&mut red_at, &cr, &mut red)] {
            upsampler.row(plane, y, row)?;
        }
        matrix.row(vectors, luma.bytes(y, width)?, &blue, &red, out);
    }
    Ok(())
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

/// Writes the samples of a picture in its [`output_format`] into rows of `stride` bytes; `None` where those are too few or too short.
pub(crate) fn write(picture: Picture, stride: usize, to: &mut [u8]) -> Option<()> {
    let (width, height, colour) = (picture.width() as usize, picture.height() as usize, picture.colour());
    let (pixels, alpha, _) = picture.into_parts();
    let channels = colour.channels();
    let row_bytes = width * if alpha.is_some() { 4 } else { channels };
    if row_bytes > stride || to.len() < stride * (height - 1) + row_bytes {
        return None;
    }
    let rows = to.chunks_mut(stride).zip(pixels.chunks_exact(channels * width));
    let Some(alpha) = alpha else {
        rows.for_each(|(to, pixels)| to[..row_bytes].copy_from_slice(pixels));
        return Some(());
    };
    let alpha = match alpha {
        Alpha::Eight(alpha) => alpha,
        Alpha::Sixteen(alpha) => {
            alpha.iter().map(|&a| ((u32::from(a) * 255 + 32_767) / 65_535) as u8).collect()
        }
        Alpha::Float(alpha) => alpha.iter().map(|a| (a * 255.0).round().clamp(0.0, 255.0) as u8).collect(),
    };
    for ((to, pixels), alpha) in rows.zip(alpha.chunks_exact(width)) {
        let to = to.as_chunks_mut::<4>().0;
        match colour {
            Colour::Grey => {
                to.iter_mut().zip(pixels).zip(alpha).for_each(|((to, &v), &a)| *to = [v, v, v, a])
            }
            Colour::Rgb => join(pixels.as_chunks::<3>().0, alpha, to),
        }
    }
    Some(())
}

/// Alpha beside its colours.
fn join(pixels: &[[u8; 3]], alpha: &[u8], to: &mut [[u8; 4]]) {
    // Four at a time, which are three words.
    let (groups, rest) = pixels.as_flattened().as_chunks::<12>();
    let (fours, last) = alpha.as_chunks::<4>();
    let (out, out_last) = to.split_at_mut(4 * fours.len());
    for ((out, [a, b, c, d, e, f, g, h, high @ ..]), alpha) in
        out.as_chunks_mut::<4>().0.iter_mut().zip(groups).zip(fours)
    {
        let low = u64::from_le_bytes([*a, *b, *c, *d, *e, *f, *g, *h]);
        let high = u64::from(u32::from_le_bytes(*high));
        let colours = [low, low >> 24, low >> 48 | high << 16, high >> 8];
        for ((out, colour), &alpha) in out.iter_mut().zip(colours).zip(alpha) {
            *out = (colour as u32 & 0xff_ffff | u32::from(alpha) << 24).to_le_bytes();
        }
    }
    for ((out, &[r, g, b]), &alpha) in out_last.iter_mut().zip(rest.as_chunks::<3>().0).zip(last) {
        *out = [r, g, b, alpha];
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Kr, Kb and range by hand, in floating point.
    fn reference(y: f32, cb: f32, cr: f32, kr: f32, kb: f32, full: bool) -> [f32; 3] {
        let (y, c) = if full { (y, 1.0) } else { ((y - 16.0) * 255.0 / 219.0, 255.0 / 224.0) };
        let (cb, cr) = ((cb - 128.0) * c, (cr - 128.0) * c);
        let (r, b) = (y + 2.0 * (1.0 - kr) * cr, y + 2.0 * (1.0 - kb) * cb);
        let g = (y - kr * r - kb * b) / (1.0 - kr - kb);
        [r, g, b].map(|v| v.clamp(0.0, 255.0))
    }

    #[test]
    fn every_colour_converts_as_its_standard_says() {
        gst::init().unwrap();
        let matrices = [
            ("bt601", 0.299, 0.114, false),
            ("bt709", 0.2126, 0.0722, false),
            ("1:4:0:0", 0.299, 0.114, true),
        ];
        for (name, kr, kb, full) in matrices {
            let colorimetry: gst_video::VideoColorimetry = name.parse().unwrap();
            let info = gst_video::VideoInfo::builder(VideoFormat::Y444, 256, 256)
                .colorimetry(&colorimetry)
                .build()
                .unwrap();
            for y in (0..256).step_by(15) {
                // Cb along a row, Cr down.
                let mut data = vec![y as u8; 65_536];
                data.extend((0..65_536).map(|i| (i % 256) as u8));
                data.extend((0..65_536).map(|i| (i / 256) as u8));
                let buffer = gst::Buffer::from_mut_slice(data);
                let picture = picture(&buffer, &info, &Pool::default()).unwrap();
                for (i, pixel) in picture.pixels().chunks_exact(3).enumerate() {
                    let wanted = reference(y as f32, (i % 256) as f32, (i / 256) as f32, kr, kb, full);
                    for (got, wanted) in pixel.iter().zip(wanted) {
                        assert!((f32::from(*got) - wanted).abs() < 0.8, "{name} {y} {i}: {pixel:?} {wanted}");
                    }
                }
            }
        }
    }

    #[test]
    fn alpha_is_joined_at_every_width() {
        for width in 1..40usize {
            let pixels: Vec<u8> = (0..2 * 3 * width).map(|i| (i * 7) as u8).collect();
            let alpha: Vec<u8> = (0..2 * width).map(|i| (255 - i) as u8).collect();
            let expected: Vec<u8> =
                pixels.chunks(3).zip(&alpha).flat_map(|(p, &a)| [p[0], p[1], p[2], a]).collect();
            let picture = Picture::new(width as u32, 2, Colour::Rgb, pixels)
                .and_then(|picture| picture.with_alpha(Alpha::Eight(alpha)))
                .unwrap();
            // Rows with padding behind them, which the last one may lack.
            let stride = 4 * width + 8;
            let mut found = vec![0; stride + 4 * width];
            assert_eq!(write(picture.clone(), stride, &mut found), Some(()));
            let rows = [&found[..4 * width], &found[stride..]].concat();
            assert!(rows == expected, "{width}");
            found.pop();
            assert_eq!(write(picture, stride, &mut found), None, "a frame that is too small");
        }
    }

    #[test]
    fn vectors_make_no_difference() {
        gst::init().unwrap();
        let Some(vectors) = X64V3Token::summon() else {
            eprintln!("=== SKIPPED: this processor has no AVX2 ===");
            return;
        };
        let pool = Pool::default();
        for format in FORMATS {
            // Widths around a block, and odd ones.
            for width in [1, 2, 61, 63, 64, 65, 131, 256] {
                let info = VideoInfo::builder(format, width, 5).build().unwrap();
                let mut noise = 1u32;
                let mut draw = || {
                    noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (noise >> 24) as u8
                };
                let buffer =
                    gst::Buffer::from_mut_slice((0..info.size()).map(|_| draw()).collect::<Vec<u8>>());
                let plain = picture_by(None, &buffer, &info, &pool).unwrap();
                let fast = picture_by(Some(vectors), &buffer, &info, &pool).unwrap();
                assert!(plain == fast, "{format:?} {width}");
                pool.give_back(fast);
            }
        }
    }

    #[test]
    fn a_ramp_of_chroma_stays_a_ramp_at_every_siting() {
        gst::init().unwrap();
        for (site, offset) in
            [(gst_video::VideoChromaSite::MPEG2, 0.0), (gst_video::VideoChromaSite::JPEG, 0.5)]
        {
            // Odd sizes: the last luma column and row share chroma with nobody.
            let (width, height) = (61usize, 21usize);
            let info = gst_video::VideoInfo::builder(VideoFormat::I420, width as u32, height as u32)
                .colorimetry(&"1:4:0:0".parse().unwrap())
                .chroma_site(site)
                .build()
                .unwrap();
            let mut data = vec![128u8; info.size()];
            let (start, stride) = (info.offset()[2], info.stride()[2] as usize);
            for y in 0..height.div_ceil(2) {
                for x in 0..width.div_ceil(2) {
                    data[start + y * stride + x] = (100 + 2 * x) as u8;
                }
            }
            let buffer = gst::Buffer::from_mut_slice(data);
            let picture = picture(&buffer, &info, &Pool::default()).unwrap();
            for (i, pixel) in picture.pixels().chunks_exact(3).enumerate() {
                let x = (i % width) as f32;
                // One luma step is half a chroma step, which is 2.
                let cr = (100.0 + x - offset).clamp(100.0, 160.0);
                let red = 128.0 + 1.402 * (cr - 128.0);
                assert!((f32::from(pixel[0]) - red).abs() < 1.0, "{x}: {pixel:?} {red}");
            }
        }
    }
}
