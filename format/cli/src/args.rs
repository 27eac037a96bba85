//! Options that several subcommands have.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use image_sdl::Settings;
use image_sdl::onnx::Backend;

/// How models are run.
#[derive(Debug, Args)]
#[command(next_help_heading = "Engine")]
pub(crate) struct EngineArgs {
    /// Engine that runs the model: `ort` is ONNX Runtime, `rust` needs no library [env: SDL_BACKEND]
    #[arg(long, value_name = "auto|ort|rust", default_value = "auto", hide_default_value = true)]
    backend: Backend,
    /// Execution provider of ONNX Runtime, such as cuda or coreml; see `sdl doctor`
    #[arg(long, value_name = "NAME")]
    provider: Option<String>,
    /// Device of the provider
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    device: u32,
}

impl EngineArgs {
    pub fn settings(&self) -> Settings {
        Settings { backend: self.backend, provider: self.provider.clone(), device: self.device }
    }

    /// The same as words of a command line.
    pub fn words(&self) -> String {
        let mut words = format!("--backend {} --device {}", self.backend, self.device);
        if let Some(provider) = &self.provider {
            words += &format!(" --provider {provider}");
        }
        words
    }
}

/// What is said, and how.
#[derive(Debug, Args)]
#[command(next_help_heading = "Reports")]
pub(crate) struct ReportArgs {
    /// Print one JSON object a file, one line each, on standard output
    #[arg(long)]
    pub json: bool,
    /// Print errors only; what `info` and `verify` say of a file is their result, and comes all the same
    #[arg(long)]
    pub quiet: bool,
    /// Print more
    #[arg(short, long, action = clap::ArgAction::Count)]
    pub verbose: u8,
}

/// How pictures are read and measured.
#[derive(Debug, Args)]
pub(crate) struct MeasuringArgs {
    /// Graph of the SqueezeNet feature distance (inputs `a`, `b`; output `distance`); without it that is not measured
    #[arg(long, value_name = "PATH")]
    pub feature_model: Option<PathBuf>,
    /// Refuse pictures that need more
    #[arg(long, value_name = "BYTES[k|M|G]", default_value = "4Gi")]
    pub max_memory: Bytes,
    /// Print errors only
    #[arg(long)]
    pub quiet: bool,
}

/// A number of threads: `all` or a count.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Jobs(usize);

impl Jobs {
    pub fn count(self) -> usize {
        if self.0 > 0 { self.0 } else { std::thread::available_parallelism().map_or(1, usize::from) }
    }
}

impl FromStr for Jobs {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        match given {
            "all" => Ok(Jobs(0)),
            _ => match given.parse() {
                Ok(count) if count > 0 => Ok(Jobs(count)),
                _ => Err("give a number from 1 on, or `all`".to_owned()),
            },
        }
    }
}

/// A number of bytes: k, M and G are powers of 1000; Ki, Mi and Gi of 1024.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(given: &str) -> Result<Self, String> {
        let wrong = || "give a number of bytes, such as 12345, 20k or 1.5Mi".to_owned();
        let split = given.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(given.len());
        let (number, unit) = given.split_at(split);
        let factor = match unit.trim_end_matches(['b', 'B']).to_ascii_lowercase().as_str() {
            "" => 1u64,
            "k" => 1000,
            "m" => 1_000_000,
            "g" => 1_000_000_000,
            "ki" => 1 << 10,
            "mi" => 1 << 20,
            "gi" => 1 << 30,
            _ => return Err(wrong()),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(factor).map(Bytes).ok_or_else(wrong);
        }
        let number: f64 = number.parse().map_err(|_| wrong())?;
        Ok(Bytes((number * factor as f64) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_units_that_people_type() {
        let parse = |text: &str| text.parse::<Bytes>().ok().map(|bytes| bytes.0);
        assert_eq!(parse("123"), Some(123));
        assert_eq!(parse("20k"), Some(20_000));
        assert_eq!(parse("20KiB"), Some(20_480));
        assert_eq!(parse("1.5M"), Some(1_500_000));
        assert_eq!(parse("2g"), Some(2_000_000_000));
        for wrong in ["", "k", "-3", "3x", "1..2", "99999999999G"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn jobs_are_a_number_or_all() {
        assert_eq!("3".parse::<Jobs>().unwrap().count(), 3);
        assert!("all".parse::<Jobs>().unwrap().count() >= 1);
        assert!("0".parse::<Jobs>().is_err());
    }
}
