//! Random problems against the reference: sizes around tile edges, every head dim, every way that tensors may lie in memory.

use crate::support::case::{Case, Memory, largest};
use crate::support::device;
use crate::support::draws::draws;
use ferroflash::{Attention, Element, Kernel, Layout, Mask, Sizes, VARIANTS, Variant};
use kernel_spec::FeatureSet;
use kernel_spec::families::forward::features::SOFTCAP;
use proptest::prelude::*;

crate::for_each_kernel_and_dtype!(random_problems_agree_with_the_reference);

fn random_problems_agree_with_the_reference<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    // A case on the emulator takes some hundred milliseconds: shrinking ends after about a minute.
    draws(file!(), device::cases(), 256).check(&cases(kernel, T::DTYPE), |case| case.check::<T>(&shared.device));
}

/// Row counts: the edges of every tile in use, and everything between them.
fn rows(most: usize) -> impl Strategy<Value = usize> {
    let edges: Vec<usize> = [1, 16, 32, 64, 128, 192, 256, 512]
        .into_iter()
        .flat_map(|edge| [edge - 1, edge, edge + 1])
        .filter(|&rows| (1..=most).contains(&rows))
        .collect();
    prop_oneof![2 => prop::sample::select(edges), 1 => 1..=most]
}

fn mask() -> impl Strategy<Value = Mask> {
    let bound = || prop::option::weighted(0.8, prop_oneof![0u32..4, 0u32..80, 0u32..1000]);
    prop_oneof![
        2 => Just(Mask::Full),
        3 => Just(Mask::Causal),
        3 => (bound(), bound()).prop_map(|(left, right)| Mask::Window { left, right }),
    ]
}

/// `None` is the default. Zero makes the softmax a mean, a negative one turns it upside down, a large one makes it a maximum.
fn scale() -> impl Strategy<Value = Option<f32>> {
    prop_oneof![4 => Just(None), 1 => Just(Some(0.0)), 1 => Just(Some(-0.2)), 1 => Just(Some(1.7)), 2 => (-0.5f32..0.5).prop_map(Some)]
}

/// How a tensor lies in memory. Gaps and offsets of 8 keep 16-byte pieces together; others make the kernels move single elements.
pub(crate) fn memory(may_broadcast: bool) -> impl Strategy<Value = Memory> {
    let gap = || prop_oneof![4 => Just(0usize), 2 => Just(8), 1 => 1usize..8];
    let layout = prop::sample::select(vec![Layout::Bshd, Layout::Bhsd]);
    let broadcast = move || if may_broadcast { prop::bool::weighted(0.1).boxed() } else { Just(false).boxed() };
    (layout, gap(), gap(), gap(), gap(), broadcast(), broadcast()).prop_map(
        |(layout, offset, inner_gap, outer_gap, batch_gap, one_batch, one_head)| Memory {
            layout,
            offset,
            inner_gap,
            outer_gap,
            batch_gap,
            one_batch,
            one_head,
        },
    )
}

/// A tensor in 16-byte pieces of a 2-byte type, with gaps between its rows, heads and sequences.
pub(crate) fn memory_in_pieces() -> impl Strategy<Value = Memory> {
    let gap = || prop_oneof![2 => Just(0usize), 1 => (1usize..=9).prop_map(|n| 8 * n)];
    let layout = prop::sample::select(vec![Layout::Bshd, Layout::Bhsd]);
    (layout, gap(), gap(), gap(), gap()).prop_map(|(layout, offset, inner_gap, outer_gap, batch_gap)| Memory {
        layout,
        offset,
        inner_gap,
        outer_gap,
        batch_gap,
        ..Memory::default()
    })
}

/// Half of the cases have every tensor in 16-byte pieces, so that the fast path gets its share; v3, which takes no others, has most.
fn memories(kernel: Kernel) -> impl Strategy<Value = [Memory; 4]> {
    let aligned =
        prop::sample::select(vec![Layout::Bshd, Layout::Bhsd]).prop_map(|layout| [Memory::contiguous(layout); 4]);
    let any = [memory(true), memory(true), memory(true), memory(false)];
    let pieces = if kernel == Kernel::V3 { 8 } else { 1 };
    prop_oneof![2 => aligned, pieces => prop::array::uniform4(memory_in_pieces()), 2 => any]
}

prop_compose! {
    fn problem(dtype: ferroflash::DType)(
        batch in 1usize..=3,
        q_rows in rows(most_rows()),
        kv_rows in prop_oneof![12 => rows(most_rows()), 1 => Just(0)],
        kv_heads in 1usize..=3,
        group in 1usize..=4,
        head_dim in prop_oneof![
            1 => prop::sample::select(vec![32usize, 64, 96, 128, 192, 256]),
            2 => (1usize..=32).prop_map(|n| 8 * n),
        ],
    ) -> Sizes {
        fit(Sizes { batch, q_rows, kv_rows, q_heads: kv_heads * group, kv_heads, head_dim, dtype })
    }
}

fn most_rows() -> usize {
    if device::is_gpu() { 700 } else { 200 }
}

/// Takes batch entries and then heads away until the padded problem, and its reference, cost some tenths of a second.
fn fit(mut problem: Sizes) -> Sizes {
    let budget: usize = if device::is_gpu() { 1 << 27 } else { 1 << 23 };
    let cost = |p: &Sizes| {
        let rows = p.q_rows.next_multiple_of(64) * p.kv_rows.next_multiple_of(64).max(64);
        p.batch * p.q_heads * rows * p.head_dim.next_multiple_of(32)
    };
    while cost(&problem) > budget {
        if problem.batch > 1 {
            problem.batch -= 1;
        } else if problem.q_heads > problem.kv_heads {
            problem.q_heads -= problem.kv_heads;
        } else if problem.kv_heads > 1 {
            problem.kv_heads -= 1;
            problem.q_heads -= 1;
        } else {
            break;
        }
    }
    problem
}

