//! Forward attention: `out = softmax(scale * q k^T + mask) v`.

use crate::dtype::DType;
use crate::entry::Entry;
use crate::families::same;
use crate::families::sequences;
use crate::features::FeatureSet;
use crate::layout::PANEL_COLS;

mod check;
pub mod features;
pub mod memory;
mod params;
mod pass;
pub mod policy;
#[macro_use]
mod rows;

pub use params::{FORWARD_SLOTS, ForwardFeatures, ForwardParams, NaiveParams, TensorParams, V3Params};
pub use pass::Pass;

/// An algorithm that users choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kernel {
    /// Scores and probabilities in device memory: three passes, quadratic extra memory.
    Naive,
    /// FlashAttention (Dao et al. 2022): online softmax, output normalised at every step, keys split over warps.
    V1,
    /// FlashAttention-2 (Dao 2023): normalisation deferred to the end, query rows split over warps.
    V2,
    /// FlashAttention-3 (Shah et al. 2024): Hopper's copy engine and asynchronous products, warp specialisation. 16-bit types.
    V3,
}

impl Kernel {
    /// Every kernel, oldest first.
    pub const ALL: [Kernel; 4] = [Kernel::Naive, Kernel::V1, Kernel::V2, Kernel::V3];

    /// Name on the command line and in tables: `naive`, `v1`, `v2`, `v3`.
    pub const fn name(self) -> &'static str {
        match self {
            Kernel::Naive => "naive",
            Kernel::V1 => "v1",
            Kernel::V2 => "v2",
            Kernel::V3 => "v3",
        }
    }

    /// What it is, in a few words, for help and lists.
    pub const fn summary(self) -> &'static str {
        match self {
            Kernel::Naive => "Scores and probabilities in device memory",
            Kernel::V1 => "FlashAttention",
            Kernel::V2 => "FlashAttention-2",
            Kernel::V3 => "FlashAttention-3: compute capability 9.0, f16 and bf16",
        }
    }

    /// The passes of this kernel, in launch order.
    pub const fn passes(self) -> &'static [Pass] {
        match self {
            Kernel::Naive => &[Pass::Scores, Pass::Softmax, Pass::Output],
            Kernel::V1 => &[Pass::V1],
            Kernel::V2 => &[Pass::V2],
            Kernel::V3 => &[Pass::V3],
        }
    }
}

impl core::fmt::Display for Kernel {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(self.name())
    }
}

/// The choices of a row, those of its pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[expect(missing_docs, reason = "named like the passes")]
pub enum Policy {
    Scores(policy::Scores),
    Softmax(policy::Softmax),
    Output(policy::Output),
    V1(policy::V1),
    V2(policy::V2),
    V3(policy::V3),
    Decode(sequences::policy::Decode),
    ClusterDecode(sequences::policy::ClusterDecode),
    Prefill(sequences::policy::Prefill),
    PackedV3(sequences::policy::PackedV3),
    SplitV3(sequences::policy::SplitV3),
    Tiles(sequences::policy::Tiles),
    Merge(sequences::policy::Merge),
    Append(sequences::policy::Append),
}

/// One row of the list: an entry point, and what it computes with which tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// What a launch needs of it.
    pub entry: Entry,
    /// What it computes.
    pub pass: Pass,
    /// Element type of q, k and v.
    pub dtype: DType,
    /// Element type of the output.
    pub out_dtype: DType,
    /// Columns of its query and key tiles; smaller head dims are zero-filled up to it. 0 for a pass that has neither.
    pub dim_qk: u32,
    /// Columns of its value and output tiles, likewise.
    pub dim_v: u32,
    /// Query rows of one thread block.
    pub q_block: u32,
    /// Key rows of one tile.
    pub kv_block: u32,
    /// Warps of one thread block.
    pub warps: u32,
    /// Choices that make it fast.
    pub policy: Policy,
    /// Keys that a query row must see on average for this tile to be chosen before others of the head dim; 0 for the first.
    pub from_keys: u32,
    /// Why this tile.
    pub reason: &'static str,
}

/// Score rows that one thread block of the naive softmax pass handles: one a warp.
pub const SOFTMAX_ROWS_PER_CTA: u32 = 4;

