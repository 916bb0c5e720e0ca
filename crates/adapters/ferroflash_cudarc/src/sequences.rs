//! The calls over packed sequences and caches.

use crate::forward::{check_context, device};
use crate::{Options, Result, View, ViewMut};
use cudarc::driver::{CudaStream, DevicePtr, DevicePtrMut, SyncOnDrop};
use ferroflash::{
    Device, Dims, Element, IndicesView, KvCache, KvCacheMut, LseShape, LseViewMut, Operand, PageTable, Shape, Stream,
    Strides, TensorView, TensorViewMut,
};
use std::fmt;

/// Numbers on the device that say where sequences are, as many as the call has sequences, or one more: a longer slice is to be cut.
#[derive(Clone, Copy)]
pub struct Numbers<'a>(pub(crate) &'a dyn DevicePtr<i32>);

impl<'a> Numbers<'a> {
    /// Those of a `CudaSlice`, `CudaView` or `CudaViewMut`.
    pub fn new(slice: &'a impl DevicePtr<i32>) -> Numbers<'a> {
        Numbers(slice)
    }
}

impl fmt::Debug for Numbers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Numbers").field("len", &self.0.len()).finish()
    }
}

/// Which rows of a packed tensor belong to which sequence; see [`ferroflash::PackedRows`]. Packed tensors are [`View`]s whose batch is 1.
#[derive(Clone, Copy, Debug)]
pub struct PackedRows<'a> {
    /// First row of each sequence, and the end of the last: `[batch + 1]`.
    pub starts: Numbers<'a>,
    /// How many rows of each sequence are in use, `[batch]`; `None`: all.
    pub used: Option<Numbers<'a>>,
    /// Rows of the longest sequence, if the caller knows: a hint.
    pub longest: Option<usize>,
}

impl<'a> PackedRows<'a> {
    /// Sequences that start at these rows, all of which are in use.
    pub fn new(starts: Numbers<'a>) -> PackedRows<'a> {
        PackedRows { starts, used: None, longest: None }
    }
}

/// Which pages belong to which sequence; see [`ferroflash::PageTable`].
#[derive(Clone, Copy, Debug)]
pub struct Pages<'a> {
    /// Numbers of the pages, `[batch, width]`.
    pub table: Numbers<'a>,
    /// Pages of a sequence that the table has room for.
    pub width: usize,
    /// Numbers from one sequence's to the next one's: at least `width`.
    pub stride: usize,
}

/// Which rows of a cache belong to which sequence; see [`KvCache`]. The default is all rows of entry `b` for sequence `b`.
#[derive(Clone, Copy, Debug, Default)]
pub struct CacheRows<'a> {
    /// Rows in use of each sequence, `[batch]`, without those that the call appends; `None`: all.
    pub lengths: Option<Numbers<'a>>,
    /// First row in use of each sequence, `[batch]`; `None`: the first.
    pub first: Option<Numbers<'a>>,
    /// Entry of the cache that belongs to each sequence, `[batch]`; `None`: the same.
    pub entries: Option<Numbers<'a>>,
    /// Pages of the sequences; `None`: entries are contiguous.
    pub pages: Option<Pages<'a>>,
}

/// New rows of keys and values; see [`ferroflash::NewRows`].
#[derive(Clone, Copy, Debug)]
pub struct NewRows<'a, T> {
    /// New keys: `[batch, row, head, dim]`, or packed with [`Self::starts`].
    pub k: View<'a, T>,
    /// New values, likewise.
    pub v: View<'a, T>,
    /// Where packed new rows start: `[batch + 1]`.
    pub starts: Option<Numbers<'a>>,
    /// Keys and queries are turned by their position.
    pub rotary: Option<Rotary<'a, T>>,
}

/// Tables of a rotary embedding; see [`ferroflash::Rotary`].
#[derive(Clone, Copy)]
pub struct Rotary<'a, T> {
    /// Cosines: begins with contiguous `[rows, turned_dims / 2]`.
    pub cos: &'a dyn DevicePtr<T>,
    /// Sines, likewise.
    pub sin: &'a dyn DevicePtr<T>,
    /// Positions that the tables have.
    pub rows: usize,
    /// Columns that are turned, an even number.
    pub turned_dims: usize,
    /// Whether neighbours are turned together; else the two halves of the turned columns.
    pub interleaved: bool,
    /// Position of the first new row of each sequence, `[batch]`; `None`: the rows in use.
    pub positions: Option<Numbers<'a>>,
}

