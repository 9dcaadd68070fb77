//! Compiles the bridges to the headers in `cpp/include` and to the CUDA kernels in `cpp/cuda`. Needs a C++17 compiler and
//! nothing else.

fn main() {
    cxx_build::bridge("src/lib.rs")
        .file("src/bridge.cpp")
        .include("../include")
        .std("c++17")
        .warnings(true) // -Wall
        .extra_warnings(true) // -Wextra
        .warnings_into_errors(true)
        .compile("nz_cpp_twin");
    cxx_build::bridge("src/simt.rs")
        .file("src/simt.cpp")
        .include("../include")
        .include("../simt")
        .include("../cuda")
        .std("c++17")
        .opt_level(2) // the kernels are slow enough on a CPU in a debug build of the tests
        .flag("-fno-strict-aliasing") // nor is nvcc strict
        .flag("-Wno-unknown-pragmas") // those that unroll loops
        .warnings(true)
        .extra_warnings(true)
        .warnings_into_errors(true)
        .compile("nz_cpp_twin_simt");
    for path in ["src", "../include", "../simt", "../cuda"] {
        println!("cargo::rerun-if-changed={path}");
    }
}
