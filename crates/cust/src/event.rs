//! Events: points in the work of a stream.

use crate::context::Context;
use crate::error::{Error, Result, call, failed, log_failure};
use crate::stream::Stream;
use crate::sys::{CU_EVENT_BLOCKING_SYNC, CU_EVENT_DISABLE_TIMING, CUevent, CUresult};
use std::ffi::c_uint;
use std::ops::BitOr;
use std::ptr;
use std::time::Duration;

/// How an event behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventFlags(c_uint);

impl EventFlags {
    /// Takes the time; who waits for it spins.
    pub const DEFAULT: EventFlags = EventFlags(0);
    /// Who waits for it sleeps.
    pub const BLOCKING_SYNC: EventFlags = EventFlags(CU_EVENT_BLOCKING_SYNC);
    /// Takes no time, and costs less.
    pub const DISABLE_TIMING: EventFlags = EventFlags(CU_EVENT_DISABLE_TIMING);
}

impl BitOr for EventFlags {
    type Output = EventFlags;

    fn bitor(self, other: EventFlags) -> EventFlags {
        EventFlags(self.0 | other.0)
    }
}

/// A point in the work of a stream, that others can wait for and times can be taken at.
#[derive(Debug)]
pub struct Event {
    context: Context,
    raw: CUevent,
}

// SAFETY: the handle may be used from every thread; the driver API is thread-safe.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// Creates an event that has recorded nothing yet.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn new(context: &Context, flags: EventFlags) -> Result<Event> {
        let cuda = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(cuda.cuEventCreate(&mut raw, flags.0)) }?;
        Ok(Event { context: context.clone(), raw })
    }

    /// Stands from now on for all that is queued on `stream` so far.
    ///
    /// # Errors
    /// [`Error::OtherContext`] for a stream of another context, or [`Error::Call`].
    pub fn record(&self, stream: &Stream) -> Result<()> {
        self.context.check_stream(stream)?;
        let cuda = self.context.enter()?;
        // SAFETY: event and stream are live and of one context.
        unsafe { call!(cuda.cuEventRecord(self.raw, stream.as_raw())) }
    }

    /// Waits until what it recorded is done.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn synchronize(&self) -> Result<()> {
        let cuda = self.context.enter()?;
        // SAFETY: the event is live.
        unsafe { call!(cuda.cuEventSynchronize(self.raw)) }
    }

    /// Whether what it recorded is done; so is what was never recorded.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn is_done(&self) -> Result<bool> {
        let cuda = self.context.enter()?;
        // SAFETY: the event is live.
        match unsafe { (cuda.cuEventQuery)(self.raw) } {
            CUresult::SUCCESS => Ok(true),
            CUresult::NOT_READY => Ok(false),
            result => Err(failed("cuEventQuery", result)),
        }
    }

    /// The time from `earlier` to this event, with a resolution of about half a microsecond. Both are recorded and done.
    ///
    /// # Errors
    /// [`Error::EventOrder`] when `earlier` is the later one, or [`Error::Call`]: `CUDA_ERROR_NOT_READY` before this event is done,
    /// `CUDA_ERROR_INVALID_HANDLE` for an event that takes no time or was not recorded.
    pub fn elapsed_since(&self, earlier: &Event) -> Result<Duration> {
        let cuda = self.context.enter()?;
        let mut milliseconds = 0f32;
        // SAFETY: the pointer is valid for the call, both events are live.
        unsafe { call!(cuda.cuEventElapsedTime(&mut milliseconds, earlier.raw, self.raw)) }?;
        Duration::try_from_secs_f64(f64::from(milliseconds) / 1e3).map_err(|_| Error::EventOrder { milliseconds })
    }

    /// The handle.
    pub fn as_raw(&self) -> CUevent {
        self.raw
    }

    /// The context of this event.
    pub fn context(&self) -> &Context {
        &self.context
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|cuda| {
            // SAFETY: the event is this one's own; the driver keeps it until its work is done.
            unsafe { call!(cuda.cuEventDestroy(self.raw)) }
        });
        log_failure("event is not destroyed", destroyed);
    }
}