impl<T> fmt::Debug for Rotary<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Rotary { cos, sin, rows, turned_dims, interleaved, positions } = self;
        let mut shown = f.debug_struct("Rotary");
        shown.field("cos", &cos.len()).field("sin", &sin.len()).field("rows", rows).field("turned_dims", turned_dims);
        shown.field("interleaved", interleaved).field("positions", positions).finish()
    }
}

/// Computes attention over packed sequences into `out`, and with `lse` also the log-sum-exp of every row, on `stream`: see
/// [`ferroflash::Attention::forward_packed`]. q, k, v and out have batch 1. Rows that no sequence has in use are not written.
///
/// `lse` begins with contiguous `f32 [q_heads, rows]`. Streams, waits and what is recorded in the slices, those of the numbers too, are as in
/// [`forward`](crate::forward()): nothing waits for the numbers on the host.
///
/// # Errors
/// Those of [`forward`](crate::forward()) and [`ferroflash::Attention::forward_packed_into`].
#[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
pub fn forward_packed<'a, T: Element>(
    options: impl Into<Options<'a>>,
    stream: &CudaStream,
    q: View<'_, T>,
    k: View<'_, T>,
    v: View<'_, T>,
    q_rows: PackedRows<'_>,
    kv_rows: PackedRows<'_>,
    out: &mut ViewMut<'_, T>,
    lse: Option<&mut dyn DevicePtrMut<f32>>,
) -> Result<()> {
    let (options, q_rows) = (options.into(), Some(q_rows));
    Call { options, stream, q, q_rows }.run(Keys::Packed { k, v, rows: kv_rows }, out, lse)
}

/// Computes attention over keys in a cache, `k` and `v`, into `out` and `lse`, on `stream`: see [`ferroflash::Attention::forward_cached`].
///
/// With `q_rows`, q and out are packed and have batch 1. `lse` begins with contiguous `f32 [batch, q_heads, q_rows]`, or `[q_heads, rows]` for
/// packed queries. Otherwise as [`forward_packed`].
///
/// # Errors
/// Those of [`forward`](crate::forward()) and [`ferroflash::Attention::forward_cached_into`].
#[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
pub fn forward_cached<'a, T: Element>(
    options: impl Into<Options<'a>>,
    stream: &CudaStream,
    q: View<'_, T>,
    q_rows: Option<PackedRows<'_>>,
    k: View<'_, T>,
    v: View<'_, T>,
    rows: CacheRows<'_>,
    out: &mut ViewMut<'_, T>,
    lse: Option<&mut dyn DevicePtrMut<f32>>,
) -> Result<()> {
    Call { options: options.into(), stream, q, q_rows }.run(Keys::Cached { k, v, rows }, out, lse)
}

/// Writes new keys and values to the cache `k` and `v`, behind the rows in use, and computes attention over all of it: see
/// [`ferroflash::Attention::forward_appending`]. Otherwise as [`forward_cached`].
///
/// ```no_run
/// use cudarc::driver::CudaContext;
/// use ferroflash::{Attention, Layout, Shape, bf16};
/// use ferroflash_cudarc::{CacheRows, NewRows, Numbers, Pages, View, ViewMut, forward_appending};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = CudaContext::new(0)?.new_stream()?;
/// // A new row for each of 4 sequences, whose keys are in 100 pages of 16 rows, at most 32 for each.
/// let (row, cache) = (Shape::new(4, 1, 8, 128), Shape::new(100, 16, 8, 128));
/// let [q, new_k, new_v] = [0; 3].map(|_| stream.alloc_zeros::<bf16>(4 * 8 * 128));
/// let (q, new_k, new_v, mut out) = (q?, new_k?, new_v?, stream.alloc_zeros::<bf16>(4 * 8 * 128)?);
/// let [k, v] = [0; 2].map(|_| stream.alloc_zeros::<bf16>(100 * 16 * 8 * 128));
/// let (mut k, mut v) = (k?, v?);
/// let lengths = stream.clone_htod(&[20, 0, 7, 300])?;
/// let table = stream.clone_htod(&[0; 4 * 32])?;
///
/// let pages = Pages { table: Numbers::new(&table), width: 32, stride: 32 };
/// let rows = CacheRows { lengths: Some(Numbers::new(&lengths)), pages: Some(pages), ..CacheRows::default() };
/// let [q, new_k, new_v] = [&q, &new_k, &new_v].map(|slice| View::contiguous(slice, row, Layout::Bshd));
/// let new = NewRows { k: new_k?, v: new_v?, starts: None, rotary: None };
/// let mut k = ViewMut::contiguous(&mut k, cache, Layout::Bshd)?;
/// let mut v = ViewMut::contiguous(&mut v, cache, Layout::Bshd)?;
/// let mut out = ViewMut::contiguous(&mut out, row, Layout::Bshd)?;
/// forward_appending(&Attention::new().causal(), &stream, q?, None, &mut k, &mut v, rows, new, &mut out, None)?;
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of [`forward`](crate::forward()) and [`ferroflash::Attention::forward_appending_into`].
#[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
pub fn forward_appending<'a, T: Element>(
    options: impl Into<Options<'a>>,
    stream: &CudaStream,
    q: View<'_, T>,
    q_rows: Option<PackedRows<'_>>,
    k: &mut ViewMut<'_, T>,
    v: &mut ViewMut<'_, T>,
    rows: CacheRows<'_>,
    new: NewRows<'_, T>,
    out: &mut ViewMut<'_, T>,
    lse: Option<&mut dyn DevicePtrMut<f32>>,
) -> Result<()> {
    Call { options: options.into(), stream, q, q_rows }.run(Keys::Appending { k, v, rows, new }, out, lse)
}

