//! One HTML file that needs nothing else: pictures, figures, and the script that shows them.

use std::io::Cursor;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::imageops;
use image::{ImageEncoder, RgbImage};
use serde_json::{Value, json};

use crate::bench::metrics::{Metric, Scores};
use crate::failure::Failure;

/// Markup, style and script; [`DATA`] stands where pictures and figures go.
const TEMPLATE: &str = include_str!("page.html");
const DATA: &str = "<!-- data -->";

/// A picture that browsers show.
pub(crate) struct Image {
    pub media: &'static str,
    pub bytes: Vec<u8>,
}

impl Image {
    /// Without loss.
    pub fn of(pixels: &RgbImage) -> Result<Self, Failure> {
        let mut bytes = Vec::new();
        PngEncoder::new_with_quality(Cursor::new(&mut bytes), CompressionType::Default, FilterType::Adaptive)
            .write_image(pixels, pixels.width(), pixels.height(), image::ExtendedColorType::Rgb8)?;
        Ok(Image { media: "image/png", bytes })
    }
}

/// One encoded version of a picture.
pub(crate) struct Item {
    /// Its number in `codecs` of the page's figures.
    pub codec: usize,
    /// The setting.
    pub label: String,
    pub bytes: u64,
    pub bpp: f64,
    /// Bits a pixel that it was brought to.
    pub target: Option<f64>,
    pub scores: Scores,
    /// Without one there are only figures.
    pub image: Option<Image>,
}

/// The page while it grows.
pub(crate) struct Page {
    /// Most bytes of the pictures.
    limit: u64,
    /// Script elements that hold pictures.
    images: String,
    count: usize,
    pictures: Vec<Value>,
}

impl Page {
    pub fn new(limit: u64) -> Self {
        Page { limit, images: String::new(), count: 0, pictures: Vec::new() }
    }

    /// `false`, and nothing is added, where it would become too large; the first picture always has room.
    pub fn add(&mut self, name: &str, original: &RgbImage, items: Vec<Item>) -> Result<bool, Failure> {
        let before = (self.images.len(), self.count);
        let thumbnail = thumbnail(original)?;
        let image = self.put(&Image::of(original)?);
        let items: Vec<Value> = items
            .iter()
            .map(|item| {
                let image = item.image.as_ref().map(|image| self.put(image));
                json!({ "codec": item.codec, "label": item.label, "bytes": item.bytes, "bpp": item.bpp,
                        "target": item.target, "scores": item.scores, "image": image })
            })
            .collect();
        if self.images.len() as u64 > self.limit && !self.pictures.is_empty() {
            self.images.truncate(before.0);
            self.count = before.1;
            return Ok(false);
        }
        self.pictures.push(json!({ "name": name, "width": original.width(), "height": original.height(),
                                   "thumbnail": thumbnail, "image": image, "items": items }));
        Ok(true)
    }

    /// The id of the element that holds the picture.
    fn put(&mut self, image: &Image) -> String {
        let id = format!("i{}", self.count);
        self.count += 1;
        self.images += &format!("<script type=\"text/plain\" id=\"{id}\" data-media=\"{}\">", image.media);
        STANDARD.encode_string(&image.bytes, &mut self.images);
        self.images += "</script>\n";
        id
    }

    /// The page. `figures` is an object; the script in the template says what is in it.
    pub fn finish(self, figures: &Value) -> Result<String, Failure> {
        let mut figures = figures.clone();
        figures["pictures"] = self.pictures.into();
        // Nothing in a script element may look like its end.
        let figures = figures.to_string().replace('<', "\\u003c");
        let data =
            format!("{}<script type=\"application/json\" id=\"figures\">{figures}</script>", self.images);
        Ok(TEMPLATE.replacen(DATA, &data, 1))
    }
}

/// The metrics of which there is any measurement; at least one.
pub(crate) fn measured<'a>(scores: impl Iterator<Item = &'a Scores> + Clone) -> Vec<Metric> {
    let any = |metric: &Metric| scores.clone().any(|scores| metric.of(scores).is_some());
    let found: Vec<Metric> = Metric::ALL.into_iter().filter(any).collect();
    if found.is_empty() { vec![Metric::Psnr] } else { found }
}

/// The metrics as the page knows them.
pub(crate) fn metrics(metrics: &[Metric]) -> Value {
    metrics
        .iter()
        .map(
            |m| json!({ "key": m.key(), "label": m.label(), "up": m.more_is_better(), "digits": m.digits() }),
        )
        .collect()
}

/// A small picture as an address.
fn thumbnail(original: &RgbImage) -> Result<String, Failure> {
    const SIDE: f64 = 112.0;
    const QUALITY: u8 = 70;
    let scale = (SIDE / f64::from(original.width().max(original.height()))).min(1.0);
    let side = |length: u32| ((f64::from(length) * scale) as u32).max(1);
    let small = imageops::thumbnail(original, side(original.width()), side(original.height()));
    let mut bytes = Vec::new();
    small.write_with_encoder(JpegEncoder::new_with_quality(Cursor::new(&mut bytes), QUALITY))?;
    Ok(format!("data:image/jpeg;base64,{}", STANDARD.encode(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(pixels: &RgbImage) -> Item {
        let image = Some(Image::of(pixels).unwrap());
        let scores = Scores::default();
        Item { codec: 0, label: "q50".to_owned(), bytes: 10, bpp: 0.1, target: None, scores, image }
    }

    #[test]
    fn a_name_cannot_leave_its_element() {
        let pixels = RgbImage::new(4, 4);
        let mut page = Page::new(1 << 20);
        assert!(page.add("</script><script>alert(1)", &pixels, vec![item(&pixels)]).unwrap());
        let html = page.finish(&json!({})).unwrap();
        assert!(!html.contains("<script>alert"), "{html}");
        assert!(html.contains("\\u003c/script>"));
    }

    #[test]
    fn what_does_not_fit_leaves_no_trace_but_the_first_always_fits() {
        let pixels = RgbImage::new(64, 64);
        let mut page = Page::new(10);
        assert!(page.add("first", &pixels, vec![item(&pixels)]).unwrap());
        assert!(!page.add("second", &pixels, vec![item(&pixels)]).unwrap());
        let html = page.finish(&json!({})).unwrap();
        assert!(html.contains("id=\"i1\"") && !html.contains("id=\"i2\"") && !html.contains("second\""));
    }
}
