//! The extension module `ferroflash._native`: attention on addresses, shapes and strides that Python hands over, and on objects that
//! speak DLPack or `__cuda_array_interface__`. The package around it is in `python/ferroflash`.

mod arrays;
mod blocks;
mod call;
mod emulated;
mod errors;
mod gradients;
mod merge;
mod operators;
mod packed_gradients;
mod program;
mod sequences;

use arrays::Array;
use blocks::{Blocks, find_blocks, find_torch_blocks};
use call::{Call, Dropped, Memory, Options, Place, Tensor, rows_at};
use ferroflash::{DType, Dims, MAX_RANK, Operand, Splits};
use gradients::Backward;
use merge::{launch_merge, merge_arrays};
use packed_gradients::PackedBackward;
use program::{ArrayProgram, TorchProgram, describe_program, program_of_arrays, torch_program};
use pyo3::prelude::*;
use pyo3::types::PyTuple;
use sequences::{Int32, NUMBERS, Numbers, TENSORS};

/// A tensor of torch as Python hands it over: `(ordinal, dtype, address, shape, strides)`. The ordinal is -1 for the CPU.
type TorchTensor<'py> = (i32, u8, u64, Bound<'py, PyTuple>, Bound<'py, PyTuple>);

/// Numbers of torch as Python hands them over: `(ordinal, address, shape, strides)`, of 32 bits.
type TorchNumbers<'py> = (i32, u64, Bound<'py, PyTuple>, Bound<'py, PyTuple>);

/// Attention on tensors of torch, all checks included. `lse` is the address of contiguous `f32 [batch, q_heads, q_rows]`, or 0.
///
/// One call with plain numbers: what it costs beside the launch is what a user of small tensors waits for.
#[pyfunction]
#[pyo3(signature = (stream, q, k, v, out, lse, scale, causal, left, right, softcap, program, dropout, sink, /))]
#[allow(clippy::too_many_arguments, reason = "the tensors and options of one attention call")]
fn launch(
    py: Python<'_>,
    stream: usize,
    q: TorchTensor<'_>,
    k: TorchTensor<'_>,
    v: TorchTensor<'_>,
    out: TorchTensor<'_>,
    lse: u64,
    scale: Option<f64>,
    causal: bool,
    left: i64,
    right: i64,
    softcap: f64,
    program: Option<TorchProgram<'_>>,
    dropout: Option<Dropped>,
    sink: Option<TorchTensor<'_>>,
) -> PyResult<()> {
    let (program, sink) = (program.map(torch_program).transpose()?, sink.as_ref().map(torch_tensor).transpose()?);
    let options = Options { scale, causal, left, right, softcap, program, dropout, sink, ..Options::default() };
    let tensors = [&q, &k, &v, &out].map(torch_tensor);
    let [q, k, v, out] = tensors;
    let call = Call { q: q?, k: k?, v: v?, out: out?, lse: None };
    let call = call.with_lse_address((lse != 0).then_some(lse));
    call.run(py, stream, &options)
}

/// The array of sinks, which is to be held until the launch has returned.
fn sink_of_arrays(
    sink: Option<&Bound<'_, PyAny>>,
    stream: usize,
    device: Option<usize>,
) -> PyResult<Option<Array<DType>>> {
    sink.map(|sink| Array::import("sink", sink, stream, device, false)).transpose()
}

fn torch_tensor((ordinal, dtype, address, shape, strides): &TorchTensor<'_>) -> PyResult<Tensor> {
    let place = if *ordinal < 0 { Place::Cpu } else { Place::Cuda(*ordinal as usize) };
    // The numbers that `_torch.py` gives the types.
    let dtype = [DType::F16, DType::Bf16, DType::F32][usize::from(*dtype)];
    Ok(Tensor { place, dtype, address: *address, shape: numbers(shape)?, strides: numbers(strides)? })
}

fn torch_numbers((ordinal, address, shape, strides): &TorchNumbers<'_>) -> PyResult<Numbers> {
    let place = if *ordinal < 0 { Place::Cpu } else { Place::Cuda(*ordinal as usize) };
    Ok(Memory { place, dtype: Int32, address: *address, shape: numbers(shape)?, strides: numbers(strides)? })
}