/// What the calls have in common.
struct Call<'a, T> {
    options: Options<'a>,
    stream: &'a CudaStream,
    q: View<'a, T>,
    q_rows: Option<PackedRows<'a>>,
}

/// Where keys and values are.
enum Keys<'a, 'k, 'v, T> {
    Packed { k: View<'a, T>, v: View<'a, T>, rows: PackedRows<'a> },
    Cached { k: View<'a, T>, v: View<'a, T>, rows: CacheRows<'a> },
    Appending { k: &'a mut ViewMut<'k, T>, v: &'a mut ViewMut<'v, T>, rows: CacheRows<'a>, new: NewRows<'a, T> },
}

/// Slices that a call reads.
struct Inputs<'a, T> {
    tensors: Vec<Read<'a, T>>,
    numbers: Vec<(Operand, Numbers<'a>)>,
}

/// A slice that is read as a tensor.
struct Read<'a, T> {
    operand: Operand,
    data: &'a dyn DevicePtr<T>,
    shape: Dims,
    strides: Dims,
}

/// The axes of a tensor: of a packed one, those of its only batch entry. That another one has more is for the library to say.
pub(crate) fn axes(shape: Shape, strides: Strides, is_packed: bool) -> (Dims, Dims) {
    if is_packed && shape.batch == 1 {
        let Strides { row, head, dim, .. } = strides;
        return ([shape.rows, shape.heads, shape.head_dim].into(), [row, head, dim].into());
    }
    (shape.into(), strides.into())
}

impl<'a, T: Element> Inputs<'a, T> {
    fn view(&mut self, operand: Operand, View { data, shape, strides }: View<'a, T>, is_packed: bool) {
        let (shape, strides) = axes(shape, strides, is_packed);
        self.tensors.push(Read { operand, data, shape, strides });
    }

    fn array(&mut self, operand: Operand, numbers: Option<Numbers<'a>>) {
        self.numbers.extend(numbers.map(|numbers| (operand, numbers)));
    }

    fn cache(&mut self, CacheRows { lengths, first, entries, pages }: CacheRows<'a>) {
        self.array(Operand::KvUsed, lengths);
        self.array(Operand::KvFirst, first);
        self.array(Operand::KvEntries, entries);
        self.array(Operand::Pages, pages.map(|pages| pages.table));
    }

    fn new_rows(&mut self, NewRows { k, v, starts, rotary }: NewRows<'a, T>) {
        self.view(Operand::NewK, k, starts.is_some());
        self.view(Operand::NewV, v, starts.is_some());
        self.array(Operand::NewStarts, starts);
        let Some(Rotary { cos, sin, rows, turned_dims, positions, .. }) = rotary else { return };
        let half = turned_dims / 2;
        for (operand, data) in [(Operand::Cos, cos), (Operand::Sin, sin)] {
            self.tensors.push(Read { operand, data, shape: [rows, half].into(), strides: [half, 1].into() });
        }
        self.array(Operand::Positions, positions);
    }

    fn check_contexts(&self, stream: &CudaStream) -> Result<()> {
        self.tensors.iter().try_for_each(|read| check_context(read.operand, read.data.stream(), stream))?;
        self.numbers.iter().try_for_each(|(operand, numbers)| check_context(*operand, numbers.0.stream(), stream))
    }

