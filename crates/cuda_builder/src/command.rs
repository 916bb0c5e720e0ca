//! Runs programs and keeps what they say for the error.

use std::process::{Command, Stdio};

use crate::Error;

/// Standard output of a command that must succeed.
pub(crate) fn output(command: &mut Command) -> Result<String, Error> {
    let (stdout, _) = streams(command)?;
    Ok(stdout)
}

/// Standard output and standard error of a command that must succeed.
pub(crate) fn streams(command: &mut Command) -> Result<(String, String), Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let result = command.stdin(Stdio::null()).output().map_err(|source| Error::Start { program, source })?;
    let stdout = String::from_utf8_lossy(&result.stdout).into_owned();
    let stderr = String::from_utf8_lossy(&result.stderr).into_owned();
    if result.status.success() {
        Ok((stdout, stderr))
    } else {
        let output = [stdout.trim_end(), stderr.trim_end()].join("\n").trim().to_string();
        Err(Error::Command { command: text(command), status: result.status, output })
    }
}

/// The command as one line.
fn text(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}
