//! Kernels of a module.

use crate::context::Context;
#[cfg(doc)]
use crate::error::Error;
use crate::error::{Result, call};
use crate::module::Module;
use crate::sys::{CUfunction, CUfunction_attribute};
use std::ffi::c_int;

/// A property of a kernel; any number of `CUfunction_attribute`, also one that has no name here.
pub type FunctionAttribute = CUfunction_attribute;

/// A kernel, which keeps its module loaded.
#[derive(Clone, Debug)]
pub struct Function {
    module: Module,
    raw: CUfunction,
}

// SAFETY: the handle may be used from every thread; the driver API is thread-safe.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    pub(crate) fn new(module: Module, raw: CUfunction) -> Function {
        Function { module, raw }
    }

    /// A property.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn attribute(&self, attribute: FunctionAttribute) -> Result<i32> {
        let cuda = self.context().enter()?;
        let mut value = 0;
        // SAFETY: the function is loaded, the pointer is valid for the call.
        unsafe { call!(cuda.cuFuncGetAttribute(&mut value, attribute, self.raw)) }?;
        Ok(value)
    }

    /// Sets a property.
    ///
    /// # Errors
    /// [`Error::Call`]: `CUDA_ERROR_INVALID_VALUE` for one that cannot be set, or not to this.
    pub fn set_attribute(&self, attribute: FunctionAttribute, value: i32) -> Result<()> {
        let cuda = self.context().enter()?;
        // SAFETY: the function is loaded.
        unsafe { call!(cuda.cuFuncSetAttribute(self.raw, attribute, value)) }
    }

    /// Lets launches have up to `bytes` of dynamic shared memory. Up to 48 KiB they have without asking.
    ///
    /// # Errors
    /// [`Error::Call`]: `CUDA_ERROR_INVALID_VALUE` for more than the GPU has.
    pub fn set_max_dynamic_shared_bytes(&self, bytes: u32) -> Result<()> {
        // A number beyond i32 is more than any GPU has, and so is i32's largest.
        let bytes = c_int::try_from(bytes).unwrap_or(c_int::MAX);
        self.set_attribute(FunctionAttribute::MAX_DYNAMIC_SHARED_SIZE_BYTES, bytes)
    }

    /// Most blocks of `block_threads` threads with `dynamic_shared_bytes` that a multiprocessor holds at a time.
    ///
    /// # Errors
    /// [`Error::Call`].
    pub fn max_active_blocks(&self, block_threads: u32, dynamic_shared_bytes: usize) -> Result<u32> {
        let cuda = self.context().enter()?;
        let mut blocks = 0;
        // As above: too many threads for any GPU.
        let threads = c_int::try_from(block_threads).unwrap_or(c_int::MAX);
        // SAFETY: the function is loaded, the pointer is valid for the call.
        unsafe {
            call!(cuda.cuOccupancyMaxActiveBlocksPerMultiprocessor(
                &mut blocks,
                self.raw,
                threads,
                dynamic_shared_bytes
            ))
        }?;
        Ok(blocks.unsigned_abs())
    }

    /// The context of this kernel.
    pub fn context(&self) -> &Context {
        self.module.context()
    }

    /// The handle.
    pub fn as_raw(&self) -> CUfunction {
        self.raw
    }
}
