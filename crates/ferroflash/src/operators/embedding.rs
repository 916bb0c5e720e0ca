//! Embedding tables.

mod backward;
mod forward;

pub use backward::EmbeddingGradients;
pub use forward::EmbeddingOutput;

use super::check::Tensors;
use super::rows::MAX_ROWS;
use crate::error::{Operand, OperatorError, Result};
use crate::tensor::{Dims, IndicesView, TensorView};

/// Most rows of a table: kernels count them and one more in 31 bits.
const MAX_VOCABULARY: u64 = MAX_ROWS - 1;

/// Rows of a table by their number: `out[token] = scale table[ids[token]]`, and the gradient of the table.
///
/// | tensor | shape | element type |
/// | --- | --- | --- |
/// | table, dtable | `[vocabulary, columns]` | f32, f16 or bf16; dtable that, or f32 |
/// | ids | any number of them: the tokens | i32 on the device |
/// | out, dout | `[.., columns]`, a row for each token | that of table |
///
/// The last axis of all is contiguous; strides of rows are free, as long as axes that continue each other are three at most.
///
/// Numbers on the device are neither read on the host nor believed: one below 0 is taken for 0, and one behind the table for its last row.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::operators::Embedding;
/// use ferroflash::{Device, Indices, Layout, Tensor};
/// let device = Device::emulator()?;
/// let table = Tensor::from_slice(&device, &[1.0f32, 2.0, 3.0, 4.0], [2, 2], Layout::RowMajor)?;
/// let ids = Indices::from_slice(&device, &[1, 1, 0])?;
/// let (table, ids) = (table.view(), ids.view());
/// let embedding = Embedding::new(&table);
/// let rows = embedding.forward(&ids)?.out;
/// assert_eq!(rows.to_vec::<f32>()?, [3.0, 4.0, 3.0, 4.0, 1.0, 2.0]);
/// // Two tokens name row 1.
/// let dtable = embedding.backward(&ids, &rows.view())?.dtable;
/// assert_eq!(dtable.to_vec::<f32>()?, [1.0, 2.0, 6.0, 8.0]);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct Embedding<'a> {
    table: TensorView<'a>,
    scale: f32,
    padding: Option<usize>,
    accumulate: bool,
}

impl<'a> Embedding<'a> {
    /// Rows of this table.
    pub fn new(table: &TensorView<'a>) -> Embedding<'a> {
        Embedding { table: *table, scale: 1.0, padding: None, accumulate: false }
    }

    /// Multiplies rows with this number (Vaswani et al., "Attention Is All You Need", 2017, section 3.4), which is finite.
    pub fn with_scale(mut self, scale: f32) -> Embedding<'a> {
        self.scale = scale;
        self
    }

    /// This row of the table gets no gradient, whatever tokens name it.
    pub fn with_padding(mut self, row: impl Into<Option<usize>>) -> Embedding<'a> {
        self.padding = row.into();
        self
    }

    /// Whether [`Embedding::backward_into`] adds to the gradient that is there; otherwise it takes its place.
    pub fn with_accumulate(mut self, accumulate: bool) -> Embedding<'a> {
        self.accumulate = accumulate;
        self
    }

    /// What forward and backward refuse alike; rows and columns of the table.
    fn check(&self, ids: &IndicesView<'_>) -> Result<(Tensors<'a>, [usize; 2])> {
        let shape = self.table.shape();
        let [vocabulary, columns] = *shape else {
            let accepted = "[vocabulary, columns]";
            return Err(OperatorError::AxisCount { tensor: Operand::Table, found: shape.len(), accepted }.into());
        };
        if vocabulary == 0 || vocabulary as u64 > MAX_VOCABULARY {
            return Err(OperatorError::Vocabulary { found: vocabulary, limit: MAX_VOCABULARY }.into());
        }
        if !self.scale.is_finite() {
            return Err(OperatorError::NotFinite { name: "scale", found: self.scale }.into());
        }
        if let Some(found) = self.padding.filter(|&row| row >= vocabulary) {
            return Err(OperatorError::Padding { found, vocabulary }.into());
        }
        let mut tensors = Tensors::of(Operand::Table, &self.table)?;
        tensors.indices(Operand::Ids, ids, ids.len())?;
        Ok((tensors, [vocabulary, columns]))
    }
}

/// Refuses a tensor that does not have a row of so many columns for each number.
fn check_rows(tensor: Operand, shape: &Dims, rows: usize, columns: usize) -> Result<()> {
    let fits = shape.split_last().is_some_and(|(&last, outer)| {
        last == columns && outer.iter().try_fold(1usize, |product, &extent| product.checked_mul(extent)) == Some(rows)
    });
    if fits {
        return Ok(());
    }
    Err(OperatorError::RowsOf { tensor, found: shape.to_vec(), rows, columns }.into())
}
