//! The merge of partial results: attention of the same queries over disjoint sets of keys, put together.

mod check;
mod plan;

pub use plan::MergePlan;

use super::forward::Output;
use crate::backend::RawStream;
use crate::device::Stream;
use crate::error::{Operand, Result};
use crate::plan::run;
use crate::tensor::{Lse, LseView, LseViewMut, Tensor, TensorView, TensorViewMut};
use check::Call;
use kernel_spec::DType;

/// Attention over some of the keys: what [`merge`] puts together.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Part<'a> {
    /// The output, `[batch, row, head, dim]`, or `[row, head, dim]` of packed rows.
    pub out: TensorView<'a>,
    /// Its log-sum-exp: natural logarithm, `[batch, head, row]`, or `[1, head, row]` of packed rows. Minus infinity where a row saw no key of
    /// this part: what the output holds there plays no part.
    pub lse: LseView<'a>,
}

impl<'a> Part<'a> {
    /// A partial result.
    pub fn new(out: &TensorView<'a>, lse: &LseView<'a>) -> Part<'a> {
        Part { out: *out, lse: *lse }
    }
}

impl Output {
    /// This result as one part of a [`merge`]; `None` without a log-sum-exp, which [`Attention::with_lse`](crate::Attention::with_lse) asks for.
    pub fn part(&self) -> Option<Part<'_>> {
        self.lse.as_ref().map(|lse| Part::new(&self.out.view(), &lse.view()))
    }
}

/// What [`merge`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct Merged {
    /// Attention over the keys of all parts.
    pub out: Tensor,
    /// Its log-sum-exp.
    pub lse: Lse,
    /// What was launched.
    pub plan: MergePlan,
}

