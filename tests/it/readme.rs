//! The commands of README.md, as they stand there. Its Rust program is a documentation example of this package's library.
#![cfg(unix)]

use crate::support::program::{ferroflash, text};
use safetensors::tensor::{Dtype, TensorView};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../../README.md");

/// `cargo` for the commands: the verbs that xtask builds the program for and hands over are the program's, `test` is what runs this
/// test, `wheel` leaves a file, and the rest is cargo's own, where there is one.
const CARGO: &str = r#"#!/bin/sh
if [ "$1" = xtask ]; then
    shift
    case "$1" in
        attend | bench | compare | report) exec "$PROGRAM" "$@" ;;
        test) exit 0 ;;
        wheel) mkdir -p dist && : > dist/ferroflash-0.0.0-any.whl; exit 0 ;;
        *) echo "cargo xtask $1 is in no test" >&2; exit 3 ;;
    esac
fi
[ -z "${REAL_CARGO:-}" ] || exec "$REAL_CARGO" "$@"
mkdir -p "$2"
"#;

/// `pip` for the commands: it takes files that are there. The wheel's own tests install it and run the blocks of Python.
const PIP: &str = "#!/bin/sh\n[ \"$1\" = install ] && [ -f \"$2\" ]\n";

/// The texts of the blocks of this language.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    README.split(&fence).skip(1).map(|rest| rest.split("```").next().unwrap_or_default()).collect()
}

/// q, k and v of a small problem.
fn input(path: &Path) {
    let bytes: Vec<u8> =
        (0..20 * 2 * 64).flat_map(|i| half::f16::from_f32((i % 9) as f32 / 4.0).to_le_bytes()).collect();
    let tensor = || TensorView::new(Dtype::F16, vec![1, 20, 2, 64], &bytes).unwrap();
    let views = ["q", "k", "v"].map(|name| (name, tensor()));
    fs::write(path, safetensors::serialize(views, None).unwrap()).unwrap();
}

#[test]
fn every_command_runs() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("bin")).unwrap();
    for (program, script) in [("bin/cargo", CARGO), ("bin/pip", PIP)] {
        fs::write(at(program), script).unwrap();
        fs::set_permissions(at(program), fs::Permissions::from_mode(0o755)).unwrap();
    }
    input(&at("qkv.safetensors"));
    let path = format!("{}:{}", at("bin").display(), std::env::var("PATH").unwrap_or_default());
    let cargo = std::env::var_os("CARGO");
    if cargo.is_some() {
        symlink(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."), at("ferroflash")).unwrap();
    }

    let blocks = blocks("sh");
    assert!(blocks.len() >= 4, "{blocks:?}");
    for block in &blocks {
        let mut shell = Command::new("sh");
        shell.args(["-eu", "-c", block]).current_dir(folder.path()).env("PATH", &path);
        shell.env("PROGRAM", ferroflash().get_program()).env("CARGO_NET_OFFLINE", "true");
        // A sweep without options is short on the emulator alone.
        shell.env("CUDA_VISIBLE_DEVICES", "");
        if let Some(cargo) = &cargo {
            shell.env("REAL_CARGO", cargo);
        }
        let output = shell.output().expect("a shell");
        assert!(output.status.success(), "{block}\n{}\n{}", text(&output.stdout), text(&output.stderr));
    }
    // What the commands leave.
    for file in ["out.safetensors", "before.json", "after.json", "report.html"] {
        assert!(at(file).is_file(), "{file}");
    }
    if cargo.is_some() {
        assert!(fs::read_to_string(at("hello/Cargo.toml")).unwrap().contains("ferroflash = { version"));
    }
}

/// A block without a language, or of another one, would be tried by nobody.
#[test]
fn every_block_is_tried() {
    let fences: Vec<&str> = README.lines().filter(|line| line.starts_with("```")).collect();
    for pair in fences.chunks(2) {
        assert!(matches!(pair, ["```sh" | "```rust" | "```python", "```"]), "{pair:?}");
    }
    assert!(!blocks("rust").is_empty());
    assert!(README.lines().count() <= 200, "what is read in one sitting");
}
