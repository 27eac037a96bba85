//! Pictures written in other formats, with as much of their metadata as those take.

use std::io::{Cursor, SeekFrom};
use std::path::Path;

use clap::ValueEnum;
use image::codecs::pnm::{PnmEncoder, PnmSubtype, SampleEncoding};
use image::codecs::{bmp, jpeg, png, qoi, tga, tiff, webp};
use image::metadata::Orientation;
use image::{DynamicImage, ImageEncoder, ImageError};
use image_sdl::{Alpha, AlphaDepth, Colour, Metadata, Picture, decode_dynamic};

use crate::files::{Target, Unwritten};

/// JPEG keeps what was decoded to within what nobody sees; more only costs bytes.
const JPEG_QUALITY: u8 = 95;
/// Exif is one segment of a JPEG: its length, and "Exif" with two zeros, are counted with it.
const JPEG_EXIF: usize = 65_535 - 2 - 6;
/// A profile is 255 segments at most, each with its length, "ICC_PROFILE" with a zero, and two numbers.
const JPEG_ICC: usize = 255 * (65_535 - 2 - 14);

/// A format to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    Png,
    #[value(alias = "jpg")]
    Jpeg,
    Webp,
    #[value(alias = "tif")]
    Tiff,
    Bmp,
    Tga,
    Qoi,
    #[value(alias = "pnm")]
    Ppm,
    Pgm,
    Pam,
}

impl Format {
    pub fn from_path(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        Format::from_str(&extension, true).ok()
    }

    pub fn extension(self) -> &'static str {
        match self {
            Format::Png => "png",
            Format::Jpeg => "jpg",
            Format::Webp => "webp",
            Format::Tiff => "tiff",
            Format::Bmp => "bmp",
            Format::Tga => "tga",
            Format::Qoi => "qoi",
            Format::Ppm => "ppm",
            Format::Pgm => "pgm",
            Format::Pam => "pam",
        }
    }

    fn has_alpha(self) -> bool {
        !matches!(self, Format::Jpeg | Format::Ppm | Format::Pgm)
    }

    fn has_icc(self) -> bool {
        matches!(self, Format::Png | Format::Jpeg | Format::Webp | Format::Tiff)
    }

    fn has_exif(self) -> bool {
        matches!(self, Format::Png | Format::Jpeg | Format::Webp)
    }

    /// Whether a grey picture stays one, so that a profile for grey fits it. Of those that take a profile.
    fn has_grey(self, alpha: Option<AlphaDepth>) -> bool {
        match self {
            Format::Png | Format::Jpeg => alpha != Some(AlphaDepth::Float),
            Format::Tiff => alpha.is_none(),
            _ => false,
        }
    }

    /// The nearest layout that the format has.
    fn layout(self, image: DynamicImage) -> DynamicImage {
        use DynamicImage as D;
        match self {
            Format::Png => match image {
                D::ImageRgba32F(_) => D::ImageRgba16(image.to_rgba16()),
                other => other,
            },
            // `image` cannot write grey with 16 bits of alpha there.
            Format::Pam => match image {
                D::ImageLumaA16(_) | D::ImageRgba32F(_) => D::ImageRgba16(image.to_rgba16()),
                other => other,
            },
            Format::Jpeg | Format::Ppm | Format::Pgm => match image {
                D::ImageLumaA8(_) | D::ImageLumaA16(_) | D::ImageLuma8(_) if self != Format::Ppm => {
                    D::ImageLuma8(image.to_luma8())
                }
                other if self == Format::Pgm => D::ImageLuma8(other.into_luma8()),
                other => D::ImageRgb8(other.into_rgb8()),
            },
            Format::Tiff => match image {
                D::ImageLumaA8(_) => D::ImageRgba8(image.to_rgba8()),
                D::ImageLumaA16(_) => D::ImageRgba16(image.to_rgba16()),
                other => other,
            },
            // `image` would write grey without its alpha there.
            Format::Bmp => match image {
                D::ImageLumaA8(_) | D::ImageLumaA16(_) | D::ImageRgba16(_) | D::ImageRgba32F(_) => {
                    D::ImageRgba8(image.to_rgba8())
                }
                other => other,
            },
            Format::Webp | Format::Tga => match image {
                D::ImageLumaA16(_) => D::ImageLumaA8(image.to_luma_alpha8()),
                D::ImageRgba16(_) | D::ImageRgba32F(_) => D::ImageRgba8(image.to_rgba8()),
                other => other,
            },
            Format::Qoi => match image.color().has_alpha() {
                true => D::ImageRgba8(image.to_rgba8()),
                false => D::ImageRgb8(image.to_rgb8()),
            },
        }
    }
}

