//! The operation that candle applies to packed sequences.

use crate::FlashAttn;
use crate::differentiable::{Gradients, Inputs, of_one_device, on_cpu};
use crate::error::{Error, Feature};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, CustomOp3, DType, Layout, Result, Shape, Storage, Tensor};
use ferroflash::{Attention, Dims, Operand};
use std::sync::OnceLock;

/// Where keys and values are.
pub(crate) enum Keys {
    /// Packed, each sequence from its start on: `(batch + 1)`.
    Packed { starts: Tensor },
    /// In the pages of a table, `(batch, most_pages)`, so many rows of each sequence: `(batch)`.
    Paged { lengths: Tensor, table: Tensor },
}

/// One call: all its numbers are contiguous.
pub(crate) struct Packed {
    pub(crate) options: FlashAttn,
    name: &'static str,
    pub(crate) q_starts: Tensor,
    pub(crate) keys: Keys,
    /// Rows of the longest sequence of q, and of k.
    pub(crate) longest: [usize; 2],
    /// Whether a gradient may be asked for, as in `differentiable`, where it says what is kept.
    pub(crate) keeps: bool,
    /// `f32 [q_heads, rows]`, when it was kept.
    lse: OnceLock<Storage>,
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
    apply_call([q, k, v], Packed::new(options, name, q_starts, keys, longest)?)
}

/// Any call. Pages have no gradients, and keep nothing for them.
pub(crate) fn apply_call([q, k, v]: [&Tensor; 3], mut call: Packed) -> Result<Tensor> {
    let is_packed = matches!(call.keys, Keys::Packed { .. });
    call.keeps = is_packed && [q, k, v].iter().any(|tensor| tensor.track_op());
    q.apply_op3(k, v, call)
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
        let q_starts = q_starts.contiguous()?;
        Ok(Packed { options, name, q_starts, keys, longest, keeps: false, lse: OnceLock::new() })
    }

    /// The options as ferroflash's own, without what the slopes say.
    pub(crate) fn attention(&self) -> Attention<'static> {
        self.options.attention(self.longest[1])
    }

    fn keep(&self, lse: Option<Storage>) {
        if let Some(lse) = lse {
            assert!(self.lse.set(lse).is_ok(), "an operation of one call was applied twice");
        }
    }

    /// Shape and strides of q, k or v, or of what is like q.
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
        let (out, lse) = crate::cpu::packed(self, [(q, q_l), (k, k_l), (v, v_l)])?;
        self.keep(lse.map(Storage::Cpu));
        Ok((out, q_l.shape().clone()))
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
        let (out, lse) = crate::cuda::packed(self, [(q, q_l), (k, k_l), (v, v_l)])?;
        self.keep(lse.map(Storage::Cuda));
        Ok((out, q_l.shape().clone()))
    }

    fn bwd(&self, q: &Tensor, k: &Tensor, v: &Tensor, out: &Tensor, dout: &Tensor) -> Result<Gradients> {
        let op = self.name;
        let Keys::Packed { starts } = &self.keys else {
            return Err(Error::Missing { op, feature: Feature::PagedGradients }.into());
        };
        // As of uniform sequences: a last dim with gaps is the only stride that ferroflash does not take.
        let dout = if dout.stride().last() == Some(&1) { dout.clone() } else { dout.contiguous()? };
        let locked = [q, k, v, out, &dout].map(|tensor| tensor.storage_and_layout());
        let inputs: Inputs<'_, Storage> = locked.each_ref().map(|(storage, layout)| (&**storage, *layout));
        let gradients = match self.lse.get() {
            Some(Storage::Cpu(lse)) => {
                crate::cpu::packed_backward(self, starts, of_one_device(op, inputs, on_cpu)?, lse)?.map(Storage::Cpu)
            }
            #[cfg(feature = "cuda")]
            Some(Storage::Cuda(lse)) => {
                let inputs = of_one_device(op, inputs, crate::differentiable::on_cuda)?;
                crate::cuda::packed_backward(self, starts, inputs, lse)?.map(Storage::Cuda)
            }
            // Nothing was kept: candle asks for gradients of what it has recorded, and `apply` keeps what it records.
            _ => return Err(candle_core::Error::BackwardNotSupported { op }),
        };
        let [dq, dk, dv] = gradients;
        let wanted = |of: &Tensor, gradient| {
            of.track_op().then(|| Tensor::from_storage(gradient, of.shape(), BackpropOp::none(), false))
        };
        Ok((wanted(q, dq), wanted(k, dk), wanted(v, dv)))
    }
}
