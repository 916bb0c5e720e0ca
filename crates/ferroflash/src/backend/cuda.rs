//! NVIDIA GPUs, through cust and its bindings of the driver API.

use super::{Backend, Launch, RawStream};
use crate::device::{Device, DeviceInfo, DeviceKind, Inner};
use crate::error::{Error, Result, Version};
use crate::specialise::Specialised;
use crate::tensor_map::TensorGeometry;
use cuda_loader::LoadError;
use cust::context::Context;
use cust::device::DeviceAttribute;
use cust::error::CudaError;
use cust::sys::{
    self, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction, CUfunction_attribute, CUjit_option,
    CUmemAllocationHandleType, CUmemAllocationType, CUmemLocation, CUmemLocationType, CUmemPool_attribute,
    CUmemPoolProps, CUmemoryPool, CUmodule, CUresult, CUstream,
};
use kernel_spec::{DType, TensorMap, VARIANTS};
use std::collections::{BTreeMap, HashMap};
use std::ffi::{CStr, CString, c_char, c_uint, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;

/// The CUDA version whose interface cust's bindings describe.
const LEAST_DRIVER: Version = Version { major: sys::CUDA_VERSION / 1000, minor: sys::CUDA_VERSION % 1000 / 10 };

/// Dynamic shared memory that a kernel gets without asking, on every GPU.
const DEFAULT_SHARED_BYTES: u32 = 48 * 1024;

/// Functions that this file calls and drivers before CUDA 11.2 lack.
const NEEDED: &[&str] = &[
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuFuncSetAttribute",
    "cuLaunchKernel",
    "cuMemAllocFromPoolAsync",
    "cuMemFreeAsync",
    "cuMemPoolCreate",
    "cuMemPoolDestroy",
    "cuMemPoolSetAttribute",
    "cuMemPoolTrimTo",
    "cuModuleLoadDataEx",
];

/// One GPU: its primary context, a memory pool, and the kernels loaded so far.
struct Cuda {
    context: Context,
    /// `None` where the driver has no memory pools (some virtual GPUs); allocation then is synchronous.
    pool: Option<CUmemoryPool>,
    total_memory: u64,
    driver_version: Version,
    /// `cuTensorMapEncodeTiled`, newer than cust's bindings; `None` where the driver lacks it.
    encode_tiled: Option<EncodeTiled>,
    kernels: RwLock<HashMap<Specialised, Kernel>>,
    /// Held while a kernel is compiled, so that none is compiled twice and the loaded ones stay available.
    loading: Mutex<()>,
}

/// Type of `cuTensorMapEncodeTiled` in the driver API, its enums as numbers.
type EncodeTiled = unsafe extern "C" fn(
    map: *mut AlignedMap,
    data_type: c_uint,
    rank: c_uint,
    address: *mut c_void,
    extents: *const u64,
    byte_strides: *const u64,
    box_extents: *const u32,
    element_strides: *const u32,
    interleave: c_uint,
    swizzle: c_uint,
    l2_promotion: c_uint,
    fill: c_uint,
) -> CUresult;

/// Where the driver encodes a map: it asks for this alignment.
#[repr(C, align(64))]
struct AlignedMap(TensorMap);

/// `CU_TENSOR_MAP_INTERLEAVE_NONE`.
const INTERLEAVE_NONE: c_uint = 0;

/// `CU_TENSOR_MAP_SWIZZLE_128B`: the layout of `kernel_spec::layout`.
const SWIZZLE_128B: c_uint = 3;

/// `CU_TENSOR_MAP_L2_PROMOTION_L2_128B`: a row of a box is that long.
const L2_PROMOTION_128B: c_uint = 2;

/// `CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE`: zeros, not NaN.
const FILL_ZERO: c_uint = 0;

/// The element type as a `CUtensorMapDataType`.
fn map_data_type(dtype: DType) -> c_uint {
    match dtype {
        DType::F16 => 6,
        DType::F32 => 7,
        DType::Bf16 => 9,
    }
}

#[derive(Clone, Copy)]
struct Kernel {
    module: CUmodule,
    function: CUfunction,
}

// SAFETY: the handles belong to the primary context, which every thread may make current; the driver API is thread-safe.
unsafe impl Send for Cuda {}
// SAFETY: as above; what changes on this side is behind locks.
unsafe impl Sync for Cuda {}

/// Every GPU that the driver finds, usable or not.
pub(crate) fn devices() -> Result<Vec<DeviceInfo>> {
    let driver_version = initialise()?;
    let count = cust::device::Device::num_devices().map_err(|error| cust_error("cuDeviceGetCount", error))?;
    (0..count as usize).map(|ordinal| info(ordinal, driver_version).map(|(info, _)| info)).collect()
}

/// Opens a GPU, or gives another handle of the one that is open.
pub(crate) fn open(ordinal: usize) -> Result<Device> {
    static OPEN: Mutex<BTreeMap<usize, Weak<Inner>>> = Mutex::new(BTreeMap::new());
    let driver_version = initialise()?;
    let count = cust::device::Device::num_devices().map_err(|error| cust_error("cuDeviceGetCount", error))? as usize;
    match count {
        0 => return Err(Error::NoGpu),
        _ if ordinal >= count => return Err(Error::NoSuchGpu { ordinal, count }),
        _ => {}
    }
    // The map stays consistent when a thread panicked while it held the lock: entries are inserted whole.
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(inner) = open.get(&ordinal).and_then(Weak::upgrade) {
        return Ok(Device::from_inner(inner));
    }
    let span = tracing::info_span!("open", ordinal);
    let _entered = span.enter();
    let (info, device) = info(ordinal, driver_version)?;
    check_capability(&info)?;
    let backend = Cuda::new(device, &info, driver_version)?;
    tracing::info!(name = info.name, "GPU opened");
    let inner = Device::inner(info, Box::new(backend));
    open.insert(ordinal, std::sync::Arc::downgrade(&inner));
    Ok(Device::from_inner(inner))
}

/// Loads and initialises the driver once, and returns the CUDA version that it supports.
fn initialise() -> Result<Version> {
    let driver = cuda_loader::load().map_err(|error| match error {
        LoadError::NotFound(reason) => Error::NoDriver { reason },
        other => Error::NoDriver { reason: other.to_string() },
    })?;
    let (major, minor) = driver.version().map_err(|code| error_of("cuDriverGetVersion", code))?;
    let found = Version { major, minor };
    if found < LEAST_DRIVER {
        return Err(Error::DriverTooOld { found, least: LEAST_DRIVER });
    }
    driver.require(NEEDED).map_err(|error| Error::DriverLacksSymbols {
        symbols: error.symbols.into_iter().map(str::to_owned).collect(),
    })?;
    match cust::init(cust::CudaFlags::empty()) {
        Ok(()) => Ok(found),
        Err(CudaError::NoDevice) => Err(Error::NoGpu),
        Err(error) => Err(cust_error("cuInit", error)),
    }
}

fn info(ordinal: usize, driver_version: Version) -> Result<(DeviceInfo, cust::device::Device)> {
    let device = cust::device::Device::get_device(ordinal as u32).map_err(|error| cust_error("cuDeviceGet", error))?;
    let attribute = |attribute| -> Result<u32> {
        let value = device.get_attribute(attribute).map_err(|error| cust_error("cuDeviceGetAttribute", error))?;
        Ok(value.unsigned_abs())
    };
    let compute_capability = Version {
        major: attribute(DeviceAttribute::ComputeCapabilityMajor)?,
        minor: attribute(DeviceAttribute::ComputeCapabilityMinor)?,
    };
    let info = DeviceInfo {
        name: device.name().map_err(|error| cust_error("cuDeviceGetName", error))?,
        kind: DeviceKind::Cuda { ordinal, driver_version, compute_capability },
        multiprocessors: attribute(DeviceAttribute::MultiprocessorCount)?,
        memory_bytes: device.total_memory().map_err(|error| cust_error("cuDeviceTotalMem", error))? as u64,
        max_shared_bytes_per_block: raw_attribute(
            &device,
            CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        l2_bytes: attribute(DeviceAttribute::L2CacheSize)?,
        // Virtual GPUs say 0.
        clock_khz: Some(attribute(DeviceAttribute::ClockRate)?).filter(|&khz| khz > 0),
        pci_bus_id: Some(format!(
            "{:04x}:{:02x}:{:02x}.0",
            attribute(DeviceAttribute::PciDomainId)?,
            attribute(DeviceAttribute::PciBusId)?,
            attribute(DeviceAttribute::PciDeviceId)?
        )),
    };
    Ok((info, device))
}

/// An attribute that cust has no name for.
fn raw_attribute(device: &cust::device::Device, attribute: CUdevice_attribute) -> Result<u32> {
    let mut value = 0;
    // SAFETY: `value` is valid for the call.
    check("cuDeviceGetAttribute", unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device.as_raw()) })?;
    Ok(value.unsigned_abs())
}

