//! Everything of a call over sequences that can be refused before a plan is made. What the numbers on the device say is not looked at.

use super::super::check::{check_itself, check_last_dim, check_options_apart, check_same_device};
use super::super::options::Attention;
use super::super::request::{Placed, Tensors};
use super::describe::{KvCache, NewRows, PackedRows, PageTable, Rotary};
use super::sizes::SequenceSizes;
use crate::device::Device;
use crate::error::{Error, Operand, Result, SequencesError};
use crate::tensor::overlap::{Footprint, check_apart};
use crate::tensor::{Dims, HeadsView, IndicesView, Layout, LseShape, TensorView};
use kernel_spec::DType;

/// Where the queries of sequences are, or their keys.
#[derive(Clone, Copy, Debug)]
pub(super) enum Rows<'a> {
    /// Of each sequence in a batch entry of its own.
    Uniform,
    /// Packed.
    Packed(PackedRows<'a>),
}

/// The inputs of a call, checked against each other.
pub(crate) struct Call<'a> {
    pub(crate) q: HeadsView<'a>,
    pub(crate) k: HeadsView<'a>,
    pub(crate) v: HeadsView<'a>,
    pub(super) q_rows: Rows<'a>,
    pub(super) kv_rows: Rows<'a>,
    pub(super) cache: Option<KvCache<'a>>,
    pub(super) new: Option<New<'a>>,
    pub(crate) sizes: SequenceSizes,
}

/// New rows, checked.
#[derive(Clone, Copy)]
pub(super) struct New<'a> {
    pub(super) k: HeadsView<'a>,
    pub(super) v: HeadsView<'a>,
    pub(super) rows: NewRows<'a>,
}

/// Reads a tensor of a call: three axes where its rows are packed, else four.
pub(crate) fn heads<'a>(tensor: Operand, view: &TensorView<'a>, is_packed: bool) -> Result<HeadsView<'a>> {
    let shape = view.shape();
    match (is_packed, shape.len()) {
        (true, 3) => {
            let [rows, heads, dim] = [0, 1, 2].map(|axis| shape[axis]);
            view.reshape(Dims::from([1, rows, heads, dim]))?.as_heads(Layout::Bshd)
        }
        (false, 4) => view.as_heads(Layout::Bshd),
        (_, found) => {
            let accepted = if is_packed { 3 } else { 4 };
            Err(Error::Sequences(SequencesError::AxisCount { tensor, found, accepted, is_packed }))
        }
    }
}

/// Checks how many numbers there are, and on which device.
fn indices(q: &HeadsView<'_>, operand: Operand, view: &IndicesView<'_>, expected: usize) -> Result<()> {
    check_same_device(q, operand, view.device())?;
    if view.len() != expected {
        return Err(Error::Sequences(SequencesError::IndexCount { what: operand, found: view.len(), expected }));
    }
    Ok(())
}

/// Checks the numbers that describe packed rows, of `batch` sequences.
fn packed(q: &HeadsView<'_>, [starts, used]: [Operand; 2], rows: &PackedRows<'_>, batch: usize) -> Result<()> {
    indices(q, starts, &rows.starts, batch + 1)?;
    rows.used.map_or(Ok(()), |numbers| indices(q, used, &numbers, batch))
}

/// Sequences of packed rows.
fn batch_of(operand: Operand, rows: &PackedRows<'_>) -> Result<usize> {
    match rows.starts.len() {
        0 | 1 => Err(Error::EmptyAxis { tensor: operand, axis: "batch" }),
        numbers => Ok(numbers - 1),
    }
}

/// A tensor that has to fit q: device, element type, head dim, contiguous rows.
fn check_fits(q: &HeadsView<'_>, tensor: Operand, view: &HeadsView<'_>) -> Result<()> {
    check_same_device(q, tensor, view.device())?;
    if view.dtype() != q.dtype() {
        return Err(Error::DTypeMismatch { tensor, found: view.dtype(), expected: q.dtype() });
    }
    let (found, expected) = (view.shape().head_dim, q.shape().head_dim);
    if found != expected {
        return Err(Error::HeadDimMismatch { tensor, found, expected });
    }
    check_last_dim(tensor, view)
}

