//! Colour management: pictures are coded in sRGB; a source in another profile is converted there and back.

use std::sync::Arc;

use moxcms::{ColorProfile, Layout, RenderingIntent, Transform8BitExecutor, TransformOptions};

use crate::{Colour, Picture};

fn options() -> TransformOptions {
    TransformOptions {
        rendering_intent: RenderingIntent::RelativeColorimetric,
        ..TransformOptions::default()
    }
}

/// The way from a profile to sRGB, and back where there is one.
pub(super) struct Conversion {
    profile: ColorProfile,
    srgb: ColorProfile,
    colour: Colour,
}

impl Conversion {
    /// None where nothing is to convert, or nothing can be: the profile is sRGB, is of another colour space, or cannot be read.
    pub fn new(icc: Option<&[u8]>, colour: Colour) -> Option<Self> {
        let profile = ColorProfile::new_from_slice(icc?).ok()?;
        let fits = match colour {
            Colour::Rgb => profile.color_space == moxcms::DataColorSpace::Rgb,
            Colour::Grey => profile.color_space == moxcms::DataColorSpace::Gray,
        };
        let srgb = srgb(colour);
        let there = transform(&profile, &srgb, colour).is_some();
        (fits && there && !is_srgb(&profile, colour)).then_some(Conversion { profile, srgb, colour })
    }

    /// Whether the way leads back: a profile can have tables for one direction only.
    pub fn has_way_back(&self) -> bool {
        transform(&self.srgb, &self.profile, self.colour).is_some()
    }

    /// Pixels in the profile to pixels in sRGB.
    pub fn to_srgb(&self, pixels: &[u8]) -> Option<Vec<u8>> {
        convert(pixels, &self.profile, &self.srgb, self.colour)
    }

    /// The same with 16 bits a sample.
    pub fn to_srgb_16(&self, pixels: &[u16]) -> Option<Vec<u16>> {
        let layout = layout(self.colour);
        let transform = self.profile.create_transform_16bit(layout, &self.srgb, layout, options()).ok()?;
        let mut out = vec![0; pixels.len()];
        transform.transform(pixels, &mut out).ok()?;
        Some(out)
    }
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

fn layout(colour: Colour) -> Layout {
    match colour {
        Colour::Rgb => Layout::Rgb,
        Colour::Grey => Layout::Gray,
    }
}

fn transform(from: &ColorProfile, to: &ColorProfile, colour: Colour) -> Option<Arc<Transform8BitExecutor>> {
    from.create_transform_8bit(layout(colour), to, layout(colour), options()).ok()
}

fn convert(pixels: &[u8], from: &ColorProfile, to: &ColorProfile, colour: Colour) -> Option<Vec<u8>> {
    let mut out = vec![0; pixels.len()];
    transform(from, to, colour)?.transform(pixels, &mut out).ok()?;
    Some(out)
}

/// The pixels of a decoded picture in the profile that its metadata holds; none where they are so already.
pub(super) fn from_srgb(picture: &Picture) -> Option<Vec<u8>> {
    let colour = picture.colour();
    let Conversion { profile, srgb, .. } = Conversion::new(picture.metadata.icc.as_deref(), colour)?;
    convert(picture.pixels(), &srgb, &profile, colour)
}