    /// The slices with their guards, which order a call with earlier and later work on them.
    fn guard(&self, device: &'a Device, stream: &'a CudaStream) -> Guarded<'_, T> {
        Guarded {
            device,
            tensors: self.tensors.iter().map(|read| (read, read.data.device_ptr(stream))).collect(),
            numbers: self
                .numbers
                .iter()
                .map(|&(of, numbers)| (of, numbers.0.len(), numbers.0.device_ptr(stream)))
                .collect(),
        }
    }
}

/// Slices while their guards are held.
struct Guarded<'a, T> {
    device: &'a Device,
    tensors: Vec<(&'a Read<'a, T>, (u64, SyncOnDrop<'a>))>,
    numbers: Vec<(Operand, usize, (u64, SyncOnDrop<'a>))>,
}

impl<'a, T: Element> Guarded<'a, T> {
    fn tensor(&self, operand: Operand) -> Result<TensorView<'a>> {
        let &(read, (address, _)) =
            self.tensors.iter().find(|(read, _)| read.operand == operand).expect("noted for this kind of call");
        let &Read { data, shape, strides, .. } = read;
        // SAFETY: the slice has that many elements of `T` from the address on, in the primary context of the device; it is borrowed for
        // this call, and its guard is held.
        Ok(unsafe { TensorView::from_raw(self.device, address, data.len(), shape, strides, T::DTYPE) }?)
    }

    fn array(&self, operand: Operand) -> Result<Option<IndicesView<'a>>> {
        let found = self.numbers.iter().find(|(of, ..)| *of == operand);
        let view = found.map(|&(_, len, (address, _))| {
            // SAFETY: as for tensors.
            unsafe { IndicesView::from_raw(self.device, address, len) }
        });
        Ok(view.transpose()?)
    }

    fn rows(
        &self,
        starts: Operand,
        used: Operand,
        longest: Option<usize>,
    ) -> Result<Option<ferroflash::PackedRows<'a>>> {
        let Some(starts) = self.array(starts)? else { return Ok(None) };
        Ok(Some(ferroflash::PackedRows::new(starts).with_used(self.array(used)?).with_longest(longest)))
    }

    /// What is said of a cache beside its memory.
    fn describe<'c>(&self, pages: Option<Pages<'_>>) -> Result<impl FnOnce(KvCache<'c>) -> KvCache<'c> + use<'a, 'c, T>>
    where
        'a: 'c,
    {
        let [lengths, first, entries] =
            [Operand::KvUsed, Operand::KvFirst, Operand::KvEntries].map(|operand| self.array(operand));
        let (lengths, first, entries) = (lengths?, first?, entries?);
        let table = pages.zip(self.array(Operand::Pages)?);
        let table =
            table.map(|(Pages { width, stride, .. }, numbers)| PageTable::new(numbers, width).with_stride(stride));
        Ok(move |cache: KvCache<'c>| {
            cache.with_lengths(lengths).with_first(first).with_entries(entries).with_pages(table)
        })
    }

    fn new_rows(&self, rotary: Option<Rotary<'_, T>>) -> Result<ferroflash::NewRows<'a>> {
        let new = ferroflash::NewRows::new(&self.tensor(Operand::NewK)?, &self.tensor(Operand::NewV)?);
        let new = new.with_starts(self.array(Operand::NewStarts)?);
        let Some(Rotary { interleaved, .. }) = rotary else { return Ok(new) };
        let tables = ferroflash::Rotary::new(&self.tensor(Operand::Cos)?, &self.tensor(Operand::Sin)?);
        Ok(new.with_rotary(tables.with_interleaved(interleaved).with_positions(self.array(Operand::Positions)?)))
    }
}

/// A tensor that is written, and the guard of its slice.
fn written<'v, T: Element>(
    device: &'v Device,
    stream: &'v CudaStream,
    view: &'v mut ViewMut<'_, T>,
    is_packed: bool,
) -> Result<(TensorViewMut<'v>, SyncOnDrop<'v>)> {
    let (len, (shape, strides)) = (view.data.len(), axes(view.shape, view.strides, is_packed));
    let (address, guard) = view.data.device_ptr_mut(stream);
    // SAFETY: as for what is read, and the slice is borrowed mutably.
    let view = unsafe { TensorViewMut::from_raw(device, address, len, shape, strides, T::DTYPE) }?;
    Ok((view, guard))
}

