//! Pictures as the codec takes and gives them: 8-bit sRGB or grey, alpha and metadata beside it.

use crate::{AlphaDepth, Error};

/// The colour channels of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Colour {
    /// One channel, luma of sRGB.
    Grey,
    /// Red, green, blue of sRGB, interleaved.
    Rgb,
}

impl Colour {
    /// Samples a pixel.
    #[must_use]
    pub fn channels(self) -> usize {
        match self {
            Colour::Grey => 1,
            Colour::Rgb => 3,
        }
    }
}

/// An alpha plane, kept exactly as it was: width times height samples, rows from the top.
#[derive(Debug, Clone, PartialEq)]
pub enum Alpha {
    /// 8 bits, 255 is opaque.
    Eight(Vec<u8>),
    /// 16 bits, 65,535 is opaque.
    Sixteen(Vec<u16>),
    /// Floating point, 1.0 is opaque.
    Float(Vec<f32>),
}

impl Alpha {
    /// The depth of its samples.
    #[must_use]
    pub fn depth(&self) -> AlphaDepth {
        match self {
            Alpha::Eight(_) => AlphaDepth::Eight,
            Alpha::Sixteen(_) => AlphaDepth::Sixteen,
            Alpha::Float(_) => AlphaDepth::Float,
        }
    }

    pub(crate) fn len(&self) -> usize {
        match self {
            Alpha::Eight(samples) => samples.len(),
            Alpha::Sixteen(samples) => samples.len(),
            Alpha::Float(samples) => samples.len(),
        }
    }
}

/// What travels with a picture and is not pixels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata {
    /// ICC profile of the source.
    pub icc: Option<Vec<u8>>,
    /// Exif, beginning with its TIFF header.
    pub exif: Option<Vec<u8>>,
    /// XMP packet.
    pub xmp: Option<Vec<u8>>,
}

/// A picture in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct Picture {
    width: u32,
    height: u32,
    colour: Colour,
    pixels: Vec<u8>,
    alpha: Option<Alpha>,
    /// Profile, Exif and XMP.
    pub metadata: Metadata,
}

impl Picture {
    /// A picture of `width` x `height` pixels; `pixels` are rows from the top, channels interleaved, without padding.
    ///
    /// # Errors
    ///
    /// [`Error::Parameter`] for a size of zero or beyond 65,535, or a wrong number of samples.
    pub fn new(width: u32, height: u32, colour: Colour, pixels: Vec<u8>) -> Result<Self, Error> {
        check_size(width, height)?;
        let expected = width as usize * height as usize * colour.channels();
        if pixels.len() != expected {
            return Err(Error::Parameter(format!(
                "{} samples were given for a picture of {width}x{height}, which has {expected}",
                pixels.len()
            )));
        }
        Ok(Picture { width, height, colour, pixels, alpha: None, metadata: Metadata::default() })
    }

    /// The same with an alpha plane.
    ///
    /// # Errors
    ///
    /// [`Error::Parameter`] for a wrong number of samples.
    pub fn with_alpha(mut self, alpha: Alpha) -> Result<Self, Error> {
        let expected = self.width as usize * self.height as usize;
        if alpha.len() != expected {
            return Err(Error::Parameter(format!(
                "{} samples of alpha were given for {expected} pixels",
                alpha.len()
            )));
        }
        self.alpha = Some(alpha);
        Ok(self)
    }

    /// Width in pixels.
    #[must_use]
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height in pixels.
    #[must_use]
    pub fn height(&self) -> u32 {
        self.height
    }

    /// The colour channels.
    #[must_use]
    pub fn colour(&self) -> Colour {
        self.colour
    }

    /// The samples, rows from the top, channels interleaved.
    #[must_use]
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The alpha plane.
    #[must_use]
    pub fn alpha(&self) -> Option<&Alpha> {
        self.alpha.as_ref()
    }

    /// Samples, alpha and metadata without a copy.
    #[must_use]
    pub fn into_parts(self) -> (Vec<u8>, Option<Alpha>, Metadata) {
        (self.pixels, self.alpha, self.metadata)
    }

    /// Red, green and blue at a place; a place outside gives the nearest pixel inside.
    #[inline]
    pub(crate) fn rgb_row(&self, y: usize) -> &[u8] {
        let stride = self.width as usize * self.colour.channels();
        let y = y.min(self.height as usize - 1);
        &self.pixels[y * stride..(y + 1) * stride]
    }
}

pub(crate) fn check_size(width: u32, height: u32) -> Result<(), Error> {
    let fits = |side: u32| (1..=65_535).contains(&side);
    if fits(width) && fits(height) {
        return Ok(());
    }
    Err(Error::Parameter(format!(
        "a picture of {width}x{height} cannot be stored; each side has 1 to 65,535 pixels"
    )))
}
