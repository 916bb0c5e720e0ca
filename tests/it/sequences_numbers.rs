//! Numbers that attention over sequences could fail on: scores that f32 does not carry, infinities and NaN, sequences without rows, and
//! lengths and places on the device that lie outside.

use crate::support::case::nan;
use crate::support::device;
use crate::support::packed::{Expected, Place, Sequences, tiles};
use ferroflash::{
    Attention, DType, Device, Element, Indices, KvCache, KvCacheMut, Layout, NewRows, PackedRows, PageTable, Rotary,
    Splits, Tensor, bf16, f16,
};

const DIM: usize = 64;
const LENGTHS: [[usize; 2]; 4] = [[3, 150], [1, 129], [5, 33], [2, 64]];

/// Every tile, with one split and with several, says what the reference says.
fn check<T: Element>(all: &Sequences<T>, attention: Attention<'static>, what: &str) {
    let expected = all.expected(&attention);
    check_against(all, attention, &expected, what);
}

fn check_against<T: Element>(all: &Sequences<T>, attention: Attention<'static>, expected: &Expected, what: &str) {
    let shared = device::shared();
    for row in tiles::<T>(&shared.device, all.dim) {
        for splits in [Splits::Count(1), Splits::Count(3), Splits::Keys(64)] {
            // Whole in a cache, and split in pages.
            let place = if splits == Splits::Count(1) { Place::Cache } else { Place::Pages(16) };
            let found = all.run(&shared.device, place, attention.with_kernel(row).with_splits(splits));
            expected.check(&found, &format!("{what}, {}, {splits:?}", row.entry.symbol));
        }
    }
}

/// A unit in the last place of 1.
fn epsilon<T: Element>() -> f64 {
    match T::DTYPE {
        DType::F16 => 1.0 / 1024.0,
        DType::Bf16 => 1.0 / 128.0,
        _ => 1e-6,
    }
}

fn large_scores<T: Element>() {
    let all = Sequences::<T>::draw(&LENGTHS, [2, 1], DIM, 1);
    for scale in [1e4, -1e8, 1e30] {
        let attention = Attention::new().causal().with_scale(scale);
        let mut expected = all.expected(&attention);
        // Every row is computed in f64, and rounded: values are below 8.
        expected.bounds[0] = 8.0 * epsilon::<T>();
        check_against(&all, attention, &expected, &format!("scale {scale}"));
    }
}

#[test]
fn large_scores_f16() {
    large_scores::<f16>();
}

#[test]
fn large_scores_bf16() {
    large_scores::<bf16>();
}

#[test]
fn large_scores_f32() {
    large_scores::<f32>();
}

/// Large numbers in place of large scales: in queries, and in values, whose averages stay in range.
#[test]
fn large_queries_and_values() {
    let mut all = Sequences::<bf16>::draw(&LENGTHS, [2, 1], DIM, 2);
    for [q, ..] in &mut all.each {
        q.iter_mut().for_each(|x| *x = bf16::from_f64(1e4 * x.to_f64()));
    }
    check(&all, Attention::new().causal(), "large queries");
    let large = Sequences::<bf16>::filled(&LENGTHS, [2, 1], DIM, [0.0, 0.0, 3e38]);
    let mut expected = large.expected(&Attention::new());
    expected.bounds[0] = 3e38 * epsilon::<bf16>();
    check_against(&large, Attention::new(), &expected, "large values");
    let large = Sequences::<f16>::filled(&LENGTHS, [2, 1], DIM, [0.0, 0.0, 65504.0]);
    check(&large, Attention::new(), "the largest f16");
}

