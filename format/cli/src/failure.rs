//! What went wrong, in words and as an exit code.

use image_sdl::ErrorKind;

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  everything worked
  1  failure, such as a size that cannot be reached or a pixel that is not a number
  2  wrong usage
  3  a file is damaged, cut short, of an unknown format, from a newer version, or a delta picture on its own
  4  a model or an engine is missing or broken
  5  reading or writing failed, or the output exists and --no-overwrite is given
  6  a picture is larger than the limits allow
  130  stopped by Ctrl-C or SIGTERM; no half file is left
With many files the others are still done, and the code is that of the first failure.";

/// The exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    Failure = 1,
    Usage = 2,
    Corrupt = 3,
    Model = 4,
    Io = 5,
    Limits = 6,
}

/// An error for the user. One without words was reported already, or has nobody left to read it.
#[derive(Debug)]
pub(crate) struct Failure {
    pub code: Code,
    pub message: String,
}

impl Failure {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Failure { code, message: message.into() }
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Failure::new(Code::Usage, message)
    }

    pub fn silent(code: Code) -> Self {
        Failure::new(code, "")
    }

    /// Reading failed.
    pub fn input(error: &std::io::Error) -> Self {
        Failure::new(Code::Io, format!("cannot read it: {error}"))
    }

    /// Writing failed. A closed pipe is how a reader says that it has enough: no words.
    pub fn output(code: Code, what: &str, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Failure::silent(code);
        }
        Failure::new(code, format!("cannot write {what}: {error}"))
    }

    /// The same, said of a file.
    pub fn about(self, name: &str) -> Self {
        if self.message.is_empty() {
            self
        } else {
            Failure { message: format!("{name}: {}", self.message), ..self }
        }
    }

    pub fn print(&self) {
        if !self.message.is_empty() {
            crate::output::note(&format!("sdl: {}", self.message));
        }
    }
}

impl From<image_sdl::Error> for Failure {
    fn from(error: image_sdl::Error) -> Self {
        let code = match error.kind() {
            ErrorKind::Corrupt | ErrorKind::Unsupported | ErrorKind::Reference => Code::Corrupt,
            ErrorKind::Model => Code::Model,
            ErrorKind::Io => Code::Io,
            ErrorKind::Limits => Code::Limits,
            _ => Code::Failure,
        };
        Failure::new(code, error.to_string())
    }
}

impl From<image_sdl::onnx::Error> for Failure {
    fn from(error: image_sdl::onnx::Error) -> Self {
        let code = match error {
            image_sdl::onnx::Error::Io { .. } => Code::Io,
            _ => Code::Model,
        };
        Failure::new(code, error.to_string())
    }
}

/// An error of reading a picture of another format.
impl From<image::ImageError> for Failure {
    fn from(error: image::ImageError) -> Self {
        use image::ImageError;
        let code = match &error {
            ImageError::Decoding(_) | ImageError::Unsupported(_) => Code::Corrupt,
            ImageError::Limits(_) => Code::Limits,
            // The bytes are in memory: what ends there is the picture, not the disk.
            ImageError::IoError(_) => {
                return Failure::new(Code::Corrupt, format!("the picture is damaged or cut short: {error}"));
            }
            _ => Code::Failure,
        };
        Failure::new(code, error.to_string())
    }
}
