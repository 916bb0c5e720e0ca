//! The embedded PTX: one module for each entry point, packed, so that a device compiles only what it runs.

use crate::error::{Error, Result};
use ferroflash_ptx::Module;
use kernel_spec::{Entry, entries};
use lzma_rust2::LzmaReader;
use std::io::{self, Read};

/// The entry points whose PTX this build holds, in the order of the list.
pub fn embedded_entries() -> impl Iterator<Item = &'static Entry> {
    entries().filter(|entry| ferroflash_ptx::find(entry.symbol).is_some())
}

/// PTX of the module that holds this entry point, as it is given to the device: for disassemblers, profilers and other launchers.
///
/// # Errors
/// [`Error::MissingVariant`] when this build holds no such entry point, [`Error::PtxRejected`] when its text is damaged.
pub fn text(entry: &Entry) -> Result<String> {
    let symbol = entry.symbol;
    let module = ferroflash_ptx::find(symbol).ok_or(Error::MissingVariant { symbol })?;
    unpack(module).map_err(|error| Error::PtxRejected { symbol, log: format!("embedded text is damaged: {error}") })
}

fn unpack(module: &Module) -> io::Result<String> {
    // No limits: the packs are this build's own, and small.
    let mut pack = LzmaReader::new_mem_limit(module.lzma, u32::MAX, None)?;
    io::copy(&mut pack.by_ref().take(module.start as u64), &mut io::sink())?;
    let bytes = module.end - module.start;
    let mut text = String::with_capacity(bytes);
    if pack.take(bytes as u64).read_to_string(&mut text)? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every entry point is there, as a module with it and no other.
    #[test]
    fn every_entry_is_embedded_alone() {
        assert_eq!(embedded_entries().count(), entries().count());
        for entry in entries() {
            let text = text(entry).unwrap();
            let lines: Vec<_> = text.lines().filter(|line| line.contains(".entry ")).collect();
            assert!(matches!(lines[..], [line] if line.contains(&format!(".entry {}(", entry.symbol))), "{lines:?}");
            assert!(text.contains(&format!(".target {}", entry.arch.name())), "{}", entry.symbol);
        }
    }
}
