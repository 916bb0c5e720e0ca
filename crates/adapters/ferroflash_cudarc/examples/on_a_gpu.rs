//! Attention through cudarc on the first GPU, compared with the f64 reference: each kernel on each kind of stream, views with strides, the
//! log-sum-exp, and a graph that cudarc captures. The exit status is 1 when a result is outside of the tolerance.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits};
use ferroflash::reference::{self, Comparison};
use ferroflash::{Attention, Element, Kernel, Problem, Sequences, Shape, Strides, bf16, f16};
use ferroflash_cudarc::{View, ViewMut, device, forward, plan};
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

    fn forward(&mut self, attention: &Attention, stream: &CudaStream) -> ferroflash_cudarc::Result<()> {
        let parts = [0, 1, 2].map(|i| self.qkv.slice(i * PART..));
        let [q, k, v] = [&parts[0], &parts[1], &parts[2]].map(|part| View::new(part, SHAPE, INTERLEAVED));
        let mut out = ViewMut::contiguous(&mut self.out, SHAPE, ferroflash::Layout::Bshd)?;
        device(stream.context())?.prepare(&plan(&attention.with_lse(true), stream, q, k, v, &mut out)?)?;
        forward(attention, stream, q, k, v, &mut out, Some(&mut self.lse))
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
        let attention = Attention::new().causal().with_kernel(kernel);
        for (name, stream) in &streams {
            let mut tensors = Tensors::<T>::new(stream, &values)?;
            tensors.forward(&attention, stream)?;
            fine &= tensors.check(&format!("{kernel}, {name} stream"), &attention, stream)?;
        }
        // A graph. Events from outside of it cannot be waited for.
        let (_, stream) = &streams[2];
        // SAFETY: this stream alone works on the tensors that are made until events are on again.
        unsafe { context.disable_event_tracking() };
        let mut tensors = Tensors::<T>::new(stream, &values)?;
        stream.synchronize()?;
        stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
        tensors.forward(&attention, stream)?;
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

fn main() -> Outcome<()> {
    let context = CudaContext::new(0)?;
    let (major, minor) = context.compute_capability()?;
    println!("{}, compute capability {major}.{minor}", context.name()?);
    let portable = [Kernel::Naive, Kernel::V1, Kernel::V2];
    let mut fine =
        run::<f32>(&context, &portable)? & run::<f16>(&context, &portable)? & run::<bf16>(&context, &portable)?;
    if (major, minor) == (9, 0) {
        fine &= run::<f16>(&context, &[Kernel::V3])? & run::<bf16>(&context, &[Kernel::V3])?;
    }
    println!("{}", if fine { "all within" } else { "OUTSIDE" });
    std::process::exit(i32::from(!fine))
}
