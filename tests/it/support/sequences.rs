//! Sequences of different lengths with their memory: full of NaN wherever nothing may be read, and of page numbers that would fault.

use crate::support::case::{largest, nan, to_f64};
use ferroflash::reference::{self, SequenceRows};
use ferroflash::{
    Attention, Device, Element, Indices, KernelChoice, KvCache, KvCacheMut, Layout, Mask, NewRows, PackedRows,
    PageTable, Rotary, Sizes, Tensor,
};
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use rand_distr::StandardNormal;

/// Where keys and values are.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Keys {
    /// Packed like the queries, with so many rows of room behind those in use of each sequence.
    Packed { slack: usize },
    /// In entries of a cache of so many rows; some entries belong to nobody.
    Cache { capacity: usize, spare_entries: usize, left_padding: bool },
    /// In pages of so many rows, in any order; some pages belong to nobody.
    Pages { page_rows: usize, spare_pages: usize, stride_gap: usize, left_padding: bool },
}

/// Rows that the call appends.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Appending {
    /// Turned columns, 0: nothing is turned.
    pub(crate) turned_dims: usize,
    pub(crate) interleaved: bool,
}

/// Sequences, by their rows of q and of k and v.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SequenceCase {
    /// Rows of q and keys of each sequence, those that are appended included.
    pub(crate) lengths: Vec<[usize; 2]>,
    /// Whether queries are packed; else all sequences have as many.
    pub(crate) packed_q: bool,
    /// Rows of q behind those in use of each packed sequence.
    pub(crate) q_slack: usize,
    pub(crate) keys: Keys,
    pub(crate) appending: Option<Appending>,
    pub(crate) q_heads: usize,
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) attention: Attention<'static>,
    /// Elements between neighbouring rows of k and v.
    pub(crate) row_gap: usize,
    pub(crate) deviation: f64,
    pub(crate) seed: u64,
}

/// Page number behind the pages of a sequence: following it would fault.
const NO_PAGE: i32 = 2_147_480_000;

/// A case in memory.
pub(crate) struct Laid<T> {
    pub(crate) q: Vec<T>,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
    /// Rows of each sequence.
    rows: Vec<SequenceRows>,
    q_starts: Vec<i32>,
    q_used: Vec<i32>,
    kv_starts: Vec<i32>,
    kv_used: Vec<i32>,
    first: Vec<i32>,
    entries: Vec<i32>,
    table: Vec<i32>,
    width: usize,
    /// Extents of k and v before heads and dims.
    kv_shape: Vec<usize>,
    /// New rows, one behind the other, of `new_rows` for each sequence.
    new_k: Vec<T>,
    new_v: Vec<T>,
    new_starts: Vec<i32>,
    cos: Vec<T>,
    sin: Vec<T>,
}

/// What a kernel computed.
pub(crate) struct Result3<T> {
    pub(crate) out: Vec<T>,
    pub(crate) lse: Vec<f32>,
    pub(crate) splits: u32,
    pub(crate) k: Vec<T>,
    pub(crate) v: Vec<T>,
}

impl SequenceCase {
    /// Two heads of queries, one of keys, contiguous caches.
    pub(crate) fn new(lengths: Vec<[usize; 2]>, keys: Keys) -> SequenceCase {
        SequenceCase {
            lengths,
            packed_q: true,
            q_slack: 0,
            keys,
            appending: None,
            q_heads: 2,
            kv_heads: 1,
            head_dim: 64,
            attention: Attention::new().causal(),
            row_gap: 0,
            deviation: 1.0,
            seed: 0,
        }
    }

