//! `bundle`: one folder for a GPU machine without Rust.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use lexopt::Arg;

use crate::{arguments, build, output, program, setup, wheel, workspace};

const HELP: &str = "\
Usage: cargo xtask bundle [--out DIR]

Puts the `ferroflash` program, the tests as a program, the kernels' PTX and the scripts that compare with other libraries into one
folder. It runs on a machine with an NVIDIA driver and no Rust. Where there is a python3, the Python wheel goes into it, too.

Options
  --out DIR    the folder; what a bundle holds is replaced in it [dist/ferroflash-bundle]
";

/// Small enough for an upload in seconds and for any attachment limit in use.
const MAX_BYTES: u64 = 60_000_000;

pub(crate) fn run(rest: Vec<OsString>) -> Result<()> {
    let mut out = workspace::root().join("dist/ferroflash-bundle");
    let mut parser = arguments::parser(rest);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("out") => out = std::path::absolute(PathBuf::from(parser.value()?))?,
            Arg::Long("help") | Arg::Short('h') => {
                return output::print(HELP);
            }
            other => return Err(arguments::unexpected(other, HELP)),
        }
    }
    setup::require_rust_src()?;
    workspace::step("programs");
    let program = program::build()?;
    let tests = program::executable(&["test", "--no-run", "--package", "ferroflash_tests", "--test", "it"])?;

    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    for old in ["ptx", "peers"] {
        let old = out.join(old);
        if old.exists() {
            fs::remove_dir_all(&old).with_context(|| old.display().to_string())?;
        }
    }
    install(&program, &out.join("ferroflash"))?;
    install(&tests, &out.join("ferroflash-tests"))?;
    build::kernels(Some(out.join("ptx")))?;
    let peers = workspace::root().join("tests/peers");
    copy_folder(&peers, &out.join("peers"))?;
    wheel::for_bundle(&out)?;
    let glibc = [&program, &tests].into_iter().map(|path| glibc(path)).collect::<Result<Vec<_>>>()?;
    let glibc = glibc.into_iter().max().unwrap_or((0, 0));
    fs::write(out.join("README.txt"), readme(glibc))?;

    let bytes = size(&out)?;
    let (folder, megabytes) = (out.display(), bytes as f64 / 1e6);
    output::print(&format!("{folder}: {megabytes:.1} MB, needs glibc {}.{} or later\n", glibc.0, glibc.1))?;
    if bytes > MAX_BYTES {
        bail!("the bundle is larger than {} MB", MAX_BYTES / 1_000_000);
    }
    Ok(())
}

fn readme(glibc: (u32, u32)) -> String {
    let (major, minor) = glibc;
    format!(
        "ferroflash {version}: attention on NVIDIA GPUs, every kernel written in Rust

Needs Linux with glibc {major}.{minor} or later. A GPU needs NVIDIA's driver; no CUDA toolkit, no Rust, no Python.

  ./ferroflash doctor                       what this machine has
  ./ferroflash bench                        every kernel on the best device, each result checked
  ./ferroflash bench --preset paper --peers beside PyTorch, Triton, FlashAttention-3 and -4, where python3 has them
  ./ferroflash bench --help                 shapes, types, devices, presets, JSON
  ./ferroflash attend --input X.safetensors --output Y.safetensors --causal
                                            attention on the tensors q, k, v of a file
  ./ferroflash-tests                        all tests, on the best device
  FERROFLASH_TEST_DEVICE=cuda:0 ./ferroflash-tests conformance
                                            some of them, on a device that has to be there

ptx/       the kernels, one PTX file per entry, as they are embedded in ./ferroflash
*.whl      the package for Python (pip install ferroflash-*.whl), where there was a Python to build it
peers/     Python scripts: what `bench --peers` starts (the program has it inside), and one that checks `attend` beside PyTorch
",
        version = env!("CARGO_PKG_VERSION"),
    )
}

/// Copies a program without symbols and line tables, which are most of its size.
fn install(program: &Path, destination: &Path) -> Result<()> {
    workspace::run(Command::new("strip").arg("--strip-all").arg("-o").arg(destination).arg(program))
        .context("strip comes with the linker (binutils)")
}

/// Copies the scripts of a folder and of its subfolders; caches of Python stay behind.
fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| to.display().to_string())?;
    for entry in fs::read_dir(from).with_context(|| from.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name();
        let is_cache = name.to_string_lossy().starts_with(['.', '_']) && entry.path().is_dir();
        if is_cache {
            continue;
        }
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &to.join(name))?;
        } else {
            fs::copy(entry.path(), to.join(name)).with_context(|| entry.path().display().to_string())?;
        }
    }
    Ok(())
}

/// The least glibc that a program starts with: the largest `GLIBC_x.y` among its symbol versions.
fn glibc(program: &Path) -> Result<(u32, u32)> {
    let bytes = fs::read(program).with_context(|| program.display().to_string())?;
    Ok(largest_glibc(&bytes))
}

fn largest_glibc(bytes: &[u8]) -> (u32, u32) {
    const PREFIX: &[u8] = b"GLIBC_";
    let mut largest = (0, 0);
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|&byte| byte == PREFIX[0]) {
        rest = &rest[at..];
        if let Some(version) = rest.strip_prefix(PREFIX) {
            let end =
                version.iter().position(|byte| !(byte.is_ascii_digit() || *byte == b'.')).unwrap_or(version.len());
            let text = String::from_utf8_lossy(&version[..end]);
            let mut numbers = text.split('.').map(|number| number.parse().unwrap_or(0));
            largest = largest.max((numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)));
        }
        rest = &rest[1..];
    }
    largest
}

fn size(folder: &Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        bytes += if path.is_dir() { size(&path)? } else { path.metadata()?.len() };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_largest_symbol_version_counts() {
        let bytes = b"\0GLIBC_2.2.5\0GLIBC_2.34\0GLIBC_PRIVATE\0GLIB\0GLIBC_2.9\0G";
        assert_eq!(super::largest_glibc(bytes), (2, 34));
        assert_eq!(super::largest_glibc(b"static"), (0, 0));
    }
}
