//! Files that appear whole or not at all.
//!
//! A file is written under a hidden temporary name beside its final one, locked while its process lives, and
//! renamed at the end. A signal removes the temporary files; what a kill leaves behind is removed by the next
//! run that writes the same output.

use std::ffi::OsString;
use std::fs::{self, File, TryLockError};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::onnx::{Error, Result};

/// Temporary files of this process that a signal must remove. Held locked while files are renamed, so that a
/// signal arrives before the first rename or after the last.
static PENDING: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());

fn pending() -> MutexGuard<'static, Vec<PathBuf>> {
    PENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A file under a temporary name. Dropped without [`commit`], it is removed.
#[derive(Debug)]
pub struct Staged {
    target: PathBuf,
    temp: PathBuf,
    file: File,
    written: u64,
}

impl Staged {
    /// Makes the temporary file for `target`, in the same folder.
    pub fn create(target: &Path) -> Result<Self> {
        let folder = folder_of(target);
        let prefix = temp_prefix(target)?;
        remove_stale(folder, &prefix);
        loop {
            // Registered under the lock, so that no signal can fall between the two.
            let mut list = pending();
            let mut builder = tempfile::Builder::new();
            open_permissions(builder.prefix(&prefix));
            let temp = builder
                .tempfile_in(folder)
                .map_err(|e| Error::io(target, "create a temporary file beside it", e))?;
            let (file, temp) =
                temp.keep().map_err(|e| Error::io(target, "keep a temporary file", e.error))?;
            list.push(temp.clone());
            drop(list);
            let staged = Staged { target: target.to_path_buf(), temp, file, written: 0 };
            match staged.file.try_lock() {
                // Another run may have taken the file for a stale one before the lock.
                Ok(()) if staged.temp.exists() => return Ok(staged),
                Ok(()) => continue,
                Err(TryLockError::WouldBlock) => continue,
                // A file system without locks: nothing will take the file for a stale one either.
                Err(TryLockError::Error(_)) => return Ok(staged),
            }
        }
    }

    /// Where the bytes are until [`commit`].
    pub fn temp_path(&self) -> &Path {
        &self.temp
    }

    /// Bytes written so far.
    pub fn position(&self) -> u64 {
        self.written
    }

    /// Appends `bytes`.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|e| self.write_error(e))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Appends zeros until the position is a multiple of `alignment`.
    pub fn align(&mut self, alignment: u64) -> Result<()> {
        let gap = self.written.next_multiple_of(alignment) - self.written;
        let zeros = vec![0; usize::try_from(gap).unwrap_or(0)];
        self.write(&zeros)
    }

    /// Goes on writing at `offset`.
    pub fn seek(&mut self, offset: u64) -> Result<()> {
        self.file.seek(SeekFrom::Start(offset)).map_err(|e| self.write_error(e))?;
        self.written = offset;
        Ok(())
    }

    /// Makes the file `len` bytes long; what is never written is zeros.
    pub fn set_len(&self, len: u64) -> Result<()> {
        self.file.set_len(len).map_err(|e| self.write_error(e))
    }

    /// Waits until the bytes are on the disk.
    pub fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|e| self.write_error(e))
    }

    fn write_error(&self, error: io::Error) -> Error {
        let action = match error.kind() {
            io::ErrorKind::StorageFull => "write: no space left on its disk",
            io::ErrorKind::QuotaExceeded => "write: the disk quota is used up",
            io::ErrorKind::FileTooLarge => "write: the file system does not take files of this size",
            _ => "write",
        };
        Error::io(&self.target, format!("{action} ({} bytes were written)", self.written), error)
    }
}

/// A hidden folder for files that are needed for a while. Dropped, it is removed with all that is in it.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    /// Locked while the folder is in use.
    _lock: File,
}

/// Bytes that [`Folder::probe`] writes.
const PROBE: usize = 1 << 16;
/// The file of a [`Folder`] that is locked.
const LOCK: &str = "lock";

