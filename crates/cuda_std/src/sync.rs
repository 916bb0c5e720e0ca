//! Barriers of a thread block.

/// Waits for all threads of the block; their shared-memory accesses before it happen before those after it.
///
/// PTX `bar.sync 0`, any SM.
///
/// # Safety
/// All threads of the block call it the same number of times; the threads of a warp call it converged.
#[inline(always)]
pub unsafe fn block() {
    // The intrinsic rather than inline PTX: LLVM knows it as convergent and never moves it into a branch.
    #[cfg(target_arch = "nvptx64")]
    // SAFETY: the caller guarantees participation.
    unsafe {
        core::arch::nvptx::_syncthreads();
    }
    #[cfg(not(target_arch = "nvptx64"))]
    unreachable!("a device instruction was called on the host")
}

/// [`block`], and whether `condition` holds in any thread, for every thread.
///
/// PTX `barrier.cta.red.or.aligned.pred d, 0, a` (`bar.red`), least SM 2.0.
///
/// # Safety
/// As for [`block`].
#[inline(always)]
pub unsafe fn block_any(condition: bool) -> bool {
    let result: u32;
    // SAFETY: the caller guarantees participation.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; bar.red.or.pred p, 0, p; selp.u32 {0}, 1, 0, p; }}",
            out(reg32) result, in(reg32) condition as u32, options(nostack));
    }
    result != 0
}

/// Waits on named barrier `barrier` until `threads` threads have arrived, counting those of [`arrive`].
///
/// PTX `bar.sync barrier, threads`, least SM 2.0.
///
/// # Safety
/// Whole warps call it, converged; `barrier` is in `1..16` (0 is [`block`]'s), `threads` a multiple of 32.
#[inline(always)]
pub unsafe fn named(barrier: u32, threads: u32) {
    // SAFETY: the caller guarantees participation.
    unsafe {
        ptx!("bar.sync {}, {};", in(reg32) barrier, in(reg32) threads, options(nostack));
    }
}

/// Arrives at named barrier `barrier` without waiting.
///
/// PTX `bar.arrive barrier, threads`, least SM 2.0.
///
/// # Safety
/// As for [`named`].
#[inline(always)]
pub unsafe fn arrive(barrier: u32, threads: u32) {
    // SAFETY: the caller guarantees participation.
    unsafe {
        ptx!("bar.arrive {}, {};", in(reg32) barrier, in(reg32) threads, options(nostack));
    }
}
