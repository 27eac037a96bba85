//! `ImageDecoder` for SDL.

use std::io::Read;

use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageResult, Limits};

use super::{colour, convert, decoding};
use crate::{Alpha, Colour, DecodeOptions, Decoder, Error, Model, Picture};

/// Reads a picture for the `image` crate.
///
/// The constructor reads the header and loads no model. A picture with an alpha plane comes in the depth of that plane, any
/// other in 8 bits.
pub struct SdlDecoder<R> {
    decoder: Decoder<R>,
    /// Those that were given.
    options: Option<DecodeOptions>,
    /// What `image` allows in bytes, once it has said so.
    limit: Option<u64>,
}

impl<R: Read> SdlDecoder<R> {
    /// Reads the header.
    ///
    /// # Errors
    ///
    /// `Decoding` for what is no SDL file, `Unsupported` for a newer one, `IoError`.
    pub fn new(input: R) -> ImageResult<Self> {
        let decoder = Decoder::new(input).map_err(decoding)?;
        Ok(SdlDecoder { decoder, options: None, limit: None })
    }

    /// Threads, engine and provider; the memory limit of `image` stays in force, the smaller one counts.
    #[must_use]
    pub fn with_options(self, options: DecodeOptions) -> Self {
        SdlDecoder { options: Some(options), ..self }
    }

    /// Uses this model, if it is the one that the file names, instead of looking for it.
    #[must_use]
    pub fn with_model(self, model: Model) -> Self {
        SdlDecoder { decoder: self.decoder.with_model(model), ..self }
    }

    fn options(&self) -> DecodeOptions {
        match (&self.options, self.limit) {
            (Some(options), limit) => {
                let max_bytes = options.max_bytes.min(limit.unwrap_or(u64::MAX));
                options.clone().with_max_bytes(max_bytes)
            }
            (None, Some(limit)) => DecodeOptions::default().with_max_bytes(limit),
            (None, None) => DecodeOptions::default(),
        }
    }
}

impl<R: Read> ImageDecoder for SdlDecoder<R> {
    fn dimensions(&self) -> (u32, u32) {
        let header = self.decoder.header();
        (header.width.into(), header.height.into())
    }

    fn color_type(&self) -> ColorType {
        let header = self.decoder.header();
        convert::color_type(if header.grey { Colour::Grey } else { Colour::Rgb }, header.alpha)
    }

    fn icc_profile(&mut self) -> ImageResult<Option<Vec<u8>>> {
        Ok(self.decoder.metadata().map_err(decoding)?.icc.clone())
    }

    fn exif_metadata(&mut self) -> ImageResult<Option<Vec<u8>>> {
        Ok(self.decoder.metadata().map_err(decoding)?.exif.clone())
    }

    fn xmp_metadata(&mut self) -> ImageResult<Option<Vec<u8>>> {
        Ok(self.decoder.metadata().map_err(decoding)?.xmp.clone())
    }

    fn orientation(&mut self) -> ImageResult<Orientation> {
        let exif = self.exif_metadata()?;
        Ok(exif.and_then(|chunk| Orientation::from_exif_chunk(&chunk)).unwrap_or(Orientation::NoTransforms))
    }

    fn read_image(mut self, buf: &mut [u8]) -> ImageResult<()> {
        assert_eq!(
            u64::try_from(buf.len()),
            Ok(self.total_bytes()),
            "the buffer must have the size that total_bytes gives"
        );
        let options = self.options();
        let picture = self.decoder.decode(&options).map_err(decoding)?;
        convert::write_bytes(&picture, buf);
        Ok(())
    }

    fn read_image_boxed(self: Box<Self>, buf: &mut [u8]) -> ImageResult<()> {
        (*self).read_image(buf)
    }

    /// `max_alloc` bounds the pixels and the latent of the picture; the weights of the model, shared by the whole process, and
    /// the working memory of the graphs do not count.
    fn set_limits(&mut self, limits: Limits) -> ImageResult<()> {
        limits.check_support(&image::LimitSupport::default())?;
        let (width, height) = self.dimensions();
        limits.check_dimensions(width, height)?;
        self.limit = Some(limits.max_alloc.unwrap_or(u64::MAX));
        Ok(())
    }
}

/// A decoded picture as a `DynamicImage`, in the profile of its metadata.
///
/// # Errors
///
/// [`Error::Parameter`] if the picture is too large for this machine's memory addressing.
pub fn decode_dynamic(picture: Picture) -> Result<DynamicImage, Error> {
    use image::{ImageBuffer, LumaA, Rgba};
    let color = convert::color_type(picture.colour(), picture.alpha().map(Alpha::depth));
    let (width, height) = (picture.width(), picture.height());
    let bytes = if picture.alpha().is_some() {
        let mut bytes = vec![0; width as usize * height as usize * usize::from(color.bytes_per_pixel())];
        convert::write_bytes(&picture, &mut bytes);
        bytes
    } else {
        colour::from_srgb(&picture).unwrap_or_else(|| picture.into_parts().0)
    };
    let sixteen =
        |bytes: &[u8]| bytes.chunks_exact(2).map(|b| u16::from_ne_bytes([b[0], b[1]])).collect::<Vec<_>>();
    let float = |bytes: &[u8]| {
        bytes.chunks_exact(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect::<Vec<_>>()
    };
    let image = match color {
        ColorType::L8 => ImageBuffer::from_raw(width, height, bytes).map(DynamicImage::ImageLuma8),
        ColorType::La8 => ImageBuffer::from_raw(width, height, bytes).map(DynamicImage::ImageLumaA8),
        ColorType::Rgb8 => ImageBuffer::from_raw(width, height, bytes).map(DynamicImage::ImageRgb8),
        ColorType::Rgba8 => ImageBuffer::from_raw(width, height, bytes).map(DynamicImage::ImageRgba8),
        ColorType::La16 => ImageBuffer::<LumaA<u16>, _>::from_raw(width, height, sixteen(&bytes))
            .map(DynamicImage::ImageLumaA16),
        ColorType::Rgba16 => ImageBuffer::<Rgba<u16>, _>::from_raw(width, height, sixteen(&bytes))
            .map(DynamicImage::ImageRgba16),
        _ => ImageBuffer::<Rgba<f32>, _>::from_raw(width, height, float(&bytes))
            .map(DynamicImage::ImageRgba32F),
    };
    image.ok_or_else(|| Error::Parameter("the picture is too large".to_owned()))
}
