//! What the results say: curves, BD-rates, tables, and the page.

use std::fmt::Write;
use std::path::Path;

use serde::Serialize;
use serde_json::json;

use super::bdrate::{BdRate, Point, bd_rate};
use super::codecs::Codec;
use super::metrics::{Metric, Scores};
use super::runner::{Original, Runner};
use super::store::Row;
use crate::compare::page::{self, Image, Item, Page};
use crate::failure::{Code, Failure};

pub(crate) struct Report<'a> {
    out: &'a Path,
    codecs: &'a [Codec],
    /// Number and name of every picture that was measured.
    pictures: Vec<(usize, String)>,
    /// By picture, then by codec: points of the curves and files at matched bytes.
    rows: Vec<Vec<Vec<Row>>>,
    curves: Vec<Vec<Mean>>,
    matched: Vec<Vec<Mean>>,
    bd_rates: Vec<Against>,
    range: [f64; 2],
    targets: &'a [f64],
    machine: String,
    /// What a reader must know.
    pub notes: Vec<String>,
}

/// The mean over all pictures at one setting, or at one target.
#[derive(Debug, Clone, Serialize)]
struct Mean {
    label: String,
    bpp: f64,
    scores: Scores,
    /// Seconds, medians over the pictures.
    encode_seconds: f64,
    encode_cpu_seconds: f64,
    decode_seconds: f64,
    decode_cpu_seconds: f64,
    /// Bytes, the largest of all pictures.
    encode_memory: u64,
    decode_memory: u64,
}

/// The first codec's rate against that of another, by every metric.
#[derive(Debug, Clone, Serialize)]
struct Against {
    codec: usize,
    by: Vec<(&'static str, Option<BdRate>)>,
}

impl<'a> Report<'a> {
    /// `measured` are numbers and digests of the pictures.
    pub fn new(runner: &Runner<'a>, codecs: &'a [Codec], measured: &[Measured], range: [f64; 2]) -> Self {
        let plan = runner.plan;
        let rows_of = |digest: &str, codec: &Codec| -> Vec<Row> {
            let curve = codec.ladder(plan.points).into_iter().map(|setting| (setting, None));
            let matched = plan.targets.iter().map(|target| (0.0, Some(*target)));
            curve.chain(matched).filter_map(|(s, target)| runner.known(digest, codec, s, target)).collect()
        };
        let rows: Vec<Vec<Vec<Row>>> = measured
            .iter()
            .map(|picture| codecs.iter().map(|codec| rows_of(&picture.digest, codec)).collect())
            .collect();
        let of = |codec: usize| rows.iter().flat_map(move |picture: &Vec<Vec<Row>>| &picture[codec]);
        let complete = |label: String, rows: Vec<&Row>| Mean::new(label, &rows, measured.len());
        let curves: Vec<Vec<Mean>> = codecs
            .iter()
            .enumerate()
            .map(|(index, codec)| {
                let at = |s: f64| of(index).filter(|r| r.target.is_none() && r.setting == s).collect();
                let ladder = codec.ladder(plan.points).into_iter();
                ladder.filter_map(|s| complete(codec.label(s), at(s))).collect()
            })
            .collect();
        let matched = (0..codecs.len())
            .map(|index| {
                let at = |t: f64| of(index).filter(|r| r.target == Some(t)).collect();
                plan.targets.iter().filter_map(|t| complete(format!("{t} bpp"), at(*t))).collect()
            })
            .collect();
        let bd_rates = (1..codecs.len()).map(|other| Against::new(other, &curves, range)).collect();
        let pictures = measured.iter().map(|picture| (picture.index, picture.name.clone())).collect();
        let mut notes = Vec::new();
        if plan.jobs > 1 {
            notes.push(format!("Times were taken with {} pictures at a time: they are too long.", plan.jobs));
        }
        let (out, targets, machine) = (runner.out, &plan.targets, machine());
        Report { out, codecs, pictures, rows, curves, matched, bd_rates, range, targets, machine, notes }
    }

    /// Writes all files and returns the tables for people. `read` reads a picture by its number.
    pub fn write(
        &self,
        read: &dyn Fn(usize) -> Result<Original, Failure>,
        page_size: u64,
    ) -> Result<String, Failure> {
        let text = self.text();
        let save = |name: &str, bytes: &[u8]| save(self.out, name, bytes);
        save("bench.md", text.as_bytes())?;
        save("bench.csv", self.csv().as_bytes())?;
        save("bench.json", format!("{:#}\n", self.json()).as_bytes())?;
        save("bench.html", self.page(read, page_size)?.as_bytes())?;
        Ok(text)
    }

