//! The backward pass of attention: gradients of `out = softmax(scale * q k^T + mask) v` and of its log-sum-exp, by recomputation.
//!
//! Three passes. [`Pass::Delta`] reduces each row of the output and its gradient to one number, [`Pass::Keys`] and [`Pass::Queries`]
//! compute every score anew, once for the gradients of keys and values and once for those of the queries. Every sum has one owner that
//! adds in one order: results are the same from run to run, and nothing but the rows' statistics is kept in memory.
//!
//! [`Pass::Sinks`] is a fourth where the gradient of the sinks is wanted: one sum over the rows of each head.
//!
//! Over packed sequences the three are [`Pass::PackedDelta`], [`Pass::PackedKeys`] and [`Pass::PackedQueries`]: the same, for tiles that thread
//! blocks find by lengths on the device.
//!
//! The passes of [`naive`] keep all scores in memory instead, as every framework did before 2022.

use crate::copy_engine::BOX_COLS;
use crate::dtype::DType;
use crate::entry::Entry;
use crate::families::forward::features;
use crate::features::FeatureSet;
use crate::layout;
use crate::philox;

pub mod memory;
#[macro_use]
pub mod naive;
pub mod order;
pub mod packed;
mod params;
mod pass;
pub mod policy;
#[macro_use]
mod rows;

pub use naive::NaiveBackwardParams;
pub use params::{BACKWARD_SLOTS, BackwardParams, FusedParams, PackedBackwardParams, SinkParams};
pub use pass::Pass;

/// What the rows of the statistics of a head are rounded up to: the blocks of queries divide it, so that whole blocks are read.
pub const STATISTICS_ROWS: u32 = 128;

/// Bytes of the statistics of a row: log-sum-exp and delta.
pub const STATISTICS_BYTES: u32 = 8;

/// Rows of a piece of the sums of dq: those of one product of a warpgroup.
pub const SHARE_ROWS: u32 = 64;

/// Columns of it: a panel of a tile.
pub const SHARE_COLS: u32 = BOX_COLS;

/// The choices of a row, those of its pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named like the passes")]
pub enum Policy {
    Delta(policy::Delta),
    Keys(policy::Keys),
    Queries(policy::Queries),
    PackedDelta(policy::PackedDelta),
    PackedKeys(policy::PackedKeys),
    PackedQueries(policy::PackedQueries),
    Fused(policy::Fused),
    Ordered(policy::Ordered),
    Round(policy::Round),
    Sinks(policy::Sinks),
    NaiveScores(policy::NaiveScores),
    NaiveQueries(policy::NaiveQueries),
    NaiveKeys(policy::NaiveKeys),
}

/// One row of the list: an entry point, and what it computes with which tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// What a launch needs of it.
    pub entry: Entry,
    /// What it computes.
    pub pass: Pass,
    /// Element type of all tensors.
    pub dtype: DType,
    /// Columns of its tiles; smaller head dims are zero-filled up to it. 0 for a pass that has none.
    pub dim: u32,
    /// Rows of its tiles of queries and output gradients.
    pub q_block: u32,
    /// Rows of its tiles of keys and values.
    pub kv_block: u32,
    /// Warps of one thread block.
    pub warps: u32,
    /// Choices that make it fast.
    pub policy: Policy,
    /// Why this tile.
    pub reason: &'static str,
}

macro_rules! variant_table {
    ($($pass:ident $dim:literal [$($dtype:ident $symbol:ident),+] $q_block:literal x $kv_block:literal,
       $warps:literal, $min_ctas:literal, $features:tt, $policy:tt, $reason:literal;)*) => {
        &[$($(Variant {
            entry: Entry {
                symbol: stringify!($symbol),
                arch: Pass::$pass.arch(),
                threads: 32 * $warps,
                // Known once the row is: see `with_shared_bytes`.
                shared_bytes: 0,
                min_ctas: $min_ctas,
                params_bytes: Pass::$pass.params_bytes(),
                feature_slots: BACKWARD_SLOTS,
                accepts: variant_table!(@ $features),
                cooperative: Pass::$pass.is_cooperative(),
                max_cluster: 1,
            },
            pass: Pass::$pass,
            dtype: DType::$dtype,
            dim: $dim,
            q_block: $q_block,
            kv_block: $kv_block,
            warps: $warps,
            policy: Policy::$pass(policy::$pass $policy),
            reason: $reason,
        }.with_shared_bytes(),)+)*]
    };
    (@ [$($feature:ident),*]) => { FeatureSet::NONE$(.union(FeatureSet::of(features::$feature)))* };
}

