//! Primary contexts, and which one is current.

use crate::device::Device;
use crate::driver::{Driver, load};
use crate::error::{Error, Result, call, log_failure};
use crate::stream::Stream;
use crate::sys::{CUcontext, CUresult};
use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr;
use std::sync::Arc;

/// The primary context of a GPU: the one that the CUDA runtime, PyTorch and every other framework of the process share.
///
/// It is retained until the last clone is gone, and never made current for longer than one call of this crate: see [`enter`].
/// Streams, events, modules and buffers hold a clone of theirs. All of them may be used from every thread.
///
/// [`enter`]: Context::enter
#[derive(Clone)]
pub struct Context {
    retained: Arc<Retained>,
}

struct Retained {
    device: Device,
    raw: CUcontext,
}

// SAFETY: the handle may be used from every thread; the driver API is thread-safe.
unsafe impl Send for Retained {}
// SAFETY: as above.
unsafe impl Sync for Retained {}

impl Context {
    /// Retains the primary context of `device`. The context that is current on this thread stays so.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn new(device: Device) -> Result<Context> {
        let mut raw = ptr::null_mut();
        let driver = device.driver();
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(driver.cuDevicePrimaryCtxRetain(&mut raw, device.as_raw())) }?;
        Ok(Context { retained: Arc::new(Retained { device, raw }) })
    }

    /// The GPU.
    pub fn device(&self) -> Device {
        self.retained.device
    }

    /// The handle.
    pub fn as_raw(&self) -> CUcontext {
        self.retained.raw
    }

    /// Makes this context current on this thread until the result is dropped; then the one is current again that was before. For
    /// calls of the driver through the table, which the result gives.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn enter(&self) -> Result<Entered<'_>> {
        let driver = self.retained.device.driver();
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { call!(driver.cuCtxPushCurrent(self.as_raw())) }?;
        Ok(Entered { driver, of: PhantomData })
    }

    /// The handle of the context that is current on this thread, null for none.
    ///
    /// # Errors
    /// Those of [`load`], or [`Error::Call`].
    pub fn current() -> Result<CUcontext> {
        let driver = load()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(driver.cuCtxGetCurrent(&mut raw)) }?;
        Ok(raw)
    }

    /// Waits until everything on this context is done, also the work of others, and reports what failed meanwhile.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn synchronize(&self) -> Result<()> {
        let cuda = self.enter()?;
        // SAFETY: a context is current.
        unsafe { call!(cuda.cuCtxSynchronize()) }
    }

    /// Bytes of device memory that are free, and all.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn memory_info(&self) -> Result<(usize, usize)> {
        let cuda = self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: both pointers are valid for the call.
        unsafe { call!(cuda.cuMemGetInfo(&mut free, &mut total)) }?;
        Ok((free, total))
    }

    /// The priorities that streams may have: the number of the greatest, which is served first, and that of the least.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn stream_priorities(&self) -> Result<(i32, i32)> {
        let cuda = self.enter()?;
        let (mut least, mut greatest) = (0, 0);
        // SAFETY: both pointers are valid for the call.
        unsafe { call!(cuda.cuCtxGetStreamPriorityRange(&mut least, &mut greatest)) }?;
        Ok((greatest, least))
    }

    /// Lets kernels of this context reach the memory of `peer`. That it is allowed already is no error.
    ///
    /// # Errors
    /// [`Error::Call`]: `CUDA_ERROR_PEER_ACCESS_UNSUPPORTED` where [`Device::can_access_peer`] says no.
    pub fn enable_peer_access(&self, peer: &Context) -> Result<()> {
        let cuda = self.enter()?;
        // SAFETY: both contexts are retained; 0 is the only value that the flags may have.
        match unsafe { call!(cuda.cuCtxEnablePeerAccess(peer.as_raw(), 0)) } {
            Err(error) if error.result() == Some(CUresult::PEER_ACCESS_ALREADY_ENABLED) => Ok(()),
            result => result,
        }
    }

    /// Refuses a stream of another context.
    pub(crate) fn check_stream(&self, stream: &Stream) -> Result<()> {
        if stream.context() == self { Ok(()) } else { Err(Error::OtherContext { what: "the stream" }) }
    }
}

impl PartialEq for Context {
    fn eq(&self, other: &Context) -> bool {
        self.as_raw() == other.as_raw()
    }
}

impl Eq for Context {}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").field("device", &self.device().as_raw()).field("raw", &self.as_raw()).finish()
    }
}

impl Drop for Retained {
    fn drop(&mut self) {
        let driver = self.device.driver();
        // SAFETY: the context was retained once for this.
        log_failure("context is not released", unsafe {
            call!(driver.cuDevicePrimaryCtxRelease(self.device.as_raw()))
        });
    }
}

/// A context is current on this thread; dropping this restores what was before. Dereferences to the functions of the driver.
#[derive(Debug)]
pub struct Entered<'a> {
    driver: &'static Driver,
    /// Neither outlives the context nor goes to another thread.
    of: PhantomData<(&'a Context, *const ())>,
}

impl Deref for Entered<'_> {
    type Target = Driver;

    fn deref(&self) -> &Driver {
        self.driver
    }
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        let driver = self.driver;
        // SAFETY: the context was pushed on this thread: the type cannot leave it.
        log_failure("context is not popped", unsafe { call!(driver.cuCtxPopCurrent(&mut popped)) });
    }
}
