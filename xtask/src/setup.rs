//! `setup`: the library source of rustc, and on request NVIDIA's assembler.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use cuda_builder::ptxas::Ptxas;
use cuda_builder::{Toolchain, cache_dir};
use lexopt::Arg;

use crate::{arguments, output, workspace};

const HELP: &str = "\
Usage: cargo xtask setup [--ptxas]

Installs the library source of rustc (rust-src), from which `core` is compiled for the GPU: by rustup, else on Debian and Ubuntu as
a signed package of the distribution, unpacked into the per-user cache. Quick when it is there.

Options
  --ptxas    also NVIDIA's assembler, from its Python wheel (x86-64, needs pip); it shows registers and spills without a GPU
";

/// The wheel with the ptxas that the project's figures come from, as pip names it.
const PTXAS_WHEEL: &str = "nvidia-cuda-nvcc==13.0.88";

/// Debian suites that hold rust-src of recent releases, the likeliest first. rust-src is text, the same for every Debian, so a suite
/// newer than the machine's own will do.
const DEBIAN_SUITES: [&str; 3] = ["trixie-backports", "testing", "unstable"];

/// apt drops to a user of its own for downloads, who may not write into the cache of ours.
const SANDBOX: &str = "APT::Sandbox::User=root";

pub(crate) fn run(rest: Vec<OsString>) -> Result<()> {
    let mut with_ptxas = false;
    let mut parser = arguments::parser(rest);
    while let Some(argument) = parser.next()? {
        match argument {
            Arg::Long("ptxas") => with_ptxas = true,
            Arg::Long("help") | Arg::Short('h') => {
                return output::print(HELP);
            }
            other => return Err(arguments::unexpected(other, HELP)),
        }
    }
    let library = require_rust_src()?;
    output::print(&format!("rust-src  {}\n", library.display()))?;
    if with_ptxas {
        let ptxas = require_ptxas()?;
        output::print(&format!("ptxas     {} ({})\n", ptxas.path().display(), ptxas.version()))?;
    }
    Ok(())
}

/// The version of rustc that `rust-toolchain.toml` pins.
pub(crate) fn pinned_version() -> Result<String> {
    let path = workspace::root().join("rust-toolchain.toml");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    text.lines()
        .find_map(|line| line.trim().strip_prefix("channel")?.split('"').nth(1).map(str::to_string))
        .with_context(|| format!("{}: no channel", path.display()))
}

/// The library source of rustc, installed if it is not there.
pub(crate) fn require_rust_src() -> Result<PathBuf> {
    let toolchain = Toolchain::detect()?;
    let pinned = pinned_version()?;
    if toolchain.version() != pinned {
        let version = toolchain.version();
        bail!("rustc is {version}, but the workspace is pinned to {pinned}: rustup toolchain install {pinned}");
    }
    match toolchain.rust_src() {
        // What the user names wrongly is not cured by another one.
        Err(cuda_builder::Error::NoRustSrc { .. }) => {}
        found => return Ok(found?),
    }
    let started = Instant::now();
    let mut failures = Vec::new();
    for way in [Way::Rustup, Way::OwnPackages, Way::Debian] {
        workspace::step(&format!("rust-src {pinned} by {}", way.name()));
        // rustup says that a component is up to date by its own list, whatever became of the files.
        match way.install(&toolchain).and_then(|()| Ok(toolchain.rust_src()?)) {
            Ok(library) => {
                workspace::step(&format!("rust-src {pinned} installed in {:.1} s", started.elapsed().as_secs_f64()));
                return Ok(library);
            }
            Err(error) => {
                workspace::step(&format!("not by {}: {error:#}", way.name()));
                failures.push(format!("{}: {error:#}", way.name()));
            }
        }
    }
    // The typed error names every cure.
    Err(anyhow!("{}\nTried\n  {}", toolchain.rust_src().unwrap_err(), failures.join("\n  ")))
}

/// A way to get the library source, the quickest first.
#[derive(Clone, Copy)]
enum Way {
    Rustup,
    OwnPackages,
    Debian,
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Way::Rustup => "rustup",
            Way::OwnPackages => "the machine's packages",
            Way::Debian => "a Debian suite",
        }
    }

    fn install(self, toolchain: &Toolchain) -> Result<()> {
        match self {
            Way::Rustup => by_rustup(toolchain),
            Way::OwnPackages => by_own_packages(toolchain),
            Way::Debian => by_debian(toolchain),
        }
    }
}