/// Two tensors with equal batch, rows and heads.
fn check_pair([a, b]: [&HeadsView<'_>; 2], [of, tensor]: [Operand; 2]) -> Result<()> {
    let (expected, found) = (a.shape(), b.shape());
    if found.batch != expected.batch {
        let (found, expected) = (found.batch, expected.batch);
        return Err(match of {
            Operand::Q => Error::BatchMismatch { tensor, found, expected },
            _ => SequencesError::EntriesMismatch { tensor, found, of, expected }.into(),
        });
    }
    if found.rows != expected.rows {
        return Err(Error::RowsMismatch { tensor, found: found.rows, of, expected: expected.rows });
    }
    if found.heads != expected.heads {
        return Err(Error::HeadsMismatch { tensor, found: found.heads, of, expected: expected.heads });
    }
    Ok(())
}

impl<'a> Call<'a> {
    /// Packed queries and keys.
    pub(crate) fn packed(
        [q, k, v]: [&TensorView<'a>; 3],
        q_rows: &PackedRows<'a>,
        kv_rows: &PackedRows<'a>,
    ) -> Result<Call<'a>> {
        let batch = batch_of(Operand::Q, q_rows)?;
        let [q, k, v] = [(Operand::Q, q), (Operand::K, k), (Operand::V, v)].map(|(of, view)| heads(of, view, true));
        let (q, k, v) = (q?, k?, v?);
        check_inputs(&q, &k, &v)?;
        packed(&q, [Operand::QStarts, Operand::QUsed], q_rows, batch)?;
        packed(&q, [Operand::KvStarts, Operand::KvUsed], kv_rows, batch)?;
        let sizes = SequenceSizes {
            batch,
            packed_q: true,
            packed_kv: true,
            kv_rows: k.shape().rows,
            longest_q: q_rows.longest.unwrap_or(q.shape().rows).min(q.shape().rows),
            longest_kv: kv_rows.longest.unwrap_or(k.shape().rows).min(k.shape().rows),
            ..of_tensors(&q, &k)
        };
        sizes.validate()?;
        let (q_rows, kv_rows) = (Rows::Packed(*q_rows), Rows::Packed(*kv_rows));
        Ok(Call { q, k, v, q_rows, kv_rows, cache: None, new: None, sizes })
    }

    /// Queries, packed or not, and keys in a cache.
    pub(super) fn cached(
        q: &TensorView<'a>,
        q_rows: Option<&PackedRows<'a>>,
        cache: &KvCache<'a>,
        new: Option<&NewRows<'a>>,
    ) -> Result<Call<'a>> {
        let q = heads(Operand::Q, q, q_rows.is_some())?;
        let (k, v) = (heads(Operand::K, &cache.k, false)?, heads(Operand::V, &cache.v, false)?);
        check_inputs(&q, &k, &v)?;
        let batch = q_rows.map_or(Ok(q.shape().batch), |rows| batch_of(Operand::Q, rows))?;
        if let Some(rows) = q_rows {
            packed(&q, [Operand::QStarts, Operand::QUsed], rows, batch)?;
        }
        for (operand, numbers) in
            [(Operand::KvUsed, cache.lengths), (Operand::KvFirst, cache.first), (Operand::KvEntries, cache.entries)]
        {
            numbers.map_or(Ok(()), |numbers| indices(&q, operand, &numbers, batch))?;
        }
        let page_rows = cache.pages.map(|_| k.shape().rows);
        let kv_rows = match cache.pages {
            Some(pages) => {
                check_pages(&q, &pages, batch)?;
                if cache.entries.is_some() {
                    return Err(Error::Sequences(SequencesError::PagesAndEntries));
                }
                pages.width.saturating_mul(k.shape().rows)
            }
            None => {
                let (found, expected) = (k.shape().batch, batch);
                if cache.entries.is_none() && found != expected {
                    return Err(Error::BatchMismatch { tensor: Operand::K, found, expected });
                }
                k.shape().rows
            }
        };
        let new = new.map(|new| check_new(&q, &k, new, batch)).transpose()?;
        let longest_q =
            q_rows.map_or(q.shape().rows, |rows| rows.longest.unwrap_or(q.shape().rows).min(q.shape().rows));
        let sizes = SequenceSizes {
            batch,
            packed_q: q_rows.is_some(),
            packed_kv: false,
            kv_rows,
            page_rows,
            longest_q,
            longest_kv: kv_rows,
            new_rows: new.as_ref().map_or(0, |new| new.k.shape().rows),
            packed_new: new.as_ref().is_some_and(|new| new.rows.starts.is_some()),
            ..of_tensors(&q, &k)
        };
        sizes.validate()?;
        let q_rows = q_rows.map_or(Rows::Uniform, |rows| Rows::Packed(*rows));
        Ok(Call { q, k, v, q_rows, kv_rows: Rows::Uniform, cache: Some(*cache), new, sizes })
    }

    /// Reads the output, which is like q.
    pub(super) fn output<'o>(&self, out: &TensorView<'o>) -> Result<HeadsView<'o>> {
        let out = heads(Operand::Out, out, self.sizes.packed_q)?;
        check_fits(&self.q, Operand::Out, &out)?;
        check_pair([&self.q, &out], [Operand::Q, Operand::Out])?;
        check_itself(&out)?;
        Ok(out)
    }

    /// Extents of the log-sum-exp: `[head, token]` where queries are packed.
    pub(super) fn lse_shape(&self) -> LseShape {
        let SequenceSizes { batch, q_rows: rows, q_heads: heads, packed_q, .. } = self.sizes;
        LseShape { batch: if packed_q { 1 } else { batch }, heads, rows }
    }

    /// Checks a log-sum-exp.
    pub(super) fn check_lse(&self, device: &Device, found: LseShape) -> Result<()> {
        let tensor = Operand::Lse;
        check_same_device(&self.q, tensor, device)?;
        let expected = self.lse_shape();
        if found.batch != expected.batch {
            return Err(Error::BatchMismatch { tensor, found: found.batch, expected: expected.batch });
        }
        if found.rows != expected.rows {
            return Err(Error::RowsMismatch { tensor, found: found.rows, of: Operand::Q, expected: expected.rows });
        }
        if found.heads != expected.heads {
            return Err(Error::HeadsMismatch { tensor, found: found.heads, of: Operand::Q, expected: expected.heads });
        }
        Ok(())
    }

    /// The bytes of a log-sum-exp at this address.
    fn lse_footprint(&self, address: u64) -> Footprint {
        let LseShape { batch, heads, rows } = self.lse_shape();
        Footprint::contiguous(address, (batch * heads * rows * DType::F32.bytes()) as u128)
    }

    /// What a call writes must not be what it reads, nor what its program reads. Without `out` it is a new tensor.
    pub(super) fn check_overlaps(
        &self,
        attention: &Attention<'_>,
        out: Option<&HeadsView<'_>>,
        lse: Option<u64>,
    ) -> Result<()> {
        let footprint = |view: &HeadsView<'_>| Footprint::of(view.geometry(), view.address());
        let mut inputs =
            vec![(Operand::Q, footprint(&self.q)), (Operand::K, footprint(&self.k)), (Operand::V, footprint(&self.v))];
        if let Some(New { k, v, rows }) = &self.new {
            inputs.extend([(Operand::NewK, footprint(k)), (Operand::NewV, footprint(v))]);
            if let Some(Rotary { cos, sin, .. }) = &rows.rotary {
                let of = |view: &TensorView<'_>| Footprint::of(view.geometry(), view.address());
                inputs.extend([(Operand::Cos, of(cos)), (Operand::Sin, of(sin))]);
            }
        }
        // The numbers that say where sequences are, too.
        inputs.extend(self.number_footprints());
        let mut outputs: Vec<_> = out.map(|out| (Operand::Out, footprint(out))).into_iter().collect();
        if let Some(address) = lse {
            outputs.push((Operand::Lse, self.lse_footprint(address)));
        }
        check_apart(&outputs, &inputs)?;
        check_options_apart(attention, &outputs)?;
        if self.new.is_some() {
            // The cache is written, too.
            let cache = [(Operand::K, footprint(&self.k)), (Operand::V, footprint(&self.v))];
            check_itself(&self.k)?;
            check_itself(&self.v)?;
            let others: Vec<_> = inputs.into_iter().filter(|(of, _)| !matches!(of, Operand::K | Operand::V)).collect();
            check_apart(&cache, &others)?;
            check_options_apart(attention, &cache)?;
        }
        Ok(())
    }

    /// The arrays of numbers of the call.
    pub(crate) fn numbers(&self) -> impl Iterator<Item = (Operand, IndicesView<'_>)> {
        let packed = |rows: &Rows<'a>| match rows {
            Rows::Packed(rows) => [Some(rows.starts), rows.used],
            Rows::Uniform => [None, None],
        };
        let [q_starts, q_used] = packed(&self.q_rows);
        let [kv_starts, kv_used] = packed(&self.kv_rows);
        let cache = self.cache;
        let new = self.new.as_ref().map(|new| &new.rows);
        let all = [
            (Operand::QStarts, q_starts),
            (Operand::QUsed, q_used),
            (Operand::KvStarts, kv_starts),
            (Operand::KvUsed, kv_used.or(cache.and_then(|cache| cache.lengths))),
            (Operand::KvFirst, cache.and_then(|cache| cache.first)),
            (Operand::KvEntries, cache.and_then(|cache| cache.entries)),
            (Operand::Pages, cache.and_then(|cache| cache.pages).map(|table| table.pages)),
            (Operand::NewStarts, new.and_then(|new| new.starts)),
            (Operand::Positions, new.and_then(|new| new.rotary).and_then(|rotary| rotary.positions)),
        ];
        all.into_iter().filter_map(|(operand, view)| Some((operand, view?)))
    }

    /// Their bytes.
    pub(crate) fn number_footprints(&self) -> impl Iterator<Item = (Operand, Footprint)> {
        self.numbers().map(|(operand, view)| {
            (operand, Footprint::contiguous(view.address(), (view.len() * size_of::<i32>()) as u128))
        })
    }

    /// The order of axes of a new output: packed rows follow one another, whatever the order of q is.
    pub(super) fn new_order(&self) -> Layout {
        if self.sizes.packed_q { Layout::Bshd } else { self.q.memory_order() }
    }

    /// The tensors as the plan needs them.
    pub(super) fn placed(&self, out: Option<&HeadsView<'_>>) -> Tensors {
        let new = || Placed::contiguous(self.q.shape(), self.new_order(), self.q.dtype());
        Tensors {
            q: Placed::of(&self.q),
            k: Placed::of(&self.k),
            v: Placed::of(&self.v),
            out: out.map_or_else(new, Placed::of),
        }
    }
}

