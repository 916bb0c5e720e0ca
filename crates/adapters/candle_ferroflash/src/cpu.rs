//! Tensors on the CPU: an error, unless the emulator is asked for.

#[cfg(feature = "emulator")]
mod beside;
#[cfg(feature = "emulator")]
pub(crate) mod memory;

use crate::differentiable::Inputs;
use crate::error::Error;
use crate::op::Options;
use crate::packed::Packed;
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Tensor};
use std::sync::atomic::{AtomicU8, Ordering};

/// What [`emulate_cpu`] said last.
static ASKED: AtomicU8 = AtomicU8::new(UNSAID);
const UNSAID: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

/// Whether the functions of this crate take tensors on the CPU from now on, in the whole process, and compute them with the GPU's kernels
/// in ferroflash's emulator. For tests and for machines without a GPU: it checks every memory access and is thousands of times slower than
/// a GPU.
///
/// Until this is called, the environment variable `CANDLE_FERROFLASH_CPU` decides: `emulator` is yes; without it, tensors on the CPU are
/// [`Error::CpuTensors`], as they are an error of candle-flash-attn.
pub fn emulate_cpu(yes: bool) {
    ASKED.store(if yes { YES } else { NO }, Ordering::Relaxed);
}

/// Whether the emulator was asked for.
fn is_asked() -> crate::error::Result<bool> {
    match ASKED.load(Ordering::Relaxed) {
        UNSAID => match std::env::var_os("CANDLE_FERROFLASH_CPU") {
            None => Ok(false),
            Some(value) if value == "emulator" => Ok(true),
            Some(value) => Err(Error::CpuVariable { found: value.to_string_lossy().into_owned() }),
        },
        asked => Ok(asked == YES),
    }
}

/// The result, and the log-sum-exp if it is wanted.
pub(crate) fn forward(
    options: Options<'_>,
    op: &'static str,
    tensors: [(&CpuStorage, &Layout); 3],
    with_lse: bool,
) -> Result<(CpuStorage, Option<CpuStorage>)> {
    check_asked(op)?;
    emulator::forward(options, op, tensors, with_lse)
}

/// The gradients with respect to q, k and v, contiguous.
pub(crate) fn backward(
    options: Options<'_>,
    op: &'static str,
    inputs: Inputs<'_, CpuStorage>,
    lse: &CpuStorage,
) -> Result<[CpuStorage; 3]> {
    check_asked(op)?;
    emulator::backward(options, op, inputs, lse)
}

/// The result of a call over packed sequences, and the log-sum-exp if it is wanted.
pub(crate) fn packed(call: &Packed, tensors: [(&CpuStorage, &Layout); 3]) -> Result<(CpuStorage, Option<CpuStorage>)> {
    check_asked(call.name())?;
    emulator::packed(call, tensors)
}

/// The gradients of packed sequences with respect to q, k and v, contiguous. `kv_starts` are those of the call.
pub(crate) fn packed_backward(
    call: &Packed,
    kv_starts: &Tensor,
    inputs: Inputs<'_, CpuStorage>,
    lse: &CpuStorage,
) -> Result<[CpuStorage; 3]> {
    check_asked(call.name())?;
    emulator::packed_backward(call, kv_starts, inputs, lse)
}

pub(crate) fn check_asked(op: &'static str) -> crate::error::Result<()> {
    if is_asked()? { Ok(()) } else { Err(Error::CpuTensors { op }) }
}

#[cfg(not(feature = "emulator"))]
mod emulator {
    use super::*;

    pub(super) fn forward(
        _: Options<'_>,
        op: &'static str,
        _: [(&CpuStorage, &Layout); 3],
        _: bool,
    ) -> Result<(CpuStorage, Option<CpuStorage>)> {
        Err(Error::NoEmulator { op }.into())
    }