/// The lists, one behind the other.
const LISTS: [&[Variant]; 4] = [
    for_each_backward_row!(variant_table),
    for_each_packed_backward_row!(variant_table),
    for_each_fused_backward_row!(variant_table),
    for_each_naive_backward_row!(variant_table),
];

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = &all_lists::<{ LISTS[0].len() + LISTS[1].len() + LISTS[2].len() + LISTS[3].len() }>();

const fn all_lists<const N: usize>() -> [Variant; N] {
    let mut all = [LISTS[0][0]; N];
    let (mut list, mut filled) = (0, 0);
    while list < LISTS.len() {
        let mut i = 0;
        while i < LISTS[list].len() {
            all[filled] = LISTS[list][i];
            (i, filled) = (i + 1, filled + 1);
        }
        list += 1;
    }
    all
}

impl Variant {
    named!();

    /// The entry for `pass` on tensors of `dtype` of `head_dim` columns; `None` when no compiled head dim holds them.
    pub fn find(pass: Pass, dtype: DType, head_dim: u32) -> Option<&'static Variant> {
        Variant::find_with(pass, dtype, head_dim, FeatureSet::NONE)
    }

    /// The same for calls with features, as far as the pass [accepts](Pass::accepts) them.
    pub fn find_with(pass: Pass, dtype: DType, head_dim: u32, features: FeatureSet) -> Option<&'static Variant> {
        let features = features.intersection(pass.accepts());
        let holds = |v: &&Variant| v.pass == pass && v.dtype == dtype && (v.dim == 0 || v.dim >= head_dim);
        // Of equal dims the first: plain rows stand before those that have features as well.
        VARIANTS.iter().filter(holds).filter(|v| v.entry.accepts.contains(features)).min_by_key(|v| v.dim)
    }

    /// Tiles of a head, at most, of a pass over `batch` packed sequences with so many rows together. 0 for other passes.
    pub const fn packed_tiles(&self, batch: u64, q_rows: u64, kv_rows: u64) -> u64 {
        match self.pass {
            // Rows that do not exist have statistics too.
            Pass::PackedDelta => packed::statistics_rows(q_rows, batch) / self.q_block as u64,
            Pass::PackedKeys => packed::most_tiles(kv_rows, batch, self.kv_block as u64),
            Pass::PackedQueries => packed::most_tiles(q_rows, batch, self.q_block as u64),
            _ => 0,
        }
    }

    /// Thread blocks of one launch; of packed sequences, rows are those of all together. The grid is one-dimensional: its x axis is the only one that reaches 2^31 - 1.
    pub const fn ctas(&self, batch: u64, q_heads: u64, kv_heads: u64, q_rows: u64, kv_rows: u64) -> u64 {
        match self.pass {
            // Rows that do not exist have statistics too.
            Pass::Delta => batch * q_heads * (q_rows.next_multiple_of(STATISTICS_ROWS as u64) / self.q_block as u64),
            Pass::Keys | Pass::Fused | Pass::Ordered | Pass::NaiveKeys => {
                batch * kv_heads * kv_rows.div_ceil(self.kv_block as u64)
            }
            Pass::Queries | Pass::Round | Pass::NaiveQueries => batch * q_heads * q_rows.div_ceil(self.q_block as u64),
            Pass::PackedDelta | Pass::PackedKeys | Pass::PackedQueries => {
                let heads = if matches!(self.pass, Pass::PackedKeys) { kv_heads } else { q_heads };
                heads * self.packed_tiles(batch, q_rows, kv_rows)
            }
            // One a head, which adds all rows in one order.
            Pass::Sinks => q_heads,
            Pass::NaiveScores => {
                batch * q_heads * q_rows.div_ceil(self.q_block as u64) * kv_rows.div_ceil(self.kv_block as u64)
            }
        }
    }

    /// Bytes of a tile of queries, output gradients, or gradients of queries.
    pub const fn q_tile_bytes(&self) -> u32 {
        self.q_block * self.tile_cols() * self.dtype.bytes() as u32
    }

    /// Bytes of a tile of keys, values, or gradients of either.
    pub const fn kv_tile_bytes(&self) -> u32 {
        self.kv_block * self.tile_cols() * self.dtype.bytes() as u32
    }

    /// Pieces of 64 rows and 64 columns in a block of gradients of queries, of the passes that sum them up.
    pub const fn shares(&self) -> u32 {
        self.q_block / SHARE_ROWS * (self.tile_cols() / SHARE_COLS)
    }

    /// Columns that a row of a tile has room for: the copy engine moves whole panels.
    pub const fn tile_cols(&self) -> u32 {
        match self.pass {
            Pass::Fused | Pass::Ordered | Pass::Round => self.dim.next_multiple_of(BOX_COLS),
            _ => self.dim,
        }
    }

    const fn with_shared_bytes(mut self) -> Variant {
        self.entry.shared_bytes = match self.policy {
            Policy::Delta(_) | Policy::PackedDelta(_) | Policy::Round(_) => 0,
            Policy::Sinks(_) => memory::Sinks::of(&self).total,
            Policy::Fused(policy) | Policy::Ordered(policy) => memory::Fused::of(&self, policy).total,
            Policy::Keys(policy) | Policy::PackedKeys(policy) => memory::Keys::of(&self, policy).total,
            Policy::Queries(policy) | Policy::PackedQueries(policy) => memory::Queries::of(&self, policy).total,
            Policy::NaiveScores(_) => memory::NaiveScores::of(&self).total,
            Policy::NaiveQueries(policy) => memory::NaiveProduct::of(&self, policy, self.kv_tile_bytes()).total,
            Policy::NaiveKeys(policy) => memory::NaiveProduct::of(&self, policy, self.q_tile_bytes()).total,
        };
        self
    }

    /// Panics, at compile time, when the row fits neither its GPUs nor the instructions of its pass.
    const fn check(&self) {
        assert!(
            self.entry.shared_bytes <= self.entry.arch.shared_bytes(),
            "a variant needs more shared memory than its GPUs have"
        );
        assert!(STATISTICS_ROWS.is_multiple_of(self.q_block), "whole blocks of statistics are read");
        // Panics where rows do not split into panels.
        if self.dim > 0 {
            layout::panel_bytes(self.dim as usize * self.dtype.bytes());
        }
        if self.entry.takes(features::DROPOUT) {
            let tile = match self.policy {
                Policy::Keys(policy::Keys { columns, .. }) => {
                    [self.kv_block * columns / self.warps, self.q_block / columns]
                }
                _ => [self.q_block / self.warps, self.kv_block],
            };
            assert!(philox::has_marks(tile), "dropout has marks for the tile of a warp");
        }
        // Fragments of the right operand: two of 8 columns come in one load of 16-bit elements.
        let fragment_cols = if matches!(self.dtype, DType::F32) { 8 } else { 16 };
        match self.policy {
            Policy::Delta(_) | Policy::PackedDelta(_) | Policy::Sinks(_) => {}
            Policy::Keys(policy::Keys { stages, columns })
            | Policy::PackedKeys(policy::PackedKeys { stages, columns }) => {
                assert!(stages == 1 || stages == 2, "one stage is multiplied while the other is loaded");
                assert!(columns == 1 || columns == 2, "columns are split by one bit of their number");
                assert!(self.kv_block.is_multiple_of(16 * self.warps / columns), "warps own whole 16-row fragments");
                assert!(self.q_block.is_multiple_of(fragment_cols * columns), "warps own whole fragments of scores");
                assert!(self.dim.is_multiple_of(16 * columns), "warps own whole pairs of 8 columns");
            }
            Policy::Fused(_) | Policy::Ordered(_) => {
                let key_warpgroups = self.kv_block / memory::Fused::WARPGROUP_ROWS;
                assert!(self.warps == 4 * (1 + key_warpgroups), "a warpgroup loads, the others have keys");
                assert!(self.shares() == key_warpgroups, "each has a share of the gradients of queries");
            }
            Policy::Round(_) => {
                assert!(self.warps == 4 * self.shares(), "a warpgroup for each share, as those that added");
            }
            Policy::Queries(_) | Policy::PackedQueries(_) | Policy::NaiveScores(_) | Policy::NaiveQueries(_) => {
                assert!(self.q_block.is_multiple_of(16 * self.warps), "warps own whole 16-row fragments");
                assert!(self.kv_block.is_multiple_of(fragment_cols), "whole fragments of scores");
            }
            Policy::NaiveKeys(_) => {
                assert!(self.kv_block.is_multiple_of(16 * self.warps), "warps own whole 16-row fragments");
                let row_bytes = self.kv_block as usize * self.dtype.bytes();
                assert!(row_bytes <= layout::PANEL_BYTES, "rows of weights in one panel, as the product takes them");
            }
        }
    }
}

