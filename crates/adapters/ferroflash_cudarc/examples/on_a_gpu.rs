//! Attention through cudarc on the first GPU, compared with the f64 reference: each kernel on each kind of stream, views with strides, the
//! log-sum-exp, a program on scores, a graph that cudarc captures, packed sequences, and a cache that is written row by row. The exit status is 1 when a
//! result is outside of the tolerance.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use ferroflash::reference::{self, Comparison, SequenceRows};
use ferroflash::score::ScoreProgram;
use ferroflash::{Attention, Element, Kernel, Layout, Problem, Sequences, Shape, Sizes, Strides, bf16, f16};
use ferroflash_cudarc::{
    CacheRows, NewRows, Numbers, Options, PackedRows, Pages, Program, ProgramTensor, View, ViewMut, device, forward,
    forward_appending, forward_packed, plan,
};
use std::error::Error;
use std::sync::Arc;

const SHAPE: Shape = Shape::new(2, 300, 4, 64);
/// q, k and v in one tensor `[batch, row, 3, head, dim]`.
const INTERLEAVED: Strides = Strides::new(300 * 3 * 4 * 64, 3 * 4 * 64, 64);
const PART: usize = 4 * 64;
const ELEMENTS: usize = 2 * 300 * PART;

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Inputs in the memory of a GPU, and where the results go.
struct Tensors<T> {
    qkv: CudaSlice<T>,
    out: CudaSlice<T>,
    lse: CudaSlice<f32>,
}

impl<T: Element + DeviceRepr + ValidAsZeroBits> Tensors<T> {
    fn new(stream: &Arc<CudaStream>, values: &[f64]) -> Outcome<Tensors<T>> {
        let values: Vec<T> = values.iter().map(|&value| T::from_f64(value)).collect();
        let (out, lse) = (stream.clone_htod(&vec![T::from_f64(f64::NAN); ELEMENTS])?, vec![f32::NAN; 2 * 4 * 300]);
        Ok(Tensors { qkv: stream.clone_htod(&values)?, out, lse: stream.clone_htod(&lse)? })
    }

    fn forward(&mut self, options: Options<'_>, stream: &CudaStream) -> ferroflash_cudarc::Result<()> {
        let parts = [0, 1, 2].map(|i| self.qkv.slice(i * PART..));
        let [q, k, v] = [&parts[0], &parts[1], &parts[2]].map(|part| View::new(part, SHAPE, INTERLEAVED));
        let mut out = ViewMut::contiguous(&mut self.out, SHAPE, ferroflash::Layout::Bshd)?;
        device(stream.context())?.prepare(&plan(options, stream, q, k, v, &mut out)?)?;
        forward(options, stream, q, k, v, &mut out, Some(&mut self.lse))
    }

    /// Whether the results are within the tolerance.
    fn check(&self, what: &str, attention: &Attention, stream: &Arc<CudaStream>) -> Outcome<bool> {
        let values: Vec<f64> = stream.clone_dtoh(&self.qkv)?.into_iter().map(Element::to_f64).collect();
        let part = |i: usize| values.chunks(PART).skip(i).step_by(3).flatten().copied().collect::<Vec<f64>>();
        let [q, k, v] = [0, 1, 2].map(part);
        let sequences = Sequences::Uniform { batch: 2, q_rows: 300, kv_rows: 300 };
        let problem = Problem::new(sequences, 4, 4, 64, T::DTYPE);
        let exact = reference::forward(&q, &k, &v, problem, attention)?;
        let rounded = reference::forward_rounded(&q, &k, &v, problem, attention)?;
        let out: Vec<f64> = stream.clone_dtoh(&self.out)?.into_iter().map(Element::to_f64).collect();
        let lse: Vec<f64> = stream.clone_dtoh(&self.lse)?.into_iter().map(f64::from).collect();
        stream.synchronize()?;
        let out = Comparison::new(&out, &exact.out, &rounded.out);
        let lse = Comparison::new(&lse, &exact.lse, &rounded.lse);
        println!("{what}, {}: out {out}; log-sum-exp off by {:.3e}", T::DTYPE, lse.max_error);
        // The log-sum-exp is f32 whatever the tensors are: 16 units in the last place of its largest value on top.
        let largest = exact.lse.iter().fold(0f64, |largest, value| largest.max(value.abs()));
        Ok(out.within && lse.max_error <= lse.bound + 16.0 * largest * f64::from(f32::EPSILON))
    }
}

