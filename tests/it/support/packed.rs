//! The same sequences in the places that a call can have them: packed, in a cache, in pages. For tests that compare calls with each other.

use crate::support::case::{nan, to_f64};
use ferroflash::reference::{self, max_abs_difference};
use ferroflash::{
    Attention, Device, Element, Indices, KvCache, Layout, Lse, LseShape, PackedRows, PageTable, Sizes, Tensor,
};
use kernel_spec::families::sequences::VARIANTS;
use kernel_spec::{Pass, Variant};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// Sequences, each with queries `[row, q_head, dim]` and keys and values `[row, kv_head, dim]`.
#[derive(Clone, Debug)]
pub(crate) struct Sequences<T> {
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) dim: usize,
    pub(crate) each: Vec<[Vec<T>; 3]>,
}

/// Where keys and values are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Place {
    /// Packed like the queries.
    Packed,
    /// In entries of a cache, in the opposite order; some rows before those in use, and behind them, are NaN.
    Cache,
    /// In pages of so many rows, the last of the first sequence first; some rows before those in use are NaN, too.
    Pages(usize),
    /// The same, in use from the first row of the first page on.
    UnpaddedPages(usize),
}

/// What a sequence's rows are: output `[row, q_head, dim]`, log-sum-exp `[q_head, row]`.
#[derive(Clone, Debug)]
pub(crate) struct Found<T> {
    pub(crate) out: Vec<T>,
    pub(crate) lse: Vec<f32>,
}

impl<T: Element> Found<T> {
    /// The bytes of the output and the bits of the log-sum-exp.
    pub(crate) fn bits(&self) -> (&[u8], Vec<u32>) {
        (bytemuck::cast_slice(&self.out), self.lse.iter().map(|x| x.to_bits()).collect())
    }
}

/// What has to come out for each sequence, and how exactly.
pub(crate) struct Expected {
    pub(crate) each: Vec<[Vec<f64>; 2]>,
    pub(crate) bounds: [f64; 2],
}

/// The tiles that attend to sequences of a type and head dim, on this device.
pub(crate) fn tiles<T: Element>(device: &Device, dim: usize) -> Vec<&'static Variant> {
    let attends = |row: &&Variant| matches!(row.pass, Pass::Decode | Pass::ClusterDecode | Pass::Prefill);
    let fits = |row: &&Variant| row.dtype == T::DTYPE && row.dim_qk as usize == dim.next_multiple_of(32);
    let rows = VARIANTS.iter().filter(attends).filter(fits).filter(|row| device.info().runs(row.entry.arch));
    let rows: Vec<_> = rows.collect();
    assert!(rows.iter().any(|row| row.pass == Pass::Decode) || T::DTYPE == ferroflash::DType::F32);
    assert!(rows.iter().any(|row| row.pass == Pass::Prefill));
    rows
}

impl<T: Element> Sequences<T> {
    /// Normally distributed numbers, for these rows of queries and of keys.
    pub(crate) fn draw(lengths: &[[usize; 2]], [q_heads, kv_heads]: [usize; 2], dim: usize, seed: u64) -> Sequences<T> {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut draw = |rows: usize, heads: usize| -> Vec<T> {
            (0..rows * heads * dim).map(|_| T::from_f64(rng.sample(StandardNormal))).collect()
        };
        let each = lengths.iter().map(|&[q, kv]| [draw(q, q_heads), draw(kv, kv_heads), draw(kv, kv_heads)]);
        Sequences { q_heads, kv_heads, dim, each: each.collect() }
    }

    /// The same number everywhere in each tensor.
    pub(crate) fn filled(lengths: &[[usize; 2]], heads: [usize; 2], dim: usize, [q, k, v]: [f64; 3]) -> Sequences<T> {
        let mut filled = Sequences::draw(lengths, heads, dim, 0);
        for tensors in &mut filled.each {
            for (tensor, x) in tensors.iter_mut().zip([q, k, v]) {
                tensor.fill(T::from_f64(x));
            }
        }
        filled
    }

    /// One of them alone.
    pub(crate) fn only(&self, index: usize) -> Sequences<T> {
        Sequences { each: vec![self.each[index].clone()], ..*self }
    }

    pub(crate) fn q_rows(&self, index: usize) -> usize {
        self.each[index][0].len() / (self.q_heads * self.dim)
    }

    pub(crate) fn kv_rows(&self, index: usize) -> usize {
        self.each[index][1].len() / (self.kv_heads * self.dim)
    }