    pub(super) fn backward(
        _: Options<'_>,
        op: &'static str,
        _: Inputs<'_, CpuStorage>,
        _: &CpuStorage,
    ) -> Result<[CpuStorage; 3]> {
        Err(Error::NoEmulator { op }.into())
    }

    pub(super) fn packed(call: &Packed, _: [(&CpuStorage, &Layout); 3]) -> Result<(CpuStorage, Option<CpuStorage>)> {
        Err(Error::NoEmulator { op: call.name() }.into())
    }

    pub(super) fn packed_backward(
        call: &Packed,
        _: &Tensor,
        _: Inputs<'_, CpuStorage>,
        _: &CpuStorage,
    ) -> Result<[CpuStorage; 3]> {
        Err(Error::NoEmulator { op: call.name() }.into())
    }
}

#[cfg(feature = "emulator")]
mod emulator {
    use super::beside::{Beside, Slopes, with_program};
    use super::memory::{Copy, device};
    use super::*;
    use crate::FlashAttn;
    use crate::op::heads;
    use crate::packed::Keys;
    use candle_core::{DType, Storage, WithDType, backend::BackendStorage};
    use ferroflash::{Element, Indices, KvCache, Lse, LseShape, Operand, PackedRows, PageTable, Tensor};

    pub(super) fn forward(
        options: Options<'_>,
        op: &'static str,
        tensors: [(&CpuStorage, &Layout); 3],
        with_lse: bool,
    ) -> Result<(CpuStorage, Option<CpuStorage>)> {
        match tensors[0].0.dtype() {
            DType::F16 => typed::<ferroflash::f16>(options, op, tensors, with_lse),
            DType::BF16 => typed::<ferroflash::bf16>(options, op, tensors, with_lse),
            DType::F32 => typed::<f32>(options, op, tensors, with_lse),
            found => Err(Error::DType { op, found }.into()),
        }
    }

    fn typed<T: Element + WithDType>(
        options: Options<'_>,
        op: &'static str,
        [(q, q_l), (k, k_l), (v, v_l)]: [(&CpuStorage, &Layout); 3],
        with_lse: bool,
    ) -> Result<(CpuStorage, Option<CpuStorage>)> {
        let slice = T::cpu_storage_as_slice;
        let tensors = [(slice(q)?, q_l), (slice(k)?, k_l), (slice(v)?, v_l)];
        let beside = Beside::new(device()?, options, op, heads(op, Operand::Q, q_l)?.0.heads)?;
        let (out, lse) = compute::<T>(options.options, op, tensors, &beside, with_lse)?;
        Ok((T::to_cpu_storage_owned(out), lse.map(CpuStorage::F32)))
    }

    /// The elements of the result in logical order, and the log-sum-exp.
    fn compute<T: Element>(
        options: &FlashAttn,
        op: &'static str,
        [q, k, v]: [(&[T], &Layout); 3],
        beside: &Beside,
        with_lse: bool,
    ) -> crate::error::Result<(Vec<T>, Option<Vec<f32>>)> {
        let device = device()?;
        let (q, q_shape) = heads_copy(op, Operand::Q, q)?;
        let ((k, k_shape), (v, _)) = (heads_copy(op, Operand::K, k)?, heads_copy(op, Operand::V, v)?);
        let program = beside.slopes.program()?;
        let attention = beside.with(options.attention(k_shape.rows), program.as_ref());
        let mut out = Tensor::uninit(device, T::DTYPE, q_shape, ferroflash::Layout::Bshd)?;
        let mut lse = with_lse.then(|| Lse::uninit(device, lse_shape(q_shape))).transpose()?;
        let stream = device.default_stream();
        let mut lse_view = lse.as_mut().map(Lse::view_mut);
        attention.forward_into(&stream, &q.view()?, &k.view()?, &v.view()?, &mut out.view_mut(), lse_view.as_mut())?;
        Ok((out.to_vec()?, lse.map(|lse| lse.to_vec()).transpose()?))
    }

