//! What a device has to do for the rest of the crate, and the devices that do it. `device/open.rs` knows which there are.

use crate::error::Result;
use crate::specialise::Specialised;
use crate::tensor_map::TensorGeometry;
use kernel_spec::TensorMap;
use std::ffi::c_void;
use std::ops::Range;
use std::time::{Duration, Instant};

#[cfg(cuda)]
pub(crate) mod cuda;
#[cfg(feature = "emulator")]
pub(crate) mod emulator;
mod mark;
#[cfg(test)]
pub(crate) mod recording;

pub(crate) use mark::Mark;

/// A `CUstream`, null for the default stream. The emulator knows only that one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RawStream(usize);

impl RawStream {
    pub(crate) const DEFAULT: RawStream = RawStream(0);

    pub(crate) fn from_pointer(stream: *mut c_void) -> RawStream {
        RawStream(stream.expose_provenance())
    }

    pub(crate) fn as_pointer(self) -> *mut c_void {
        std::ptr::with_exposed_provenance_mut(self.0)
    }
}

/// One launch of one entry point.
#[derive(Debug)]
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a Specialised,
    /// Thread blocks along x; the other axes are 1.
    pub(crate) ctas: u32,
    /// Thread blocks of a cluster.
    pub(crate) cluster: u32,
    /// Bytes of the only kernel parameter, a struct passed by value.
    pub(crate) params: &'a [u8],
    #[cfg_attr(not(cuda), allow(dead_code, reason = "launches of the emulator run to their end"))]
    pub(crate) stream: RawStream,
}

/// Work that was captured once, to be queued as often as wanted.
pub(crate) trait Replay: Send + Sync {
    /// Nodes of the graph.
    fn nodes(&self) -> usize;
    /// Queues it on `stream`; may return before it is done.
    ///
    /// # Safety
    /// The memory that the captured work uses is there.
    unsafe fn launch(&self, stream: RawStream) -> Result<()>;
}

/// A device as the rest of the crate sees it. All calls are safe from every thread; addresses come from `allocate` or from
/// an `unsafe` constructor of a view.
pub(crate) trait Backend: Send + Sync {
    /// Allocates `bytes > 0`, aligned to at least 256 bytes, usable by work on `stream` from now on.
    fn allocate(&self, bytes: u64, stream: RawStream) -> Result<u64>;
    /// Frees what `allocate` gave once the work on `stream` is done. Failures are logged: there is nobody to return them to.
    fn free(&self, address: u64, stream: RawStream);
    /// Returns kept memory to the driver.
    fn trim_memory(&self) -> Result<()>;
    /// Copies to the device, after all work on it; returns when `bytes` may be reused.
    fn write(&self, address: u64, bytes: &[u8]) -> Result<()>;
    /// Copies from the device, after all work on it; returns when done.
    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()>;
    /// Like `read`, but only these ranges of `bytes` have to be right: what lies between them may never have been written.
    fn read_ranges(&self, address: u64, _ranges: &[Range<usize>], bytes: &mut [u8]) -> Result<()> {
        // One copy with the gaps is faster than many without.
        self.read(address, bytes)
    }
    /// Like `write`, but only of these ranges of `bytes`: what lies between them stays as it is on the device.
    fn write_ranges(&self, address: u64, ranges: &[Range<usize>], bytes: &[u8]) -> Result<()> {
        let mut whole = vec![0; bytes.len()];
        self.read(address, &mut whole)?;
        for range in ranges {
            whole[range.clone()].copy_from_slice(&bytes[range.clone()]);
        }
        self.write(address, &whole)
    }
    /// Copies `len` bytes within the device in the order of `stream`; may return before it is done.
    fn copy(&self, from: u64, to: u64, len: u64, stream: RawStream) -> Result<()>;
    /// Sets `len` bytes to `byte`, after all work on the device.
    fn fill(&self, address: u64, byte: u8, len: u64) -> Result<()>;
    /// Encodes what the copy engine has to know of a tensor.
    fn tensor_map(&self, tensor: &TensorGeometry) -> Result<TensorMap>;
    /// Compiles and loads a kernel, if it is not loaded yet.
    fn prepare(&self, kernel: &Specialised) -> Result<()>;
    /// Starts a kernel; may return before it is done.
    fn launch(&self, launch: &Launch<'_>) -> Result<()>;
    /// Creates a stream, ordered with the default stream or with nothing, of priority 0 without one.
    fn create_stream(&self, non_blocking: bool, priority: Option<i32>) -> Result<RawStream>;
    fn destroy_stream(&self, stream: RawStream);
    /// The point in `stream` behind all that is queued on it.
    fn record(&self, _stream: RawStream) -> Result<Mark> {
        Ok(Mark::Host(Instant::now()))
    }
    /// Lets later work on `stream` wait for a mark of any device.
    fn wait(&self, _stream: RawStream, mark: &Mark) -> Result<()> {
        mark.synchronize()
    }
    /// Runs `body` once, with a stream on which what is queued is written down instead of run.
    fn capture(&self, _body: &mut dyn FnMut(RawStream) -> Result<()>) -> Result<Box<dyn Replay>> {
        Err(crate::error::Error::CaptureUnsupported { reason: "graphs are of CUDA devices alone" })
    }
    fn synchronize(&self) -> Result<()>;
    fn synchronize_stream(&self, stream: RawStream) -> Result<()>;
    /// Runs `before` and `work` in turns, and gives the time of each `work`.
    fn time_each(
        &self,
        stream: RawStream,
        count: u32,
        before: &mut dyn FnMut() -> Result<()>,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Duration>>;
    /// What the device counted in the launches since `reset_counters`, where it counts.
    fn counters(&self) -> Vec<(&'static str, u64)> {
        Vec::new()
    }
    fn reset_counters(&self) {}
}