/// Keys whose score is minus infinity are not seen: some of a tile, a whole split, and all.
#[test]
fn keys_of_minus_infinity_are_not_seen() {
    fn keys<T: Element>() {
        let mut all = Sequences::<T>::draw(&LENGTHS, [2, 1], DIM, 3);
        for ([q, k, _], hidden) in all.each.iter_mut().zip([0..64, 100..129, 0..33, 7..8]) {
            q.chunks_exact_mut(DIM).for_each(|row| row[0] = T::from_f64(1.0));
            hidden.for_each(|key| k[key * DIM] = T::from_f64(f64::NEG_INFINITY));
        }
        for attention in [Attention::new(), Attention::new().causal()] {
            check(&all, attention, "minus infinity");
        }
        let expected = all.expected(&Attention::new());
        let [out, lse] = &expected.each[2];
        assert!(out.iter().all(|&x| x == 0.0) && lse.iter().all(|&x| x == f64::NEG_INFINITY));
    }
    keys::<bf16>();
    keys::<f32>();
}

/// Infinities and NaN of keys and values reach the rows that see them: in a value its column alone, in a key all of the row.
#[test]
fn infinities_and_nan_are_seen_where_they_are() {
    fn numbers<T: Element>() {
        let drawn = Sequences::<T>::draw(&[[3, 150], [1, 129], [20, 33]], [2, 1], DIM, 4);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            // Seen by some rows of the first and the last, and by all of the second.
            let places = [149, 70, 20];
            let mut values = drawn.clone();
            for ([.., v], key) in values.each.iter_mut().zip(places) {
                v[key * DIM + 3] = T::from_f64(bad);
            }
            check(&values, Attention::new().causal(), &format!("values of {bad}"));
            let count = |numbers: &[f64]| numbers.iter().filter(|x| !x.is_finite()).count();
            let expected = values.expected(&Attention::new().causal());
            // Of three rows, two do not see the last key; of twenty, thirteen see key 20. Two heads have one such column each.
            let counts: Vec<_> = expected.each.iter().map(|[out, _]| count(out)).collect();
            assert_eq!(counts, [2, 2, 2 * 13]);
        }
        let mut keys = drawn;
        keys.each[0][1][149 * DIM] = T::from_f64(f64::NAN);
        keys.each[2][1][20 * DIM] = T::from_f64(f64::NAN);
        check(&keys, Attention::new().causal(), "keys of NaN");
    }
    numbers::<bf16>();
    numbers::<f32>();
}

#[test]
fn sequences_without_rows_or_keys() {
    for lengths in [
        &[[0, 0]][..],
        &[[0, 70]],
        &[[5, 0]],
        &[[0, 0], [0, 5], [3, 0], [0, 0]],
        &[[0, 0], [1, 1], [0, 0], [1, 0], [70, 3], [0, 9]],
    ] {
        let all = Sequences::<bf16>::draw(lengths, [2, 1], DIM, 5);
        for attention in [Attention::new(), Attention::new().causal()] {
            check(&all, attention, &format!("{lengths:?}"));
            let shared = device::shared();
            for place in [Place::Packed, Place::Cache, Place::Pages(16)] {
                all.expected(&attention).check(&all.run(&shared.device, place, attention), &format!("{lengths:?}"));
            }
        }
    }
}

/// Thread blocks look for their sequence among 32 at a time.
#[test]
fn many_sequences_of_one_row() {
    let shared = device::shared();
    for batch in [1, 32, 33, 65, 1000] {
        // Some have no row: they have no tile.
        for q in [|_| 1, |b: usize| usize::from(b % 3 != 1)] as [fn(usize) -> usize; 2] {
            let lengths: Vec<[usize; 2]> = (0..batch).map(|b| [q(b), b % 5]).collect();
            let all = Sequences::<bf16>::draw(&lengths, [2, 1], 32, 6);
            let attention = Attention::new().causal();
            let expected = all.expected(&attention);
            for row in tiles::<bf16>(&shared.device, 32) {
                // Thousands of thread blocks take long in an emulator.
                let most = if batch == 1000 && !device::is_gpu() { 1 } else { 2 };
                for splits in 1..=most {
                    let attention = attention.with_kernel(row).with_splits(Splits::Count(splits));
                    let found = all.run(&shared.device, Place::Packed, attention);
                    expected.check(&found, &format!("{batch} sequences, {}, {splits} splits", row.entry.symbol));
                }
            }
        }
    }
}

