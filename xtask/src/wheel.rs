//! `wheel`: the package `ferroflash` for Python, by maturin in a virtual environment of its own.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use lexopt::Arg;

use crate::{adapters, arguments, output, setup, workspace};

const HELP: &str = "\
Usage: cargo xtask wheel [--out DIR | --test]

Builds the wheel of crates/adapters/ferroflash_python: `pip install DIR/ferroflash-*.whl` is all that a machine with an NVIDIA driver and
Python 3.10 or later needs. Takes a python3 with venv and pip; maturin comes from the package index into target/wheel.

Options
  --out DIR    where the wheel goes; an older one there is replaced [dist]
  --test       build it as tests are built, install it into an environment under target/wheel, and run its tests
";

/// What builds the wheel; pyproject.toml of the package names the same.
const MATURIN: &str = "maturin==1.16.0";

/// What its tests take beyond Python. They find PyTorch by themselves where it is.
const NUMPY: &str = "numpy>=1.26";

/// A state of the sources that is compiled with everything that tests share, or one to be used.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

pub(crate) fn run(rest: Vec<OsString>) -> Result<()> {
    let mut out = workspace::root().join("dist");
    let mut only_test = false;
    let mut parser = arguments::parser(rest);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("out") => out = std::path::absolute(PathBuf::from(parser.value()?))?,
            Arg::Long("test") => only_test = true,
            Arg::Long("help") | Arg::Short('h') => return output::print(HELP),
            other => return Err(arguments::unexpected(other, HELP)),
        }
    }
    setup::require_rust_src()?;
    if only_test {
        return test();
    }
    let wheel = build(Profile::Release, &out)?;
    let megabytes = wheel.metadata()?.len() as f64 / 1e6;
    output::print(&format!("{}: {megabytes:.1} MB\n", wheel.display()))
}

/// Builds the wheel into `out`, and gives its path.
pub(crate) fn build(profile: Profile, out: &Path) -> Result<PathBuf> {
    let environment = Environment::open()?;
    environment.install(&[MATURIN])?;
    remove_wheels(out)?;
    let mut maturin = Command::new(environment.program("maturin"));
    maturin.current_dir(package()).args(["build", "--quiet", "--interpreter"]).arg(environment.program("python"));
    maturin.arg("--out").arg(out).args(["--profile", if profile == Profile::Dev { "dev" } else { "release" }]);
    if profile == Profile::Release {
        maturin.env("CARGO_ENCODED_RUSTFLAGS", without_paths()?);
    }
    // The folder that the adapters' own configuration names.
    workspace::run(maturin.arg("--target-dir").arg(workspace::target_dir()?))?;
    wheels(out)?.pop().with_context(|| format!("maturin left no wheel in {}", out.display()))
}

/// Flags of rustc, as cargo takes them in one variable: the names of source files, which panics carry, begin with what they belong to
/// instead of with folders of this machine.
fn without_paths() -> Result<OsString> {
    let home = std::env::home_dir().context("this user has no home")?;
    let cargo = std::env::var_os("CARGO_HOME").map_or_else(|| home.join(".cargo"), PathBuf::from);
    let mut flags = OsString::new();
    // The last that fits is taken: the project may lie in the home.
    for (folder, name) in [(home.as_path(), "home"), (cargo.as_path(), "cargo"), (workspace::root(), "ferroflash")] {
        if !flags.is_empty() {
            flags.push("\x1f");
        }
        flags.push("--remap-path-prefix=");
        flags.push(folder);
        flags.push(format!("={name}"));
    }
    Ok(flags)
}

/// Builds the wheel, installs it and runs its tests; without a python3 it says so, which in CI is a failure.
pub(crate) fn test() -> Result<()> {
    if let Err(error) = Environment::open() {
        if std::env::var_os("CI").is_some() {
            return Err(error);
        }
        output::note(format_args!("NOT TESTED: the Python wheel: {error:#}"));
        return Ok(());
    }
    let wheel = build(Profile::Dev, &folder()?.join("tested"))?;
    let environment = Environment::open()?;
    environment.install(&[OsStr::new("--force-reinstall"), OsStr::new("--no-deps"), wheel.as_os_str()])?;
    environment.install(&[NUMPY])?;
    let mut tests = Command::new(environment.program("python"));
    // Not from the folder of the package, where Python would find the sources without the extension module.
    tests.current_dir(folder()?).args(["-B", "-m", "unittest", "discover", "--start-directory"]);
    tests.arg(package().join("tests"));
    // Its tests with a GPU run on the stand-in for the driver, which they compile.
    tests.env("FERROFLASH_FAKE_DRIVER", workspace::root().join("crates/cust/tests/fake_driver/lib.rs"));
    tests.env("FERROFLASH_WHEEL", &wheel);
    workspace::run(&mut tests)
}

/// The package.
fn package() -> PathBuf {
    adapters::root().join("ferroflash_python")
}

fn folder() -> Result<PathBuf> {
    let folder = workspace::target_dir()?.join("wheel");
    fs::create_dir_all(&folder).with_context(|| folder.display().to_string())?;
    Ok(folder)
}

/// A virtual environment under target/, so that nothing of the machine's Python changes.
struct Environment {
    bin: PathBuf,
}

impl Environment {
    fn open() -> Result<Environment> {
        let environment = folder()?.join("venv");
        let bin = environment.join("bin");
        // One that was not finished has no pip.
        if !bin.join("pip").is_file() {
            let mut venv = Command::new("python3");
            venv.args(["-m", "venv", "--clear"]).arg(&environment);
            workspace::run(&mut venv)
                .context("the wheel takes a python3 with venv (Debian and Ubuntu: apt install python3-venv)")?;
        }
        Ok(Environment { bin })
    }

    fn program(&self, name: &str) -> PathBuf {
        self.bin.join(name)
    }

    fn install(&self, arguments: &[impl AsRef<OsStr>]) -> Result<()> {
        let mut pip = Command::new(self.program("python"));
        pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]);
        workspace::run(pip.args(arguments))
    }
}

fn wheels(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let paths = entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    Ok(paths.into_iter().filter(|path| is_wheel(path)).collect())
}

/// Whether it is a wheel of this package.
fn is_wheel(path: &Path) -> bool {
    path.file_name()
        .and_then(OsStr::to_str)
        .is_some_and(|name| name.starts_with("ferroflash-") && name.ends_with(".whl"))
}

fn remove_wheels(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    wheels(folder)?.iter().try_for_each(|old| fs::remove_file(old).with_context(|| old.display().to_string()))
}

/// The wheel for a bundle, where there is a Python to build it.
pub(crate) fn for_bundle(out: &Path) -> Result<Option<PathBuf>> {
    match Environment::open() {
        Ok(_) => build(Profile::Release, out).map(Some),
        Err(error) => {
            remove_wheels(out)?;
            output::note(format_args!("the bundle holds no Python wheel: {error:#}"));
            Ok(None)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_package_is_built_by_the_maturin_that_it_names() {
        let manifest = fs::read_to_string(package().join("pyproject.toml")).unwrap();
        assert!(manifest.contains(&format!("requires = [\"{MATURIN}\"]")), "{manifest}");
    }

    #[test]
    fn only_wheels_of_this_package_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["ferroflash-0.1.0-cp310-abi3-linux_x86_64.whl", "other-1.0-py3-none-any.whl", "ferroflash.txt"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        remove_wheels(folder.path()).unwrap();
        assert!(wheels(folder.path()).unwrap().is_empty());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    }
}