fn run<T: Element + DeviceRepr + ValidAsZeroBits>(context: &Arc<CudaContext>, kernels: &[Kernel]) -> Outcome<bool> {
    // Fractional parts of multiples of an irrational number.
    let values: Vec<f64> =
        (0..3 * ELEMENTS).map(|i| (i as f64 * 0.618_033_988_749_894_9).fract() * 4.0 - 2.0).collect();
    let streams = [
        ("default", context.default_stream()),
        ("thread's", context.per_thread_stream()),
        ("own", context.new_stream()?),
    ];
    let mut fine = true;
    for &kernel in kernels {
        let attention = Attention::new().causal().with_kernel(kernel).with_lse(true);
        let options = Options::new(&attention);
        for (name, stream) in &streams {
            let mut tensors = Tensors::<T>::new(stream, &values)?;
            tensors.forward(options, stream)?;
            fine &= tensors.check(&format!("{kernel}, {name} stream"), &attention, stream)?;
        }
        // Slopes in a slice; the reference reads them from a tensor of ferroflash's own.
        let slopes = [0.5f32, 0.25, 0.125, 0.0625];
        let (_, stream) = &streams[2];
        let (slice, device) = (stream.clone_htod(&slopes)?, device(context)?);
        let alibi = Program::new(ScoreProgram::alibi()).with("slopes", ProgramTensor::floats(&slice, [1, 4]));
        let mut tensors = Tensors::<T>::new(stream, &values)?;
        tensors.forward(options.with_program(&alibi), stream)?;
        let slopes = ferroflash::Tensor::from_slice(&device, &slopes, [1, 4], Layout::RowMajor)?;
        let bound = ScoreProgram::alibi().bind(&[("slopes", slopes.view().into())])?;
        fine &= tensors.check(&format!("{kernel}, slopes"), &attention.with_program(&bound), stream)?;
        // A graph. Events from outside of it cannot be waited for.
        let (_, stream) = &streams[2];
        // SAFETY: this stream alone works on the tensors that are made until events are on again.
        unsafe { context.disable_event_tracking() };
        let mut tensors = Tensors::<T>::new(stream, &values)?;
        stream.synchronize()?;
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        tensors.forward(options, stream)?;
        let graph = stream.end_capture(CUgraphInstantiate_flags(0))?.ok_or("nothing was captured")?;
        graph.launch()?;
        fine &= tensors.check(&format!("{kernel}, graph"), &attention, stream)?;
        stream.synchronize()?;
        drop(tensors);
        // SAFETY: the tensors without events are gone.
        unsafe { context.enable_event_tracking() };
    }
    Ok(fine)
}

/// Two sequences in 300 rows.
const STARTS: [usize; 3] = [0, 120, 300];
/// Rows of a page, and pages of a sequence.
const PAGES: [usize; 2] = [16, 12];

