//! What the `ferroflash` program says, where, and with which exit status.

use crate::support::device;
use crate::support::program::{ferroflash, run, succeed, text};
use safetensors::tensor::{Dtype, TensorView};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

/// Exit status of a command line that cannot be used.
const UNUSABLE: Option<i32> = Some(2);

fn utf8(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// A folder with an input of f32 tensors: `(name, dims, value of every element)`.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new(tensors: &[(&str, &[usize], f32)]) -> Folder {
        let folder = Folder(tempfile::tempdir().expect("a folder for the test"));
        let bytes = tensors.iter().map(|(_, dims, x)| x.to_le_bytes().repeat(dims.iter().product()));
        let bytes: Vec<_> = bytes.collect();
        let views = tensors.iter().zip(&bytes).map(|((name, dims, _), bytes)| {
            (*name, TensorView::new(Dtype::F32, dims.to_vec(), bytes).expect("a legal tensor"))
        });
        fs::write(folder.at("in"), safetensors::serialize(views, None).unwrap()).unwrap();
        folder
    }

    /// q, k and v of these dims, full of ones.
    fn of(q: &[usize], kv: &[usize]) -> Folder {
        Folder::new(&[("q", q, 1.0), ("k", kv, 1.0), ("v", kv, 1.0)])
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn attend(&self, arguments: &[&str]) -> Output {
        let (input, output) = (self.at("in"), self.at("out"));
        let fixed = ["attend", "--kernel", "reference", "--input", utf8(&input), "--output", utf8(&output)];
        run(&[&fixed[..], arguments].concat())
    }

    /// What a run that succeeds warns of, one line each.
    #[track_caller]
    fn warnings(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.attend(arguments);
        let said = text(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(text(&output.stdout), "", "status is no result");
        said.lines().filter(|line| line.starts_with("warning: ")).map(str::to_owned).collect()
    }

    fn metadata(&self, key: &str) -> String {
        let bytes = fs::read(self.at("out")).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        header.metadata().as_ref().unwrap()[key].clone()
    }
}

const USUAL: [usize; 4] = [1, 4, 2, 8];

#[test]
fn command_lines_that_cannot_be_used_have_status_2() {
    let device = device::name();
    let bench = |arguments: &[&str]| [&["bench", "--device", &device][..], arguments].concat().join(" ");
    let folder = Folder::of(&USUAL, &USUAL);
    let (input, output) = (folder.at("in"), folder.at("out"));
    let attend = |arguments: &str| format!("attend --input {} --output {} {arguments}", utf8(&input), utf8(&output));
    for line in [
        bench(&["--seq", "0"]),
        bench(&["--head-dim", "12"]),
        bench(&["--heads", "3", "--kv-heads", "2"]),
        bench(&["--repeats", "1"]),
        bench(&["--sample", "0"]),
        bench(&["--seq", "48", "--tokens", "64"]),
        bench(&["--kernel", "v2,v2"]),
        bench(&["--json", "/absent/folder/x.json"]),
        bench(&["--sweep", "/absent/sweep.toml"]),
        // A library limit, and a device that is too small.
        bench(&["--seq", "99999999999", "--batch", "1", "--heads", "1"]),
        bench(&["--seq", "500000000", "--batch", "1", "--heads", "1", "--head-dim", "256"]),
        "bench --device emulator --ceilings".to_owned(),
        "bench --device gpu".to_owned(),
        "doctor --device gpu".to_owned(),
        "report /absent/record.json".to_owned(),
        "report /absent/record.json --csv -".to_owned(),
        attend("--device nonsense --kernel reference"),
        attend("--scale nan --kernel reference"),
        attend("--scale nan --device emulator"),
        attend("--causal --window-right 3"),
        format!("attend --input /absent/in --output {}", utf8(&output)),
        format!("attend --input {0} --output {0}", utf8(&input)),
        format!("attend --input {} --output /absent/folder/out", utf8(&input)),
    ] {
        let run = run(&line.split(' ').collect::<Vec<_>>());
        assert_eq!(run.status.code(), UNUSABLE, "{line}: {}", text(&run.stderr));
        assert!(text(&run.stderr).starts_with("error: ") && text(&run.stdout).is_empty(), "{line}");
        assert!(!output.exists(), "{line}");
    }
    // What is wrong with a file or a machine is something else.
    assert_eq!(run(&["bench", "--device", "cuda:4096"]).status.code(), Some(1));
    assert_eq!(Folder::of(&[1, 4, 2, 12], &[1, 4, 2, 12]).attend(&[]).status.code(), Some(1));
}

#[test]
fn tensors_that_are_not_used_are_named() {
    let tensors =
        [("q", &USUAL[..], 1.0), ("k", &USUAL, 1.0), ("v", &USUAL, 1.0), ("mask", &[4, 4], 0.0), ("x", &[1], 0.0)];
    assert_eq!(Folder::new(&tensors[..3]).warnings(&[]), [""; 0]);
    let warnings = Folder::new(&tensors).warnings(&[]);
    assert_eq!(warnings.len(), 1, "{warnings:?}");
    assert!(
        warnings[0].contains("the tensors mask, x are not used") && warnings[0].contains("--causal"),
        "{warnings:?}"
    );
}

#[test]
fn a_layout_that_looks_swapped_is_noticed() {
    // [batch, head, row, dim] under the layout that is assumed.
    let folder = Folder::of(&[1, 8, 128, 8], &[1, 2, 128, 8]);
    for layout in [&[][..], &["--layout", "bshd"]] {
        let warnings = folder.warnings(layout);
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("8 rows of q and 2 of k and v are fewer than their 128 and 128 heads"));
        assert!(warnings[0].ends_with("give --layout bhsd"), "{warnings:?}");
    }
    assert_eq!(folder.warnings(&["--layout", "BHSD"]), [""; 0]);
    // Where the axes as they are taken make no sense, the error says what would.
    let output = Folder::of(&[1, 4, 10, 8], &[1, 2, 7, 8]).attend(&[]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("--layout bhsd would fit"), "{}", text(&output.stderr));
    let output = Folder::of(&[1, 4, 10, 8], &[1, 3, 7, 8]).attend(&[]);
    assert!(!text(&output.stderr).contains("--layout"), "{}", text(&output.stderr));
}