/// Mostly none. Small ones bend the scores of these problems, large ones hardly do.
fn softcap() -> impl Strategy<Value = Option<f32>> {
    prop_oneof![6 => Just(None), 1 => Just(Some(50.0)), 1 => (0.5f32..20.0).prop_map(Some)]
}

prop_compose! {
    pub(crate) fn cases(kernel: Kernel, dtype: ferroflash::DType)(
        problem in problem(dtype),
        mask in mask(),
        scale in scale(),
        softcap in softcap(),
        [q, k, v, out] in memories(kernel),
        deviation in prop::sample::select(vec![0.1, 1.0, 1.0, 1.0, 3.0]),
        any_tile: prop::sample::Index,
        seed: u64,
    ) -> Case {
        let mut attention = Attention::new().with_kernel(kernel).with_mask(mask);
        attention.scale = scale;
        // Problems as small as these would never see the tiles for long rows.
        let chosen = Variant::find(kernel.passes()[0], dtype, [problem.head_dim as u32; 2], 0, FeatureSet::NONE);
        let same_head_dim = |v: &&'static Variant| {
            chosen.is_some_and(|c| (c.pass, c.dtype, c.head_dim()) == (v.pass, v.dtype, v.head_dim()))
        };
        let tiles: Vec<_> = VARIANTS.iter().filter(same_head_dim).filter(|v| !v.is_listed()).collect();
        let tile = (!tiles.is_empty()).then(|| *any_tile.get(&tiles));
        if let Some(tile) = tile.filter(|_| tiles.len() > 1) {
            attention.kernel = tile.into();
        }
        // What a tile does not accept is an error, which `conformance` looks at.
        attention.softcap = softcap.filter(|_| tile.is_none_or(|t| t.entry.accepts.contains(FeatureSet::of(SOFTCAP))));
        Case { problem, attention, q, k, v, out, deviation, magnitudes: [1.0; 3], minus_infinity: false, seed }
    }
}

crate::for_each_kernel_and_dtype!(numbers_of_every_size_agree_with_the_reference);

fn numbers_of_every_size_agree_with_the_reference<T: Element>(kernel: Kernel) {
    let shared = device::shared();
    let cases = cases_of_every_size::<T>(kernel);
    draws(file!(), device::cases(), 64).check(&cases, |case| case.check::<T>(&shared.device));
}

/// Powers of ten whose number may be anything that the type holds, with the usual ones in the middle.
fn exponent<T: Element>() -> impl Strategy<Value = f64> {
    let most = largest::<T>().log10();
    prop_oneof![2 => Just(0.0), 1 => -most..most, 1 => most - 1.5..most]
}

/// Cases whose q, k, v and scale are of any size that leaves their log-sum-exp in f32, and some of whose keys are minus infinity.
pub(crate) fn cases_of_every_size<T: Element>(kernel: Kernel) -> impl Strategy<Value = Case> {
    let exponents = (
        exponent::<T>(),
        exponent::<T>(),
        exponent::<T>(),
        prop_oneof![1 => Just(None), 2 => (-38.0..38.0).prop_map(Some)],
    );
    (cases(kernel, T::DTYPE), exponents, any::<bool>(), prop::bool::weighted(0.3)).prop_map(
        |(mut case, (mut q, mut k, v, scale), negative, minus_infinity)| {
            // Numbers are what this is about, not sizes: as few rows and heads as still fill a tile of keys allow many cases.
            let Sizes { q_rows, kv_rows, q_heads, .. } = case.problem;
            case.problem = Sizes {
                batch: 1,
                q_rows: 1 + q_rows % 20,
                kv_rows: kv_rows % 150,
                q_heads: 1 + q_heads % 2,
                kv_heads: 1,
                ..case.problem
            };
            // The element that meets minus infinity is not lost to rounding.
            if minus_infinity {
                q = q.max(-4.0);
            }
            // A sum of `head_dim` products inside f32's range, or one that leaves it whatever the order of the sum. In between, whether a
            // key is out of range depends on that order; a function on scores would hide it. See `Attention::forward`.
            let raw = q + k + (case.problem.head_dim as f64).log10() + 1.0;
            if raw > 38.0 && (case.attention.softcap.is_some() || q + k < 46.0) {
                (q, k) = (q - (raw - 38.0) / 2.0, k - (raw - 38.0) / 2.0);
            }
            // `head_dim` products of at most three deviations each: five decimal places, and one more for the logarithm.
            const LARGEST_SCORE: f64 = 38.0 - 6.0;
            let usual = (case.problem.head_dim as f64).powf(-0.5).log10();
            // Scales above 1e-38 cannot make up for more than this.
            let excess = (q + k - 38.0 - LARGEST_SCORE).max(0.0) / 2.0;
            (q, k) = (q - excess, k - excess);
            let scale = scale.or((q + k + usual > LARGEST_SCORE).then_some(usual));
            if let Some(scale) = scale {
                let scale = 10_f64.powf(scale.min(LARGEST_SCORE - q - k)) as f32;
                case.attention.scale = Some(if negative { -scale } else { scale });
            }
            // Nothing times infinity is NaN.
            if minus_infinity && case.attention.scale == Some(0.0) {
                case.attention.scale = None;
            }
            // Heads that are the same memory cannot hide different keys.
            if minus_infinity {
                (case.k.one_batch, case.k.one_head) = (false, false);
            }
            case.magnitudes = [q, k, v].map(|exponent| 10_f64.powf(exponent));
            case.minus_infinity = minus_infinity;
            case
        },
    )
}
