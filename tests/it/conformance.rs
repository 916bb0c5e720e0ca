//! Every compiled variant, at the edges of its tiles: one row less, exactly one tile, one row more.

use crate::support::case::{Case, v3_tiles};
use crate::support::device;
use ferroflash::{
    DType, Element, Error, FeatureSet, Kernel, Layout, Mask, Pass, Sizes, Unsupported, VARIANTS, Variant,
};
use kernel_spec::families::forward::features::SOFTCAP;

crate::for_each_kernel_and_dtype!(every_variant_at_its_tile_edges);

fn every_variant_at_its_tile_edges<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let variants = plain_rows(kernel, T::DTYPE);
    let mut tested = 0;
    for variant in variants {
        for (i, (q_rows, kv_rows, mask)) in edges(variant).into_iter().enumerate() {
            let problem = Sizes {
                batch: 1,
                q_rows,
                kv_rows,
                q_heads: 2,
                kv_heads: 1,
                head_dim: head_dim(variant),
                dtype: T::DTYPE,
            };
            let layout = if i % 2 == 0 { Layout::Bshd } else { Layout::Bhsd };
            let mut case = Case::new(variant, problem, mask).with_layout(layout);
            case.seed = i as u64;
            let plan = case.attention.plan(&shared.device, problem).expect("a legal problem");
            assert!(
                plan.symbols().any(|symbol| symbol == variant.entry.symbol),
                "{} is not what {problem} runs: {plan}",
                variant.entry.symbol
            );
            case.check::<T>(&shared.device).unwrap_or_else(|wrong| panic!("{}: {wrong}", variant.entry.symbol));
            tested += 1;
        }
    }
    assert!(tested > 0, "no variant of {kernel} {}", T::DTYPE);
}

/// The rows of a kernel that need no lists of blocks: those have tests of their own.
fn plain_rows(kernel: Kernel, dtype: DType) -> impl Iterator<Item = &'static Variant> {
    let rows = VARIANTS.iter().filter(move |row| row.pass.kernel() == kernel && row.dtype == dtype);
    rows.filter(|row| !row.is_listed())
}

crate::for_each_kernel_and_dtype!(every_variant_with_a_softcap);

/// Every variant that bounds scores: some keys are hidden after that, and the bound is felt. The others say that they do not.
fn every_variant_with_a_softcap<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let variants = plain_rows(kernel, T::DTYPE);
    for variant in variants {
        let (q_rows, kv_rows) = (variant.q_block as usize + 1, variant.kv_block.max(16) as usize + 5);
        let (head_dim, dtype) = (head_dim(variant), T::DTYPE);
        let problem = Sizes { batch: 1, q_rows, kv_rows, q_heads: 2, kv_heads: 1, head_dim, dtype };
        for (cap, scale) in [(1.5, None), (30.0, Some(-1.0))] {
            let mut case = Case::new(variant, problem, Mask::Causal);
            case.attention = case.attention.with_softcap(cap);
            case.attention.scale = scale;
            let plan = case.attention.plan(&shared.device, problem);
            if !variant.entry.accepts.contains(FeatureSet::of(SOFTCAP)) {
                let Err(Error::KernelUnsupported { kernel: asked, reason }) = plan else { panic!("{plan:?}") };
                assert!(
                    asked == kernel && matches!(reason, Unsupported::Feature { feature: "softcap", .. }),
                    "{reason}"
                );
                continue;
            }
            let plan = plan.expect("a legal problem");
            assert!(plan.steps.iter().all(|step| !step.kernel.features.is_empty()), "{plan}");
            case.check::<T>(&shared.device).unwrap_or_else(|wrong| panic!("{}: {wrong}", variant.entry.symbol));
        }
    }
}

