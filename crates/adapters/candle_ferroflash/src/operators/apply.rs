//! Operators as parts of candle's graph.

use super::memory::Memory;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Result, Shape, Storage, Tensor};

/// A tensor that candle hands to an operation.
pub(super) type Input<'a> = (Memory<'a>, &'a Layout);

/// An operation on one to three tensors. candle has a trait for each number of them.
pub(super) trait Operator: Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// The result, on the device of the inputs.
    fn forward(&self, inputs: &[Input<'_>]) -> Result<(Storage, Shape)>;

    /// The gradients of the inputs, in their order. What is wanted has [`Tensor::track_op`]; others may be `None`.
    fn backward(&self, inputs: &[&Tensor], out: &Tensor, dout: &Tensor) -> Result<Vec<Option<Tensor>>>;
}

/// Makes the operation a part of the graph of its inputs, one to three.
pub(super) fn apply(operator: impl Operator, inputs: &[&Tensor]) -> Result<Tensor> {
    let op = Applied(operator);
    match *inputs {
        [a] => a.apply_op1(op),
        [a, b] => a.apply_op2(b, op),
        [a, b, c] => a.apply_op3(b, c, op),
        _ => unreachable!("an operation has one to three inputs"),
    }
}

/// A gradient that [`Operator::backward`] may read in any strides that candle leaves it with. ferroflash takes up to three axes of rows, and a
/// contiguous last one; candle's gradients of transposed or broadcast results may have other strides.
pub(super) fn rows_of(dout: &Tensor) -> Result<Tensor> {
    if dout.stride().last() == Some(&1) && dout.rank() <= 4 { Ok(dout.clone()) } else { dout.contiguous() }
}

struct Applied<O>(O);

impl<O: Operator> Applied<O> {
    fn on_cpu(&self, inputs: &[Input<'_>]) -> Result<(CpuStorage, Shape)> {
        match self.0.forward(inputs)? {
            (Storage::Cpu(out), shape) => Ok((out, shape)),
            _ => unreachable!("the result is where the inputs are"),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(&self, inputs: &[Input<'_>]) -> Result<(candle_core::CudaStorage, Shape)> {
        match self.0.forward(inputs)? {
            (Storage::Cuda(out), shape) => Ok((out, shape)),
            _ => unreachable!("the result is where the inputs are"),
        }
    }
}

impl<O: Operator> CustomOp1 for Applied<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, a: &CpuStorage, a_l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(&[(Memory::Cpu(a), a_l)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, a: &candle_core::CudaStorage, a_l: &Layout) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_cuda(&[(Memory::Cuda(a), a_l)])
    }

    fn bwd(&self, a: &Tensor, out: &Tensor, dout: &Tensor) -> Result<Option<Tensor>> {
        Ok(self.0.backward(&[a], out, dout)?.remove(0))
    }
}

impl<O: Operator> CustomOp2 for Applied<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(&self, a: &CpuStorage, a_l: &Layout, b: &CpuStorage, b_l: &Layout) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(&[(Memory::Cpu(a), a_l), (Memory::Cpu(b), b_l)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &candle_core::CudaStorage,
        a_l: &Layout,
        b: &candle_core::CudaStorage,
        b_l: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_cuda(&[(Memory::Cuda(a), a_l), (Memory::Cuda(b), b_l)])
    }

    fn bwd(&self, a: &Tensor, b: &Tensor, out: &Tensor, dout: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.0.backward(&[a, b], out, dout)?;
        let b = gradients.remove(1);
        Ok((gradients.remove(0), b))
    }
}

impl<O: Operator> CustomOp3 for Applied<O> {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn cpu_fwd(
        &self,
        a: &CpuStorage,
        a_l: &Layout,
        b: &CpuStorage,
        b_l: &Layout,
        c: &CpuStorage,
        c_l: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        self.on_cpu(&[(Memory::Cpu(a), a_l), (Memory::Cpu(b), b_l), (Memory::Cpu(c), c_l)])
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        a: &candle_core::CudaStorage,
        a_l: &Layout,
        b: &candle_core::CudaStorage,
        b_l: &Layout,
        c: &candle_core::CudaStorage,
        c_l: &Layout,
    ) -> Result<(candle_core::CudaStorage, Shape)> {
        self.on_cuda(&[(Memory::Cuda(a), a_l), (Memory::Cuda(b), b_l), (Memory::Cuda(c), c_l)])
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        out: &Tensor,
        dout: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let mut gradients = self.0.backward(&[a, b, c], out, dout)?;
        let (c, b) = (gradients.remove(2), gradients.remove(1));
        Ok((gradients.remove(0), b, c))
    }
}
