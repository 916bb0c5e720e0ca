//! What forward and backward refuse alike.

use super::super::check::Tensors;
use super::Norm;
use crate::dropout::{Dropout, State};
use crate::error::{Error, Operand, OperatorError, Result};
use kernel_spec::families::norm::BranchParams;
use kernel_spec::{DType, philox};

impl Norm<'_> {
    /// What is wrong with the options, whatever x is.
    pub(super) fn check_options(&self) -> Result<()> {
        if !(self.epsilon > 0.0 && self.epsilon.is_finite()) {
            return Err(Error::Operator(OperatorError::Epsilon { found: self.epsilon }));
        }
        if self.zero_centred && self.weight.is_none() {
            return Err(OperatorError::Without { given: "zero_centred", needed: "weight" }.into());
        }
        self.dropped().map(|_| ())
    }

    /// What is dropped, if anything is.
    pub(super) fn dropped(&self) -> Result<Option<Dropout>> {
        Ok(self.dropout.map(Dropout::checked).transpose()?.flatten())
    }

    /// What x is multiplied with, its addresses missing; `None` where nothing happens to it.
    pub(super) fn branch(&self) -> Result<Option<BranchParams>> {
        let Some(dropout) = self.dropped()? else { return Ok(self.rowscale.map(|_| BranchParams::NONE)) };
        let (on_device, [seed, offset]) = match dropout.state() {
            State::Numbers { seed, offset } => (0, [seed, offset]),
            State::OnDevice { address, offset } => (1, [address, offset]),
        };
        let (factor, threshold) = (dropout.factor(), philox::rows_threshold(dropout.p()));
        Ok(Some(BranchParams { rowscale: 0, seed, offset, factor, threshold, on_device, drops: 1 }))
    }

    /// The factors of the rows.
    pub(super) fn check_rowscale(&self, tensors: &mut Tensors<'_>) -> Result<()> {
        match &self.rowscale {
            Some(rowscale) => tensors.vector(Operand::Rowscale, rowscale, &[DType::F32]),
            None => Ok(()),
        }
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
