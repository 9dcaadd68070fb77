//! Blobs on disk, so that the next session with the same weights only maps them.
//!
//! A blob's file is named by what goes into it: the content of the weight, its shape and layout, the precision and
//! the format's version. Files appear whole or not at all (they are renamed to their names), so that any number of
//! processes may share a folder.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::Mmap;

use super::slot::Blob;
use crate::codec::Decoder;
use crate::format::{Layout, TensorSpec, VERSION};
use crate::ort::fence::{Failure, Result};
use crate::ort::weight::verify_payload;

/// The name of something in a store: a hash of all that it depends on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(blake3::Hash);

/// The hash of a weight's content, made on the current rayon threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Content(blake3::Hash);

impl Content {
    pub fn of(bytes: &[u8]) -> Self {
        Content(blake3::Hasher::new().update_rayon(bytes).finalize())
    }
}

/// Collects what a thing in the store depends on.
pub(super) struct KeyMaker(blake3::Hasher);

impl KeyMaker {
    /// `kind` tells things with the same parts apart.
    pub fn new(kind: &str) -> Self {
        let mut maker = KeyMaker(blake3::Hasher::new());
        maker.text(kind);
        maker.number(VERSION.0.into());
        maker.number(VERSION.1.into());
        maker
    }

    pub fn number(&mut self, number: u64) {
        self.0.update(&number.to_le_bytes());
    }

    pub fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.0.update(text.as_bytes());
    }

    /// A weight: its content and all that the blob's bytes depend on beside the precision.
    pub fn weight(&mut self, content: Content, spec: &TensorSpec, block_len: u32) {
        self.0.update(content.0.as_bytes());
        self.text(spec.dtype.name());
        self.number(spec.shape.len() as u64);
        spec.shape.iter().for_each(|&d| self.number(d));
        self.number(match spec.layout {
            Layout::RowMajor => 0,
            Layout::ColumnTiles { tile } => u64::from(tile),
        });
        self.number(block_len.into());
    }

    pub fn finish(self) -> Key {
        Key(self.0.finalize())
    }
}

/// A folder of blobs, and of decisions about them.
pub(super) struct Store {
    folder: PathBuf,
    verify: bool,
}