/// Fails for a GPU that none of the compiled variants runs on.
fn check_capability(info: &DeviceInfo) -> Result<()> {
    if VARIANTS.iter().any(|variant| info.runs(variant.entry.arch)) {
        return Ok(());
    }
    let least = VARIANTS.iter().map(|variant| variant.entry.arch.least_compute_capability()).min();
    let (major, minor) = least.expect("there are variants");
    let least = Version { major, minor };
    Err(Error::GpuTooOld { name: info.name.clone(), found: info.compute_capability(), least })
}

impl Cuda {
    fn new(device: cust::device::Device, info: &DeviceInfo, driver_version: Version) -> Result<Cuda> {
        let encode_tiled = cuda_loader::load().ok().and_then(|driver| {
            // SAFETY: the type is that of the driver API.
            unsafe { driver.symbol::<EncodeTiled>(c"cuTensorMapEncodeTiled") }
        });
        let previous = current_context()?;
        let context = Context::new(device).map_err(|error| cust_error("cuDevicePrimaryCtxRetain", error));
        // cust makes the new context current; the calling thread keeps the one it had.
        // SAFETY: it was current a moment ago, or null for none.
        check("cuCtxSetCurrent", unsafe { sys::cuCtxSetCurrent(previous) })?;
        let mut cuda = Cuda {
            context: context?,
            pool: None,
            total_memory: info.memory_bytes,
            driver_version,
            encode_tiled,
            kernels: RwLock::default(),
            loading: Mutex::default(),
        };
        if raw_attribute(&device, CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? != 0 {
            cuda.pool = Some(create_pool(&device)?);
        }
        Ok(cuda)
    }

    /// Makes the primary context current on this thread until the result is dropped.
    fn enter(&self) -> Result<Entered> {
        // SAFETY: the context is retained for as long as `self` lives.
        check("cuCtxPushCurrent", unsafe { sys::cuCtxPushCurrent_v2(self.context.as_raw()) })?;
        Ok(Entered { not_send: std::marker::PhantomData })
    }

    /// The loaded kernel, compiled by the driver at the first call.
    fn kernel(&self, kernel: &Specialised) -> Result<Kernel> {
        let loaded = || self.kernels.read().unwrap_or_else(PoisonError::into_inner).get(kernel).copied();
        if let Some(kernel) = loaded() {
            return Ok(kernel);
        }
        let _guard = self.loading.lock().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have loaded it while this one waited.
        if let Some(kernel) = loaded() {
            return Ok(kernel);
        }
        let loaded = self.load(kernel)?;
        self.kernels.write().unwrap_or_else(PoisonError::into_inner).insert(kernel.clone(), loaded);
        Ok(loaded)
    }

    fn load(&self, kernel: &Specialised) -> Result<Kernel> {
        let symbol = kernel.entry.symbol;
        let span = tracing::info_span!("load", symbol, features = kernel.features.bits());
        let _entered = span.enter();
        let rejected = |log: String| Error::PtxRejected { symbol, log };
        let text = CString::new(kernel.text()?).map_err(|error| rejected(error.to_string()))?;
        let module = Module::compile(&text, |log| {
            rejected(format!("{log} (the driver supports CUDA {})", self.driver_version))
        })?;
        let name = CString::new(symbol).map_err(|error| rejected(error.to_string()))?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in NUL, `function` is valid for the call.
        let found = unsafe { sys::cuModuleGetFunction(&mut function, module.0, name.as_ptr()) };
        check("cuModuleGetFunction", found)?;
        let shared_bytes = kernel.entry.shared_bytes;
        if shared_bytes > DEFAULT_SHARED_BYTES {
            let attribute = CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: the function belongs to the module above.
            let set = unsafe { sys::cuFuncSetAttribute(function, attribute, shared_bytes as i32) };
            check("cuFuncSetAttribute", set)?;
        }
        tracing::debug!(ptx_bytes = text.as_bytes().len(), shared_bytes, "kernel loaded");
        Ok(Kernel { module: module.keep(), function })
    }

    fn out_of_memory(&self, requested: u64) -> Error {
        let (mut free, mut total) = (0, 0);
        // SAFETY: both are valid for the call; a failure leaves 0 bytes free, which is what there was for this call.
        unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
        Error::OutOfMemory { requested, free: free as u64, total: self.total_memory }
    }

    fn try_allocate(&self, bytes: u64, stream: CUstream) -> (CUresult, CUdeviceptr) {
        let mut address: CUdeviceptr = 0;
        // SAFETY: `address` is valid for the call; pool and stream belong to the current context.
        let result = unsafe {
            match self.pool {
                Some(pool) => sys::cuMemAllocFromPoolAsync(&mut address, bytes as usize, pool, stream),
                None => sys::cuMemAlloc_v2(&mut address, bytes as usize),
            }
        };
        (result, address)
    }
}

/// A pool of its own, so that what it keeps is this crate's doing alone; it keeps everything until
/// [`Device::trim_memory`], so that a call's workspace costs an allocation only once.
fn create_pool(device: &cust::device::Device) -> Result<CUmemoryPool> {
    let props = CUmemPoolProps {
        allocType: CUmemAllocationType::CU_MEM_ALLOCATION_TYPE_PINNED,
        handleTypes: CUmemAllocationHandleType::CU_MEM_HANDLE_TYPE_NONE,
        location: CUmemLocation { type_: CUmemLocationType::CU_MEM_LOCATION_TYPE_DEVICE, id: device.as_raw() },
        win32SecurityAttributes: ptr::null_mut(),
        reserved: [0; 64],
    };
    let mut pool = ptr::null_mut();
    // SAFETY: both arguments are valid for the call.
    check("cuMemPoolCreate", unsafe { sys::cuMemPoolCreate(&mut pool, &props) })?;
    let mut keep = u64::MAX;
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: the attribute is a 64-bit unsigned number, by the driver API's documentation.
    let set = unsafe { sys::cuMemPoolSetAttribute(pool, attribute, ptr::from_mut(&mut keep).cast()) };
    check("cuMemPoolSetAttribute", set)?;
    Ok(pool)
}

impl Backend for Cuda {
    fn allocate(&self, bytes: u64, stream: RawStream) -> Result<u64> {
        let _entered = self.enter()?;
        let stream = stream.as_pointer().cast();
        let (mut result, mut address) = self.try_allocate(bytes, stream);
        if result == CUresult::CUDA_ERROR_OUT_OF_MEMORY && self.pool.is_some() {
            // What the pool keeps in pieces of other sizes may be enough once the driver has it back.
            self.trim_memory()?;
            (result, address) = self.try_allocate(bytes, stream);
        }
        match result {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => Err(self.out_of_memory(bytes)),
            result => check("cuMemAllocFromPoolAsync", result).map(|()| address),
        }
    }

