//! Graphs: work that is captured once and replayed with one call.

use crate::context::Context;
use crate::error::{Error, Result, call, log_failure};
use crate::stream::Stream;
use crate::sys::{CUgraph, CUgraphExec, CUstreamCaptureMode, CUstreamCaptureStatus};
use std::ptr;
use std::sync::{Mutex, PoisonError};

/// Which calls are refused while a stream is captured.
pub type CaptureMode = CUstreamCaptureMode;

/// Whether a stream is captured.
pub type CaptureStatus = CUstreamCaptureStatus;

impl Stream {
    /// Starts a capture: what is queued on this stream from now on is not run but written down, up to [`Stream::end_capture`].
    ///
    /// Loading modules, plain allocation and waiting are no work that can be written down: such calls fail while a capture is under
    /// way (which of them, and in which thread, is what `mode` says), and spoil it.
    ///
    /// # Errors
    /// [`Error::CaptureOfDefaultStream`], or [`Error::Call`].
    pub fn begin_capture(&self, mode: CaptureMode) -> Result<()> {
        if self.is_legacy() {
            return Err(Error::CaptureOfDefaultStream);
        }
        let cuda = self.context().enter()?;
        // SAFETY: the stream is live.
        unsafe { call!(cuda.cuStreamBeginCapture(self.as_raw(), mode)) }
    }

    /// Ends the capture, also one that is spoilt, and gives what was written down.
    ///
    /// # Errors
    /// [`Error::Call`]: `CUDA_ERROR_STREAM_CAPTURE_INVALIDATED` for a spoilt capture, `CUDA_ERROR_STREAM_CAPTURE_UNJOINED` when other
    /// streams joined it and were not joined back, `CUDA_ERROR_ILLEGAL_STATE` where there is none.
    pub fn end_capture(&self) -> Result<Graph> {
        let cuda = self.context().enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the stream is live, the pointer is valid for the call.
        unsafe { call!(cuda.cuStreamEndCapture(self.as_raw(), &mut raw)) }?;
        Ok(Graph { context: self.context().clone(), raw })
    }

    /// Whether this stream is captured, by whomever.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn capture_status(&self) -> Result<CaptureStatus> {
        let cuda = self.context().enter()?;
        let mut status = CaptureStatus::NONE;
        // SAFETY: the stream is live, the pointer is valid for the call.
        unsafe { call!(cuda.cuStreamIsCapturing(self.as_raw(), &mut status)) }?;
        Ok(status)
    }

    /// Captures what `body` queues on this stream. The capture has ended when this returns, also by a panic.
    ///
    /// # Errors
    /// The error of `body`, or those of [`Stream::begin_capture`] and [`Stream::end_capture`].
    pub fn capture<E: From<Error>>(
        &self,
        mode: CaptureMode,
        body: impl FnOnce() -> std::result::Result<(), E>,
    ) -> std::result::Result<Graph, E> {
        self.begin_capture(mode)?;
        let capture = Capture(self);
        // A failure of `body` may have spoilt the capture; it is the reason, and what ending says of it is not.
        body()?;
        std::mem::forget(capture);
        Ok(self.end_capture()?)
    }
}

/// Ends the capture of this stream and throws away what was written down.
struct Capture<'a>(&'a Stream);

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.0.end_capture() {
            tracing::debug!(%error, "a capture that failed has ended");
        }
    }
}

/// Work that was written down.
#[derive(Debug)]
pub struct Graph {
    context: Context,
    raw: CUgraph,
}

// SAFETY: this is the only owner of the handle, which no thread is bound to; what changes the graph takes it exclusively.
unsafe impl Send for Graph {}

impl Graph {
    /// Number of nodes: kernels, copies, allocations, and so on.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn node_count(&self) -> Result<usize> {
        let cuda = self.context.enter()?;
        let mut count = 0;
        // SAFETY: null asks for the number alone, and the pointer to it is valid for the call.
        unsafe { call!(cuda.cuGraphGetNodes(self.raw, ptr::null_mut(), &mut count)) }?;
        Ok(count)
    }

    /// Makes a graph that can be launched, as often as wanted.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn instantiate(&self) -> Result<GraphExec> {
        let cuda = self.context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid for the call; 0 is no flag.
        unsafe { call!(cuda.cuGraphInstantiateWithFlags(&mut raw, self.raw, 0)) }?;
        Ok(GraphExec { context: self.context.clone(), raw, launching: Mutex::default() })
    }

    /// The handle.
    pub fn as_raw(&self) -> CUgraph {
        self.raw
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|cuda| {
            // SAFETY: the graph is this one's own; executable graphs made of it are independent of it.
            unsafe { call!(cuda.cuGraphDestroy(self.raw)) }
        });
        log_failure("graph is not destroyed", destroyed);
    }
}

/// A graph that can be launched.
#[derive(Debug)]
pub struct GraphExec {
    context: Context,
    raw: CUgraphExec,
    /// Graphs are not synchronised by the driver ("Graph thread safety" in its manual).
    launching: Mutex<()>,
}

// SAFETY: no thread is bound to the handle.
unsafe impl Send for GraphExec {}
// SAFETY: one thread at a time uses the handle, under the lock.
unsafe impl Sync for GraphExec {}

impl GraphExec {
    /// Queues the whole graph on `stream`, which need not be the one that was captured.
    ///
    /// # Safety
    /// Whatever the captured work uses is still there and nobody else writes it meanwhile: modules, and memory at the captured
    /// addresses. What the launches' own contracts ask for holds again.
    ///
    /// # Errors
    /// [`Error::OtherContext`] for a stream of another context, or [`Error::Call`].
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        self.context.check_stream(stream)?;
        let _launching = self.launching.lock().unwrap_or_else(PoisonError::into_inner);
        let cuda = self.context.enter()?;
        // SAFETY: graph and stream are live and of one context; the caller vouches for the rest.
        unsafe { call!(cuda.cuGraphLaunch(self.raw, stream.as_raw())) }
    }

    /// The handle.
    pub fn as_raw(&self) -> CUgraphExec {
        self.raw
    }
}

impl Drop for GraphExec {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|cuda| {
            // SAFETY: the graph is this one's own; a launch that still runs runs to its end.
            unsafe { call!(cuda.cuGraphExecDestroy(self.raw)) }
        });
        log_failure("executable graph is not destroyed", destroyed);
    }
}
