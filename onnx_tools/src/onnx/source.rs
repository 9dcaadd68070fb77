//! A read-only file with positional reads.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::{Error, Result};

/// Bytes moved at a time where a range is streamed.
const CHUNK: usize = 1 << 20;

/// An open file of known length. Reads name their offset, so a `Source` can be shared between threads.
#[derive(Debug)]
pub struct Source {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Source {
    /// Opens `path`, which must be a regular file.
    pub fn open(path: &Path) -> Result<Source> {
        let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
        let metadata = file.metadata().map_err(|e| Error::io(path, "read the size", e))?;
        if !metadata.is_file() {
            return Err(Error::Usage(format!("{}: not a regular file", path.display())));
        }
        Ok(Source { path: path.to_path_buf(), file, len: metadata.len() })
    }

    /// The path it was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Length in bytes when it was opened.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Fills `out` from `offset` on.
    pub fn read_exact_at(&self, out: &mut [u8], offset: u64) -> Result<()> {
        self.file
            .read_exact_at(out, offset)
            .map_err(|e| Error::io(&self.path, format!("read {} bytes at offset {offset}", out.len()), e))
    }

    /// The bytes of `range`, which must lie in the file: its length is checked before memory is taken.
    pub fn read(&self, range: &Range<u64>) -> Result<Vec<u8>> {
        if range.start > range.end || range.end > self.len {
            return Err(Error::corrupt(
                &self.path,
                format!("bytes {}..{} wanted, but the file has {}", range.start, range.end, self.len),
            ));
        }
        let len = usize::try_from(range.end - range.start)
            .map_err(|_| Error::unsupported(&self.path, "a tensor is larger than this machine's memory"))?;
        let mut out = vec![0; len];
        self.read_exact_at(&mut out, range.start)?;
        Ok(out)
    }

    /// Hands the bytes of `range` to `sink`, a chunk at a time.
    pub fn stream(&self, range: &Range<u64>, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut chunk = vec![0; CHUNK.min(usize::try_from(range.end - range.start).unwrap_or(CHUNK))];
        let mut at = range.start;
        while at < range.end {
            let n = chunk.len().min(usize::try_from(range.end - at).unwrap_or(CHUNK));
            self.read_exact_at(&mut chunk[..n], at)?;
            sink(&chunk[..n])?;
            at += n as u64;
        }
        Ok(())
    }

    /// Copies the bytes of `range` to `out`; `name` is what `out` is called in an error.
    pub fn copy_to(&self, range: &Range<u64>, out: &mut dyn Write, name: &Path) -> Result<()> {
        self.stream(range, |chunk| out.write_all(chunk).map_err(|e| Error::io(name, "write", e)))
    }

    /// SHA-256 of the whole file in lower-case hexadecimal.
    pub fn sha256(&self) -> Result<String> {
        Ok(hex(&self.sha256_bytes()?))
    }

    /// SHA-256 of the whole file.
    pub fn sha256_bytes(&self) -> Result<Vec<u8>> {
        let mut hash = Sha256::new();
        self.stream(&(0..self.len), |chunk| {
            hash.update(chunk);
            Ok(())
        })?;
        Ok(hash.finalize().to_vec())
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
