//! RMSNorm and LayerNorm.

use super::{Caller, Given, Operands, Slot};
use crate::call::{Dropped, dropout_of};
use ferroflash::operators::{Norm, NormGradientsViewMut, NormOutputViewMut, NormSaved};
use ferroflash::{Device, Operand};
use pyo3::prelude::*;

const FORWARD: [Slot; 9] = [
    Slot::read(Operand::X),
    Slot::read(Operand::Weight).or_none(),
    Slot::read(Operand::Bias).or_none(),
    Slot::read(Operand::Residual).or_none(),
    Slot::read(Operand::Rowscale).or_none(),
    Slot::written(Operand::Out),
    Slot::written(Operand::ResidualOut).or_none(),
    Slot::written(Operand::Mean).or_none(),
    Slot::written(Operand::Rstd).or_none(),
];

const BACKWARD: [Slot; 12] = [
    Slot::read(Operand::Normalised),
    Slot::read(Operand::Weight).or_none(),
    Slot::read(Operand::Bias).or_none(),
    Slot::read(Operand::Mean).or_none(),
    Slot::read(Operand::Rstd),
    Slot::read(Operand::Dout),
    Slot::read(Operand::DresidualOut).or_none(),
    Slot::read(Operand::Rowscale).or_none(),
    Slot::written(Operand::Dx),
    Slot::written(Operand::Dresidual).or_none(),
    Slot::written(Operand::Dweight).or_none(),
    Slot::written(Operand::Dbias).or_none(),
];

/// The options, as Python says them.
#[derive(Clone, Copy)]
struct Options {
    is_rms: bool,
    epsilon: f64,
    zero_centred: bool,
    dropout: Option<Dropped>,
}

impl Options {
    fn norm<'a>(&self, device: &'a Device, operands: &Operands) -> ferroflash::Result<Norm<'a>> {
        let epsilon = self.epsilon as f32;
        let mut norm = if self.is_rms { Norm::rms(epsilon) } else { Norm::layer(epsilon) };
        if let Some(weight) = operands.view(device, Operand::Weight)? {
            norm = norm.with_weight(&weight);
        }
        if let Some(bias) = operands.view(device, Operand::Bias)? {
            norm = norm.with_bias(&bias);
        }
        if let Some(rowscale) = operands.view(device, Operand::Rowscale)? {
            norm = norm.with_rowscale(&rowscale);
        }
        if let Some(dropout) = self.dropout {
            norm = norm.with_dropout(dropout_of(dropout));
        }
        Ok(if self.zero_centred { norm.zero_centred() } else { norm })
    }
}

/// Normalises rows. The tensors are x, weight, bias, residual and rowscale, and out, residual_out, mean and rstd, which are written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, is_rms, epsilon, zero_centred, dropout, /))]
#[allow(clippy::too_many_arguments, reason = "what Python gives, each by its place")]
pub(super) fn norm(
    py: Python<'_>,
    tensors: [Given<'_>; 9],
    stream: usize,
    device: Option<usize>,
    is_rms: bool,
    epsilon: f64,
    zero_centred: bool,
    dropout: Option<Dropped>,
) -> PyResult<()> {
    let options = Options { is_rms, epsilon, zero_centred, dropout };
    Caller { py, stream, gpu: device }.run(FORWARD, &tensors, |device, stream, operands| {
        let mut norm = options.norm(device, operands)?;
        if let Some(residual) = operands.view(device, Operand::Residual)? {
            norm = norm.with_residual(&residual);
        }
        let mut into = NormOutputViewMut::new(operands.given_mut(device, Operand::Out)?);
        into.residual_out = operands.view_mut(device, Operand::ResidualOut)?;
        into.mean = operands.view_mut(device, Operand::Mean)?;
        into.rstd = operands.view_mut(device, Operand::Rstd)?;
        norm.forward_into(stream, &operands.given(device, Operand::X)?, &mut into)
    })
}

/// Gradients of [`norm`]. The tensors are what was normalised, weight, bias, mean, rstd, dout, dresidual_out and rowscale, and dx, dresidual, dweight and
/// dbias, which are written.
#[pyfunction]
#[pyo3(signature = (tensors, stream, device, is_rms, epsilon, zero_centred, dropout, /))]
#[allow(clippy::too_many_arguments, reason = "what Python gives, each by its place")]
pub(super) fn norm_backward(
    py: Python<'_>,
    tensors: [Given<'_>; 12],
    stream: usize,
    device: Option<usize>,
    is_rms: bool,
    epsilon: f64,
    zero_centred: bool,
    dropout: Option<Dropped>,
) -> PyResult<()> {
    let options = Options { is_rms, epsilon, zero_centred, dropout };
    Caller { py, stream, gpu: device }.run(BACKWARD, &tensors, |device, stream, operands| {
        let norm = options.norm(device, operands)?;
        let (normalised, rstd) = (operands.given(device, Operand::Normalised)?, operands.given(device, Operand::Rstd)?);
        let mut saved = NormSaved::new(&normalised, &rstd);
        saved.mean = operands.view(device, Operand::Mean)?;
        let dresidual_out = operands.view(device, Operand::DresidualOut)?;
        let mut into = NormGradientsViewMut::new(operands.given_mut(device, Operand::Dx)?);
        into.dresidual = operands.view_mut(device, Operand::Dresidual)?;
        into.dweight = operands.view_mut(device, Operand::Dweight)?;
        into.dbias = operands.view_mut(device, Operand::Dbias)?;
        let dout = operands.given(device, Operand::Dout)?;
        norm.backward_into(stream, &saved, &dout, dresidual_out.as_ref(), &mut into)
    })
}