    fn sizes<T: Element>(&self) -> Sizes {
        let SequenceCase { q_heads, kv_heads, head_dim, .. } = *self;
        Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads, kv_heads, head_dim, dtype: T::DTYPE }
    }

    /// New rows of a sequence: half of its keys, at most as many as it has queries.
    fn new_rows(&self, [q, kv]: [usize; 2]) -> usize {
        if self.appending.is_some() { q.min(kv) } else { 0 }
    }

    /// Puts the case into memory.
    pub(crate) fn lay<T: Element>(&self) -> Laid<T> {
        let mut rng = SmallRng::seed_from_u64(self.seed);
        let most = largest::<T>();
        let draw = |count: usize, rng: &mut SmallRng| -> Vec<T> {
            (0..count)
                .map(|_| T::from_f64((self.deviation * rng.sample::<f64, _>(StandardNormal)).clamp(-most, most)))
                .collect()
        };
        let batch = self.lengths.len();
        let (q_row, kv_row) = (self.q_heads * self.head_dim, self.kv_heads * self.head_dim);
        let (mut q_starts, mut q_used) = (vec![0], Vec::new());
        for [q, _] in &self.lengths {
            let room = q + if self.packed_q { self.q_slack } else { 0 };
            q_starts.push(q_starts.last().unwrap() + room as i32);
            q_used.push(*q as i32);
        }
        let mut q = vec![nan::<T>(); *q_starts.last().unwrap() as usize * q_row];
        for (&start, [rows, _]) in q_starts.iter().zip(&self.lengths) {
            let values = draw(rows * q_row, &mut rng);
            q[start as usize * q_row..][..values.len()].copy_from_slice(&values);
        }
        // Where the keys of each sequence are, as rows of a flat tensor.
        let mut first = vec![0; batch];
        let (mut entries, mut table, mut kv_starts, mut width) = (Vec::new(), Vec::new(), vec![0], 0);
        let (places, kv_shape): (Vec<Vec<usize>>, Vec<usize>) = match self.keys {
            Keys::Packed { slack } => {
                for [_, kv] in &self.lengths {
                    kv_starts.push(kv_starts.last().unwrap() + (kv + slack) as i32);
                }
                let total = *kv_starts.last().unwrap() as usize;
                let places = kv_starts.iter().zip(&self.lengths);
                (places.map(|(&start, [_, kv])| (start as usize..start as usize + kv).collect()).collect(), vec![total])
            }
            Keys::Cache { capacity, spare_entries, left_padding } => {
                let mut all: Vec<usize> = (0..batch + spare_entries).collect();
                if spare_entries > 0 {
                    all.shuffle(&mut rng);
                    entries = all[..batch].iter().map(|&entry| entry as i32).collect();
                }
                let places = self.lengths.iter().enumerate().map(|(b, [_, kv])| {
                    let from = if left_padding { rng.random_range(0..=capacity - kv) } else { 0 };
                    first[b] = from as i32;
                    (0..*kv).map(|row| all[b] * capacity + from + row).collect()
                });
                (places.collect(), vec![batch + spare_entries, capacity])
            }
            Keys::Pages { page_rows, spare_pages, stride_gap, left_padding } => {
                let padding: Vec<usize> = self
                    .lengths
                    .iter()
                    .map(|_| if left_padding { rng.random_range(0..=2 * page_rows) } else { 0 })
                    .collect();
                let needed = |b: usize| (padding[b] + self.lengths[b][1]).div_ceil(page_rows);
                let pages = (0..batch).map(needed).sum::<usize>() + spare_pages.max(1);
                let mut all: Vec<usize> = (0..pages).collect();
                all.shuffle(&mut rng);
                width = (0..batch).map(needed).max().unwrap_or(0) + 1;
                let mut places = Vec::new();
                for b in 0..batch {
                    first[b] = padding[b] as i32;
                    let own: Vec<usize> = all.drain(..needed(b)).collect();
                    let rows = padding[b]..padding[b] + self.lengths[b][1];
                    places.push(rows.map(|row| own[row / page_rows] * page_rows + row % page_rows).collect());
                    table.extend(own.iter().map(|&page| page as i32));
                    table.resize((b + 1) * (width + stride_gap) - stride_gap, NO_PAGE);
                    if b + 1 < batch {
                        table.resize((b + 1) * (width + stride_gap), NO_PAGE);
                    }
                }
                (places, vec![pages, page_rows])
            }
        };
        let rows: usize = kv_shape.iter().product();
        let (mut k, mut v) = (vec![nan::<T>(); rows * kv_row], vec![nan::<T>(); rows * kv_row]);
        let (mut new_k, mut new_v, mut new_starts) = (Vec::new(), Vec::new(), vec![0]);
        let mut kv_used = Vec::new();
        for (b, places) in places.iter().enumerate() {
            let new = self.new_rows(self.lengths[b]);
            let old = places.len() - new;
            for &row in &places[..old] {
                k[row * kv_row..][..kv_row].copy_from_slice(&draw(kv_row, &mut rng));
                v[row * kv_row..][..kv_row].copy_from_slice(&draw(kv_row, &mut rng));
            }
            new_k.extend(draw(new * kv_row, &mut rng));
            new_v.extend(draw(new * kv_row, &mut rng));
            new_starts.push(new_starts.last().unwrap() + new as i32);
            kv_used.push(first[b] + old as i32);
        }
        let turned = self.appending.as_ref().map_or(0, |appending| appending.turned_dims);
        let positions = 1
            + kv_used.iter().max().unwrap_or(&0).unsigned_abs() as usize
            + self.lengths.iter().map(|[q, _]| *q).max().unwrap_or(0);
        let angles: Vec<f64> = (0..positions * turned / 2)
            .map(|i| (i / (turned / 2)) as f64 / 100f64.powf((i % (turned / 2)) as f64 / (turned / 2) as f64))
            .collect();
        let cos = angles.iter().map(|x| T::from_f64(x.cos())).collect();
        let sin = angles.iter().map(|x| T::from_f64(x.sin())).collect();
        let rows = q_starts.iter().zip(&self.lengths).zip(places);
        let rows =
            rows.map(|((&start, [q, _]), kv)| SequenceRows { q: start as usize..start as usize + q, kv }).collect();
        Laid {
            q,
            k,
            v,
            rows,
            q_starts,
            q_used,
            kv_starts,
            kv_used,
            first,
            entries,
            table,
            width,
            kv_shape,
            new_k,
            new_v,
            new_starts,
            cos,
            sin,
        }
    }

    /// A tensor of these extents before heads and dims, with a gap of NaN between its rows.
    fn upload<T: Element>(
        &self,
        device: &Device,
        shape: &[usize],
        heads: usize,
        data: &[T],
    ) -> ferroflash::Result<Tensor> {
        let row = heads * self.head_dim;
        let stride = row + self.row_gap;
        let mut storage = vec![nan::<T>(); (data.len() / row) * stride + 64];
        for (to, from) in storage.chunks_mut(stride).zip(data.chunks_exact(row)) {
            to[..row].copy_from_slice(from);
        }
        match *shape {
            [outer, rows] => Tensor::from_slice_strided(
                device,
                &storage,
                0,
                [outer, rows, heads, self.head_dim],
                [rows * stride, stride, self.head_dim, 1],
            ),
            _ => Tensor::from_slice_strided(
                device,
                &storage,
                0,
                [shape[0], heads, self.head_dim],
                [stride, self.head_dim, 1],
            ),
        }
    }

    /// Runs it into poisoned outputs.
    pub(crate) fn run<T: Element>(&self, device: &Device, laid: &Laid<T>) -> ferroflash::Result<Result3<T>> {
        let batch = self.lengths.len();
        let tokens = *laid.q_starts.last().unwrap() as usize;
        let q_shape: &[usize] = &if self.packed_q { vec![tokens] } else { vec![batch, tokens / batch] };
        let q = self.upload(device, q_shape, self.q_heads, &laid.q)?;
        let mut k = self.upload(device, &laid.kv_shape, self.kv_heads, &laid.k)?;
        let mut v = self.upload(device, &laid.kv_shape, self.kv_heads, &laid.v)?;
        let poison = vec![nan::<T>(); laid.q.len()];
        let mut out = self.upload(device, q_shape, self.q_heads, &poison)?;
        let lse_shape = ferroflash::LseShape {
            batch: if self.packed_q { 1 } else { batch },
            heads: self.q_heads,
            rows: if self.packed_q { tokens } else { tokens / batch },
        };
        let mut lse = ferroflash::Lse::uninit(device, lse_shape)?;
        lse.fill_bytes(0xff)?;
        let indices = |numbers: &[i32]| Indices::from_slice(device, numbers);
        let (q_starts, q_used) = (indices(&laid.q_starts)?, indices(&laid.q_used)?);
        let (kv_starts, kv_used) = (indices(&laid.kv_starts)?, indices(&laid.kv_used)?);
        let (first, entries, table) = (indices(&laid.first)?, indices(&laid.entries)?, indices(&laid.table)?);
        let new_starts = indices(&laid.new_starts)?;
        let has_slack = self.q_slack > 0;
        let q_rows = PackedRows::new(q_starts.view()).with_used(has_slack.then(|| q_used.view()));
        let stream = device.default_stream();
        let splits;
        match &self.keys {
            Keys::Packed { slack } => {
                let kv_rows = PackedRows::new(kv_starts.view()).with_used((*slack > 0).then(|| kv_used.view()));
                let (q, k, v) = (q.view(), k.view(), v.view());
                splits = self.attention.plan_packed(&q, &k, &v, &q_rows, &kv_rows)?.splits;
                self.attention.forward_packed_into(
                    &stream,
                    &q,
                    &k,
                    &v,
                    &q_rows,
                    &kv_rows,
                    &mut out.view_mut(),
                    Some(&mut lse.view_mut()),
                )?;
            }
            Keys::Cache { left_padding, .. } | Keys::Pages { left_padding, .. } => {
                let pages = matches!(self.keys, Keys::Pages { .. }).then(|| {
                    let Keys::Pages { stride_gap, .. } = self.keys else { unreachable!() };
                    PageTable::new(table.view(), laid.width).with_stride(laid.width + stride_gap)
                });
                let q_rows = self.packed_q.then_some(&q_rows);
                let (first, entries) =
                    (left_padding.then(|| first.view()), (!laid.entries.is_empty()).then(|| entries.view()));
                match &self.appending {
                    None => {
                        let cache = KvCache::new(&k.view(), &v.view())
                            .with_lengths(kv_used.view())
                            .with_first(first)
                            .with_entries(entries)
                            .with_pages(pages);
                        splits = self.attention.plan_cached(&q.view(), q_rows, &cache, None)?.splits;
                        self.attention.forward_cached_into(
                            &stream,
                            &q.view(),
                            q_rows,
                            &cache,
                            &mut out.view_mut(),
                            Some(&mut lse.view_mut()),
                        )?;
                    }
                    Some(appending) => {
                        let new_rows = laid.new_starts.last().unwrap().unsigned_abs() as usize;
                        let shape: &[usize] =
                            &if self.packed_q { vec![new_rows] } else { vec![batch, new_rows / batch] };
                        let new_k = self.upload(device, shape, self.kv_heads, &laid.new_k)?;
                        let new_v = self.upload(device, shape, self.kv_heads, &laid.new_v)?;
                        let half = appending.turned_dims / 2;
                        let table_of = |data: &[T]| {
                            Tensor::from_slice(device, data, [data.len() / half.max(1), half], Layout::RowMajor)
                        };
                        let (cos, sin) = (table_of(&laid.cos)?, table_of(&laid.sin)?);
                        let (cos, sin) = (cos.view(), sin.view());
                        let rotary =
                            (half > 0).then(|| Rotary::new(&cos, &sin).with_interleaved(appending.interleaved));
                        let (new_k, new_v) = (new_k.view(), new_v.view());
                        let new = NewRows::new(&new_k, &new_v)
                            .with_starts(self.packed_q.then(|| new_starts.view()))
                            .with_rotary(rotary);
                        let mut cache = KvCacheMut::new(k.view_mut(), v.view_mut()).with(|cache| {
                            cache.with_lengths(kv_used.view()).with_first(first).with_entries(entries).with_pages(pages)
                        });
                        splits = self.attention.plan_cached(&q.view(), q_rows, &cache.view(), Some(&new))?.splits;
                        self.attention.forward_appending_into(
                            &stream,
                            &q.view(),
                            q_rows,
                            &mut cache,
                            &new,
                            &mut out.view_mut(),
                            Some(&mut lse.view_mut()),
                        )?;
                    }
                }
            }
        }
        stream.synchronize()?;
        Ok(Result3 { out: out.to_vec()?, lse: lse.to_vec()?, splits, k: k.to_vec()?, v: v.to_vec()? })
    }

    /// The inputs as attention sees them: the cache with what is appended, keys and queries turned.
    fn effective<T: Element>(&self, laid: &Laid<T>) -> [Vec<T>; 3] {
        let (mut q, mut k, mut v) = (laid.q.clone(), laid.k.clone(), laid.v.clone());
        let Some(appending) = &self.appending else { return [q, k, v] };
        let kv_row = self.kv_heads * self.head_dim;
        let half = appending.turned_dims / 2;
        let turn = |row: &mut [T], position: usize| {
            for head in row.chunks_exact_mut(self.head_dim) {
                for pair in 0..half {
                    let [x, y] = if appending.interleaved { [2 * pair, 2 * pair + 1] } else { [pair, half + pair] };
                    let [cos, sin] = [&laid.cos, &laid.sin].map(|table| table[position * half + pair].to_f64() as f32);
                    let [a, b] = [head[x], head[y]].map(|x| x.to_f64() as f32);
                    head[x] = T::from_f64(a.mul_add(cos, -(b * sin)).into());
                    head[y] = T::from_f64(a.mul_add(sin, b * cos).into());
                }
            }
        };
        for (b, SequenceRows { q: q_rows, kv }) in laid.rows.iter().enumerate() {
            let used = laid.kv_used[b] as usize;
            let new = laid.new_starts[b] as usize..laid.new_starts[b + 1] as usize;
            for (i, token) in new.clone().enumerate() {
                let place = kv[kv.len() - new.len() + i];
                let mut row = laid.new_k[token * kv_row..][..kv_row].to_vec();
                turn(&mut row, used + i);
                k[place * kv_row..][..kv_row].copy_from_slice(&row);
                v[place * kv_row..][..kv_row].copy_from_slice(&laid.new_v[token * kv_row..][..kv_row]);
            }
            let advances = !matches!(self.attention.mask, Mask::Full | Mask::Window { left: None, right: None });
            for (i, token) in q_rows.clone().enumerate() {
                let row = &mut q[token * self.q_heads * self.head_dim..][..self.q_heads * self.head_dim];
                turn(row, used + if advances { i } else { 0 });
            }
        }
        [q, k, v]
    }

    /// Runs the case and compares everything with the reference.
    pub(crate) fn check<T: Element>(&self, device: &Device) -> Result<(), String> {
        self.try_check::<T>(device).map_err(|wrong| format!("{wrong}\n{self:#?}"))
    }

    fn try_check<T: Element>(&self, device: &Device) -> Result<(), String> {
        let laid = self.lay::<T>();
        let result = self.run(device, &laid).map_err(|error| format!("{error} ({error:?})"))?;
        let [q, k, v] = self.effective(&laid);
        // The cache: what was appended, and everything else as it was, NaN included.
        for (name, found, expected) in [("k", &result.k, &k), ("v", &result.v, &v)] {
            let same = |(a, b): (&T, &T)| bytemuck::bytes_of(a) == bytemuck::bytes_of(b);
            if let Some(place) = found.iter().zip(expected).position(|pair| !same(pair)) {
                return Err(format!(
                    "element {place} of {name} in the cache is {}, not {}",
                    found[place].to_f64(),
                    expected[place].to_f64()
                ));
            }
        }
        let sizes = self.sizes::<T>();
        let compute = |[q, k, v]: [&[T]; 3], laid: &Laid<T>| {
            let tensors = [to_f64(q), to_f64(k), to_f64(v)];
            let tensors = [&tensors[0][..], &tensors[1], &tensors[2]];
            let exact = reference::forward_sequences(tensors, &laid.rows, sizes, &self.attention).expect("legal");
            let rounded =
                reference::forward_sequences_rounded(tensors, &laid.rows, sizes, &self.attention).expect("legal");
            (exact, rounded)
        };
        // With the cache as the kernel left it: rotations rounded the other way are no error of attention.
        let (exact, rounded) = compute([&q, &result.k, &result.v], &laid);
        let known = |values: &[f64]| -> Vec<f64> { values.iter().map(|x| if x.is_nan() { 0.0 } else { *x }).collect() };
        let mut error = reference::max_abs_difference(&known(&rounded.out), &known(&exact.out));
        let mut lse_error = reference::max_abs_difference(&known(&rounded.lse), &known(&exact.lse));
        // The error of the precision is a maximum over rows: of a few rows it is a matter of luck.
        let rows = exact.lse.len().max(1);
        let mut draw = self.clone();
        for _ in 1..(512usize).div_ceil(rows).min(24) {
            draw.seed = draw.seed.wrapping_add(0x9e37_79b9);
            let other = draw.lay::<T>();
            let [q, k, v] = draw.effective(&other);
            let (exact, rounded) = compute([&q, &k, &v], &other);
            error = error.max(reference::max_abs_difference(&known(&rounded.out), &known(&exact.out)));
            lse_error = lse_error.max(reference::max_abs_difference(&known(&rounded.lse), &known(&exact.lse)));
        }
        let bound = reference::tolerance(error);
        let out = to_f64(&result.out);
        for (i, (&found, &expected)) in out.iter().zip(&exact.out).enumerate() {
            let wrong = if expected.is_nan() {
                // Of no sequence: the poison has to stay.
                bytemuck::bytes_of(&result.out[i]).iter().any(|&byte| byte != 0xff)
            } else {
                let is_close = (found - expected).abs() <= bound;
                !is_close
            };
            if wrong {
                let (row, column) = (i / (self.q_heads * self.head_dim), i % (self.q_heads * self.head_dim));
                return Err(format!(
                    "row {row}, column {column}: {found}, not {expected} within {bound:e} ({} splits)",
                    result.splits
                ));
            }
        }
        let largest = exact.lse.iter().filter(|x| x.is_finite()).fold(0.0, |most: f64, x| most.max(x.abs()));
        let lse_bound = reference::tolerance(lse_error) + 16.0 * f64::from(f32::EPSILON) * largest;
        let tokens = *laid.q_starts.last().unwrap() as usize;
        for (i, &found) in result.lse.iter().enumerate() {
            // `[batch, head, row]` where queries are not packed.
            let place = if self.packed_q {
                i
            } else {
                let rows = tokens / self.lengths.len();
                let (b, head, row) = (i / rows / self.q_heads, i / rows % self.q_heads, i % rows);
                head * tokens + b * rows + row
            };
            let expected = exact.lse[place];
            let wrong = if expected.is_nan() {
                found.to_bits() != u32::MAX
            } else {
                let is_close = (f64::from(found) - expected).abs() <= lse_bound;
                f64::from(found) != expected && !is_close
            };
            if wrong {
                return Err(format!("log-sum-exp {i}: {found}, not {expected} within {lse_bound:e}"));
            }
        }
        Ok(())
    }

    /// The same with a kernel.
    pub(crate) fn with_kernel(mut self, kernel: impl Into<KernelChoice>) -> SequenceCase {
        self.attention = self.attention.with_kernel(kernel);
        self
    }
}
