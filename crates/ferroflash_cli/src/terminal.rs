//! What the place that is written to can show: escape sequences, and how many columns.

use std::io::IsTerminal;

/// Columns of what is no terminal, such as a pipe or a file: as wide as the help of this program.
const DEFAULT_COLUMNS: usize = 100;

/// Whether colours may be written where results go.
pub(crate) fn colors() -> bool {
    escapes(crate::output::is_terminal(), |name| std::env::var_os(name))
}

/// Whether standard error takes escape sequences: colours, and the movements of a progress bar.
pub(crate) fn stderr_escapes() -> bool {
    escapes(std::io::stderr().is_terminal(), |name| std::env::var_os(name))
}

/// `NO_COLOR` (no-color.org) and `CLICOLOR_FORCE` (bixense.com/clicolors) decide when they are set and not empty; otherwise a terminal
/// that is not `dumb` takes them, and nothing else does.
fn escapes(terminal: bool, variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> bool {
    let set = |name| variable(name).filter(|value| !value.is_empty());
    if set("NO_COLOR").is_some() {
        return false;
    }
    if set("CLICOLOR_FORCE").is_some_and(|value| value != "0") {
        return true;
    }
    terminal && set("TERM").is_none_or(|term| term != "dumb")
}

/// Columns of the place that results go to: what `COLUMNS` says, else those of the terminal, else a fixed number, so that files do not
/// depend on who made them.
pub(crate) fn columns() -> usize {
    let terminal = || {
        let term = if std::io::stdout().is_terminal() { console::Term::stdout() } else { console::Term::stderr() };
        term.size_checked().map(|(_, columns)| usize::from(columns))
    };
    let known = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok()).filter(|&columns| columns > 0);
    known.or_else(|| if crate::output::is_terminal() { terminal() } else { None }).unwrap_or(DEFAULT_COLUMNS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_are_for_terminals_and_for_who_wants_them() {
        let with = |terminal, variables: &'static [(&str, &str)]| {
            escapes(terminal, |name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
        };
        assert!(with(true, &[]) && !with(false, &[]));
        assert!(with(true, &[("TERM", "xterm")]) && !with(true, &[("TERM", "dumb")]));
        assert!(!with(true, &[("NO_COLOR", "1")]) && with(true, &[("NO_COLOR", "")]));
        assert!(with(false, &[("CLICOLOR_FORCE", "1")]) && !with(false, &[("CLICOLOR_FORCE", "0")]));
        assert!(!with(true, &[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")]));
        assert!(with(false, &[("CLICOLOR_FORCE", "1"), ("TERM", "dumb")]));
    }
}
