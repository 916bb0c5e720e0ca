//! The one list of compiled kernels. Entry points, the host's plan, tests, the bench sweep and the support table come from it.

use crate::dtype::DType;
use crate::entry::{Arch, Entry};
use crate::features::FeatureSet;
use crate::params::{FORWARD_SLOTS, ForwardParams, NaiveParams, V3Params};
use crate::{layout, v3};

/// Calls `$callback!` with every row of the list. A new head dim or tile is one row here.
///
/// Row: `pass head_dim [dtype symbol, ..] q_block x kv_block, warps, ring, min_ctas, from_keys, "why this tile";`
/// - `q_block`, `kv_block`: rows of the query tile and of the key and value tiles.
/// - `ring`: shared-memory slots in the stream of key and value tiles.
/// - `min_ctas`: thread blocks that must fit on a multiprocessor, which bounds the registers of a thread.
/// - `from_keys`: keys that a query row must see on average for this tile to be chosen before others of the head dim.
#[macro_export]
macro_rules! for_each_variant {
    ($callback:ident) => {
        $callback! {
            // Naive, scores = q k^T: one tile a thread block, bound by writing f32 scores.
            Scores 32 [F16 naive_scores_f16_d32, Bf16 naive_scores_bf16_d32] 128 x 64, 4, 1, 2, 0, "as d128";
            Scores 64 [F16 naive_scores_f16_d64, Bf16 naive_scores_bf16_d64] 128 x 64, 4, 1, 2, 0, "as d128";
            Scores 96 [F16 naive_scores_f16_d96, Bf16 naive_scores_bf16_d96] 128 x 64, 4, 1, 2, 0, "as d128";
            Scores 128 [F16 naive_scores_f16_d128, Bf16 naive_scores_bf16_d128] 128 x 64, 4, 1, 2, 0, "two 16-row fragments a warp reuse each key fragment";
            Scores 192 [F16 naive_scores_f16_d192, Bf16 naive_scores_bf16_d192] 64 x 64, 4, 1, 2, 0, "as d256";
            Scores 256 [F16 naive_scores_f16_d256, Bf16 naive_scores_bf16_d256] 64 x 64, 4, 1, 2, 0, "64 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            Scores 32 [F32 naive_scores_f32_d32] 64 x 32, 4, 1, 2, 0, "as d128";
            Scores 64 [F32 naive_scores_f32_d64] 64 x 32, 4, 1, 2, 0, "as d128";
            Scores 96 [F32 naive_scores_f32_d96] 64 x 32, 4, 1, 2, 0, "as d128";
            Scores 128 [F32 naive_scores_f32_d128] 64 x 32, 4, 1, 2, 0, "48 KiB of tiles";
            Scores 192 [F32 naive_scores_f32_d192] 64 x 32, 4, 1, 2, 0, "as d256";
            Scores 256 [F32 naive_scores_f32_d256] 64 x 32, 4, 1, 2, 0, "96 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            // Naive, probs = softmax(scores): one warp a row, no tile; head dim plays no part.
            Softmax 0 [F16 naive_softmax_f16, Bf16 naive_softmax_bf16, F32 naive_softmax_f32] 4 x 0, 4, 1, 4, 0, "one warp a row, bound by reading scores";
            // Naive, out = probs v.
            Output 32 [F16 naive_output_f16_d32, Bf16 naive_output_bf16_d32] 64 x 64, 4, 2, 2, 0, "as d128";
            Output 64 [F16 naive_output_f16_d64, Bf16 naive_output_bf16_d64] 64 x 64, 4, 2, 2, 0, "as d128";
            Output 96 [F16 naive_output_f16_d96, Bf16 naive_output_bf16_d96] 64 x 64, 4, 2, 2, 0, "as d128";
            Output 128 [F16 naive_output_f16_d128, Bf16 naive_output_bf16_d128] 64 x 64, 4, 2, 2, 0, "one key block of probabilities and values is loaded while the last is multiplied";
            Output 192 [F16 naive_output_f16_d192, Bf16 naive_output_bf16_d192] 64 x 64, 4, 2, 2, 0, "as d128";
            Output 256 [F16 naive_output_f16_d256, Bf16 naive_output_bf16_d256] 64 x 64, 4, 2, 2, 0, "80 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            Output 32 [F32 naive_output_f32_d32] 64 x 32, 4, 2, 2, 0, "as d128";
            Output 64 [F32 naive_output_f32_d64] 64 x 32, 4, 2, 2, 0, "as d128";
            Output 96 [F32 naive_output_f32_d96] 64 x 32, 4, 2, 2, 0, "as d128";
            Output 128 [F32 naive_output_f32_d128] 64 x 32, 4, 2, 2, 0, "48 KiB of tiles";
            Output 192 [F32 naive_output_f32_d192] 64 x 32, 4, 2, 2, 0, "as d256";
            Output 256 [F32 naive_output_f32_d256] 64 x 32, 4, 2, 2, 0, "80 KiB of tiles: fits the 99 KiB of sm_86 and sm_89";
            // v1: keys split over warps. The exchange buffer (warps x q_block x head_dim x 4 bytes) keeps q_block small.
            V1 32 [F16 v1_f16_d32, Bf16 v1_bf16_d32] 32 x 64, 4, 2, 2, 0, "as d64";
            V1 64 [F16 v1_f16_d64, Bf16 v1_bf16_d64] 32 x 64, 4, 2, 2, 0, "52 KiB of shared memory, 32 of them for the exchange";
            V1 96 [F16 v1_f16_d96, Bf16 v1_bf16_d96] 32 x 64, 4, 2, 2, 0, "as d64";
            V1 128 [F16 v1_f16_d128, Bf16 v1_bf16_d128] 16 x 64, 4, 2, 2, 0, "32 query rows would need 104 KiB";
            V1 192 [F16 v1_f16_d192, Bf16 v1_bf16_d192] 16 x 32, 2, 2, 2, 0, "as d256";
            V1 256 [F16 v1_f16_d256, Bf16 v1_bf16_d256] 16 x 32, 2, 2, 2, 0, "four warps would need 136 KiB";
            V1 32 [F32 v1_f32_d32] 16 x 32, 4, 2, 2, 0, "as d128";
            V1 64 [F32 v1_f32_d64] 16 x 32, 4, 2, 2, 0, "as d128";
            V1 96 [F32 v1_f32_d96] 16 x 32, 4, 2, 2, 0, "as d128";
            V1 128 [F32 v1_f32_d128] 16 x 32, 4, 2, 2, 0, "eight keys a warp, 72 KiB";
            V1 192 [F32 v1_f32_d192] 16 x 16, 2, 2, 2, 0, "as d256";
            V1 256 [F32 v1_f32_d256] 16 x 16, 2, 2, 2, 0, "eight keys a warp, 80 KiB";
            // v2: query rows split over warps, no exchange.
            V2 32 [F16 v2_f16_d32, Bf16 v2_bf16_d32] 128 x 64, 4, 2, 2, 0, "bound by exponentials: 128 keys gain nothing";
            V2 64 [F16 v2_f16_d64, Bf16 v2_bf16_d64] 128 x 128, 4, 2, 2, 0, "few dims leave registers for 128 keys: half the barriers and rescales, +14 % over 64 keys";
            V2 96 [F16 v2_f16_d96, Bf16 v2_bf16_d96] 128 x 64, 4, 2, 2, 0, "as d128";
            V2 128 [F16 v2_f16_d128, Bf16 v2_bf16_d128] 128 x 64, 4, 2, 2, 0, "two 16-row fragments a warp reuse each key and value fragment; 64 KiB, two thread blocks on sm_80 too";
            V2 192 [F16 v2_f16_d192, Bf16 v2_bf16_d192] 64 x 64, 4, 2, 2, 0, "as d256";
            V2 256 [F16 v2_f16_d256, Bf16 v2_bf16_d256] 64 x 64, 4, 2, 2, 0, "the accumulator of one 16-row fragment fits; 8 warps on 128 rows are 8 to 20 % slower; 96 KiB fits sm_86 and sm_89";
            V2 32 [F32 v2_f32_d32] 64 x 32, 4, 2, 2, 0, "as d128";
            V2 64 [F32 v2_f32_d64] 64 x 32, 4, 2, 2, 0, "as d128";
            V2 96 [F32 v2_f32_d96] 64 x 32, 4, 2, 2, 0, "as d128";
            V2 128 [F32 v2_f32_d128] 64 x 32, 4, 2, 2, 0, "64 KiB";
            V2 192 [F32 v2_f32_d192] 64 x 32, 4, 2, 2, 0, "96 KiB fits sm_86 and sm_89";
            V2 256 [F32 v2_f32_d256] 64 x 16, 4, 2, 2, 0, "96 KiB fits sm_86 and sm_89";
            // v3: one loading warpgroup, the others multiply 64 query rows each.
            V3 64 [F16 v3_f16_d64, Bf16 v3_bf16_d64] 128 x 128, 12, 3, 1, 0, "short rows: 192 query rows would leave a quarter of a tile empty at 512; a third stage, +2 % there";
            V3 64 [F16 v3_f16_d64_long, Bf16 v3_bf16_d64_long] 192 x 128, 16, 2, 1, 1152, "three warpgroups hide more of each other's waits than two, +6 to 17 %";
            V3 96 [F16 v3_f16_d96, Bf16 v3_bf16_d96] 128 x 128, 12, 2, 1, 0, "as d128";
            V3 96 [F16 v3_f16_d96_long, Bf16 v3_bf16_d96_long] 192 x 96, 16, 2, 1, 1536, "as d64_long, +2 to 13 %; 112 keys are 2 % slower at 3072 rows and no faster at 16384";
            V3 128 [F16 v3_f16_d128, Bf16 v3_bf16_d128] 128 x 128, 12, 2, 1, 0, "64 keys are 4 to 12 % slower up to 2048 rows, and 160 at 1024";
            V3 128 [F16 v3_f16_d128_long, Bf16 v3_bf16_d128_long] 192 x 80, 16, 3, 1, 2304, "as d64_long, +1 to 6 %; with 96 keys the registers of three warpgroups spill, 64 are up to 7 % slower";
            V3 192 [F16 v3_f16_d192, Bf16 v3_bf16_d192] 128 x 64, 12, 3, 1, 0, "short rows: fewer of 64 keys are hidden than of 96, +3 to 9 % under a causal mask up to 2048 rows";
            V3 192 [F16 v3_f16_d192_long, Bf16 v3_bf16_d192_long] 128 x 96, 12, 2, 1, 2048, "longer steps, +1 to 4 % without a mask";
            V3 256 [F16 v3_f16_d256, Bf16 v3_bf16_d256] 128 x 64, 12, 2, 1, 0, "80 keys, the most whose two stages fit, are 1 to 7 % slower up to 4096 rows: fewer of 64 are hidden or missing";
        }
    };
}