    pub(super) fn packed(
        call: &Packed,
        tensors: [(&CpuStorage, &Layout); 3],
    ) -> Result<(CpuStorage, Option<CpuStorage>)> {
        match tensors[0].0.dtype() {
            DType::F16 => typed_packed::<ferroflash::f16>(call, tensors),
            DType::BF16 => typed_packed::<ferroflash::bf16>(call, tensors),
            DType::F32 => typed_packed::<f32>(call, tensors),
            found => Err(Error::DType { op: call.name(), found }.into()),
        }
    }

    fn typed_packed<T: Element + WithDType>(
        call: &Packed,
        [(q, q_l), (k, k_l), (v, v_l)]: [(&CpuStorage, &Layout); 3],
    ) -> Result<(CpuStorage, Option<CpuStorage>)> {
        let slice = T::cpu_storage_as_slice;
        let numbers = |operand, tensor| indices(call, operand, tensor);
        let slopes = Slopes::new(device()?, &call.options, call.name(), call.axes(Operand::Q, q_l)?.0[1])?;
        let q_starts = numbers(Operand::QStarts, &call.q_starts)?;
        let (kv_numbers, pages) = match &call.keys {
            Keys::Packed { starts } => (numbers(Operand::KvStarts, starts)?, None),
            Keys::Paged { lengths, table } => {
                (numbers(Operand::KvUsed, lengths)?, Some((numbers(Operand::Pages, table)?, table.dims()[1])))
            }
        };
        let tensors = [(slice(q)?, q_l), (slice(k)?, k_l), (slice(v)?, v_l)];
        let (out, lse) = compute_packed::<T>(call, tensors, &slopes, &q_starts, &kv_numbers, pages.as_ref())?;
        Ok((T::to_cpu_storage_owned(out), lse.map(CpuStorage::F32)))
    }

    /// The elements of the result in logical order, and the log-sum-exp. `kv_numbers` are the starts of keys, or their lengths where they are in `pages`, of which
    /// the table has so many for each sequence.
    fn compute_packed<T: Element>(
        call: &Packed,
        [q, k, v]: [(&[T], &Layout); 3],
        slopes: &Slopes,
        q_starts: &Indices,
        kv_numbers: &Indices,
        pages: Option<&(Indices, usize)>,
    ) -> crate::error::Result<(Vec<T>, Option<Vec<f32>>)> {
        let copy = |operand, (data, layout)| Copy::of(data, layout, call.axes(operand, layout)?);
        let (q, k, v) = (copy(Operand::Q, q)?, copy(Operand::K, k)?, copy(Operand::V, v)?);
        let (q, k, v) = (q.view()?, k.view()?, v.view()?);
        let (program, [longest_q, longest_kv]) = (slopes.program()?, call.longest);
        let attention = with_program(call.attention(), program.as_ref());
        let q_rows = PackedRows::new(q_starts.view()).with_longest(longest_q);
        let device = device()?;
        // Rows of no sequence are not written.
        let mut out = Tensor::zeros(device, T::DTYPE, q.shape(), ferroflash::Layout::RowMajor)?;
        // Rows of no sequence are not written here, either.
        let zeros = |shape: LseShape| Lse::from_slice(device, &vec![0.0; shape.heads * shape.rows], shape);
        let mut lse = call.keeps.then(|| zeros(packed_lse(&q.shape()))).transpose()?;
        let mut lse_view = lse.as_mut().map(Lse::view_mut);
        let lse_into = lse_view.as_mut();
        let (mut into, stream) = (out.view_mut(), device.default_stream());
        match pages {
            Some((table, width)) => {
                let table = PageTable::new(table.view(), *width);
                let cache = KvCache::new(&k, &v).with_lengths(kv_numbers.view()).with_pages(table);
                attention.forward_cached_into(&stream, &q, Some(&q_rows), &cache, &mut into, lse_into)?
            }
            None => {
                let kv_rows = PackedRows::new(kv_numbers.view()).with_longest(longest_kv);
                attention.forward_packed_into(&stream, &q, &k, &v, &q_rows, &kv_rows, &mut into, lse_into)?
            }
        }
        Ok((out.to_vec()?, lse.map(|lse| lse.to_vec()).transpose()?))
    }