/// The numbers of a tuple: extents or strides.
fn numbers(tuple: &Bound<'_, PyTuple>) -> PyResult<Dims> {
    let mut numbers = [0; MAX_RANK];
    let rank = tuple.len();
    if rank > MAX_RANK {
        // The error says how many there are.
        return Dims::new(&vec![0; rank]).map_err(|error| errors::raise(tuple.py(), error));
    }
    for (axis, number) in numbers[..rank].iter_mut().enumerate() {
        *number = tuple.get_borrowed_item(axis)?.extract()?;
    }
    Dims::new(&numbers[..rank]).map_err(|error| errors::raise(tuple.py(), error))
}

/// Attention on objects that speak DLPack or `__cuda_array_interface__`, in place. `device` is the GPU of those that do not say theirs.
#[pyfunction]
#[pyo3(signature = (q, k, v, out, lse, stream, device, scale, causal, left, right, softcap, program, dropout, sink, /))]
#[allow(clippy::too_many_arguments, reason = "the tensors and options of one attention call")]
fn forward(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    lse: Option<&Bound<'_, PyAny>>,
    stream: usize,
    device: Option<usize>,
    scale: Option<f64>,
    causal: bool,
    left: i64,
    right: i64,
    softcap: f64,
    program: Option<ArrayProgram<'_>>,
    dropout: Option<Dropped>,
    sink: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (program, _arrays) = program_of_arrays(program, stream, device)?;
    let held_sink = sink_of_arrays(sink, stream, device)?;
    let sink = held_sink.as_ref().map(|sink| sink.tensor);
    let options = Options { scale, causal, left, right, softcap, program, dropout, sink, ..Options::default() };
    let input = |name, object| Array::import(name, object, stream, device, false);
    let output = |name, object| Array::import(name, object, stream, device, true);
    let (q, k, v, out) = (input("q", q)?, input("k", k)?, input("v", v)?, output("out", out)?);
    let lse = lse.map(|lse| output("lse", lse)).transpose()?;
    let lse_tensor = lse.as_ref().map(|lse| lse.tensor);
    let call = Call { q: q.tensor, k: k.tensor, v: v.tensor, out: out.tensor, lse: lse_tensor };
    // The arrays are held until the launch has returned.
    call.run(py, stream, &options)
}