    fn free(&self, address: u64, stream: RawStream) {
        let freed = self.enter().and_then(|_entered| match self.pool {
            // SAFETY: `allocate` returned the address, and the stream is the one it was allocated on.
            Some(_) => check("cuMemFreeAsync", unsafe { sys::cuMemFreeAsync(address, stream.as_pointer().cast()) }),
            // SAFETY: `allocate` returned the address.
            None => check("cuMemFree", unsafe { sys::cuMemFree_v2(address) }),
        });
        if let Err(error) = freed {
            tracing::error!(%error, "device memory is not freed");
        }
    }

    fn trim_memory(&self) -> Result<()> {
        let Some(pool) = self.pool else { return Ok(()) };
        // Memory that was freed behind work still to be done goes back once that is done.
        self.synchronize()?;
        // SAFETY: the pool lives as long as `self`.
        check("cuMemPoolTrimTo", unsafe { sys::cuMemPoolTrimTo(pool, 0) })
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the source is valid; the destination is memory of this device, by the contract of the views.
        check("cuMemcpyHtoD", unsafe { sys::cuMemcpyHtoD_v2(address, bytes.as_ptr().cast(), bytes.len()) })?;
        // From pageable memory the call may return while the last piece is still on its way.
        // SAFETY: null is the default stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(ptr::null_mut()) })
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the destination is valid; the source is memory of this device, by the contract of the views.
        check("cuMemcpyDtoH", unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), address, bytes.len()) })
    }

    fn copy(&self, from: u64, to: u64, len: u64, stream: RawStream) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: both are memory of this device, by the contract of the tensors, and the stream is live.
        let copied = unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, len as usize, stream.as_pointer().cast()) };
        check("cuMemcpyDtoDAsync", copied)
    }

    fn fill(&self, address: u64, byte: u8, len: u64) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the destination is memory of this device, by the contract of the views.
        check("cuMemsetD8", unsafe { sys::cuMemsetD8_v2(address, byte, len as usize) })?;
        // SAFETY: null is the default stream.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(ptr::null_mut()) })
    }

    fn tensor_map(&self, tensor: &TensorGeometry) -> Result<TensorMap> {
        let encode = self
            .encode_tiled
            .ok_or_else(|| Error::DriverLacksSymbols { symbols: vec!["cuTensorMapEncodeTiled".to_owned()] })?;
        let _entered = self.enter()?;
        let mut map = AlignedMap(TensorMap([0; 16]));
        // SAFETY: the map is aligned and as large as the driver's, the arrays hold as many numbers as the rank asks for (one
        // stride fewer), and all are valid for the call; the address is kept, not read.
        let encoded = unsafe {
            encode(
                &mut map,
                map_data_type(tensor.dtype),
                tensor.extents.len() as c_uint,
                ptr::with_exposed_provenance_mut(tensor.address as usize),
                tensor.extents.as_ptr(),
                tensor.byte_strides.as_ptr(),
                tensor.box_extents.as_ptr(),
                [1; 4].as_ptr(),
                INTERLEAVE_NONE,
                SWIZZLE_128B,
                L2_PROMOTION_128B,
                FILL_ZERO,
            )
        };
        check("cuTensorMapEncodeTiled", encoded)?;
        Ok(map.0)
    }

    fn prepare(&self, kernel: &Specialised) -> Result<()> {
        let _entered = self.enter()?;
        self.kernel(kernel).map(drop)
    }

    fn launch(&self, launch: &Launch<'_>) -> Result<()> {
        let _entered = self.enter()?;
        let entry = launch.kernel.entry;
        let kernel = self.kernel(launch.kernel)?;
        // The driver copies the parameter, and only reads it in spite of the pointer's type.
        let mut params = [launch.params.as_ptr().cast_mut().cast::<c_void>()];
        // SAFETY: the function takes one parameter, the struct that `params` holds (the contract in kernel_spec); grid, block and
        // shared memory are those of the entry; the addresses in it were checked by the caller.
        check("cuLaunchKernel", unsafe {
            sys::cuLaunchKernel(
                kernel.function,
                launch.ctas,
                1,
                1,
                entry.threads,
                1,
                1,
                entry.shared_bytes,
                launch.stream.as_pointer().cast(),
                params.as_mut_ptr(),
                ptr::null_mut(),
            )
        })
    }

    fn create_stream(&self) -> Result<RawStream> {
        let _entered = self.enter()?;
        let mut stream: CUstream = ptr::null_mut();
        // Flags 0: a stream that is ordered with the default stream.
        // SAFETY: `stream` is valid for the call.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut stream, 0) })?;
        Ok(RawStream::from_pointer(stream.cast()))
    }

    fn destroy_stream(&self, stream: RawStream) {
        let destroyed = self.enter().and_then(|_entered| {
            // SAFETY: `create_stream` made it; the driver lets its work finish.
            check("cuStreamDestroy", unsafe { sys::cuStreamDestroy_v2(stream.as_pointer().cast()) })
        });
        if let Err(error) = destroyed {
            tracing::error!(%error, "stream is not destroyed");
        }
    }

    fn synchronize(&self) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: a context is current.
        check("cuCtxSynchronize", unsafe { sys::cuCtxSynchronize() })
    }

    fn synchronize_stream(&self, stream: RawStream) -> Result<()> {
        let _entered = self.enter()?;
        // SAFETY: the stream is live, by the contract of `Stream`.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(stream.as_pointer().cast()) })
    }

    fn time_each(
        &self,
        stream: RawStream,
        count: u32,
        before: &mut dyn FnMut() -> Result<()>,
        work: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Duration>> {
        let _entered = self.enter()?;
        let events = (0..count).map(|_| Ok((Event::new()?, Event::new()?))).collect::<Result<Vec<_>>>()?;
        for (start, end) in &events {
            before()?;
            start.record(stream)?;
            work()?;
            end.record(stream)?;
        }
        events.iter().map(|(start, end)| start.until(end)).collect()
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        let Ok(_entered) = self.enter() else { return };
        // Failures here have nobody to go to, and the context is given back in any case.
        // SAFETY: a context is current; modules and pool are this device's own, and no work uses them after the wait.
        unsafe {
            sys::cuCtxSynchronize();
            for kernel in self.kernels.get_mut().unwrap_or_else(PoisonError::into_inner).values() {
                sys::cuModuleUnload(kernel.module);
            }
            if let Some(pool) = self.pool {
                sys::cuMemPoolDestroy(pool);
            }
        }
    }
}

