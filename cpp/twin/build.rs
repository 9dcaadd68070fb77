//! Compiles the bridge to the headers in `cpp/include`. Needs a C++17 compiler and nothing else.

fn main() {
    cxx_build::bridge("src/lib.rs")
        .file("src/bridge.cpp")
        .include("../include")
        .std("c++17")
        .warnings(true) // -Wall
        .extra_warnings(true) // -Wextra
        .warnings_into_errors(true)
        .compile("nz_cpp_twin");
    for path in ["src/lib.rs", "src/bridge.hpp", "src/bridge.cpp", "../include"] {
        println!("cargo::rerun-if-changed={path}");
    }
}