impl Folder {
    /// Makes a folder beside `target`, on the disk that is to hold the output.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn create(target: &Path) -> Result<Self> {
        let folder = folder_of(target);
        let prefix = temp_prefix(target)?;
        remove_stale(folder, &prefix);
        // Registered and locked before a signal, or another run that looks for stale folders, can come between.
        let mut list = pending();
        let made = tempfile::Builder::new().prefix(&prefix).tempdir_in(folder);
        let path = made.map_err(|e| Error::io(target, "create a temporary folder beside it", e))?.keep();
        list.push(path.clone());
        drop(list);
        let lock = File::create(path.join(LOCK)).map_err(|e| Error::io(&path, "write in it", e))?;
        // A file system without locks: nothing will take the folder for a stale one either.
        let _ = lock.try_lock();
        Ok(Folder { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a little and removes it again: what other programs that write there do not say is said here.
    ///
    /// # Errors
    /// Nothing can be written: the disk is full, say.
    pub fn probe(&self) -> io::Result<()> {
        let path = self.path.join("probe");
        let written = fs::write(&path, [0; PROBE]);
        // Whatever was written goes with the folder at the latest.
        let _ = fs::remove_file(&path);
        written
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        forget(&self.path);
    }
}

/// Removes what is still pending under that name.
fn forget(path: &Path) {
    let mut list = pending();
    if let Some(at) = list.iter().position(|p| p == path) {
        list.swap_remove(at);
        remove(path);
    }
}

/// Removes a temporary file or folder. Nothing better can be done where that fails; the next run tries again.
fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

impl Write for Staged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        forget(&self.temp);
    }
}

/// Renames synced files to their final names, in order. Without `force`, a final name that exists is an error
/// and stays as it is.
pub fn commit(files: Vec<Staged>, force: bool) -> Result<()> {
    let mut list = pending();
    let mut done: Vec<PathBuf> = Vec::new();
    let outcome = files.iter().try_for_each(|staged| {
        let new = !exists(&staged.target);
        if !new && !force {
            return Err(exists_error(&staged.target));
        }
        fs::rename(&staged.temp, &staged.target)
            .map_err(|e| Error::io(&staged.target, "rename the finished file to this name", e))?;
        list.retain(|p| *p != staged.temp);
        if new {
            done.push(staged.target.clone());
        }
        Ok(())
    });
    if outcome.is_err() {
        // Half an output must not stay under the final names.
        done.iter().for_each(|path| drop(fs::remove_file(path)));
    } else if let Some(first) = files.first() {
        // The names themselves reach the disk with the folder; not every file system can do that.
        let _ = File::open(folder_of(&first.target)).and_then(|folder| folder.sync_all());
    }
    drop(list);
    outcome
}

/// Refuses a final name that exists, unless `force`; folders, devices, pipes and the like in any case: the rename
/// at the end would put a file where they are, in `/dev/null`'s place for instance.
pub fn check_free(target: &Path, force: bool) -> Result<()> {
    if let Ok(found) = target.metadata()
        && !found.is_file()
    {
        let what =
            if found.is_dir() { "is a folder" } else { "is no regular file, and cannot be replaced by one" };
        return Err(Error::Usage(format!("{}: {what}; name a file with --output", target.display())));
    }
    if !force && exists(target) { Err(exists_error(target)) } else { Ok(()) }
}

/// Removes the temporary files of this process and waits for nothing; for signal handling threads. The files'
/// names stay locked, so that the caller can end the process with nothing renamed in between.
pub fn abandon() -> impl Sized {
    let mut list = pending();
    list.drain(..).for_each(|path| remove(&path));
    list
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

fn exists_error(target: &Path) -> Error {
    Error::Usage(format!(
        "{}: exists already; give --force to replace it, or another --output",
        target.display()
    ))
}

fn folder_of(target: &Path) -> &Path {
    match target.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    }
}

fn temp_prefix(target: &Path) -> Result<OsString> {
    let name = target
        .file_name()
        .ok_or_else(|| Error::Usage(format!("{}: is not the name of a file", target.display())))?;
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".tmp");
    Ok(prefix)
}

/// Removes temporary files and folders of the same output that no living process holds locked.
fn remove_stale(folder: &Path, prefix: &OsString) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let ours = name.as_encoded_bytes().strip_prefix(prefix.as_encoded_bytes());
        // The random part that `tempfile` adds: six letters or digits.
        if !ours.is_some_and(|rest| rest.len() == 6 && rest.iter().all(u8::is_ascii_alphanumeric)) {
            continue;
        }
        let locked = match entry.file_type() {
            Ok(kind) if kind.is_file() => entry.path(),
            Ok(kind) if kind.is_dir() => entry.path().join(LOCK),
            _ => continue,
        };
        if File::open(locked).is_ok_and(|file| file.try_lock().is_ok()) {
            remove(&entry.path());
        }
    }
}

