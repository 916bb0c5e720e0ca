//! NVIDIA GPUs, through cust.

mod error;
mod kernels;
mod open;

use super::{Backend, Launch, Mark, RawStream, Replay};
use crate::error::{Error, Result};
use crate::specialise::Specialised;
use crate::tensor_map::TensorGeometry;
use cust::sys::{
    CUresult, CUtensorMapDataType, CUtensorMapFloatOOBfill, CUtensorMapInterleave, CUtensorMapL2promotion,
    CUtensorMapSwizzle,
};
use cust::{
    CaptureMode, Context, DeviceAttribute, Event, EventFlags, GraphExec, MemoryPool, Stream, StreamFlags, TensorMapSpec,
};
use kernel_spec::{DType, TensorMap};
use kernels::{Kernels, is_captured};
use std::time::Duration;

pub(crate) use open::{devices, open};

/// One GPU: its primary context, a memory pool, and the kernels loaded so far. Once opened it stays open (see [`open`]), so that
/// nothing here ever has to wait for the device to give something back.
struct Cuda {
    context: Context,
    /// `None` where the driver has no memory pools (some virtual GPUs); allocation then is synchronous.
    pool: Option<MemoryPool>,
    total_memory: u64,
    kernels: Kernels,
}

impl Cuda {
    fn new(device: cust::Device, total_memory: u64) -> Result<Cuda> {
        let context = Context::new(device)?;
        let has_pools = device.attribute(DeviceAttribute::MEMORY_POOLS_SUPPORTED)? != 0;
        let pool = if has_pools { Some(create_pool(&context)?) } else { None };
        Ok(Cuda { pool, total_memory, kernels: Kernels::new(&context), context })
    }

    /// The stream behind the handle.
    fn stream(&self, stream: RawStream) -> Stream {
        // SAFETY: handles are those of `create_stream`, or live by the contract of `Stream::from_raw`; the result is gone when the
        // call is that this is for.
        unsafe { Stream::from_raw(&self.context, stream.as_pointer()) }
    }

    fn try_allocate(&self, bytes: u64, stream: &Stream) -> cust::Result<u64> {
        match &self.pool {
            Some(pool) => pool.allocate(bytes as usize, stream),
            None => self.context.allocate(bytes as usize),
        }
    }

    fn out_of_memory(&self, requested: u64) -> Error {
        // A failure leaves 0 bytes free, which is what there was for this call.
        let (free, _) = self.context.memory_info().unwrap_or_default();
        Error::OutOfMemory { requested, free: free as u64, total: self.total_memory }
    }
}

/// A pool of its own, so that what it keeps is this crate's doing alone; it keeps everything until
/// [`Device::trim_memory`](crate::Device::trim_memory), so that a call's workspace costs an allocation only once.
fn create_pool(context: &Context) -> Result<MemoryPool> {
    let pool = MemoryPool::new(context)?;
    pool.set_release_threshold(u64::MAX)?;
    Ok(pool)
}

fn is_out_of_memory<T>(result: &cust::Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.result() == Some(CUresult::OUT_OF_MEMORY))
}

/// The element type as the copy engine knows it.
fn map_data_type(dtype: DType) -> CUtensorMapDataType {
    match dtype {
        DType::F16 => CUtensorMapDataType::FLOAT16,
        DType::F32 => CUtensorMapDataType::FLOAT32,
        DType::Bf16 => CUtensorMapDataType::BFLOAT16,
        other => unreachable!("no kernel takes tensors of {other}"),
    }
}

impl Backend for Cuda {
    fn allocate(&self, bytes: u64, stream: RawStream) -> Result<u64> {
        let stream = self.stream(stream);
        if self.pool.is_none() && is_captured(&stream)? {
            // A graph would go on using an address that is free again.
            return Err(Error::CaptureUnsupported {
                reason: "the GPU has no memory pools, which a workspace in a graph needs",
            });
        }
        let mut allocated = self.try_allocate(bytes, &stream);
        if is_out_of_memory(&allocated) && self.pool.is_some() {
            // What the pool keeps in pieces of other sizes may be enough once the driver has it back.
            self.trim_memory()?;
            allocated = self.try_allocate(bytes, &stream);
        }
        if is_out_of_memory(&allocated) {
            return Err(self.out_of_memory(bytes));
        }
        Ok(allocated?)
    }

    fn free(&self, address: u64, stream: RawStream) {
        // SAFETY: `allocate` returned the address, from the pool on this stream or from the context.
        let freed = unsafe {
            match self.pool {
                Some(_) => self.stream(stream).free(address),
                None => self.context.free(address),
            }
        };
        if let Err(error) = freed {
            tracing::error!(%error, "device memory is not freed");
        }
    }

    fn trim_memory(&self) -> Result<()> {
        let Some(pool) = &self.pool else { return Ok(()) };
        // Memory that was freed behind work still to be done goes back once that is done.
        self.synchronize()?;
        Ok(pool.trim_to(0)?)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: the destination is memory of this device, by the contract of the views.
        Ok(unsafe { self.context.write(address, bytes) }?)
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: the source is memory of this device, by the contract of the views.
        Ok(unsafe { self.context.read(address, bytes) }?)
    }

    fn copy(&self, from: u64, to: u64, len: u64, stream: RawStream) -> Result<()> {
        // SAFETY: both are memory of this device, by the contract of the tensors, and the stream is live.
        Ok(unsafe { self.stream(stream).copy(to, from, len as usize) }?)
    }

