#![no_std]
#![doc = include_str!("../README.md")]

/// An entry point and its PTX: a module with it alone, so that a device compiles only what it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Module {
    /// Name of the entry point, as in `kernel_spec::Entry::symbol`.
    pub symbol: &'static str,
    /// The pack that holds the text: UTF-8 in the format of .lzma files, the texts of entries that are much alike one behind the other.
    pub lzma: &'static [u8],
    /// Where the text starts in the unpacked bytes.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
}

// `MODULES`. In a package the file lies beside this one: `cargo xtask package` knows this line.
include!(concat!(env!("OUT_DIR"), "/modules.rs"));

/// The module of the entry point of this name.
pub fn find(symbol: &str) -> Option<&'static Module> {
    let index = MODULES.binary_search_by(|module| module.symbol.cmp(symbol)).ok()?;
    Some(&MODULES[index])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_is_found_by_its_name_alone() {
        assert!(!MODULES.is_empty());
        for module in MODULES {
            assert_eq!(find(module.symbol), Some(module));
            let (shorter, longer) = (&module.symbol[1..], [module.symbol.as_bytes(), b"_"].concat());
            assert!(find(shorter).is_none() && find(core::str::from_utf8(&longer).unwrap()).is_none());
        }
        assert!(find("").is_none());
    }
}
