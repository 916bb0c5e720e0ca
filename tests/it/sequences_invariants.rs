//! What must hold between two calls over sequences, whatever the reference says. Equal means equal bits: the same operations in the same
//! order.

use crate::support::device;
use crate::support::packed::{Found, Place, Sequences, tiles};
use ferroflash::{
    Attention, Device, Element, Indices, Kernel, KvCache, KvCacheMut, Layout, NewRows, PackedRows, PageTable, Rotary,
    Splits, Tensor, bf16,
};
use kernel_spec::{Mask, Pass};

/// Around the edges of tiles; some have no rows, some no keys.
const LENGTHS: [[usize; 2]; 7] = [[3, 150], [0, 20], [66, 66], [5, 0], [1, 129], [16, 64], [2, 1]];
const PLACES: [Place; 3] = [Place::Packed, Place::Cache, Place::Pages(16)];

/// Makes a test for each of two element types, `$check::<element type>()`: the other 16-bit one has the same statements.
macro_rules! for_each_dtype {
    ($check:ident, $bf16:ident, $f32:ident) => {
        #[test]
        fn $bf16() {
            $check::<bf16>();
        }

        #[test]
        fn $f32() {
            $check::<f32>();
        }
    };
}

fn assert_equal<T: Element>(a: &[Found<T>], b: &[Found<T>], what: &str) {
    assert_eq!(a.len(), b.len());
    for (index, (a, b)) in a.iter().zip(b).enumerate() {
        assert!(a.bits() == b.bits(), "{what}: sequence {index} differs");
    }
}

for_each_dtype!(others_do_not_matter, others_do_not_matter_bf16, others_do_not_matter_f32);

/// A sequence has the bits that it has alone. Splits of so many keys are counted from its first.
fn others_do_not_matter<T: Element>() {
    let shared = device::shared();
    for row in tiles::<T>(&shared.device, 64) {
        for heads in [[1, 1], [4, 1]] {
            for splits in [Splits::Count(1), Splits::Keys(64)] {
                let all = Sequences::<T>::draw(&LENGTHS, heads, 64, 1);
                let attention = Attention::new().causal().with_kernel(row).with_splits(splits);
                for place in [Place::Packed, Place::Pages(16)] {
                    // Heads of a group share tiles where rows are few: the hint says how few in both calls.
                    let hints = [Some(1), None];
                    let together = all.run_with(&shared.device, place, attention, hints, true);
                    for (index, of_all) in together.iter().enumerate() {
                        let alone = all.only(index).run_with(&shared.device, place, attention, hints, true);
                        let what = format!("{}, {heads:?}, {splits:?}, {place:?}, {index}", row.entry.symbol);
                        assert_equal(&alone, std::slice::from_ref(of_all), &what);
                    }
                }
            }
        }
    }
}

for_each_dtype!(places_do_not_matter, places_do_not_matter_bf16, places_do_not_matter_f32);

/// Packed, in a cache, and in pages of rows that divide tiles and that do not.
fn places_do_not_matter<T: Element>() {
    let shared = device::shared();
    let all = Sequences::<T>::draw(&LENGTHS, [2, 1], 64, 2);
    for row in tiles::<T>(&shared.device, 64) {
        for (mask, splits) in [
            (Mask::Causal, Splits::Count(1)),
            (Mask::Full, Splits::Keys(64)),
            (Mask::Window { left: Some(40), right: Some(3) }, Splits::Count(3)),
        ] {
            let attention = Attention::new().with_mask(mask).with_kernel(row).with_splits(splits);
            let packed = all.run(&shared.device, Place::Packed, attention);
            for place in [Place::Cache, Place::Pages(1), Place::Pages(20), Place::Pages(64)] {
                let found = all.run(&shared.device, place, attention);
                assert_equal(&packed, &found, &format!("{}, {mask:?}, {splits:?}, {place:?}", row.entry.symbol));
            }
        }
    }
}

for_each_dtype!(splits_agree, splits_agree_bf16, splits_agree_f32);

/// However the keys are split, results agree with the reference, and so with each other.
fn splits_agree<T: Element>() {
    let shared = device::shared();
    let all = Sequences::<T>::draw(&LENGTHS, [2, 1], 64, 3);
    for row in tiles::<T>(&shared.device, 64) {
        let attention = Attention::new().causal().with_kernel(row);
        let expected = all.expected(&attention);
        let most = if row.pass == Pass::ClusterDecode { row.entry.max_cluster } else { 128 };
        for splits in [1, 2, 3, 7, most] {
            let attention = attention.with_splits(Splits::Count(splits));
            let found = all.run(&shared.device, Place::Cache, attention);
            expected.check(&found, &format!("{}, {splits} splits", row.entry.symbol));
        }
    }
}