/// Puts partial results together: attention of the same queries over disjoint sets of keys, each with its log-sum-exp, becomes attention over
/// all of these keys. Into a new tensor of the shape and order of axes of the first part, on the default stream of its device.
///
/// ```text
/// lse = ln sum e^lse_i        out = sum e^(lse_i - lse) out_i
/// ```
///
/// Parts have one shape and one element type; their strides are free, but for a contiguous last dim. Computed in f32 and rounded once, into
/// `dtype`, or the type of the parts where it is `None`: parts of f32 go into every type, and every type goes into f32. A row that no part
/// has seen a key for gets 0 and minus infinity. A log-sum-exp of plus infinity or NaN makes the row NaN.
///
/// Any number of parts is taken: 64 in one launch, more in groups of equal size whose results stay in f32. Each part is read once.
///
/// Queries of many sequences over a prompt that they share, once for all, and over what each has of its own (Juravsky et al., "Hydragen", 2024):
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::{Attention, Device, Indices, KvCache, Layout, PackedRows, Tensor, merge};
/// let device = Device::emulator()?;
/// let wave = |n: usize, f: f32| (0..n).map(|i| (i as f32 * f).sin()).collect::<Vec<f32>>();
/// let tensor = |shape: [usize; 3], f| Tensor::from_slice(&device, &wave(shape.iter().product(), f), shape, Layout::RowMajor);
/// // Three sequences with a row each, of 2 heads; a prompt of 40 keys, and 5, 0 and 9 keys of their own.
/// let q = tensor([3, 2, 32], 0.3)?;
/// let (prompt, own) = (tensor([40, 2, 32], 0.7)?, tensor([14, 2, 32], 1.1)?);
/// let numbers = |numbers: &[i32]| Indices::from_slice(&device, numbers);
/// let (all, each) = (numbers(&[0, 3])?, numbers(&[0, 1, 2, 3])?);
/// let (keys, own_keys) = (numbers(&[0, 40])?, numbers(&[0, 5, 5, 14])?);
/// let rows = |starts| PackedRows::new(starts);
/// let attention = Attention::new().with_lse(true);
/// // The prompt: all rows are those of one sequence, so that its keys are read once.
/// let (k, v) = (prompt.view(), prompt.view());
/// let shared = attention.forward_packed(&q.view(), &k, &v, &rows(all.view()), &rows(keys.view()))?;
/// let (k, v) = (own.view(), own.view());
/// let rest = attention.causal().forward_packed(&q.view(), &k, &v, &rows(each.view()), &rows(own_keys.view()))?;
/// let merged = merge(&[shared.part().expect("with lse"), rest.part().expect("with lse")], None)?;
/// // The second sequence has no keys of its own.
/// let (whole, prompt) = (merged.out.to_vec::<f32>()?, shared.out.to_vec::<f32>()?);
/// assert_eq!(whole[64..128], prompt[64..128]);
/// assert_eq!(merged.lse.to_vec()?[1], shared.lse.as_ref().expect("with lse").to_vec()?[1]);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
///
/// # Errors
/// [`Error::Merge`](crate::Error::Merge) says what does not fit together; [`Error::LastDimNotContiguous`](crate::Error::LastDimNotContiguous),
/// [`Error::HeadDim`](crate::Error::HeadDim), [`Error::GridTooLarge`](crate::Error::GridTooLarge), and those of the device.
pub fn merge(parts: &[Part<'_>], dtype: impl Into<Option<DType>>) -> Result<Merged> {
    let call = Call::read(parts)?;
    let dtype = dtype.into().unwrap_or(call.dtype);
    let plan = call.plan(dtype, None)?;
    let out = Tensor::uninit(call.device, dtype, call.dims(), call.new_order())?;
    let lse = Lse::uninit(call.device, call.lse_shape())?;
    launch(&call, RawStream::DEFAULT, &plan, out.address(), Some(lse.address()))?;
    Ok(Merged { out, lse, plan })
}

/// [`merge`] into `out`, of any type that it says, and the log-sum-exp into `lse` when given, on `stream`. Both need memory of their own, apart
/// from that of all parts.
///
/// It neither waits nor reads on the host, so that it can be captured into a graph, once [`plan_merge`] has been
/// [prepared](crate::Device::prepare).
///
/// # Errors
/// As [`merge`], and [`Error::OutputOverlapsItself`](crate::Error::OutputOverlapsItself), [`Error::OutputOverlaps`](crate::Error::OutputOverlaps)
/// and [`Error::DeviceMismatch`](crate::Error::DeviceMismatch).
pub fn merge_into(
    stream: &Stream,
    parts: &[Part<'_>],
    out: &mut TensorViewMut<'_>,
    lse: Option<&mut LseViewMut<'_>>,
) -> Result<()> {
    let call = Call::read(parts)?;
    let out = call.output(&out.view())?;
    call.device.check_stream(stream)?;
    if let Some(lse) = lse.as_deref() {
        call.check_lse(Operand::Lse, lse.device(), lse.shape())?;
    }
    let lse = lse.map(|lse| lse.address());
    call.check_overlaps(&out, lse)?;
    let plan = call.plan(out.dtype(), Some((&out, lse.is_some())))?;
    launch(&call, stream.raw(), &plan, out.address(), lse)
}

/// What [`merge`] of these parts, into a new tensor of type `dtype`, would launch and allocate, and why.
///
/// # Errors
/// As [`merge`].
pub fn plan_merge(parts: &[Part<'_>], dtype: impl Into<Option<DType>>) -> Result<MergePlan> {
    let call = Call::read(parts)?;
    call.plan(dtype.into().unwrap_or(call.dtype), None)
}

fn launch(call: &Call<'_>, stream: RawStream, plan: &MergePlan, out: u64, lse: Option<u64>) -> Result<()> {
    let span = tracing::debug_span!("merge", parts = call.parts.len());
    let _entered = span.enter();
    let mut operands = vec![(Operand::Out, out)];
    operands.extend(lse.map(|lse| (Operand::Lse, lse)));
    for (i, (part, lse)) in call.parts.iter().enumerate() {
        operands.extend([(Operand::Part(i), part.address()), (Operand::PartLse(i), lse.address())]);
    }
    run(call.device, stream, &plan.steps, &plan.buffers, &operands)
}
