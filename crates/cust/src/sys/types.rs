//! Handles, structs and enumerations of the driver API.

use std::ffi::{c_int, c_uint, c_ushort, c_void};

/// Number of a GPU, as the driver's functions take it.
pub type CUdevice = c_int;
/// An address in device memory.
pub type CUdeviceptr = u64;

macro_rules! handles {
    ($($name:ident: $doc:literal)*) => {
        $(
            #[doc = $doc]
            pub type $name = *mut c_void;
        )*
    };
}

handles! {
    CUcontext: "A context."
    CUmodule: "A loaded module."
    CUfunction: "A kernel of a module."
    CUstream: "A stream; null is the legacy default stream."
    CUevent: "An event."
    CUmemoryPool: "A memory pool."
    CUgraph: "A graph of work."
    CUgraphExec: "A graph that is ready to be launched."
    CUgraphNode: "A node of a graph."
}

macro_rules! enumerations {
    ($($(#[$doc:meta])* $name:ident { $($(#[$value_doc:meta])* $value:ident = $number:literal)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
            #[repr(transparent)]
            pub struct $name(pub c_uint);

            impl $name {
                $($(#[$value_doc])* pub const $value: $name = $name($number);)*
            }
        )*
    };
}

enumerations! {
    /// `CUdevice_attribute`: a property of a GPU.
    CUdevice_attribute {
        /// Most threads of a block.
        MAX_THREADS_PER_BLOCK = 1
        /// Bytes of shared memory that a block gets without asking.
        MAX_SHARED_MEMORY_PER_BLOCK = 8
        /// Threads of a warp.
        WARP_SIZE = 10
        /// Highest clock of the multiprocessors in kHz.
        CLOCK_RATE = 13
        /// Number of multiprocessors.
        MULTIPROCESSOR_COUNT = 16
        /// Bus of the GPU's place on PCI.
        PCI_BUS_ID = 33
        /// Device of the GPU's place on PCI.
        PCI_DEVICE_ID = 34
        /// Level-two cache in bytes.
        L2_CACHE_SIZE = 38
        /// Most threads that a multiprocessor holds.
        MAX_THREADS_PER_MULTIPROCESSOR = 39
        /// Domain of the GPU's place on PCI.
        PCI_DOMAIN_ID = 50
        /// First number of the compute capability.
        COMPUTE_CAPABILITY_MAJOR = 75
        /// Second number of the compute capability.
        COMPUTE_CAPABILITY_MINOR = 76
        /// Bytes of shared memory of a multiprocessor.
        MAX_SHARED_MEMORY_PER_MULTIPROCESSOR = 81
        /// 32-bit registers of a multiprocessor.
        MAX_REGISTERS_PER_MULTIPROCESSOR = 82
        /// Most bytes of shared memory that a block gets when its kernel asks for them.
        MAX_SHARED_MEMORY_PER_BLOCK_OPTIN = 97
        /// Whether there are memory pools and stream-ordered allocation.
        MEMORY_POOLS_SUPPORTED = 115
        /// Whether blocks can be launched in clusters.
        CLUSTER_LAUNCH = 120
        /// Whether there are tensor maps.
        TENSOR_MAP_ACCESS_SUPPORTED = 127
    }
    /// `CUfunction_attribute`: a property of a kernel.
    CUfunction_attribute {
        /// Most threads of a block of this kernel.
        MAX_THREADS_PER_BLOCK = 0
        /// Bytes of static shared memory.
        SHARED_SIZE_BYTES = 1
        /// Bytes of constant memory.
        CONST_SIZE_BYTES = 2
        /// Bytes of local memory of a thread: what does not fit its registers.
        LOCAL_SIZE_BYTES = 3
        /// Registers of a thread.
        NUM_REGS = 4
        /// PTX version that it was compiled from, 10 * major + minor.
        PTX_VERSION = 5
        /// Architecture that it was compiled for, 10 * major + minor.
        BINARY_VERSION = 6
        /// Most bytes of dynamic shared memory that a launch may ask for.
        MAX_DYNAMIC_SHARED_SIZE_BYTES = 8
        /// Share of the multiprocessor's memory that is to be shared memory, in percent.
        PREFERRED_SHARED_MEMORY_CARVEOUT = 9
        /// Whether clusters of more than 8 blocks are allowed.
        NON_PORTABLE_CLUSTER_SIZE_ALLOWED = 14
    }
    /// `CUjit_option`: what the driver's compiler is told.
    CUjit_option {
        /// Most registers of a thread.
        MAX_REGISTERS = 0
        /// Buffer for what the compiler says about a module that it takes.
        INFO_LOG_BUFFER = 3
        /// Bytes of that buffer.
        INFO_LOG_BUFFER_SIZE_BYTES = 4
        /// Buffer for what the compiler says about a module that it refuses.
        ERROR_LOG_BUFFER = 5
        /// Bytes of that buffer.
        ERROR_LOG_BUFFER_SIZE_BYTES = 6
        /// 0 to 4.
        OPTIMIZATION_LEVEL = 7
        /// Keep line numbers for profilers.
        GENERATE_LINE_INFO = 13
    }
    /// `CUmemPool_attribute`: a property of a memory pool.
    CUmemPool_attribute {
        /// Bytes that the pool keeps when the device is idle (64 bits).
        RELEASE_THRESHOLD = 4
        /// Bytes that the pool holds (64 bits).
        RESERVED_MEM_CURRENT = 5
        /// Bytes of the pool that are allocated (64 bits).
        USED_MEM_CURRENT = 7
    }
    /// `CUstreamCaptureMode`: which calls are refused while a stream is captured.
    CUstreamCaptureMode {
        /// Calls of any thread that may wait for the captured work.
        GLOBAL = 0
        /// Such calls of the thread that captures.
        THREAD_LOCAL = 1
        /// None.
        RELAXED = 2
    }
    /// `CUstreamCaptureStatus`: whether a stream is captured.
    CUstreamCaptureStatus {
        /// It is not.
        NONE = 0
        /// It is.
        ACTIVE = 1
        /// It is, but a call that cannot be captured has spoiled the graph; the capture has to be ended all the same.
        INVALIDATED = 2
    }
    /// `CUtensorMapDataType`: type of the elements of a tensor map.
    CUtensorMapDataType {
        /// 8 bits.
        UINT8 = 0
        /// 16 bits.
        UINT16 = 1
        /// 32 bits.
        UINT32 = 2
        /// Signed, 32 bits.
        INT32 = 3
        /// 64 bits.
        UINT64 = 4
        /// Signed, 64 bits.
        INT64 = 5
        /// IEEE half precision.
        FLOAT16 = 6
        /// IEEE single precision.
        FLOAT32 = 7
        /// IEEE double precision.
        FLOAT64 = 8
        /// bfloat16.
        BFLOAT16 = 9
    }
    /// `CUtensorMapInterleave`: how channels lie between each other.
    CUtensorMapInterleave {
        /// They do not.
        NONE = 0
        /// In pieces of 16 bytes.
        BYTES_16 = 1
        /// In pieces of 32 bytes.
        BYTES_32 = 2
    }
    /// `CUtensorMapSwizzle`: the order of 16-byte pieces within rows of a box in shared memory.
    CUtensorMapSwizzle {
        /// As in device memory.
        NONE = 0
        /// Within 32 bytes.
        BYTES_32 = 1
        /// Within 64 bytes.
        BYTES_64 = 2
        /// Within 128 bytes.
        BYTES_128 = 3
    }
    /// `CUtensorMapL2promotion`: what a miss brings into the level-two cache.
    CUtensorMapL2promotion {
        /// What was asked for.
        NONE = 0
        /// 64 bytes.
        BYTES_64 = 1
        /// 128 bytes.
        BYTES_128 = 2
        /// 256 bytes.
        BYTES_256 = 3
    }
    /// `CUtensorMapFloatOOBfill`: what a box holds outside of the tensor.
    CUtensorMapFloatOOBfill {
        /// Zeros.
        NONE = 0
        /// NaNs which fused multiply-adds treat as zeros.
        NAN_REQUEST_ZERO_FMA = 1
    }
    /// `CUlaunchAttributeID`: what a launch is told beyond its extents.
    CUlaunchAttributeID {
        /// All blocks of the launch run at the same time, or it is an error.
        COOPERATIVE = 2
        /// Blocks of a cluster, along x, y and z.
        CLUSTER_DIMENSION = 4
        /// The kernel may start before the one ahead of it in the stream is done, and waits for it itself (`griddepcontrol.wait`).
        PROGRAMMATIC_STREAM_SERIALIZATION = 6
    }
}

/// `CU_STREAM_NON_BLOCKING`: no order with the legacy default stream.
pub const CU_STREAM_NON_BLOCKING: c_uint = 1;
/// `CU_STREAM_LEGACY`: another name of the legacy default stream, as a handle.
pub const CU_STREAM_LEGACY: usize = 1;
/// `CU_EVENT_BLOCKING_SYNC`: who waits for the event sleeps.
pub const CU_EVENT_BLOCKING_SYNC: c_uint = 1;
/// `CU_EVENT_DISABLE_TIMING`: the event takes no time, and costs less.
pub const CU_EVENT_DISABLE_TIMING: c_uint = 2;
/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
pub const CU_MEM_ALLOCATION_TYPE_PINNED: c_uint = 1;
/// `CU_MEM_HANDLE_TYPE_NONE`: not for other processes.
pub const CU_MEM_HANDLE_TYPE_NONE: c_uint = 0;
/// `CU_MEM_LOCATION_TYPE_DEVICE`.
pub const CU_MEM_LOCATION_TYPE_DEVICE: c_uint = 1;
/// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
pub const CU_MEM_ACCESS_FLAGS_PROT_READWRITE: c_uint = 3;

/// `CUmemLocation`: where memory lies.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CUmemLocation {
    /// `CUmemLocationType`.
    pub kind: c_uint,
    /// Number of the GPU.
    pub id: c_int,
}

/// `CUmemPoolProps`: what a memory pool is made of.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CUmemPoolProps {
    /// `CUmemAllocationType`.
    pub alloc_type: c_uint,
    /// `CUmemAllocationHandleType`.
    pub handle_types: c_uint,
    /// Where its memory lies.
    pub location: CUmemLocation,
    /// Null unless handles are shared on Windows.
    pub win32_security_attributes: *mut c_void,
    /// Most bytes, 0 for as many as there are. Drivers before CUDA 12.3 ignore it.
    pub max_size: usize,
    /// 0.
    pub usage: c_ushort,
    /// Zeros, up to the 88 bytes that the struct had from the beginning.
    pub reserved: [u8; 54],
}

/// `CUmemAccessDesc`: who may use a pool's memory.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CUmemAccessDesc {
    /// The GPU that accesses.
    pub location: CUmemLocation,
    /// `CUmemAccess_flags`.
    pub flags: c_uint,
}

