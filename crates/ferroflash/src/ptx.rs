//! The embedded PTX: one module for each entry point, packed, so that a device compiles only what it runs.

use crate::error::{Error, Result};
use kernel_spec::{Entry, Unit, entries};
use lzma_rust2::LzmaReader;
use std::io::{self, Read};

/// The name of an entry point, the pack with its text, and where that starts and ends in the unpacked bytes.
type Module = (&'static str, &'static [u8], usize, usize);

/// Entry points that are compiled together are embedded together: a crate for each, as a registry takes so much of one. Each is in the order of names.
static UNITS: [&[Module]; Unit::ALL.len()] = [ferroflash_ptx_attention::MODULES, ferroflash_ptx_operators::MODULES];

fn find(symbol: &str) -> Option<&'static Module> {
    UNITS.iter().find_map(|modules| {
        let index = modules.binary_search_by(|&(name, ..)| name.cmp(symbol)).ok()?;
        Some(&modules[index])
    })
}

/// The entry points whose PTX this build holds, in the order of the list.
pub fn embedded_entries() -> impl Iterator<Item = &'static Entry> {
    entries().filter(|entry| find(entry.symbol).is_some())
}

/// PTX of the module that holds this entry point, as it is given to the device: for disassemblers, profilers and other launchers.
///
/// # Errors
/// [`Error::MissingVariant`] when this build holds no such entry point, [`Error::PtxRejected`] when its text is damaged.
pub fn text(entry: &Entry) -> Result<String> {
    let symbol = entry.symbol;
    let module = find(symbol).ok_or(Error::MissingVariant { symbol })?;
    unpack(module).map_err(|error| Error::PtxRejected { symbol, log: format!("embedded text is damaged: {error}") })
}

fn unpack(&(_, lzma, start, end): &Module) -> io::Result<String> {
    // No limits: the packs are this build's own, and small.
    let mut pack = LzmaReader::new_mem_limit(lzma, u32::MAX, None)?;
    io::copy(&mut pack.by_ref().take(start as u64), &mut io::sink())?;
    let bytes = end - start;
    let mut text = String::with_capacity(bytes);
    if pack.take(bytes as u64).read_to_string(&mut text)? < bytes {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_is_found_by_its_name_alone() {
        for modules in UNITS {
            assert!(!modules.is_empty());
            for module in modules {
                let name = module.0;
                assert_eq!(find(name), Some(module));
                assert!(find(&name[1..]).is_none() && find(&format!("{name}_")).is_none(), "{name}");
            }
        }
        assert!(find("").is_none());
    }

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
