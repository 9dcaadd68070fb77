//! Each header compiles by itself, as strictly as its users may want it.

mod common;

use common::compiler::{STRICT, compile, text};
use std::fs;

/// Compiles a file that includes `header` twice and has `code` behind it; checks the syntax only.
fn check(variable: &str, default: &str, header: &str, code: &str, flags: &[&str]) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let extension = if variable == "CC" { "c" } else { "cpp" };
    let file = folder.path().join(format!("use.{extension}"));
    fs::write(&file, format!("#include \"{header}\"\n#include \"{header}\"\n{code}\n")).expect("written");
    let file = file.to_str().expect("a path in UTF-8");
    let arguments: Vec<&str> = STRICT.iter().chain(flags).copied().chain(["-fsyntax-only", file]).collect();
    let output = compile(variable, default, &arguments);
    assert!(output.status.success(), "{header} {flags:?}:\n{}", text(&output));
}

#[test]
fn cpp_headers_stand_alone() {
    let all =
        ["nz_xxh3", "nz_bytes", "nz_header", "nz_parse", "nz_record", "nz_values", "nz_blob", "nz_delta"];
    for header in all.map(|name| format!("{name}.hpp")).into_iter().chain(["nz_layout.h".into()]) {
        for standard in ["-std=c++17", "-std=c++20"] {
            let flags = [standard, "-Wconversion", "-Wshadow", "-fno-exceptions", "-fno-rtti"];
            check("CXX", "c++", &header, "int unused_name_of_this_file;", &flags);
        }
    }
}

#[test]
fn layout_is_plain_c() {
    for standard in ["-std=c99", "-std=c11"] {
        check("CC", "cc", "nz_layout.h", "int head = NZ_HEAD_MANTISSA_BITS;", &[standard]);
    }
}
