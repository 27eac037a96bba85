//! Picture to file and back: graphs, tiles, rate control.
//!
//! The stages, one module each: [`tiles`] (what is worked on at a time), [`analysis`] and [`synthesis`] (the graphs),
//! [`plan`] and [`blend`] (models that show where they are cut), [`denoise`], [`refine`] by the [`distortion`], [`encode`] and [`decode`] (the order of it all),
//! [`delta`] (one picture after the other), [`rate`] (how to hit a size).

mod alpha;
mod analysis;
mod blend;
mod decode;
mod delta;
mod denoise;
mod distortion;
mod encode;
mod metadata;
mod model;
mod parallel;
mod plan;
mod progress;
mod rate;
mod refine;
mod synthesis;
mod tiles;

pub use decode::{DecodeOptions, Decoder, StageTimes, Verified, decode};
pub use delta::{Analysed, Reference, ReferenceName, SequenceDecoder, SequenceEncoder};
pub use denoise::{Denoise, Denoising};
#[cfg(feature = "image")]
pub(crate) use encode::model_of;
pub use encode::{EncodeOptions, Encoded, LatentMethod, MAX_EFFORT, Rate, encode, encode_with};
pub use model::{Model, Settings};
pub use progress::{Progress, Stage};
pub use synthesis::Synthesis;
