//! The crate in other people's programs: packages outside of this workspace that depend on it by path, built by cargo as anybody
//! would.
#![cfg(all(
    feature = "cuda",
    feature = "emulator",
    target_os = "linux",
    any(target_arch = "x86_64", target_arch = "aarch64")
))]

use object::{Object, ObjectSymbol};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

#[allow(dead_code, reason = "the programs here run by themselves")]
#[path = "../../cust/tests/support/mod.rs"]
mod fake;

/// A package in a folder of its own, with this crate and nothing else as a dependency unless `manifest` adds some.
struct Package {
    folder: tempfile::TempDir,
    name: &'static str,
}

impl Package {
    fn new(name: &'static str, manifest: &str, files: &[(&str, &str)]) -> Package {
        let folder = tempfile::tempdir().unwrap();
        let ferroflash = Path::new(env!("CARGO_MANIFEST_DIR"));
        let write = |file: &str, text: &str| std::fs::write(folder.path().join(file), text).unwrap();
        write(
            "Cargo.toml",
            &format!(
                "[package]\nname = {name:?}\nversion = \"0.0.0\"\nedition = \"2024\"\n{manifest}\n\
                 [dependencies.ferroflash]\npath = {ferroflash:?}\n"
            ),
        );
        // The versions that are downloaded and compiled already.
        std::fs::copy(ferroflash.join("../../Cargo.lock"), folder.path().join("Cargo.lock")).unwrap();
        std::fs::create_dir(folder.path().join("src")).unwrap();
        files.iter().for_each(|(file, text)| write(file, text));
        Package { folder, name }
    }

    /// Builds the package, and gives the folder with the result.
    fn build(&self) -> PathBuf {
        // This workspace's folder, where the kernels are compiled already.
        let target = fake::temporary().parent().unwrap();
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--target-dir"]).arg(target).current_dir(self.folder.path());
        // What the cargo that runs this test, or somebody who works on this crate, has set. How to reach registries stays.
        let leaks = |name: &str| {
            let cargo =
                ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_TARGET_", "CARGO_BUILD_", "CARGO_PROFILE_", "CARGO_ENCODED_"];
            cargo.iter().any(|prefix| name.starts_with(prefix))
                || name == "FERROFLASH_PTX_DIR"
                || name.starts_with("CUDA_")
                || name.starts_with("RUSTFLAGS")
                || name == "LD_LIBRARY_PATH"
        };
        for (name, _) in std::env::vars_os().filter(|(name, _)| leaks(&name.to_string_lossy())) {
            cargo.env_remove(name);
        }
        let output = cargo.output().unwrap();
        assert!(output.status.success(), "{} does not build:\n{}", self.name, text(&output.stderr));
        target.join("debug")
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", text(&output.stderr));
    text(&output.stdout)
}

/// The symbols that this file defines, for itself or for others.
fn defined(file: &Path) -> Vec<String> {
    let bytes = std::fs::read(file).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let symbols = file.symbols().chain(file.dynamic_symbols()).filter(|symbol| symbol.is_definition());
    symbols.map(|symbol| symbol.name().unwrap().to_owned()).collect()
}

/// Those of them that have the name of a driver function: `cuInit`.
fn of_the_driver(symbols: &[String]) -> Vec<&String> {
    let is =
        |name: &str| name.strip_prefix("cu").is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_uppercase()));
    symbols.iter().filter(|name| is(name)).collect()
}

const COMPUTE: &str = r#"
use ferroflash::{Attention, Device, Layout, Shape, Tensor};

pub fn compute() -> Result<f32, ferroflash::Error> {
    // Without a driver this is an error, not a failure to start.
    println!("cuda:0: {}", Device::cuda(0).is_ok());
    let device = Device::emulator()?;
    let q = Tensor::from_slice(&device, &[2f32; 4 * 2 * 8], Shape::new(1, 4, 2, 8), Layout::Bshd)?;
    let output = Attention::new().forward(&q.view(), &q.view(), &q.view())?;
    Ok(output.out.to_vec::<f32>()?.iter().sum())
}
"#;

