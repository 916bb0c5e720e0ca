//! A libcuda.so.1 without a GPU: keeps memory on the host, checks that a context is current wherever CUDA wants one, and writes
//! launches to the file that FAKE_LOG names. What it pretends to be comes from FAKE_* variables.
#![allow(non_snake_case, clippy::missing_safety_doc, reason = "the driver API")]

use std::alloc::{Layout, alloc, dealloc};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

const INVALID_VALUE: u32 = 1;
const OUT_OF_MEMORY: u32 = 2;
const INVALID_CONTEXT: u32 = 201;
const INVALID_PTX: u32 = 218;
const NOT_FOUND: u32 = 500;

/// The handle of the only context.
const CONTEXT: usize = 0xc0;
/// The handle of the only memory pool.
const POOL: usize = 0xb0;

thread_local!(static CONTEXTS: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) });

static ALLOCATIONS: Mutex<Option<HashMap<u64, usize>>> = Mutex::new(None);
static USED: AtomicU64 = AtomicU64::new(0);
/// Freed memory that the pool has not given back yet.
static KEPT: AtomicU64 = AtomicU64::new(0);

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

fn log(line: String) {
    let path = std::env::var_os("FAKE_LOG").expect("FAKE_LOG names a file");
    let mut file = std::fs::OpenOptions::new().append(true).create(true).open(path).expect("the log can be written");
    // One write, so that lines of several threads do not mix.
    file.write_all(format!("{line}\n").as_bytes()).expect("the log can be written");
}

fn current() -> usize {
    CONTEXTS.with_borrow(|stack| stack.last().copied().unwrap_or(0))
}

macro_rules! need_context {
    () => {
        if current() != CONTEXT {
            return INVALID_CONTEXT;
        }
    };
}

macro_rules! driver {
    ($($(#[$attribute:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$attribute])*
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $type),*) -> u32 {
                // SAFETY: callers pass what the driver API asks for.
                #[allow(unused_unsafe, reason = "some functions only compute")]
                unsafe { $body }
            }
        )*
    };
}

