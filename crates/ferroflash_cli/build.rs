//! Records which commit and which compiler a binary was built from, for the environment that every result carries.

use std::path::Path;
use std::process::Command;

/// What cargo puts into a package: the commit that it was made from.
const PACKAGED: &str = ".cargo_vcs_info.json";

fn main() {
    let commit = if Path::new(PACKAGED).exists() {
        println!("cargo::rerun-if-changed={PACKAGED}");
        std::fs::read_to_string(PACKAGED).ok().as_deref().and_then(packaged_commit)
    } else {
        // Every source the binary is built from lives under `crates/`; the log of HEAD changes with each commit.
        for path in ["..", "../../.git/logs/HEAD"] {
            if Path::new(path).exists() {
                println!("cargo::rerun-if-changed={path}");
            }
        }
        checkout_commit()
    };
    let rustc = std::env::var("RUSTC").expect("cargo sets RUSTC for build scripts");
    let version = output(Command::new(rustc).arg("--version")).unwrap_or_default();
    println!("cargo::rustc-env=FERROFLASH_RUSTC={version}");
    println!("cargo::rustc-env=FERROFLASH_COMMIT={}", commit.unwrap_or_default());
}

/// The commit of a package, with `-dirty` behind it when it was made from other sources.
fn packaged_commit(info: &str) -> Option<String> {
    let (_, rest) = info.split_once("\"sha1\": \"")?;
    let (hash, rest) = rest.split_once('"')?;
    Some(if rest.contains("\"dirty\": true") { format!("{hash}-dirty") } else { hash.to_owned() })
}

/// The commit of a checkout, with `-dirty` behind it when tracked sources differ from it; `None` outside of one.
fn checkout_commit() -> Option<String> {
    let hash = output(Command::new("git").args(["rev-parse", "HEAD"]))?;
    let changed = output(Command::new("git").args(["status", "--porcelain", "--untracked-files=no", "--", ".."]))?;
    Some(if changed.is_empty() { hash } else { format!("{hash}-dirty") })
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
