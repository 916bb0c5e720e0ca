//! The tensor copy engine (TMA): boxes of a 4-dimensional tensor between global and shared memory.
//!
//! A tensor map says where the tensor is, its extents, strides, box and swizzle; the host encodes it. Parts of a box outside the
//! tensor are read as zero and not written.

/// Generic address of the first parameter of kernel `$symbol`, where the copy engine reads tensor maps in place.
///
/// PTX `cvta.param.u64`, least SM 7.0 and PTX ISA 7.7, any thread, inside that kernel. LLVM names a parameter after its kernel.
#[macro_export]
macro_rules! param_address {
    ($symbol:ident) => {{
        #[cfg(target_arch = "nvptx64")]
        {
            let address: u64;
            // SAFETY: takes an address.
            unsafe {
                core::arch::asm!(
                    concat!("{{ .reg .u64 a; mov.b64 a, ", stringify!($symbol), "_param_0; cvta.param.u64 {}, a; }}"),
                    out(reg64) address, options(pure, nomem, nostack)
                );
            }
            address
        }
        #[cfg(not(target_arch = "nvptx64"))]
        unreachable!("a device instruction was called on the host")
    }};
}

/// Fetches a tensor map ahead of its first use.
///
/// PTX `prefetch.tensormap`, least SM 9.0, one thread.
///
/// # Safety
/// `map` is the generic address of a tensor map.
#[inline(always)]
pub unsafe fn prefetch_map(map: u64) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("prefetch.tensormap [{}];", in(reg64) map, options(nostack));
    }
}

/// Starts loading the box at `at` (innermost coordinate first) if `elected`, without a branch; its bytes complete on the mbarrier.
///
/// PTX `@p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes`, least SM 9.0; one thread of a warp is
/// elected, so that the warp around it stays converged and its addresses stay in uniform registers.
///
/// # Safety
/// `shared` is aligned to the swizzle pattern and holds a box; the barrier expects its bytes; nobody touches the box before the
/// barrier's phase completes.
#[inline(always)]
pub unsafe fn load_if(shared: u32, map: u64, at: [u32; 4], barrier: u32, elected: bool) {
    // SAFETY: the caller guarantees addresses and waits.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {7}, 0;",
            "@p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [{1}, {{{2}, {3}, {4}, {5}}}], [{6}]; }}",
            in(reg32) shared, in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3],
            in(reg32) barrier, in(reg32) elected as u32, options(nostack));
    }
}

/// Starts storing the box at `at` (innermost coordinate first) if `elected`, without a branch.
///
/// PTX `@p cp.async.bulk.tensor.4d.global.shared::cta.bulk_group`, least SM 9.0; one thread of a warp is elected, see [`load_if`].
///
/// # Safety
/// The box was written before a [`fence`] of its writers and a barrier; nobody overwrites it before [`wait_stores_read`].
#[inline(always)]
pub unsafe fn store_if(shared: u32, map: u64, at: [u32; 4], elected: bool) {
    // SAFETY: the caller guarantees addresses and waits.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {6}, 0;",
            "@p cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [{0}, {{{1}, {2}, {3}, {4}}}], [{5}]; }}",
            in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3], in(reg32) shared,
            in(reg32) elected as u32, options(nostack));
    }
}

/// Closes the group of the stores that this thread has started.
///
/// PTX `cp.async.bulk.commit_group`, least SM 9.0, the storing thread.
#[inline(always)]
pub fn commit_stores() {
    // SAFETY: touches no memory by itself.
    unsafe {
        ptx!("cp.async.bulk.commit_group;", options(nostack));
    }
}

/// Waits until all stores of this thread have read their shared memory.
///
/// PTX `cp.async.bulk.wait_group.read 0`, least SM 9.0, the storing thread.
#[inline(always)]
pub fn wait_stores_read() {
    // SAFETY: only waits.
    unsafe {
        ptx!("cp.async.bulk.wait_group.read 0;", options(nostack));
    }
}

/// Orders this thread's shared-memory writes before later accesses of the copy engine and the tensor cores.
///
/// PTX `fence.proxy.async.shared::cta`, least SM 9.0, every writing thread, before the barrier.
#[inline(always)]
pub fn fence() {
    // SAFETY: only orders.
    unsafe {
        ptx!("fence.proxy.async.shared::cta;", options(nostack));
    }
}
