//! The calls of attention over sequences.

use super::super::check::check_options;
use super::super::forward::Output;
use super::super::options::Attention;
use super::super::plan::Plan;
use super::super::request::Placed;
use super::check::{Call, New, Rows};
use super::describe::{KvCache, KvCacheMut, NewRows, PackedRows, Rotary};
use super::params::{Arrays, RotaryShape};
use super::plan::{self, NewTensors};
use crate::backend::RawStream;
use crate::device::Stream;
use crate::error::{Operand, Result};
use crate::plan::run;
use crate::tensor::{HeadsView, Layout, Lse, LseViewMut, Tensor, TensorView, TensorViewMut};
use kernel_spec::Mask;

impl Attention<'_> {
    /// Computes attention over packed sequences into a new tensor, on the default stream of q's device.
    ///
    /// q is `[row, q_head, dim]`, k and v are `[row, kv_head, dim]`; the output is like q, the log-sum-exp `[1, q_head, row]`. A mask is
    /// aligned to each sequence's own last row and last key. Sequences may have no rows, on either side: a row without keys gives 0.
    /// Rows that belong to no sequence, or are not in use, are not written.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, DType, Device, Indices, Layout, PackedRows, Tensor};
    /// let device = Device::emulator()?;
    /// // Two sequences, of 3 and 2 rows, of 2 heads.
    /// let x = Tensor::from_slice(&device, &[1f32; 5 * 2 * 32], [5, 2, 32], Layout::RowMajor)?;
    /// let starts = Indices::from_slice(&device, &[0, 3, 5])?;
    /// let rows = PackedRows::new(starts.view());
    /// let attention = Attention::new().causal().with_lse(true);
    /// let output = attention.forward_packed(&x.view(), &x.view(), &x.view(), &rows, &rows)?;
    /// // The first row of each sequence sees one key.
    /// let lse = output.lse.expect("asked for").to_vec()?;
    /// assert_eq!(lse[0], lse[3]);
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// Bad input gives the error that names it, before anything is launched; the numbers on the device are not looked at, see
    /// [`PackedRows`]. Then those of [`Attention::forward`].
    pub fn forward_packed(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        q_rows: &PackedRows<'_>,
        kv_rows: &PackedRows<'_>,
    ) -> Result<Output> {
        Call::packed([q, k, v], q_rows, kv_rows)?.forward(self)
    }

    /// Computes attention over packed sequences into `out`, and the log-sum-exp into `lse` when given, on `stream`.
    ///
    /// # Errors
    /// As [`Attention::forward_packed`], and those of [`Attention::forward_into`].
    #[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
    pub fn forward_packed_into(
        &self,
        stream: &Stream,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        q_rows: &PackedRows<'_>,
        kv_rows: &PackedRows<'_>,
        out: &mut TensorViewMut<'_>,
        lse: Option<&mut LseViewMut<'_>>,
    ) -> Result<()> {
        Call::packed([q, k, v], q_rows, kv_rows)?.forward_into(self, stream, &out.view(), lse)
    }

    /// Computes attention of a few new rows, or many, over keys in a cache, into a new tensor, on the default stream of q's device.
    ///
    /// q is `[batch, row, q_head, dim]`, or `[row, q_head, dim]` with `q_rows`, which says what belongs to which sequence. A mask is
    /// aligned to the last row of q and the last key in use.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Attention, Device, Indices, KvCache, Layout, PageTable, Tensor};
    /// let device = Device::emulator()?;
    /// // One row for each of two sequences; their keys are in four pages of 16 rows.
    /// let q = Tensor::from_slice(&device, &[1f32; 2 * 4 * 32], [2, 1, 4, 32], Layout::RowMajor)?;
    /// let pages = Tensor::from_slice(&device, &[1f32; 4 * 16 * 2 * 32], [4, 16, 2, 32], Layout::RowMajor)?;
    /// let table = Indices::from_slice(&device, &[3, 0, 1, -1])?;
    /// let lengths = Indices::from_slice(&device, &[20, 7])?;
    /// let cache = KvCache::new(&pages.view(), &pages.view())
    ///     .with_pages(PageTable::new(table.view(), 2))
    ///     .with_lengths(lengths.view());
    /// let output = Attention::new().causal().forward_cached(&q.view(), None, &cache)?;
    /// assert!(output.out.to_vec::<f32>()?.iter().all(|x| (x - 1.0).abs() < 1e-6));
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Attention::forward_packed`].
    pub fn forward_cached(
        &self,
        q: &TensorView<'_>,
        q_rows: Option<&PackedRows<'_>>,
        cache: &KvCache<'_>,
    ) -> Result<Output> {
        Call::cached(q, q_rows, cache, None)?.forward(self)
    }

    /// [`Attention::forward_cached`] into `out` and `lse`, on `stream`.
    ///
    /// # Errors
    /// As [`Attention::forward_cached`], and those of [`Attention::forward_into`].
    pub fn forward_cached_into(
        &self,
        stream: &Stream,
        q: &TensorView<'_>,
        q_rows: Option<&PackedRows<'_>>,
        cache: &KvCache<'_>,
        out: &mut TensorViewMut<'_>,
        lse: Option<&mut LseViewMut<'_>>,
    ) -> Result<()> {
        Call::cached(q, q_rows, cache, None)?.forward_into(self, stream, &out.view(), lse)
    }

    /// Appends new keys and values to a cache, turned by their position if that is asked for, and computes attention over all of it.
    ///
    /// The lengths of the cache are those before the call, and stay as they are: who counts them adds the new rows. The cache is written, so
    /// that it may lie nowhere where the call, or its program, reads anything else.
    ///
    /// # Errors
    /// As [`Attention::forward_cached`], and for the cache those that [`Attention::forward_into`] has for outputs.
    pub fn forward_appending(
        &self,
        q: &TensorView<'_>,
        q_rows: Option<&PackedRows<'_>>,
        cache: &mut KvCacheMut<'_>,
        new: &NewRows<'_>,
    ) -> Result<Output> {
        Call::cached(q, q_rows, &cache.view(), Some(new))?.forward(self)
    }

    /// [`Attention::forward_appending`] into `out` and `lse`, on `stream`.
    ///
    /// # Errors
    /// As [`Attention::forward_appending`], and those of [`Attention::forward_into`].
    #[allow(clippy::too_many_arguments, reason = "the tensors of one call, each named")]
    pub fn forward_appending_into(
        &self,
        stream: &Stream,
        q: &TensorView<'_>,
        q_rows: Option<&PackedRows<'_>>,
        cache: &mut KvCacheMut<'_>,
        new: &NewRows<'_>,
        out: &mut TensorViewMut<'_>,
        lse: Option<&mut LseViewMut<'_>>,
    ) -> Result<()> {
        Call::cached(q, q_rows, &cache.view(), Some(new))?.forward_into(self, stream, &out.view(), lse)
    }

    /// What a call over packed sequences would launch and allocate, and why; see [`Attention::plan_for`].
    ///
    /// # Errors
    /// As [`Attention::forward_packed`].
    pub fn plan_packed(
        &self,
        q: &TensorView<'_>,
        k: &TensorView<'_>,
        v: &TensorView<'_>,
        q_rows: &PackedRows<'_>,
        kv_rows: &PackedRows<'_>,
    ) -> Result<Plan> {
        Call::packed([q, k, v], q_rows, kv_rows)?.plan(self, None)
    }

    /// What a call over a cache would launch and allocate, and why, with `new` rows or without.
    ///
    /// # Errors
    /// As [`Attention::forward_cached`].
    pub fn plan_cached(
        &self,
        q: &TensorView<'_>,
        q_rows: Option<&PackedRows<'_>>,
        cache: &KvCache<'_>,
        new: Option<&NewRows<'_>>,
    ) -> Result<Plan> {
        Call::cached(q, q_rows, cache, new)?.plan(self, None)
    }
}

impl Call<'_> {
    fn forward(&self, attention: &Attention) -> Result<Output> {
        let plan = self.plan(attention, None)?;
        let q = &self.q;
        let (device, shape) = (q.device(), q.shape());
        let lse = if attention.lse { Some(Lse::uninit(device, self.lse_shape())?) } else { None };
        let out = if self.sizes.packed_q {
            // What no sequence writes would be whatever was there before.
            Tensor::zeros(device, q.dtype(), [shape.rows, shape.heads, shape.head_dim], Layout::RowMajor)?
        } else {
            Tensor::uninit(device, q.dtype(), shape, self.new_order())?
        };
        self.check_overlaps(attention, None, None)?;
        self.launch(attention, RawStream::DEFAULT, &plan, out.address(), lse.as_ref().map(Lse::address))?;
        Ok(Output { out, lse, plan })
    }

    fn forward_into(
        &self,
        attention: &Attention,
        stream: &Stream,
        out: &TensorView<'_>,
        lse: Option<&mut LseViewMut<'_>>,
    ) -> Result<()> {
        let out = self.output(out)?;
        self.q.device().check_stream(stream)?;
        if let Some(lse) = lse.as_deref() {
            self.check_lse(lse.device(), lse.shape())?;
        }
        let lse = lse.map(|lse| lse.address());
        self.check_overlaps(attention, Some(&out), lse)?;
        let plan = self.plan(&attention.with_lse(lse.is_some()), Some(&out))?;
        self.launch(attention, stream.raw(), &plan, out.address(), lse)
    }

    fn plan(&self, attention: &Attention, out: Option<&HeadsView<'_>>) -> Result<Plan> {
        let new = self.new.as_ref().map(|new| NewTensors { k: Placed::of(&new.k), v: Placed::of(&new.v) });
        let arrays = self.arrays(attention.mask);
        check_options(attention, &self.q)?;
        plan::plan(attention, self.q.device().info(), &self.sizes, &arrays, self.placed(out), new)
    }

    pub(crate) fn arrays(&self, mask: Mask) -> Arrays {
        let used = |rows: &Rows<'_>| matches!(rows, Rows::Packed(rows) if rows.used.is_some());
        let starts = |rows: &Rows<'_>| matches!(rows, Rows::Packed(_));
        let cache = self.cache;
        let new = self.new.as_ref().map(|new| &new.rows);
        let rotary = new.and_then(|new| new.rotary).map(|Rotary { cos, interleaved, positions, .. }| RotaryShape {
            positions: cos.shape()[0],
            turned_dims: 2 * cos.shape()[1],
            interleaved,
            given: positions.is_some(),
            // FlashAttention-2's rule: without a mask, all rows of q are the next token.
            q_advances: !matches!(mask, Mask::Full | Mask::Window { left: None, right: None }),
        });
        Arrays {
            q_starts: starts(&self.q_rows),
            q_used: used(&self.q_rows),
            kv_starts: starts(&self.kv_rows),
            kv_used: used(&self.kv_rows) || cache.is_some_and(|cache| cache.lengths.is_some()),
            kv_first: cache.is_some_and(|cache| cache.first.is_some()),
            kv_entries: cache.is_some_and(|cache| cache.entries.is_some()),
            pages: cache.and_then(|cache| cache.pages).map(|pages| pages.stride),
            new_starts: new.is_some_and(|new| new.starts.is_some()),
            rotary,
        }
    }

    fn launch(
        &self,
        attention: &Attention<'_>,
        stream: RawStream,
        plan: &Plan,
        out: u64,
        lse: Option<u64>,
    ) -> Result<()> {
        let span = tracing::debug_span!("attention", kernel = %plan.kernel, problem = %plan.problem);
        let _entered = span.enter();
        let mut operands = vec![
            (Operand::Q, self.q.address()),
            (Operand::K, self.k.address()),
            (Operand::V, self.v.address()),
            (Operand::Out, out),
        ];
        operands.extend(lse.map(|lse| (Operand::Lse, lse)));
        operands.extend(attention.operands());
        operands.extend(self.numbers().map(|(operand, view)| (operand, view.address())));
        if let Some(New { k, v, rows }) = &self.new {
            operands.extend([(Operand::NewK, k.address()), (Operand::NewV, v.address())]);
            if let Some(Rotary { cos, sin, .. }) = &rows.rotary {
                operands.extend([(Operand::Cos, cos.address()), (Operand::Sin, sin.address())]);
            }
        }
        run(self.q.device(), stream, &plan.steps, &plan.buffers, &operands)
    }
}