    fn json(&self) -> serde_json::Value {
        let codecs: Vec<_> = self
            .codecs
            .iter()
            .zip(self.curves.iter().zip(&self.matched))
            .map(|(codec, (curve, matched))| {
                json!({ "id": codec.kind.id(), "name": codec.name, "version": codec.version,
                        "options": codec.options, "curve": curve, "matched": matched })
            })
            .collect();
        let bd_rates: Vec<_> = self
            .bd_rates
            .iter()
            .map(|against| {
                let by: serde_json::Map<_, _> =
                    against.by.iter().map(|(key, found)| ((*key).to_owned(), json!(found))).collect();
                json!({ "codec": self.codecs[0].kind.id(), "against": self.codecs[against.codec].kind.id(), "by": by })
            })
            .collect();
        json!({ "pictures": self.pictures.len(), "range": self.range, "machine": self.machine,
                "notes": self.notes, "codecs": codecs, "bd_rates": bd_rates })
    }

    fn csv(&self) -> String {
        let mut text = String::from("picture,width,height,codec,version,setting,target_bpp,bytes,bpp");
        for metric in Metric::ALL {
            text += &format!(",{}", metric.key());
        }
        text += ",encode_seconds,encode_cpu_seconds,encode_bytes,decode_seconds,decode_cpu_seconds,decode_bytes\n";
        let quoted = |field: &str| format!("\"{}\"", field.replace('"', "\"\""));
        let number = |value: Option<f64>| value.map_or(String::new(), |value| value.to_string());
        for row in self.rows.iter().flatten().flatten() {
            let mut fields = vec![
                quoted(&row.picture),
                row.width.to_string(),
                row.height.to_string(),
                row.codec.clone(),
                quoted(&row.version),
                row.setting.to_string(),
                number(row.target),
                row.bytes.to_string(),
                row.bpp().to_string(),
            ];
            fields.extend(Metric::ALL.map(|metric| number(metric.of(&row.scores))));
            for cost in [row.encode, row.decode] {
                fields.extend([cost.wall.to_string(), cost.cpu.to_string(), cost.memory.to_string()]);
            }
            text += &fields.join(",");
            text.push('\n');
        }
        text
    }

    /// Tables in Markdown.
    fn text(&self) -> String {
        let mut text = String::new();
        let first = &self.codecs[0];
        let [low, high] = self.range;
        let _ = writeln!(text, "{} pictures. {}\n", self.pictures.len(), self.machine);
        text += "| codec | version | options |\n|---|---|---|\n";
        for codec in self.codecs {
            let _ = writeln!(text, "| {} | {} | {} |", codec.name, codec.version, codec.options);
        }
        for note in &self.notes {
            let _ = write!(text, "\n{note}\n");
        }
        let metrics = self.metrics();
        let head = |first: &str, metrics: &[Metric]| {
            let labels: Vec<_> = metrics.iter().map(|metric| metric.label()).collect();
            format!("| {first} | {} |\n|{}\n", labels.join(" | "), "---|".repeat(labels.len() + 1))
        };
        if !self.bd_rates.is_empty() {
            let _ = writeln!(
                text,
                "\nBD-rate of {}, per cent of bytes at equal quality, where it needs {low} to {high} bits a pixel (in brackets: \
                 the rates of {} at the ends of the quality that both curves have):\n",
                first.name, first.name
            );
            text += &head("against", &metrics);
            for against in &self.bd_rates {
                let _ = write!(text, "| {} |", self.codecs[against.codec].name);
                for (_, found) in against.by.iter().filter(|(key, _)| metrics.iter().any(|m| m.key() == *key))
                {
                    let _ = match found {
                        Some(bd) => {
                            write!(text, " {:+.1} % ({:.2} to {:.2}) |", bd.percent, bd.bpp[0], bd.bpp[1])
                        }
                        None => write!(text, " no common quality |"),
                    };
                }
                text.push('\n');
            }
        }
        text += "\nMeans over the pictures at every setting:\n\n";
        text += &head("codec | setting | bpp", &metrics).replacen("|---|", "|---|---|---|", 1);
        for (codec, curve) in self.codecs.iter().zip(&self.curves) {
            for mean in curve {
                let _ = write!(text, "| {} | {} | {:.4} |", codec.name, mean.label, mean.bpp);
                text += &mean.cells(&metrics);
            }
        }
        if !self.targets.is_empty() {
            text += "\nAt the same bytes, or as near as the codec comes; times are medians of whole processes on one \
                     thread, in brackets the processor's, memory is the largest of all pictures:\n\n";
            text += &head("wanted | codec | bpp | encode | decode", &metrics).replacen(
                "|---|",
                "|---|---|---|---|---|",
                1,
            );
            for target in self.targets {
                let label = format!("{target} bpp");
                for (codec, means) in self.codecs.iter().zip(&self.matched) {
                    let Some(mean) = means.iter().find(|mean| mean.label == label) else { continue };
                    let cost = |wall: f64, cpu: f64, memory: u64| {
                        format!("{:.0} ({:.0}) ms, {:.0} MB", 1e3 * wall, 1e3 * cpu, memory as f64 / 1e6)
                    };
                    let _ = write!(
                        text,
                        "| {label} | {} | {:.4} | {} | {} |",
                        codec.name,
                        mean.bpp,
                        cost(mean.encode_seconds, mean.encode_cpu_seconds, mean.encode_memory),
                        cost(mean.decode_seconds, mean.decode_cpu_seconds, mean.decode_memory)
                    );
                    text += &mean.cells(&metrics);
                }
            }
        }
        text
    }