/// The primary context is current on this thread; dropping it restores what was before.
struct Entered {
    not_send: std::marker::PhantomData<*const ()>,
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut popped = ptr::null_mut();
        // SAFETY: the context was pushed on this thread: the type cannot leave it.
        unsafe { sys::cuCtxPopCurrent_v2(&mut popped) };
    }
}

/// A module that is unloaded on drop.
struct Module(CUmodule);

impl Module {
    fn compile(ptx: &CStr, rejected: impl Fn(String) -> Error) -> Result<Module> {
        // ptxas names the first offending lines; nobody reads more.
        let mut log = vec![0u8; 4096];
        let mut options = [CUjit_option::CU_JIT_ERROR_LOG_BUFFER, CUjit_option::CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES];
        // The size travels in the pointer itself, by the driver API's documentation.
        let mut values = [log.as_mut_ptr().cast::<c_void>(), ptr::without_provenance_mut(log.len())];
        let mut module = ptr::null_mut();
        // SAFETY: the text ends in NUL; options, values and log are valid for the call.
        let result = unsafe {
            sys::cuModuleLoadDataEx(
                &mut module,
                ptx.as_ptr().cast(),
                options.len() as c_uint,
                options.as_mut_ptr(),
                values.as_mut_ptr(),
            )
        };
        match result {
            CUresult::CUDA_ERROR_INVALID_PTX
            | CUresult::CUDA_ERROR_INVALID_IMAGE
            | CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU
            | CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            | CUresult::CUDA_ERROR_JIT_COMPILER_NOT_FOUND => {
                let log = CStr::from_bytes_until_nul(&log).unwrap_or_default().to_string_lossy();
                Err(rejected(format!("{} {}", name_of(result as u32), log.trim())))
            }
            result => check("cuModuleLoadDataEx", result).map(|()| Module(module)),
        }
    }