impl<T: Element> Call<'_, T> {
    fn run(
        self,
        keys: Keys<'_, '_, '_, T>,
        out: &mut ViewMut<'_, T>,
        lse: Option<&mut dyn DevicePtrMut<f32>>,
    ) -> Result<()> {
        let Call { options, stream, q, q_rows } = self;
        let device = device(stream.context())?;
        let is_packed = q_rows.is_some();
        let mut inputs = Inputs { tensors: Vec::new(), numbers: Vec::new() };
        inputs.view(Operand::Q, q, is_packed);
        inputs.array(Operand::QStarts, q_rows.map(|rows| rows.starts));
        inputs.array(Operand::QUsed, q_rows.and_then(|rows| rows.used));
        match &keys {
            Keys::Packed { k, v, rows } => {
                inputs.view(Operand::K, *k, true);
                inputs.view(Operand::V, *v, true);
                inputs.array(Operand::KvStarts, Some(rows.starts));
                inputs.array(Operand::KvUsed, rows.used);
            }
            Keys::Cached { k, v, rows } => {
                inputs.view(Operand::K, *k, false);
                inputs.view(Operand::V, *v, false);
                inputs.cache(*rows);
            }
            Keys::Appending { k, v, rows, new } => {
                check_context(Operand::K, k.data.stream(), stream)?;
                check_context(Operand::V, v.data.stream(), stream)?;
                inputs.cache(*rows);
                inputs.new_rows(*new);
            }
        }
        inputs.check_contexts(stream)?;
        check_context(Operand::Out, out.data.stream(), stream)?;
        lse.as_ref().map_or(Ok(()), |lse| check_context(Operand::Lse, lse.stream(), stream))?;
        options.check(stream)?;

        let of_program = options.guard(stream);
        let bound = of_program.bind(&device)?;
        let attention = of_program.attention(&bound);
        let guarded = inputs.guard(&device, stream);
        let (mut out, _out_guard) = written(&device, stream, out, is_packed)?;
        let lse = lse.map(|lse| (lse.len(), lse.device_ptr_mut(stream)));
        let Shape { batch, rows, heads, .. } = q.shape;
        let lse_view = lse.as_ref().map(|&(len, (address, _))| {
            // SAFETY: as for out.
            unsafe { LseViewMut::from_raw(&device, address, len, LseShape { batch, heads, rows }) }
        });
        let mut lse_view = lse_view.transpose()?;
        let lse_view = lse_view.as_mut();
        let q = guarded.tensor(Operand::Q)?;
        let q_rows = guarded.rows(Operand::QStarts, Operand::QUsed, q_rows.and_then(|rows| rows.longest))?;
        // SAFETY: as in `forward`: the stream is live and one of the primary context of `device`, and the handle is gone when this function
        // returns.
        let on = unsafe { Stream::from_raw(&device, stream.cu_stream().cast()) };
        // The waits of guards have no result of their own.
        let check_waits = || stream.context().check_err();
        match keys {
            Keys::Packed { rows, .. } => {
                check_waits()?;
                let (k, v) = (guarded.tensor(Operand::K)?, guarded.tensor(Operand::V)?);
                let kv_rows = guarded.rows(Operand::KvStarts, Operand::KvUsed, rows.longest)?;
                let (Some(q_rows), Some(kv_rows)) = (q_rows, kv_rows) else { unreachable!("both are always given") };
                attention.forward_packed_into(&on, &q, &k, &v, &q_rows, &kv_rows, &mut out, lse_view)?;
            }
            Keys::Cached { rows, .. } => {
                check_waits()?;
                let cache = KvCache::new(&guarded.tensor(Operand::K)?, &guarded.tensor(Operand::V)?);
                let cache = guarded.describe(rows.pages)?(cache);
                attention.forward_cached_into(&on, &q, q_rows.as_ref(), &cache, &mut out, lse_view)?;
            }
            Keys::Appending { k, v, rows, new } => {
                let (k, _k_guard) = written(&device, stream, k, false)?;
                let (v, _v_guard) = written(&device, stream, v, false)?;
                check_waits()?;
                let mut cache = KvCacheMut::new(k, v).with(guarded.describe(rows.pages)?);
                let new = guarded.new_rows(new.rotary)?;
                attention.forward_appending_into(&on, &q, q_rows.as_ref(), &mut cache, &new, &mut out, lse_view)?;
            }
        }
        drop((guarded, lse, of_program));
        Ok(())
    }
}