/// Two sequences, of four query rows each, with keys of 1 and values of their own, in a cache of 24 rows. The numbers of the second are
/// spoiled: the first is right, and nothing outside is touched, which the emulator would report.
struct Spoiled {
    device: Device,
    q: Tensor,
    k: Tensor,
    v: Tensor,
}

const CAPACITY: usize = 24;
const ROWS: usize = 4;

impl Spoiled {
    fn new() -> Spoiled {
        let device = device::shared().device.clone();
        let tensor = |shape: [usize; 4], of: &dyn Fn(usize) -> f64| {
            let data: Vec<bf16> = (0..shape.iter().product()).map(|i| bf16::from_f64(of(i))).collect();
            Tensor::from_slice(&device, &data, shape, Layout::RowMajor).unwrap()
        };
        // Value 1 for the first sequence, 2 for the second.
        let entry = CAPACITY * DIM;
        let [q, k] = [[2, ROWS, 2, DIM], [2, CAPACITY, 1, DIM]].map(|shape| tensor(shape, &|_| 1.0));
        let v = tensor([2, CAPACITY, 1, DIM], &|i| 1.0 + (i / entry) as f64);
        Spoiled { device, q, k, v }
    }

    fn indices(&self, numbers: &[i32]) -> Indices {
        Indices::from_slice(&self.device, numbers).unwrap()
    }

    /// Every way to compute it gives 1 for the first sequence, and for the second what `second` says, if it says anything.
    fn check(&self, cache: &KvCache<'_>, second: Option<f64>, what: &str) {
        for row in tiles::<bf16>(&self.device, DIM) {
            for splits in [1, 3] {
                let attention = Attention::new().with_kernel(row).with_splits(Splits::Count(splits));
                let output =
                    attention.forward_cached(&self.q.view(), None, cache).unwrap_or_else(|e| panic!("{what}: {e}"));
                let out = output.out.to_f64_vec().unwrap();
                let (first, other) = out.split_at(out.len() / 2);
                let symbol = row.entry.symbol;
                assert!(first.iter().all(|&x| x == 1.0), "{what}, {symbol}: the first sequence is {first:?}");
                if let Some(second) = second {
                    assert!(other.iter().all(|&x| x == second), "{what}, {symbol}: the second sequence is {other:?}");
                }
            }
        }
    }
}

const OUTSIDE: [i32; 6] = [-1, i32::MIN, 25, 1000, i32::MAX, i32::MIN + 1];

#[test]
fn lengths_and_places_outside_the_cache() {
    let spoiled = Spoiled::new();
    let (k, v) = (spoiled.k.view(), spoiled.v.view());
    let cache = || KvCache::new(&k, &v);
    for wrong in OUTSIDE {
        // Negative lengths are none, and those beyond the cache are all of it.
        let lengths = spoiled.indices(&[7, wrong]);
        let second = if wrong < 0 { 0.0 } else { 2.0 };
        spoiled.check(&cache().with_lengths(lengths.view()), Some(second), &format!("length {wrong}"));
        // First rows before the cache are the first one, and behind the last no key is left.
        let first = spoiled.indices(&[3, wrong]);
        let second = if wrong < 0 { 2.0 } else { 0.0 };
        spoiled.check(&cache().with_first(first.view()), Some(second), &format!("first row {wrong}"));
        let first_of_few = cache().with_first(first.view()).with_lengths(lengths.view());
        spoiled.check(&first_of_few, Some(0.0).filter(|_| wrong < 0), &format!("first row and length {wrong}"));
        // Some entry of the cache.
        let entries = spoiled.indices(&[0, wrong]);
        spoiled.check(&cache().with_entries(entries.view()), None, &format!("entry {wrong}"));
    }
    // Left padding that hides all keys.
    for first in [0, 7, 8, 24] {
        let (lengths, firsts) = (spoiled.indices(&[7, 7]), spoiled.indices(&[6, first]));
        let second = if first < 7 { 2.0 } else { 0.0 };
        let cache = cache().with_lengths(lengths.view()).with_first(firsts.view());
        spoiled.check(&cache, Some(second), &format!("{first} of 7 rows are padding"));
    }
}

