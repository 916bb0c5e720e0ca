//! Embeds the PTX of every variant, and decides whether CUDA devices are part of this build.

use attn_spec::VARIANTS;
use std::path::{Path, PathBuf};
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    cuda_cfg();
    let modules = modules();
    embed(&modules, &PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")));
}

/// `cfg(cuda)`: the feature is on and the platform is one that cuda_loader has forwarders for.
fn cuda_cfg() {
    println!("cargo::rustc-check-cfg=cfg(cuda)");
    let target = |key: &str| env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    let supported = target("OS") == "linux" && ["x86_64", "aarch64"].contains(&target("ARCH").as_str());
    if env::var_os("CARGO_FEATURE_CUDA").is_some() && supported {
        println!("cargo::rustc-cfg=cuda");
    }
}

/// Symbol and PTX of every entry point: from FERROFLASH_PTX_DIR, or from `ptx/` of a packaged release.
fn modules() -> Vec<(String, Vec<u8>)> {
    println!("cargo::rerun-if-env-changed=FERROFLASH_PTX_DIR");
    let packaged = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR")).join("ptx");
    let named = env::var_os("FERROFLASH_PTX_DIR").map(PathBuf::from);
    match named.or_else(|| packaged.is_dir().then_some(packaged)) {
        Some(folder) => from_folder(&folder),
        None => Vec::new(),
    }
}

/// `SYMBOL.ptx` for every variant, directly in the folder or in one subfolder per architecture.
fn from_folder(folder: &Path) -> Vec<(String, Vec<u8>)> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let read = |variant: &attn_spec::Variant| {
        let file = format!("{}.ptx", variant.symbol);
        let paths = [folder.join(variant.arch.name()).join(&file), folder.join(&file)];
        let path = paths.iter().find(|path| path.is_file()).unwrap_or_else(|| {
            panic!("no {file} in {} nor in its {}/", folder.display(), variant.arch.name());
        });
        let text = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        (variant.symbol.to_owned(), text)
    };
    VARIANTS.iter().map(read).collect()
}

/// Writes each module compressed, and the table that `src/ptx.rs` includes.
fn embed(modules: &[(String, Vec<u8>)], out: &Path) {
    let mut sorted: Vec<_> = modules.iter().collect();
    sorted.sort();
    let mut table = String::from("static EMBEDDED: &[Embedded] = &[\n");
    for (symbol, text) in sorted {
        let file = out.join(format!("{symbol}.ptx.z"));
        // Level 6 is where more effort stops paying: PTX shrinks to about a tenth either way.
        let packed = miniz_oxide::deflate::compress_to_vec_zlib(text, 6);
        fs::write(&file, packed).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        table += &format!("    Embedded {{ symbol: {symbol:?}, zlib: include_bytes!({file:?}) }},\n");
    }
    table += "];\n";
    let file = out.join("embedded.rs");
    fs::write(&file, table).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
