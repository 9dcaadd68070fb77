//! The reader under AddressSanitizer and UndefinedBehaviorSanitizer, as a program of its own
//! (`cpp/tools/decode_file.cpp`), over thousands of broken blobs.

mod common;

use common::compiler::{STRICT, compile, cpp_folder, text};
use common::deltas::{DeltaPlan, tuned, write_delta};
use common::writer::{Plan, write};
use common::{
    DTYPES, FILLS, Rng, checksum_at, encode_in_books, field, payload, reseal_header, reseal_payload, specs,
    tensor,
};
use nz_onnx::codec::{self, EncodeOptions, GridStep};
use nz_onnx::format::{Dtype, TensorSpec};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const SANITIZERS: &str = "-fsanitize=address,undefined";

/// Whether the compiler can link the sanitizers at all.
fn sanitizers_installed(folder: &Path) -> bool {
    let (source, program) = (folder.join("empty.cpp"), folder.join("empty"));
    fs::write(&source, "int main() { return 0; }\n").expect("written");
    let path = |p: &Path| p.to_str().expect("a path in UTF-8").to_owned();
    let output = compile("CXX", "c++", &[SANITIZERS, &path(&source), "-o", &path(&program)]);
    output.status.success() && Command::new(&program).status().is_ok_and(|status| status.success())
}

fn build(folder: &Path) -> PathBuf {
    let program = folder.join("decode_file");
    let source = cpp_folder().join("tools/decode_file.cpp");
    let paths = [source.to_str().expect("UTF-8"), "-o", program.to_str().expect("UTF-8")];
    let flags = ["-std=c++17", "-g", "-O1", SANITIZERS, "-fno-sanitize-recover=all"];
    let arguments: Vec<&str> = STRICT.into_iter().chain(flags).chain(paths).collect();
    let output = compile("CXX", "c++", &arguments);
    assert!(output.status.success(), "{}", text(&output));
    program
}

/// One broken blob: raw, or with the checksums in front of the change made right so that it is reached.
fn damage(blob: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut broken = blob.to_vec();
    match rng.below(6) {
        0 => broken.truncate(rng.below(blob.len())),
        1 => {
            let at = rng.below(blob.len());
            broken[at] ^= 1 << rng.below(8);
        }
        2 | 3 => {
            let tables = checksum_at(blob).expect("a whole blob");
            for _ in 0..1 + rng.below(3) {
                broken[field::DTYPE + rng.below(tables - field::DTYPE)] = rng.next() as u8;
            }
            reseal_header(&mut broken);
        }
        4 => {
            // Runs of set bits are escapes: the tails outgrow their records, the last one the whole blob.
            let range = payload(blob);
            let start = range.start + rng.below(range.len());
            broken[start..range.end].fill(0xff);
            reseal_payload(&mut broken);
        }
        _ => {
            let range = payload(blob);
            for _ in 0..1 + rng.below(8) {
                broken[range.start + rng.below(range.len())] = rng.next() as u8;
            }
            reseal_payload(&mut broken);
        }
    }
    broken
}

/// Writes whole and broken blobs to `folder`; the paths, each with whether it has to decode.
fn write_blobs(folder: &Path) -> Vec<(PathBuf, bool)> {
    let mut rng = Rng(40);
    let mut files = vec![];
    let mut save = |bytes: Vec<u8>, whole: bool| {
        let path = folder.join(format!("{}.nzb", files.len()));
        fs::write(&path, bytes).expect("written");
        files.push((path, whole));
    };
    for spec in DTYPES.into_iter().flat_map(specs) {
        for fill in FILLS {
            let src = tensor(fill, spec.dtype, spec.elements().expect("small") as usize, &mut rng);
            let blob = write(&src, &spec, &Plan::random(&mut rng), &mut rng);
            for _ in 0..20 {
                save(damage(&blob, &mut rng), false);
            }
            save(blob, true);
        }
    }
    for spec in [Dtype::I8, DTYPES[0]].map(|dtype| TensorSpec::column_tiles(dtype, 37, 192, 128)) {
        for blob in of_later_versions(&spec, &mut rng) {
            for _ in 0..100 {
                save(damage(&blob, &mut rng), false);
            }
            save(blob, true);
        }
    }
    files
}