#[test]
fn results_that_are_no_numbers_or_all_zeros_are_noticed() {
    let of = |q: f32, v: f32, arguments: &[&str]| {
        Folder::new(&[("q", &USUAL, q), ("k", &USUAL, 1.0), ("v", &USUAL, v)]).warnings(arguments)
    };
    let device = device::name();
    let nan = of(f32::NAN, 1.0, &[]);
    assert_eq!(nan.len(), 2, "{nan:?}");
    assert!(nan[0].starts_with("warning: out holds 64 NaN among its 64 elements, as q already does"), "{nan:?}");
    assert!(nan[1].starts_with("warning: lse holds 8 NaN among its 8 elements"), "{nan:?}");
    assert_eq!(of(1.0, 0.0, &[]), ["warning: out is all zeros: v is all zeros"]);
    // The same of what a kernel gives.
    let folder = Folder::new(&[("q", &USUAL, 1.0), ("k", &USUAL, 1.0), ("v", &USUAL, 0.0)]);
    let (input, output) = (folder.at("in"), folder.at("out"));
    let output = run(&["attend", "--input", utf8(&input), "--output", utf8(&output), "--device", &device]);
    assert!(text(&output.stderr).contains("warning: out is all zeros"), "{}", text(&output.stderr));
    // Fewer keys than rows under the causal mask: the first rows see none.
    let folder = Folder::of(&[1, 6, 2, 8], &USUAL);
    assert_eq!(
        folder.warnings(&["--causal"]),
        ["warning: 4 of 12 rows see no key: their out is 0, their lse -infinity"]
    );
    assert_eq!(folder.warnings(&["--causal", "--quiet"]), [""; 0]);
}

#[test]
fn windows_are_written_as_in_flash_attention() {
    let folder = Folder::of(&USUAL, &USUAL);
    for (arguments, mask) in [
        (&["--window-left", "-1"][..], "Full"),
        (&["--window-left=-1", "--window-right=-1"], "Full"),
        (&["--causal", "--window-left", "-1", "--window-right", "-1"], "Causal"),
        (&["--causal", "--window-right", "0"], "Causal"),
        (&["--window-left", "2", "--window-right", "-1"], "Window { left: Some(2), right: None }"),
    ] {
        assert_eq!(folder.warnings(arguments), [""; 0]);
        assert_eq!(folder.metadata("mask"), mask, "{arguments:?}");
    }
    for wrong in [&["--window-left", "-2"][..], &["--window-right=-7"], &["--window-left", "many"]] {
        let output = folder.attend(wrong);
        assert_eq!(output.status.code(), UNUSABLE);
        assert!(text(&output.stderr).contains("-1 for no bound"), "{}", text(&output.stderr));
    }
}

