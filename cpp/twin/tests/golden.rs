//! The golden files in `tests/golden` of the repository: `X.nzb` decodes to the bytes of `X.bin`.

use std::fs;
use std::path::Path;

#[test]
fn golden_files_decode() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut seen = 0;
    for path in entries.map(|entry| entry.expect("readable folder").path()) {
        if path.extension().is_none_or(|extension| extension != "nzb") {
            continue;
        }
        let blob = fs::read(&path).expect("readable file");
        let expected = fs::read(path.with_extension("bin")).expect("the expected bytes beside the blob");
        let decoded = nz_cpp_twin::decode(&blob).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        assert!(decoded == expected, "{}", path.display());
        seen += 1;
    }
    assert!(seen > 0, "no golden files in {}", folder.display());
}
