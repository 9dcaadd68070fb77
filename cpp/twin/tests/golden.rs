//! The golden files in `tests/golden` of the repository: `X.nzb` decodes to the bytes of `X.bin`; in layers, with the first
//! `d` of them to `X.d.bin`; a delta, together with `X.base`.

use std::fs;
use std::path::{Path, PathBuf};

use nz_cpp_twin::{Result, decode, decode_delta, decode_to};

/// The blobs in a folder of golden files.
fn blobs(folder: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(folder);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let paths = entries.map(|entry| entry.expect("readable folder").path());
    let blobs = paths.filter(|path| path.extension().is_some_and(|extension| extension == "nzb"));
    let blobs: Vec<_> = blobs.map(|path| (path.clone(), read(&path))).collect();
    assert!(!blobs.is_empty(), "no golden files in {}", folder.display());
    blobs
}

fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn check(decoded: Result<Vec<u8>>, expected: &Path) {
    let decoded = decoded.unwrap_or_else(|e| panic!("{}: {e}", expected.display()));
    assert!(decoded == read(expected), "{}", expected.display());
}

#[test]
fn golden_files_decode() {
    for (path, blob) in ["", "codebook", "integer"].into_iter().flat_map(blobs) {
        check(decode(&blob), &path.with_extension("bin"));
    }
}

#[test]
fn golden_layers_decode_to_every_depth() {
    for (path, blob) in blobs("layers") {
        let depths = (0..).take_while(|depth| path.with_extension(format!("{depth}.bin")).exists()).count();
        assert!(depths >= 2, "{}: no layers", path.display());
        for depth in 0..depths {
            check(decode_to(&blob, depth), &path.with_extension(format!("{depth}.bin")));
        }
        check(decode(&blob), &path.with_extension(format!("{}.bin", depths - 1)));
    }
}

#[test]
fn golden_deltas_decode() {
    for (path, blob) in blobs("delta") {
        check(decode_delta(&blob, &read(&path.with_extension("base"))), &path.with_extension("bin"));
        assert!(decode(&blob).is_err(), "{}: decoded without its base", path.display());
    }
}