/// Nothing but a path dependency: no environment variable, no configuration, no CUDA. It computes, and defines no driver symbol.
#[test]
fn a_program() {
    let main = format!("{COMPUTE}\nfn main() {{ println!(\"sum {{}}\", compute().unwrap()); }}");
    let package = Package::new("ferroflash_outside_program", "", &[("src/main.rs", &main)]);
    let program = package.build().join(package.name);
    let folder = package.folder.path();
    assert!(printed(Command::new(&program).current_dir(folder).output().unwrap()).ends_with("sum 128\n"));
    let symbols = defined(&program);
    assert!(symbols.iter().any(|name| name.contains("ferroflash")), "stripped: its symbols say nothing");
    assert!(of_the_driver(&symbols).is_empty(), "{:?}", of_the_driver(&symbols));
}

/// A library for programs in other languages exports what it says, and no driver symbol.
#[test]
fn a_library() {
    let lib = format!(
        "{COMPUTE}\n#[unsafe(no_mangle)]\npub extern \"C\" fn attend() -> f32 {{ compute().unwrap_or(f32::NAN) }}"
    );
    let manifest = "[lib]\ncrate-type = [\"cdylib\"]\n";
    let package = Package::new("ferroflash_outside_library", manifest, &[("src/lib.rs", &lib)]);
    let library = package.build().join(format!("lib{}.so", package.name));
    let symbols = defined(&library);
    assert!(symbols.iter().any(|name| name == "attend"), "{symbols:?}");
    assert!(of_the_driver(&symbols).is_empty(), "{:?}", of_the_driver(&symbols));
    // What the check is about: the stand-in for the driver defines them.
    let driver = defined(&fake::fake_driver(&[]).join("libcuda.so.1"));
    assert!(of_the_driver(&driver).iter().any(|name| *name == "cuInit"), "{driver:?}");
}

/// A program that links the driver itself, with cudarc, finds its GPU before and after ferroflash has opened it, in either order.
#[test]
fn a_program_with_cudarc() {
    let main = r#"
use cudarc::driver::result::{device, init};

fn ours() -> String {
    ferroflash::Device::cuda(0).map_or_else(|error| error.to_string(), |device| device.info().name.clone())
}

fn theirs() -> String {
    let name = || {
        init()?;
        device::get_name(device::get(0)?)
    };
    name().unwrap_or_else(|error| format!("{error:?}"))
}

fn main() {
    let first = std::env::args().nth(1).expect("who is first");
    if first == "theirs" {
        println!("cudarc {}", theirs());
    }
    println!("ferroflash {}", ours());
    println!("cudarc {}", theirs());
}
"#;
    let driver = fake::fake_driver(&[]);
    // Linking takes a libcuda.so, which an installed driver or toolkit brings.
    let build = format!("fn main() {{ println!(\"cargo::rustc-link-search=native={{}}\", {driver:?}); }}");
    let manifest = "[dependencies.cudarc]\nversion = \"0.19\"\ndefault-features = false\n\
                    features = [\"std\", \"driver\", \"dynamic-linking\", \"cuda-12080\"]\n";
    let package = Package::new("ferroflash_outside_cudarc", manifest, &[("src/main.rs", main), ("build.rs", &build)]);
    let program = package.build().join(package.name);
    let run = |first: &str| {
        let mut command = Command::new(&program);
        printed(command.arg(first).env("LD_LIBRARY_PATH", fake::library_path(&driver)).output().unwrap())
    };
    assert_eq!(run("theirs"), "cudarc Fake GPU\nferroflash Fake GPU\ncudarc Fake GPU\n");
    assert_eq!(run("ours"), "ferroflash Fake GPU\ncudarc Fake GPU\n");
}