    /// Extents of the log-sum-exp of packed rows.
    fn packed_lse(q: &[usize]) -> LseShape {
        LseShape { batch: 1, heads: q[1], rows: q[0] }
    }

    pub(super) fn packed_backward(
        call: &Packed,
        kv_starts: &candle_core::Tensor,
        inputs: Inputs<'_, CpuStorage>,
        lse: &CpuStorage,
    ) -> Result<[CpuStorage; 3]> {
        match inputs[0].0.dtype() {
            DType::F16 => typed_packed_backward::<ferroflash::f16>(call, kv_starts, inputs, lse),
            DType::BF16 => typed_packed_backward::<ferroflash::bf16>(call, kv_starts, inputs, lse),
            DType::F32 => typed_packed_backward::<f32>(call, kv_starts, inputs, lse),
            found => Err(Error::DType { op: call.name(), found }.into()),
        }
    }

    fn typed_packed_backward<T: Element + WithDType>(
        call: &Packed,
        kv_starts: &candle_core::Tensor,
        inputs: Inputs<'_, CpuStorage>,
        lse: &CpuStorage,
    ) -> Result<[CpuStorage; 3]> {
        let slopes = Slopes::new(device()?, &call.options, call.name(), call.axes(Operand::Q, inputs[0].1)?.0[1])?;
        let [q, k, v, out, dout] =
            inputs.map(|(data, layout)| T::cpu_storage_as_slice(data).map(|data| (data, layout)));
        let starts = [indices(call, Operand::QStarts, &call.q_starts)?, indices(call, Operand::KvStarts, kv_starts)?];
        let inputs = [q?, k?, v?, out?, dout?];
        let gradients = packed_gradients::<T>(call, starts, inputs, &slopes, lse.as_slice::<f32>()?)?;
        Ok(gradients.map(T::to_cpu_storage_owned))
    }

    /// The elements of the gradients of packed sequences in logical order: those of rows of no sequence are 0.
    fn packed_gradients<T: Element>(
        call: &Packed,
        [q_starts, kv_starts]: [Indices; 2],
        [q, k, v, out, dout]: [(&[T], &Layout); 5],
        slopes: &Slopes,
        lse: &[f32],
    ) -> crate::error::Result<[Vec<T>; 3]> {
        let copy = |operand, (data, layout)| Copy::of(data, layout, call.axes(operand, layout)?);
        let (q, k, v) = (copy(Operand::Q, q)?, copy(Operand::K, k)?, copy(Operand::V, v)?);
        let (out, dout) = (copy(Operand::Out, out)?, copy(Operand::Dout, dout)?);
        let (q, k, v, out, dout) = (q.view()?, k.view()?, v.view()?, out.view()?, dout.view()?);
        let lse = Lse::from_slice(device()?, lse, packed_lse(&q.shape()))?;
        let (q_rows, kv_rows) = (PackedRows::new(q_starts.view()), PackedRows::new(kv_starts.view()));
        let program = slopes.program()?;
        let attention = with_program(call.attention(), program.as_ref());
        let gradients = attention.backward_packed(&q, &k, &v, &out, &lse.view(), dout, &q_rows, &kv_rows)?;
        Ok([gradients.dq.to_vec()?, gradients.dk.to_vec()?, gradients.dv.to_vec()?])
    }

