//! What the build scripts of `ferroflash_ptx_*` do, each for the entry points that are compiled together: makes their PTX and packs it.

use cuda_builder::{CudaBuilder, PtxVersion};
pub use kernel_spec::Unit;
use lzma_rust2::{DICT_SIZE_MIN, LzmaOptions, LzmaWriter};
use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::{env, fs, thread};

/// Symbol and PTX of every entry point.
type Modules = BTreeMap<String, String>;

/// Writes the packs of a unit and the table of its modules to the folder of a build script's output. What goes wrong is written to standard error, and ends
/// the build script.
pub fn main(unit: Unit) {
    let modules = match modules(unit) {
        Ok(modules) => modules,
        Err(message) => {
            eprintln!("{message}");
            std::process::exit(1);
        }
    };
    let symbols = unit.entries().map(|entry| entry.symbol);
    let missing: Vec<_> = symbols.filter(|&symbol| !modules.contains_key(symbol)).collect();
    assert!(missing.is_empty(), "entry points of kernel_spec without PTX: {}", missing.join(", "));
    embed(&modules, &PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR")));
}

/// From the folder that FERROFLASH_PTX_DIR names, else compiled from the kernels' source beside the crate.
fn modules(unit: Unit) -> Result<Modules, String> {
    println!("cargo::rerun-if-env-changed=FERROFLASH_PTX_DIR");
    if let Some(folder) = env::var_os("FERROFLASH_PTX_DIR") {
        return from_folder(unit, Path::new(&folder));
    }
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    from_source(unit, &root.join("../kernels"))
}

fn from_source(unit: Unit, kernels: &Path) -> Result<Modules, String> {
    let mut builder = CudaBuilder::new(kernels).default_features(false).feature(unit.feature());
    for entry in unit.entries() {
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
    let listed = |arch: &str, name: &str| unit.entries().any(|entry| entry.symbol == name && entry.arch.name() == arch);
    Ok(kernels.filter(|(arch, kernel)| listed(arch, &kernel.name)).map(|(_, k)| (k.name, k.ptx)).collect())
}

/// `SYMBOL.ptx` for every entry point of the unit, in one subfolder per architecture or directly in the folder.
fn from_folder(unit: Unit, folder: &Path) -> Result<Modules, String> {
    println!("cargo::rerun-if-changed={}", folder.display());
    let mut modules = Modules::new();
    for entry in unit.entries() {
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

/// Writes the packs, and the table that the crate's `src/lib.rs` includes: sorted by symbol, for binary search. It names files beside itself, so that
/// all of them can move.
fn embed(modules: &Modules, out: &Path) {
    let packs = packs(modules);
    let name = |pack: &str| format!("{pack}.ptx.lzma");
    let next = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((pack, symbols)) = packs.iter().nth(next.fetch_add(1, Relaxed)) {
                    let text: String = symbols.iter().map(|&symbol| modules[symbol].as_str()).collect();
                    write(&out.join(name(pack)), &compress(text.as_bytes()));
                }
            });
        }
    });
    let mut table = String::from(
        "/// Texts that are much alike, together: UTF-8 in the format of .lzma files.\nstatic PACKS: &[&[u8]] = &[\n",
    );
    for pack in packs.keys() {
        table += &format!("    include_bytes!({:?}),\n", name(pack));
    }
    table += "];\n/// Every entry point in the order of their names, a module with it alone, so that a device compiles only what it runs: its name, as in\n\
              /// `kernel_spec::Entry::symbol`, the pack that holds its text, and where that starts and ends in the unpacked bytes.\n\
              pub static MODULES: &[(&str, &[u8], usize, usize)] = &[\n";
    for (symbol, text) in modules {
        let pack = pack_of(symbol);
        let index = packs.keys().position(|key| *key == pack).expect("packs are of these modules");
        let before = packs[&pack].iter().take_while(|&other| other != symbol);
        let start: usize = before.map(|&other| modules[other].len()).sum();
        let end = start + text.len();
        table += &format!("    ({symbol:?}, PACKS[{index}], {start}, {end}),\n");
    }
    table += "];\n";
    write(&out.join("modules.rs"), table.as_bytes());
}

/// Packs by their names, with the symbols of their modules.
fn packs(modules: &Modules) -> BTreeMap<String, Vec<&str>> {
    let mut packs: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for symbol in modules.keys() {
        packs.entry(pack_of(symbol)).or_default().push(symbol);
    }
    packs
}

/// The pack of an entry: what is left of its name without what entries that are much alike differ in. f16 and bf16 of the same row differ in the names of
/// types; variants of a kernel, whose names go on behind the head dim, and rows of an operator, whose names end in a tile (`128x2`), in parts of their text. The
/// second of a pack costs little, and whoever wants one unpacks at most all, some megabytes in some hundredths of a second. The registry takes 10 MiB: packs
/// of pairs alone are a twelfth more than these.
fn pack_of(symbol: &str) -> String {
    let name = symbol.replace("_bf16", "_16").replace("_f16", "_16");
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut parts: Vec<&str> = name.split('_').collect();
    let is_dim = |part: &&str| part.strip_prefix('d').is_some_and(is_number);
    if let Some(dim) = parts.iter().position(is_dim) {
        parts.truncate(dim + 1);
    } else if parts.last().and_then(|last| last.split_once('x')).is_some_and(|(a, b)| is_number(a) && is_number(b)) {
        parts.pop();
    }
    parts.join("_")
}

fn compress(text: &[u8]) -> Vec<u8> {
    // Level 6 makes packs a fifth smaller than level 1, and takes eight times as long: for what is released, which is compiled here.
    let is_release = env::var_os("PROFILE").is_some_and(|profile| profile == "release");
    let level = if is_release && env::var_os("FERROFLASH_PTX_DIR").is_none() { 6 } else { 1 };
    let mut options = LzmaOptions::with_preset(level);
    // Text is aligned to nothing, and long repetitions are what packs are for.
    options.pb = 0;
    if level > 1 {
        options.nice_len = LzmaOptions::NICE_LEN_MAX;
    }
    // All of the text can be referred to, and unpacking takes no more memory than that.
    options.dict_size = u32::try_from(text.len()).expect("PTX of some entries").max(DICT_SIZE_MIN);
    let bytes = text.len() as u64;
    let packed = LzmaWriter::new_use_header(Vec::new(), &options, Some(bytes)).and_then(|mut writer| {
        writer.write_all(text)?;
        writer.finish()
    });
    packed.expect("a vector takes everything")
}

fn write(file: &Path, bytes: &[u8]) {
    fs::write(file, bytes).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
}
