//! Colour management: pictures are coded in sRGB; a source in another profile is converted there and back.

use moxcms::{ColorProfile, Layout, RenderingIntent, TransformOptions};

use crate::{Colour, Picture};

fn options() -> TransformOptions {
    TransformOptions {
        rendering_intent: RenderingIntent::RelativeColorimetric,
        ..TransformOptions::default()
    }
}

/// The profile, if it is one that pixels of `colour` must be converted from: readable, of that colour space, not sRGB.
fn foreign(icc: &[u8], colour: Colour) -> Option<ColorProfile> {
    let profile = ColorProfile::new_from_slice(icc).ok()?;
    let fits = match colour {
        Colour::Rgb => profile.color_space == moxcms::DataColorSpace::Rgb,
        Colour::Grey => profile.color_space == moxcms::DataColorSpace::Gray,
    };
    (fits && !is_srgb(&profile, colour)).then_some(profile)
}

/// Whether conversion from the profile to sRGB leaves a sample of colours within one step.
fn is_srgb(profile: &ColorProfile, colour: Colour) -> bool {
    let channels = colour.channels();
    let probe: Vec<u8> = (0..=16u32)
        .flat_map(|r| {
            (0..=4u32).flat_map(move |g| (0..=4u32).map(move |b| [r * 255 / 16, g * 255 / 4, b * 255 / 4]))
        })
        .flat_map(|rgb| rgb.into_iter().take(channels).map(|v| v as u8).collect::<Vec<_>>())
        .collect();
    convert(&probe, profile, &srgb(colour), colour)
        .is_some_and(|out| out.iter().zip(&probe).all(|(a, b)| a.abs_diff(*b) <= 1))
}

fn srgb(colour: Colour) -> ColorProfile {
    match colour {
        Colour::Rgb => ColorProfile::new_srgb(),
        Colour::Grey => {
            // Grey with the tone curve of sRGB.
            let rgb = ColorProfile::new_srgb();
            let mut grey = ColorProfile::new_gray_with_gamma(2.2);
            grey.gray_trc = rgb.red_trc;
            grey
        }
    }
}

fn convert(pixels: &[u8], from: &ColorProfile, to: &ColorProfile, colour: Colour) -> Option<Vec<u8>> {
    let layout = match colour {
        Colour::Rgb => Layout::Rgb,
        Colour::Grey => Layout::Gray,
    };
    let transform = from.create_transform_8bit(layout, to, layout, options()).ok()?;
    let mut out = vec![0; pixels.len()];
    transform.transform(pixels, &mut out).ok()?;
    Some(out)
}

/// Pixels in the profile to pixels in sRGB; as they are where the profile is sRGB or cannot be read.
pub(super) fn to_srgb(pixels: Vec<u8>, icc: Option<&[u8]>, colour: Colour) -> Vec<u8> {
    let converted = icc.and_then(|icc| convert(&pixels, &foreign(icc, colour)?, &srgb(colour), colour));
    converted.unwrap_or(pixels)
}

/// The pixels of a decoded picture in the profile that its metadata holds.
pub(super) fn from_srgb(picture: &Picture) -> Option<Vec<u8>> {
    let icc = picture.metadata.icc.as_deref()?;
    let colour = picture.colour();
    convert(picture.pixels(), &srgb(colour), &foreign(icc, colour)?, colour)
}
