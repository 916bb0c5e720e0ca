//! What the naive kernel of the backward pass launches and allocates.

use super::super::params::bytes_of;
use super::super::problem::Sizes;
use crate::error::{Error, Operand, Result};
use crate::plan::{Binding, Buffer, Params};
use kernel_spec::families::backward::{BackwardParams, NaiveBackwardParams, Pass};
use kernel_spec::layout::CHUNK_BYTES;
use kernel_spec::{DType, Kernel};
use std::mem::offset_of;

/// One launch: a pass, and the product that it computes in it.
pub(super) struct Launch {
    pub(super) pass: Pass,
    with_dout: bool,
    computes: &'static str,
    /// The same with a softcap, with `t = tanh(scale q k^T / cap)`.
    computes_bounded: &'static str,
}

impl Launch {
    const fn new(pass: Pass, with_dout: bool, computes: &'static str) -> Launch {
        Launch { pass, with_dout, computes, computes_bounded: computes }
    }

    const fn bounded(self, computes_bounded: &'static str) -> Launch {
        Launch { computes_bounded, ..self }
    }

    /// The equation, for the plan.
    pub(super) fn computes(&self, softcap: Option<f32>) -> &'static str {
        if softcap.is_some() { self.computes_bounded } else { self.computes }
    }
}

/// The launches behind the one of the statistics, in their order: `dv` is made of the probabilities before the gradients of scores take
/// their place.
pub(super) const LAUNCHES: [Launch; 5] = [
    Launch::new(Pass::NaiveScores, false, "p = e^(scale q k^T - lse)").bounded("p = e^(cap t - lse), and p (1 - t^2)"),
    Launch::new(Pass::NaiveKeys, true, "dv = p^T dout"),
    Launch::new(Pass::NaiveScores, true, "ds = p (dout v^T - delta)").bounded("ds = p (1 - t^2) (dout v^T - delta)"),
    Launch::new(Pass::NaiveQueries, false, "dq = scale ds k"),
    Launch::new(Pass::NaiveKeys, false, "dk = scale ds^T q"),
];

/// The buffers of [`buffers`], behind that of the statistics.
const PROBS: Binding = Binding::Buffer(1);
const FACTORS: Binding = Binding::Buffer(2);

/// Device memory for the probabilities, twice.
///
/// # Errors
/// [`Error::WorkspaceTooLarge`] when the device does not hold them together with `others` bytes.
pub(super) fn buffers(sizes: &Sizes, others: u128, available: u64) -> Result<[Buffer; 2]> {
    let elements = sizes.score_rows() * sizes.score_stride() as u128;
    let bytes = [sizes.dtype, DType::F32].map(|dtype| elements * dtype.bytes() as u128);
    let needed = bytes[0] + bytes[1] + others;
    if needed > available.into() {
        return Err(Error::WorkspaceTooLarge { kernel: Kernel::Naive, needed, available });
    }
    // Nothing is lost: together they are no more than `available`.
    let buffer = |name, bytes: u128, reason| Buffer { name, bytes: bytes as u64, reason };
    Ok([
        buffer("probabilities", bytes[0], "of dv, and then the gradients of scores, of dq and dk"),
        buffer("probabilities in f32", bytes[1], "the gradients of scores are made of these, and rounded once"),
    ])
}

/// The parameters of a launch, with holes for the addresses that it uses. `statistics`: where those of the problem are. `inputs`, `dq` and
/// `dkv` say what addresses of these tensors are multiples of.
pub(super) fn bind(
    launch: &Launch,
    backward: &BackwardParams,
    sizes: &Sizes,
    statistics: Binding,
    [inputs, dq, dkv]: [u64; 3],
) -> Params {
    let params = NaiveBackwardParams {
        probs: 0,
        factors: 0,
        score_stride: sizes.score_stride() as u64,
        with_dout: launch.with_dout.into(),
        backward: *backward,
    };
    let piece = CHUNK_BYTES as u64;
    let probs = (offset_of!(NaiveBackwardParams, probs), PROBS, piece);
    let factors = (offset_of!(NaiveBackwardParams, factors), FACTORS, piece);
    let statistics = (offset_of!(NaiveBackwardParams, backward.statistics), statistics, piece);
    let operand = |offset, operand, alignment| (offset, Binding::Operand(operand), alignment);
    let q = operand(offset_of!(NaiveBackwardParams, backward.q.address), Operand::Q, inputs);
    let k = operand(offset_of!(NaiveBackwardParams, backward.k.address), Operand::K, inputs);
    let v = operand(offset_of!(NaiveBackwardParams, backward.v.address), Operand::V, inputs);
    let dout = operand(offset_of!(NaiveBackwardParams, backward.dout.address), Operand::Dout, inputs);
    let holes = match (launch.pass, launch.with_dout) {
        (Pass::NaiveScores, false) => vec![q, k, statistics, probs, factors],
        (Pass::NaiveScores, true) => vec![dout, v, statistics, probs, factors],
        (Pass::NaiveQueries, _) => {
            let dq = operand(offset_of!(NaiveBackwardParams, backward.dq.address), Operand::Dq, dq);
            vec![k, statistics, probs, dq]
        }
        (Pass::NaiveKeys, true) => {
            vec![dout, probs, operand(offset_of!(NaiveBackwardParams, backward.dv.address), Operand::Dv, dkv)]
        }
        // The only other one of `LAUNCHES`.
        _ => vec![q, probs, operand(offset_of!(NaiveBackwardParams, backward.dk.address), Operand::Dk, dkv)],
    };
    let bytes = Params::new(bytes_of(&params));
    holes.into_iter().fold(bytes, |params, (offset, binding, alignment)| params.address(offset, binding, alignment))
}
