//! Attention over sequences of different lengths: packed one behind the other, with keys in caches, contiguous or in pages.

mod call;
mod check;
mod describe;
mod params;
mod plan;
mod split;

pub(super) use check::{Call, SequenceSizes, heads};
pub use describe::{KvCache, KvCacheMut, NewRows, PackedRows, PageTable, Rotary};
pub(super) use params::{Arrays, table, with_table};
pub(crate) use plan::plan_contiguous;
pub(super) use plan::{problem_of, read};
