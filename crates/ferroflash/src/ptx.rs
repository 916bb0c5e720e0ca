//! The embedded PTX: one module for each entry point, compressed.

use crate::error::{Error, Result};
use attn_spec::{VARIANTS, Variant};

/// Entry point and its PTX, a module of its own (zlib), so that a device compiles only what it runs.
struct Embedded {
    symbol: &'static str,
    zlib: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/embedded.rs"));

/// The variants whose PTX this build holds, in the order of [`VARIANTS`].
pub fn embedded_variants() -> impl Iterator<Item = &'static Variant> {
    VARIANTS.iter().filter(|variant| find(variant.symbol).is_some())
}

/// PTX of the module that holds this entry point.
pub(crate) fn text(variant: &'static Variant) -> Result<String> {
    let symbol = variant.symbol;
    let bytes = find(symbol).ok_or(Error::MissingVariant { symbol })?;
    let unpacked = miniz_oxide::inflate::decompress_to_vec_zlib(bytes)
        .map_err(|error| Error::PtxRejected { symbol, log: format!("embedded text is damaged: {error}") })?;
    String::from_utf8(unpacked).map_err(|error| Error::PtxRejected { symbol, log: error.to_string() })
}

fn find(symbol: &str) -> Option<&'static [u8]> {
    let index = EMBEDDED.binary_search_by(|embedded| embedded.symbol.cmp(symbol)).ok()?;
    Some(EMBEDDED[index].zlib)
}