/// Query heads of a group that share a tile of v3: rows of all of them that just fill one, and one more or less of each head.
fn packed_heads_at_tile_edges<T: Element>() {
    let shared = device::shared();
    for (variant, group) in
        v3_tiles::<T>(&shared.device).flat_map(|variant| [2_usize, 4, 12, 64].map(|group| (variant, group)))
    {
        let packed = 1_usize << group.trailing_zeros();
        let (filling, kv) = (variant.q_block as usize / packed, variant.kv_block as usize);
        let window = Mask::Window { left: Some(2), right: Some(kv as u32) };
        for (i, (q_rows, kv_rows, mask)) in [
            (1, kv + 1, Mask::Full),
            (filling - 1, kv, Mask::Causal),
            (filling + 1, 2 * kv + 1, Mask::Causal),
            (filling, kv + 3, window),
        ]
        .into_iter()
        // One row more of each of two heads begins a second tile either way.
        .filter(|(q_rows, ..)| *q_rows > 0 && (packed > 2 || *q_rows <= filling))
        .enumerate()
        {
            let (head_dim, dtype) = (variant.head_dim() as usize, T::DTYPE);
            // Large groups have tiles enough without a second batch entry.
            let batch = if group > 4 { 1 } else { 2 };
            let problem = Sizes { batch, q_rows, kv_rows, q_heads: 2 * group, kv_heads: 2, head_dim, dtype };
            let layout = if i % 2 == 0 { Layout::Bhsd } else { Layout::Bshd };
            let mut case = Case::new(variant, problem, mask).with_layout(layout);
            if i % 2 == 1 {
                case.attention.scale = Some(-0.2);
            }
            let plan = case.attention.plan(&shared.device, problem).expect("a legal problem");
            assert_eq!(plan.packed_heads as usize, packed, "{problem}");
            case.check::<T>(&shared.device).unwrap_or_else(|wrong| panic!("{}: {wrong}", variant.entry.symbol));
        }
    }
}

#[test]
fn packed_heads_at_tile_edges_f16() {
    packed_heads_at_tile_edges::<ferroflash::f16>();
}

#[test]
fn packed_heads_at_tile_edges_bf16() {
    packed_heads_at_tile_edges::<ferroflash::bf16>();
}

/// The softmax of the naive kernel reads rows of scores whatever their head dim: the smallest is the cheapest.
fn head_dim(variant: &Variant) -> usize {
    if variant.pass == Pass::Softmax { 8 } else { variant.head_dim() as usize }
}

/// Rows of q and k around a tile, with a mask that cuts through it.
fn edges(variant: &Variant) -> Vec<(usize, usize, Mask)> {
    let q = variant.q_block as usize;
    // The softmax pass has no key tile: its warps read 32 scores at a time.
    let kv = if variant.pass == Pass::Softmax { 32 } else { variant.kv_block as usize };
    let window = Mask::Window { left: Some(kv as u32 / 2), right: Some(3) };
    let mut edges = Vec::new();
    for (q_rows, kv_rows) in [(q - 1, kv - 1), (q, kv), (q + 1, kv + 1)] {
        edges.push((q_rows, kv_rows, Mask::Full));
    }
    for (q_rows, kv_rows) in [(q - 1, kv + 1), (q, kv), (q + 1, kv - 1), (q, 2 * kv + 1)] {
        edges.push((q_rows, kv_rows, Mask::Causal));
    }
    edges.push((q, 3 * kv, window));
    edges
}

/// Every row of the list is a pass that some kernel launches, and this build holds its PTX: the tests above visit no less.
#[test]
fn every_variant_is_embedded_and_launched_by_a_kernel() {
    let embedded: Vec<_> = ferroflash::embedded_entries().map(|entry| entry.symbol).collect();
    for variant in VARIANTS {
        let launching: Vec<_> =
            Kernel::ALL.into_iter().filter(|kernel| kernel.passes().contains(&variant.pass)).collect();
        assert_eq!(launching, [variant.pass.kernel()], "{}", variant.entry.symbol);
        assert!(embedded.contains(&variant.entry.symbol), "the build holds no PTX of {}", variant.entry.symbol);
    }
}