impl Store {
    /// The store in `folder`, which is made if it is not there.
    pub fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).map_err(|error| {
            let value = folder.display();
            Failure::invalid(format!(
                "NzExecutionProvider: option cache_dir is '{value}': it must be a folder that can be written to ({error})"
            ))
        })?;
        Ok(Store { folder, verify: verify_payload()? })
    }

    /// The blob of that name, if it is there, whole, and of a tensor like `spec`.
    pub fn load(&self, key: &Key, spec: &TensorSpec) -> Option<(Decoder, Blob)> {
        let blob = self.map(&self.path(key, "nzb"))?;
        let open = if self.verify { Decoder::open } else { Decoder::open_unverified };
        // A damaged file is as good as none: it is made anew.
        let decoder = open(blob.as_slice()).ok().filter(|decoder| decoder.header().spec == *spec)?;
        Some((decoder, blob))
    }

    /// Keeps `bytes` under that name, and gives them back: mapped, so that all processes share them, or where the
    /// folder does not take them as they are.
    pub fn save(&self, key: &Key, bytes: Vec<u8>) -> Blob {
        let path = self.path(key, "nzb");
        let mapped = self.write(&path, &bytes).ok().and_then(|()| self.map(&path));
        match mapped {
            // Its pages are left alone: they are as good as the bytes just written, and would be a second copy of them.
            Some(mapped) if mapped.as_slice().len() == bytes.len() => mapped,
            _ => Blob::Owned(bytes),
        }
    }

    /// Decisions kept under that name: one byte a weight.
    pub fn load_decisions(&self, key: &Key, count: usize) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.path(key, "plan")).ok()?;
        let sum = bytes.split_off(bytes.len().checked_sub(blake3::OUT_LEN)?);
        (bytes.len() == count
            && blake3::hash(&bytes) == sum.as_slice().try_into().map(blake3::Hash::from_bytes).ok()?)
        .then_some(bytes)
    }

    /// Keeps decisions under that name. A folder that does not take them is no reason to fail.
    pub fn save_decisions(&self, key: &Key, decisions: &[u8]) {
        let sum = blake3::hash(decisions);
        self.write(&self.path(key, "plan"), &[decisions, sum.as_bytes()].concat()).ok();
    }

    fn path(&self, key: &Key, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", key.0.to_hex()))
    }

    fn map(&self, path: &Path) -> Option<Blob> {
        let file = File::open(path).ok()?;
        // SAFETY: files of a store are never written to once they have their name; decoding stays inside the blob
        // whatever its bytes become. A user who shortens one takes the process down, as with a model's own data.
        unsafe { Mmap::map(&file) }.ok().map(Blob::Mapped)
    }

    fn write(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let temporary = path.with_extension(format!("{process}-{count}.tmp"));
        let written = File::create_new(&temporary)
            .and_then(|mut file| file.write_all(bytes))
            .and_then(|()| fs::rename(&temporary, path));
        if written.is_err() {
            fs::remove_file(&temporary).ok();
        }
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{EncodeOptions, encode};
    use crate::format::Dtype;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("nz-store-{}-{name}", std::process::id()));
        fs::remove_dir_all(&folder).ok();
        folder
    }

    fn blob() -> (TensorSpec, Vec<u8>, Key) {
        let bytes: Vec<u8> = (0..4096).flat_map(|i| (i as f32 * 1e-3).sin().to_le_bytes()).collect();
        let spec = TensorSpec::row_major(Dtype::F32, &[64, 64]);
        let blob = encode(&bytes, &spec, &EncodeOptions::default()).expect("encodes");
        let mut maker = KeyMaker::new("blob");
        maker.weight(Content::of(&bytes), &spec, 4096);
        (spec, blob, maker.finish())
    }

    #[test]
    fn blobs_come_back_and_damaged_ones_do_not() {
        let folder = folder("blobs");
        let store = Store::open(folder.clone()).expect("made");
        let (spec, bytes, key) = blob();
        assert!(store.load(&key, &spec).is_none());
        assert!(matches!(store.save(&key, bytes.clone()), Blob::Mapped(_)));
        let (_, found) = store.load(&key, &spec).expect("kept");
        assert_eq!(found.as_slice(), bytes);
        assert!(store.load(&key, &TensorSpec::row_major(Dtype::F32, &[4096])).is_none());

        let path = store.path(&key, "nzb");
        for damage in [0, bytes.len() - 1] {
            let mut damaged = bytes.clone();
            damaged[damage] ^= 1;
            fs::write(&path, damaged).expect("written");
            assert!(store.load(&key, &spec).is_none(), "byte {damage}");
        }
        fs::write(&path, &bytes[..100]).expect("written");
        assert!(store.load(&key, &spec).is_none());
        // Saved again it is whole, and nothing else lies about.
        store.save(&key, bytes);
        assert!(store.load(&key, &spec).is_some());
        assert_eq!(fs::read_dir(&folder).expect("there").count(), 1);
        fs::remove_dir_all(folder).ok();
    }

    #[test]
    fn decisions_come_back_whole_or_not_at_all() {
        let folder = folder("plans");
        let store = Store::open(folder.clone()).expect("made");
        let (.., key) = blob();
        store.save_decisions(&key, &[1, 2, 3]);
        assert_eq!(store.load_decisions(&key, 3), Some(vec![1, 2, 3]));
        assert_eq!(store.load_decisions(&key, 4), None);
        let path = store.path(&key, "plan");
        let mut bytes = fs::read(&path).expect("there");
        bytes[1] ^= 1;
        fs::write(&path, &bytes).expect("written");
        assert_eq!(store.load_decisions(&key, 3), None);
        fs::write(&path, [1]).expect("written");
        assert_eq!(store.load_decisions(&key, 3), None);
        fs::remove_dir_all(folder).ok();
    }

    #[test]
    fn keys_depend_on_all_that_a_blob_depends_on() {
        let spec = TensorSpec::row_major(Dtype::F32, &[2, 3]);
        let key = |content: &[u8], spec: &TensorSpec, block_len, precision| {
            let mut maker = KeyMaker::new("blob");
            maker.weight(Content::of(content), spec, block_len);
            maker.number(precision);
            maker.finish()
        };
        let base = key(b"a", &spec, 4096, 1);
        assert_eq!(base, key(b"a", &spec, 4096, 1));
        let others = [
            key(b"b", &spec, 4096, 1),
            key(b"a", &TensorSpec::row_major(Dtype::F32, &[3, 2]), 4096, 1),
            key(b"a", &TensorSpec::row_major(Dtype::F16, &[2, 3]), 4096, 1),
            key(b"a", &TensorSpec::column_tiles(Dtype::F32, 2, 3, 128), 4096, 1),
            key(b"a", &spec, 1024, 1),
            key(b"a", &spec, 4096, 2),
        ];
        assert!(others.iter().all(|other| *other != base));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let file = folder("file");
        fs::write(&file, "x").expect("written");
        let failure = Store::open(file.join("below")).err().expect("a file is no folder");
        assert!(format!("{failure:?}").contains("cache_dir is"), "{failure:?}");
        fs::remove_file(file).ok();
    }
}
