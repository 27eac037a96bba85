//! A folder to work in, and the program run in it.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use image::{DynamicImage, Rgb, RgbImage};
use tempfile::TempDir;

pub struct Place(TempDir);

impl Place {
    pub fn new() -> Self {
        Place(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    pub fn write(&self, name: &str, bytes: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    pub fn open(&self, name: &str) -> DynamicImage {
        image::open(self.path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    /// A picture with smooth parts, edges and texture, written in the format of its name.
    pub fn picture(&self, name: &str, width: u32, height: u32) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        picture(width, height).save(path).unwrap();
    }

    /// Everything that lies in the folder, as relative names in order.
    pub fn files(&self) -> Vec<String> {
        fn walk(root: &Path, folder: &Path, names: &mut Vec<String>) {
            for entry in std::fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(root, &path, names);
                } else {
                    names.push(path.strip_prefix(root).unwrap().display().to_string());
                }
            }
        }
        let mut names = Vec::new();
        walk(self.0.path(), self.0.path(), &mut names);
        names.sort();
        names
    }

    /// The program, to be run here. The engine in Rust needs nothing from the machine.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sdl"));
        command
            .args(arguments)
            .current_dir(self.0.path())
            .env("SDL_BACKEND", "rust")
            .env("SDL_MODEL_DIR", self.path("models"))
            .stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs it, and shows its words if the exit code is another one.
    pub fn expect(&self, code: i32, arguments: &[&str]) -> Output {
        let output = self.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", words(&output));
        output
    }

    pub fn ok(&self, arguments: &[&str]) -> Output {
        self.expect(0, arguments)
    }

    /// Runs it with bytes on standard input.
    pub fn pipe(&self, arguments: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // A program that fails before it has read all of it closes the pipe.
        let _ = child.stdin.take().unwrap().write_all(input);
        child.wait_with_output().unwrap()
    }
}

pub fn picture(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let texture = (x.wrapping_mul(2_654_435_761) ^ y.wrapping_mul(40_503)).wrapping_mul(69_069) >> 27;
        let disc = (i64::from(x) - 40).pow(2) + (i64::from(y) - 30).pow(2) < 500;
        if disc {
            Rgb([220, 70, 40])
        } else {
            Rgb([x.wrapping_mul(2) as u8, y.wrapping_mul(2) as u8, ((x + y) / 2 + texture) as u8])
        }
    })
}

/// What it wrote to standard error.
pub fn words(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Its standard output as JSON, one object a line.
pub fn objects(output: &Output) -> Vec<serde_json::Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}