/// An algorithm that users choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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

/// One launch. The flash kernels are one pass, the naive kernel is three.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pass {
    /// Naive: `scores = scale * q k^T`, hidden elements at minus infinity.
    Scores,
    /// Naive: `probs = softmax(scores)` row by row, and the log-sum-exp.
    Softmax,
    /// Naive: `out = probs v`.
    Output,
    /// All of v1.
    V1,
    /// All of v2.
    V2,
    /// All of v3.
    V3,
}

impl Pass {
    /// The instruction set that it is compiled for.
    pub const fn arch(self) -> Arch {
        match self {
            Pass::Scores | Pass::Softmax | Pass::Output | Pass::V1 | Pass::V2 => Arch::Sm80,
            Pass::V3 => Arch::Sm90a,
        }
    }

    /// Bytes of its parameter struct.
    pub const fn params_bytes(self) -> u32 {
        let bytes = match self {
            Pass::Scores | Pass::Softmax | Pass::Output => size_of::<NaiveParams>(),
            Pass::V1 | Pass::V2 => size_of::<ForwardParams>(),
            Pass::V3 => size_of::<V3Params>(),
        };
        bytes as u32
    }

    /// The kernel that this pass belongs to.
    pub const fn kernel(self) -> Kernel {
        match self {
            Pass::Scores | Pass::Softmax | Pass::Output => Kernel::Naive,
            Pass::V1 => Kernel::V1,
            Pass::V2 => Kernel::V2,
            Pass::V3 => Kernel::V3,
        }
    }
}

