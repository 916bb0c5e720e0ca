//! The gradient of the table.

use super::super::cut::Cut;
use super::super::plan::OperatorPlan;
use super::super::rows::{Placed, Rows};
use super::{Embedding, check_rows};
use crate::backend::RawStream;
use crate::device::{Device, Stream};
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Operand, OperatorError, Result};
use crate::plain::{bytes_of, plain};
use crate::plan::{Binding, Buffer, Params, Step, check_device, run};
use crate::specialise::Specialised;
use crate::tensor::{IndicesView, Layout, Tensor, TensorView, TensorViewMut};
use kernel_spec::families::embedding::{
    BINS, BoundsParams, DIGIT_BITS, MAX_SORT_BLOCKS, Pass, RUN, SortParams, SumParams, find, find_numbers,
};
use kernel_spec::{DType, FeatureSet, Features};
use std::mem::offset_of;

plain! {
    SortParams { keys, tokens, sorted_keys, sorted_tokens, counts, count, blocks, share, shift, vocabulary, unused, features }
    BoundsParams { keys, starts, count, vocabulary, features }
    SumParams {
        dout, dtable, keys, tokens, starts, runs, extents, vocabulary, padding, scale, accumulate, aligned, wide_table, features
    }
}

/// What [`Embedding::backward`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct EmbeddingGradients {
    /// With respect to the table, in its shape and type: contiguous.
    pub dtable: Tensor,
    /// What was launched.
    pub plan: OperatorPlan,
}

/// Numbers of a thread block of the sort, at least: two for each thread.
const LEAST_SHARE: u64 = 2 * BINS as u64;

/// Bytes of a number, a token, a place.
const WORD: u64 = size_of::<u32>() as u64;

/// Which of the plan's buffers have what. Numbers and tokens go back and forth between two.
const KEYS: [usize; 2] = [0, 2];
const TOKENS: [usize; 2] = [1, 3];
const COUNTS: usize = 4;
const STARTS: usize = 5;
const RUNS: usize = 6;

