//! One error type for the whole tool; its kind decides the exit code.

use std::io;
use std::path::{Path, PathBuf};

/// What went wrong, with the file it went wrong in.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a read or a write.
    #[error("{}: cannot {action}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried, as a verb phrase: "open", "read 12 bytes at 40".
        action: String,
        /// The system's answer.
        source: io::Error,
    },
    /// A fault of this program.
    #[error("internal error: {0}; please report it")]
    Internal(String),
    /// The command line asks for something that cannot be.
    #[error("{0}")]
    Usage(String),
    /// The ratio asked for cannot be reached.
    #[error("{0}")]
    Unreachable(String),
    /// A file is broken, truncated, hostile, or not what it claims to be.
    #[error("{}: {what}", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was expected and what was found.
        what: String,
    },
    /// A valid file that this version cannot handle.
    #[error("{}: {what}", path.display())]
    Unsupported {
        /// The file.
        path: PathBuf,
        /// What is not handled, and what to do.
        what: String,
    },
}

/// `std::result::Result` with [`Error`].
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The process exit code: 1 input/output or internal, 2 usage, 3 target not reachable, 4 corrupt,
    /// 5 unsupported.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Io { .. } | Error::Internal(_) => 1,
            Error::Usage(_) => 2,
            Error::Unreachable(_) => 3,
            Error::Corrupt { .. } => 4,
            Error::Unsupported { .. } => 5,
        }
    }

    /// An [`Error::Io`]; `action` completes "cannot ...".
    pub fn io(path: &Path, action: impl Into<String>, source: io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), action: action.into(), source }
    }

    /// An [`Error::Corrupt`].
    pub fn corrupt(path: &Path, what: impl Into<String>) -> Self {
        Error::Corrupt { path: path.to_path_buf(), what: what.into() }
    }

    /// An [`Error::Unsupported`].
    pub fn unsupported(path: &Path, what: impl Into<String>) -> Self {
        Error::Unsupported { path: path.to_path_buf(), what: what.into() }
    }

    /// What the codec said about the blob or the weights of `tensor` in `path`.
    pub fn codec(path: &Path, tensor: &str, error: nz_onnx::error::Error) -> Self {
        use nz_onnx::error::Error as Codec;
        let what = format!("tensor {tensor:?}: {error}");
        match error {
            Codec::Corrupt(_) | Codec::Base(_) | Codec::Truncated { .. } => Error::corrupt(path, what),
            Codec::Unsupported(_) => Error::unsupported(path, what),
            _ => Error::Internal(format!("{}: {what}", path.display())),
        }
    }
}
