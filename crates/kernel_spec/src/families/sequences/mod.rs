//! Attention over sequences of different lengths: packed one behind the other, with keys and values in caches, contiguous or in pages.
//!
//! | pass | who has which keys | for |
//! | --- | --- | --- |
//! | [`Pass::Decode`] | each warp keys of its own, all query rows | up to 16 query rows, those of a group's heads together |
//! | [`Pass::ClusterDecode`] | the same, and the splits are a cluster that merges them itself | few sequences (Hopper) |
//! | [`Pass::Prefill`] | all warps the same keys, each its query rows, as in v2 | more |
//! | [`Pass::PackedV3`] | as in v3 | packed sequences and contiguous caches (Hopper), whose tiles [`Pass::Tiles`] has listed |
//! | [`Pass::SplitV3`] | as in v3, of a split of the keys | the same where few tiles would leave the GPU idle, and pages (Hopper) |
//! | [`Pass::Merge`] | | several splits of the keys, put together |
//! | [`Pass::Append`] | | new keys and values, written to the cache, and queries turned with them |
//!
//! The rows are [`Variant`]s of forward attention: they take the same features, and share masks, softmax and tiles with it.

use super::forward::{FORWARD_SLOTS, Pass, Policy, Variant, features};
use crate::dtype::DType;
use crate::entry::Entry;
use crate::features::FeatureSet;

pub mod memory;
mod params;
pub mod policy;
#[macro_use]
mod rows;

pub use params::{AppendParams, PagesParams, SequenceTable, SequencesParams, SplitV3Params, TileEntry, TilesParams};

/// Splits of the keys, at most: a warp of the merge has four of them a lane.
pub const MAX_SPLITS: u32 = 128;

/// Every compiled entry point.
pub const VARIANTS: &[Variant] = for_each_sequences_row!(attention_variants);

/// The row for `pass` on tensors of `dtype` with so many columns, whose rows see `keys` keys, with `features`; `None` when no compiled head
/// dim holds them.
pub fn find(pass: Pass, dtype: DType, dim: u32, keys: u32, features: FeatureSet) -> Option<&'static Variant> {
    VARIANTS
        .iter()
        .filter(|v| v.pass == pass && v.holds(dtype, [dim; 2]) && v.entry.accepts.contains(features))
        .filter(|v| v.from_keys <= keys)
        .min_by_key(|v| (v.dim_qk, core::cmp::Reverse(v.from_keys)))
}

/// The row for few query rows: the one with the smallest tile that holds `rows`, those of a sequence with all heads of a group. `None` when no tile
/// of a compiled head dim that holds the columns has so many.
pub fn find_few(pass: Pass, dtype: DType, dim: u32, rows: u32, features: FeatureSet) -> Option<&'static Variant> {
    VARIANTS
        .iter()
        .filter(|v| v.pass == pass && v.holds(dtype, [dim; 2]) && v.entry.accepts.contains(features))
        .filter(|v| v.q_block >= rows)
        .min_by_key(|v| (v.dim_qk, v.q_block))
}

/// Query heads of a group that share a tile of `q_block` rows with `q_rows` rows each, as a logarithm to base 2. With few rows, all of
/// them: heads that a group does not have are rows that do not exist. With many, as many as divide the group.
pub const fn packed_log2(q_rows: u32, group: u32, q_block: u32) -> u32 {
    let all = group.next_power_of_two();
    if q_rows as u64 * all as u64 <= q_block as u64 {
        return all.trailing_zeros();
    }
    if q_rows == 1 {
        // A group of more heads than a tile has rows.
        return q_block.trailing_zeros();
    }
    super::super::schedule::packed_heads(q_rows, group, q_block).trailing_zeros()
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

    #[test]
    fn every_dtype_and_head_dim_has_rows_with_every_feature() {
        let all = VARIANTS[0].entry.accepts;
        for pass in [Pass::Decode, Pass::Prefill, Pass::Merge] {
            for dtype in DType::ALL {
                for dim in (8..=256).step_by(8) {
                    let row = find(pass, dtype, dim, 0, all).expect("a row");
                    assert!(row.dim_qk == 0 || (row.dim_qk >= dim && row.dim_qk - dim < 64), "{}", row.entry.symbol);
                }
            }
        }
    }

    #[test]
    fn heads_of_a_group_share_tiles_of_few_rows() {
        for (q_rows, group, q_block, expected) in [
            (1, 1, 16, 0),
            (1, 4, 16, 2),
            (1, 7, 16, 3),
            (1, 64, 16, 4),
            (4, 4, 16, 2),
            (4, 5, 16, 0),
            (16, 4, 64, 2),
            (500, 8, 64, 3),
            (512, 8, 64, 0),
        ] {
            assert_eq!(packed_log2(q_rows, group, q_block), expected, "{q_rows} rows, groups of {group}");
        }
    }
}