impl Embedding<'_> {
    /// The gradient of a number with respect to the table, given that with respect to the output, `dout`, in a new tensor of the table's type, on the default
    /// stream of its device:
    ///
    /// ```text
    /// dtable[id] = scale (sum of dout over the tokens that name id)
    /// ```
    ///
    /// A row that no token names gets 0, and so does that of the padding. Sums are in f32 and in the order of the tokens, in runs: the same bits from run to
    /// run. Tokens are sorted by the row that they name, in a workspace of 16 bytes for each and 4 for each row of the table, and so each row of dout is read
    /// once, and each row of dtable written once; where many tokens name one row, their sums in f32 are written and read on the way, one for 128 tokens.
    ///
    /// # Errors
    /// [`Error::Operator`] says what is refused; [`Error::LastDimNotContiguous`], [`Error::GridTooLarge`], and those of the device.
    pub fn backward(&self, ids: &IndicesView<'_>, dout: &TensorView<'_>) -> Result<EmbeddingGradients> {
        let (device, placed) = (self.table.device(), self.new_dtable(ids, dout)?);
        let plan = self.sum_plan(dout, &placed, device)?;
        let dtable = Tensor::uninit(device, placed.dtype, placed.shape, Layout::RowMajor)?;
        let operands = gradients(ids, dout, dtable.address());
        run(device, RawStream::DEFAULT, &plan.steps, &plan.buffers, &operands)?;
        Ok(EmbeddingGradients { dtable, plan })
    }

    /// [`Embedding::backward`] into this tensor of the table's shape, of its type or f32, on `stream`, or onto what it holds, see
    /// [`Embedding::with_accumulate`]. It needs memory of its own.
    ///
    /// It neither waits nor reads on the host, so that it can be captured into a graph, once the plan has been [prepared](Device::prepare).
    ///
    /// # Errors
    /// As [`Embedding::backward`], and [`Error::OutputOverlapsItself`], [`Error::OutputOverlaps`], [`Error::DeviceMismatch`].
    pub fn backward_into(
        &self,
        stream: &Stream,
        ids: &IndicesView<'_>,
        dout: &TensorView<'_>,
        dtable: &mut TensorViewMut<'_>,
    ) -> Result<()> {
        let (mut tensors, [_, columns]) = self.check(ids)?;
        tensors.other_rows(Operand::Dout, dout, &[self.table.dtype()])?;
        check_rows(Operand::Dout, &dout.shape(), ids.len(), columns)?;
        tensors.rows_out(Operand::Dtable, dtable, &[self.table.dtype(), DType::F32])?;
        tensors.check_apart()?;
        let device = self.table.device();
        device.check_stream(stream)?;
        let view = dtable.view();
        let plan = self.sum_plan(dout, &Placed::of(Operand::Dtable, &view), device)?;
        run(device, stream.raw(), &plan.steps, &plan.buffers, &gradients(ids, dout, view.address()))
    }

    /// What [`Embedding::backward`] would launch and allocate, and why.
    ///
    /// # Errors
    /// As [`Embedding::backward`].
    pub fn plan_backward(&self, ids: &IndicesView<'_>, dout: &TensorView<'_>) -> Result<OperatorPlan> {
        self.sum_plan(dout, &self.new_dtable(ids, dout)?, self.table.device())
    }

    /// A gradient that is not there yet.
    fn new_dtable(&self, ids: &IndicesView<'_>, dout: &TensorView<'_>) -> Result<Placed> {
        if self.accumulate {
            return Err(OperatorError::Without { given: "accumulate", needed: "dtable" }.into());
        }
        let (mut tensors, [_, columns]) = self.check(ids)?;
        tensors.other_rows(Operand::Dout, dout, &[self.table.dtype()])?;
        check_rows(Operand::Dout, &dout.shape(), ids.len(), columns)?;
        Ok(Placed::new(Operand::Dtable, self.table.dtype(), self.table.shape()))
    }

    fn sum_plan(&self, dout: &TensorView<'_>, dtable: &Placed, device: &Device) -> Result<OperatorPlan> {
        let dout = Placed::of(Operand::Dout, dout);
        let rows = Rows::of(&dout, &[dout])?;
        let table_rows = Rows::of(dtable, &[*dtable])?;
        let (tokens, vocabulary) = (rows.rows as u64, table_rows.rows as u32);
        let sort = sort_steps(tokens, vocabulary, device)?;
        let sorted = (sort.len() / 2 + 1) % 2;

        let aligned = rows.aligned(dout.dtype, [&dout, dtable].into_iter());
        let params = SumParams {
            dout: rows.params(&dout),
            dtable: table_rows.params(dtable),
            keys: 0,
            tokens: 0,
            starts: 0,
            runs: 0,
            extents: rows.extents,
            vocabulary,
            // No number is behind the table: it is taken for its last.
            padding: self.padding.map_or(vocabulary, |row| row as u32),
            scale: self.scale,
            accumulate: self.accumulate.into(),
            aligned: aligned.into(),
            wide_table: u32::from(dtable.dtype != dout.dtype),
            features: Features::OFF,
        };
        let holes = || {
            let of = |holes: Params, offset, placed: &Placed| {
                holes.address(offset, Binding::Operand(placed.operand), placed.alignment(aligned))
            };
            let holes = of(Params::new(bytes_of(&params)), offset_of!(SumParams, dout.address), &dout);
            let holes = of(holes, offset_of!(SumParams, dtable.address), dtable)
                .address(offset_of!(SumParams, keys), Binding::Buffer(KEYS[sorted]), WORD)
                .address(offset_of!(SumParams, tokens), Binding::Buffer(TOKENS[sorted]), WORD)
                .address(offset_of!(SumParams, starts), Binding::Buffer(STARTS), WORD);
            holes.address(offset_of!(SumParams, runs), Binding::Buffer(RUNS), 16)
        };
        let row = |pass| find(pass, dout.dtype, rows.columns as u32).expect("rows of any length");
        let step = |pass, count: u64| {
            let row = row(pass);
            let cut = Cut::new(&row.entry, row.tile, row.reason, &rows, device)?;
            cut.step(count.div_ceil(row.tile.block_rows().into()), FeatureSet::NONE, aligned, holes())
        };
        let mut steps = sort;
        steps.push(bounds_step(tokens, vocabulary, sorted, device)?);
        let runs = tokens / u64::from(RUN);
        steps.push(step(Pass::Runs, runs)?);
        steps.push(step(Pass::Sum, vocabulary.into())?);

        let words = |name, count: u64, reason| Buffer { name, bytes: count * WORD, reason };
        let twice = if steps.len() > 5 { tokens } else { 0 };
        let buffers = vec![
            words("numbers", tokens, "in the order of the table"),
            words("tokens", tokens, "likewise"),
            words("numbers", twice, "a pass of the sort reads where the one before has written"),
            words("tokens", twice, "likewise"),
            words(
                "counts",
                sort_share(tokens).1 * u64::from(BINS),
                "what thread blocks of the sort have of each value of a digit",
            ),
            words("starts", u64::from(vocabulary) + 1, "the first token of each row of the table"),
            words(
                "sums",
                runs * rows.columns.next_multiple_of(4) as u64,
                "of runs of tokens that name one row, in f32",
            ),
        ];
        let read_again = if self.accumulate { dtable.bytes() } else { 0 };
        Ok(OperatorPlan {
            name: "embedding",
            pass: "backward",
            rows: rows.rows,
            columns: rows.columns,
            dtype: dout.dtype,
            steps,
            buffers,
            bytes: dout.bytes() + dtable.bytes() + read_again + tokens * WORD,
            reason: "tokens are sorted by the row that they name, so that each row is added up in one order and written once".to_owned(),
        })
    }
}

