//! Collectives of the 32 threads of a warp.

/// Value of lane `lane ^ mask` for every lane.
///
/// PTX `shfl.sync.bfly.b32 d, a, mask, 0x1f, 0xffffffff`, least SM 3.0.
///
/// # Safety
/// All threads of the warp call it, converged, with one `mask` below 32.
#[inline(always)]
pub unsafe fn butterfly(value: f32, mask: u32) -> f32 {
    let result: f32;
    // No `pure`: LLVM must not sink a collective into a branch that only some lanes take.
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("shfl.sync.bfly.b32 {}, {}, {}, 0x1f, 0xffffffff;",
            out(reg32) result, in(reg32) value, in(reg32) mask, options(nomem, nostack));
    }
    result
}

/// Value of lane `lane` for every lane.
///
/// PTX `shfl.sync.idx.b32 d, a, lane, 0x1f, 0xffffffff`, least SM 3.0.
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn broadcast(value: u32, lane: u32) -> u32 {
    let result: u32;
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("shfl.sync.idx.b32 {}, {}, {}, 0x1f, 0xffffffff;",
            out(reg32) result, in(reg32) value, in(reg32) lane, options(nomem, nostack));
    }
    result
}

/// [`broadcast`] of a float; `lane` may differ from lane to lane.
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn shuffle(value: f32, lane: u32) -> f32 {
    // SAFETY: passed on to the caller.
    f32::from_bits(unsafe { broadcast(value.to_bits(), lane) })
}

/// Maximum over the warp, in every lane.
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn max(value: f32) -> f32 {
    // SAFETY: passed on to the caller.
    unsafe { reduce(value, 16, crate::math::max) }
}

/// Sum over the warp, in every lane, in one fixed order.
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn sum(value: f32) -> f32 {
    // SAFETY: passed on to the caller.
    unsafe { reduce(value, 16, |a, b| a + b) }
}

/// Maximum over the four lanes that share a row of an mma accumulator, in each of them.
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn quad_max(value: f32) -> f32 {
    // SAFETY: passed on to the caller.
    unsafe { reduce(value, 2, crate::math::max) }
}

/// Sum over the four lanes that share a row of an mma accumulator, in each of them.
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn quad_sum(value: f32) -> f32 {
    // SAFETY: passed on to the caller.
    unsafe { reduce(value, 2, |a, b| a + b) }
}

#[inline(always)]
unsafe fn reduce(mut value: f32, mut distance: u32, combine: impl Fn(f32, f32) -> f32) -> f32 {
    while distance > 0 {
        // SAFETY: passed on to the caller.
        value = combine(value, unsafe { butterfly(value, distance) });
        distance /= 2;
    }
    value
}

/// Makes shared-memory writes of the warp's lanes visible to each other.
///
/// PTX `bar.warp.sync 0xffffffff`, least SM 3.0 (a real barrier since 7.0).
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn sync() {
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("bar.warp.sync 0xffffffff;", options(nostack));
    }
}
