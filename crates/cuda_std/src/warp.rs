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

/// Transposes the 4 x 4 words of every quad: lane `i` of four neighbours brings row `i` and takes column `i`.
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn quad_transpose([a, b, c, d]: [u32; 4]) -> [u32; 4] {
    // SAFETY: passed on to the caller.
    unsafe {
        let ([a, b], [c, d]) = (swap_across(a, b, 1), swap_across(c, d, 1));
        let ([a, c], [b, d]) = (swap_across(a, c, 2), swap_across(b, d, 2));
        [a, b, c, d]
    }
}

/// Index of the warp in its block, as a value that the compiler knows to be the same for all lanes.
///
/// PTX `shfl.sync.idx.b32` of `%tid.x / 32`, least SM 3.0.
///
/// # Safety
/// All threads of the warp call it, converged, in a one-dimensional block.
#[inline(always)]
pub unsafe fn warp_index() -> u32 {
    // SAFETY: the caller guarantees convergence.
    unsafe { broadcast(crate::thread::index() / 32, 0) }
}

/// Exchanges, between lanes `distance` apart, the `high` word of the lower lane and the `low` word of the upper one.
#[inline(always)]
unsafe fn swap_across(low: u32, high: u32, distance: u32) -> [u32; 2] {
    let upper = crate::thread::lane() & distance != 0;
    let (kept, sent) = if upper { (high, low) } else { (low, high) };
    // SAFETY: passed on to the caller.
    let got = unsafe { butterfly(f32::from_bits(sent), distance) }.to_bits();
    if upper { [got, kept] } else { [kept, got] }
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

/// Whether `condition` holds in any lane, for every lane.
///
/// PTX `vote.sync.any.pred d, a, 0xffffffff`, least SM 3.0.
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn any(condition: bool) -> bool {
    let result: u32;
    // No `pure`: LLVM must not sink a collective into a branch that only some lanes take.
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; vote.sync.any.pred p, p, 0xffffffff; selp.u32 {0}, 1, 0, p; }}",
            out(reg32) result, in(reg32) condition as u32, options(nomem, nostack));
    }
    result != 0
}

/// The lanes in which `condition` holds: bit `i` is lane `i`.
///
/// PTX `vote.sync.ballot.b32 d, a, 0xffffffff`, least SM 3.0.
///
/// # Safety
/// All threads of the warp call it, converged.
#[inline(always)]
pub unsafe fn ballot(condition: bool) -> u32 {
    let result: u32;
    // No `pure`, as for `any`.
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; vote.sync.ballot.b32 {0}, p, 0xffffffff; }}",
            out(reg32) result, in(reg32) condition as u32, options(nomem, nostack));
    }
    result
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