/// Packed sequences; and the same again with every row given by itself, after its key and value, to a cache in pages.
fn sequences<T: Element + DeviceRepr + ValidAsZeroBits>(stream: &Arc<CudaStream>) -> Outcome<bool> {
    let attention = Attention::new().causal();
    let value = |i: usize, seed: usize| ((i + 7919 * seed) as f64 * 0.618_033_988_749_894_9).fract() * 4.0 - 2.0;
    let host = [1, 2, 3].map(|seed| (0..300 * PART).map(|i| T::from_f64(value(i, seed))).collect::<Vec<T>>());
    let shape = Shape::new(1, 300, 4, 64);
    let [q, k, v] = host.each_ref().map(|values| stream.clone_htod(values));
    let (q, k, v) = (q?, k?, v?);
    let starts = stream.clone_htod(&STARTS.map(|start| start as i32))?;
    let mut out = stream.alloc_zeros::<T>(300 * PART)?;
    let [q_view, k_view, v_view] = [&q, &k, &v].map(|slice| View::contiguous(slice, shape, Layout::Bshd));
    let rows = PackedRows::new(Numbers::new(&starts));
    let mut into = ViewMut::contiguous(&mut out, shape, Layout::Bshd)?;
    forward_packed(&attention, stream, q_view?, k_view?, v_view?, rows, rows, &mut into, None)?;
    let packed = stream.clone_dtoh(&out)?;

    let [page_rows, width] = PAGES;
    let nan = vec![T::from_f64(f64::NAN); 2 * width * page_rows * PART];
    let (mut k_pages, mut v_pages) = (stream.clone_htod(&nan)?, stream.clone_htod(&nan)?);
    // The pages of both sequences in turns, the last first.
    let table: Vec<i32> = (0..2 * width).map(|i| ((width - 1 - i % width) * 2 + i / width) as i32).collect();
    let table = stream.clone_htod(&table)?;
    let (row, cache) = (Shape::new(2, 1, 4, 64), Shape::new(2 * width, page_rows, 4, 64));
    let mut by_row = vec![T::from_f64(f64::NAN); 300 * PART];
    for step in 0..STARTS[1] {
        let of_step = |slice: &[T]| [0, 1].map(|b| slice[(STARTS[b] + step) * PART..][..PART].to_vec()).concat();
        let [q, k, v] = host.each_ref().map(|values| stream.clone_htod(&of_step(values)));
        let (q, k, v, mut out) = (q?, k?, v?, stream.alloc_zeros::<T>(2 * PART)?);
        let lengths = stream.clone_htod(&[step as i32; 2])?;
        let pages = Pages { table: Numbers::new(&table), width, stride: width };
        let rows = CacheRows { lengths: Some(Numbers::new(&lengths)), pages: Some(pages), ..CacheRows::default() };
        let [q, k, v] = [&q, &k, &v].map(|slice| View::contiguous(slice, row, Layout::Bshd));
        let new = NewRows { k: k?, v: v?, starts: None, rotary: None };
        let mut k_cache = ViewMut::contiguous(&mut k_pages, cache, Layout::Bshd)?;
        let mut v_cache = ViewMut::contiguous(&mut v_pages, cache, Layout::Bshd)?;
        let mut into = ViewMut::contiguous(&mut out, row, Layout::Bshd)?;
        forward_appending(&attention, stream, q?, None, &mut k_cache, &mut v_cache, rows, new, &mut into, None)?;
        for (b, found) in stream.clone_dtoh(&out)?.chunks(PART).enumerate() {
            by_row[(STARTS[b] + step) * PART..][..PART].copy_from_slice(found);
        }
    }

    // The second sequence is longer than the steps.
    let mut fine = true;
    for (what, found, ends) in [("packed", packed, [120, 300]), ("row by row", by_row, [120, 240])] {
        let sequences: Vec<_> =
            (0..2).map(|b| SequenceRows { q: STARTS[b]..ends[b], kv: (STARTS[b]..ends[b]).collect() }).collect();
        let sizes = Sizes { batch: 1, q_rows: 1, kv_rows: 1, q_heads: 4, kv_heads: 4, head_dim: 64, dtype: T::DTYPE };
        let host = host.each_ref().map(|values| values.iter().map(|&value| value.to_f64()).collect::<Vec<f64>>());
        let tensors = host.each_ref().map(|values| &values[..]);
        let exact = reference::forward_sequences(tensors, &sequences, sizes, &attention)?;
        let rounded = reference::forward_sequences_rounded(tensors, &sequences, sizes, &attention)?;
        let used = ends[1] * PART;
        let found: Vec<f64> = found.into_iter().map(Element::to_f64).take(used).collect();
        let comparison = Comparison::new(&found, &exact.out[..used], &rounded.out[..used]);
        println!("{what}, {}: {comparison}", T::DTYPE);
        fine &= comparison.within;
    }
    Ok(fine)
}

fn main() -> Outcome<()> {
    let context = CudaContext::new(0)?;
    let (major, minor) = context.compute_capability()?;
    println!("{}, compute capability {major}.{minor}", context.name()?);
    let portable = [Kernel::Naive, Kernel::V1, Kernel::V2];
    let mut fine =
        run::<f32>(&context, &portable)? & run::<f16>(&context, &portable)? & run::<bf16>(&context, &portable)?;
    let stream = context.new_stream()?;
    fine &= sequences::<f32>(&stream)? & sequences::<f16>(&stream)? & sequences::<bf16>(&stream)?;
    if (major, minor) == (9, 0) {
        fine &= run::<f16>(&context, &[Kernel::V3])? & run::<bf16>(&context, &[Kernel::V3])?;
    }
    println!("{}", if fine { "all within" } else { "OUTSIDE" });
    std::process::exit(i32::from(!fine))
}
