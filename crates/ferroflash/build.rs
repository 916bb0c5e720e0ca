//! Decides whether CUDA devices are part of this build.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    cuda_cfg();
}

/// `cfg(cuda)`: the feature is on and the platform is one that NVIDIA has a driver for.
fn cuda_cfg() {
    println!("cargo::rustc-check-cfg=cfg(cuda)");
    let target = |key: &str| env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    let supported = match target("OS").as_str() {
        "linux" => ["x86_64", "aarch64"].contains(&target("ARCH").as_str()),
        "windows" => target("ARCH") == "x86_64",
        _ => false,
    };
    if env::var_os("CARGO_FEATURE_CUDA").is_some() && supported {
        println!("cargo::rustc-cfg=cuda");
    }
}
