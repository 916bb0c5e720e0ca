//! The `ferroflash` program.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// A command that runs the program.
pub(crate) fn ferroflash() -> Command {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    Command::new(PROGRAM.get_or_init(find))
}

/// Runs the program with these arguments.
pub(crate) fn run(arguments: &[&str]) -> Output {
    ferroflash().args(arguments).output().expect("the program starts")
}

/// Runs the program and expects success; gives what it printed.
#[track_caller]
pub(crate) fn succeed(arguments: &[&str]) -> String {
    let output = run(arguments);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "ferroflash {arguments:?}: {}\n{stdout}\n{stderr}", output.status);
    stdout
}

/// Runs the program and expects an error; gives its message.
#[track_caller]
pub(crate) fn fail(arguments: &[&str]) -> String {
    let output = run(arguments);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(!output.status.success(), "ferroflash {arguments:?} should fail\n{stdout}");
    // A panic would be 101 and a signal none at all.
    assert!(matches!(output.status.code(), Some(1 | 2)), "ferroflash {arguments:?}: {}\n{stderr}", output.status);
    stderr
}

/// Runs the program and expects an error whose message has `expected` in it.
#[track_caller]
pub(crate) fn refuses(arguments: &[&str], expected: &str) {
    let error = fail(arguments);
    assert!(error.contains(expected), "ferroflash {arguments:?} does not say `{expected}`:\n{error}");
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// `FERROFLASH_BIN`; under cargo a build of the sources of these tests; otherwise the program beside this one.
fn find() -> PathBuf {
    if let Some(path) = std::env::var_os("FERROFLASH_BIN") {
        let path = PathBuf::from(path);
        assert!(path.is_file(), "FERROFLASH_BIN={} is no file", path.display());
        return path;
    }
    let tests = std::env::current_exe().expect("the path of this program");
    if let Some(cargo) = std::env::var_os("CARGO") {
        return build(Path::new(&cargo), &tests);
    }
    let folder = tests.parent().expect("a program lies in a folder");
    let program = folder.join(format!("ferroflash{}", std::env::consts::EXE_SUFFIX));
    assert!(program.is_file(), "there is no {}; name the program in FERROFLASH_BIN", program.display());
    program
}

/// Builds the program into the target folder and with the profile of these tests, where its dependencies lie ready.
fn build(cargo: &Path, tests: &Path) -> PathBuf {
    // TARGET/PROFILE/deps/it-HASH
    let profile_folder = tests.ancestors().nth(2).expect("cargo puts tests into TARGET/PROFILE/deps");
    let target = profile_folder.parent().expect("cargo puts tests into TARGET/PROFILE/deps");
    let release = profile_folder.file_name().is_some_and(|name| name == "release");
    let output = Command::new(cargo)
        .args(["build", "--quiet", "--package", "ferroflash_cli", "--message-format", "json"])
        // `test` optimises what the emulator and the references need, as for these tests.
        .args(["--profile", if release { "release" } else { "test" }])
        .arg("--target-dir")
        .arg(target)
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "building ferroflash failed:\n{}", text(&output.stderr));
    let messages = text(&output.stdout);
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .expect("cargo names the program it built")
}
