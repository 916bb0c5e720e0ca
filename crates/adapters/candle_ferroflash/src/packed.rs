//! The operation that candle applies to packed sequences.

use crate::FlashAttn;
use crate::differentiable::Gradients;
use crate::error::{Error, Feature};
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Tensor};
use ferroflash::{Attention, Dims, Operand};

/// Where keys and values are.
pub(crate) enum Keys {
    /// Packed, each sequence from its start on: `(batch + 1)`.
    Packed { starts: Tensor },
    /// In the pages of a table, `(batch, most_pages)`, so many rows of each sequence: `(batch)`.
    Paged { lengths: Tensor, table: Tensor },
}

/// One call: all its numbers are contiguous.
pub(crate) struct Packed {
    options: FlashAttn,
    name: &'static str,
    pub(crate) q_starts: Tensor,
    pub(crate) keys: Keys,
    /// Rows of the longest sequence of q, and of k.
    pub(crate) longest: [usize; 2],
}

/// Attention of packed q, k and v as a part of candle's graph.
pub(crate) fn apply(
    [q, k, v]: [&Tensor; 3],
    [q_starts, kv_starts]: [&Tensor; 2],
    longest: [usize; 2],
    options: FlashAttn,
    name: &'static str,
) -> Result<Tensor> {
    let keys = Keys::Packed { starts: kv_starts.contiguous()? };
    q.apply_op3(k, v, Packed::new(options, name, q_starts, keys, longest)?)
}

/// How many rows each sequence has, by its start and the next one's: computed where they are, so that nothing waits for them.
pub(crate) fn lengths(starts: &Tensor) -> Result<Tensor> {
    // The type in which candle can subtract.
    let starts = starts.to_dtype(DType::U32)?;
    let batch = starts.dims1()?.saturating_sub(1);
    starts.narrow(0, starts.dims1()? - batch, batch)?.sub(&starts.narrow(0, 0, batch)?)
}

impl Packed {
    pub(crate) fn new(
        options: FlashAttn,
        name: &'static str,
        q_starts: &Tensor,
        keys: Keys,
        longest: [usize; 2],
    ) -> Result<Packed> {
        Ok(Packed { options, name, q_starts: q_starts.contiguous()?, keys, longest })
    }

    /// The options as ferroflash's own.
    pub(crate) fn attention(&self) -> crate::error::Result<Attention> {
        self.options.attention(self.name, self.longest[1])
    }

    /// Shape and strides of q, k or v.
    pub(crate) fn axes(&self, operand: Operand, layout: &Layout) -> crate::error::Result<(Dims, Dims)> {
        let axes = match (operand, &self.keys) {
            (Operand::K | Operand::V, Keys::Paged { .. }) => PAGES,
            _ => ROWS,
        };
        self.check_rank(operand, layout.dims(), axes)?;
        Ok((Dims::new(layout.dims())?, Dims::new(layout.stride())?))
    }

    /// Whether the numbers are of the type and the rank that they need.
    pub(crate) fn check_numbers(&self, operand: Operand, numbers: &Tensor) -> crate::error::Result<()> {
        let op = self.name;
        let axes = match operand {
            Operand::Pages => TABLE,
            Operand::KvUsed => LENGTHS,
            _ => STARTS,
        };
        self.check_rank(operand, numbers.dims(), axes)?;
        match numbers.dtype() {
            DType::U32 | DType::I32 => Ok(()),
            found => Err(Error::Numbers { op, operand, found }),
        }
    }

    fn check_rank(&self, operand: Operand, dims: &[usize], axes: &'static [&'static str]) -> crate::error::Result<()> {
        if dims.len() == axes.len() {
            return Ok(());
        }
        Err(Error::Rank { op: self.name, operand, found: dims.len(), axes })
    }
}

const ROWS: &[&str] = &["rows", "heads", "head_dim"];
const PAGES: &[&str] = &["pages", "page_rows", "heads", "head_dim"];
const STARTS: &[&str] = &["batch + 1"];
const LENGTHS: &[&str] = &["batch"];
const TABLE: &[&str] = &["batch", "pages"];

impl CustomOp3 for Packed {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        q: &CpuStorage,
        q_l: &Layout,
        k: &CpuStorage,
        k_l: &Layout,
        v: &CpuStorage,
        v_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        Ok((crate::cpu::packed(self, [(q, q_l), (k, k_l), (v, v_l)])?, q_l.shape().clone()))
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        q: &candle_core::CudaStorage,
        q_l: &Layout,
        k: &candle_core::CudaStorage,
        k_l: &Layout,
        v: &candle_core::CudaStorage,
        v_l: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        Ok((crate::cuda::packed(self, [(q, q_l), (k, k_l), (v, v_l)])?, q_l.shape().clone()))
    }

    fn bwd(&self, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor, _: &Tensor) -> Result<Gradients> {
        Err(Error::Missing { op: self.name, feature: Feature::PackedGradients }.into())
    }
}
