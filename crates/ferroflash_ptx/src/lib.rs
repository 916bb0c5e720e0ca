#![no_std]
#![doc = include_str!("../README.md")]

/// An entry point and its PTX: a module with it alone, so that a device compiles only what it runs.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    /// Name of the entry point, as in `kernel_spec::Entry::symbol`.
    pub symbol: &'static str,
    /// The text, UTF-8 in zlib's format (RFC 1950).
    pub zlib: &'static [u8],
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
            assert_eq!(find(module.symbol).map(|found| found.zlib.as_ptr()), Some(module.zlib.as_ptr()));
            let (shorter, longer) = (&module.symbol[1..], [module.symbol.as_bytes(), b"_"].concat());
            assert!(find(shorter).is_none() && find(core::str::from_utf8(&longer).unwrap()).is_none());
        }
        assert!(find("").is_none());
    }
}
