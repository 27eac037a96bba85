//! `ImageEncoder` for SDL.

use std::io::Write;
use std::path::Path;

use image::error::UnsupportedError;
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageResult};

use super::{convert, encoding};
use crate::codec::model_of;
use crate::{EncodeOptions, Error, Metadata, Model, Picture, encode_with};

/// Writes a picture for the `image` crate: `DynamicImage::write_with_encoder` takes it.
///
/// Takes the ten layouts of `DynamicImage`. A profile that is not sRGB is converted from, and kept.
#[derive(Debug)]
pub struct SdlEncoder<W> {
    output: W,
    options: EncodeOptions,
    metadata: Metadata,
    model: Option<Model>,
}

impl<W: Write> SdlEncoder<W> {
    /// An encoder with the default options.
    pub fn new(output: W) -> Self {
        Self::new_with_options(output, EncodeOptions::default())
    }

    /// An encoder for a quality from 0 to 100.
    pub fn new_with_quality(output: W, quality: u8) -> Self {
        Self::new_with_options(output, EncodeOptions::default().with_quality(quality))
    }

    /// An encoder with all options.
    pub fn new_with_options(output: W, options: EncodeOptions) -> Self {
        SdlEncoder { output, options, metadata: Metadata::default(), model: None }
    }

    /// Another model than the built-in one.
    #[must_use]
    pub fn with_model(self, model: Model) -> Self {
        SdlEncoder { model: Some(model), ..self }
    }

    /// An XMP packet to keep.
    pub fn set_xmp_metadata(&mut self, xmp: Vec<u8>) {
        self.metadata.xmp = Some(xmp);
    }
}

impl<W: Write> ImageEncoder for SdlEncoder<W> {
    /// # Panics
    ///
    /// As the trait demands, if `buf` has not the size of such a picture.
    fn write_image(
        mut self,
        buf: &[u8],
        width: u32,
        height: u32,
        color_type: ExtendedColorType,
    ) -> ImageResult<()> {
        let bits = u64::from(width) * u64::from(color_type.bits_per_pixel());
        let expected = bits.div_ceil(8) * u64::from(height);
        assert_eq!(
            expected,
            buf.len() as u64,
            "the buffer must have the size of a picture of {width}x{height} in {color_type:?}"
        );
        let picture =
            convert::picture_from_bytes(buf, width, height, color_type, self.metadata).map_err(encoding)?;
        let model = self.model.map_or_else(|| model_of(&self.options), Ok).map_err(encoding)?;
        let file = encode_with(&model, &picture, &self.options).map_err(encoding)?.bytes;
        self.output.write_all(&file)?;
        Ok(())
    }

    fn set_icc_profile(&mut self, icc_profile: Vec<u8>) -> Result<(), UnsupportedError> {
        self.metadata.icc = Some(icc_profile);
        Ok(())
    }

    fn set_exif_metadata(&mut self, exif: Vec<u8>) -> Result<(), UnsupportedError> {
        self.metadata.exif = Some(exif);
        Ok(())
    }
}

/// A `DynamicImage` of any layout, with its metadata, as a [`Picture`] for [`encode_with`].
///
/// # Errors
///
/// [`Error::Parameter`] for a size of zero or beyond 65,535 on a side, or values that are not numbers.
pub fn encode_dynamic(image: &DynamicImage, metadata: Metadata) -> Result<Picture, Error> {
    convert::picture_from_dynamic(image, metadata)
}

/// Encodes with the built-in model, or the one that the options name, into a file, which appears whole or not at all: it is written beside `path` and renamed.
///
/// # Errors
///
/// As [`encode_with`], and [`Error::Io`].
pub fn save(image: &DynamicImage, path: impl AsRef<Path>, options: &EncodeOptions) -> Result<(), Error> {
    let picture = encode_dynamic(image, Metadata::default())?;
    let file = encode_with(&model_of(options)?, &picture, options)?.bytes;
    crate::write_whole(path.as_ref(), &file)?;
    Ok(())
}