/// What all calls take of their tensors.
fn of_tensors(q: &HeadsView<'_>, k: &HeadsView<'_>) -> SequenceSizes {
    SequenceSizes {
        batch: 0,
        q_rows: q.shape().rows,
        packed_q: false,
        kv_rows: 0,
        kv_entries: k.shape().batch,
        page_rows: None,
        packed_kv: false,
        q_heads: q.shape().heads,
        kv_heads: k.shape().heads,
        head_dim: q.shape().head_dim,
        dtype: q.dtype(),
        longest_q: 0,
        longest_kv: 0,
        new_rows: 0,
        packed_new: false,
    }
}

fn check_inputs(q: &HeadsView<'_>, k: &HeadsView<'_>, v: &HeadsView<'_>) -> Result<()> {
    check_last_dim(Operand::Q, q)?;
    check_fits(q, Operand::K, k)?;
    check_fits(q, Operand::V, v)?;
    check_pair([k, v], [Operand::K, Operand::V])
}

fn check_pages(q: &HeadsView<'_>, pages: &PageTable<'_>, batch: usize) -> Result<()> {
    let PageTable { pages: numbers, width, stride } = *pages;
    check_same_device(q, Operand::Pages, numbers.device())?;
    let needed = (batch - 1).saturating_mul(stride).saturating_add(width);
    if stride < width || numbers.len() < needed {
        return Err(Error::Sequences(SequencesError::PageTable { found: numbers.len(), batch, width, stride }));
    }
    Ok(())
}

