//! Embedding tables.

use super::apply::{Input, Operator, apply, rows_of};
use super::memory::{Given, Views, Wanted, run};
use candle_core::{Result, Shape, Storage, Tensor};
use ferroflash::Operand;

/// The rows of `table`, `(vocabulary, columns)`, that `ids` name, u32 or i32 of any shape: `(.., columns)`, in the type of the table, which has a
/// gradient.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use candle_ferroflash::operators::embedding;
///
/// candle_ferroflash::emulate_cpu(true);
/// let table = Var::new(&[[1.0f32, 2.0], [3.0, 4.0]], &Device::Cpu)?;
/// let rows = embedding(&Tensor::new(&[1u32, 1], &Device::Cpu)?, &table)?;
/// assert_eq!(rows.to_vec2::<f32>()?, [[3.0, 4.0], [3.0, 4.0]]);
/// // Two tokens name row 1.
/// let gradients = rows.sum_all()?.backward()?;
/// assert_eq!(gradients.get(&table).unwrap().to_vec2::<f32>()?, [[0.0, 0.0], [2.0, 2.0]]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`Embedding::forward`].
pub fn embedding(ids: &Tensor, table: &Tensor) -> Result<Tensor> {
    Embedding::new(table).forward(ids)
}

/// Rows of a table by their number, with options; see [`ferroflash::operators::Embedding`].
///
/// Ids are on the device, where nobody can refuse one: an id that names no row is taken for the nearest that does, where candle has an error.
#[derive(Clone, Debug)]
#[must_use]
pub struct Embedding {
    table: Tensor,
    scale: f32,
    padding: Option<usize>,
}

impl Embedding {
    /// Rows of this table, `(vocabulary, columns)` of f16, bf16 or f32.
    pub fn new(table: &Tensor) -> Embedding {
        Embedding { table: table.clone(), scale: 1.0, padding: None }
    }

    /// Multiplies rows with this number, which is finite.
    pub fn with_scale(mut self, scale: f32) -> Embedding {
        self.scale = scale;
        self
    }

    /// This row of the table gets no gradient, whatever tokens name it.
    pub fn with_padding(mut self, row: usize) -> Embedding {
        self.padding = Some(row);
        self
    }

    /// The rows that `ids` name, u32 or i32 of any shape: `(.., columns)`, in the type of the table. The gradient of the table has the same bits from
    /// run to run: tokens are sorted, and no two threads add to one sum.
    ///
    /// # Errors
    /// [`crate::Error`]: [`CpuTensors`](crate::Error::CpuTensors), [`ElementType`](crate::Error::ElementType), [`Numbers`](crate::Error::Numbers), and
    /// what [`ferroflash::operators::Embedding::forward_into`] refuses; or candle's own for tensors on different devices.
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let shape = ids.dims().iter().chain(self.table.dims().last()).copied().collect::<Vec<_>>();
        let (scale, padding, ids) = (self.scale, self.padding, ids.detach().contiguous()?);
        apply(Lookup { scale, padding, ids, shape }, &[&self.table])
    }
}

/// One call.
struct Lookup {
    scale: f32,
    padding: Option<usize>,
    /// Contiguous.
    ids: Tensor,
    /// That of the result.
    shape: Vec<usize>,
}

impl Lookup {
    fn options<'v>(&self, views: &Views<'v>) -> ferroflash::operators::Embedding<'v> {
        let embedding = ferroflash::operators::Embedding::new(&views.tensor(Operand::Table));
        embedding.with_scale(self.scale).with_padding(self.padding)
    }
}

impl Operator for Lookup {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let (memory, layout) = inputs[0];
        let given = [Given { operand: Operand::Table, memory, layout }];
        let wanted = vec![Wanted::new(Operand::Out, memory.dtype(), self.shape.as_slice())];
        let mut made = run(self.name(), &given, &[(Operand::Ids, &self.ids)], wanted, |stream, views| {
            self.options(views).forward_into(stream, &views.numbers(Operand::Ids), &mut views.out(Operand::Out))
        })?;
        Ok(made.storage(Operand::Out))
    }

    fn backward(&self, inputs: &[&Tensor], _: &Tensor, dout: &Tensor) -> Result<Vec<Option<Tensor>>> {
        let (table, dout) = (inputs[0], rows_of(dout)?);
        let held = [(Operand::Table, table), (Operand::Ids, &self.ids), (Operand::Dout, &dout)];
        let wanted = vec![Wanted::new(Operand::Dtable, table.dtype(), table.shape())];
        let mut made = run(self.name(), &[], &held, wanted, |stream, views| {
            let (ids, dout) = (views.numbers(Operand::Ids), views.tensor(Operand::Dout));
            self.options(views).backward_into(stream, &ids, &dout, &mut views.out(Operand::Dtable))
        })?;
        Ok(vec![made.tensor(Operand::Dtable)])
    }
}
