//! What the library reports while it works, on standard error.

use crate::output::warning;
use crate::terminal;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// The variable that chooses what is reported, as in other programs that use `tracing`.
const VARIABLE: &str = "RUST_LOG";

/// Reports the library's events from here on: those that `--verbose` asks for, given so many times, else those that `RUST_LOG` names
/// (`debug`, or `ferroflash=trace,warn`), else none.
pub(crate) fn start(verbose: u8) {
    let filter = match verbose {
        0 => match std::env::var(VARIABLE) {
            Ok(filter) if !filter.is_empty() => match filter.parse::<Targets>() {
                Ok(filter) => filter,
                // The variable may be meant for another program.
                Err(error) => {
                    return warning!("{VARIABLE}={filter} is not understood, and nothing is reported: {error}");
                }
            },
            _ => return,
        },
        1 => Targets::new().with_default(LevelFilter::DEBUG),
        _ => Targets::new().with_default(LevelFilter::TRACE),
    };
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(terminal::stderr_escapes());
    tracing_subscriber::registry().with(lines).with(filter).init();
}
