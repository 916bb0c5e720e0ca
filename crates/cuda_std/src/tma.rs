//! The copy engine (TMA): boxes of a tensor of 4 or 5 dimensions, and plain runs of bytes, from global to shared memory; and boxes back.
//!
//! A tensor map says where the tensor is, its extents, strides, box and swizzle; the host encodes it. Parts of a box outside the
//! tensor are read as zero.

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

/// [`load_if`] into the thread blocks of the cluster whose bits are set in `to`: at the same shared address of each, completing on the mbarrier at
/// the same address of each.
///
/// PTX `@p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster`, least SM 9.0.
///
/// # Safety
/// As for [`load_if`], in each of these thread blocks, none of which has exited.
#[inline(always)]
pub unsafe fn load_multicast_if(shared: u32, map: u64, at: [u32; 4], barrier: u32, to: u16, elected: bool) {
    // SAFETY: the caller guarantees addresses and waits.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {8}, 0;",
            "@p cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [{0}], [{1}, {{{2}, {3}, {4}, {5}}}], [{6}], {7}; }}",
            in(reg32) shared, in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3],
            in(reg32) barrier, in(reg16) to, in(reg32) elected as u32, options(nostack));
    }
}

/// [`load_if`] of a 5-dimensional tensor.
///
/// PTX `@p cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes`, least SM 9.0.
///
/// # Safety
/// As for [`load_if`].
#[inline(always)]
pub unsafe fn load_5d_if(shared: u32, map: u64, at: [u32; 5], barrier: u32, elected: bool) {
    // SAFETY: the caller guarantees addresses and waits.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {8}, 0;",
            "@p cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [{1}, {{{2}, {3}, {4}, {5}, {6}}}], [{7}]; }}",
            in(reg32) shared, in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3], in(reg32) at[4],
            in(reg32) barrier, in(reg32) elected as u32, options(nostack));
    }
}

/// Starts loading `bytes` neighbouring bytes if `elected`, without a branch; they complete on the mbarrier.
///
/// PTX `@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes`, least SM 9.0; one thread of a warp is elected, as for
/// [`load_if`].
///
/// # Safety
/// Both addresses and `bytes` are multiples of 16, and all of them in bounds; the barrier expects the bytes; nobody touches them before
/// the barrier's phase completes.
#[inline(always)]
pub unsafe fn load_bytes_if(shared: u32, global: u64, bytes: u32, barrier: u32, elected: bool) {
    // SAFETY: the caller guarantees addresses and waits.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {4}, 0;",
            "@p cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{0}], [{1}], {2}, [{3}]; }}",
            in(reg32) shared, in(reg64) global, in(reg32) bytes, in(reg32) barrier, in(reg32) elected as u32, options(nostack));
    }
}

/// Starts storing the box at `at` (innermost coordinate first) if `elected`, without a branch; it belongs to the thread's next group, see [`commit_group`]. Parts
/// of the box outside the tensor are left out.
///
/// PTX `@p cp.async.bulk.tensor.4d.global.shared::cta.bulk_group`, least SM 9.0; one thread of a warp is elected, as for [`load_if`].
///
/// # Safety
/// `shared` is aligned to the swizzle pattern and holds a box, whose writers have called [`fence`] and met the elected thread since; nobody writes to the box before
/// the group is waited for, and nobody else to its place in the tensor.
#[inline(always)]
pub unsafe fn store_if(map: u64, at: [u32; 4], shared: u32, elected: bool) {
    // SAFETY: the caller guarantees addresses and waits.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {6}, 0;",
            "@p cp.async.bulk.tensor.4d.global.shared::cta.bulk_group [{0}, {{{1}, {2}, {3}, {4}}}], [{5}]; }}",
            in(reg64) map, in(reg32) at[0], in(reg32) at[1], in(reg32) at[2], in(reg32) at[3], in(reg32) shared,
            in(reg32) elected as u32, options(nostack));
    }
}

/// Makes a group of the stores that this thread has started since the last one; without any it has none to wait for.
///
/// PTX `cp.async.bulk.commit_group`, least SM 9.0, any thread.
#[inline(always)]
pub fn commit_group() {
    // SAFETY: only counts.
    unsafe { ptx!("cp.async.bulk.commit_group;", options(nostack)) }
}

/// Waits until the stores of all groups of this thread but the last `PENDING` have read shared memory, which may then be written.
///
/// PTX `cp.async.bulk.wait_group.read`, least SM 9.0, any thread.
#[inline(always)]
pub fn wait_group_read<const PENDING: usize>() {
    // SAFETY: only waits.
    unsafe { ptx!("cp.async.bulk.wait_group.read {};", const PENDING, options(nostack)) }
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