fn by_rustup(toolchain: &Toolchain) -> Result<()> {
    let name = std::env::var("RUSTUP_TOOLCHAIN").unwrap_or_else(|_| toolchain.version().to_string());
    let mut rustup = Command::new("rustup");
    rustup.args(["component", "add", "rust-src", "--toolchain", &name]);
    // Behind a firewall that drops packets rustup would retry for minutes.
    rustup.env("RUSTUP_MAX_RETRIES", "1");
    run_within(&mut rustup, Duration::from_secs(180))
}

/// From what the machine's own sources offer: Debian calls the package `rust-src`, Ubuntu `rust-1.95-src` too.
fn by_own_packages(toolchain: &Toolchain) -> Result<()> {
    let version = toolchain.version();
    let minor = version.rsplit_once('.').map_or(version, |(minor, _)| minor);
    let work = WorkDir::new(toolchain)?;
    let apt = Apt { options: vec![SANDBOX.to_string()], folder: work.path.clone() };
    let package = apt.find(&["rust-src", &format!("rust-{minor}-src")], version)?;
    unpack(toolchain, &work, &apt.download(&package)?)
}

/// From a Debian suite that the machine's own sources do not name, through the mirror that they do name.
fn by_debian(toolchain: &Toolchain) -> Result<()> {
    let keyring = ["/usr/share/keyrings/debian-archive-keyring.gpg", "/usr/share/keyrings/debian-archive-keyring.pgp"]
        .into_iter()
        .find(|path| Path::new(path).is_file())
        .context("no Debian archive keyring, so its packages cannot be verified")?;
    let sites = workspace::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(SITE)",
        "Created-By: Packages",
    ]))?;
    // The security archive holds no backports.
    let mirror = sites
        .lines()
        .find(|site| site.contains("debian") && !site.contains("security"))
        .context("no Debian mirror in the machine's sources")?;
    let mut failure = anyhow!("no suite tried");
    for suite in DEBIAN_SUITES {
        let work = WorkDir::new(toolchain)?;
        let sources = work.path.join("sources.list");
        fs::write(&sources, format!("deb [signed-by={keyring}] {mirror} {suite} main\n"))?;
        let lists = work.path.join("lists");
        fs::create_dir_all(lists.join("partial"))?;
        let options = vec![
            format!("Dir::Etc::SourceList={}", sources.display()),
            "Dir::Etc::SourceParts=-".to_string(),
            format!("Dir::State::Lists={}", lists.display()),
            format!("Dir::Cache={}", work.path.display()),
            SANDBOX.to_string(),
            // No descriptions.
            "Acquire::Languages=none".to_string(),
        ];
        let apt = Apt { options, folder: work.path.clone() };
        let attempt = run_within(apt.command("apt-get").args(["update", "-qq"]), Duration::from_secs(300))
            .and_then(|()| apt.find(&["rust-src"], toolchain.version()))
            .and_then(|package| apt.download(&package))
            .and_then(|package| unpack(toolchain, &work, &package));
        match attempt {
            Ok(()) => return Ok(()),
            Err(error) => failure = error.context(format!("suite {suite}")),
        }
    }
    Err(failure)
}

/// apt with its own sources and lists, so that the machine's configuration stays as it is.
struct Apt {
    options: Vec<String>,
    /// Where packages are downloaded to.
    folder: PathBuf,
}

impl Apt {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.current_dir(&self.folder);
        for option in &self.options {
            command.args(["-o", option]);
        }
        command
    }

    /// `NAME=VERSION` of the first of `names` that the sources offer in this upstream version.
    fn find(&self, names: &[&str], upstream: &str) -> Result<String> {
        for name in names {
            // "rust-src | 1.95.0+dfsg1-2~bpo13+1 | http://..."
            let offers = workspace::output(self.command("apt-cache").args(["madison", name]))?;
            let versions = offers.lines().filter_map(|line| line.split('|').nth(1)).map(str::trim);
            // `1.95.0` and `1.95.0+dfsg1-2`, not `1.95.01`.
            let is_same = |version: &&str| {
                version.strip_prefix(upstream).is_some_and(|rest| !rest.starts_with(|next: char| next.is_ascii_digit()))
            };
            if let Some(version) = versions.into_iter().find(is_same) {
                return Ok(format!("{name}={version}"));
            }
        }
        bail!("no package {} of version {upstream}", names.join(" or "))
    }

    /// Downloads a package, which apt verifies against the signed lists.
    fn download(&self, package: &str) -> Result<PathBuf> {
        run_within(self.command("apt-get").args(["download", "-qq", package]), Duration::from_secs(600))?;
        let files = fs::read_dir(&self.folder)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
        files
            .into_iter()
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download {package} left no package"))
    }
}