// A row that does not fit is a compile error, not a failed launch.
const _: () = {
    let mut i = 0;
    while i < VARIANTS.len() {
        VARIANTS[i].check();
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{COMPILED_HEAD_DIMS, MAX_HEAD_DIM};

    #[test]
    fn every_pass_covers_every_dtype_and_head_dim() {
        for pass in Pass::PORTABLE.into_iter().chain(Pass::PACKED).chain(Pass::NAIVE) {
            let without_tile = matches!(pass, Pass::Delta | Pass::PackedDelta);
            for dtype in DType::ALL {
                for head_dim in (8..=MAX_HEAD_DIM).step_by(8) {
                    let v = Variant::find(pass, dtype, head_dim).unwrap();
                    let compiled = COMPILED_HEAD_DIMS.into_iter().find(|&d| d >= head_dim).unwrap();
                    assert!(v.dim == compiled || without_tile, "{}", v.entry.symbol);
                    assert_eq!((v.pass, v.dtype), (pass, dtype));
                }
                assert!(without_tile || Variant::find(pass, dtype, MAX_HEAD_DIM + 8).is_none());
            }
        }
    }

    /// Six query heads over two of keys, 100 rows and 70 keys in two sequences, counted by hand.
    #[test]
    fn thread_blocks_are_counted() {
        for v in VARIANTS {
            let expected = match v.pass {
                Pass::Delta => 2 * 6 * 128 / 64,
                Pass::Keys | Pass::Fused | Pass::Ordered | Pass::NaiveKeys => {
                    2 * 2 * 70_u64.div_ceil(v.kv_block.into())
                }
                Pass::Queries | Pass::Round | Pass::NaiveQueries => 2 * 6 * 100_u64.div_ceil(v.q_block.into()),
                // Those rows in all, of two sequences that may each have a block that is not full.
                Pass::PackedDelta => 6 * 2 * 128 / 64,
                Pass::Sinks => 6,
                Pass::PackedKeys => 2 * (70 / u64::from(v.kv_block) + 2),
                Pass::PackedQueries => 6 * (100 / u64::from(v.q_block) + 2),
                Pass::NaiveScores => 2 * 6 * 100_u64.div_ceil(v.q_block.into()) * 70_u64.div_ceil(v.kv_block.into()),
            };
            assert_eq!(v.ctas(2, 6, 2, 100, 70), expected, "{}", v.entry.symbol);
        }
    }

    /// Rows that drop stand behind those that do not: a call takes the first of equal dims.
    #[test]
    fn rows_with_dropout_run_calls_with_dropout_alone() {
        let drops = FeatureSet::of(features::DROPOUT);
        let own = |v: &&Variant| v.entry.symbol.ends_with("_dropout");
        assert!(VARIANTS.iter().any(|v| own(&v)));
        for v in VARIANTS.iter().filter(own) {
            for others in v.entry.accepts.subsets() {
                let found = Variant::find_with(v.pass, v.dtype, v.dim, others).expect("a row");
                assert_eq!(own(&found), others.contains(drops), "{}", found.entry.symbol);
            }
        }
    }

    #[test]
    fn a_symbol_names_its_row() {
        for v in VARIANTS {
            assert_eq!(Variant::named(v.entry.symbol), v);
        }
    }
}