/// Blobs of integers, or of codebooks and in layers.
fn of_later_versions(spec: &TensorSpec, rng: &mut Rng) -> Vec<Vec<u8>> {
    let options = EncodeOptions { block_len: 320, ..Default::default() };
    let src = tensor(FILLS[0], spec.dtype, spec.elements().expect("small") as usize, rng);
    let plain = codec::encode(&src, spec, &options).expect("encodes");
    if spec.dtype == Dtype::I8 {
        return vec![plain];
    }
    let layers = codec::layer(&plain, &[3, 12]).expect("whole").expect("bits for layers");
    vec![layers, encode_in_books(&src, spec, &options, GridStep { cell: 1, raw_bits: 1 }).expect("weights")]
}

/// Whole and broken deltas to a blob, with the blob, as files.
fn write_deltas(folder: &Path) -> (PathBuf, Vec<(PathBuf, bool)>) {
    let mut rng = Rng(42);
    let spec = TensorSpec::column_tiles(DTYPES[2], 37, 201, 128);
    let base = tensor(FILLS[0], spec.dtype, spec.elements().expect("small") as usize, &mut rng);
    let blob = codec::encode(&base, &spec, &EncodeOptions::default()).expect("encodes");
    let path = folder.join("base.nzb");
    fs::write(&path, &blob).expect("written");
    let mut files = vec![];
    for i in 0..20 {
        let delta = write_delta(&tuned(&base, spec.dtype, &mut rng), &blob, &DeltaPlan::random(&mut rng));
        for j in 0..40 {
            let bytes = if j == 0 { delta.clone() } else { damage(&delta, &mut rng) };
            files.push((folder.join(format!("{i}.{j}.delta")), j == 0));
            fs::write(&files[files.len() - 1].0, bytes).expect("written");
        }
    }
    (path, files)
}

#[test]
fn broken_blobs_under_sanitizers() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    if !sanitizers_installed(folder.path()) {
        eprintln!("SKIPPED: the C++ compiler cannot link {SANITIZERS}; install its sanitizer runtimes");
        return;
    }
    let program = build(folder.path());
    let verdicts = check(&program, &[], &write_blobs(folder.path()));
    // Damage of every kind has been met.
    for verdict in ["ok", "truncated", "corrupt", "unsupported"] {
        assert!(verdicts.contains_key(verdict), "no blob was {verdict}: {verdicts:?}");
    }
    let (base, deltas) = write_deltas(folder.path());
    let verdicts = check(&program, &["--base", base.to_str().expect("UTF-8")], &deltas);
    assert!(["ok", "corrupt"].iter().all(|&verdict| verdicts.contains_key(verdict)), "{verdicts:?}");
}

/// How many of the files get each verdict; those that are whole must be ok.
fn check(program: &Path, arguments: &[&str], files: &[(PathBuf, bool)]) -> HashMap<String, usize> {
    let mut verdicts: HashMap<String, usize> = HashMap::new();
    for batch in files.chunks(200) {
        let paths = batch.iter().map(|f| &f.0);
        let output = Command::new(program).args(arguments).arg("--check").args(paths).output().expect("runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let stdout = String::from_utf8(output.stdout).expect("plain text");
        assert_eq!(stdout.lines().count(), batch.len());
        for (line, (path, whole)) in stdout.lines().zip(batch) {
            let verdict = line.split('\t').next().unwrap_or_default();
            assert!(!whole || verdict == "ok", "{}: {line}", path.display());
            *verdicts.entry(verdict.to_owned()).or_default() += 1;
        }
    }
    verdicts
}

/// The program that embedders start from: one blob in, one file of weights out.
#[test]
fn decode_file_writes_the_weights() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (program, source) = (folder.path().join("decode_file"), cpp_folder().join("tools/decode_file.cpp"));
    let paths = [source.to_str().expect("UTF-8"), "-o", program.to_str().expect("UTF-8")];
    let built = compile("CXX", "c++", &["-std=c++17", paths[0], paths[1], paths[2]]);
    assert!(built.status.success(), "{}", text(&built));

    let mut rng = Rng(41);
    let spec = specs(DTYPES[1]).pop().expect("specs");
    let src = tensor(FILLS[0], spec.dtype, spec.elements().expect("small") as usize, &mut rng);
    let mut blob = write(&src, &spec, &Plan::random(&mut rng), &mut rng);
    let (input, output) = (folder.path().join("a.nzb"), folder.path().join("a.bin"));
    fs::write(&input, &blob).expect("written");
    let status = Command::new(&program).args([&input, &output]).status().expect("runs");
    assert_eq!(status.code(), Some(0));
    assert!(fs::read(&output).expect("read") == src);

    let at = payload(&blob).start;
    blob[at] ^= 1;
    fs::write(&input, &blob).expect("written");
    let refused = Command::new(&program).args([&input, &output]).output().expect("runs");
    assert_eq!(refused.status.code(), Some(4));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("payload checksum"));
}
