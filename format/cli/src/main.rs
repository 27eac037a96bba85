//! The program `sdl`: pictures to `.sdl` files and back, and what to know about them.
//!
//! One module a subcommand. What they share: `args` (options), `files` (which inputs, which outputs, whole files),
//! `batch` (many files at once, reports, exit code), `source` and `sink` (pictures in other formats), `models`.

mod args;
mod batch;
mod bench;
mod compare;
mod decode;
mod doctor;
mod encode;
mod environment;
mod failure;
mod files;
mod info;
mod model;
mod models;
mod output;
mod progress;
mod sink;
mod source;
mod verify;

use clap::{CommandFactory, Parser, Subcommand};

use crate::failure::{Code, EXIT_CODES, Failure};

/// Stores pictures as the latent of a neural network.
#[derive(Debug, Parser)]
#[command(name = "sdl", version, after_help = EXIT_CODES, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Encode pictures as .sdl files
    #[command(visible_alias = "enc", after_help = encode::EXAMPLES)]
    Encode(encode::Encode),
    /// Decode .sdl files to another format
    #[command(visible_alias = "dec", after_help = decode::EXAMPLES)]
    Decode(decode::Decode),
    /// Say what .sdl files hold; no model is needed
    #[command(after_help = info::SCHEMA)]
    Info(info::Info),
    /// Check that .sdl files are whole and decode to what was encoded
    #[command(after_help = EXIT_CODES)]
    Verify(verify::Verify),
    /// List, examine, import and pack models
    #[command(after_help = EXIT_CODES)]
    Model(model::Model),
    /// Measure SDL against the other codecs of this machine
    #[command(after_help = bench::EXAMPLES)]
    Bench(bench::Bench),
    /// Write a page that shows files beside their original
    #[command(after_help = compare::EXAMPLES)]
    Compare(compare::Compare),
    /// Run a program and say what it cost
    #[command(name = bench::MEASURE, hide = true)]
    Measure(bench::Measure),
    /// Say which engine runs the models and why, and test it
    #[command(after_help = EXIT_CODES)]
    Doctor(doctor::Doctor),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() {
    environment::prepare();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Encode(command) => command.run(),
        Command::Decode(command) => command.run(),
        Command::Info(command) => command.run(),
        Command::Verify(command) => command.run(),
        Command::Model(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Compare(command) => command.run(),
        Command::Measure(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Completions { shell } => completions(shell),
    };
    let code = match result {
        Ok(()) => 0,
        Err(failure) => {
            failure.print();
            failure.code as u8
        }
    };
    environment::leave(code)
}

fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "sdl", &mut script);
    output::result_bytes(&script).map_err(|error| Failure::output(Code::Io, "standard output", &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }
}