/// `CUlaunchAttribute`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CUlaunchAttribute {
    /// Which one.
    pub id: CUlaunchAttributeID,
    /// Zeros.
    pub pad: [u8; 4],
    /// Its value, in the first words of a union of 64 bytes.
    pub value: [u64; 8],
}

/// `CUlaunchConfig`.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct CUlaunchConfig {
    /// Blocks along x, y, z.
    pub grid: [c_uint; 3],
    /// Threads of a block along x, y, z.
    pub block: [c_uint; 3],
    /// Bytes of dynamic shared memory of a block.
    pub shared_bytes: c_uint,
    /// Where the launch is queued.
    pub stream: CUstream,
    /// The attributes.
    pub attributes: *mut CUlaunchAttribute,
    /// How many.
    pub attribute_count: c_uint,
}

/// `CUtensorMap`: what the copy engine has to know of a tensor, passed to kernels by value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct CUtensorMap(pub [u64; 16]);

const _: () = {
    // Sizes of the driver API's header on 64-bit platforms.
    assert!(size_of::<CUmemPoolProps>() == 88);
    assert!(size_of::<CUlaunchAttribute>() == 72);
    assert!(size_of::<CUlaunchConfig>() == 56);
    assert!(size_of::<CUtensorMap>() == 128);
};