/// One row of the list: an entry point, and what it computes with which tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// What a launch needs of it.
    pub entry: Entry,
    /// What it computes.
    pub pass: Pass,
    /// Element type of q, k, v and out.
    pub dtype: DType,
    /// Columns of its tiles; smaller head dims are zero-filled up to it. 0 for a pass that no head dim enters.
    pub head_dim: u32,
    /// Query rows of one thread block.
    pub q_block: u32,
    /// Key rows of one tile.
    pub kv_block: u32,
    /// Warps of one thread block.
    pub warps: u32,
    /// Shared-memory slots in the stream of key and value tiles.
    pub ring: u32,
    /// Keys that a query row must see on average for this tile to be chosen before others of the head dim; 0 for the first.
    pub from_keys: u32,
    /// Why this tile.
    pub reason: &'static str,
}

/// Head dims that kernels are compiled for; a problem takes the smallest that holds its own.
pub const COMPILED_HEAD_DIMS: [u32; 6] = [32, 64, 96, 128, 192, 256];

/// Largest head dim.
pub const MAX_HEAD_DIM: u32 = 256;

/// Score rows that one thread block of the naive softmax pass handles: one a warp.
pub const SOFTMAX_ROWS_PER_CTA: u32 = 4;

macro_rules! variant_table {
    ($($pass:ident $head_dim:literal [$($dtype:ident $symbol:ident),+] $q_block:literal x $kv_block:literal,
       $warps:literal, $ring:literal, $min_ctas:literal, $from_keys:literal, $reason:literal;)*) => {
        &[$($(Variant {
            entry: Entry {
                symbol: stringify!($symbol),
                arch: Pass::$pass.arch(),
                threads: 32 * $warps,
                shared_bytes: shared_bytes(Pass::$pass, DType::$dtype, $head_dim, $q_block, $kv_block, $warps, $ring),
                min_ctas: $min_ctas,
                params_bytes: Pass::$pass.params_bytes(),
                feature_slots: FORWARD_SLOTS,
                accepts: FeatureSet::NONE,
            },
            pass: Pass::$pass,
            dtype: DType::$dtype,
            head_dim: $head_dim,
            q_block: $q_block,
            kv_block: $kv_block,
            warps: $warps,
            ring: $ring,
            from_keys: $from_keys,
            reason: $reason,
        },)+)*]
    };
}

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_variant!(variant_table);

