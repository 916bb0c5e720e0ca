//! `ferroflash completions`: what a shell needs to complete the command line.

use crate::files;
use anyhow::Result;
use clap::{Args, Command};
use clap_complete::Shell;
use std::path::Path;

/// Prints completions for a shell.
#[derive(Args, Debug)]
#[command(after_help = "\
Examples:
  ferroflash completions bash > ~/.local/share/bash-completion/completions/ferroflash
  ferroflash completions zsh > ~/.zfunc/_ferroflash
  ferroflash completions fish > ~/.config/fish/completions/ferroflash.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, ignore_case = true)]
    shell: Shell,
}

/// Prints the completions of `command`.
pub(crate) fn run(args: &CompletionsArgs, mut command: Command) -> Result<()> {
    let name = command.get_name().to_owned();
    // By way of memory: the generator panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, name, &mut script);
    files::write(Path::new(files::DASH), script)
}
