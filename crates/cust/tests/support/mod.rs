//! Runs a test with a driver that is a fixture: `tests/fake_driver`, compiled to a `libcuda.so.1`.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Runs `body` in a process of its own, for which libcuda.so.1 is the fixture, compiled with `cfgs` and set up by `settings`.
///
/// The process is this test again: the driver library is opened once in the life of a process.
pub(crate) fn with_driver(cfgs: &[&str], settings: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os("FAKE_LOG").is_some() {
        return body();
    }
    let test = std::thread::current().name().expect("the harness names the thread after the test").to_owned();
    let log = temporary().join(format!("{}-{}.log", env!("CARGO_CRATE_NAME"), test.replace(':', "_")));
    std::fs::write(&log, "").unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture"])
        .env("LD_LIBRARY_PATH", library_path(&fake_driver(cfgs)))
        .env("FAKE_LOG", &log)
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

/// `LD_LIBRARY_PATH` with `folder` in front.
pub(crate) fn library_path(folder: &Path) -> std::ffi::OsString {
    let mut search = folder.as_os_str().to_owned();
    if let Some(rest) = std::env::var_os("LD_LIBRARY_PATH") {
        search.push(":");
        search.push(rest);
    }
    search
}

/// The folder of the fixture that is compiled with these cfgs, where it is what an installed driver is: `libcuda.so.1`, and
/// `libcuda.so` for linkers.
pub(crate) fn fake_driver(cfgs: &[&str]) -> PathBuf {
    // From the packages whose tests use it: those beside cust, and the adapters, which are a folder deeper.
    let [beside, deeper] =
        ["..", "../.."].map(|crates| Path::new(env!("CARGO_MANIFEST_DIR")).join(crates).join("cust/tests/fake_driver"));
    let source = if beside.is_dir() { beside } else { deeper };
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    // Compiled once for each state of its source, its cfgs, and how it is compiled: this file.
    let mut state = DefaultHasher::new();
    include_str!("mod.rs").hash(&mut state);
    let mut files: Vec<_> = std::fs::read_dir(&source).unwrap().map(|file| file.unwrap().path()).collect();
    files.sort();
    files.iter().for_each(|file| std::fs::read(file).unwrap().hash(&mut state));
    (&rustc, cfgs).hash(&mut state);
    let folder = temporary().join(format!("fake_driver-{:016x}", state.finish()));
    let library = folder.join("libcuda.so.1");
    if library.is_file() {
        return folder;
    }
    std::fs::create_dir_all(&folder).unwrap();
    // Several tests may compile it at a time, and each moves a whole file.
    let unique = format!("{}-{:?}", std::process::id(), std::thread::current().id());
    let unfinished = folder.join(format!("unfinished-{}", unique.replace(['(', ')'], "")));
    let mut command = Command::new(rustc);
    command.args(["--edition", "2024", "--crate-type", "cdylib", "--crate-name", "cuda", "-Cpanic=abort", "-o"]);
    command.arg(&unfinished).arg(source.join("lib.rs")).arg("-Clink-arg=-Wl,-soname,libcuda.so.1");
    for cfg in cfgs {
        command.args(["--cfg", cfg]);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let for_linkers = folder.join("libcuda.so");
    if !for_linkers.is_symlink() {
        // Another test may be faster.
        let _ = std::os::unix::fs::symlink("libcuda.so.1", &for_linkers);
    }
    std::fs::rename(&unfinished, &library).unwrap();
    folder
}

/// Where tests may leave files.
pub(crate) fn temporary() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// What the fixture wrote down.
pub(crate) fn log() -> Vec<String> {
    let path = std::env::var_os("FAKE_LOG").unwrap();
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

/// How many lines of the log start like this.
pub(crate) fn count(line: &str) -> usize {
    log().iter().filter(|found| found.starts_with(line)).count()
}
