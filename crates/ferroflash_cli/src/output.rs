//! Standard output, whose reader may leave at any time: `ferroflash bench | head`.

use anyhow::{Context, Result};
use std::fmt;
use std::io::{ErrorKind, Write};

/// Exit status when nobody reads on: what a shell says of a program that SIGPIPE ended (128 + 13).
pub(crate) const CLOSED_STATUS: u8 = 141;

/// Nobody reads what is printed any more. The program ends without a word: there is nobody to hear it.
#[derive(Debug)]
pub(crate) struct Closed;

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nobody reads the output any more")
    }
}

impl std::error::Error for Closed {}

/// Prints one line, as `println!` does; a reader who left or a full disk is an error, where `println!` panics.
macro_rules! say {
    ($($format:tt)*) => { $crate::output::line(format_args!($($format)*)) };
}
pub(crate) use say;

/// What [`say`] does.
///
/// # Errors
/// [`Closed`], or whatever else keeps the line from being written.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        written => written.context("cannot write to standard output"),
    }
}
