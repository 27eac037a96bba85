//! Picture to file and back: graphs, tiles, rate control.
//!
//! The stages, one module each: [`tiles`] (what is worked on at a time), [`analysis`] and [`synthesis`] (the graphs),
//! [`encode`] and [`decode`] (the order of it all), [`rate`] (how to hit a size).

mod alpha;
mod analysis;
mod decode;
mod encode;
mod metadata;
mod model;
mod parallel;
mod rate;
mod synthesis;
mod tiles;

pub use decode::{DecodeOptions, Decoder, StageTimes, Verified, decode};
pub use encode::{EncodeOptions, Encoded, MAX_EFFORT, Rate, encode, encode_with};
pub use model::{Model, Settings};
pub use synthesis::Synthesis;
