//! What is printed, whoever reads it: `cargo xtask build | head` ends without a word.

use std::fmt;
use std::io::{ErrorKind, Write};

use anyhow::{Context, Result};

/// Exit status when nobody reads standard output any more: what a shell says of a program that SIGPIPE ended (128 + 13).
pub(crate) const CLOSED_STATUS: u8 = 141;

/// Nobody reads standard output any more.
#[derive(Debug)]
pub(crate) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("standard output is closed")
    }
}

impl std::error::Error for Closed {}

/// Writes text that ends with a line break to standard output; `print!` panics where this is an error.
pub(crate) fn print(text: &str) -> Result<()> {
    match std::io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// Writes one line to standard error, if somebody reads it.
pub(crate) fn note(text: fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
