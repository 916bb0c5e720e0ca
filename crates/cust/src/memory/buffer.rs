//! Buffers: typed device memory that is freed on drop.

use super::address::bytes_of;
use super::pool::MemoryPool;
use crate::context::Context;
use crate::error::{Error, Result, log_failure};
use crate::stream::Stream;
use crate::sys::CUdeviceptr;
use bytemuck::{Pod, Zeroable};
use std::marker::PhantomData;

/// An address in device memory of values of `T`, as kernels take it.
#[repr(transparent)]
pub struct DevicePointer<T> {
    address: CUdeviceptr,
    of: PhantomData<*mut T>,
}

impl<T> DevicePointer<T> {
    /// The address.
    pub fn as_raw(self) -> CUdeviceptr {
        self.address
    }
}

impl<T> Clone for DevicePointer<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DevicePointer<T> {}

impl<T> std::fmt::Debug for DevicePointer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#x}", self.address)
    }
}

// SAFETY: a number, of which 0 is the address of nothing.
unsafe impl<T> Zeroable for DevicePointer<T> {}
// SAFETY: a transparent number without padding, of which every value may be held: nothing follows it on the host.
unsafe impl<T: 'static> Pod for DevicePointer<T> {}
// SAFETY: a number.
unsafe impl<T> Send for DevicePointer<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for DevicePointer<T> {}

/// `len` values of `T` in device memory, freed on drop.
///
/// A buffer that was allocated on a stream is freed in the order of that stream, and all its methods work in that order; any other
/// works on the default stream. Kernels that use it on another stream are the caller's to order with it: launching is unsafe.
#[derive(Debug)]
pub struct DeviceBuffer<T> {
    address: CUdeviceptr,
    len: usize,
    stream: Stream,
    /// Whether it was allocated in the order of `stream`.
    stream_ordered: bool,
    of: PhantomData<T>,
}

impl<T: Pod> DeviceBuffer<T> {
    /// Memory whose content is arbitrary. Allocating it waits for the device.
    ///
    /// # Errors
    /// [`Error::TooLarge`], or [`Error::Call`] with `CUDA_ERROR_OUT_OF_MEMORY`.
    pub fn uninitialized(context: &Context, len: usize) -> Result<DeviceBuffer<T>> {
        DeviceBuffer::new(Stream::legacy(context), len, false, |bytes, _| context.allocate(bytes))
    }

    /// Memory whose content is arbitrary, from the device's default pool, for work that is queued on `stream` from now on.
    ///
    /// # Errors
    /// [`Error::TooLarge`], or [`Error::Call`]: `CUDA_ERROR_OUT_OF_MEMORY`, `CUDA_ERROR_NOT_SUPPORTED` where there are no pools.
    pub fn uninitialized_async(stream: &Stream, len: usize) -> Result<DeviceBuffer<T>> {
        DeviceBuffer::new(stream.clone(), len, true, |bytes, stream| stream.allocate(bytes))
    }

    /// As [`DeviceBuffer::uninitialized_async`], from this pool.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OtherContext`], or [`Error::Call`] with `CUDA_ERROR_OUT_OF_MEMORY`.
    pub fn uninitialized_from_pool(pool: &MemoryPool, stream: &Stream, len: usize) -> Result<DeviceBuffer<T>> {
        DeviceBuffer::new(stream.clone(), len, true, |bytes, stream| pool.allocate(bytes, stream))
    }

    /// Zeros.
    ///
    /// # Errors
    /// Those of [`DeviceBuffer::uninitialized`].
    pub fn zeroed(context: &Context, len: usize) -> Result<DeviceBuffer<T>> {
        let mut buffer = DeviceBuffer::uninitialized(context, len)?;
        buffer.fill_bytes(0)?;
        Ok(buffer)
    }

    /// A copy of `data`.
    ///
    /// # Errors
    /// Those of [`DeviceBuffer::uninitialized`].
    pub fn from_slice(context: &Context, data: &[T]) -> Result<DeviceBuffer<T>> {
        let mut buffer = DeviceBuffer::uninitialized(context, data.len())?;
        buffer.copy_from(data)?;
        Ok(buffer)
    }

    fn new(
        stream: Stream,
        len: usize,
        stream_ordered: bool,
        allocate: impl FnOnce(usize, &Stream) -> Result<CUdeviceptr>,
    ) -> Result<DeviceBuffer<T>> {
        let bytes = bytes_of::<T>(len)?;
        // The driver has no allocation of nothing.
        let address = if bytes == 0 { 0 } else { allocate(bytes, &stream)? };
        Ok(DeviceBuffer { address, len, stream, stream_ordered, of: PhantomData })
    }

    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The address, for kernels. 0 where there is no memory.
    pub fn as_device_ptr(&self) -> DevicePointer<T> {
        DevicePointer { address: self.address, of: PhantomData }
    }

    /// The context of this memory.
    pub fn context(&self) -> &Context {
        self.stream.context()
    }