driver! {
    fn cuInit(_flags: c_uint) { if setting("FAKE_GPUS", 1) == 0 { 100 } else { 0 } }
    fn cuDriverGetVersion(version: *mut c_int) { *version = setting("FAKE_VERSION", 13000) as c_int; 0 }
    fn cuDeviceGetCount(count: *mut c_int) { *count = setting("FAKE_GPUS", 1) as c_int; 0 }
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) { *device = ordinal; 0 }
    fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) {
        let text = c"Fake GPU".to_bytes_with_nul();
        assert!(text.len() <= len as usize);
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), name, text.len());
        0
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) { *bytes = setting("FAKE_MEMORY", 1 << 30) as usize; 0 }
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) {
        // Numbers of CUdevice_attribute.
        *value = match attribute {
            13 => 1_980_000,
            16 => 132,
            33 => 0x3b,
            34 | 50 => 0,
            38 => 50 << 20,
            75 => setting("FAKE_CAPABILITY", 90) as c_int / 10,
            76 => setting("FAKE_CAPABILITY", 90) as c_int % 10,
            97 => 227 * 1024,
            115 => setting("FAKE_POOLS", 1) as c_int,
            _ => return INVALID_VALUE,
        };
        0
    }
    fn cuDevicePrimaryCtxRetain(context: *mut usize, _device: c_int) { *context = CONTEXT; log("retain".into()); 0 }
    fn cuDevicePrimaryCtxRelease_v2(_device: c_int) { log("release".into()); 0 }
    fn cuCtxGetCurrent(context: *mut usize) { *context = current(); 0 }
    fn cuCtxSetCurrent(context: usize) {
        CONTEXTS.with_borrow_mut(|stack| {
            stack.pop();
            if context != 0 {
                stack.push(context);
            }
        });
        0
    }
    fn cuCtxPushCurrent_v2(context: usize) { CONTEXTS.with_borrow_mut(|stack| stack.push(context)); 0 }
    fn cuCtxPopCurrent_v2(context: *mut usize) {
        match CONTEXTS.with_borrow_mut(Vec::pop) {
            Some(popped) => { *context = popped; 0 }
            None => INVALID_CONTEXT,
        }
    }
    fn cuCtxSynchronize() { need_context!(); 0 }
    /// Left out of the build that stands for a driver without memory pools.
    #[cfg(not(lacks_pools))]
    fn cuMemPoolCreate(pool: *mut usize, _props: *const c_void) { *pool = POOL; 0 }
    fn cuMemPoolDestroy(pool: usize) { assert_eq!(pool, POOL); log("destroy pool".into()); 0 }
    fn cuMemPoolSetAttribute(pool: usize, _attribute: c_uint, _value: *mut c_void) { assert_eq!(pool, POOL); 0 }
    fn cuMemPoolTrimTo(pool: usize, keep: usize) { assert_eq!((pool, keep), (POOL, 0)); KEPT.store(0, SeqCst); log("trim".into()); 0 }
    fn cuMemAllocFromPoolAsync(address: *mut u64, bytes: usize, pool: usize, _stream: usize) {
        need_context!();
        assert_eq!(pool, POOL);
        allocate(address, bytes)
    }
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) { need_context!(); log(format!("malloc {bytes}")); allocate(address, bytes) }
    fn cuMemFreeAsync(address: u64, _stream: usize) { need_context!(); free(address, true) }
    fn cuMemFree_v2(address: u64) { need_context!(); free(address, false) }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        need_context!();
        *total = setting("FAKE_MEMORY", 1 << 30) as usize;
        *free = *total - (USED.load(SeqCst) + KEPT.load(SeqCst)) as usize;
        0
    }
    fn cuMemcpyHtoD_v2(to: u64, from: *const u8, bytes: usize) { need_context!(); std::ptr::copy_nonoverlapping(from, to as *mut u8, bytes); 0 }
    fn cuMemcpyDtoH_v2(to: *mut u8, from: u64, bytes: usize) { need_context!(); std::ptr::copy_nonoverlapping(from as *const u8, to, bytes); 0 }
    fn cuMemsetD8_v2(to: u64, byte: u8, bytes: usize) { need_context!(); std::ptr::write_bytes(to as *mut u8, byte, bytes); 0 }
    fn cuStreamCreate(stream: *mut usize, flags: c_uint) { need_context!(); assert_eq!(flags, 0); *stream = 0x5; 0 }
    fn cuStreamDestroy_v2(stream: usize) { need_context!(); assert_eq!(stream, 0x5); log("destroy stream".into()); 0 }
    fn cuStreamSynchronize(_stream: usize) { need_context!(); 0 }
    fn cuModuleLoadDataEx(module: *mut *mut String, ptx: *const c_char, options: c_uint, keys: *const c_uint, values: *const *mut c_void) {
        need_context!();
        let text = CStr::from_ptr(ptx).to_str().expect("PTX is text");
        let entry = text.split_once(".entry ").map(|(_, rest)| rest.split('(').next().expect("a name").to_owned());
        let entry = entry.filter(|name| !std::env::var("FAKE_REJECT").is_ok_and(|rejected| rejected == *name));
        let Some(entry) = entry else {
            assert_eq!((options, *keys, *keys.add(1)), (2, 5, 6));
            let message = c"ptxas error: line 7".to_bytes_with_nul();
            assert!(message.len() <= *values.add(1) as usize);
            std::ptr::copy_nonoverlapping(message.as_ptr(), (*values).cast::<u8>(), message.len());
            return INVALID_PTX;
        };
        // Long enough for other threads to want the same kernel.
        std::thread::sleep(std::time::Duration::from_millis(50));
        log(format!("load {entry}"));
        *module = Box::into_raw(Box::new(entry));
        0
    }
    fn cuModuleUnload(module: *mut String) { need_context!(); log(format!("unload {module}", module = &*module)); 0 }
    fn cuModuleGetFunction(function: *mut *mut String, module: *mut String, name: *const c_char) {
        if CStr::from_ptr(name).to_str() != Ok(&*module) {
            return NOT_FOUND;
        }
        *function = module;
        0
    }
    fn cuFuncSetAttribute(function: *mut String, attribute: c_uint, value: c_int) {
        // 8: CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES.
        assert_eq!(attribute, 8);
        log(format!("shared {function} {value}", function = &*function));
        0
    }
    fn cuLaunchKernel(
        function: *mut String, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
        stream: usize, params: *const *const u8, extra: *const c_void,
    ) {
        need_context!();
        assert_eq!((gy, gz, by, bz, extra), (1, 1, 1, 1, std::ptr::null()));
        // Every parameter struct starts with the address of q: v3's with the map, which the fixture starts with it.
        let q = (*params).cast::<u64>().read_unaligned();
        log(format!("launch {function} grid {gx} block {bx} shared {shared} stream {stream} q {q:#x}", function = &*function));
        0
    }
    /// Writes the map down and makes one that starts with the address. Left out of the build that stands for a driver without it.
    #[cfg(not(lacks_tensor_maps))]
    fn cuTensorMapEncodeTiled(
        map: *mut [u64; 16], data_type: c_uint, rank: c_uint, address: u64, extents: *const [u64; 4], strides: *const [u64; 3],
        box_extents: *const [u32; 4], element_strides: *const [u32; 4], interleave: c_uint, swizzle: c_uint, l2_promotion: c_uint,
        fill: c_uint,
    ) {
        need_context!();
        // What the driver checks of rank, alignments and sizes.
        assert_eq!((rank, *element_strides), (4, [1; 4]));
        assert_eq!((map.addr() % 64, address % 16), (0, 0));
        assert!((*extents).iter().all(|&extent| (1..=1 << 32).contains(&extent)));
        assert!((*strides).iter().all(|&stride| stride > 0 && stride % 16 == 0 && stride < 1 << 40));
        assert!((*box_extents).iter().all(|extent| (1..=256).contains(extent)));
        // Zeros outside, 128-byte swizzle and L2 sectors.
        assert_eq!((interleave, swizzle, l2_promotion, fill), (0, 3, 2, 0));
        log(format!(
            "map type {data_type} address {address:#x} extents {:?} strides {:?} box {:?}", *extents, *strides, *box_extents
        ));
        if std::env::var_os("FAKE_MAP_FAILS").is_some() {
            return INVALID_VALUE;
        }
        *map = [0; 16];
        (*map)[0] = address;
        0
    }
    fn cuEventCreate(event: *mut usize, flags: c_uint) { need_context!(); assert_eq!(flags, 0); *event = 0xe; 0 }
    fn cuEventRecord(_event: usize, _stream: usize) { need_context!(); 0 }
    fn cuEventSynchronize(_event: usize) { need_context!(); 0 }
    fn cuEventElapsedTime(milliseconds: *mut f32, _start: usize, _end: usize) { *milliseconds = 1.5; 0 }
    fn cuEventDestroy_v2(_event: usize) { need_context!(); 0 }
    fn cuGetErrorName(code: u32, text: *mut *const c_char) { *text = if code == INVALID_PTX { c"CUDA_ERROR_INVALID_PTX" } else { c"CUDA_ERROR_FAKE" }.as_ptr(); 0 }
    fn cuGetErrorString(_code: u32, text: *mut *const c_char) { *text = c"words of the driver".as_ptr(); 0 }
}

fn allocate(address: *mut u64, bytes: usize) -> u32 {
    let memory = setting("FAKE_MEMORY", 1 << 30);
    if USED.load(SeqCst) + KEPT.load(SeqCst) + bytes as u64 > memory {
        return OUT_OF_MEMORY;
    }
    USED.fetch_add(bytes as u64, SeqCst);
    // SAFETY: nobody asks for 0 bytes; the address is valid by the driver API.
    unsafe { *address = alloc(Layout::from_size_align(bytes, 256).expect("a sound layout")) as u64 };
    // SAFETY: as above.
    let address = unsafe { *address };
    ALLOCATIONS.lock().expect("no panic").get_or_insert_default().insert(address, bytes);
    0
}

fn free(address: u64, keep: bool) -> u32 {
    let Some(bytes) = ALLOCATIONS.lock().expect("no panic").get_or_insert_default().remove(&address) else {
        return INVALID_VALUE;
    };
    USED.fetch_sub(bytes as u64, SeqCst);
    if keep {
        KEPT.fetch_add(bytes as u64, SeqCst);
    }
    // SAFETY: `allocate` returned the address, with this layout.
    unsafe { dealloc(address as *mut u8, Layout::from_size_align(bytes, 256).expect("a sound layout")) };
    0
}
