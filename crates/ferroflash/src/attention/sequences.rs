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

pub(super) use check::{Call, heads};
pub use describe::{KvCache, KvCacheMut, NewRows, PackedRows, PageTable, Rotary};
pub(super) use launches::problem_of;
pub(super) use params::{Arrays, table, with_table};
pub(crate) use plan::plan_contiguous;
pub(super) use plan::read;
pub(crate) use sizes::SequenceSizes;
