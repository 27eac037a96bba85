//! Many files: several at a time, reports in the order of the inputs, a summary, the exit code.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::args::ReportArgs;
use crate::failure::{Code, Failure};
use crate::output;

/// The version of what `--json` prints; fields are added without a new one.
pub(crate) const SCHEMA: u32 = 1;

/// What became of one file.
pub(crate) struct Done {
    /// For people.
    pub text: String,
    /// For programs: an object; `schema` and `file` are put in front of it.
    pub json: Value,
    /// What is not as the user may expect, though nothing failed.
    pub notes: Vec<String>,
    /// Bytes of the `.sdl` file and pixels, for the summary.
    pub size: Option<(u64, u64)>,
    /// What is wrong with a file of which something can be said.
    pub failure: Option<Failure>,
}

impl Done {
    pub fn new(text: String, json: Value) -> Self {
        Done { text, json, notes: Vec::new(), size: None, failure: None }
    }
}

/// Whether the words are the result that was asked for, or a report beside it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Words {
    /// To standard output, also with `--quiet`.
    Result,
    /// To standard error.
    Report,
}

/// How many files are worked on at a time, and how many threads each of them gets.
pub(crate) fn share(threads: usize, files: usize) -> (usize, usize) {
    let workers = threads.min(files).max(1);
    (workers, (threads / workers).max(1))
}

/// Works on all of them; a failing one does not stop the others.
pub(crate) fn run<J: Sync>(
    jobs: &[J],
    workers: usize,
    report: &ReportArgs,
    words: Words,
    name: impl Fn(&J) -> String + Sync,
    work: impl Fn(&J) -> Result<Done, Failure> + Sync,
) -> Result<(), Failure> {
    let printer = Mutex::new(Printer::new(jobs.iter().map(&name).collect(), report, words));
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let worker = || {
        while !stop.load(Ordering::Relaxed) {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(job) = jobs.get(index) else { break };
            // A decoder that panics on one picture must not take the others with it.
            let result = catch_unwind(AssertUnwindSafe(|| work(job))).unwrap_or_else(|_| {
                Err(Failure::new(Code::Failure, "internal error; please report it with the file"))
            });
            let mut printer = printer.lock().unwrap_or_else(PoisonError::into_inner);
            if !printer.take(index, result) {
                stop.store(true, Ordering::Relaxed);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..workers.min(jobs.len()) {
            scope.spawn(worker);
        }
        // In the process's own thread as well: the C library gives every other one a heap that it grows page by page.
        worker();
    });
    printer.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
}

struct Printer<'a> {
    names: Vec<String>,
    report: &'a ReportArgs,
    words: Words,
    bar: Option<ProgressBar>,
    waiting: Vec<Option<Result<Done, Failure>>>,
    printed: usize,
    failed: Vec<String>,
    /// Nobody reads the results any more.
    closed: bool,
    code: Option<Code>,
    size: (u64, u64),
    began: Instant,
}

impl<'a> Printer<'a> {
    fn new(names: Vec<String>, report: &'a ReportArgs, words: Words) -> Self {
        let show = names.len() > 1 && words == Words::Report && !report.quiet && output::stderr_is_terminal();
        let bar = show.then(|| {
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} files, {elapsed} ({eta} left)");
            ProgressBar::new(names.len() as u64)
                .with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        let waiting = names.iter().map(|_| None).collect();
        Printer {
            names,
            report,
            words,
            bar,
            waiting,
            printed: 0,
            failed: Vec::new(),
            closed: false,
            code: None,
            size: (0, 0),
            began: Instant::now(),
        }
    }

    /// Prints what is next in order. `false` where nobody reads the results any more.
    fn take(&mut self, index: usize, result: Result<Done, Failure>) -> bool {
        if self.closed {
            return false;
        }
        self.waiting[index] = Some(result);
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
        while let Some(result) = self.waiting.get_mut(self.printed).and_then(Option::take) {
            let name = self.names[self.printed].clone();
            self.printed += 1;
            if let Err(error) = self.print(&name, result) {
                self.closed = true;
                let failure = Failure::output(Code::Io, "standard output", &error);
                if failure.message.is_empty() {
                    // The reader has enough: there is nothing wrong with the file.
                    self.code.get_or_insert(failure.code);
                } else {
                    self.fail(name, failure);
                }
                return false;
            }
        }
        true
    }

    fn print(&mut self, name: &str, result: Result<Done, Failure>) -> std::io::Result<()> {
        let failure = match result {
            Err(failure) => failure,
            Ok(mut done) => {
                if let Some((bytes, pixels)) = done.size {
                    self.size = (self.size.0 + bytes, self.size.1 + pixels);
                }
                if !self.report.quiet {
                    for note in &done.notes {
                        self.note(&format!("sdl: {name}: {note}"));
                    }
                }
                if self.report.json {
                    self.json(name, done.json, done.failure.as_ref())?;
                } else if self.words == Words::Result {
                    output::result(&done.text)?;
                }
                if self.words == Words::Report && !self.report.quiet && !self.report.json {
                    self.note(&done.text);
                }
                match done.failure.take() {
                    None => return Ok(()),
                    Some(failure) => {
                        self.fail(name.to_owned(), failure);
                        return Ok(());
                    }
                }
            }
        };
        let printed = if self.report.json { self.json(name, json!({}), Some(&failure)) } else { Ok(()) };
        self.fail(name.to_owned(), failure);
        printed
    }

    fn json(&self, name: &str, more: Value, failure: Option<&Failure>) -> std::io::Result<()> {
        let mut object = serde_json::Map::new();
        object.insert("schema".to_owned(), SCHEMA.into());
        object.insert("file".to_owned(), name.into());
        if let Value::Object(more) = more {
            object.extend(more);
        }
        if let Some(failure) = failure {
            object.insert("error".to_owned(), failure.message.clone().into());
            object.insert("exit_code".to_owned(), (failure.code as u8).into());
        }
        output::result(&Value::Object(object).to_string())
    }

    fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| output::note(text)),
            None => output::note(text),
        }
    }

    fn fail(&mut self, name: String, failure: Failure) {
        self.code.get_or_insert(failure.code);
        let failure = failure.about(&name);
        if !failure.message.is_empty() {
            self.note(&format!("sdl: {}", failure.message));
        }
        self.failed.push(name);
    }

    fn finish(self) -> Result<(), Failure> {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let many = self.names.len() > 1;
        let (bytes, pixels) = self.size;
        if many && pixels > 0 && !self.report.quiet && !self.report.json {
            output::note(&format!(
                "{} files, {bytes} bytes ({:.4} bpp), {:.2} s",
                self.names.len() - self.failed.len(),
                bytes as f64 * 8.0 / pixels as f64,
                self.began.elapsed().as_secs_f64()
            ));
        }
        let Some(code) = self.code else { return Ok(()) };
        if many && !self.failed.is_empty() {
            let list = self.failed.join("\n  ");
            output::note(&format!(
                "sdl: {} of {} files failed:\n  {list}",
                self.failed.len(),
                self.names.len()
            ));
        }
        Err(Failure::silent(code))
    }
}