/// The list of rows of attention, uniform or over sequences.
macro_rules! attention_variants {
    ($($pass:ident $dim_qk:literal / $dim_v:literal [$($dtype:ident $symbol:ident),+] $q_block:literal x $kv_block:literal,
       $warps:literal, $min_ctas:literal, $from_keys:literal, $features:tt, $policy:tt, $reason:literal;)*) => {
        &[$($(Variant {
            entry: Entry {
                symbol: stringify!($symbol),
                arch: Pass::$pass.arch(),
                threads: 32 * $warps,
                // Known once the row is: see `with_shared_bytes`.
                shared_bytes: 0,
                min_ctas: $min_ctas,
                params_bytes: Pass::$pass.params_bytes(),
                feature_slots: FORWARD_SLOTS,
                accepts: attention_variants!(@ $features),
                cooperative: false,
                max_cluster: Pass::$pass.max_cluster(),
            },
            pass: Pass::$pass,
            dtype: DType::$dtype,
            out_dtype: DType::$dtype,
            dim_qk: $dim_qk,
            dim_v: $dim_v,
            q_block: $q_block,
            kv_block: $kv_block,
            warps: $warps,
            policy: Policy::$pass(policy::$pass $policy),
            from_keys: $from_keys,
            reason: $reason,
        }.with_shared_bytes(),)+)*]
    };
    (@ [$($feature:ident),*]) => { FeatureSet::NONE$(.union(FeatureSet::of(features::$feature)))* };
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_forward_row!(attention_variants);

/// Head dims that kernels are compiled for, in ascending order; a problem takes the smallest that holds its own.
pub const COMPILED_HEAD_DIMS: [u32; count_head_dims()] = {
    let mut dims = [0; count_head_dims()];
    let (mut i, mut least) = (0, 0);
    while i < dims.len() {
        least = next_head_dim(least);
        dims[i] = least;
        i += 1;
    }
    dims
};

/// Largest head dim.
pub const MAX_HEAD_DIM: u32 = COMPILED_HEAD_DIMS[COMPILED_HEAD_DIMS.len() - 1];

/// The smallest head dim of a row that is above `dim`, or 0.
const fn next_head_dim(dim: u32) -> u32 {
    let (mut next, mut i) = (0, 0);
    while i < VARIANTS.len() {
        let found = VARIANTS[i].head_dim();
        if found > dim && (next == 0 || found < next) {
            next = found;
        }
        i += 1;
    }
    next
}

const fn count_head_dims() -> usize {
    let (mut count, mut dim) = (0, next_head_dim(0));
    while dim > 0 {
        count += 1;
        dim = next_head_dim(dim);
    }
    count
}

impl Variant {
    /// The row of an entry point, for the kernel of that name: of this list, or of that over sequences.
    ///
    /// # Panics
    /// At compile time when there is none.
    pub const fn named(symbol: &str) -> &'static Variant {
        let lists = [VARIANTS, sequences::VARIANTS];
        let (mut list, mut i) = (0, 0);
        while list < lists.len() {
            if i == lists[list].len() {
                (list, i) = (list + 1, 0);
            } else if same(lists[list][i].entry.symbol.as_bytes(), symbol.as_bytes()) {
                return &lists[list][i];
            } else {
                i += 1;
            }
        }
        panic!("no row has this symbol")
    }

    /// The entry for `pass` on tensors of `dtype` whose queries and values have `dims` columns and whose rows see `keys` keys on
    /// average, with `features`; `None` when no compiled head dim holds them.
    pub fn find(pass: Pass, dtype: DType, dims: [u32; 2], keys: u32, features: FeatureSet) -> Option<&'static Variant> {
        VARIANTS
            .iter()
            .filter(|v| {
                let runs = v.entry.accepts.contains(features) && features.contains(v.needs());
                v.pass == pass && v.holds(dtype, dims) && runs && v.from_keys <= keys
            })
            .min_by_key(|v| (v.dim_qk + v.dim_v, core::cmp::Reverse(v.from_keys)))
    }

    /// Whether it computes on tensors of `dtype` whose queries and values have `dims` columns.
    pub const fn holds(&self, dtype: DType, dims: [u32; 2]) -> bool {
        let [dim_qk, dim_v] = dims;
        self.dtype as u32 == dtype as u32
            && (self.dim_qk == 0 || self.dim_qk >= dim_qk)
            && (self.dim_v == 0 || self.dim_v >= dim_v)
    }

    /// Whether calls without features run it, and not only those whose features no other tile accepts.
    pub fn runs_plain(&self) -> bool {
        let chosen = Variant::find(self.pass, self.dtype, [self.dim_qk, self.dim_v], self.from_keys, FeatureSet::NONE);
        chosen.is_some_and(|chosen| chosen.entry.symbol == self.entry.symbol)
    }

    /// Whether its keys come in the order of lists, see [`blocks`](crate::families::blocks).
    pub const fn is_listed(&self) -> bool {
        self.entry.takes(features::BLOCKS)
    }

    /// The features without which it does not run.
    pub const fn needs(&self) -> FeatureSet {
        self.entry.accepts.intersection(FeatureSet::of(features::BLOCKS).union(FeatureSet::of(features::MASK_ONLY)))
    }

    /// Columns of its tiles, the larger number where those of keys and values differ; 0 for a pass that has neither.
    pub const fn head_dim(&self) -> u32 {
        if self.dim_qk > self.dim_v { self.dim_qk } else { self.dim_v }
    }

    /// Thread blocks of one launch. The grid is one-dimensional: its x axis is the only one that reaches 2^31 - 1.
    ///
    /// v3 is persistent: its blocks, at most one a multiprocessor, share the tiles out among themselves.
    pub const fn ctas(&self, batch: u64, q_heads: u64, q_rows: u64, kv_rows: u64, multiprocessors: u32) -> u64 {
        let heads = batch * q_heads;
        match self.pass {
            Pass::Scores => heads * q_rows.div_ceil(self.q_block as u64) * kv_rows.div_ceil(self.kv_block as u64),
            Pass::Softmax => (heads * q_rows).div_ceil(SOFTMAX_ROWS_PER_CTA as u64),
            Pass::Output | Pass::V1 | Pass::V2 => heads * q_rows.div_ceil(self.q_block as u64),
            Pass::V3 => {
                let tiles = heads * q_rows.div_ceil(self.q_block as u64);
                if tiles < multiprocessors as u64 { tiles } else { multiprocessors as u64 }
            }
            _ => panic!("sequences have lengths of their own"),
        }
    }

    /// Columns of a tile of `dim` columns in shared memory. The copy engine moves whole panels.
    pub const fn tile_cols(&self, dim: u32) -> u32 {
        match self.pass {
            Pass::V3 | Pass::PackedV3 | Pass::SplitV3 => dim.next_multiple_of(PANEL_COLS as u32),
            _ => dim,
        }
    }

    /// Bytes of a tile of queries.
    pub const fn q_tile_bytes(&self) -> u32 {
        self.q_block * self.tile_cols(self.dim_qk) * self.dtype.bytes() as u32
    }

    /// Bytes of a tile of keys.
    pub const fn k_tile_bytes(&self) -> u32 {
        self.kv_block * self.tile_cols(self.dim_qk) * self.dtype.bytes() as u32
    }

    /// Bytes of a tile of values.
    pub const fn v_tile_bytes(&self) -> u32 {
        self.kv_block * self.tile_cols(self.dim_v) * self.dtype.bytes() as u32
    }

    /// Bytes of a tile of the output.
    pub const fn out_tile_bytes(&self) -> u32 {
        self.q_block * self.dim_v * self.out_dtype.bytes() as u32
    }

    pub(super) const fn with_shared_bytes(mut self) -> Variant {
        self.entry.shared_bytes = match self.policy {
            Policy::Scores(_) => memory::Scores::of(&self).total,
            Policy::Softmax(_) => 0,
            Policy::Output(policy) => memory::Output::of(&self, policy).total,
            Policy::V1(policy::V1 { slots }) | Policy::V2(policy::V2 { slots, .. }) => {
                memory::Stream::of(&self, slots).total
            }
            Policy::V3(policy) | Policy::PackedV3(policy) | Policy::SplitV3(policy) => {
                memory::V3::of(&self, policy).total
            }
            Policy::Tiles(_) => sequences::memory::Tiles::places().total,
            Policy::Decode(sequences::policy::Decode { slots })
            | Policy::ClusterDecode(sequences::policy::ClusterDecode { slots }) => {
                sequences::memory::Decode::of(&self, slots).total
            }
            Policy::Prefill(sequences::policy::Prefill { slots, .. }) => memory::Stream::of(&self, slots).total,
            Policy::Merge(_) | Policy::Append(_) => 0,
        };
        self
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
    extern crate std;
    use super::*;

    #[test]
    fn every_feature_has_a_tile_wherever_a_call_without_it_has_one() {
        let all = [features::SOFTCAP, features::PROGRAM, features::SINK].map(FeatureSet::of);
        let all = all.into_iter().fold(FeatureSet::NONE, FeatureSet::union);
        for v in VARIANTS {
            let dims = [v.dim_qk, v.dim_v];
            let found = Variant::find(v.pass, v.dtype, dims, v.from_keys, all).expect("a tile with every feature");
            assert_eq!((found.dim_qk, found.dim_v), (v.dim_qk, v.dim_v), "{}", v.entry.symbol);
        }
    }

    /// Rows that drop stand behind those that do not: a call takes the first of equal dims.
    #[test]
    fn rows_with_dropout_run_calls_with_dropout_alone() {
        let drops = FeatureSet::of(features::DROPOUT);
        let own = |v: &&Variant| v.entry.symbol.ends_with("_dropout");
        assert!(VARIANTS.iter().any(|v| own(&v)));
        for v in VARIANTS.iter().filter(own) {
            assert!(!v.runs_plain(), "{}", v.entry.symbol);
            for others in v.entry.accepts.subsets() {
                let found = Variant::find(v.pass, v.dtype, [v.dim_qk, v.dim_v], v.from_keys, others).expect("a row");
                assert_eq!(own(&found), others.contains(drops), "{}", found.entry.symbol);
            }
        }
    }

    /// Three heads of 100 rows and 70 keys in two sequences, counted by hand.
    #[test]
    fn thread_blocks_are_counted() {
        for v in VARIANTS {
            let (q_blocks, kv_blocks) =
                (100_u64.div_ceil(v.q_block.max(1).into()), 70_u64.div_ceil(v.kv_block.max(1).into()));
            let expected = match v.pass {
                Pass::Scores => 6 * q_blocks * kv_blocks,
                Pass::Softmax => 600_u64.div_ceil(SOFTMAX_ROWS_PER_CTA.into()),
                Pass::Output | Pass::V1 | Pass::V2 => 6 * q_blocks,
                Pass::V3 => (6 * q_blocks).min(4),
                other => unreachable!("{other:?} is no pass of these rows"),
            };
            assert_eq!(v.ctas(2, 3, 100, 70, 4), expected, "{}", v.entry.symbol);
            // More multiprocessors than tiles.
            let tiles = if v.pass == Pass::V3 { 6 * q_blocks } else { expected };
            assert_eq!(v.ctas(2, 3, 100, 70, 1000), tiles, "{}", v.entry.symbol);
        }
    }

    #[test]
    fn every_kernel_covers_every_dtype_and_head_dim() {
        for kernel in Kernel::ALL {
            for &pass in kernel.passes() {
                for dtype in DType::ALL {
                    if pass == Pass::V3 && dtype == DType::F32 {
                        assert!(
                            Variant::find(pass, dtype, [64; 2], 0, FeatureSet::NONE).is_none(),
                            "the warpgroup products are for 16-bit types"
                        );
                        continue;
                    }
                    for head_dim in (8..=MAX_HEAD_DIM).step_by(8) {
                        let v = Variant::find(pass, dtype, [head_dim; 2], 0, FeatureSet::NONE).unwrap();
                        // v3 has no tile of its own for 32 dims: half of a 128-byte row would be zeros either way.
                        let least = if pass == Pass::V3 { 64 } else { 0 };
                        let compiled = COMPILED_HEAD_DIMS.into_iter().find(|&d| d >= head_dim.max(least)).unwrap();
                        assert!(v.head_dim() == compiled || pass == Pass::Softmax);
                        assert_eq!((v.pass.kernel(), v.dtype), (kernel, dtype));
                    }
                    assert!(
                        pass == Pass::Softmax
                            || Variant::find(pass, dtype, [MAX_HEAD_DIM + 8; 2], 0, FeatureSet::NONE).is_none()
                    );
                }
            }
        }
    }
}