/// Bytes of dynamic shared memory of one thread block.
const fn shared_bytes(
    pass: Pass,
    dtype: DType,
    head_dim: u32,
    q_block: u32,
    kv_block: u32,
    warps: u32,
    ring: u32,
) -> u32 {
    let row = head_dim as usize * dtype.bytes();
    let (q_rows, kv_rows) = (q_block as usize, kv_block as usize);
    let (warps, ring) = (warps as usize, ring as usize);
    let bytes = match pass {
        Pass::Scores => (q_rows + kv_rows) * row,
        Pass::Softmax => 0,
        // A slot holds a tile of probabilities and the tile of values that it is multiplied with.
        Pass::Output => ring * (q_rows * kv_rows * dtype.bytes() + kv_rows * row),
        // Partial outputs of every warp in f32, then one maximum and one sum per warp and row.
        Pass::V1 => (q_rows + ring * kv_rows) * row + warps * q_rows * head_dim as usize * 4 + 2 * warps * q_rows * 4,
        Pass::V2 => (q_rows + ring * kv_rows) * row,
        Pass::V3 => {
            let row = v3::shared_cols(head_dim) as usize * dtype.bytes();
            let q_buffers = v3::q_buffers(head_dim) as usize;
            let notes = q_buffers * v3::note_bytes(q_block, kv_block) as usize;
            // Rings of queries, keys and values, and two 8-byte barriers for each of their buffers.
            (q_buffers * q_rows + 2 * ring * kv_rows) * row + notes + 16 * (q_buffers + 2 * ring)
        }
    };
    bytes as u32
}