for_each_dtype!(uniform_sequences_are_uniform, uniform_sequences_are_uniform_bf16, uniform_sequences_are_uniform_f32);

/// Sequences of equal lengths, packed and in a cache, beside the kernels of uniform ones.
fn uniform_sequences_are_uniform<T: Element>() {
    let shared = device::shared();
    let device = &shared.device;
    let (batch, rows, keys, heads, dim) = (3, 20, 90, [4, 2], 64);
    let all = Sequences::<T>::draw(&vec![[rows, keys]; batch], heads, dim, 4);
    let uniform = |which: usize, rows, heads| {
        let data: Vec<T> = all.each.iter().flat_map(|tensors| tensors[which].iter().copied()).collect();
        Tensor::from_slice(device, &data, [batch, rows, heads, dim], Layout::RowMajor).unwrap()
    };
    let (q, k, v) = (uniform(0, rows, heads[0]), uniform(1, keys, heads[1]), uniform(2, keys, heads[1]));
    for attention in [Attention::new().causal(), Attention::new().with_softcap(2.0)] {
        let expected = all.expected(&attention);
        let attention = attention.with_lse(true).with_kernel(Kernel::V2);
        let output = attention.forward(&q.view(), &k.view(), &v.view()).unwrap();
        let (out, lse) = (output.out.to_vec::<T>().unwrap(), output.lse.unwrap().to_vec().unwrap());
        let of = |(out, lse): (&[T], &[f32])| Found { out: out.to_vec(), lse: lse.to_vec() };
        let each = out.chunks(rows * heads[0] * dim).zip(lse.chunks(rows * heads[0]));
        expected.check(&each.map(of).collect::<Vec<_>>(), "uniform");
        for place in PLACES {
            let found = all.run(device, place, attention.with_splits(Splits::Count(1)));
            expected.check(&found, &format!("{place:?}"));
        }
        // And where queries are not packed either.
        let cached = attention.forward_cached(&q.view(), None, &KvCache::new(&k.view(), &v.view())).unwrap();
        let (out, lse) = (cached.out.to_vec::<T>().unwrap(), cached.lse.unwrap().to_vec().unwrap());
        let each = out.chunks(rows * heads[0] * dim).zip(lse.chunks(rows * heads[0]));
        expected.check(&each.map(of).collect::<Vec<_>>(), "cached");
    }
}

for_each_dtype!(
    the_log_sum_exp_changes_nothing,
    the_log_sum_exp_changes_nothing_bf16,
    the_log_sum_exp_changes_nothing_f32
);

fn the_log_sum_exp_changes_nothing<T: Element>() {
    let shared = device::shared();
    let all = Sequences::<T>::draw(&LENGTHS, [2, 1], 64, 5);
    for row in tiles::<T>(&shared.device, 64) {
        for splits in [Splits::Count(1), Splits::Count(3)] {
            let attention = Attention::new().causal().with_kernel(row).with_splits(splits);
            for place in [Place::Packed, Place::Cache] {
                let with = all.run_with(&shared.device, place, attention, [None; 2], true);
                let without = all.run_with(&shared.device, place, attention, [None; 2], false);
                for (with, without) in with.iter().zip(&without) {
                    assert!(with.bits().0 == without.bits().0, "{}, {splits:?}, {place:?}", row.entry.symbol);
                    assert!(without.lse.iter().all(|x| x.to_bits() == u32::MAX), "the log-sum-exp was written");
                }
            }
        }
    }
}

for_each_dtype!(hints_change_nothing, hints_change_nothing_bf16, hints_change_nothing_f32);

/// Right, too small and too large ones. They say how many heads share a tile, so that the bits are the same where that plays no part: for
/// heads of their own, and where all rows of a tile see the same keys.
fn hints_change_nothing<T: Element>() {
    let shared = device::shared();
    for row in tiles::<T>(&shared.device, 64) {
        for (heads, mask) in [([1, 1], Mask::Causal), ([4, 1], Mask::Full)] {
            let all = Sequences::<T>::draw(&LENGTHS, heads, 64, 6);
            for splits in [Splits::Count(1), Splits::Count(4)] {
                let attention = Attention::new().with_mask(mask).with_kernel(row).with_splits(splits);
                let plain = all.run(&shared.device, Place::Packed, attention);
                for [q, kv] in [[66, 150], [1, 1], [0, 0], [usize::MAX, usize::MAX]] {
                    let found = all.run_with(&shared.device, Place::Packed, attention, [Some(q), Some(kv)], true);
                    let what = format!("{}, {mask:?}, {splits:?}, hints {q} and {kv}", row.entry.symbol);
                    assert_equal(&plain, &found, &what);
                }
            }
        }
    }
}

