//! Families of kernels: each with its rows, its parameter structs and its features.
//!
//! A row is data: a tile, and the policies that make it fast. It carries the [`Entry`] that is all a launch needs, so that whoever
//! builds, embeds, loads or launches kernels knows of no family.

use crate::entry::Entry;

/// The row of a name, of the list `VARIANTS` beside it, in `impl Variant`.
macro_rules! named {
    () => {
        /// The row of an entry point, for the kernel of that name.
        ///
        /// # Panics
        /// At compile time when there is none.
        pub const fn named(symbol: &str) -> &'static Variant {
            let mut i = 0;
            while i < VARIANTS.len() {
                if $crate::families::same(VARIANTS[i].entry.symbol.as_bytes(), symbol.as_bytes()) {
                    return &VARIANTS[i];
                }
                i += 1;
            }
            panic!("no row has this symbol")
        }
    };
}

#[macro_use]
pub mod activation;
#[macro_use]
pub mod adamw;
pub mod backward;
pub mod blocks;
#[macro_use]
pub mod cross_entropy;
pub mod dense;
pub mod embedding;
#[macro_use]
pub mod forward;
#[macro_use]
pub mod gradient_norm;
#[macro_use]
pub mod merge;
#[macro_use]
pub mod norm;
#[macro_use]
pub mod rotary;
pub mod rows;
#[macro_use]
pub mod sequences;
#[macro_use]
pub mod softmax;

/// Entry points that are compiled together, and apart from all others: a feature of the kernel crate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Attention, forward and backward, over sequences, and what belongs to it.
    Attention,
    /// What models compute around it.
    Operators,
}

impl Unit {
    /// All of them.
    pub const ALL: [Unit; 2] = [Unit::Attention, Unit::Operators];

    /// The feature of the kernel crate.
    pub const fn feature(self) -> &'static str {
        match self {
            Unit::Attention => "attention",
            Unit::Operators => "operators",
        }
    }

    /// Its entry points.
    pub fn entries(self) -> impl Iterator<Item = &'static Entry> {
        let attention = (self == Unit::Attention).then(|| {
            let forward = forward::VARIANTS.iter().chain(sequences::VARIANTS).map(|variant| &variant.entry);
            let backward = backward::VARIANTS.iter().map(|variant| &variant.entry);
            let merge = merge::VARIANTS.iter().map(|variant| &variant.entry);
            forward.chain(backward).chain(merge).chain(blocks::ENTRIES)
        });
        let operators = (self == Unit::Operators).then(|| {
            let norms = norm::VARIANTS.iter().map(|variant| &variant.entry);
            let softmax = softmax::VARIANTS.iter().map(|variant| &variant.entry);
            let cross_entropy = cross_entropy::VARIANTS.iter().map(|variant| &variant.entry);
            let dense = dense::VARIANTS.iter().map(|variant| &variant.entry);
            let activation = activation::VARIANTS.iter().map(|variant| &variant.entry);
            let rotary = rotary::VARIANTS.iter().map(|variant| &variant.entry);
            let embedding = embedding::VARIANTS.iter().map(|variant| &variant.entry);
            let adamw = adamw::VARIANTS.iter().map(|variant| &variant.entry);
            let gradient_norm = gradient_norm::VARIANTS.iter().map(|variant| &variant.entry);
            let rows = norms.chain(softmax).chain(cross_entropy).chain(dense).chain(activation).chain(rotary);
            rows.chain(embedding).chain(adamw).chain(gradient_norm)
        });
        attention.into_iter().flatten().chain(operators.into_iter().flatten())
    }
}

/// Every compiled entry point, of all families.
pub fn entries() -> impl Iterator<Item = &'static Entry> {
    Unit::ALL.into_iter().flat_map(Unit::entries)
}

// `==` of slices is no const fn.
const fn same(a: &[u8], b: &[u8]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn symbols_are_unique() {
        let symbols: HashSet<_> = entries().map(|entry| entry.symbol).collect();
        assert_eq!(symbols.len(), entries().count());
    }
}
