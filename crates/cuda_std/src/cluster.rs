//! Clusters of thread blocks, which read each other's shared memory (least SM 9.0).

/// Which thread block of its cluster this one is.
///
/// PTX `mov.u32 d, %cluster_ctarank`, least SM 9.0.
#[inline(always)]
pub fn rank() -> u32 {
    let result: u32;
    // SAFETY: reads a register.
    unsafe {
        ptx!("mov.u32 {}, %cluster_ctarank;", out(reg32) result, options(pure, nomem, nostack));
    }
    result
}

/// Thread blocks of the cluster.
///
/// PTX `mov.u32 d, %cluster_nctarank`, least SM 9.0.
#[inline(always)]
pub fn size() -> u32 {
    let result: u32;
    // SAFETY: reads a register.
    unsafe {
        ptx!("mov.u32 {}, %cluster_nctarank;", out(reg32) result, options(pure, nomem, nostack));
    }
    result
}

/// Waits for all threads of the cluster; what they have written before is then there for all.
///
/// PTX `barrier.cluster.arrive.release.aligned`, `barrier.cluster.wait.acquire.aligned`, least SM 9.0.
///
/// # Safety
/// All threads of all thread blocks of the cluster call it, converged.
#[inline(always)]
pub unsafe fn sync() {
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("barrier.cluster.arrive.release.aligned;", options(nostack));
        ptx!("barrier.cluster.wait.acquire.aligned;", options(nostack));
    }
}

/// Says that this thread has come here, without waiting, and hands nothing over.
///
/// PTX `barrier.cluster.arrive.relaxed.aligned`, least SM 9.0. With `.release`, as [`sync`] has it, ptxas 13.0 puts a fence of the whole GPU in front, which
/// waits for all writes that are on their way.
///
/// # Safety
/// As for [`sync`]; [`wait`] follows before the next.
#[inline(always)]
pub unsafe fn arrive_relaxed() {
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("barrier.cluster.arrive.relaxed.aligned;", options(nostack));
    }
}

/// Waits until all threads of the cluster have called [`arrive_relaxed`].
///
/// PTX `barrier.cluster.wait.acquire.aligned`, least SM 9.0.
///
/// # Safety
/// As for [`sync`], after [`arrive_relaxed`].
#[inline(always)]
pub unsafe fn wait() {
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("barrier.cluster.wait.acquire.aligned;", options(nostack));
    }
}

/// The address, in the cluster's shared memory, of what is at `shared` in the thread block `rank`.
///
/// PTX `mapa.shared::cluster.u32 d, a, b`, least SM 9.0.
#[inline(always)]
pub fn map(shared: u32, rank: u32) -> u32 {
    let result: u32;
    // SAFETY: computes an address.
    unsafe {
        ptx!("mapa.shared::cluster.u32 {}, {}, {};",
            out(reg32) result, in(reg32) shared, in(reg32) rank, options(pure, nomem, nostack));
    }
    result
}

/// Reads a float.
///
/// PTX `ld.shared::cluster.f32`, least SM 9.0.
///
/// # Safety
/// An address of [`map`], a multiple of 4, of a thread block that has not exited.
#[inline(always)]
pub unsafe fn load_f32(address: u32) -> f32 {
    let value: f32;
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("ld.shared::cluster.f32 {}, [{}];", out(reg32) value, in(reg32) address, options(nostack, readonly));
    }
    value
}

/// Sends a float to a thread block of the cluster; the phase of `barrier` there counts its 4 bytes when it has arrived, and whoever waits for that phase sees it.
///
/// PTX `st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32`, least SM 9.0.
///
/// # Safety
/// Addresses of [`map`] of the same thread block, which does not exit before the phase ends; that of the float is a multiple of 4, nobody else touches it
/// before the phase ends, and the phase expects the bytes.
#[inline(always)]
pub unsafe fn send_f32(address: u32, value: f32, barrier: u32) {
    // SAFETY: the caller guarantees addresses and barrier.
    unsafe {
        ptx!("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.f32 [{}], {}, [{}];",
            in(reg32) address, in(reg32) value, in(reg32) barrier, options(nostack));
    }
}

/// Sends two floats; see [`send_f32`].
///
/// PTX `st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32`, least SM 9.0.
///
/// # Safety
/// As for [`send_f32`], of 8 bytes.
#[inline(always)]
pub unsafe fn send_f32x2(address: u32, [a, b]: [f32; 2], barrier: u32) {
    // SAFETY: the caller guarantees addresses and barrier.
    unsafe {
        ptx!("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [{}], {{{}, {}}}, [{}];",
            in(reg32) address, in(reg32) a, in(reg32) b, in(reg32) barrier, options(nostack));
    }
}

/// Reads two floats.
///
/// PTX `ld.shared::cluster.v2.f32`, least SM 9.0.
///
/// # Safety
/// An address of [`map`], a multiple of 8, of a thread block that has not exited.
#[inline(always)]
pub unsafe fn load_f32x2(address: u32) -> [f32; 2] {
    let (a, b): (f32, f32);
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("ld.shared::cluster.v2.f32 {{{}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, in(reg32) address, options(nostack, readonly));
    }
    [a, b]
}

/// Reads four floats.
///
/// PTX `ld.shared::cluster.v4.f32`, least SM 9.0.
///
/// # Safety
/// As for [`load_f32x2`], a multiple of 16.
#[inline(always)]
pub unsafe fn load_f32x4(address: u32) -> [f32; 4] {
    let (a, b, c, d): (f32, f32, f32, f32);
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("ld.shared::cluster.v4.f32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) address, options(nostack, readonly));
    }
    [a, b, c, d]
}
