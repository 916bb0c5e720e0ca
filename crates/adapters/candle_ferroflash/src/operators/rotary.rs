//! Rotary embedding.

use super::apply::{Input, Operator, apply};
use super::memory::{Given, Views, Wanted, run};
use candle_core::{D, Result, Shape, Storage, Tensor};
use ferroflash::Operand;
use ferroflash::operators::RotaryPositions;

/// Rotary embedding of `xs`, `(batch, heads, rows, columns)`, by the angles of each row: columns `i` and `columns / 2 + i` of a head are a pair
/// (GPT-NeoX). `cos` and `sin` are `(positions, columns / 2)`, or `(batch, positions, columns / 2)` with angles of each batch entry, of the type of
/// `xs` or f32, with at least as many positions as there are rows; of narrower tables, the columns behind their pairs are copied. `xs` has a
/// gradient, the tables have none.
///
/// Source: Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.
///
/// # Errors
/// As [`Rotary::forward`].
pub fn rope(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    Rotary::of_batch(cos, sin)?.with_heads_first(true).forward(xs)
}

/// [`rope`] in which neighbours are pairs, columns `2 i` and `2 i + 1` (GPT-J).
///
/// # Errors
/// As [`Rotary::forward`].
pub fn rope_i(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    Rotary::of_batch(cos, sin)?.with_heads_first(true).with_interleaved(true).forward(xs)
}

/// [`rope`] of `xs` `(batch, rows, heads, columns)`, as attention takes it.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use candle_ferroflash::operators::rope_thd;
///
/// candle_ferroflash::emulate_cpu(true);
/// // One row at position 0 and one at position 1, which is turned by a quarter.
/// let xs = Tensor::new(&[[[[1.0f32, 2.0]], [[1.0, 2.0]]]], &Device::Cpu)?;
/// let [cos, sin] = [[[1.0f32], [0.0]], [[0.0], [1.0]]].map(|table| Tensor::new(&table, &Device::Cpu));
/// let turned = rope_thd(&xs, &cos?, &sin?)?.flatten_all()?.to_vec1::<f32>()?;
/// assert_eq!(turned, [1.0, 2.0, -2.0, 1.0]);
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
/// As [`Rotary::forward`].
pub fn rope_thd(xs: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    Rotary::of_batch(cos, sin)?.forward(xs)
}

/// Rotary embedding with its options; see [`ferroflash::operators::Rotary`].
#[derive(Clone, Debug)]
#[must_use]
pub struct Rotary {
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    heads_first: bool,
    positions: Positions,
}

/// Where the positions of rows come from.
#[derive(Clone, Debug)]
enum Positions {
    Offset(usize),
    /// Contiguous.
    Offsets(Tensor),
    /// Contiguous.
    Each(Tensor),
}

impl Rotary {
    /// With these tables, `(positions, turned / 2)`, contiguous, of the type of x or f32: the first `turned` columns of each head are turned. Row `i` has
    /// position `i`.
    pub fn new(cos: &Tensor, sin: &Tensor) -> Rotary {
        let (cos, sin) = (cos.detach(), sin.detach());
        Rotary { cos, sin, interleaved: false, heads_first: false, positions: Positions::Offset(0) }
    }

    /// With tables of all batch entries, or of each: those are one behind the other then.
    fn of_batch(cos: &Tensor, sin: &Tensor) -> Result<Rotary> {
        if cos.rank() != 3 || sin.rank() != 3 {
            return Ok(Rotary::new(cos, sin));
        }
        let (batch, positions, _) = cos.dims3()?;
        let rotary = Rotary::new(&cos.flatten(0, 1)?, &sin.flatten(0, 1)?);
        let starts = (0..batch).map(|entry| (entry * positions) as u32);
        let offsets = Tensor::from_iter(starts, cos.device())?;
        Ok(Rotary { positions: Positions::Offsets(offsets), ..rotary })
    }

    /// Whether neighbours are pairs, columns `2 i` and `2 i + 1` (GPT-J), not columns `i` and `turned / 2 + i` (GPT-NeoX).
    pub fn with_interleaved(mut self, interleaved: bool) -> Rotary {
        self.interleaved = interleaved;
        self
    }

    /// Whether x is `(batch, heads, rows, columns)`, not `(batch, rows, heads, columns)`.
    pub fn with_heads_first(mut self, heads_first: bool) -> Rotary {
        self.heads_first = heads_first;
        self
    }

    /// Row `i` has position `offset + i`, which has to be in the tables.
    pub fn with_offset(mut self, offset: usize) -> Rotary {
        self.positions = Positions::Offset(offset);
        self
    }

