//! Memory pools.

use crate::context::Context;
use crate::device::Device;
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Result, call, log_failure};
use crate::stream::Stream;
use crate::sys::{
    CU_MEM_ACCESS_FLAGS_PROT_READWRITE, CU_MEM_ALLOCATION_TYPE_PINNED, CU_MEM_HANDLE_TYPE_NONE,
    CU_MEM_LOCATION_TYPE_DEVICE, CUdeviceptr, CUmemAccessDesc, CUmemLocation, CUmemPool_attribute, CUmemPoolProps,
    CUmemoryPool,
};
use std::ptr;

/// A pool that memory is allocated from in the order of streams.
///
/// What is freed stays in the pool. By default it goes back to the driver at the next synchronisation; a release threshold keeps it.
#[derive(Debug)]
pub struct MemoryPool {
    context: Context,
    raw: CUmemoryPool,
}

// SAFETY: the handle may be used from every thread; the driver API is thread-safe.
unsafe impl Send for MemoryPool {}
// SAFETY: as above.
unsafe impl Sync for MemoryPool {}

impl MemoryPool {
    /// Creates a pool of the context's GPU.
    ///
    /// # Errors
    /// [`Error::Call`]: `CUDA_ERROR_NOT_SUPPORTED` where there are no pools
    /// ([`DeviceAttribute::MEMORY_POOLS_SUPPORTED`](crate::DeviceAttribute::MEMORY_POOLS_SUPPORTED)).
    pub fn new(context: &Context) -> Result<MemoryPool> {
        let props = CUmemPoolProps {
            alloc_type: CU_MEM_ALLOCATION_TYPE_PINNED,
            handle_types: CU_MEM_HANDLE_TYPE_NONE,
            location: location(context.device()),
            win32_security_attributes: ptr::null_mut(),
            max_size: 0,
            usage: 0,
            reserved: [0; 54],
        };
        let cuda = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: both pointers are valid for the call.
        unsafe { call!(cuda.cuMemPoolCreate(&mut raw, &props)) }?;
        Ok(MemoryPool { context: context.clone(), raw })
    }

    /// Keeps up to `bytes` of freed memory; `u64::MAX` keeps everything until [`MemoryPool::trim_to`].
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn set_release_threshold(&self, mut bytes: u64) -> Result<()> {
        let cuda = self.context.enter()?;
        let (attribute, value) = (CUmemPool_attribute::RELEASE_THRESHOLD, ptr::from_mut(&mut bytes).cast());
        // SAFETY: the pool is live; the attribute is a 64-bit unsigned number, by the driver API's documentation.
        unsafe { call!(cuda.cuMemPoolSetAttribute(self.raw, attribute, value)) }
    }

    /// Bytes that the pool holds, allocated or kept.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn reserved_bytes(&self) -> Result<u64> {
        self.attribute(CUmemPool_attribute::RESERVED_MEM_CURRENT)
    }

    /// Bytes that are allocated.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn used_bytes(&self) -> Result<u64> {
        self.attribute(CUmemPool_attribute::USED_MEM_CURRENT)
    }

    fn attribute(&self, attribute: CUmemPool_attribute) -> Result<u64> {
        let cuda = self.context.enter()?;
        let mut value = 0u64;
        // SAFETY: the pool is live; these attributes are 64-bit unsigned numbers, by the driver API's documentation.
        unsafe { call!(cuda.cuMemPoolGetAttribute(self.raw, attribute, ptr::from_mut(&mut value).cast())) }?;
        Ok(value)
    }

    /// Gives kept memory back to the driver, down to `bytes`. What was freed behind work that is not done yet stays.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn trim_to(&self, bytes: usize) -> Result<()> {
        let cuda = self.context.enter()?;
        // SAFETY: the pool is live.
        unsafe { call!(cuda.cuMemPoolTrimTo(self.raw, bytes)) }
    }

    /// Lets kernels and copies of another GPU reach this pool's memory, what is allocated already too.
    ///
    /// # Errors
    /// [`Error::Call`] where [`Device::can_access_peer`] says no.
    pub fn allow_access(&self, device: Device) -> Result<()> {
        let access = CUmemAccessDesc { location: location(device), flags: CU_MEM_ACCESS_FLAGS_PROT_READWRITE };
        let cuda = self.context.enter()?;
        // SAFETY: the pool is live; one description is valid for the call.
        unsafe { call!(cuda.cuMemPoolSetAccess(self.raw, &access, 1)) }
    }

    /// Allocates `bytes > 0`, aligned to 256 bytes, for work that is queued on `stream` from now on. [`Stream::free`] frees it.
    ///
    /// # Errors
    /// [`Error::OtherContext`] for a stream of another context, or [`Error::Call`] with `CUDA_ERROR_OUT_OF_MEMORY`.
    pub fn allocate(&self, bytes: usize, stream: &Stream) -> Result<CUdeviceptr> {
        self.context.check_stream(stream)?;
        let cuda = self.context.enter()?;
        let mut address = 0;
        // SAFETY: the pointer is valid for the call, pool and stream are live and of one context.
        unsafe { call!(cuda.cuMemAllocFromPoolAsync(&mut address, bytes, self.raw, stream.as_raw())) }?;
        Ok(address)
    }

    /// The context of this pool.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// The handle.
    pub fn as_raw(&self) -> CUmemoryPool {
        self.raw
    }
}

fn location(device: Device) -> CUmemLocation {
    CUmemLocation { kind: CU_MEM_LOCATION_TYPE_DEVICE, id: device.as_raw() }
}

impl Drop for MemoryPool {
    fn drop(&mut self) {
        let destroyed = self.context.enter().and_then(|cuda| {
            // SAFETY: the pool is this one's own. The driver destroys it once the last allocation is freed.
            unsafe { call!(cuda.cuMemPoolDestroy(self.raw)) }
        });
        log_failure("memory pool is not destroyed", destroyed);
    }
}