#[test]
fn other_formats_are_named() {
    let folder = Folder::of(&USUAL, &USUAL);
    for (start, what) in [(&b"PK\x03\x04"[..], "torch.save (.pt)"), (b"\x93NUMPY\x01\0", "numpy.save (.npy)")] {
        fs::write(folder.at("in"), [start, &[0; 200]].concat()).unwrap();
        let output = folder.attend(&[]);
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1));
        assert!(said.contains(what) && said.contains("safetensors is needed") && !said.contains("truncated"), "{said}");
    }
}

/// A short sweep on the emulator.
const SWEEP: [&str; 12] = [
    "bench", "--device", "emulator", "--kernel", "naive,v2", "--dtype", "f16", "--seq", "16", "--heads", "1", "--full",
];

#[test]
fn tables_are_no_wider_than_what_shows_them() {
    let widest = |columns: Option<&str>, arguments: &[&str]| {
        let mut command = ferroflash();
        command.env_remove("COLUMNS").args(arguments);
        command.envs(columns.map(|columns| ("COLUMNS", columns)));
        let printed = text(&command.output().expect("the program starts").stdout);
        let tables = printed.lines().filter(|line| line.starts_with(['│', '┌', '╞', '└', '├']));
        tables.map(|line| line.chars().count()).max().expect("a table")
    };
    let folder = tempfile::tempdir().unwrap();
    let (before, after) = (folder.path().join("before"), folder.path().join("after"));
    succeed(&[&SWEEP[..], &["--json", utf8(&before)]].concat());
    let record = fs::read_to_string(&before).unwrap();
    fs::write(&after, record.replace("\"global_bytes_read\": ", "\"global_bytes_read\": 1")).unwrap();
    let compare = ["compare", utf8(&before), utf8(&after)];
    for arguments in [&SWEEP[..], &compare] {
        for (columns, most) in [(None, 100), (Some("80"), 80), (Some("60"), 60), (Some("zero"), 100)] {
            let widest = widest(columns, arguments);
            assert!(widest <= most, "{arguments:?}: {widest} columns, {most} are there");
        }
    }
    assert!(widest(Some("300"), &SWEEP) > 100, "there is room for more");
}

#[test]
fn progress_and_places_are_status_and_quiet_keeps_them_back() {
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("r.json");
    let bench = |more: &[&str]| {
        let output = run(&[&SWEEP[..], &["--json", utf8(&json)], more].concat());
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (results, said) = bench(&[]);
    assert!(said.contains("[1/1, 0s left]") && said.contains("results written to "), "{said}");
    assert!(!results.contains("left]") && !results.contains("written to ") && results.contains("2 results compared"));
    for quiet in ["--quiet", "-q"] {
        let (again, said) = bench(&[quiet]);
        assert_eq!(said, "");
        assert!(again.contains("2 results compared"), "{again}");
    }
}

#[test]
fn the_library_is_heard_when_it_is_asked_to() {
    let folder = Folder::of(&USUAL, &USUAL);
    let attend = |variable: Option<&str>, more: &[&str]| {
        let mut command = ferroflash();
        command.env_remove("RUST_LOG").envs(variable.map(|filter| ("RUST_LOG", filter)));
        command.args(["attend", "--device", "emulator", "--input"]).arg(folder.at("in"));
        let output = command.arg("--output").arg(folder.at("out")).args(more).output().expect("the program starts");
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    };
    let (planned, launch) = ("planned", "launch");
    let silent = attend(None, &[]);
    assert!(!silent.contains(planned) && silent.lines().count() == 2, "{silent}");
    assert!(attend(None, &["-v"]).contains(planned) && !attend(None, &["-v"]).contains("TRACE"));
    assert!(attend(None, &["--verbose", "--verbose"]).contains(launch));
    assert!(attend(Some("ferroflash=debug"), &[]).contains(planned));
    assert!(!attend(Some("ptx_emu=debug"), &[]).contains(planned));
    let wrong = attend(Some("=?,=="), &[]);
    assert!(wrong.contains("warning: RUST_LOG==?,== is not understood"), "{wrong}");
    assert_eq!(attend(Some("debug"), &["--quiet"]), "");
    assert_eq!(run(&["doctor", "-q", "-v"]).status.code(), UNUSABLE);
}

#[test]
fn every_shell_gets_completions() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = succeed(&["completions", shell]);
        for word in ["ferroflash", "attend", "window-left", "bench", "quiet"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
    assert_eq!(run(&["completions", "tcsh"]).status.code(), UNUSABLE);
}

/// A chain of errors tells each of them once.
#[test]
fn an_error_of_the_emulator_is_told_once() {
    let error = ferroflash::Error::Emulator(Box::new(std::io::Error::other("a race")));
    let mut told = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(error) = source {
        told = format!("{told}: {error}");
        source = error.source();
    }
    assert_eq!(told, "emulator: a race");
}
