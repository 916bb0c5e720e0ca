//! Rows by their number.

use super::super::cut::Cut;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::{Embedding, check_rows};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, Result};
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, Params, run};
use crate::tensor::{Dims, IndicesView, Layout, Tensor, TensorViewMut};
use kernel_spec::families::embedding::{GatherParams, Pass, find};
use kernel_spec::{FeatureSet, Features};
use std::mem::offset_of;

plain! {
    GatherParams { table, out, ids, extents, vocabulary, scale, aligned, unused, features }
}

/// What [`Embedding::forward`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct EmbeddingOutput {
    /// A row for each number, `[ids, columns]`, contiguous.
    pub out: Tensor,
    /// What was launched.
    pub plan: OperatorPlan,
}

impl Embedding<'_> {
    /// The rows that these numbers name in a new tensor, on the default stream of the table's device.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn forward(&self, ids: &IndicesView<'_>) -> Result<EmbeddingOutput> {
        let (device, out) = (self.table.device(), self.new_out(ids, Operand::Out)?);
        let plan = self.gather_plan(ids, &out, device)?;
        let out = Tensor::uninit(device, out.dtype, out.shape, Layout::RowMajor)?;
        run(
            device,
            RawStream::DEFAULT,
            &plan.steps,
            &plan.buffers,
            &self.operands(ids, (Operand::Out, out.address())),
        )?;
        Ok(EmbeddingOutput { out, plan })
    }

    /// [`Embedding::forward`] into this tensor, `[.., columns]` with a row for each number, on `stream`. It needs memory of its own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`Embedding::forward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn forward_into(&self, stream: &Stream, ids: &IndicesView<'_>, out: &mut TensorViewMut<'_>) -> Result<()> {
        let (mut tensors, [_, columns]) = self.check(ids)?;
        tensors.other_rows_out(Operand::Out, out, &[self.table.dtype()])?;
        let view = out.view();
        check_rows(Operand::Out, &view.shape(), ids.len(), columns)?;
        tensors.check_apart()?;
        let device = self.table.device();
        device.check_stream(stream)?;
        let plan = self.gather_plan(ids, &Placed::of(Operand::Out, &view), device)?;
        run(device, stream.raw(), &plan.steps, &plan.buffers, &self.operands(ids, (Operand::Out, view.address())))
    }

    /// What [`Embedding::forward`] of these numbers would launch, and why.
    ///
    /// # Errors
    /// As [`Embedding::forward`].
    pub fn plan(&self, ids: &IndicesView<'_>) -> Result<OperatorPlan> {
        self.gather_plan(ids, &self.new_out(ids, Operand::Out)?, self.table.device())
    }

    fn new_out(&self, ids: &IndicesView<'_>, operand: Operand) -> Result<Placed> {
        let (_, [_, columns]) = self.check(ids)?;
        Ok(Placed::new(operand, self.table.dtype(), Dims::from([ids.len(), columns])))
    }

    fn operands(&self, ids: &IndicesView<'_>, out: (Operand, u64)) -> [(Operand, u64); 3] {
        [(Operand::Table, self.table.address()), (Operand::Ids, ids.address()), out]
    }

    fn gather_plan(&self, ids: &IndicesView<'_>, out: &Placed, device: &Device) -> Result<OperatorPlan> {
        let table = Placed::of(Operand::Table, &self.table);
        let rows = Rows::of(out, &[*out])?;
        let table_rows = Rows::of(&table, &[table])?;
        let aligned = rows.aligned(out.dtype, [&table, out].into_iter());
        let row = find(Pass::Gather, out.dtype, rows.columns as u32).expect("rows of any length");
        let cut = Cut::new(&row.entry, row.tile, row.reason, &rows, device)?;
        let params = GatherParams {
            table: table_rows.params(&table),
            out: rows.params(out),
            ids: 0,
            extents: rows.extents,
            // Fits: the table has been checked.
            vocabulary: table_rows.rows as u32,
            scale: self.scale,
            aligned: aligned.into(),
            unused: 0,
            features: Features::OFF,
        };
        let holes = Params::new(bytes_of(&params))
            .address(
                offset_of!(GatherParams, table.address),
                Binding::Operand(Operand::Table),
                table.alignment(aligned),
            )
            .address(offset_of!(GatherParams, out.address), Binding::Operand(Operand::Out), out.alignment(aligned))
            .address(offset_of!(GatherParams, ids), Binding::Operand(Operand::Ids), size_of::<i32>() as u64);
        let teams = rows.rows.div_ceil(row.tile.block_rows() as usize) as u64;
        // Of the table, at most as many rows as are named.
        let named = table_rows.rows.min(rows.rows) * rows.columns * table.dtype.bytes();
        Ok(OperatorPlan {
            name: "embedding",
            pass: "forward",
            rows: rows.rows,
            columns: rows.columns,
            dtype: out.dtype,
            steps: vec![cut.step(teams, FeatureSet::NONE, aligned, holes)?],
            buffers: Vec::new(),
            bytes: named as u64 + out.bytes() + ids.len() as u64 * size_of::<i32>() as u64,
            reason: "each row that a token names is read and written once".to_owned(),
        })
    }
}