    /// Sets every byte, and returns when that is done.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        if self.is_nothing() {
            return Ok(());
        }
        // SAFETY: the memory is this buffer's own.
        unsafe { self.stream.fill(self.address, byte, self.bytes()) }?;
        self.stream.synchronize()
    }

    /// Copies from the host, and returns when that is done.
    ///
    /// # Errors
    /// [`Error::CopyLength`], or [`Error::Call`].
    pub fn copy_from(&mut self, data: &[T]) -> Result<()> {
        check_length(data.len(), self.len)?;
        if self.is_nothing() {
            return Ok(());
        }
        // SAFETY: the memory is this buffer's own, and the data is there until the copy is done, two lines below.
        unsafe { self.stream.write(self.address, bytemuck::cast_slice(data)) }?;
        self.stream.synchronize()
    }

    /// Copies to the host, and returns when that is done.
    ///
    /// # Errors
    /// [`Error::CopyLength`], or [`Error::Call`].
    pub fn copy_to(&self, data: &mut [T]) -> Result<()> {
        check_length(self.len, data.len())?;
        if self.is_nothing() {
            return Ok(());
        }
        // SAFETY: the memory is this buffer's own, and nobody has the data until the copy is done, two lines below.
        unsafe { self.stream.read(self.address, bytemuck::cast_slice_mut(data)) }?;
        self.stream.synchronize()
    }

    /// The values.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn to_vec(&self) -> Result<Vec<T>> {
        let mut data = vec![T::zeroed(); self.len];
        self.copy_to(&mut data)?;
        Ok(data)
    }

    /// Copies from the host in the order of `stream`; may return before it is done.
    ///
    /// # Safety
    /// `data` stays as it is, and this buffer where it is, until the copy is done; `stream` is ordered with this buffer's other users.
    ///
    /// # Errors
    /// [`Error::CopyLength`], [`Error::OtherContext`], or [`Error::Call`].
    pub unsafe fn copy_from_async(&mut self, data: &[T], stream: &Stream) -> Result<()> {
        check_length(data.len(), self.len)?;
        self.context().check_stream(stream)?;
        if self.is_nothing() {
            return Ok(());
        }
        // SAFETY: the memory is this buffer's own; the caller vouches for the rest.
        unsafe { stream.write(self.address, bytemuck::cast_slice(data)) }
    }

    /// Copies to the host in the order of `stream`; may return before it is done.
    ///
    /// # Safety
    /// Nobody uses `data`, and this buffer stays where it is, until the copy is done; `stream` is ordered with those who write this buffer.
    ///
    /// # Errors
    /// [`Error::CopyLength`], [`Error::OtherContext`], or [`Error::Call`].
    pub unsafe fn copy_to_async(&self, data: &mut [T], stream: &Stream) -> Result<()> {
        check_length(self.len, data.len())?;
        self.context().check_stream(stream)?;
        if self.is_nothing() {
            return Ok(());
        }
        // SAFETY: the memory is this buffer's own; the caller vouches for the rest.
        unsafe { stream.read(self.address, bytemuck::cast_slice_mut(data)) }
    }

    /// Copies from another buffer, which may lie on another GPU, and returns when that is done.
    ///
    /// # Errors
    /// [`Error::CopyLength`], or [`Error::Call`].
    pub fn copy_from_buffer(&mut self, from: &DeviceBuffer<T>) -> Result<()> {
        check_length(from.len, self.len)?;
        if self.is_nothing() {
            return Ok(());
        }
        // What was queued for the source is done before it is read: the two streams need not be ordered.
        from.stream.synchronize()?;
        // SAFETY: both are this call's own until the copy is done, two lines below.
        unsafe { self.copy_from_buffer_async(from, &self.stream.clone()) }?;
        self.stream.synchronize()
    }

    /// Copies from another buffer, which may lie on another GPU, in the order of `stream`; may return before it is done.
    ///
    /// # Safety
    /// Both buffers stay where they are until the copy is done, and `stream` is ordered with those who write either.
    ///
    /// # Errors
    /// [`Error::CopyLength`], [`Error::OtherContext`] for a stream of another context than this buffer's, or [`Error::Call`].
    pub unsafe fn copy_from_buffer_async(&mut self, from: &DeviceBuffer<T>, stream: &Stream) -> Result<()> {
        check_length(from.len, self.len)?;
        self.context().check_stream(stream)?;
        if self.is_nothing() {
            return Ok(());
        }
        let bytes = self.bytes();
        // SAFETY: the memory is the two buffers' own, of the same size; the caller vouches for the rest.
        unsafe {
            if from.context() == self.context() {
                stream.copy(self.address, from.address, bytes)
            } else {
                stream.copy_peer(self.address, from.context(), from.address, bytes)
            }
        }
    }

    /// Whether there is no memory: no values, or values of no bytes.
    fn is_nothing(&self) -> bool {
        self.address == 0
    }

    fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }
}

fn check_length(from: usize, to: usize) -> Result<()> {
    if from == to { Ok(()) } else { Err(Error::CopyLength { from, to }) }
}

impl<T> Drop for DeviceBuffer<T> {
    fn drop(&mut self) {
        if self.address == 0 {
            return;
        }
        // SAFETY: the memory is this buffer's own, and was allocated like this.
        let freed = unsafe {
            if self.stream_ordered { self.stream.free(self.address) } else { self.stream.context().free(self.address) }
        };
        log_failure("device memory is not freed", freed);
    }
}
