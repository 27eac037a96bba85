//! The layouts of `image` to pictures and back.

use image::{ColorType, DynamicImage, ExtendedColorType};

use super::colour::{self, Conversion};
use crate::{Alpha, AlphaDepth, Colour, Error, Metadata, Picture};

/// 16 bits to 8, rounded.
fn to_eight(v: u16) -> u8 {
    ((u32::from(v) * 255 + 32_767) / 65_535) as u8
}

/// Floating point within the range of integers; what is not a number cannot be a picture.
fn clamped(v: f32) -> Result<f32, Error> {
    if v.is_nan() {
        return Err(Error::Parameter("the picture holds a value that is not a number".to_owned()));
    }
    Ok(v.clamp(0.0, 1.0))
}

/// Samples to 8 bits in sRGB. They are converted before they are rounded: 8 bits of a linear profile are few in the dark.
fn narrowed(samples: &[u16], conversion: &Conversion) -> Vec<u8> {
    if let Some(converted) = conversion.to_srgb_16(samples) {
        return converted.into_iter().map(to_eight).collect();
    }
    let eight: Vec<u8> = samples.iter().map(|&v| to_eight(v)).collect();
    conversion.to_srgb(&eight).unwrap_or(eight)
}

/// Raw samples of one of the ten layouts of `DynamicImage`, native endian, as `ImageEncoder::write_image` gets them.
pub(super) fn picture_from_bytes(
    buffer: &[u8],
    width: u32,
    height: u32,
    layout: ExtendedColorType,
    mut metadata: Metadata,
) -> Result<Picture, Error> {
    crate::picture::check_size(width, height)?;
    let pixels = width as usize * height as usize;
    let (colour, has_alpha, bytes) = match layout {
        ExtendedColorType::L8 => (Colour::Grey, false, 1),
        ExtendedColorType::La8 => (Colour::Grey, true, 1),
        ExtendedColorType::Rgb8 => (Colour::Rgb, false, 1),
        ExtendedColorType::Rgba8 => (Colour::Rgb, true, 1),
        ExtendedColorType::L16 => (Colour::Grey, false, 2),
        ExtendedColorType::La16 => (Colour::Grey, true, 2),
        ExtendedColorType::Rgb16 => (Colour::Rgb, false, 2),
        ExtendedColorType::Rgba16 => (Colour::Rgb, true, 2),
        ExtendedColorType::Rgb32F => (Colour::Rgb, false, 4),
        ExtendedColorType::Rgba32F => (Colour::Rgb, true, 4),
        other => return Err(Error::Parameter(format!("pixels of layout {other:?} cannot be encoded"))),
    };
    let channels = colour.channels();
    let step = channels + usize::from(has_alpha);
    if buffer.len() != pixels * step * bytes {
        return Err(Error::Parameter(format!(
            "{} bytes were given for a picture of {width}x{height} in {layout:?}, which has {}",
            buffer.len(),
            pixels * step * bytes
        )));
    }
    let conversion = Conversion::new(metadata.icc.as_deref(), colour);
    let mut eight: Vec<u8>;
    let mut alpha = None;
    match bytes {
        1 => {
            if has_alpha {
                alpha = Some(Alpha::Eight(buffer.iter().skip(channels).step_by(step).copied().collect()));
            }
            eight = if has_alpha {
                buffer.chunks_exact(step).flat_map(|pixel| &pixel[..channels]).copied().collect()
            } else {
                buffer.to_vec()
            };
            if let Some(converted) = conversion.as_ref().and_then(|conversion| conversion.to_srgb(&eight)) {
                eight = converted;
            }
        }
        2 => {
            let sample = |b: &[u8]| u16::from_ne_bytes([b[0], b[1]]);
            if has_alpha {
                let samples =
                    buffer.chunks_exact(2 * step).map(|pixel| sample(&pixel[2 * channels..])).collect();
                alpha = Some(Alpha::Sixteen(samples));
            }
            let samples = buffer
                .chunks_exact(2 * step)
                .flat_map(|pixel| pixel[..2 * channels].chunks_exact(2).map(sample));
            eight = match &conversion {
                None => samples.map(to_eight).collect(),
                Some(conversion) => narrowed(&samples.collect::<Vec<_>>(), conversion),
            };
        }
        _ => {
            let sample = |b: &[u8]| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]);
            if has_alpha {
                let samples: Vec<f32> =
                    buffer.chunks_exact(4 * step).map(|pixel| sample(&pixel[4 * channels..])).collect();
                if samples.iter().any(|a| !a.is_finite()) {
                    return Err(Error::Parameter(
                        "the alpha plane holds a value that is not a number".to_owned(),
                    ));
                }
                alpha = Some(Alpha::Float(samples));
            }
            let samples = buffer
                .chunks_exact(4 * step)
                .flat_map(|pixel| pixel[..4 * channels].chunks_exact(4).map(|b| clamped(sample(b))));
            eight = match &conversion {
                None => samples.map(|v| Ok((v? * 255.0).round() as u8)).collect::<Result<_, Error>>()?,
                Some(conversion) => {
                    let samples: Result<Vec<u16>, Error> =
                        samples.map(|v| Ok((v? * 65_535.0).round() as u16)).collect();
                    narrowed(&samples?, conversion)
                }
            };
        }
    }
    // Nobody could convert back to it: the pixels stay in sRGB.
    if conversion.is_some_and(|conversion| !conversion.has_way_back()) {
        metadata.icc = None;
    }
    let mut picture = Picture::new(width, height, colour, eight)?;
    if let Some(alpha) = alpha {
        picture = picture.with_alpha(alpha)?;
    }
    picture.metadata = metadata;
    Ok(picture)
}