fn gradients(ids: &IndicesView<'_>, dout: &TensorView<'_>, dtable: u64) -> [(Operand, u64); 3] {
    [(Operand::Ids, ids.address()), (Operand::Dout, dout.address()), (Operand::Dtable, dtable)]
}

/// Numbers of a thread block of the sort, and thread blocks.
fn sort_share(tokens: u64) -> (u64, u64) {
    let share = tokens.div_ceil(MAX_SORT_BLOCKS.into()).next_multiple_of(BINS.into()).max(LEAST_SHARE);
    (share, tokens.div_ceil(share))
}

/// Two launches for each digit of the numbers of so many rows.
fn sort_steps(tokens: u64, vocabulary: u32, device: &Device) -> Result<Vec<Step>> {
    let bits = u32::BITS - (vocabulary - 1).leading_zeros();
    let (share, blocks) = sort_share(tokens);
    let mut steps = Vec::new();
    for pass in 0..bits.div_ceil(DIGIT_BITS).max(1) {
        // Fits: rows are counted in 31 bits.
        let params = SortParams {
            keys: 0,
            tokens: 0,
            sorted_keys: 0,
            sorted_tokens: 0,
            counts: 0,
            count: tokens as u32,
            blocks: blocks as u32,
            share: share as u32,
            shift: pass * DIGIT_BITS,
            vocabulary,
            unused: 0,
            features: Features::OFF,
        };
        let [from, to] = [(pass as usize + 1) % 2, pass as usize % 2];
        for kind in [Pass::Count, Pass::Place] {
            let row = find_numbers(kind).expect("a row of the list");
            check_device(&row.entry, device.info())?;
            let keys = if pass == 0 { Binding::Operand(Operand::Ids) } else { Binding::Buffer(KEYS[from]) };
            let mut holes = Params::new(bytes_of(&params)).address(offset_of!(SortParams, keys), keys, WORD);
            if pass > 0 {
                holes = holes.address(offset_of!(SortParams, tokens), Binding::Buffer(TOKENS[from]), WORD);
            }
            for (offset, buffer) in [
                (offset_of!(SortParams, sorted_keys), KEYS[to]),
                (offset_of!(SortParams, sorted_tokens), TOKENS[to]),
                (offset_of!(SortParams, counts), COUNTS),
            ] {
                holes = holes.address(offset, Binding::Buffer(buffer), WORD);
            }
            let tile = format!("{share} numbers each, bits from {} on: {}", params.shift, row.reason);
            let kernel = Specialised::with_features(&row.entry, FeatureSet::NONE);
            steps.push(Step::new(kernel, blocks as u32, tile, holes));
        }
    }
    Ok(steps)
}

fn bounds_step(tokens: u64, vocabulary: u32, sorted: usize, device: &Device) -> Result<Step> {
    let row = find_numbers(Pass::Bounds).expect("a row of the list");
    check_device(&row.entry, device.info())?;
    let params = BoundsParams { keys: 0, starts: 0, count: tokens as u32, vocabulary, features: Features::OFF };
    let holes = Params::new(bytes_of(&params))
        .address(offset_of!(BoundsParams, keys), Binding::Buffer(KEYS[sorted]), WORD)
        .address(offset_of!(BoundsParams, starts), Binding::Buffer(STARTS), WORD);
    let ctas = (vocabulary + 1).div_ceil(row.entry.threads);
    Ok(Step::new(Specialised::with_features(&row.entry, FeatureSet::NONE), ctas, row.reason.to_owned(), holes))
}