/// Writes the picture in a format: how many bytes it took, and what was lost on the way.
pub(crate) fn write(
    mut picture: Picture,
    format: Format,
    out: &mut dyn Target,
) -> Result<(u64, Vec<String>), Unwritten> {
    let mut notes = Vec::new();
    let alpha = picture.alpha().is_some();
    if alpha && !format.has_alpha() {
        notes.push(format!("{} has no alpha plane; it is left out", format.extension()));
    }
    let mut metadata = std::mem::take(&mut picture.metadata);
    if let Some(problem) = icc_problem(&picture, &metadata, format) {
        notes.push(format!("{problem}; it is left out, and the pixels are sRGB"));
        metadata.icc = None;
    }
    // The pixels are in sRGB, and are handed out in the profile that goes with them.
    picture.metadata.icc.clone_from(&metadata.icc);
    let mut image = decode_dynamic(picture).map_err(|error| Unwritten::Other(error.into()))?;
    if let Some(problem) = exif_problem(&metadata, format) {
        // Only Exif says that the picture is to be turned.
        let orientation = metadata.exif.take().and_then(|exif| Orientation::from_exif_chunk(&exif));
        let orientation = orientation.unwrap_or(Orientation::NoTransforms);
        let turned =
            if orientation == Orientation::NoTransforms { "" } else { ", and the pixels are upright" };
        notes.push(format!("{problem}; it is left out{turned}"));
        image.apply_orientation(orientation);
    }
    let metadata = &metadata;
    let image = &format.layout(image);
    match &metadata.xmp {
        None => encode(image, metadata, format, out)?,
        // It is put in its place behind what comes first, when that is there.
        Some(xmp) => {
            let mut bytes = Cursor::new(Vec::new());
            encode(image, metadata, format, &mut bytes)?;
            let mut bytes = bytes.into_inner();
            let put = match format {
                Format::Png => put_xmp_in_png(&mut bytes, xmp),
                Format::Jpeg => put_xmp_in_jpeg(&mut bytes, xmp),
                _ => false,
            };
            if !put {
                notes.push(format!("its XMP cannot be written as {} and is left out", format.extension()));
            }
            out.write_all(&bytes)?;
        }
    }
    Ok((out.seek(SeekFrom::End(0))?, notes))
}

/// Why the profile cannot go with the picture.
fn icc_problem(picture: &Picture, metadata: &Metadata, format: Format) -> Option<String> {
    let (icc, extension) = (metadata.icc.as_ref()?, format.extension());
    if !format.has_icc() {
        return Some(format!("its ICC profile cannot be written as {extension}"));
    }
    if format == Format::Jpeg && icc.len() > JPEG_ICC {
        return Some(format!("its ICC profile has {} bytes, and {JPEG_ICC} fit in a jpg", icc.len()));
    }
    let grey = picture.colour() == Colour::Grey && !format.has_grey(picture.alpha().map(Alpha::depth));
    grey.then(|| format!("it is written in colour as {extension}, and its ICC profile is for grey"))
}

/// Why the Exif cannot go with the picture.
fn exif_problem(metadata: &Metadata, format: Format) -> Option<String> {
    let exif = metadata.exif.as_ref()?;
    if !format.has_exif() {
        return Some(format!("its Exif cannot be written as {}", format.extension()));
    }
    (format == Format::Jpeg && exif.len() > JPEG_EXIF)
        .then(|| format!("its Exif has {} bytes, and {JPEG_EXIF} fit in a jpg", exif.len()))
}

