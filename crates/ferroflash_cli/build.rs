//! Records which commit and which compiler a binary was built from, for the environment that every result carries.

use std::process::Command;

fn main() {
    // Every source the binary is built from lives under `crates/`; the log of HEAD changes with each commit.
    for path in ["..", "../../.git/logs/HEAD"] {
        if std::path::Path::new(path).exists() {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let rustc = std::env::var("RUSTC").expect("cargo sets RUSTC for build scripts");
    let version = output(Command::new(rustc).arg("--version")).unwrap_or_default();
    println!("cargo::rustc-env=FERROFLASH_RUSTC={version}");
    println!("cargo::rustc-env=FERROFLASH_COMMIT={}", commit().unwrap_or_default());
}

/// The commit, with `-dirty` behind it when tracked sources differ from it; `None` outside a checkout.
fn commit() -> Option<String> {
    let hash = output(Command::new("git").args(["rev-parse", "HEAD"]))?;
    let changed = output(Command::new("git").args(["status", "--porcelain", "--untracked-files=no", "--", ".."]))?;
    Some(if changed.is_empty() { hash } else { format!("{hash}-dirty") })
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