    fn metrics(&self) -> Vec<Metric> {
        page::measured(self.rows.iter().flatten().flatten().map(|row| &row.scores))
    }

    fn page(
        &self,
        read: &dyn Fn(usize) -> Result<Original, Failure>,
        page_size: u64,
    ) -> Result<String, Failure> {
        let mut page = Page::new(page_size);
        let mut left_out = Vec::new();
        for index in self.worst_first() {
            let (number, name) = &self.pictures[index];
            if !left_out.is_empty() {
                left_out.push(name.as_str());
                continue;
            }
            let original = read(*number)?.pixels;
            let rows = || {
                self.rows[index]
                    .iter()
                    .enumerate()
                    .flat_map(|(codec, rows)| rows.iter().map(move |r| (codec, r)))
            };
            let items = rows().map(|(codec, row)| self.item(codec, row)).collect::<Result<Vec<_>, _>>()?;
            if !page.add(name, &original, items)? {
                left_out.push(name);
            }
        }
        let mut notes = self.notes.clone();
        if !left_out.is_empty() {
            notes.push(format!("Not on this page, for its size (--page-size): {}.", left_out.join(", ")));
        }
        let codecs: Vec<_> = self
            .codecs
            .iter()
            .map(|c| json!({ "name": c.name, "about": format!("{}; {}", c.version, c.options) }))
            .collect();
        let mean: Vec<_> = self
            .curves
            .iter()
            .map(|curve| {
                curve
                    .iter()
                    .map(|m| json!({ "label": m.label, "bpp": m.bpp, "scores": m.scores }))
                    .collect::<Vec<_>>()
            })
            .collect();
        let matched: Vec<_> = self
            .matched
            .iter()
            .enumerate()
            .flat_map(|(codec, means)| means.iter().map(move |mean| json!({ "codec": codec, "mean": mean })))
            .collect();
        let bd_rates: Vec<_> = self
            .bd_rates
            .iter()
            .map(|against| json!({ "codec": against.codec, "by": against.by.iter().cloned().collect::<std::collections::BTreeMap<_, _>>() }))
            .collect();
        page.finish(&json!({
            "title": "SDL bench",
            "machine": self.machine,
            "notes": notes,
            "codecs": codecs,
            "metrics": page::metrics(&self.metrics()),
            "targets": self.targets,
            "range": self.range,
            "mean": mean,
            "matched": matched,
            "bd_rates": bd_rates,
            "pictures_measured": self.pictures.len(),
        }))
    }

    /// A result for the page: with its picture where its rate is one to look at.
    fn item(&self, codec: usize, row: &Row) -> Result<Item, Failure> {
        /// Somewhat outside of the range is still worth a look.
        const SLACK: f64 = 1.3;
        let about = &self.codecs[codec];
        let [low, high] = self.range;
        let shown = row.target.is_some() || (low / SLACK..=high * SLACK).contains(&row.bpp());
        let file = self.out.join(&row.file);
        let image = match about.kind.shown_by_browsers() {
            _ if !shown => None,
            Some(media) => {
                let bytes = std::fs::read(&file).map_err(|error| Failure::input(&error).about(&row.file))?;
                Some(Image { media, bytes })
            }
            None => Some(Image::of(&about.pixels(&file)?)?),
        };
        let label = about.label(row.setting);
        Ok(Item {
            codec,
            label,
            bytes: row.bytes,
            bpp: row.bpp(),
            target: row.target,
            scores: row.scores,
            image,
        })
    }

