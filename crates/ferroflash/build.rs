//! Embeds the PTX of every entry point, and decides whether CUDA devices are part of this build.

use cuda_builder::CudaBuilder;
use kernel_spec::entries;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Symbol and PTX of every entry point.
type Modules = BTreeMap<String, String>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    cuda_cfg();
    let modules = match modules() {
        Ok(modules) => modules,
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(1);
        }
    };
    let missing: Vec<_> = entries().map(|entry| entry.symbol).filter(|&symbol| !modules.contains_key(symbol)).collect();
    assert!(missing.is_empty(), "entry points of kernel_spec without PTX: {}", missing.join(", "));
    embed(&modules, &PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")));
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

/// From the folder that FERROFLASH_PTX_DIR names, else compiled from the kernels' source beside this crate, else from the `ptx/`
/// folder of a packaged release.
fn modules() -> Result<Modules, String> {
    println!("cargo::rerun-if-env-changed=FERROFLASH_PTX_DIR");
    if let Some(folder) = env::var_os("FERROFLASH_PTX_DIR") {
        return from_folder(Path::new(&folder));
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let (kernels, packaged) = (root.join("../kernels"), root.join("ptx"));
    if is_ours(&kernels) {
        return from_source(&kernels);
    }
    if packaged.is_dir() {
        return from_folder(&packaged);
    }
    Err("neither the kernels' source nor a ptx/ folder is beside this crate: name a folder of PTX in FERROFLASH_PTX_DIR".into())
}

/// Whether the folder holds the kernels of this project: in a folder of vendored crates another one of that name may stand there.
fn is_ours(kernels: &Path) -> bool {
    let manifest = fs::read_to_string(kernels.join("Cargo.toml")).unwrap_or_default();
    let mut lines = manifest.lines().map(str::trim_start);
    // No other crate depends on the contract between kernels and host.
    lines.clone().any(|line| line.starts_with("name = \"kernels\""))
        && lines.any(|line| line.starts_with("kernel_spec"))
}

fn from_source(kernels: &Path) -> Result<Modules, String> {
    let archs: BTreeSet<&str> = entries().map(|entry| entry.arch.name()).collect();
    let mut builder = CudaBuilder::new(kernels);
    for arch in archs {
        builder = builder.arch(arch.parse().map_err(|error| format!("{error}"))?);
    }
    // The error is the cure in several lines, so it goes out as it is.
    let output = builder.build().map_err(|error| error.to_string())?;
    output.print_rerun_if_changed();
    for line in output.modules.iter().flat_map(|module| module.warnings.lines()) {
        println!("cargo::warning={line}");
    }
    let kernels = output.modules.into_iter().flat_map(|module| {
        let arch = module.arch.name();
        module.kernels.into_iter().map(move |kernel| (arch, kernel))
    });
    // An entry belongs to the architecture that the list names.
    let listed = |arch: &str, name: &str| entries().any(|entry| entry.symbol == name && entry.arch.name() == arch);
    Ok(kernels.filter(|(arch, kernel)| listed(arch, &kernel.name)).map(|(_, k)| (k.name, k.ptx)).collect())
}

/// `SYMBOL.ptx` for every entry point, in one subfolder per architecture or directly in the folder.
fn from_folder(folder: &Path) -> Result<Modules, String> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut modules = Modules::new();
    for entry in entries() {
        let file = format!("{}.ptx", entry.symbol);
        let paths = [folder.join(entry.arch.name()).join(&file), folder.join(&file)];
        let Some(path) = paths.iter().find(|path| path.is_file()) else {
            return Err(format!("no {file} in {} nor in its {}/", folder.display(), entry.arch.name()));
        };
        let text = fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
        modules.insert(entry.symbol.to_owned(), text);
    }
    Ok(modules)
}

/// Writes each module compressed, and the table that `src/ptx.rs` includes: sorted by symbol, for binary search.
fn embed(modules: &Modules, out: &Path) {
    let mut table = String::from("static EMBEDDED: &[Embedded] = &[\n");
    for (symbol, text) in modules {
        let file = out.join(format!("{symbol}.ptx.z"));
        // Level 6, zlib's own default: higher ones take longer than they save.
        let packed = miniz_oxide::deflate::compress_to_vec_zlib(text.as_bytes(), 6);
        fs::write(&file, packed).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        table += &format!("    Embedded {{ symbol: {symbol:?}, zlib: include_bytes!({file:?}) }},\n");
    }
    table += "];\n";
    let file = out.join("embedded.rs");
    fs::write(&file, table).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
