//! The functions of the driver, by pointer.

use super::*;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};

/// Type of a function of the driver.
macro_rules! function {
    ($($type:ty),*) => { unsafe extern "system" fn($($type),*) -> CUresult };
}

macro_rules! table {
    (
        required { $($name:ident = $symbol:literal ($($type:ty),* $(,)?);)* }
        optional { $($late:ident = $late_symbol:literal ($($late_type:ty),* $(,)?);)* }
    ) => {
        /// The functions of the driver that this crate calls, by pointer. Each has the contract that the driver API documents.
        ///
        /// A field has the name in the manual. Headers give some of these names another symbol (`cuMemAlloc` is `cuMemAlloc_v2`):
        /// that one is looked up.
        pub struct Table {
            $(
                #[doc = concat!("`", $symbol, "`.")]
                pub $name: function!($($type),*),
            )*
            $(
                #[doc = concat!("`", $late_symbol, "`, where the driver has it.")]
                pub $late: Option<function!($($late_type),*)>,
            )*
        }

        /// Symbols of the functions that every driver from [`LEAST_DRIVER`](crate::LEAST_DRIVER) on has.
        pub const REQUIRED: &[&str] = &[$($symbol),*];

        /// Symbols of the functions that only newer drivers have. Without one, what needs it fails and names it.
        pub const OPTIONAL: &[&str] = &[$($late_symbol),*];

        impl Table {
            /// Fills the table, or gives the required symbols that are missing, all of them.
            ///
            /// # Safety
            /// `find` gives for a symbol the address of the driver's function of that name, if there is one.
            pub(crate) unsafe fn fill(find: impl Fn(&str) -> Option<*const c_void>) -> Result<Table, Vec<&'static str>> {
                let mut missing = Vec::new();
                $(
                    let $name = find($symbol);
                    if $name.is_none() {
                        missing.push($symbol);
                    }
                )*
                let ($(Some($name),)*) = ($($name,)*) else { return Err(missing) };
                Ok(Table {
                    // SAFETY: the caller vouches for the address; the type is the one that the driver API gives this symbol.
                    $($name: unsafe { std::mem::transmute::<*const c_void, function!($($type),*)>($name) },)*
                    $(
                        $late: find($late_symbol)
                            // SAFETY: as above.
                            .map(|found| unsafe { std::mem::transmute::<*const c_void, function!($($late_type),*)>(found) }),
                    )*
                })
            }
        }
    };
}