/// Without a tile that is asked for, hints choose one; results are right all the same.
#[test]
fn hints_that_choose_tiles_change_no_result() {
    let shared = device::shared();
    let all = Sequences::<bf16>::draw(&LENGTHS, [4, 1], 64, 7);
    for splits in [Splits::Auto, Splits::Count(4)] {
        let attention = Attention::new().causal().with_splits(splits);
        let expected = all.expected(&attention);
        for [q, kv] in [[66, 150], [1, 1], [0, 0], [16, 64], [100_000, 100_000]] {
            let found = all.run_with(&shared.device, Place::Packed, attention, [Some(q), Some(kv)], true);
            expected.check(&found, &format!("hints {q} and {kv}, {splits:?}"));
        }
    }
}

/// A plan knows no lengths: they are read anew by every call.
#[test]
fn lengths_are_read_by_each_call() {
    let shared = device::shared();
    let device = &shared.device;
    let (batch, rows, keys, dim) = (3, 2, 200, 64);
    let all = Sequences::<bf16>::draw(&vec![[rows, keys]; batch], [2, 1], dim, 8);
    let cache = |which: usize| {
        let data: Vec<bf16> = all.each.iter().flat_map(|tensors| tensors[which].iter().copied()).collect();
        Tensor::from_slice(device, &data, [batch, keys, 1, dim], Layout::RowMajor).unwrap()
    };
    let (q, k, v) = (all.packed_q(device), cache(1), cache(2));
    let (q, k, v) = (q.view().reshape([batch, rows, 2, dim]).unwrap(), k.view(), v.view());
    for row in tiles::<bf16>(device, dim) {
        for splits in [Splits::Count(1), Splits::Count(3), Splits::Keys(128)] {
            let attention = Attention::new().causal().with_kernel(row).with_splits(splits);
            let mut lengths = Indices::from_slice(device, &[200, 200, 200]).unwrap();
            let mut plans = Vec::new();
            for numbers in [[200, 200, 200], [1, 130, 0], [64, 65, 63]] {
                lengths.write(&numbers).unwrap();
                let found = {
                    let cache = KvCache::new(&k, &v).with_lengths(lengths.view());
                    plans.push(attention.plan_cached(&q, None, &cache, None).unwrap());
                    attention.forward_cached(&q, None, &cache).unwrap().out.to_vec::<bf16>().unwrap()
                };
                let short = Sequences {
                    each: all
                        .each
                        .iter()
                        .zip(numbers)
                        .map(|([q, k, v], keys)| {
                            let keys = keys as usize * dim;
                            [q.clone(), k[..keys].to_vec(), v[..keys].to_vec()]
                        })
                        .collect(),
                    ..all
                };
                let expected = short.run(device, Place::Packed, attention);
                for (b, (found, expected)) in found.chunks(rows * 2 * dim).zip(&expected).enumerate() {
                    let symbol = row.entry.symbol;
                    assert!(found == expected.out, "{symbol}, {splits:?}: sequence {b} of lengths {numbers:?}");
                }
            }
            assert!(plans.iter().all(|plan| *plan == plans[0]), "plans differ");
        }
    }
}

/// A cache of two sequences, and rows to append, with tables of cosines.
struct Appending<T> {
    new: [Vec<T>; 2],
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    pages: bool,
}

const CAPACITY: usize = 32;
const BEFORE: [i32; 2] = [5, 14];
const NEW_ROWS: usize = 4;
const DIM: usize = 64;
const KV_HEADS: usize = 2;

impl<T: Element> Appending<T> {
    fn new(device: &Device, interleaved: bool, turned: usize, pages: bool) -> Appending<T> {
        let drawn = Sequences::<T>::draw(&[[0, 2 * NEW_ROWS]], [2, KV_HEADS], DIM, 9);
        let [_, k, v] = drawn.each[0].clone();
        let table = |of: fn(f64) -> f64| {
            let angle = |i: usize| (i / (turned / 2)) as f64 / 50f64.powf((i % (turned / 2)) as f64 / 16.0);
            let data: Vec<T> = (0..CAPACITY * turned / 2).map(|i| T::from_f64(of(angle(i)))).collect();
            Tensor::from_slice(device, &data, [CAPACITY, turned / 2], Layout::RowMajor).unwrap()
        };
        Appending { new: [k, v], cos: table(f64::cos), sin: table(f64::sin), interleaved, pages }
    }

