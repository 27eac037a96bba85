//! Results so far: a file of one JSON object a line, so that a run that was stopped can go on.

use std::collections::HashMap;
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use super::metrics::Scores;
use super::process::Cost;
use crate::failure::{Code, Failure};

/// One picture in one codec at one setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Row {
    /// The picture's path within its folder.
    pub picture: String,
    /// Of its pixels.
    pub digest: String,
    pub width: u32,
    pub height: u32,
    /// [`super::codecs::Kind::id`].
    pub codec: String,
    pub version: String,
    pub setting: f64,
    /// Bits a pixel that this setting was looked for to come nearest to; without it, a point of the curve.
    pub target: Option<f64>,
    /// The encoded file, within the folder of results.
    pub file: String,
    pub bytes: u64,
    pub scores: Scores,
    pub encode: Cost,
    pub decode: Cost,
    /// How many were measured at a time: more than one makes times long.
    pub jobs: usize,
}

impl Row {
    pub fn bpp(&self) -> f64 {
        8.0 * self.bytes as f64 / (f64::from(self.width) * f64::from(self.height))
    }

    fn key(&self) -> Key {
        Key::new(&self.digest, &self.codec, &self.version, self.setting, self.target)
    }
}

/// What a row is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    digest: String,
    codec: String,
    version: String,
    /// The setting of a point of the curve, or the target of a matched file.
    point: Result<u64, u64>,
}

impl Key {
    pub fn new(digest: &str, codec: &str, version: &str, setting: f64, target: Option<f64>) -> Self {
        Key {
            digest: digest.to_owned(),
            codec: codec.to_owned(),
            version: version.to_owned(),
            point: target.map_or(Ok(setting.to_bits()), |target| Err(target.to_bits())),
        }
    }
}

pub(crate) struct Store {
    rows: Mutex<(HashMap<Key, Row>, File)>,
}

impl Store {
    /// Reads what is there. A last line that was cut off is dropped, any other that is not a result is an error.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let io = |error: std::io::Error| Failure::new(Code::Io, format!("{}: {error}", path.display()));
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(io(error)),
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut rows = HashMap::new();
        for (number, line) in text[..whole].lines().enumerate() {
            let row: Row = serde_json::from_str(line).map_err(|error| {
                let place = format!("{}, line {}", path.display(), number + 1);
                Failure::new(
                    Code::Corrupt,
                    format!("{place}: no result: {error}; remove the line to measure again"),
                )
            })?;
            rows.insert(row.key(), row);
        }
        let file = File::options().append(true).create(true).open(path).map_err(io)?;
        file.set_len(whole as u64).map_err(io)?;
        Ok(Store { rows: Mutex::new((rows, file)) })
    }

    pub fn get(&self, key: &Key) -> Option<Row> {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).0.get(key).cloned()
    }

    pub fn put(&self, row: Row) -> Result<(), Failure> {
        let failed = |error: &std::io::Error| Failure::output(Code::Io, "the results", error);
        let line = serde_json::to_string(&row).map_err(|error| failed(&error.into()))?;
        let mut rows = self.rows.lock().unwrap_or_else(PoisonError::into_inner);
        rows.1.write_all(format!("{line}\n").as_bytes()).map_err(|error| failed(&error))?;
        rows.0.insert(row.key(), row);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(setting: f64, target: Option<f64>) -> Row {
        let cost = Cost { wall: 0.1, cpu: 0.1, memory: 1 << 20 };
        Row {
            picture: "a.png".to_owned(),
            digest: "00".to_owned(),
            width: 10,
            height: 8,
            codec: "jpeg".to_owned(),
            version: "1".to_owned(),
            setting,
            target,
            file: "files/a.jpeg".to_owned(),
            bytes: 100,
            scores: Scores { psnr: Some(1.0 / 3.0), ..Scores::default() },
            encode: cost,
            decode: cost,
            jobs: 1,
        }
    }

    #[test]
    fn what_was_put_is_there_again_and_a_cut_line_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        let store = Store::open(&path).unwrap();
        let rows = [row(50.0, None), row(52.0, Some(0.2)), row(50.0, Some(0.4))];
        rows.iter().for_each(|row| store.put(row.clone()).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();

        let store = Store::open(&path).unwrap();
        let [first, second, third] = rows.clone().map(|row| store.get(&row.key()));
        assert_eq!((first, second, third), (Some(rows[0].clone()), Some(rows[1].clone()), None));
        assert_eq!(store.get(&Key::new("00", "jpeg", "2", 50.0, None)), None);
        store.put(rows[2].clone()).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_line_that_is_no_result_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("results.jsonl");
        std::fs::write(&path, "{}\n").unwrap();
        let Err(failure) = Store::open(&path) else { panic!("it was read") };
        assert_eq!(failure.code, Code::Corrupt);
        assert!(failure.message.contains("line 1"), "{}", failure.message);
    }
}
