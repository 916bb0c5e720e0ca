//! Streams.

use crate::context::Context;
use crate::error::{Error, Result, call, failed, log_failure};
use crate::event::Event;
use crate::sys::{CU_STREAM_LEGACY, CU_STREAM_NON_BLOCKING, CUresult, CUstream};
use std::ffi::c_uint;
use std::ptr;
use std::sync::Arc;

/// How a stream behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StreamFlags(c_uint);

impl StreamFlags {
    /// Ordered with the legacy default stream: each waits for the other's earlier work.
    pub const DEFAULT: StreamFlags = StreamFlags(0);
    /// Ordered with nothing but what events order it with.
    pub const NON_BLOCKING: StreamFlags = StreamFlags(CU_STREAM_NON_BLOCKING);
}

/// A queue of work. Work on one stream runs in order. Clones are the same stream, which is destroyed with the last of them: what is
/// queued runs to its end.
#[derive(Clone)]
pub struct Stream {
    context: Context,
    raw: CUstream,
    /// `None` for a stream of somebody else.
    owned: Option<Arc<Owned>>,
}

struct Owned {
    context: Context,
    raw: CUstream,
}

// SAFETY: the handle may be used from every thread; the driver API is thread-safe.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}
// SAFETY: as above.
unsafe impl Send for Owned {}
// SAFETY: as above.
unsafe impl Sync for Owned {}

impl Stream {
    /// Creates a stream, of the default priority (0) without one.
    ///
    /// # Errors
    /// [`Error::Priority`] for a priority out of [`Context::stream_priorities`], which the driver would change on the quiet, or
    /// [`Error::Call`].
    pub fn new(context: &Context, flags: StreamFlags, priority: Option<i32>) -> Result<Stream> {
        if let Some(found) = priority {
            let (greatest, least) = context.stream_priorities()?;
            if !(greatest..=least).contains(&found) {
                return Err(Error::Priority { found, greatest, least });
            }
        }
        let cuda = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(cuda.cuStreamCreateWithPriority(&mut raw, flags.0, priority.unwrap_or(0))) }?;
        // SAFETY: it was created a line above.
        Ok(unsafe { Stream::from_raw_owned(context, raw) })
    }

    /// The legacy default stream.
    pub fn legacy(context: &Context) -> Stream {
        Stream { context: context.clone(), raw: ptr::null_mut(), owned: None }
    }

    /// A stream of somebody else, who destroys it.
    ///
    /// # Safety
    /// `raw` is a stream of `context` (or null for the legacy default stream), and outlives the result and its clones.
    pub unsafe fn from_raw(context: &Context, raw: CUstream) -> Stream {
        Stream { context: context.clone(), raw, owned: None }
    }

    /// A stream that is destroyed with the last clone of the result.
    ///
    /// # Safety
    /// `raw` is a stream of `context`, and nobody else destroys it.
    pub unsafe fn from_raw_owned(context: &Context, raw: CUstream) -> Stream {
        Stream { context: context.clone(), raw, owned: Some(Arc::new(Owned { context: context.clone(), raw })) }
    }

    /// The handle, which nobody destroys from now on if this is the only clone.
    pub fn into_raw(self) -> CUstream {
        if let Some(Ok(owned)) = self.owned.map(Arc::try_unwrap) {
            // What it holds beside the handle is the context.
            let owned = std::mem::ManuallyDrop::new(owned);
            // SAFETY: `owned` is never dropped, so this is the only copy of the context that is.
            drop(unsafe { ptr::read(&owned.context) });
        }
        self.raw
    }

    /// The handle.
    pub fn as_raw(&self) -> CUstream {
        self.raw
    }

    /// The context of this stream.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Whether this is the legacy default stream.
    pub fn is_legacy(&self) -> bool {
        self.raw.is_null() || self.raw.addr() == CU_STREAM_LEGACY
    }

    /// Waits until the work on this stream is done, and reports what failed meanwhile.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn synchronize(&self) -> Result<()> {
        let cuda = self.context.enter()?;
        // SAFETY: the stream is live.
        unsafe { call!(cuda.cuStreamSynchronize(self.raw)) }
    }

    /// Whether the work on this stream is done.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn is_done(&self) -> Result<bool> {
        let cuda = self.context.enter()?;
        // SAFETY: the stream is live.
        match unsafe { (cuda.cuStreamQuery)(self.raw) } {
            CUresult::SUCCESS => Ok(true),
            CUresult::NOT_READY => Ok(false),
            result => Err(failed("cuStreamQuery", result)),
        }
    }

    /// Lets what is queued from now on wait until what `event` recorded is done. An event that was never recorded holds up nothing.
    /// The event may be one of another context.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn wait_event(&self, event: &Event) -> Result<()> {
        let cuda = self.context.enter()?;
        // SAFETY: stream and event are live; 0 is no flag.
        unsafe { call!(cuda.cuStreamWaitEvent(self.raw, event.as_raw(), 0)) }
    }
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stream").field("context", &self.context).field("raw", &self.raw).finish()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|cuda| {
            // SAFETY: the stream is this one's own, and nobody has it any more.
            unsafe { call!(cuda.cuStreamDestroy(self.raw)) }
        });
        log_failure("stream is not destroyed", destroyed);
    }
}