#[test]
fn pages_that_do_not_exist() {
    let spoiled = Spoiled::new();
    // Pages of 8 rows: three for each sequence.
    let [k, v] = [&spoiled.k, &spoiled.v].map(|cache| cache.view().reshape([6, 8, 1, DIM]).unwrap());
    for wrong in [-1, i32::MIN, 6, 1000, i32::MAX] {
        let table = spoiled.indices(&[0, 1, 2, 3, wrong, 5]);
        let cache = KvCache::new(&k, &v).with_pages(PageTable::new(table.view(), 3));
        spoiled.check(&cache, None, &format!("page {wrong}"));
        // Behind the rows in use nobody looks.
        let lengths = spoiled.indices(&[24, 8]);
        spoiled.check(&cache.with_lengths(lengths.view()), Some(2.0), &format!("page {wrong} behind those in use"));
        let lengths = spoiled.indices(&[24, 1000]);
        spoiled.check(&cache.with_lengths(lengths.view()), None, &format!("page {wrong}, and more rows than pages"));
    }
}

#[test]
fn starts_outside_the_tensors() {
    let spoiled = Spoiled::new();
    let device = &spoiled.device;
    let rows = 2 * ROWS;
    let [q, kv_rows] = [(&spoiled.q, 2), (&spoiled.k, 1)].map(|(t, heads)| {
        let count = t.shape().iter().product::<usize>() / heads / DIM;
        t.view().reshape([count, heads, DIM]).unwrap()
    });
    let v = spoiled.v.view().reshape([2 * CAPACITY, 1, DIM]).unwrap();
    let right = spoiled.indices(&[0, CAPACITY as i32, 2 * CAPACITY as i32]);
    for end in [9, 1000, i32::MAX] {
        // Ends behind the last row are the last row.
        let starts = spoiled.indices(&[0, ROWS as i32, end]);
        let kv_starts = spoiled.indices(&[0, CAPACITY as i32, end.saturating_add(100)]);
        for row in tiles::<bf16>(device, DIM) {
            let attention = Attention::new().with_kernel(row).with_splits(Splits::Count(2));
            let rows_of = PackedRows::new(starts.view());
            for kv in [&right, &kv_starts] {
                let output = attention.forward_packed(&q, &kv_rows, &v, &rows_of, &PackedRows::new(kv.view())).unwrap();
                let out = output.out.to_f64_vec().unwrap();
                let expected = (0..out.len()).map(|i| if i < out.len() / 2 { 1.0 } else { 2.0 });
                assert!(out.iter().copied().eq(expected), "{}, end {end}", row.entry.symbol);
            }
        }
    }
    // Sequences that end before they start, or start behind the last row, have none.
    for (numbers, written) in [
        ([-5, ROWS as i32, ROWS as i32], ROWS),
        ([i32::MIN, ROWS as i32, i32::MIN], ROWS),
        ([0, ROWS as i32, -1], ROWS),
        ([rows as i32 + 1, i32::MAX, i32::MAX], 0),
        ([-3, -2, -1], 0),
    ] {
        let starts = spoiled.indices(&numbers);
        for row in tiles::<bf16>(device, DIM) {
            let attention = Attention::new().with_kernel(row).with_splits(Splits::Count(2));
            let rows_of = PackedRows::new(starts.view());
            let output = attention.forward_packed(&q, &kv_rows, &v, &rows_of, &PackedRows::new(right.view())).unwrap();
            let out = output.out.to_f64_vec().unwrap();
            let expected = (0..out.len()).map(|i| f64::from(u8::from(i < written * 2 * DIM)));
            assert!(out.iter().copied().eq(expected), "{}, starts {numbers:?}: {out:?}", row.entry.symbol);
        }
    }
    // Rows in use beyond those that there are, and none of them.
    let starts = spoiled.indices(&[0, ROWS as i32, rows as i32]);
    for (used, share) in [(-1, 0), (i32::MIN, 0), (5, ROWS), (i32::MAX, ROWS)] {
        let used_rows = spoiled.indices(&[ROWS as i32, used]);
        let q_rows = PackedRows::new(starts.view()).with_used(used_rows.view());
        let output =
            Attention::new().forward_packed(&q, &kv_rows, &v, &q_rows, &PackedRows::new(right.view())).unwrap();
        let out = output.out.to_f64_vec().unwrap();
        let written = |i: usize| {
            if i < ROWS {
                1.0
            } else if i < ROWS + share {
                2.0
            } else {
                0.0
            }
        };
        assert!(out.iter().enumerate().all(|(i, &x)| x == written(i / 2 / DIM)), "{used} rows in use: {out:?}");
    }
}