table! {
    required {
        cuInit = "cuInit" (c_uint);
        cuDriverGetVersion = "cuDriverGetVersion" (*mut c_int);
        cuGetErrorName = "cuGetErrorName" (CUresult, *mut *const c_char);
        cuGetErrorString = "cuGetErrorString" (CUresult, *mut *const c_char);

        cuDeviceGetCount = "cuDeviceGetCount" (*mut c_int);
        cuDeviceGet = "cuDeviceGet" (*mut CUdevice, c_int);
        cuDeviceGetName = "cuDeviceGetName" (*mut c_char, c_int, CUdevice);
        cuDeviceTotalMem = "cuDeviceTotalMem_v2" (*mut usize, CUdevice);
        cuDeviceGetAttribute = "cuDeviceGetAttribute" (*mut c_int, CUdevice_attribute, CUdevice);
        cuDeviceCanAccessPeer = "cuDeviceCanAccessPeer" (*mut c_int, CUdevice, CUdevice);
        cuDevicePrimaryCtxRetain = "cuDevicePrimaryCtxRetain" (*mut CUcontext, CUdevice);
        cuDevicePrimaryCtxRelease = "cuDevicePrimaryCtxRelease_v2" (CUdevice);

        cuCtxGetCurrent = "cuCtxGetCurrent" (*mut CUcontext);
        cuCtxPushCurrent = "cuCtxPushCurrent_v2" (CUcontext);
        cuCtxPopCurrent = "cuCtxPopCurrent_v2" (*mut CUcontext);
        cuCtxSynchronize = "cuCtxSynchronize" ();
        cuCtxGetStreamPriorityRange = "cuCtxGetStreamPriorityRange" (*mut c_int, *mut c_int);
        cuCtxEnablePeerAccess = "cuCtxEnablePeerAccess" (CUcontext, c_uint);

        cuStreamCreateWithPriority = "cuStreamCreateWithPriority" (*mut CUstream, c_uint, c_int);
        cuStreamDestroy = "cuStreamDestroy_v2" (CUstream);
        cuStreamQuery = "cuStreamQuery" (CUstream);
        cuStreamSynchronize = "cuStreamSynchronize" (CUstream);
        cuStreamWaitEvent = "cuStreamWaitEvent" (CUstream, CUevent, c_uint);
        cuStreamBeginCapture = "cuStreamBeginCapture_v2" (CUstream, CUstreamCaptureMode);
        cuStreamEndCapture = "cuStreamEndCapture" (CUstream, *mut CUgraph);
        cuStreamIsCapturing = "cuStreamIsCapturing" (CUstream, *mut CUstreamCaptureStatus);

        cuEventCreate = "cuEventCreate" (*mut CUevent, c_uint);
        cuEventDestroy = "cuEventDestroy_v2" (CUevent);
        cuEventRecord = "cuEventRecord" (CUevent, CUstream);
        cuEventQuery = "cuEventQuery" (CUevent);
        cuEventSynchronize = "cuEventSynchronize" (CUevent);
        cuEventElapsedTime = "cuEventElapsedTime" (*mut f32, CUevent, CUevent);

        cuGraphGetNodes = "cuGraphGetNodes" (CUgraph, *mut CUgraphNode, *mut usize);
        cuGraphInstantiateWithFlags = "cuGraphInstantiateWithFlags" (*mut CUgraphExec, CUgraph, c_ulonglong);
        cuGraphDestroy = "cuGraphDestroy" (CUgraph);
        cuGraphLaunch = "cuGraphLaunch" (CUgraphExec, CUstream);
        cuGraphExecDestroy = "cuGraphExecDestroy" (CUgraphExec);

        cuModuleLoadData = "cuModuleLoadData" (*mut CUmodule, *const c_void);
        cuModuleLoadDataEx = "cuModuleLoadDataEx" (*mut CUmodule, *const c_void, c_uint, *mut CUjit_option, *mut *mut c_void);
        cuModuleUnload = "cuModuleUnload" (CUmodule);
        cuModuleGetFunction = "cuModuleGetFunction" (*mut CUfunction, CUmodule, *const c_char);
        cuFuncGetAttribute = "cuFuncGetAttribute" (*mut c_int, CUfunction_attribute, CUfunction);
        cuFuncSetAttribute = "cuFuncSetAttribute" (CUfunction, CUfunction_attribute, c_int);
        cuOccupancyMaxActiveBlocksPerMultiprocessor = "cuOccupancyMaxActiveBlocksPerMultiprocessor"
            (*mut c_int, CUfunction, c_int, usize);
        cuLaunchKernel = "cuLaunchKernel" (
            CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void, *mut *mut c_void,
        );

        cuMemGetInfo = "cuMemGetInfo_v2" (*mut usize, *mut usize);
        cuMemAlloc = "cuMemAlloc_v2" (*mut CUdeviceptr, usize);
        cuMemFree = "cuMemFree_v2" (CUdeviceptr);
        cuMemAllocAsync = "cuMemAllocAsync" (*mut CUdeviceptr, usize, CUstream);
        cuMemAllocFromPoolAsync = "cuMemAllocFromPoolAsync" (*mut CUdeviceptr, usize, CUmemoryPool, CUstream);
        cuMemFreeAsync = "cuMemFreeAsync" (CUdeviceptr, CUstream);
        cuMemPoolCreate = "cuMemPoolCreate" (*mut CUmemoryPool, *const CUmemPoolProps);
        cuMemPoolDestroy = "cuMemPoolDestroy" (CUmemoryPool);
        cuMemPoolGetAttribute = "cuMemPoolGetAttribute" (CUmemoryPool, CUmemPool_attribute, *mut c_void);
        cuMemPoolSetAttribute = "cuMemPoolSetAttribute" (CUmemoryPool, CUmemPool_attribute, *mut c_void);
        cuMemPoolSetAccess = "cuMemPoolSetAccess" (CUmemoryPool, *const CUmemAccessDesc, usize);
        cuMemPoolTrimTo = "cuMemPoolTrimTo" (CUmemoryPool, usize);
        cuMemcpyHtoD = "cuMemcpyHtoD_v2" (CUdeviceptr, *const c_void, usize);
        cuMemcpyDtoH = "cuMemcpyDtoH_v2" (*mut c_void, CUdeviceptr, usize);
        cuMemcpyHtoDAsync = "cuMemcpyHtoDAsync_v2" (CUdeviceptr, *const c_void, usize, CUstream);
        cuMemcpyDtoHAsync = "cuMemcpyDtoHAsync_v2" (*mut c_void, CUdeviceptr, usize, CUstream);
        cuMemcpyDtoDAsync = "cuMemcpyDtoDAsync_v2" (CUdeviceptr, CUdeviceptr, usize, CUstream);
        cuMemcpyPeerAsync = "cuMemcpyPeerAsync" (CUdeviceptr, CUcontext, CUdeviceptr, CUcontext, usize, CUstream);
        cuMemsetD8Async = "cuMemsetD8Async" (CUdeviceptr, u8, usize, CUstream);
    }
    optional {
        // CUDA 11.8.
        cuLaunchKernelEx = "cuLaunchKernelEx" (*const CUlaunchConfig, CUfunction, *mut *mut c_void, *mut *mut c_void);
        cuOccupancyMaxActiveClusters = "cuOccupancyMaxActiveClusters" (*mut c_int, CUfunction, *const CUlaunchConfig);
        // CUDA 12.0.
        cuTensorMapEncodeTiled = "cuTensorMapEncodeTiled" (
            *mut CUtensorMap, CUtensorMapDataType, c_uint, *mut c_void, *const u64, *const u64, *const u32, *const u32,
            CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    /// Any address will do: nothing of this table is called.
    const SOMEWHERE: *const c_void = std::ptr::dangling();

    #[test]
    fn symbols_are_distinct() {
        let all: BTreeSet<_> = REQUIRED.iter().chain(OPTIONAL).collect();
        assert_eq!(all.len(), REQUIRED.len() + OPTIONAL.len());
    }

    /// Every required symbol that is missing is named; an optional one is left out of the table.
    #[test]
    fn missing_symbols_are_named() {
        let lacks = |absent: &'static [&'static str]| {
            // SAFETY: nothing of the table is called.
            unsafe { Table::fill(|symbol| (!absent.contains(&symbol)).then_some(SOMEWHERE)) }
        };
        assert!(lacks(&[]).is_ok_and(|table| table.cuTensorMapEncodeTiled.is_some()));
        assert_eq!(lacks(&["cuMemPoolCreate", "cuMemFree_v2"]).err().unwrap(), ["cuMemFree_v2", "cuMemPoolCreate"]);
        assert!(lacks(&["cuTensorMapEncodeTiled"]).is_ok_and(|table| table.cuTensorMapEncodeTiled.is_none()));
        // SAFETY: nothing of the table is called.
        assert_eq!(unsafe { Table::fill(|_| None) }.err().unwrap(), REQUIRED);
    }
}