fn check_new<'a>(q: &HeadsView<'_>, cache: &HeadsView<'_>, new: &NewRows<'a>, batch: usize) -> Result<New<'a>> {
    let is_packed = new.starts.is_some();
    let (k, v) = (heads(Operand::NewK, &new.k, is_packed)?, heads(Operand::NewV, &new.v, is_packed)?);
    check_fits(q, Operand::NewK, &k)?;
    check_fits(q, Operand::NewV, &v)?;
    check_pair([&k, &v], [Operand::NewK, Operand::NewV])?;
    let (found, expected) = (k.shape().heads, cache.shape().heads);
    if found != expected {
        return Err(Error::HeadsMismatch { tensor: Operand::NewK, found, of: Operand::K, expected });
    }
    match new.starts {
        Some(starts) => indices(q, Operand::NewStarts, &starts, batch + 1)?,
        None if k.shape().batch != batch => {
            return Err(Error::BatchMismatch { tensor: Operand::NewK, found: k.shape().batch, expected: batch });
        }
        None => {}
    }
    if let Some(rotary) = &new.rotary {
        check_rotary(q, rotary, batch)?;
    }
    Ok(New { k, v, rows: *new })
}

fn check_rotary(q: &HeadsView<'_>, rotary: &Rotary<'_>, batch: usize) -> Result<()> {
    for (tensor, table) in [(Operand::Cos, &rotary.cos), (Operand::Sin, &rotary.sin)] {
        check_same_device(q, tensor, table.device())?;
        if table.dtype() != q.dtype() {
            return Err(Error::DTypeMismatch { tensor, found: table.dtype(), expected: q.dtype() });
        }
        let (shape, head_dim) = (table.shape(), q.shape().head_dim);
        let fits = shape.len() == 2 && shape[0] > 0 && shape[1] > 0 && 2 * shape[1] <= head_dim;
        if !fits || shape != rotary.cos.shape() || !table.geometry().is_logical_order() {
            let (shape, strides) = (shape.to_vec(), table.strides().to_vec());
            return Err(Error::Sequences(SequencesError::RotaryTable { tensor, shape, strides, head_dim }));
        }
    }
    rotary.positions.map_or(Ok(()), |positions| indices(q, Operand::Positions, &positions, batch))
}