    /// Numbers in the emulator's memory.
    fn indices(call: &Packed, operand: Operand, tensor: &candle_core::Tensor) -> Result<Indices> {
        call.check_numbers(operand, tensor)?;
        let (storage, layout) = tensor.storage_and_layout();
        let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
        let numbers: Vec<i32> = match &*storage {
            Storage::Cpu(CpuStorage::U32(data)) => data[range].iter().map(|&number| number as i32).collect(),
            Storage::Cpu(CpuStorage::I32(data)) => data[range].to_vec(),
            _ => {
                let (lhs, rhs) = (candle_core::DeviceLocation::Cpu, tensor.device().location());
                return Err(candle_core::Error::DeviceMismatchBinaryOp { lhs, rhs, op: call.name() }.bt());
            }
        };
        Ok(Indices::from_slice(device()?, &numbers).map_err(Error::from)?)
    }

    pub(super) fn backward(
        options: Options<'_>,
        op: &'static str,
        inputs: Inputs<'_, CpuStorage>,
        lse: &CpuStorage,
    ) -> Result<[CpuStorage; 3]> {
        match inputs[0].0.dtype() {
            DType::F16 => typed_backward::<ferroflash::f16>(options, op, inputs, lse),
            DType::BF16 => typed_backward::<ferroflash::bf16>(options, op, inputs, lse),
            DType::F32 => typed_backward::<f32>(options, op, inputs, lse),
            found => Err(Error::DType { op, found }.into()),
        }
    }

    fn typed_backward<T: Element + WithDType>(
        options: Options<'_>,
        op: &'static str,
        inputs: Inputs<'_, CpuStorage>,
        lse: &CpuStorage,
    ) -> Result<[CpuStorage; 3]> {
        let beside = Beside::new(device()?, options, op, heads(op, Operand::Q, inputs[0].1)?.0.heads)?;
        let [q, k, v, out, dout] =
            inputs.map(|(data, layout)| T::cpu_storage_as_slice(data).map(|data| (data, layout)));
        let inputs = [q?, k?, v?, out?, dout?];
        let gradients = gradients::<T>(options.options, op, inputs, &beside, lse.as_slice::<f32>()?)?;
        Ok(gradients.map(T::to_cpu_storage_owned))
    }

    /// The elements of the gradients in logical order.
    fn gradients<T: Element>(
        options: &FlashAttn,
        op: &'static str,
        [q, k, v, out, dout]: [(&[T], &Layout); 5],
        beside: &Beside,
        lse: &[f32],
    ) -> crate::error::Result<[Vec<T>; 3]> {
        let (q, q_shape) = heads_copy(op, Operand::Q, q)?;
        let ((k, k_shape), (v, _)) = (heads_copy(op, Operand::K, k)?, heads_copy(op, Operand::V, v)?);
        let ((out, _), (dout, _)) = (heads_copy(op, Operand::Out, out)?, heads_copy(op, Operand::Dout, dout)?);
        let program = beside.slopes.program()?;
        let attention = beside.with(options.attention(k_shape.rows), program.as_ref());
        let lse = Lse::from_slice(device()?, lse, lse_shape(q_shape))?;
        let (q, k, v, out, dout) = (q.view()?, k.view()?, v.view()?, out.view()?, dout.view()?);
        let gradients = attention.backward(&q, &k, &v, &out, &lse.view(), dout)?;
        Ok([gradients.dq.to_vec()?, gradients.dk.to_vec()?, gradients.dv.to_vec()?])
    }

    /// A tensor `[batch, row, head, dim]`, and its shape.
    fn heads_copy<T: Element>(
        op: &'static str,
        operand: Operand,
        (data, layout): (&[T], &Layout),
    ) -> crate::error::Result<(Copy, ferroflash::Shape)> {
        let (shape, strides) = heads(op, operand, layout)?;
        Ok((Copy::of(data, layout, (shape.into(), strides.into()))?, shape))
    }

    fn lse_shape(q: ferroflash::Shape) -> LseShape {
        LseShape { batch: q.batch, heads: q.heads, rows: q.rows }
    }
}
