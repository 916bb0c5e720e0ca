//! Memory, and pools of it.

use crate::streams::{self, Node};
use crate::*;
use std::alloc::{Layout, alloc, dealloc};
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst};

/// The handle of the first memory pool; the others follow.
const POOL: usize = 0xb0;

/// Bytes, and whether they were allocated in the order of a stream.
static ALLOCATIONS: Mutex<Option<HashMap<u64, (usize, bool)>>> = Mutex::new(None);
static USED: AtomicU64 = AtomicU64::new(0);
/// Freed memory that the pool has not given back yet.
static KEPT: AtomicU64 = AtomicU64::new(0);
static POOLS: AtomicUsize = AtomicUsize::new(0);

fn is_pool(pool: usize) -> bool {
    (POOL..POOL + POOLS.load(SeqCst)).contains(&pool)
}

driver! {
    /// Left out of the build that stands for a driver without memory pools.
    #[cfg(not(lacks_pools))]
    fn cuMemPoolCreate(pool: *mut usize, props: *const [c_int; 4]) {
        need_context!();
        // Pinned memory without handles, on the current GPU.
        assert_eq!(Some(*props), current_device().map(|device| [1, 0, 1, device as c_int]));
        *pool = POOL + POOLS.fetch_add(1, SeqCst);
        0
    }
    fn cuMemPoolDestroy(pool: usize) { assert!(is_pool(pool)); log("destroy pool".into()); 0 }
    fn cuMemPoolSetAttribute(pool: usize, attribute: c_uint, value: *const u64) {
        assert!(is_pool(pool));
        log(format!("pool attribute {attribute} {:#x}", *value));
        0
    }
    fn cuMemPoolGetAttribute(pool: usize, attribute: c_uint, value: *mut u64) {
        assert!(is_pool(pool));
        *value = match attribute {
            5 => USED.load(SeqCst) + KEPT.load(SeqCst),
            7 => USED.load(SeqCst),
            _ => return INVALID_VALUE,
        };
        0
    }
    fn cuMemPoolSetAccess(pool: usize, access: *const [c_int; 3], count: usize) {
        assert!(is_pool(pool));
        assert_eq!(((*access)[0], (*access)[2], count), (1, 3, 1));
        log(format!("pool access {}", (*access)[1]));
        0
    }
    fn cuMemPoolTrimTo(pool: usize, keep: usize) {
        assert!(is_pool(pool));
        assert_eq!(keep, 0);
        KEPT.store(0, SeqCst);
        log("trim".into());
        0
    }
    fn cuMemAllocFromPoolAsync(address: *mut u64, bytes: usize, pool: usize, stream: usize) {
        need_context!();
        assert!(is_pool(pool));
        allocate_async(address, bytes, stream)
    }
    fn cuMemAllocAsync(address: *mut u64, bytes: usize, stream: usize) { need_context!(); allocate_async(address, bytes, stream) }
    fn cuMemAlloc_v2(address: *mut u64, bytes: usize) {
        need_context!();
        get!(streams::refuse_in_capture());
        log(format!("malloc {bytes}"));
        allocate(address, bytes, false)
    }
    fn cuMemFreeAsync(address: u64, stream: usize) {
        need_context!();
        if get!(streams::captured(stream, || Node::Free)) {
            return 0;
        }
        free(address, true)
    }
    fn cuMemFree_v2(address: u64) { need_context!(); log("free".into()); free(address, false) }
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) {
        need_context!();
        *total = setting("FAKE_MEMORY", 1 << 30) as usize;
        *free = *total - (USED.load(SeqCst) + KEPT.load(SeqCst)) as usize;
        0
    }
    fn cuMemcpyHtoD_v2(to: u64, from: *const u8, bytes: usize) { cuMemcpyHtoDAsync_v2(to, from, bytes, 0) }
    fn cuMemcpyDtoH_v2(to: *mut u8, from: u64, bytes: usize) { cuMemcpyDtoHAsync_v2(to, from, bytes, 0) }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const u8, bytes: usize, stream: usize) {
        need_context!();
        if get!(streams::captured(stream, || Node::Copy)) {
            return 0;
        }
        std::ptr::copy_nonoverlapping(from, to as *mut u8, bytes);
        0
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut u8, from: u64, bytes: usize, stream: usize) {
        need_context!();
        if get!(streams::captured(stream, || Node::Copy)) {
            return 0;
        }
        std::ptr::copy_nonoverlapping(from as *const u8, to, bytes);
        0
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: usize) {
        need_context!();
        if get!(streams::captured(stream, || Node::Copy)) {
            return 0;
        }
        std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes);
        0
    }
    fn cuMemcpyPeerAsync(to: u64, to_context: usize, from: u64, from_context: usize, bytes: usize, stream: usize) {
        log(format!("peer copy {from_context:#x} to {to_context:#x}: {bytes}"));
        cuMemcpyDtoDAsync_v2(to, from, bytes, stream)
    }
    fn cuMemsetD8Async(to: u64, byte: u8, bytes: usize, stream: usize) {
        need_context!();
        if get!(streams::captured(stream, || Node::Fill)) {
            return 0;
        }
        std::ptr::write_bytes(to as *mut u8, byte, bytes);
        0
    }
}

/// An address in a graph, of which nothing is ever read.
const IN_A_GRAPH: u64 = 0x6_0000;

fn allocate_async(address: *mut u64, bytes: usize, stream: usize) -> u32 {
    if get!(streams::captured(stream, || Node::Allocation(bytes))) {
        // SAFETY: the address is valid by the driver API.
        unsafe { *address = IN_A_GRAPH };
        return 0;
    }
    allocate(address, bytes, true)
}

fn allocate(address: *mut u64, bytes: usize, stream_ordered: bool) -> u32 {
    if bytes == 0 {
        return INVALID_VALUE;
    }
    let memory = setting("FAKE_MEMORY", 1 << 30);
    if USED.load(SeqCst) + KEPT.load(SeqCst) + bytes as u64 > memory {
        return OUT_OF_MEMORY;
    }
    USED.fetch_add(bytes as u64, SeqCst);
    // SAFETY: there are bytes; the address is valid by the driver API.
    let allocated = unsafe {
        *address = alloc(Layout::from_size_align(bytes, 256).expect("a sound layout")) as u64;
        *address
    };
    ALLOCATIONS.lock().expect("no panic").get_or_insert_default().insert(allocated, (bytes, stream_ordered));
    0
}

fn free(address: u64, stream_ordered: bool) -> u32 {
    let mut allocations = ALLOCATIONS.lock().expect("no panic");
    let allocations = allocations.get_or_insert_default();
    let bytes = match allocations.get(&address) {
        Some(&(bytes, kind)) if kind == stream_ordered => bytes,
        _ => return INVALID_VALUE,
    };
    allocations.remove(&address);
    USED.fetch_sub(bytes as u64, SeqCst);
    if stream_ordered {
        KEPT.fetch_add(bytes as u64, SeqCst);
    }
    // SAFETY: `allocate` returned the address, with this layout.
    unsafe { dealloc(address as *mut u8, Layout::from_size_align(bytes, 256).expect("a sound layout")) };
    0
}
