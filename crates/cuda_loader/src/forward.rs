//! The forwarders: symbols of the driver API, each a jump through a slot.

use crate::Forwarder;
use std::sync::atomic::AtomicPtr;

/// Where every slot points before a driver is loaded.
extern "C" fn no_device() -> u32 {
    crate::NO_DEVICE
}

/// Where the slot of a function points that the loaded driver lacks.
pub(crate) extern "C" fn not_supported() -> u32 {
    crate::NOT_SUPPORTED
}

/// Every forwarder.
pub(crate) fn all() -> &'static [Forwarder] {
    // A linker takes from a static library only what is asked for, in one pass: whoever calls `load` asks for all of them.
    std::hint::black_box(&KEPT);
    FORWARDERS
}

macro_rules! forwarders {
    ($($name:ident)*) => {
        #[allow(non_upper_case_globals, reason = "named like the function")]
        mod slot {
            use super::*;
            $(pub(super) static $name: AtomicPtr<()> = AtomicPtr::new(no_device as *mut ());)*
        }

        $(
            /// Jumps to the driver's function of this name: arguments, stack and return address stay as the caller left them.
            #[unsafe(naked)]
            #[unsafe(no_mangle)]
            #[allow(non_snake_case, reason = "a symbol of the driver API")]
            unsafe extern "C" fn $name() -> u32 {
                #[cfg(target_arch = "x86_64")]
                core::arch::naked_asm!("jmp qword ptr [rip + {slot}]", slot = sym slot::$name);
                // x16 is the scratch register that the procedure call standard gives to veneers like this one.
                #[cfg(target_arch = "aarch64")]
                core::arch::naked_asm!(
                    "adrp x16, {slot}",
                    "ldr x16, [x16, :lo12:{slot}]",
                    "br x16",
                    slot = sym slot::$name,
                );
            }
        )*

        const FORWARDERS: &[Forwarder] = &[$(
            Forwarder {
                // Symbol names hold no NUL.
                name: unwrap(std::ffi::CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes())),
                slot: &slot::$name,
            },
        )*];

        static KEPT: [unsafe extern "C" fn() -> u32; FORWARDERS.len()] = [$($name),*];
    };
}

const fn unwrap(name: Result<&'static std::ffi::CStr, std::ffi::FromBytesWithNulError>) -> &'static std::ffi::CStr {
    match name {
        Ok(name) => name,
        Err(_) => panic!("a symbol name with a NUL"),
    }
}

// What cust 0.3.2 calls; and, called through its bindings, error names, function attributes, plain streams and memory pools.
forwarders! {
    cuArray3DCreate_v2 cuArray3DGetDescriptor_v2 cuArrayDestroy cuCtxCreate_v2 cuCtxDestroy_v2 cuCtxGetApiVersion
    cuCtxGetCacheConfig cuCtxGetCurrent cuCtxGetDevice cuCtxGetFlags cuCtxGetLimit cuCtxGetSharedMemConfig
    cuCtxGetStreamPriorityRange cuCtxPopCurrent_v2 cuCtxPushCurrent_v2 cuCtxSetCacheConfig cuCtxSetCurrent
    cuCtxSetLimit cuCtxSetSharedMemConfig cuCtxSynchronize cuDestroyExternalMemory cuDeviceGet cuDeviceGetAttribute
    cuDeviceGetCount cuDeviceGetName cuDevicePrimaryCtxRelease_v2 cuDevicePrimaryCtxReset_v2
    cuDevicePrimaryCtxRetain cuDevicePrimaryCtxSetFlags_v2 cuDeviceTotalMem_v2 cuDriverGetVersion cuEventCreate
    cuEventDestroy_v2 cuEventElapsedTime cuEventQuery cuEventRecord cuEventSynchronize
    cuExternalMemoryGetMappedBuffer cuFuncGetAttribute cuFuncSetAttribute cuFuncSetCacheConfig
    cuFuncSetSharedMemConfig cuGetErrorName cuGetErrorString cuGraphAddKernelNode cuGraphCreate cuGraphDebugDotPrint
    cuGraphDestroy cuGraphGetEdges cuGraphGetNodes cuGraphKernelNodeGetParams cuGraphNodeGetType
    cuImportExternalMemory cuInit cuLaunchHostFunc cuLaunchKernel cuLinkAddData_v2 cuLinkComplete cuLinkCreate_v2
    cuLinkDestroy cuMemAdvise cuMemAllocAsync cuMemAllocFromPoolAsync cuMemAllocHost_v2 cuMemAllocManaged
    cuMemAllocPitch cuMemAlloc_v2 cuMemFreeAsync cuMemFreeHost cuMemFree_v2 cuMemGetInfo_v2 cuMemPoolCreate
    cuMemPoolDestroy cuMemPoolSetAttribute cuMemPoolTrimTo cuMemPrefetchAsync cuMemcpy2D_v2 cuMemcpyAtoH_v2
    cuMemcpyDtoDAsync_v2 cuMemcpyDtoD_v2 cuMemcpyDtoHAsync_v2 cuMemcpyDtoH_v2 cuMemcpyHtoA_v2 cuMemcpyHtoDAsync_v2
    cuMemcpyHtoD_v2 cuMemsetD16Async cuMemsetD16_v2 cuMemsetD32Async cuMemsetD32_v2 cuMemsetD8Async cuMemsetD8_v2
    cuModuleGetFunction cuModuleGetGlobal_v2 cuModuleLoad cuModuleLoadData cuModuleLoadDataEx cuModuleUnload
    cuOccupancyAvailableDynamicSMemPerBlock cuOccupancyMaxActiveBlocksPerMultiprocessor
    cuOccupancyMaxPotentialBlockSize cuStreamCreate cuStreamCreateWithPriority cuStreamDestroy_v2 cuStreamGetFlags
    cuStreamGetPriority cuStreamSynchronize cuStreamWaitEvent cuSurfObjectCreate cuSurfObjectDestroy
    cuSurfObjectGetResourceDesc cuTexObjectCreate cuTexObjectDestroy cuTexObjectGetResourceDesc
    cuTexObjectGetResourceViewDesc
}
