//! What the program says: results on standard output, whose reader may leave at any time (`ferroflash bench | head`), and status on
//! standard error.

use anyhow::{Context, Result};
use std::fmt;
use std::io::{ErrorKind, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

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

/// Whether status and warnings are kept back. Set once, before any thread that prints.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether standard output carries a file (`--json -`), which no other line may get into.
static CARRIES_A_FILE: AtomicBool = AtomicBool::new(false);

/// Keeps back what is neither a result nor an error.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether [`be_quiet`] was called.
pub(crate) fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Leaves standard output to a file: from here on, [`say`] goes to standard error.
pub(crate) fn leave_stdout_to_a_file() {
    CARRIES_A_FILE.store(true, Ordering::Relaxed);
}

/// Whether results are read on a terminal.
pub(crate) fn is_terminal() -> bool {
    if CARRIES_A_FILE.load(Ordering::Relaxed) {
        std::io::stderr().is_terminal()
    } else {
        std::io::stdout().is_terminal()
    }
}

/// Prints one line of results, as `println!` does; a reader who left or a full disk is an error, where `println!` panics.
macro_rules! say {
    ($($format:tt)*) => { $crate::output::line(format_args!($($format)*)) };
}
pub(crate) use say;

/// Says on standard error what happens or happened, unless `--quiet` was given.
macro_rules! status {
    ($($format:tt)*) => { $crate::output::status_line(format_args!($($format)*)) };
}
pub(crate) use status;

/// The same of what may be a mistake, though nothing fails.
macro_rules! warning {
    ($($format:tt)*) => { $crate::output::status_line(format_args!("warning: {}", format_args!($($format)*))) };
}
pub(crate) use warning;

/// What [`say`] does.
///
/// # Errors
/// [`Closed`], or whatever else keeps the line from being written.
pub(crate) fn line(text: fmt::Arguments<'_>) -> Result<()> {
    if CARRIES_A_FILE.load(Ordering::Relaxed) {
        // The result that was asked for is the file; who does not read this has it all the same.
        status_line(text);
        return Ok(());
    }
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
        written => written.context("cannot write to standard output"),
    }
}

/// What [`status`] and [`warning`] do. That nobody reads them changes no result, and there is no other place to say so.
pub(crate) fn status_line(text: fmt::Arguments<'_>) {
    if !is_quiet() {
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}
