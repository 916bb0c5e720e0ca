//! Shared parts of reading a verb's arguments.

use std::ffi::OsString;

use anyhow::{Result, anyhow};
use cuda_builder::Arch;
use lexopt::{Arg, Parser, ValueExt};

/// A parser over the arguments after the verb.
pub(crate) fn parser(arguments: Vec<OsString>) -> Parser {
    Parser::from_args(arguments)
}

/// An argument that the verb does not know, with the verb's help.
pub(crate) fn unexpected(argument: Arg<'_>, help: &str) -> anyhow::Error {
    anyhow!("{}\n\n{help}", argument.unexpected())
}

/// The value of `--arch` or `--ptxas-arch`: names between commas, or `all`.
pub(crate) fn archs(parser: &mut Parser, all: &[Arch]) -> Result<Vec<Arch>> {
    let text = parser.value()?.string()?;
    if text == "all" {
        return Ok(all.to_vec());
    }
    Ok(text.split(',').map(str::parse).collect::<Result<_, cuda_builder::Error>>()?)
}