    /// Appends in calls of so many rows, packed or not; the bytes of the cache after the last.
    fn caches(&self, device: &Device, step: usize, packed: bool) -> [Vec<u8>; 2] {
        let row = KV_HEADS * DIM;
        let page_rows = if self.pages { 8 } else { CAPACITY };
        let cache = || {
            let shape = [2 * CAPACITY / page_rows, page_rows, KV_HEADS, DIM];
            let mut cache = Tensor::zeros(device, T::DTYPE, shape, Layout::RowMajor).unwrap();
            cache.fill_bytes(0xff).unwrap();
            cache
        };
        let (mut k, mut v) = (cache(), cache());
        let table = Indices::from_slice(device, &[6, 1, 0, 7, 2, 3, 5, 4]).unwrap();
        let mut lengths = Indices::from_slice(device, &BEFORE).unwrap();
        let q = Tensor::zeros(device, T::DTYPE, [2, step, 4, DIM], Layout::RowMajor).unwrap();
        let starts = Indices::from_slice(device, &[0, step as i32, 2 * step as i32]).unwrap();
        let (cos, sin) = (self.cos.view(), self.sin.view());
        for done in (0..NEW_ROWS).step_by(step) {
            lengths.write(&BEFORE.map(|before| before + done as i32)).unwrap();
            let new = |which: usize| {
                let rows = |b: usize| &self.new[which][(b * NEW_ROWS + done) * row..][..step * row];
                let data = [rows(0), rows(1)].concat();
                let tensor = Tensor::from_slice(device, &data, [2, step, KV_HEADS, DIM], Layout::RowMajor);
                tensor.unwrap()
            };
            let (new_k, new_v) = (new(0), new(1));
            let (mut new_k, mut new_v) = (new_k.view(), new_v.view());
            if packed {
                [new_k, new_v] = [new_k, new_v].map(|new| new.reshape([2 * step, KV_HEADS, DIM]).unwrap());
            }
            let rotary = Rotary::new(&cos, &sin).with_interleaved(self.interleaved);
            let new = NewRows::new(&new_k, &new_v).with_starts(packed.then(|| starts.view())).with_rotary(rotary);
            let pages = self.pages.then(|| PageTable::new(table.view(), 4));
            let mut cache = KvCacheMut::new(k.view_mut(), v.view_mut())
                .with(|cache| cache.with_lengths(lengths.view()).with_pages(pages));
            let q_rows = PackedRows::new(starts.view());
            let (q, q_rows) = match packed {
                true => (q.view().reshape([2 * step, 4, DIM]).unwrap(), Some(&q_rows)),
                false => (q.view(), None),
            };
            Attention::new().causal().forward_appending(&q, q_rows, &mut cache, &new).unwrap();
            assert_eq!(lengths.to_vec().unwrap(), BEFORE.map(|before| before + done as i32));
        }
        [k, v].map(|cache| bytemuck::cast_slice(&cache.to_vec::<T>().unwrap()).to_vec())
    }
}

for_each_dtype!(
    appending_at_once_and_one_by_one,
    appending_at_once_and_one_by_one_bf16,
    appending_at_once_and_one_by_one_f32
);

/// The cache is what it would be if the rows had been appended one by one, or packed.
fn appending_at_once_and_one_by_one<T: Element>() {
    let shared = device::shared();
    for interleaved in [false, true] {
        for turned in [2, 40, 64] {
            for pages in [false, true] {
                let appending = Appending::<T>::new(&shared.device, interleaved, turned, pages);
                let at_once = appending.caches(&shared.device, NEW_ROWS, false);
                let written = at_once[0].chunks_exact(size_of::<T>()).filter(|x| x.iter().any(|&byte| byte != 0xff));
                assert_eq!(written.count(), 2 * NEW_ROWS * KV_HEADS * DIM);
                for (step, packed) in [(1, false), (2, false), (1, true), (NEW_ROWS, true)] {
                    let other = appending.caches(&shared.device, step, packed);
                    assert!(
                        at_once == other,
                        "{step} rows at a time, packed {packed}: {turned} dims, interleaved {interleaved}, pages {pages}"
                    );
                }
            }
        }
    }
}
