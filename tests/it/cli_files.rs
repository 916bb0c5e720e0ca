//! Where the `ferroflash` program writes: files that are whole or not there, streams, places that take no other file.
#![cfg(unix)]

use crate::support::program::{ferroflash, run, text};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A folder with the input of a small problem.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder::of_rows(1)
    }

    fn of_rows(rows: usize) -> Folder {
        let folder = Folder(tempfile::tempdir().expect("a folder for the test"));
        fs::write(folder.at("in"), input(rows)).unwrap();
        folder
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// `attend` from `in` to this output, by the reference.
    fn attend(&self, output: &str) -> Command {
        self.attend_from("in", output)
    }

    fn attend_from(&self, input: &str, output: &str) -> Command {
        let mut command = ferroflash();
        command.args(["attend", "--kernel", "reference", "--input", input, "--output", output]);
        command.current_dir(self.0.path());
        command
    }

    fn succeeds(&self, output: &str) {
        succeeds(&mut self.attend(output));
    }
}

/// q of so many rows, and one key that all of them see: each row of out is v.
fn input(rows: usize) -> Vec<u8> {
    let (q, kv) = (1.0f32.to_le_bytes().repeat(rows * 8), 1.0f32.to_le_bytes().repeat(8));
    let tensors = [("q", rows, &q), ("k", 1, &kv), ("v", 1, &kv)]
        .map(|(name, rows, data)| (name, TensorView::new(Dtype::F32, vec![1, rows, 1, 8], data).unwrap()));
    safetensors::serialize(tensors, None).unwrap()
}

#[track_caller]
fn check_output(bytes: &[u8]) {
    let file = SafeTensors::deserialize(bytes).expect("a whole file and nothing besides");
    let out = file.tensor("out").unwrap();
    assert!(out.data() == 1.0f32.to_le_bytes().repeat(out.shape().iter().product()), "out is not v");
}

#[track_caller]
fn succeeds(command: &mut Command) -> Output {
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output.stderr));
    output
}

/// With one name for what is not finished yet, processes took each other's files.
#[test]
fn processes_with_one_output_do_not_meet() {
    // So long that each is written while others are.
    let folder = Folder::of_rows(1 << 17);
    let children: Vec<_> = (0..8)
        .map(|_| {
            folder.attend("out").stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the program starts")
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    check_output(&fs::read(folder.at("out")).unwrap());
    assert_eq!(folder.names(), ["in", "out"]);
}

#[test]
fn files_of_others_are_left_alone() {
    let folder = Folder::new();
    fs::write(folder.at("precious"), "kept").unwrap();
    symlink("precious", folder.at("out.partial")).unwrap();
    folder.succeeds("out");
    assert_eq!(fs::read_to_string(folder.at("precious")).unwrap(), "kept");
    assert_eq!(folder.names(), ["in", "out", "out.partial", "precious"]);
    // The input may have a name that once was that of a temporary file.
    fs::rename(folder.at("in"), folder.at("x.partial")).unwrap();
    succeeds(&mut folder.attend_from("x.partial", "x"));
    check_output(&fs::read(folder.at("x")).unwrap());
    assert_eq!(fs::read(folder.at("x.partial")).unwrap(), input(1));
}

#[test]
fn permissions_and_links_stay() {
    let folder = Folder::new();
    fs::write(folder.at("out"), "old").unwrap();
    fs::set_permissions(folder.at("out"), fs::Permissions::from_mode(0o600)).unwrap();
    symlink("out", folder.at("link")).unwrap();
    folder.succeeds("link");
    assert!(folder.at("link").is_symlink());
    assert_eq!(fs::metadata(folder.at("out")).unwrap().mode() & 0o7777, 0o600);
    check_output(&fs::read(folder.at("out")).unwrap());
}

#[test]
fn a_long_name_is_a_name() {
    let folder = Folder::new();
    let long = "x".repeat(250);
    folder.succeeds(&long);
    check_output(&fs::read(folder.at(&long)).unwrap());
    let output = folder.attend(&"x".repeat(256)).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("cannot be written: "), "{}", text(&output.stderr));
}

/// As the user `nobody` when the tests run as root, whom no folder refuses a file.
fn as_nobody(command: &mut Command) {
    if fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0) {
        command.uid(65534).gid(65534);
    }
}