    /// First row of each sequence, and the end of the last.
    pub(crate) fn starts(&self, rows: impl Fn(usize) -> usize) -> Vec<i32> {
        let mut starts = vec![0];
        for i in 0..self.each.len() {
            starts.push(starts[i] + rows(i) as i32);
        }
        starts
    }

    /// Queries of all sequences, packed.
    pub(crate) fn packed_q(&self, device: &Device) -> Tensor {
        let data = self.each.iter().flat_map(|[q, ..]| q.iter().copied()).collect::<Vec<_>>();
        let rows = data.len() / (self.q_heads * self.dim);
        Tensor::from_slice(device, &data, [rows, self.q_heads, self.dim], Layout::RowMajor).unwrap()
    }

    /// Runs them, with the log-sum-exp or without, and hints or without.
    pub(crate) fn run(&self, device: &Device, place: Place, attention: Attention<'static>) -> Vec<Found<T>> {
        self.run_with(device, place, attention, [None; 2], true)
    }

    pub(crate) fn run_with(
        &self,
        device: &Device,
        place: Place,
        attention: Attention<'static>,
        [longest_q, longest_kv]: [Option<usize>; 2],
        with_lse: bool,
    ) -> Vec<Found<T>> {
        let batch = self.each.len();
        let indices = |numbers: &[i32]| Indices::from_slice(device, numbers).unwrap();
        let q_numbers = self.starts(|i| self.q_rows(i));
        let q_starts = indices(&q_numbers);
        let q = self.packed_q(device);
        let tokens = *q_numbers.last().unwrap() as usize;
        let poison = vec![nan::<T>(); tokens * self.q_heads * self.dim];
        let mut out = Tensor::from_slice(device, &poison, [tokens, self.q_heads, self.dim], Layout::RowMajor).unwrap();
        let mut lse = Lse::uninit(device, LseShape { batch: 1, heads: self.q_heads, rows: tokens }).unwrap();
        lse.fill_bytes(0xff).unwrap();
        let row = self.kv_heads * self.dim;
        // Rows that precede those in use, per sequence.
        let is_padded = matches!(place, Place::Cache | Place::Pages(_));
        let first: Vec<usize> = (0..batch).map(|b| if is_padded { 3 * b % 7 } else { 0 }).collect();
        let room = (0..batch).map(|b| first[b] + self.kv_rows(b)).max().unwrap_or(0) + 2;
        // Row of the flat tensor for each row in use.
        let kv_numbers = self.starts(|i| self.kv_rows(i));
        let mut table = Vec::new();
        let (shape, places): (Vec<usize>, Vec<Vec<usize>>) = match place {
            Place::Packed => {
                let of = |b: usize| (kv_numbers[b] as usize..kv_numbers[b + 1] as usize).collect();
                (vec![*kv_numbers.last().unwrap() as usize], (0..batch).map(of).collect())
            }
            Place::Cache => {
                let of = |b: usize| (0..self.kv_rows(b)).map(|i| (batch - 1 - b) * room + first[b] + i).collect();
                (vec![batch, room], (0..batch).map(of).collect())
            }
            Place::Pages(page_rows) | Place::UnpaddedPages(page_rows) => {
                let width = room.div_ceil(page_rows);
                let pages = batch * width;
                table = (0..pages).rev().map(|page| page as i32).collect();
                let of = |b: usize| {
                    let at = |t: usize| (pages - 1 - (b * width + t / page_rows)) * page_rows + t % page_rows;
                    (0..self.kv_rows(b)).map(|i| at(first[b] + i)).collect()
                };
                (vec![pages, page_rows], (0..batch).map(of).collect())
            }
        };
        let upload = |which: usize| {
            let mut data = vec![nan::<T>(); shape.iter().product::<usize>() * row];
            for (b, places) in places.iter().enumerate() {
                for (i, &place) in places.iter().enumerate() {
                    data[place * row..][..row].copy_from_slice(&self.each[b][which][i * row..][..row]);
                }
            }
            let shape = [&shape[..], &[self.kv_heads, self.dim]].concat();
            Tensor::from_slice(device, &data, ferroflash::Dims::new(&shape).unwrap(), Layout::RowMajor).unwrap()
        };
        let (k, v) = (upload(1), upload(2));
        let (q, k, v) = (q.view(), k.view(), v.view());
        let q_rows = PackedRows::new(q_starts.view()).with_longest(longest_q);
        let (mut out_view, mut lse_view) = (out.view_mut(), lse.view_mut());
        let lse_view = with_lse.then_some(&mut lse_view);
        let stream = device.default_stream();
        let lengths: Vec<i32> = (0..batch).map(|b| (first[b] + self.kv_rows(b)) as i32).collect();
        let firsts: Vec<i32> = first.iter().map(|&first| first as i32).collect();
        let entries: Vec<i32> = (0..batch as i32).rev().collect();
        let (lengths, firsts, entries, pages) =
            (indices(&lengths), indices(&firsts), indices(&entries), indices(&table));
        let kv_starts = indices(&kv_numbers);
        let result = if place == Place::Packed {
            let kv_rows = PackedRows::new(kv_starts.view()).with_longest(longest_kv);
            attention.forward_packed_into(&stream, &q, &k, &v, &q_rows, &kv_rows, &mut out_view, lse_view)
        } else {
            let cache = KvCache::new(&k, &v).with_lengths(lengths.view());
            let cache = if is_padded { cache.with_first(firsts.view()) } else { cache };
            let cache = match place {
                Place::Pages(page_rows) | Place::UnpaddedPages(page_rows) => {
                    cache.with_pages(PageTable::new(pages.view(), room.div_ceil(page_rows)))
                }
                _ => cache.with_entries(entries.view()),
            };
            attention.forward_cached_into(&stream, &q, Some(&q_rows), &cache, &mut out_view, lse_view)
        };
        result.unwrap_or_else(|error| panic!("{place:?}, {attention:?}: {error}"));
        stream.synchronize().unwrap();
        let (out, lse): (Vec<T>, _) = (out.to_vec().unwrap(), lse.to_vec().unwrap());
        let of = |b: usize| {
            let rows = q_numbers[b] as usize..q_numbers[b + 1] as usize;
            let width = self.q_heads * self.dim;
            Found {
                out: out[rows.start * width..rows.end * width].to_vec(),
                lse: (0..self.q_heads)
                    .flat_map(|h| lse[h * tokens + rows.start..h * tokens + rows.end].to_vec())
                    .collect(),
            }
        };
        (0..batch).map(of).collect()
    }