    /// The handle, which the caller unloads.
    fn keep(self) -> CUmodule {
        let module = self.0;
        std::mem::forget(self);
        module
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: the module was loaded and its function never launched.
        unsafe { sys::cuModuleUnload(self.0) };
    }
}

struct Event(CUevent);

impl Event {
    fn new() -> Result<Event> {
        let mut event = ptr::null_mut();
        // Flags 0: an event that takes the time.
        // SAFETY: `event` is valid for the call.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut event, 0) })?;
        Ok(Event(event))
    }

    fn record(&self, stream: RawStream) -> Result<()> {
        // SAFETY: event and stream are live and of the current context.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.0, stream.as_pointer().cast()) })
    }

    /// Waits for `end` and gives the time since this event; both are recorded.
    fn until(&self, end: &Event) -> Result<Duration> {
        // SAFETY: the event is live.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(end.0) })?;
        let mut milliseconds = 0f32;
        // SAFETY: `milliseconds` is valid for the call, both events are recorded.
        let elapsed = unsafe { sys::cuEventElapsedTime(&mut milliseconds, self.0, end.0) };
        check("cuEventElapsedTime", elapsed)?;
        // Never negative, with a resolution of about half a microsecond, by the driver API's documentation.
        Ok(Duration::from_nanos((f64::from(milliseconds) * 1e6) as u64))
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is live; the driver keeps it until its work is done.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}

fn current_context() -> Result<sys::CUcontext> {
    let mut context = ptr::null_mut();
    // SAFETY: `context` is valid for the call.
    check("cuCtxGetCurrent", unsafe { sys::cuCtxGetCurrent(&mut context) })?;
    Ok(context)
}

fn check(call: &'static str, result: CUresult) -> Result<()> {
    match result as u32 {
        0 => Ok(()),
        code => Err(error_of(call, code)),
    }
}

fn cust_error(call: &'static str, error: CudaError) -> Error {
    error_of(call, error as u32)
}

fn error_of(call: &'static str, code: u32) -> Error {
    Error::Cuda { call, code, name: name_of(code), message: describe(c"cuGetErrorString", code) }
}

fn name_of(code: u32) -> String {
    describe(c"cuGetErrorName", code)
}

/// What the driver says about a code. Asked by number: a newer driver knows codes that the bindings' enum does not.
fn describe(function: &'static CStr, code: u32) -> String {
    type Describe = unsafe extern "C" fn(u32, *mut *const c_char) -> u32;
    let unknown = || format!("CUresult {code}");
    let Ok(driver) = cuda_loader::load() else { return unknown() };
    // SAFETY: both functions have this type in the driver API.
    let Some(describe) = (unsafe { driver.symbol::<Describe>(function) }) else { return unknown() };
    let mut text = ptr::null();
    // SAFETY: `text` is valid for the call.
    if unsafe { describe(code, &mut text) } != 0 || text.is_null() {
        return unknown();
    }
    // SAFETY: the driver returns static strings.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