/// Rows without room are left out, and others are where they belong, whatever lengths, pages, positions and starts say.
#[test]
fn rows_that_are_appended_outside() {
    let spoiled = Spoiled::new();
    let device = &spoiled.device;
    let table = Tensor::from_slice(device, &[bf16::from_f64(1.0); 8 * 4], [8, 4], Layout::RowMajor).unwrap();
    let new = vec![bf16::from_f64(5.0); 2 * ROWS * DIM];
    let new = Tensor::from_slice(device, &new, [2, ROWS, 1, DIM], Layout::RowMajor).unwrap();
    for pages in [None, Some([0, 1, 2, 3, -1, 1000])] {
        for length in [-1, i32::MIN, 22, 24, 25, 1000, i32::MAX] {
            for position in [-1, i32::MIN, 1000, i32::MAX] {
                let poison = vec![nan::<bf16>(); 2 * CAPACITY * DIM];
                let shape = if pages.is_some() { [6, 8, 1, DIM] } else { [2, CAPACITY, 1, DIM] };
                let cache = || Tensor::from_slice(device, &poison, shape, Layout::RowMajor).unwrap();
                let (mut k, mut v) = (cache(), cache());
                let (lengths, positions) = (spoiled.indices(&[0, length]), spoiled.indices(&[0, position]));
                let pages = pages.map(|pages| spoiled.indices(&pages));
                let (table, new) = (table.view(), new.view());
                let rotary = Rotary::new(&table, &table).with_positions(positions.view());
                let rows = NewRows::new(&new, &new).with_rotary(rotary);
                let mut cache = KvCacheMut::new(k.view_mut(), v.view_mut()).with(|cache| {
                    let pages = pages.as_ref().map(|pages| PageTable::new(pages.view(), 3));
                    cache.with_lengths(lengths.view()).with_pages(pages)
                });
                let output = Attention::new().causal().forward_appending(&spoiled.q.view(), None, &mut cache, &rows);
                let what = format!("length {length}, position {position}, pages {}", pages.is_some());
                let out = output.unwrap_or_else(|error| panic!("{what}: {error}")).out.to_f64_vec().unwrap();
                assert!(out[..out.len() / 2].iter().all(|&x| x == 5.0), "{what}: {out:?}");
                // The first sequence is whole; of the second, what there is room for in pages that exist.
                let written: Vec<bool> =
                    v.to_f64_vec().unwrap().chunks(DIM).map(|row| row.iter().all(|&x| x == 5.0)).collect();
                let from = length.max(0) as usize;
                let exists = |row: usize| pages.is_none() || row < 8;
                let expected = |row: usize| match row.checked_sub(CAPACITY) {
                    None => row < ROWS,
                    Some(row) => (from..from.saturating_add(ROWS)).contains(&row) && exists(row),
                };
                assert!(written.iter().enumerate().all(|(i, &is)| is == expected(i)), "{what}: {written:?}");
            }
        }
    }
}
