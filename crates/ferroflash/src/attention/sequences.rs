//! Attention over sequences of different lengths: packed one behind the other, with keys in caches, contiguous or in pages.

mod call;
mod check;
mod describe;
mod hopper;
mod launches;
mod params;
mod plan;
mod sizes;
mod split;

pub use describe::{KvCache, KvCacheMut, NewRows, PackedRows, PageTable, Rotary};
pub(crate) use plan::plan_contiguous;
pub(crate) use sizes::SequenceSizes;
