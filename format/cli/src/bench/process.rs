//! Other programs, run and measured.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Args;
use serde::{Deserialize, Serialize};
use wait4::Wait4;

use crate::failure::{Code, Failure};
use crate::output;

/// What a run of a program cost.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Cost {
    /// Seconds from start to end.
    pub wall: f64,
    /// Seconds of processor time.
    pub cpu: f64,
    /// Most memory that was resident at a time, in bytes.
    pub memory: u64,
}

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Line(Vec<OsString>);

impl Line {
    pub fn new(program: impl Into<OsString>) -> Self {
        Line(vec![program.into()])
    }

    /// Words separated by spaces.
    pub fn words(mut self, words: &str) -> Self {
        self.0.extend(words.split_whitespace().map(OsString::from));
        self
    }

    pub fn path(mut self, path: &Path) -> Self {
        self.0.push(path.into());
        self
    }

    fn program(&self) -> String {
        self.0[0].to_string_lossy().into_owned()
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.0[0]);
        command.args(&self.0[1..]).stdin(Stdio::null());
        command
    }

    /// The first line that it prints on any of its two outputs, or `None` where there is no such program.
    pub fn first_words(&self) -> Option<String> {
        let output = self.command().output().ok()?;
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    }

    /// Runs it to its end.
    pub fn run(&self) -> Result<Cost, Failure> {
        let failed = |what: String| Failure::new(Code::Failure, format!("{}: {what}", self.program()));
        // Linux counts the memory of the process that starts another one towards that other one (getrusage(2), maxrss over
        // exec), so a small one stands between.
        let myself = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
        let output = Command::new(myself)
            .arg(MEASURE)
            .args(&self.0)
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            return Err(failed(format!("{}: {}", output.status, words.trim())));
        }
        serde_json::from_slice(&output.stdout).map_err(|error| failed(error.to_string()))
    }
}

/// The hidden subcommand that stands between.
pub(crate) const MEASURE: &str = "measure-process";

#[derive(Debug, Args)]
pub(crate) struct Measure {
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    line: Vec<OsString>,
}

impl Measure {
    /// Prints what the program cost as a JSON object; what it prints itself goes to standard error.
    pub fn run(&self) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::new(Code::Failure, error.to_string());
        let mut command = Line(self.line.clone()).command();
        command.stdout(Stdio::from(std::io::stderr()));
        let started = Instant::now();
        let used = command.spawn().map_err(failed)?.wait4().map_err(failed)?;
        let wall = started.elapsed().as_secs_f64();
        if !used.status.success() {
            return Err(Failure::new(Code::Failure, used.status.to_string()));
        }
        let cpu = (used.rusage.utime + used.rusage.stime).as_secs_f64();
        let cost = Cost { wall, cpu, memory: used.rusage.maxrss };
        let text =
            serde_json::to_string(&cost).map_err(|error| Failure::new(Code::Failure, error.to_string()))?;
        output::result(&text).map_err(|error| Failure::output(Code::Io, "standard output", &error))
    }
}