fn encode(
    image: &DynamicImage,
    metadata: &Metadata,
    format: Format,
    mut out: &mut dyn Target,
) -> Result<(), Unwritten> {
    let finish = Finish { image, metadata };
    let binary = SampleEncoding::Binary;
    Ok(match format {
        Format::Png => finish.with(png::PngEncoder::new(out)),
        Format::Jpeg => finish.with(jpeg::JpegEncoder::new_with_quality(out, JPEG_QUALITY)),
        Format::Webp => finish.with(webp::WebPEncoder::new_lossless(out)),
        Format::Tiff => finish.with(tiff::TiffEncoder::new(out)),
        Format::Bmp => finish.with(bmp::BmpEncoder::new(&mut out)),
        Format::Tga => finish.with(tga::TgaEncoder::new(out)),
        Format::Qoi => finish.with(qoi::QoiEncoder::new(out)),
        Format::Ppm => finish.with(PnmEncoder::new(out).with_subtype(PnmSubtype::Pixmap(binary))),
        Format::Pgm => finish.with(PnmEncoder::new(out).with_subtype(PnmSubtype::Graymap(binary))),
        Format::Pam => finish.with(PnmEncoder::new(out).with_subtype(PnmSubtype::ArbitraryMap)),
    }?)
}

struct Finish<'a> {
    image: &'a DynamicImage,
    metadata: &'a Metadata,
}

impl Finish<'_> {
    fn with<E: ImageEncoder>(self, mut encoder: E) -> image::ImageResult<()> {
        if let Some(icc) = &self.metadata.icc {
            encoder.set_icc_profile(icc.clone()).map_err(ImageError::Unsupported)?;
        }
        if let Some(exif) = &self.metadata.exif {
            encoder.set_exif_metadata(exif.clone()).map_err(ImageError::Unsupported)?;
        }
        self.image.write_with_encoder(encoder)
    }
}

/// Puts an iTXt chunk behind the header of a PNG (XMP specification part 3, 1.1.5).
fn put_xmp_in_png(png: &mut Vec<u8>, xmp: &[u8]) -> bool {
    /// Signature, and the chunk IHDR.
    const AFTER_HEADER: usize = 8 + 12 + 13;
    /// Keyword, not compressed, no language, no translated keyword.
    const PREFIX: &[u8] = b"XML:com.adobe.xmp\0\0\0\0\0";
    let Ok(length) = u32::try_from(PREFIX.len() + xmp.len()) else { return false };
    if png.len() < AFTER_HEADER || std::str::from_utf8(xmp).is_err() {
        return false;
    }
    let body = [b"iTXt", PREFIX, xmp].concat();
    let chunk = [&length.to_be_bytes(), body.as_slice(), &crc32fast::hash(&body).to_be_bytes()].concat();
    png.splice(AFTER_HEADER..AFTER_HEADER, chunk);
    true
}

/// Puts an APP1 segment behind the first segment of a JPEG (XMP specification part 3, 1.1.3).
fn put_xmp_in_jpeg(jpeg: &mut Vec<u8>, xmp: &[u8]) -> bool {
    const PREFIX: &[u8] = b"http://ns.adobe.com/xap/1.0/\0";
    // SOI, then a segment with its length: JFIF wants to be first.
    let Some([0xff, 0xd8, 0xff, _, high, low]) = jpeg.first_chunk::<6>() else { return false };
    let at = 4 + usize::from(u16::from_be_bytes([*high, *low]));
    let Ok(length) = u16::try_from(2 + PREFIX.len() + xmp.len()) else { return false };
    if at > jpeg.len() {
        return false;
    }
    let segment = [&[0xff, 0xe1], length.to_be_bytes().as_slice(), PREFIX, xmp].concat();
    jpeg.splice(at..at, segment);
    true
}
