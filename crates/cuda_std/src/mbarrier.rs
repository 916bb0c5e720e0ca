//! Barriers in shared memory that count threads and bytes (mbarrier): how the copy engine tells threads that data has landed, and
//! how threads tell the loader that a buffer is free.
//!
//! A barrier has a phase, 0 or 1, that flips each time it completes. A thread waits for the completion of a phase by its parity;
//! a fresh barrier is in phase 0, so waiting for parity 1 returns at once.

/// Sets up the barrier for `arrivals` arrivals a phase.
///
/// PTX `mbarrier.init.shared::cta.b64`, least SM 8.0, one thread; then [`fence_init`] and a barrier before others use it.
///
/// # Safety
/// The address is a multiple of 8 and nobody uses the barrier yet.
#[inline(always)]
pub unsafe fn init(barrier: u32, arrivals: u32) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("mbarrier.init.shared::cta.b64 [{}], {};", in(reg32) barrier, in(reg32) arrivals, options(nostack));
    }
}

/// Makes initialised barriers visible to the copy engine.
///
/// PTX `fence.mbarrier_init.release.cluster`, least SM 9.0, the thread that initialised them.
#[inline(always)]
pub fn fence_init() {
    // SAFETY: only orders.
    unsafe {
        ptx!("fence.mbarrier_init.release.cluster;", options(nostack));
    }
}

/// Arrives once and adds `bytes` to what the phase waits for, if `elected`, without a branch.
///
/// PTX `@p mbarrier.arrive.expect_tx.shared::cta.b64`, least SM 9.0; one thread of a warp is elected.
///
/// # Safety
/// The barrier is initialised, and copies of exactly `bytes` bytes will complete on it in this phase.
#[inline(always)]
pub unsafe fn arrive_expect_if(barrier: u32, bytes: u32, elected: bool) {
    // SAFETY: the caller guarantees the barrier.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {2}, 0; @p mbarrier.arrive.expect_tx.shared::cta.b64 _, [{0}], {1}; }}",
            in(reg32) barrier, in(reg32) bytes, in(reg32) elected as u32, options(nostack));
    }
}

/// Arrives once if `condition`, without a branch that could tear converged warps apart.
///
/// PTX `@p mbarrier.arrive.shared::cta.b64`, least SM 8.0, any thread.
///
/// # Safety
/// The barrier is initialised.
#[inline(always)]
pub unsafe fn arrive_if(barrier: u32, condition: bool) {
    // SAFETY: the caller guarantees the barrier.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; @p mbarrier.arrive.shared::cta.b64 _, [{0}]; }}",
            in(reg32) barrier, in(reg32) condition as u32, options(nostack));
    }
}

/// Arrives once at a barrier of any thread block of the cluster, if `condition`, without a branch. It hands over no writes to other thread blocks: with the
/// scope of the cluster, ptxas 13.0 puts a fence of the whole GPU in front, which takes longer than a step of a product (H200).
///
/// PTX `@p mbarrier.arrive.shared::cluster.b64`, least SM 9.0, any thread.
///
/// # Safety
/// An address of [`cluster::map`](crate::cluster::map), of an initialised barrier of a thread block that has not exited.
#[inline(always)]
pub unsafe fn arrive_cluster_if(barrier: u32, condition: bool) {
    // SAFETY: the caller guarantees the barrier.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; @p mbarrier.arrive.shared::cluster.b64 _, [{0}]; }}",
            in(reg32) barrier, in(reg32) condition as u32, options(nostack));
    }
}

/// Waits until the phase of parity `parity` has completed.
///
/// PTX `mbarrier.try_wait.parity.shared::cta.b64` in a loop, least SM 9.0, any thread.
///
/// # Safety
/// The barrier is initialised.
#[allow(named_asm_labels, reason = "inside braces a PTX label is local to the statement")]
#[inline(always)]
pub unsafe fn wait(barrier: u32, parity: u32) {
    // The loop is inside the statement: LLVM must not copy a wait into two arms of a branch.
    // SAFETY: the caller guarantees the barrier.
    unsafe {
        ptx!("{{ .reg .pred p; WAIT: mbarrier.try_wait.parity.shared::cta.b64 p, [{0}], {1}; @!p bra WAIT; }}",
            in(reg32) barrier, in(reg32) parity, options(nostack));
    }
}
