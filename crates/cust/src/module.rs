//! Modules, compiled by the driver or before.

use crate::context::Context;
use crate::error::{Error, Result, call, check, log_failure, name_of};
use crate::function::Function;
use crate::sys::{CUjit_option, CUmodule, CUresult};
use std::ffi::{CStr, CString, c_uint, c_void};
use std::ptr;
use std::sync::Arc;

/// What the driver's compiler is told.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct JitOptions {
    /// Most registers of a thread; `None` leaves it to the PTX.
    pub max_registers: Option<u32>,
    /// From 0, the least, to 4; `None` for the driver's default, which is 4.
    pub optimization_level: Option<u32>,
    /// Keep line numbers for profilers.
    pub line_info: bool,
    /// Bytes of the log of a module that is refused. The compiler names the first offending lines; nobody reads more than 4096.
    pub error_log_bytes: usize,
}

impl Default for JitOptions {
    fn default() -> Self {
        JitOptions { max_registers: None, optimization_level: None, line_info: false, error_log_bytes: 4096 }
    }
}

impl JitOptions {
    /// Sets the most registers of a thread.
    pub fn with_max_registers(mut self, registers: u32) -> Self {
        self.max_registers = Some(registers);
        self
    }

    /// Sets the optimisation level, 0 to 4.
    pub fn with_optimization_level(mut self, level: u32) -> Self {
        self.optimization_level = Some(level);
        self
    }

    /// Keeps line numbers for profilers, or not.
    pub fn with_line_info(mut self, line_info: bool) -> Self {
        self.line_info = line_info;
        self
    }
}

/// A loaded module. It is unloaded when the last clone and the last [`Function`] of it are gone, which waits for nothing: whoever drops
/// them has seen to it that its kernels are done.
#[derive(Clone, Debug)]
pub struct Module {
    loaded: Arc<Loaded>,
}

#[derive(Debug)]
struct Loaded {
    context: Context,
    raw: CUmodule,
}

// SAFETY: the handle may be used from every thread; the driver API is thread-safe.
unsafe impl Send for Loaded {}
// SAFETY: as above.
unsafe impl Sync for Loaded {}

impl Module {
    /// Compiles PTX and loads the result.
    ///
    /// # Errors
    /// [`Error::Nul`], [`Error::ModuleRejected`] with the compiler's log, or [`Error::Call`].
    pub fn from_ptx(context: &Context, ptx: &str, options: &JitOptions) -> Result<Module> {
        let text = CString::new(ptx).map_err(|error| Error::Nul { what: "PTX", position: error.nul_position() })?;
        let mut log = vec![0u8; options.error_log_bytes];
        // Numbers travel in the pointer itself, by the driver API's documentation.
        let number = |value: u32| ptr::without_provenance_mut::<c_void>(value as usize);
        let mut table = vec![
            (CUjit_option::ERROR_LOG_BUFFER, log.as_mut_ptr().cast::<c_void>()),
            (CUjit_option::ERROR_LOG_BUFFER_SIZE_BYTES, ptr::without_provenance_mut(log.len())),
        ];
        table.extend(options.max_registers.map(|count| (CUjit_option::MAX_REGISTERS, number(count))));
        table.extend(options.optimization_level.map(|level| (CUjit_option::OPTIMIZATION_LEVEL, number(level))));
        if options.line_info {
            table.push((CUjit_option::GENERATE_LINE_INFO, number(1)));
        }
        let (mut keys, mut values): (Vec<_>, Vec<_>) = table.into_iter().unzip();
        let cuda = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the text ends in NUL; keys, values and the log are valid for the call.
        let result = unsafe {
            (cuda.cuModuleLoadDataEx)(
                &mut raw,
                text.as_ptr().cast(),
                keys.len() as c_uint,
                keys.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        Module::loaded(context, "cuModuleLoadDataEx", result, raw, || {
            CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy().trim().to_owned()
        })
    }

    /// Loads a module that is compiled already.
    ///
    /// # Safety
    /// `cubin` is a whole cubin or fat binary: the driver reads as far as its header says.
    ///
    /// # Errors
    /// [`Error::ModuleRejected`] where it is for another GPU, or [`Error::Call`].
    pub unsafe fn from_cubin(context: &Context, cubin: &[u8]) -> Result<Module> {
        let cuda = context.enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is valid for the call; the caller vouches for the bytes.
        let result = unsafe { (cuda.cuModuleLoadData)(&mut raw, cubin.as_ptr().cast()) };
        Module::loaded(context, "cuModuleLoadData", result, raw, String::new)
    }

    fn loaded(
        context: &Context,
        call: &'static str,
        result: CUresult,
        raw: CUmodule,
        log: impl FnOnce() -> String,
    ) -> Result<Module> {
        match result {
            CUresult::INVALID_PTX
            | CUresult::INVALID_IMAGE
            | CUresult::NO_BINARY_FOR_GPU
            | CUresult::UNSUPPORTED_PTX_VERSION
            | CUresult::JIT_COMPILER_NOT_FOUND
            | CUresult::JIT_COMPILATION_DISABLED => {
                Err(Error::ModuleRejected { result, name: name_of(result), log: log() })
            }
            result => {
                check(call, result).map(|()| Module { loaded: Arc::new(Loaded { context: context.clone(), raw }) })
            }
        }
    }

    /// The kernel of this name.
    ///
    /// # Errors
    /// [`Error::Nul`], or [`Error::Call`] with `CUDA_ERROR_NOT_FOUND`.
    pub fn get_function(&self, name: &str) -> Result<Function> {
        let name = CString::new(name)
            .map_err(|error| Error::Nul { what: "name of the kernel", position: error.nul_position() })?;
        let cuda = self.context().enter()?;
        let mut raw = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in NUL, the pointer is valid for the call.
        unsafe { call!(cuda.cuModuleGetFunction(&mut raw, self.loaded.raw, name.as_ptr())) }?;
        Ok(Function::new(self.clone(), raw))
    }

    /// The context of this module.
    pub fn context(&self) -> &Context {
        &self.loaded.context
    }

    /// The handle.
    pub fn as_raw(&self) -> CUmodule {
        self.loaded.raw
    }
}

impl Drop for Loaded {
    fn drop(&mut self) {
        let unloaded = self.context.enter().and_then(|cuda| {
            // SAFETY: the module is this one's own, and no function of it is left.
            unsafe { call!(cuda.cuModuleUnload(self.raw)) }
        });
        log_failure("module is not unloaded", unloaded);
    }
}