    /// Pictures in the order of how much worse the first codec does than the best of the others at the same bytes.
    fn worst_first(&self) -> Vec<usize> {
        let target = self.targets.get(self.targets.len() / 2).copied();
        let quality = |rows: &[Row]| {
            let row = rows.iter().rfind(|row| row.target == target)?;
            Metric::Ssimulacra2.of(&row.scores)
        };
        let lead = |index: usize| {
            let rows = &self.rows[index];
            let others = rows[1..].iter().filter_map(|rows| quality(rows)).reduce(f64::max);
            quality(&rows[0]).unwrap_or(f64::INFINITY) - others.unwrap_or(0.0)
        };
        let mut order: Vec<usize> = (0..self.pictures.len()).collect();
        order.sort_by(|a, b| lead(*a).total_cmp(&lead(*b)));
        order
    }
}

/// A picture that was read and measured.
pub(crate) struct Measured {
    pub index: usize,
    pub name: String,
    pub digest: String,
}

impl Mean {
    /// `None` where not every picture has a result.
    fn new(label: String, rows: &[&Row], pictures: usize) -> Option<Self> {
        if rows.len() != pictures || rows.is_empty() {
            return None;
        }
        let mean = |of: &dyn Fn(&Row) -> Option<f64>| {
            let values: Vec<f64> = rows.iter().filter_map(|row| of(row)).collect();
            (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
        };
        let median = |of: &dyn Fn(&Row) -> f64| {
            let mut values: Vec<f64> = rows.iter().map(|row| of(row)).collect();
            values.sort_by(f64::total_cmp);
            f64::midpoint(values[(values.len() - 1) / 2], values[values.len() / 2])
        };
        let largest = |of: &dyn Fn(&Row) -> u64| rows.iter().map(|row| of(row)).max().unwrap_or(0);
        Some(Mean {
            label,
            bpp: mean(&|row| Some(row.bpp()))?,
            scores: Scores {
                psnr: mean(&|row| row.scores.psnr),
                ms_ssim: mean(&|row| row.scores.ms_ssim),
                ssimulacra2: mean(&|row| row.scores.ssimulacra2),
                butteraugli: mean(&|row| row.scores.butteraugli),
                feature_distance: mean(&|row| row.scores.feature_distance),
            },
            encode_seconds: median(&|row| row.encode.wall),
            encode_cpu_seconds: median(&|row| row.encode.cpu),
            decode_seconds: median(&|row| row.decode.wall),
            decode_cpu_seconds: median(&|row| row.decode.cpu),
            encode_memory: largest(&|row| row.encode.memory),
            decode_memory: largest(&|row| row.decode.memory),
        })
    }

    fn cells(&self, metrics: &[Metric]) -> String {
        let cell = |metric: &Metric| match metric.of(&self.scores) {
            Some(value) => format!(" {value:.*} |", metric.digits()),
            None => " |".to_owned(),
        };
        metrics.iter().map(cell).chain(std::iter::once("\n".to_owned())).collect()
    }
}

impl Against {
    fn new(other: usize, curves: &[Vec<Mean>], range: [f64; 2]) -> Self {
        let points = |curve: &[Mean], metric: Metric| -> Vec<Point> {
            let point = |mean: &Mean| {
                let quality = metric.quality(metric.of(&mean.scores)?);
                Some(Point { bpp: mean.bpp, quality })
            };
            curve.iter().filter_map(point).collect()
        };
        let by = Metric::ALL.map(|metric| {
            let [anchor, test] = [other, 0].map(|codec| points(&curves[codec], metric));
            (metric.key(), bd_rate(&anchor, &test, range))
        });
        Against { codec: other, by: by.to_vec() }
    }
}

pub(super) fn save(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), Failure> {
    let path = folder.join(name);
    image_sdl::write_whole(&path, bytes)
        .map_err(|error| Failure::output(Code::Io, &path.display().to_string(), &error))
}

/// What the times were taken on, as far as the machine says.
pub(super) fn machine() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let about = read("/proc/cpuinfo");
    let model = about.lines().find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1));
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().filter(|load| !load.is_empty());
    format!(
        "{}, {} processors{}.",
        model.unwrap_or(std::env::consts::ARCH),
        std::thread::available_parallelism().map_or(1, usize::from),
        load.map_or(String::new(), |load| format!(", load {load} at the end"))
    )
}