/// Attention over packed sequences or a cache on tensors of torch, all checks included. `tensors` and `arrays` are in the order of
/// [`TENSORS`] and [`NUMBERS`]; `hints` are the rows of the longest sequence of q and of k, where they are known.
#[pyfunction]
#[pyo3(signature = (stream, tensors, arrays, hints, interleaved, splits, scale, causal, left, right, softcap, program, sink, /))]
#[allow(clippy::too_many_arguments, reason = "the tensors and options of one attention call")]
fn launch_sequences(
    py: Python<'_>,
    stream: usize,
    tensors: [Option<TorchTensor<'_>>; 9],
    arrays: [Option<TorchNumbers<'_>>; 9],
    hints: [Option<usize>; 2],
    interleaved: bool,
    splits: i64,
    scale: Option<f64>,
    causal: bool,
    left: i64,
    right: i64,
    softcap: f64,
    program: Option<TorchProgram<'_>>,
    sink: Option<TorchTensor<'_>>,
) -> PyResult<()> {
    let (program, sink) = (program.map(torch_program).transpose()?, sink.as_ref().map(torch_tensor).transpose()?);
    let splits = split(splits);
    let options = Options { scale, causal, left, right, softcap, splits, program, sink, ..Options::default() };
    let (mut read, mut numbers) = ([None; 9], [None; 9]);
    for (read, tensor) in read.iter_mut().zip(&tensors) {
        *read = tensor.as_ref().map(torch_tensor).transpose()?;
    }
    for (numbers, array) in numbers.iter_mut().zip(&arrays) {
        *numbers = array.as_ref().map(torch_numbers).transpose()?;
    }
    sequences::Call { tensors: read, numbers, longest: hints, interleaved }.run(py, stream, &options)
}

/// How keys are split: 0 by the library's choice, a positive number into as many, a negative one into parts of as many keys.
fn split(number: i64) -> Splits {
    let size = u32::try_from(number.unsigned_abs()).unwrap_or(u32::MAX);
    match number {
        0 => Splits::Auto,
        1.. => Splits::Count(size),
        _ => Splits::Keys(size),
    }
}

/// [`launch_sequences`] on objects that speak DLPack or `__cuda_array_interface__`, in place. `device` is the GPU of those that do not say
/// theirs.
#[pyfunction]
#[pyo3(signature = (tensors, arrays, stream, device, hints, interleaved, splits, scale, causal, left, right, softcap, program, sink, /))]
#[allow(clippy::too_many_arguments, reason = "the tensors and options of one attention call")]
fn forward_sequences(
    py: Python<'_>,
    tensors: [Option<Bound<'_, PyAny>>; 9],
    arrays: [Option<Bound<'_, PyAny>>; 9],
    stream: usize,
    device: Option<usize>,
    hints: [Option<usize>; 2],
    interleaved: bool,
    splits: i64,
    scale: Option<f64>,
    causal: bool,
    left: i64,
    right: i64,
    softcap: f64,
    program: Option<ArrayProgram<'_>>,
    sink: Option<Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (program, _arrays) = program_of_arrays(program, stream, device)?;
    let held_sink = sink_of_arrays(sink.as_ref(), stream, device)?;
    let (splits, sink) = (split(splits), held_sink.as_ref().map(|sink| sink.tensor));
    let options = Options { scale, causal, left, right, softcap, splits, program, sink, ..Options::default() };
    let appends = TENSORS.iter().zip(&tensors).any(|(&of, tensor)| of == Operand::NewK && tensor.is_some());
    let (mut held, mut held_numbers) = ([const { None }; 9], [const { None }; 9]);
    for ((held, object), operand) in held.iter_mut().zip(&tensors).zip(TENSORS) {
        let is_written = match operand {
            Operand::Out | Operand::Lse => true,
            Operand::K | Operand::V => appends,
            _ => false,
        };
        let import = |object| Array::<DType>::import(&operand.to_string(), object, stream, device, is_written);
        *held = object.as_ref().map(import).transpose()?;
    }
    for ((held, object), operand) in held_numbers.iter_mut().zip(&arrays).zip(NUMBERS) {
        let import = |object| Array::<Int32>::import(&operand.to_string(), object, stream, device, false);
        *held = object.as_ref().map(import).transpose()?;
    }
    let tensors = held.each_ref().map(|array| array.as_ref().map(|array| array.tensor));
    let numbers = held_numbers.each_ref().map(|array| array.as_ref().map(|array| array.tensor));
    // The arrays are held until the launch has returned.
    sequences::Call { tensors, numbers, longest: hints, interleaved }.run(py, stream, &options)
}

/// The backward pass on tensors of torch, all checks included. `lse` and `dlse` are addresses of contiguous `f32 [batch, q_heads, q_rows]`,
/// or 0 for `dlse`.
#[pyfunction]
#[pyo3(signature = (stream, q, k, v, out, lse, dout, dlse, dq, dk, dv, scale, causal, left, right, softcap, deterministic, program, dropout, sink, dsink, /))]
#[allow(clippy::too_many_arguments, reason = "the tensors and options of one backward pass")]
fn launch_backward(
    py: Python<'_>,
    stream: usize,
    q: TorchTensor<'_>,
    k: TorchTensor<'_>,
    v: TorchTensor<'_>,
    out: TorchTensor<'_>,
    lse: u64,
    dout: TorchTensor<'_>,
    dlse: u64,
    dq: TorchTensor<'_>,
    dk: TorchTensor<'_>,
    dv: TorchTensor<'_>,
    scale: Option<f64>,
    causal: bool,
    left: i64,
    right: i64,
    softcap: f64,
    deterministic: bool,
    program: Option<TorchProgram<'_>>,
    dropout: Option<Dropped>,
    sink: Option<TorchTensor<'_>>,
    dsink: Option<TorchTensor<'_>>,
) -> PyResult<()> {
    let program = program.map(torch_program).transpose()?;
    let [sink, dsink] = [&sink, &dsink].map(|tensor| tensor.as_ref().map(torch_tensor).transpose());
    let (sink, dsink) = (sink?, dsink?);
    let options =
        Options { scale, causal, left, right, softcap, deterministic, program, dropout, sink, ..Options::default() };
    let [q, k, v, out, dout, dq, dk, dv] = [&q, &k, &v, &out, &dout, &dq, &dk, &dv].map(torch_tensor);
    let (q, k, v, out, dout, dq, dk, dv) = (q?, k?, v?, out?, dout?, dq?, dk?, dv?);
    let Some(lse) = rows_at(&q, lse) else {
        let found = q.shape.len();
        let message = format!("attention takes tensors of 4 axes (batch, row, head, dim); {found} were given");
        return Err(errors::of_input(py, message));
    };
    let dlse = (dlse != 0).then_some(Tensor { address: dlse, ..lse });
    Backward { q, k, v, out, lse, dout, dlse, dq, dk, dv, dsink }.run(py, stream, &options)
}

/// The backward pass on objects that speak DLPack or `__cuda_array_interface__`, in place. `device` is the GPU of those that do not say
/// theirs.
#[pyfunction]
#[pyo3(signature = (q, k, v, out, lse, dout, dlse, dq, dk, dv, stream, device, scale, causal, left, right, softcap, deterministic, program, dropout, sink, dsink, /))]
#[allow(clippy::too_many_arguments, reason = "the tensors and options of one backward pass")]
fn backward(
    py: Python<'_>,
    q: &Bound<'_, PyAny>,
    k: &Bound<'_, PyAny>,
    v: &Bound<'_, PyAny>,
    out: &Bound<'_, PyAny>,
    lse: &Bound<'_, PyAny>,
    dout: &Bound<'_, PyAny>,
    dlse: Option<&Bound<'_, PyAny>>,
    dq: &Bound<'_, PyAny>,
    dk: &Bound<'_, PyAny>,
    dv: &Bound<'_, PyAny>,
    stream: usize,
    device: Option<usize>,
    scale: Option<f64>,
    causal: bool,
    left: i64,
    right: i64,
    softcap: f64,
    deterministic: bool,
    program: Option<ArrayProgram<'_>>,
    dropout: Option<Dropped>,
    sink: Option<&Bound<'_, PyAny>>,
    dsink: Option<&Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (program, _arrays) = program_of_arrays(program, stream, device)?;
    let held_sink = sink_of_arrays(sink, stream, device)?;
    let sink = held_sink.as_ref().map(|sink| sink.tensor);
    let options =
        Options { scale, causal, left, right, softcap, deterministic, program, dropout, sink, ..Options::default() };
    let input = |name, object| Array::import(name, object, stream, device, false);
    let output = |name, object| Array::import(name, object, stream, device, true);
    let (q, k, v, out) = (input("q", q)?, input("k", k)?, input("v", v)?, input("out", out)?);
    let (lse, dout) = (input("lse", lse)?, input("dout", dout)?);
    let dlse = dlse.map(|dlse| input("dlse", dlse)).transpose()?;
    let (dq, dk, dv) = (output("dq", dq)?, output("dk", dk)?, output("dv", dv)?);
    let dsink = dsink.map(|dsink| output("dsink", dsink)).transpose()?;
    let call = Backward {
        q: q.tensor,
        k: k.tensor,
        v: v.tensor,
        out: out.tensor,
        lse: lse.tensor,
        dout: dout.tensor,
        dlse: dlse.as_ref().map(|dlse| dlse.tensor),
        dq: dq.tensor,
        dk: dk.tensor,
        dv: dv.tensor,
        dsink: dsink.as_ref().map(|dsink| dsink.tensor),
    };
    // The arrays are held until the launch has returned.
    call.run(py, stream, &options)
}

/// The backward pass over packed sequences on tensors of torch, all checks included. `tensors` and `arrays` are in the order of
/// [`packed_gradients::TENSORS`] and [`packed_gradients::NUMBERS`].
#[pyfunction]
#[pyo3(signature = (stream, tensors, arrays, scale, causal, left, right, softcap, program, sink, /))]
#[allow(clippy::too_many_arguments, reason = "the tensors and options of one backward pass")]
fn launch_packed_backward(
    py: Python<'_>,
    stream: usize,
    tensors: [Option<TorchTensor<'_>>; 11],
    arrays: [Option<TorchNumbers<'_>>; 4],
    scale: Option<f64>,
    causal: bool,
    left: i64,
    right: i64,
    softcap: f64,
    program: Option<TorchProgram<'_>>,
    sink: Option<TorchTensor<'_>>,
) -> PyResult<()> {
    let (program, sink) = (program.map(torch_program).transpose()?, sink.as_ref().map(torch_tensor).transpose()?);
    // Packed sequences have no gradients but deterministic ones.
    let deterministic = true;
    let options = Options { scale, causal, left, right, softcap, deterministic, program, sink, ..Options::default() };
    let mut call = PackedBackward { tensors: [None; 11], numbers: [None; 4] };
    for (read, tensor) in call.tensors.iter_mut().zip(&tensors) {
        *read = tensor.as_ref().map(torch_tensor).transpose()?;
    }
    for (read, array) in call.numbers.iter_mut().zip(&arrays) {
        *read = array.as_ref().map(torch_numbers).transpose()?;
    }
    call.run(py, stream, &options)
}

/// [`launch_packed_backward`] on objects that speak DLPack or `__cuda_array_interface__`, in place. `device` is the GPU of those that do not
/// say theirs.
#[pyfunction]
#[pyo3(signature = (tensors, arrays, stream, device, scale, causal, left, right, softcap, program, sink, /))]
#[allow(clippy::too_many_arguments, reason = "the tensors and options of one backward pass")]
fn backward_packed(
    py: Python<'_>,
    tensors: [Option<Bound<'_, PyAny>>; 11],
    arrays: [Option<Bound<'_, PyAny>>; 4],
    stream: usize,
    device: Option<usize>,
    scale: Option<f64>,
    causal: bool,
    left: i64,
    right: i64,
    softcap: f64,
    program: Option<ArrayProgram<'_>>,
    sink: Option<Bound<'_, PyAny>>,
) -> PyResult<()> {
    let (program, _arrays) = program_of_arrays(program, stream, device)?;
    let held_sink = sink_of_arrays(sink.as_ref(), stream, device)?;
    let (deterministic, sink) = (true, held_sink.as_ref().map(|sink| sink.tensor));
    let options = Options { scale, causal, left, right, softcap, deterministic, program, sink, ..Options::default() };
    let (mut held, mut held_numbers) = ([const { None }; 11], [const { None }; 4]);
    for ((held, object), operand) in held.iter_mut().zip(&tensors).zip(packed_gradients::TENSORS) {
        let is_written = packed_gradients::is_written(operand);
        let import = |object| Array::<DType>::import(&operand.to_string(), object, stream, device, is_written);
        *held = object.as_ref().map(import).transpose()?;
    }
    for ((held, object), operand) in held_numbers.iter_mut().zip(&arrays).zip(packed_gradients::NUMBERS) {
        let import = |object| Array::<Int32>::import(&operand.to_string(), object, stream, device, false);
        *held = object.as_ref().map(import).transpose()?;
    }
    let tensors = held.each_ref().map(|array| array.as_ref().map(|array| array.tensor));
    let numbers = held_numbers.each_ref().map(|array| array.as_ref().map(|array| array.tensor));
    // The arrays are held until the launch has returned.
    PackedBackward { tensors, numbers }.run(py, stream, &options)
}

/// The devices that there are, and why there is no GPU where there is none.
#[pyfunction]
fn devices(py: Python<'_>) -> Vec<(String, String)> {
    let found = py.detach(ferroflash::Device::list);
    found.into_iter().map(|info| (info.id(), info.name)).collect()
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_function(wrap_pyfunction!(launch, module)?)?;
    module.add_function(wrap_pyfunction!(forward, module)?)?;
    module.add_function(wrap_pyfunction!(launch_sequences, module)?)?;
    module.add_function(wrap_pyfunction!(forward_sequences, module)?)?;
    module.add_function(wrap_pyfunction!(launch_backward, module)?)?;
    module.add_function(wrap_pyfunction!(backward, module)?)?;
    module.add_function(wrap_pyfunction!(launch_merge, module)?)?;
    module.add_function(wrap_pyfunction!(merge_arrays, module)?)?;
    module.add_function(wrap_pyfunction!(launch_packed_backward, module)?)?;
    module.add_function(wrap_pyfunction!(backward_packed, module)?)?;
    module.add_function(wrap_pyfunction!(describe_program, module)?)?;
    module.add_function(wrap_pyfunction!(find_torch_blocks, module)?)?;
    module.add_function(wrap_pyfunction!(find_blocks, module)?)?;
    module.add_class::<Blocks>()?;
    operators::register(module)?;
    module.add_function(wrap_pyfunction!(devices, module)?)
}