    /// What the f64 reference says, with the bounds of the tolerance rule.
    pub(crate) fn expected(&self, attention: &Attention) -> Expected {
        let mut errors = [0f64; 2];
        let mut largest = 0f64;
        let each = (0..self.each.len()).map(|b| {
            if self.q_rows(b) == 0 {
                return [Vec::new(), Vec::new()];
            }
            let tensors = self.each[b].each_ref().map(|tensor| to_f64(tensor));
            let [q, k, v] = &tensors;
            let Sequences { q_heads, kv_heads, dim: head_dim, .. } = *self;
            let (q_rows, kv_rows) = (self.q_rows(b), self.kv_rows(b));
            let sizes = Sizes { batch: 1, q_rows, kv_rows, q_heads, kv_heads, head_dim, dtype: T::DTYPE };
            let exact = reference::forward(q, k, v, sizes, attention).expect("legal");
            let rounded = reference::forward_rounded(q, k, v, sizes, attention).expect("legal");
            // Rows that are not finite have no error to take a bound from.
            let finite = |a: &[f64], b: &[f64]| -> [Vec<f64>; 2] {
                let pairs = a.iter().zip(b).filter(|(a, b)| a.is_finite() && b.is_finite());
                let (a, b) = pairs.map(|(a, b)| (*a, *b)).unzip();
                [a, b]
            };
            for (error, [a, b]) in
                errors.iter_mut().zip([finite(&exact.out, &rounded.out), finite(&exact.lse, &rounded.lse)])
            {
                *error = error.max(max_abs_difference(&a, &b));
            }
            largest = exact.lse.iter().filter(|x| x.is_finite()).fold(largest, |most, x| most.max(x.abs()));
            [exact.out, exact.lse]
        });
        let each = each.collect();
        let [out, lse] = errors.map(reference::tolerance);
        Expected { each, bounds: [out, lse + 16.0 * f64::from(f32::EPSILON) * largest] }
    }
}

impl Expected {
    /// Panics unless all sequences are what they have to be.
    pub(crate) fn check<T: Element>(&self, found: &[Found<T>], what: &str) {
        for (b, (found, expected)) in found.iter().zip(&self.each).enumerate() {
            let lse: Vec<f64> = found.lse.iter().map(|&x| x.into()).collect();
            for ((found, expected), bound) in [to_f64(&found.out), lse].iter().zip(expected).zip(self.bounds) {
                assert_eq!(found.len(), expected.len());
                for (i, (&x, &y)) in found.iter().zip(expected).enumerate() {
                    let is_right = x == y || (x.is_nan() && y.is_nan()) || (x - y).abs() <= bound;
                    assert!(is_right, "{what}: number {i} of sequence {b} is {x}, not {y} within {bound:e}");
                }
            }
        }
    }
}
