//! What forward and backward refuse alike.

use super::super::check::Tensors;
use super::Norm;
use crate::error::{Error, Operand, OperatorError, Result};
use kernel_spec::DType;

impl Norm<'_> {
    /// What is wrong with the options, whatever x is.
    pub(super) fn check_options(&self) -> Result<()> {
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            return Err(Error::Operator(OperatorError::Epsilon { found: self.epsilon }));
        }
        if self.zero_centred && self.weight.is_none() {
            return Err(OperatorError::Without { given: "zero_centred", needed: "weight" }.into());
        }
        Ok(())
    }

    /// Weights and biases for rows of this type.
    pub(super) fn check_weights(&self, tensors: &mut Tensors<'_>, dtype: DType) -> Result<()> {
        if let Some(weight) = &self.weight {
            tensors.vector(Operand::Weight, weight, &[dtype, DType::F32])?;
        }
        if let Some(bias) = &self.bias {
            let weights = self.weight.map_or([dtype, DType::F32], |weight| [weight.dtype(); 2]);
            tensors.vector(Operand::Bias, bias, &weights)?;
        }
        Ok(())
    }

    /// Element type of weights and biases, if there are any.
    pub(super) fn weight_dtype(&self) -> Option<DType> {
        self.weight.or(self.bias).map(|view| view.dtype())
    }

    pub(super) fn weight_offset(&self) -> f32 {
        if self.zero_centred { 1.0 } else { 0.0 }
    }
}