impl Variant {
    /// The entry for `pass` on tensors of `dtype` and `head_dim` whose rows see `keys` keys on average, or `None` when no compiled
    /// head dim holds it.
    pub fn find(pass: Pass, dtype: DType, head_dim: u32, keys: u32) -> Option<&'static Variant> {
        VARIANTS
            .iter()
            .filter(|v| v.pass == pass && v.holds(dtype, head_dim) && v.from_keys <= keys)
            .min_by_key(|v| (v.head_dim, core::cmp::Reverse(v.from_keys)))
    }

    /// Whether it computes on tensors of `dtype` and `head_dim`.
    pub fn holds(&self, dtype: DType, head_dim: u32) -> bool {
        self.dtype == dtype && (self.head_dim >= head_dim || self.pass == Pass::Softmax)
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
        }
    }
}

// A row that does not fit is a compile error, not a failed launch.
const _: () = {
    let mut i = 0;
    while i < VARIANTS.len() {
        let v = &VARIANTS[i];
        assert!(
            v.entry.shared_bytes <= v.entry.arch.shared_bytes(),
            "a variant needs more shared memory than its GPUs have"
        );
        if !matches!(v.pass, Pass::Softmax) {
            let split = match v.pass {
                Pass::V1 => 1,
                Pass::V3 => v3::math_warps(v.warps),
                _ => v.warps,
            };
            assert!(v.q_block.is_multiple_of(16 * split), "warps own whole 16-row fragments");
            assert!(layout::panel_bytes(v.head_dim as usize * v.dtype.bytes()) >= 64, "tile rows split into panels");
        }
        i += 1;
    }
};

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn symbols_are_unique() {
        let symbols: HashSet<_> = VARIANTS.iter().map(|v| v.entry.symbol).collect();
        assert_eq!(symbols.len(), VARIANTS.len());
    }

    #[test]
    fn every_kernel_covers_every_dtype_and_head_dim() {
        for kernel in Kernel::ALL {
            for &pass in kernel.passes() {
                for dtype in DType::ALL {
                    if pass == Pass::V3 && dtype == DType::F32 {
                        assert!(
                            Variant::find(pass, dtype, 64, 0).is_none(),
                            "the warpgroup products are for 16-bit types"
                        );
                        continue;
                    }
                    for head_dim in (8..=MAX_HEAD_DIM).step_by(8) {
                        let v = Variant::find(pass, dtype, head_dim, 0).unwrap();
                        // v3 has no tile of its own for 32 dims: half of a 128-byte row would be zeros either way.
                        let least = if pass == Pass::V3 { 64 } else { 0 };
                        let compiled = COMPILED_HEAD_DIMS.into_iter().find(|&d| d >= head_dim.max(least)).unwrap();
                        assert!(v.head_dim == compiled || pass == Pass::Softmax);
                        assert_eq!((v.pass.kernel(), v.dtype), (kernel, dtype));
                    }
                    assert!(pass == Pass::Softmax || Variant::find(pass, dtype, MAX_HEAD_DIM + 8, 0).is_none());
                }
            }
        }
    }
}
