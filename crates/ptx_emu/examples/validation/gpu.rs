//! The GPU, through the few driver functions that a launch takes.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use libloading::Library;

use super::Error;
use super::cases::{Case, THREADS, Tensor};

/// The few driver functions that a launch takes.
pub(super) struct Gpu {
    lib: Library,
    pub(super) name: String,
    pub(super) capability: u32,
}

/// Asserts that a driver call returned 0 (`CUDA_SUCCESS`).
fn ok(what: &str, status: c_int) -> Result<(), Error> {
    if status == 0 { Ok(()) } else { Err(format!("{what} returned {status}").into()) }
}

macro_rules! call {
    ($gpu:expr, $name:literal, fn($($t:ty),* $(,)?) $(, $arg:expr)* $(,)?) => {{
        // SAFETY: the signature is the one of cuda.h, and the arguments live across the call.
        let status = unsafe {
            let f: libloading::Symbol<'_, unsafe extern "C" fn($($t),*) -> c_int> =
                $gpu.lib.get(concat!($name, "\0").as_bytes())?;
            f($($arg),*)
        };
        ok($name, status)
    }};
}

impl Gpu {
    /// Device 0 with its primary context current; `None` without a driver or device.
    pub(super) fn open() -> Result<Option<Gpu>, Error> {
        // SAFETY: the driver library's initialisers have no requirement on the caller.
        let Ok(lib) = (unsafe { Library::new("libcuda.so.1") }) else { return Ok(None) };
        let mut gpu = Gpu { lib, name: String::new(), capability: 0 };
        if call!(gpu, "cuInit", fn(c_uint), 0).is_err() {
            return Ok(None);
        }
        let mut device: c_int = 0;
        call!(gpu, "cuDeviceGet", fn(*mut c_int, c_int), &mut device, 0)?;
        let mut name: [c_char; 128] = [0; 128];
        call!(gpu, "cuDeviceGetName", fn(*mut c_char, c_int, c_int), name.as_mut_ptr(), 128, device)?;
        // SAFETY: the driver wrote a terminated string of at most 128 bytes.
        gpu.name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        // Attributes 75 and 76 of cuda.h: the compute capability.
        call!(gpu, "cuDeviceGetAttribute", fn(*mut c_int, c_int, c_int), &mut major, 75, device)?;
        call!(gpu, "cuDeviceGetAttribute", fn(*mut c_int, c_int, c_int), &mut minor, 76, device)?;
        gpu.capability = (10 * major + minor) as u32;
        let mut context: *mut c_void = std::ptr::null_mut();
        call!(gpu, "cuDevicePrimaryCtxRetain", fn(*mut *mut c_void, c_int), &mut context, device)?;
        call!(gpu, "cuCtxSetCurrent", fn(*mut c_void), context)?;
        Ok(Some(gpu))
    }

    /// What `cuTensorMapEncodeTiled` makes of a description.
    fn encode(&self, tensor: &Tensor, src: u64, dst: u64) -> Result<[u64; 16], Error> {
        /// `CUtensorMap` is aligned to 64 bytes.
        #[repr(C, align(64))]
        struct Map([u64; 16]);
        let mut map = Map([0; 16]);
        let spec = tensor.spec(src, dst);
        let element_strides = vec![1u32; spec.dims.len()];
        call!(
            self,
            "cuTensorMapEncodeTiled",
            fn(
                *mut Map,
                c_uint,
                c_uint,
                u64,
                *const u64,
                *const u64,
                *const u32,
                *const u32,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
            ),
            &mut map,
            spec.data_type as u32,
            spec.dims.len() as u32,
            spec.address,
            spec.dims.as_ptr(),
            spec.strides.as_ptr(),
            spec.box_dims.as_ptr(),
            element_strides.as_ptr(),
            // No interleave, no promotion in L2; the enums of swizzle and fill have the numbers of cuda.h.
            0,
            spec.swizzle as u32,
            0,
            spec.fill as u32
        )?;
        Ok(map.0)
    }

    pub(super) fn run(&self, case: &Case, ptx: &str, entry: &str, input: &[u8]) -> Result<Vec<u8>, Error> {
        let text = CString::new(ptx)?;
        let name = CString::new(entry)?;
        let mut module: *mut c_void = std::ptr::null_mut();
        call!(self, "cuModuleLoadData", fn(*mut *mut c_void, *const c_void), &mut module, text.as_ptr().cast())?;
        let mut function: *mut c_void = std::ptr::null_mut();
        call!(
            self,
            "cuModuleGetFunction",
            fn(*mut *mut c_void, *mut c_void, *const c_char),
            &mut function,
            module,
            name.as_ptr()
        )?;
        let (mut src, mut dst, mut map) = (0u64, 0u64, 0u64);
        let mut out = vec![0u8; 16 * THREADS];
        call!(self, "cuMemAlloc_v2", fn(*mut u64, usize), &mut src, input.len())?;
        call!(self, "cuMemAlloc_v2", fn(*mut u64, usize), &mut dst, out.len())?;
        call!(self, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize), src, input.as_ptr().cast(), input.len())?;
        call!(self, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize), dst, out.as_ptr().cast(), out.len())?;
        call!(self, "cuMemAlloc_v2", fn(*mut u64, usize), &mut map, 128)?;
        if let Some(tensor) = &case.tensor {
            let words = self.encode(tensor, src, dst)?;
            call!(self, "cuMemcpyHtoD_v2", fn(u64, *const c_void, usize), map, words.as_ptr().cast(), 128)?;
        }
        let mut params: [*mut c_void; 3] = [(&raw mut src).cast(), (&raw mut dst).cast(), (&raw mut map).cast()];
        call!(
            self,
            "cuLaunchKernel",
            fn(
                *mut c_void,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                c_uint,
                *mut c_void,
                *mut *mut c_void,
                *mut *mut c_void,
            ),
            function,
            THREADS as u32 / 128,
            1,
            1,
            128,
            1,
            1,
            0,
            std::ptr::null_mut(),
            params.as_mut_ptr(),
            std::ptr::null_mut()
        )?;
        call!(self, "cuCtxSynchronize", fn())?;
        call!(self, "cuMemcpyDtoH_v2", fn(*mut c_void, u64, usize), out.as_mut_ptr().cast(), dst, out.len())?;
        call!(self, "cuMemFree_v2", fn(u64), src)?;
        call!(self, "cuMemFree_v2", fn(u64), dst)?;
        call!(self, "cuMemFree_v2", fn(u64), map)?;
        call!(self, "cuModuleUnload", fn(*mut c_void), module)?;
        Ok(out)
    }
}
