//! Picture to file and back: graphs, tiles, rate control.
//!
//! What may be asked is in [`options`]. The stages, one module each: [`tiles`] (what is worked on at a time), [`analysis`], [`hyper`] and
//! [`synthesis`] (the graphs), [`plan`] and [`blend`] (models that show where they are cut), [`denoise`], [`refine`] by the [`distortion`],
//! [`encode`] and [`decode`] (the order of it all), [`delta`] (one picture after the other), [`rate`] (how to hit a size).

mod alpha;
mod analysis;
mod blend;
mod decode;
mod delta;
mod denoise;
mod distortion;
mod encode;
mod hyper;
mod metadata;
mod model;
mod options;
mod parallel;
mod plan;
mod progress;
mod rate;
mod refine;
mod synthesis;
mod tiles;

pub use decode::{Decoder, StageTimes, Verified, decode};
pub use delta::{Analysed, Reference, ReferenceName, SequenceDecoder, SequenceEncoder};
pub use denoise::{Denoise, Denoising};
#[cfg(feature = "image")]
pub(crate) use encode::model_of;
pub use encode::{Encoded, encode, encode_with};
pub use model::{Model, Settings};
pub use options::{
    DEFAULT_EFFORT, DEFAULT_QUALITY, DecodeOptions, EncodeOptions, LatentMethod, MAX_EFFORT, Rate,
};
pub use progress::{Progress, Stage};
pub use synthesis::Synthesis;