/// A new file's permissions: the umask is taken off these. `tempfile` by itself lets only the owner read.
#[cfg(unix)]
fn open_permissions(builder: &mut tempfile::Builder) {
    use std::os::unix::fs::PermissionsExt;
    builder.permissions(fs::Permissions::from_mode(0o666));
}

#[cfg(not(unix))]
fn open_permissions(_: &mut tempfile::Builder) {}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .expect("readable")
            .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn appears_only_at_commit() {
        let folder = tempfile::tempdir().expect("folder");
        let target = folder.path().join("a.bin");
        let mut staged = Staged::create(&target).expect("created");
        staged.write(b"abc").expect("written");
        staged.align(8).expect("aligned");
        staged.write(b"d").expect("written");
        staged.sync().expect("synced");
        assert!(!target.exists());
        commit(vec![staged], false).expect("committed");
        assert_eq!(fs::read(&target).expect("read"), b"abc\0\0\0\0\0d");
        assert_eq!(names(folder.path()), ["a.bin"]);
    }

    #[test]
    fn dropped_is_removed() {
        let folder = tempfile::tempdir().expect("folder");
        let staged = Staged::create(&folder.path().join("a.bin")).expect("created");
        assert_eq!(names(folder.path()).len(), 1);
        drop(staged);
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn existing_files_stay_without_force() {
        let folder = tempfile::tempdir().expect("folder");
        let (data, model) = (folder.path().join("a.data"), folder.path().join("a"));
        fs::write(&model, b"old").expect("written");
        let stage =
            || vec![Staged::create(&data).expect("created"), Staged::create(&model).expect("created")];
        assert!(matches!(commit(stage(), false), Err(Error::Usage(_))));
        assert_eq!(names(folder.path()), ["a"], "the data file is taken back");
        assert_eq!(fs::read(&model).expect("read"), b"old");
        commit(stage(), true).expect("committed");
        assert_eq!(names(folder.path()), ["a", "a.data"]);
        assert_eq!(fs::read(&model).expect("read"), b"");
    }

    #[cfg(unix)]
    #[test]
    fn special_files_are_never_replaced() {
        let folder = tempfile::tempdir().expect("folder");
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).expect("bound");
        for target in [socket.as_path(), folder.path()] {
            for force in [false, true] {
                let error = check_free(target, force).expect_err("it would be replaced").to_string();
                assert!(error.contains("name a file with --output"), "{error}");
            }
        }
        fs::write(folder.path().join("a"), b"").expect("written");
        check_free(&folder.path().join("a"), true).expect("a regular file may be replaced");
    }

    #[test]
    fn folders_go_with_their_files() {
        let folder = tempfile::tempdir().expect("folder");
        let target = folder.path().join("a.bin");
        let stale = folder.path().join(".a.bin.tmpAbCd12");
        fs::create_dir(&stale).expect("made");
        fs::write(stale.join(LOCK), b"").expect("written");
        let first = Folder::create(&target).expect("created");
        assert!(!stale.exists());
        fs::write(first.path().join("b"), b"b").expect("written");
        let second = Folder::create(&target).expect("created");
        assert!(first.path().join("b").exists(), "one in use was taken for a stale one");
        drop((first, second));
        assert!(names(folder.path()).is_empty());
    }

    #[test]
    fn stale_files_go_and_live_ones_stay() {
        let folder = tempfile::tempdir().expect("folder");
        let target = folder.path().join("a.bin");
        fs::write(folder.path().join(".a.bin.tmpAbCd12"), b"stale").expect("written");
        fs::write(folder.path().join(".a.bin.tmpnot-ours"), b"other").expect("written");
        let first = Staged::create(&target).expect("created");
        let second = Staged::create(&target).expect("created");
        assert!(first.temp_path().exists() && second.temp_path().exists());
        drop((first, second));
        assert_eq!(names(folder.path()), [".a.bin.tmpnot-ours"]);
    }
}
