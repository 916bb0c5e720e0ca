//! Packed sequences, caches and pages against the reference: every length around tile edges, zero among them, and nothing read that is not in
//! use.

use crate::support::device;
use crate::support::draws::draws;
use crate::support::sequences::{Appending, Keys, SequenceCase};
use ferroflash::{Attention, DType, Element, KernelChoice, Mask, Splits, bf16, f16};
use kernel_spec::Pass;
use kernel_spec::families::sequences::VARIANTS;
use proptest::prelude::*;

/// The tiles that attend, of a type and head dim.
fn tiles(dtype: DType, head_dim: usize) -> Vec<KernelChoice> {
    let rows = VARIANTS.iter().filter(|v| matches!(v.pass, Pass::Decode | Pass::ClusterDecode | Pass::Prefill));
    let rows = rows.filter(|v| v.holds(dtype, [head_dim as u32; 2]) && v.dim_qk < head_dim as u32 + 64);
    rows.map(KernelChoice::Variant).collect()
}

fn mask() -> impl Strategy<Value = Mask> {
    let bound = || prop::option::weighted(0.7, prop_oneof![0u32..4, 0u32..80]);
    prop_oneof![
        1 => Just(Mask::Full),
        2 => Just(Mask::Causal),
        1 => (bound(), bound()).prop_map(|(left, right)| Mask::Window { left, right }),
    ]
}

fn splits() -> impl Strategy<Value = Splits> {
    prop_oneof![
        2 => Just(Splits::Auto),
        1 => (1u32..6).prop_map(Splits::Count),
        1 => Just(Splits::Keys(64)),
        1 => Just(Splits::Keys(128)),
    ]
}

/// Row counts around the edges of tiles, none among them.
fn rows(most: usize) -> impl Strategy<Value = usize> {
    let edges: Vec<usize> =
        [0, 1, 15, 16, 17, 31, 32, 63, 64, 65, 127, 128, 129].into_iter().filter(|&n| n <= most).collect();
    prop_oneof![2 => prop::sample::select(edges), 1 => 0..=most]
}

fn keys() -> impl Strategy<Value = Keys> {
    prop_oneof![
        2 => (0usize..4).prop_map(|slack| Keys::Packed { slack }),
        2 => (0usize..3, any::<bool>(), 0usize..20).prop_map(|(spare_entries, left_padding, more)| Keys::Cache {
            capacity: 200 + more,
            spare_entries,
            left_padding
        }),
        3 => (prop::sample::select(vec![1usize, 2, 3, 8, 16, 20, 64]), 0usize..4, 0usize..3, any::<bool>()).prop_map(
            |(page_rows, spare_pages, stride_gap, left_padding)| Keys::Pages { page_rows, spare_pages, stride_gap, left_padding }
        ),
    ]
}

