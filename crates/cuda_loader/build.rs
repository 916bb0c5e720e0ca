//! Gives the linker something to find for cust_raw's `-lcuda` on a machine without CUDA.

use std::path::Path;
use std::{env, fs};

/// An `ar` archive without members.
const EMPTY_ARCHIVE: &[u8] = b"!<arch>\n";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=CUDA_LIBRARY_PATH");
    if env::var_os("CARGO_CFG_TARGET_OS").is_none_or(|os| os != "linux") {
        return;
    }
    // Where the linker finds a real libcuda.so it may take that: the forwarders answer every call, so nothing of it is needed at
    // run time, and other crates that do need it still find it.
    if find_cuda_helper::find_cuda_lib_dirs().iter().any(|dir| dir.join("libcuda.so").is_file()) {
        return;
    }
    let out = env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    let archive = Path::new(&out).join("libcuda.a");
    fs::write(&archive, EMPTY_ARCHIVE).unwrap_or_else(|error| panic!("{}: {error}", archive.display()));
    println!("cargo::rustc-link-search=native={out}");
}
