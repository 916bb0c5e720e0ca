//! Memory by its address, for those who keep account of it themselves.

use crate::context::Context;
use crate::error::{Error, Result, call};
use crate::stream::Stream;
use crate::sys::CUdeviceptr;
use std::ptr;

impl Context {
    /// Allocates `bytes > 0`, aligned to 256 bytes. Waits for the device; [`Stream::allocate`] does not.
    ///
    /// # Errors
    /// [`Error::Call`]: `CUDA_ERROR_OUT_OF_MEMORY`, or `CUDA_ERROR_INVALID_VALUE` for no bytes.
    pub fn allocate(&self, bytes: usize) -> Result<CUdeviceptr> {
        let cuda = self.enter()?;
        let mut address = 0;
        // SAFETY: the pointer is valid for the call.
        unsafe { call!(cuda.cuMemAlloc(&mut address, bytes)) }?;
        Ok(address)
    }

    /// Frees what [`Context::allocate`] gave.
    ///
    /// # Safety
    /// It gave this address, nobody has freed it, and nobody uses it from now on.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub unsafe fn free(&self, address: CUdeviceptr) -> Result<()> {
        let cuda = self.enter()?;
        // SAFETY: the caller vouches for the address.
        unsafe { call!(cuda.cuMemFree(address)) }
    }

    /// Copies to the device, after all work on the default stream and on those that are ordered with it; the bytes are there when this
    /// returns.
    ///
    /// # Safety
    /// There are as many bytes of device memory at `to`, which nobody else uses meanwhile.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub unsafe fn write(&self, to: CUdeviceptr, from: &[u8]) -> Result<()> {
        let cuda = self.enter()?;
        // SAFETY: the source is valid; the caller vouches for the destination.
        unsafe { call!(cuda.cuMemcpyHtoD(to, from.as_ptr().cast(), from.len())) }?;
        // From pageable memory the call may return while the last piece is still on its way.
        // SAFETY: null is the default stream.
        unsafe { call!(cuda.cuStreamSynchronize(ptr::null_mut())) }
    }

    /// Copies from the device, after all work on the default stream and on those that are ordered with it.
    ///
    /// # Safety
    /// There are as many bytes of device memory at `from`, which nobody writes meanwhile.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub unsafe fn read(&self, from: CUdeviceptr, to: &mut [u8]) -> Result<()> {
        let cuda = self.enter()?;
        // SAFETY: the destination is valid; the caller vouches for the source.
        unsafe { call!(cuda.cuMemcpyDtoH(to.as_mut_ptr().cast(), from, to.len())) }
    }
}

impl Stream {
    /// Allocates `bytes > 0` from the device's default pool, for work that is queued on this stream from now on.
    ///
    /// # Errors
    /// [`Error::Call`]: `CUDA_ERROR_OUT_OF_MEMORY`, `CUDA_ERROR_NOT_SUPPORTED` where there are no pools.
    pub fn allocate(&self, bytes: usize) -> Result<CUdeviceptr> {
        let cuda = self.context().enter()?;
        let mut address = 0;
        // SAFETY: the pointer is valid for the call, the stream is live.
        unsafe { call!(cuda.cuMemAllocAsync(&mut address, bytes, self.as_raw())) }?;
        Ok(address)
    }

    /// Frees what [`Stream::allocate`] or [`MemoryPool::allocate`](crate::MemoryPool::allocate) gave, once the work on this stream is
    /// done.
    ///
    /// # Safety
    /// One of them gave this address, nobody has freed it, and only work that is queued on this stream already, or that this stream waits
    /// for, uses it.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub unsafe fn free(&self, address: CUdeviceptr) -> Result<()> {
        let cuda = self.context().enter()?;
        // SAFETY: the caller vouches for the address.
        unsafe { call!(cuda.cuMemFreeAsync(address, self.as_raw())) }
    }

    /// Copies to the device in the order of this stream; may return before it is done.
    ///
    /// # Safety
    /// There are as many bytes of device memory at `to`, and `from` stays as it is until the copy is done.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub unsafe fn write(&self, to: CUdeviceptr, from: &[u8]) -> Result<()> {
        let cuda = self.context().enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { call!(cuda.cuMemcpyHtoDAsync(to, from.as_ptr().cast(), from.len(), self.as_raw())) }
    }

    /// Copies from the device in the order of this stream; may return before it is done.
    ///
    /// # Safety
    /// There are as many bytes of device memory at `from`, and nobody uses `to` until the copy is done.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub unsafe fn read(&self, from: CUdeviceptr, to: &mut [u8]) -> Result<()> {
        let cuda = self.context().enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { call!(cuda.cuMemcpyDtoHAsync(to.as_mut_ptr().cast(), from, to.len(), self.as_raw())) }
    }

    /// Copies `bytes` within the device in the order of this stream; may return before it is done.
    ///
    /// # Safety
    /// There are as many bytes of device memory at both addresses, and they do not overlap.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub unsafe fn copy(&self, to: CUdeviceptr, from: CUdeviceptr, bytes: usize) -> Result<()> {
        let cuda = self.context().enter()?;
        // SAFETY: the caller vouches for both.
        unsafe { call!(cuda.cuMemcpyDtoDAsync(to, from, bytes, self.as_raw())) }
    }

    /// Copies `bytes` from the memory of another context in the order of this stream; may return before it is done. Peer access is
    /// not needed, but makes it faster.
    ///
    /// # Safety
    /// There are as many bytes of memory of this stream's context at `to` and of `from_context` at `from`.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub unsafe fn copy_peer(
        &self,
        to: CUdeviceptr,
        from_context: &Context,
        from: CUdeviceptr,
        bytes: usize,
    ) -> Result<()> {
        let cuda = self.context().enter()?;
        let (here, there) = (self.context().as_raw(), from_context.as_raw());
        // SAFETY: the contexts are retained; the caller vouches for the addresses.
        unsafe { call!(cuda.cuMemcpyPeerAsync(to, here, from, there, bytes, self.as_raw())) }
    }

    /// Sets `bytes` bytes to `byte` in the order of this stream; may return before it is done.
    ///
    /// # Safety
    /// There are as many bytes of device memory at `to`.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub unsafe fn fill(&self, to: CUdeviceptr, byte: u8, bytes: usize) -> Result<()> {
        let cuda = self.context().enter()?;
        // SAFETY: the caller vouches for the destination.
        unsafe { call!(cuda.cuMemsetD8Async(to, byte, bytes, self.as_raw())) }
    }
}

/// Bytes of `elements` elements of `T`.
pub(super) fn bytes_of<T>(elements: usize) -> Result<usize> {
    let bytes = size_of::<T>();
    elements.checked_mul(bytes).ok_or(Error::TooLarge { elements, bytes })
}