pub(crate) fn cases<T: Element>() -> impl Strategy<Value = SequenceCase> {
    let lengths = prop::collection::vec((rows(40), rows(200)).prop_map(|(q, kv)| [q, kv]), 1..5);
    let heads = prop::sample::select(vec![[1usize, 1], [2, 1], [4, 2], [7, 1], [3, 3], [20, 1]]);
    let head_dim = prop_oneof![3 => prop::sample::select(vec![64usize, 128]), 1 => (1usize..=32).prop_map(|n| 8 * n)];
    let call = (
        mask(),
        splits(),
        prop::option::weighted(0.2, 0.5f32..20.0),
        any::<bool>(),
        prop::sample::select(vec![None, Some(-0.3f32)]),
    );
    let appending = prop::option::weighted(0.3, (0usize..=4, any::<bool>()));
    (
        lengths,
        keys(),
        heads,
        head_dim,
        call,
        (any::<bool>(), 0usize..3, appending),
        (0usize..3, any::<u64>(), 0usize..4),
    )
        .prop_map(
            |(
                mut lengths,
                keys,
                [q_heads, kv_heads],
                head_dim,
                (mask, splits, softcap, lse, scale),
                (packed, q_slack, appending),
                (gap, seed, tile),
            )| {
                let packed_q = packed || matches!(keys, Keys::Packed { .. });
                if !packed_q {
                    // As many rows of q for each sequence.
                    let rows = lengths[0][0].max(1);
                    lengths.iter_mut().for_each(|length| length[0] = rows);
                }
                let appending =
                    appending.filter(|_| !matches!(keys, Keys::Packed { .. })).map(|(quarter, interleaved)| {
                        Appending {
                            // A multiple of 2, up to the head dim.
                            turned_dims: head_dim / 8 * quarter * 2,
                            interleaved,
                        }
                    });
                if appending.is_some() && !packed_q {
                    // As many new rows for each sequence: all of them have room for those of q.
                    lengths.iter_mut().for_each(|length| length[1] = length[1].max(length[0]));
                }
                let attention = Attention::new().with_mask(mask).with_softcap(softcap);
                let attention = scale.map_or(attention, |scale| attention.with_scale(scale));
                let attention = attention.with_splits(splits).with_lse(lse);
                let tiles = tiles(T::DTYPE, head_dim);
                let attention = if tile < 2 { attention } else { attention.with_kernel(tiles[tile % tiles.len()]) };
                let in_clusters =
                    matches!(attention.kernel, KernelChoice::Variant(row) if row.pass == Pass::ClusterDecode);
                // A cluster has at most 8 splits.
                let attention = match splits {
                    Splits::Keys(64) if in_clusters => attention.with_splits(Splits::Keys(128)),
                    _ => attention,
                };
                SequenceCase {
                    lengths,
                    packed_q,
                    q_slack: if packed_q { q_slack } else { 0 },
                    keys,
                    appending,
                    q_heads,
                    kv_heads,
                    head_dim,
                    attention,
                    // 8: rows in pieces of 16 bytes; 3: elements.
                    row_gap: [0, 8, 3][gap],
                    deviation: 1.0,
                    seed,
                }
            },
        )
}

fn random_sequences_agree_with_the_reference<T: Element>() {
    let shared = device::shared();
    draws(file!(), device::cases(), 128).check(&cases::<T>(), |case| case.check::<T>(&shared.device));
}

#[test]
fn random_sequences_agree_with_the_reference_f16() {
    random_sequences_agree_with_the_reference::<f16>();
}

#[test]
fn random_sequences_agree_with_the_reference_bf16() {
    random_sequences_agree_with_the_reference::<bf16>();
}

#[test]
fn random_sequences_agree_with_the_reference_f32() {
    random_sequences_agree_with_the_reference::<f32>();
}

/// Every compiled tile, on packed sequences, in a cache and in pages, whole and split.
fn every_tile<T: Element>() {
    let shared = device::shared();
    for row in VARIANTS.iter().filter(|v| !matches!(v.pass, Pass::Merge | Pass::Append | Pass::Tiles)) {
        if row.dtype != T::DTYPE {
            continue;
        }
        let (is_whole, is_hopper) = (row.pass == Pass::PackedV3, matches!(row.pass, Pass::PackedV3 | Pass::SplitV3));
        for keys in [
            Keys::Packed { slack: 1 },
            Keys::Cache { capacity: 160, spare_entries: 1, left_padding: true },
            // v3 takes no left padding in pages.
            Keys::Pages { page_rows: 16, spare_pages: 1, stride_gap: 0, left_padding: !is_hopper },
        ] {
            for splits in [Splits::Count(1), Splits::Count(3)] {
                // Rows with features are the plain ones, and what they add is drawn by the properties.
                let is_scored = row.pass == Pass::SplitV3 && !row.entry.accepts.is_empty();
                if is_scored && !(matches!(keys, Keys::Pages { .. }) && splits == Splits::Count(3)) {
                    continue;
                }
                // v3 has rows of their own for splits, and for pages.
                if is_whole && (splits != Splits::Count(1) || matches!(keys, Keys::Pages { .. })) {
                    continue;
                }
                let mut case =
                    SequenceCase::new(vec![[3, 150], [0, 20], [70, 70], [5, 0]], keys.clone()).with_kernel(row);
                (case.q_heads, case.kv_heads, case.head_dim) = (6, 2, row.dim_qk as usize);
                case.attention = case.attention.with_splits(splits);
                case.check::<T>(&shared.device)
                    .unwrap_or_else(|wrong| panic!("{} {keys:?} {splits:?}: {wrong}", row.entry.symbol));
            }
        }
    }
}

#[test]
fn every_tile_f16() {
    every_tile::<f16>();
}

#[test]
fn every_tile_bf16() {
    every_tile::<bf16>();
}

#[test]
fn every_tile_f32() {
    every_tile::<f32>();
}