    /// Row `i` of batch entry `b` has position `offsets[b] + i`: u32 or i32 on the device of x. A position that the tables do not have is taken for
    /// the nearest one.
    ///
    /// # Errors
    /// candle's own, when they cannot be made contiguous.
    pub fn with_offsets(mut self, offsets: &Tensor) -> Result<Rotary> {
        self.positions = Positions::Offsets(offsets.detach().contiguous()?);
        Ok(self)
    }

    /// Each row has a position of its own, `(batch, rows)` of u32 or i32; see [`Rotary::with_offsets`].
    ///
    /// # Errors
    /// candle's own, when they cannot be made contiguous.
    pub fn with_positions(mut self, positions: &Tensor) -> Result<Rotary> {
        self.positions = Positions::Each(positions.detach().contiguous()?);
        Ok(self)
    }

    /// `xs`, `(batch, rows, heads, columns)` or, but with heads first, `(rows, heads, columns)`, with its pairs turned, in its shape and type. Its
    /// gradient is the opposite turn; the tables have none.
    ///
    /// # Errors
    /// [`crate::Error`]: [`CpuTensors`](crate::Error::CpuTensors), [`ElementType`](crate::Error::ElementType), [`Numbers`](crate::Error::Numbers),
    /// [`Rank`](crate::Error::Rank), and what [`ferroflash::operators::Rotary::forward_into`] refuses; or candle's own for tensors on different
    /// devices.
    pub fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if self.heads_first && xs.rank() != 4 {
            let (operand, axes) = (Operand::X, &["batch", "heads", "rows", "columns"]);
            return Err(crate::Error::Rank { op: self.name(), operand, found: xs.rank(), axes }.into());
        }
        apply(self.clone(), &[xs])
    }

    /// The tensors of a call beside the rows.
    fn beside(&self) -> Vec<(Operand, &Tensor)> {
        let positions = match &self.positions {
            Positions::Offset(_) => None,
            Positions::Offsets(offsets) => Some((Operand::Offsets, offsets)),
            Positions::Each(positions) => Some((Operand::Positions, positions)),
        };
        [(Operand::Cos, &self.cos), (Operand::Sin, &self.sin)].into_iter().chain(positions).collect()
    }

    /// The options as ferroflash's own.
    fn options<'v>(&self, views: &Views<'v>) -> ferroflash::operators::Rotary<'v> {
        let positions = match self.positions {
            Positions::Offset(offset) => RotaryPositions::Offset(offset),
            Positions::Offsets(_) => RotaryPositions::Offsets(views.numbers(Operand::Offsets)),
            Positions::Each(_) => RotaryPositions::Each(views.numbers(Operand::Positions)),
        };
        let rotary = ferroflash::operators::Rotary::new(&views.tensor(Operand::Cos), &views.tensor(Operand::Sin));
        rotary.with_interleaved(self.interleaved).with_positions(positions)
    }
}

/// The axes of heads and rows change places.
const ROWS_FIRST: [usize; 4] = [0, 2, 1, 3];

impl Operator for Rotary {
    fn name(&self) -> &'static str {
        if self.interleaved { "rotary-emb-int" } else { "rotary-emb" }
    }

    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)> {
        let (memory, layout) = inputs[0];
        let given = [Given { operand: Operand::X, memory, layout }];
        let wanted = vec![Wanted::new(Operand::Out, memory.dtype(), layout.shape())];
        let mut made = run(self.name(), &given, &self.beside(), wanted, |stream, views| {
            let (mut x, mut out) = (views.tensor(Operand::X), views.out(Operand::Out));
            if self.heads_first {
                (x, out) = (x.permute(&ROWS_FIRST)?, out.into_permuted(&ROWS_FIRST)?);
            }
            self.options(views).forward_into(stream, &x, &mut out)
        })?;
        Ok(made.storage(Operand::Out))
    }

    fn backward(&self, _: &[&Tensor], _: &Tensor, dout: &Tensor) -> Result<Vec<Option<Tensor>>> {
        // Strides are free but for the last axis.
        let contiguous = dout.dim(D::Minus1)? <= 1 || dout.stride().last() == Some(&1);
        let dout = if contiguous { dout.clone() } else { dout.contiguous()? };
        let mut held = self.beside();
        held.push((Operand::Dout, &dout));
        let wanted = vec![Wanted::new(Operand::Dx, dout.dtype(), dout.shape())];
        let mut made = run(self.name(), &[], &held, wanted, |stream, views| {
            let (mut dout, mut dx) = (views.tensor(Operand::Dout), views.out(Operand::Dx));
            if self.heads_first {
                (dout, dx) = (dout.permute(&ROWS_FIRST)?, dx.into_permuted(&ROWS_FIRST)?);
            }
            self.options(views).backward_into(stream, &dout, &mut dx)
        })?;
        Ok(vec![made.tensor(Operand::Dx)])
    }
}
