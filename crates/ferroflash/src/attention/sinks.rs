//! The sinks of a call and their gradient, as tensors.

use super::check::check_same_device;
use super::options::Attention;
use crate::error::{Error, Operand, Result, SinkError};
use crate::tensor::overlap::Footprint;
use crate::tensor::{HeadsView, TensorView};
use kernel_spec::DType;

impl<'a> Attention<'a> {
    /// Checks the sinks against the query heads of a problem.
    pub(crate) fn check_sink(&self, q_heads: usize) -> Result<()> {
        self.sink.map_or(Ok(()), |sink| check(Operand::Sink, &sink, q_heads))
    }

    /// The addresses that the options of a call bring along: tensors of its program, and its sinks.
    pub(super) fn operands(&self) -> impl Iterator<Item = (Operand, u64)> + use<'a> {
        let program = self.changing_program().into_iter().flat_map(|program| program.operands());
        program.chain(self.sink.map(|sink| (Operand::Sink, sink.address())))
    }
}

/// Element type, shape and stride of sinks or of their gradient.
fn check(tensor: Operand, view: &TensorView<'_>, q_heads: usize) -> Result<()> {
    if view.dtype() != DType::F32 {
        return Err(SinkError::DType { tensor, found: view.dtype() }.into());
    }
    let shape = view.shape();
    if *shape != [q_heads] {
        return Err(SinkError::Shape { tensor, found: shape.to_vec(), q_heads }.into());
    }
    match view.strides()[0] {
        stride if stride != 1 && q_heads > 1 => Err(Error::LastDimNotContiguous { tensor, stride }),
        _ => Ok(()),
    }
}

/// Checks the gradient of sinks against q and the sinks.
pub(super) fn check_gradient(attention: &Attention<'_>, q: &HeadsView<'_>, dsink: &TensorView<'_>) -> Result<()> {
    if attention.sink.is_none() {
        return Err(SinkError::NoSink.into());
    }
    check_same_device(q, Operand::Dsink, dsink.device())?;
    check(Operand::Dsink, dsink, q.shape().heads)
}

/// The bytes of sinks or of their gradient.
pub(super) fn footprint(view: &TensorView<'_>) -> Footprint {
    Footprint::of(view.geometry(), view.address())
}