/// The layout that a picture decodes to. 16 bits and floating point come back where the alpha plane has them.
pub(super) fn color_type(colour: Colour, alpha: Option<AlphaDepth>) -> ColorType {
    match (colour, alpha) {
        (Colour::Grey, None) => ColorType::L8,
        (Colour::Rgb, None) => ColorType::Rgb8,
        (Colour::Grey, Some(AlphaDepth::Eight)) => ColorType::La8,
        (Colour::Rgb, Some(AlphaDepth::Eight)) => ColorType::Rgba8,
        (Colour::Grey, Some(AlphaDepth::Sixteen)) => ColorType::La16,
        (Colour::Rgb, Some(AlphaDepth::Sixteen)) => ColorType::Rgba16,
        // `image` has no grey in floating point.
        (_, Some(AlphaDepth::Float)) => ColorType::Rgba32F,
    }
}

/// Samples in the layout of [`color_type`], native endian, in the profile of the picture's metadata.
pub(super) fn write_bytes(picture: &Picture, out: &mut [u8]) {
    let converted = colour::from_srgb(picture);
    let pixels = converted.as_deref().unwrap_or_else(|| picture.pixels());
    let channels = picture.colour().channels();
    match picture.alpha() {
        None => out.copy_from_slice(pixels),
        Some(Alpha::Eight(alpha)) => {
            for ((to, pixel), a) in
                out.chunks_exact_mut(channels + 1).zip(pixels.chunks_exact(channels)).zip(alpha)
            {
                to[..channels].copy_from_slice(pixel);
                to[channels] = *a;
            }
        }
        Some(Alpha::Sixteen(alpha)) => {
            for ((to, pixel), a) in
                out.chunks_exact_mut(2 * channels + 2).zip(pixels.chunks_exact(channels)).zip(alpha)
            {
                for (to, v) in
                    to.chunks_exact_mut(2).zip(pixel.iter().map(|&v| u16::from(v) * 257).chain([*a]))
                {
                    to.copy_from_slice(&v.to_ne_bytes());
                }
            }
        }
        Some(Alpha::Float(alpha)) => {
            for ((to, pixel), a) in out.chunks_exact_mut(16).zip(pixels.chunks_exact(channels)).zip(alpha) {
                let rgb = [pixel[0], pixel[channels / 2], pixel[channels - 1]].map(|v| f32::from(v) / 255.0);
                for (to, v) in to.chunks_exact_mut(4).zip(rgb.into_iter().chain([*a])) {
                    to.copy_from_slice(&v.to_ne_bytes());
                }
            }
        }
    }
}

/// A picture of any layout of `DynamicImage`.
pub(super) fn picture_from_dynamic(image: &DynamicImage, metadata: Metadata) -> Result<Picture, Error> {
    picture_from_bytes(image.as_bytes(), image.width(), image.height(), image.color().into(), metadata)
}