/// Unpacks the package and moves its `library` folder into the cache, checked.
fn unpack(toolchain: &Toolchain, work: &WorkDir, package: &Path) -> Result<()> {
    let tree = work.path.join("tree");
    workspace::run(Command::new("dpkg").arg("-x").arg(package).arg(&tree))?;
    // Debian: usr/src/rustc-1.95.0/library; Ubuntu's versioned packages may add a level.
    let library = find_library(&tree, 6).context("the package holds no library/core/src/lib.rs")?;
    toolchain.check_source(&library)?;
    let destination = toolchain.cached_library().context("no home folder to install into")?;
    let parent = destination.parent().context("the cache is a folder")?;
    // A broken earlier install is replaced.
    if parent.exists() {
        fs::remove_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    // Both are in the cache, so the rename is atomic: no half of a source is ever found.
    let staged = work.path.join("staged");
    fs::create_dir(&staged)?;
    fs::rename(&library, staged.join("library"))?;
    fs::rename(&staged, parent).with_context(|| parent.display().to_string())
}

fn find_library(folder: &Path, levels: usize) -> Option<PathBuf> {
    if folder.ends_with("library") && folder.join("core/src/lib.rs").is_file() {
        return Some(folder.to_path_buf());
    }
    let entries = fs::read_dir(folder).ok().filter(|_| levels > 0)?;
    let folders = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).filter(|path| path.is_dir());
    folders.into_iter().find_map(|path| find_library(&path, levels - 1))
}

/// A working folder in the cache, removed when it goes out of scope.
struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    fn new(toolchain: &Toolchain) -> Result<Self> {
        let cache = cache_dir().context("neither XDG_CACHE_HOME nor HOME is set: no place to install to")?;
        let path = cache.join(format!("setup-{}-{}", toolchain.version(), std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        Ok(WorkDir { path })
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            output::note(format_args!("warning: {} stays: {error}", self.path.display()));
        }
    }
}

/// ptxas, installed into the cache if there is none.
fn require_ptxas() -> Result<Ptxas> {
    if let Ok(ptxas) = Ptxas::find() {
        return Ok(ptxas);
    }
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!("NVIDIA's wheel is for x86-64 Linux; install a CUDA toolkit and put it on PATH");
    }
    let toolchain = Toolchain::detect()?;
    let work = WorkDir::new(&toolchain)?;
    workspace::step(&format!("ptxas from {PTXAS_WHEEL}"));
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", PTXAS_WHEEL, "--dest"]);
    run_within(pip.arg(&work.path), Duration::from_secs(600))
        .context("the wheel comes by pip (Debian and Ubuntu: apt install python3-pip)")?;
    let files = fs::read_dir(&work.path)?.filter_map(|entry| entry.ok().map(|entry| entry.path()));
    let wheel = files
        .into_iter()
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip left no wheel")?;
    let tree = work.path.join("tree");
    // A wheel is a zip archive; the Python that pip runs on unpacks it.
    workspace::run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&tree))?;
    let found = find_file(&tree, "ptxas", 5).context("the wheel holds no ptxas")?;
    let bin = Ptxas::cached().context("no home folder to install into")?;
    fs::create_dir_all(&bin)?;
    let program = bin.join("ptxas");
    // Zip archives unpacked by Python lose the permission.
    set_executable(&found)?;
    fs::rename(&found, &program).with_context(|| program.display().to_string())?;
    Ok(Ptxas::at(&program)?)
}

fn find_file(folder: &Path, name: &str, levels: usize) -> Option<PathBuf> {
    let entries: Vec<PathBuf> = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok().map(|e| e.path())).collect();
    let here = entries.iter().find(|path| path.is_file() && path.file_name().is_some_and(|file| file == name));
    here.cloned().or_else(|| {
        let folders = entries.iter().filter(|path| levels > 0 && path.is_dir());
        folders.into_iter().find_map(|path| find_file(path, name, levels - 1))
    })
}

#[cfg(unix)]
fn set_executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o755))?)
}

#[cfg(not(unix))]
fn set_executable(_: &Path) -> Result<()> {
    Ok(())
}

/// Runs a command that may hang on a network that drops packets.
fn run_within(command: &mut Command, limit: Duration) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let mut child = command.stdin(Stdio::null()).spawn().with_context(|| format!("`{program}` did not start"))?;
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            if status.success() {
                return Ok(());
            }
            bail!("`{program}` failed ({status})");
        }
        if started.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            bail!("`{program}` took more than {} s", limit.as_secs());
        }
        thread::sleep(Duration::from_millis(50));
    }
}