    fn fill(&self, address: u64, byte: u8, len: u64) -> Result<()> {
        let stream = Stream::legacy(&self.context);
        // SAFETY: the destination is memory of this device, by the contract of the views.
        unsafe { stream.fill(address, byte, len as usize) }?;
        Ok(stream.synchronize()?)
    }

    fn tensor_map(&self, tensor: &TensorGeometry) -> Result<TensorMap> {
        let (extents, byte_strides, box_extents) = tensor.axes();
        let map = TensorMapSpec {
            data_type: map_data_type(tensor.dtype),
            address: tensor.address,
            extents: &extents,
            byte_strides: &byte_strides,
            box_extents: &box_extents,
            element_strides: &[1; 5][..extents.len()],
            interleave: CUtensorMapInterleave::NONE,
            // The layout of `kernel_spec::layout`.
            swizzle: CUtensorMapSwizzle::BYTES_128,
            // A row of a box is that long.
            l2_promotion: CUtensorMapL2promotion::BYTES_128,
            // Zeros, not NaN.
            fill: CUtensorMapFloatOOBfill::NONE,
        };
        Ok(TensorMap(map.encode(&self.context)?.0))
    }

    fn prepare(&self, kernel: &Specialised) -> Result<()> {
        self.kernels.load(kernel, None).map(drop)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let stream = self.stream(launch.stream);
        let entry = launch.kernel.entry;
        let function = self.kernels.load(launch.kernel, Some(&stream))?;
        let mut params = [launch.params.as_ptr().cast_mut().cast()];
        let launch = cust::Launch::new(&function, &stream)
            .grid(launch.ctas)
            .block(entry.threads)
            .shared_bytes(entry.shared_bytes)
            .cluster(launch.cluster)
            .cooperative(entry.cooperative);
        // SAFETY: the function takes one parameter, the struct that `params` holds (the contract in kernel_spec); block and shared
        // memory are those of the entry; the addresses in it were checked by the caller.
        Ok(unsafe { launch.run_pointers(&mut params) }?)
    }

    fn create_stream(&self, non_blocking: bool, priority: Option<i32>) -> Result<RawStream> {
        let flags = if non_blocking { StreamFlags::NON_BLOCKING } else { StreamFlags::DEFAULT };
        Ok(RawStream::from_pointer(Stream::new(&self.context, flags, priority)?.into_raw()))
    }

    fn destroy_stream(&self, stream: RawStream) {
        // SAFETY: `create_stream` made it, and nobody else destroys it.
        drop(unsafe { Stream::from_raw_owned(&self.context, stream.as_pointer()) });
    }

    fn synchronize(&self) -> Result<()> {
        Ok(self.context.synchronize()?)
    }

    fn synchronize_stream(&self, stream: RawStream) -> Result<()> {
        Ok(self.stream(stream).synchronize()?)
    }

    fn record(&self, stream: RawStream) -> Result<Mark> {
        let event = Event::new(&self.context, EventFlags::DEFAULT)?;
        event.record(&self.stream(stream))?;
        Ok(Mark::Cuda(event))
    }

    fn wait(&self, stream: RawStream, mark: &Mark) -> Result<()> {
        match mark {
            Mark::Cuda(event) => Ok(self.stream(stream).wait_event(event)?),
            // It was done when it was recorded.
            Mark::Host(_) => Ok(()),
        }
    }

    fn capture(&self, body: &mut dyn FnMut(RawStream) -> Result<()>) -> Result<Box<dyn Replay>> {
        // A stream of its own that nothing is ordered with: while an ordinary stream is captured, nobody in the process could use the
        // default stream.
        let stream = Stream::new(&self.context, StreamFlags::NON_BLOCKING, None)?;
        let handle = RawStream::from_pointer(stream.as_raw());
        let graph = stream.capture(CaptureMode::THREAD_LOCAL, || body(handle))?;
        let nodes = graph.node_count()?;
        Ok(Box::new(CapturedGraph { graph: graph.instantiate()?, nodes, context: self.context.clone() }))
    }

    fn time_each(
        &self,
        stream: RawStream,
        count: u32,
        before: &mut dyn FnMut() -> Result<()>,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Duration>> {
        let stream = self.stream(stream);
        let event = || Event::new(&self.context, EventFlags::DEFAULT);
        let events = (0..count).map(|_| Ok((event()?, event()?))).collect::<Result<Vec<_>>>()?;
        for (start, end) in &events {
            before()?;
            start.record(&stream)?;
            work()?;
            end.record(&stream)?;
        }
        let elapsed = |(start, end): &(Event, Event)| {
            end.synchronize()?;
            Ok(end.elapsed_since(start)?)
        };
        events.iter().map(elapsed).collect()
    }
}

struct CapturedGraph {
    graph: GraphExec,
    nodes: usize,
    context: Context,
}

impl Replay for CapturedGraph {
    fn nodes(&self) -> usize {
        self.nodes
    }

    unsafe fn launch(&self, stream: RawStream) -> Result<()> {
        // SAFETY: the stream is live by the contract of `Stream`; the caller vouches for what was captured. Kernels stay loaded.
        Ok(unsafe { self.graph.launch(&Stream::from_raw(&self.context, stream.as_pointer())) }?)
    }
}