/// A program that everybody may run: a build may lie where only its owner gets to.
fn program_for_all(folder: &Folder) -> PathBuf {
    let copy = folder.at("program");
    fs::copy(ferroflash().get_program(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn a_folder_that_takes_no_files_keeps_those_it_has() {
    let folder = Folder::new();
    let program = program_for_all(&folder);
    // As folders for tests are private.
    fs::set_permissions(folder.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(folder.at("out"), "before, and longer than any result could be".repeat(100)).unwrap();
    fs::set_permissions(folder.at("out"), fs::Permissions::from_mode(0o666)).unwrap();
    fs::set_permissions(folder.0.path(), fs::Permissions::from_mode(0o555)).unwrap();
    let attend = |output: &str| {
        let mut command = Command::new(&program);
        command.args(["attend", "--kernel", "reference", "--input", "in", "--output", output]);
        command.current_dir(folder.0.path());
        as_nobody(&mut command);
        command.output().expect("the program starts")
    };
    let (old, new) = (attend("out"), attend("new"));
    fs::set_permissions(folder.0.path(), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(old.status.success(), "{}", text(&old.stderr));
    check_output(&fs::read(folder.at("out")).unwrap());
    assert_eq!(new.status.code(), Some(2));
    assert!(text(&new.stderr).contains("no file can be made in"), "{}", text(&new.stderr));
    assert_eq!(folder.names(), ["in", "out", "program"]);
}

/// A file that something is mounted on cannot be renamed over. Where no mount can be made there is nothing to test.
#[cfg(target_os = "linux")]
#[test]
fn a_mounted_file_is_written_in_place() {
    let folder = Folder::new();
    fs::write(folder.at("real"), "before").unwrap();
    fs::write(folder.at("out"), "").unwrap();
    let mounts = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", script, "sh"]);
        command.arg(ferroflash().get_program()).current_dir(folder.0.path());
        command.output()
    };
    if !mounts("mount --bind real out").is_ok_and(|output| output.status.success()) {
        return;
    }
    let script = "mount --bind real out && exec \"$1\" attend --kernel reference --input in --output out";
    let output = mounts(script).expect("it did before");
    assert!(output.status.success(), "{}", text(&output.stderr));
    check_output(&fs::read(folder.at("real")).unwrap());
    assert_eq!(folder.names(), ["in", "out", "real"]);
}

/// `ferroflash attend --output /dev/stdout | cat`, with every name of standard output.
#[test]
fn standard_output_carries_the_file_alone() {
    let folder = Folder::new();
    for name in ["-", "/dev/stdout", "/dev/fd/1"] {
        let output = succeeds(&mut folder.attend(name));
        check_output(&output.stdout);
        assert!(text(&output.stderr).contains("out and lse written to "), "{}", text(&output.stderr));
        // What was in the file that a shell opened stays.
        let mut file = File::create(folder.at("log")).unwrap();
        file.write_all(b"before").unwrap();
        succeeds(folder.attend(name).stdout(file.try_clone().unwrap()));
        file.write_all(b"after").unwrap();
        let bytes = fs::read(folder.at("log")).unwrap();
        let inner = bytes.strip_prefix(b"before").unwrap().strip_suffix(b"after").unwrap();
        check_output(inner);
    }
    assert_eq!(folder.names(), ["in", "log"]);
}

#[test]
fn standard_input_is_a_file() {
    let folder = Folder::new();
    for name in ["-", "/dev/stdin"] {
        let output = succeeds(folder.attend_from(name, "-").stdin(File::open(folder.at("in")).unwrap()));
        check_output(&output.stdout);
    }
    let output = ferroflash().args(["attend", "--input", "-", "--output", "-"]).stdin(Stdio::null()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("error: standard input: the file is truncated"), "{}", text(&output.stderr));
}

/// Records by way of pipes, from `bench` to `report` and `compare`.
#[test]
fn records_go_through_pipes() {
    let folder = Folder::new();
    let sweep = ["bench", "--device", "emulator", "--kernel", "v2", "--dtype", "f16", "--seq", "16,24", "--heads", "1"];
    let bench = succeeds(ferroflash().args(sweep).args(["--full", "--json", "-"]));
    let record: serde_json::Value = serde_json::from_slice(&bench.stdout).expect("one record and nothing besides");
    assert_eq!(record["cells"].as_array().unwrap().len(), 2);
    let said = text(&bench.stderr);
    assert!(
        said.contains("[2/2, ") && said.contains("2 results compared") && said.contains("bank conflicts"),
        "{said}"
    );

    let quiet = succeeds(ferroflash().args(sweep).args(["--full", "--json", "-", "--quiet"]));
    assert!(quiet.stdout.starts_with(b"{") && quiet.stderr.is_empty(), "{}", text(&quiet.stderr));

    fs::write(folder.at("record.json"), &bench.stdout).unwrap();
    let record = || File::open(folder.at("record.json")).unwrap();
    let report = succeeds(ferroflash().args(["report", "-", "--csv", "-"]).stdin(record()));
    assert_eq!(text(&report.stdout).lines().count(), 1 + 2);
    let path = folder.at("record.json");
    for pair in [["-", utf8(&path)], [utf8(&path), "-"]] {
        let compared = succeeds(ferroflash().arg("compare").args(pair).stdin(record()));
        assert!(text(&compared.stdout).contains("0 worse, 0 better"), "{}", text(&compared.stdout));
    }
    let toml = "[[group]]\ndtype = [\"f16\"]\nmask = [\"full\"]\nhead_dim = [32]\nseq = [5]\nheads = 1\n";
    fs::write(folder.at("sweep.toml"), toml).unwrap();
    let sweep = ["bench", "--device", "emulator", "--kernel", "v2", "--sweep", "-", "--csv", "-"];
    let swept = succeeds(ferroflash().args(sweep).stdin(File::open(folder.at("sweep.toml")).unwrap()));
    assert_eq!(text(&swept.stdout).lines().count(), 2, "{}", text(&swept.stdout));

    for (arguments, message) in [
        (&["bench", "--json", "-", "--csv", "-"][..], "--json and --csv both name standard output"),
        (&["bench", "--json", "-", "--resume"], "--resume reads what an earlier run wrote"),
        (&["compare", "-", "-"], "BEFORE and AFTER are both standard input"),
    ] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(text(&output.stderr).contains(message), "{}", text(&output.stderr));
    }
}

/// When anything is wrong, no file is made: a closed or full standard output is none of its business, as nothing is said there.
#[test]
fn an_output_is_there_exactly_when_the_status_is_0() {
    let folder = Folder::new();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    succeeds(folder.attend("closed").stdout(writer));
    check_output(&fs::read(folder.at("closed")).unwrap());
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    // Nor is a status that nobody reads.
    let status = folder.attend("unread").stdout(Stdio::null()).stderr(writer).status().unwrap();
    assert!(status.success(), "{status}");
    check_output(&fs::read(folder.at("unread")).unwrap());
    if cfg!(target_os = "linux") {
        let full = || fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        succeeds(folder.attend("full").stdout(full()));
        check_output(&fs::read(folder.at("full")).unwrap());
        // As a file it is another matter.
        let output = folder.attend("-").stdout(full()).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(text(&output.stderr).contains("cannot write standard output: "), "{}", text(&output.stderr));
    }
}
