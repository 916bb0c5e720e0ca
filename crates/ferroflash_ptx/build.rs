//! Makes and packs the PTX of every entry point.

use cuda_builder::{CudaBuilder, PtxVersion};
use kernel_spec::entries;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Symbol and PTX of every entry point.
type Modules = BTreeMap<String, String>;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
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

/// From the folder that FERROFLASH_PTX_DIR names, else compiled from the kernels' source beside this crate.
fn modules() -> Result<Modules, String> {
    println!("cargo::rerun-if-env-changed=FERROFLASH_PTX_DIR");
    if let Some(folder) = env::var_os("FERROFLASH_PTX_DIR") {
        return from_folder(Path::new(&folder));
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    from_source(&root.join("../kernels"))
}

fn from_source(kernels: &Path) -> Result<Modules, String> {
    let mut builder = CudaBuilder::new(kernels);
    for entry in entries() {
        let arch = entry.arch.name().parse().map_err(|error| format!("{error}"))?;
        builder = builder.arch(arch);
        if let Some((major, minor)) = entry.arch.ptx_version() {
            builder = builder.ptx_version(arch, PtxVersion::new(major, minor).map_err(|error| format!("{error}"))?);
        }
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

/// Writes each module compressed, and the table that `src/lib.rs` includes: sorted by symbol, for binary search. It names files beside
/// itself, so that all of them can move.
fn embed(modules: &Modules, out: &Path) {
    let mut table =
        String::from("/// Every entry point, in the order of their names.\npub static MODULES: &[Module] = &[\n");
    for (symbol, text) in modules {
        let name = format!("{symbol}.ptx.z");
        let file = out.join(&name);
        // Level 6, zlib's own default: higher ones take longer than they save.
        let packed = miniz_oxide::deflate::compress_to_vec_zlib(text.as_bytes(), 6);
        fs::write(&file, packed).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        table += &format!("    Module {{ symbol: {symbol:?}, zlib: include_bytes!({name:?}) }},\n");
    }
    table += "];\n";
    let file = out.join("modules.rs");
    fs::write(&file, table).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
