//! Copies from global to shared memory that run beside the threads (cp.async), and plain global accesses.

/// Starts copying 16 bytes from global to shared memory, past L1.
///
/// PTX `cp.async.cg.shared.global [shared], [global], 16`, least SM 8.0, any thread.
///
/// # Safety
/// Both addresses are multiples of 16 and in bounds. Nobody touches the 16 bytes of shared memory until the copy's group was
/// waited for ([`wait_group`]) and, for other threads, a barrier was passed.
#[inline(always)]
pub unsafe fn async_16(shared: u32, global: u64) {
    // SAFETY: the caller guarantees addresses and waits.
    unsafe {
        ptx!("cp.async.cg.shared.global [{}], [{}], 16;", in(reg32) shared, in(reg64) global, options(nostack));
    }
}

/// Starts copying the first `bytes` (0 or 16) of 16 bytes and fills the rest with zeros.
///
/// PTX `cp.async.cg.shared.global [shared], [global], 16, bytes`, least SM 8.0, any thread.
///
/// # Safety
/// As for [`async_16`]; with `bytes` 0 the global address is not read.
#[inline(always)]
pub unsafe fn async_16_or_zero(shared: u32, global: u64, bytes: u32) {
    // SAFETY: the caller guarantees addresses and waits.
    unsafe {
        ptx!("cp.async.cg.shared.global [{}], [{}], 16, {};",
            in(reg32) shared, in(reg64) global, in(reg32) bytes, options(nostack));
    }
}

/// Closes the group of all copies that this thread has started since the last call.
///
/// PTX `cp.async.commit_group`, least SM 8.0, any thread.
#[inline(always)]
pub fn commit_group() {
    // SAFETY: touches no memory by itself.
    unsafe {
        ptx!("cp.async.commit_group;", options(nostack));
    }
}

/// Waits until at most `PENDING` of this thread's latest groups are still running.
///
/// PTX `cp.async.wait_group PENDING`, least SM 8.0, any thread; other threads see the data after a barrier.
#[inline(always)]
pub fn wait_group<const PENDING: usize>() {
    // SAFETY: only waits.
    unsafe {
        ptx!("cp.async.wait_group {};", const PENDING, options(nostack));
    }
}

/// Reads 8 bytes of the kernel's parameter, so many behind its first, in the kernel of that name.
///
/// PTX `ld.param.b64` at a computed address, any SM, any thread. Plain Rust reads fields whose place is a constant; an array of which a loop
/// takes one element after the other would be copied into local memory first.
///
/// # Safety
/// The bytes are inside of the parameter, and the offset is a multiple of 8.
#[macro_export]
macro_rules! load_param_u64 {
    ($symbol:ident, $offset:expr) => {{
        #[cfg(target_arch = "nvptx64")]
        {
            let offset: u64 = $offset;
            let value: u64;
            core::arch::asm!(
                concat!("{{ .reg .u64 a; mov.b64 a, ", stringify!($symbol), "_param_0; add.u64 a, a, {1}; ld.param.b64 {0}, [a]; }}"),
                out(reg64) value, in(reg64) offset, options(pure, readonly, nostack)
            );
            value
        }
        #[cfg(not(target_arch = "nvptx64"))]
        {
            let _: u64 = $offset;
            unreachable!("a device instruction was called on the host")
        }
    }};
}

macro_rules! global_access {
    ($load:ident, $store:ident, $type:ty, $class:ident, $suffix:literal, $bytes:literal) => {
        #[doc = concat!("Reads ", $bytes, " from global memory.\n\nPTX `ld.global.", $suffix, "`, any SM, any thread.")]
        ///
        /// # Safety
        /// The address is in bounds and naturally aligned.
        #[inline(always)]
        pub unsafe fn $load(global: u64) -> $type {
            let value: $type;
            // SAFETY: the caller guarantees the address.
            unsafe {
                ptx!(concat!("ld.global.", $suffix, " {}, [{}];"),
                    out($class) value, in(reg64) global, options(nostack, readonly));
            }
            value
        }

        #[doc = concat!("Writes ", $bytes, " to global memory.\n\nPTX `st.global.", $suffix, "`, any SM, any thread.")]
        ///
        /// # Safety
        /// The address is in bounds and naturally aligned, and no other thread touches it.
        #[inline(always)]
        pub unsafe fn $store(global: u64, value: $type) {
            // SAFETY: the caller guarantees the address.
            unsafe {
                ptx!(concat!("st.global.", $suffix, " [{}], {};"),
                    in(reg64) global, in($class) value, options(nostack));
            }
        }
    };
}

global_access!(load_u16, store_u16, u16, reg16, "b16", "2 bytes");
global_access!(load_u32, store_u32, u32, reg32, "b32", "4 bytes");
global_access!(load_f32, store_f32, f32, reg32, "f32", "an `f32`");

/// Reads four floats from global memory.
///
/// PTX `ld.global.v4.f32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 16.
#[inline(always)]
pub unsafe fn load_f32x4(global: u64) -> [f32; 4] {
    let (a, b, c, d): (f32, f32, f32, f32);
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("ld.global.v4.f32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) global, options(nostack, readonly));
    }
    [a, b, c, d]
}

/// Reads 8 bytes from global memory.
///
/// PTX `ld.global.v2.b32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 8.
#[inline(always)]
pub unsafe fn load_u32x2(global: u64) -> [u32; 2] {
    let (a, b): (u32, u32);
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("ld.global.v2.b32 {{{}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, in(reg64) global, options(nostack, readonly));
    }
    [a, b]
}

/// Reads 16 bytes from global memory.
///
/// PTX `ld.global.v4.b32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 16.
#[inline(always)]
pub unsafe fn load_u32x4(global: u64) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("ld.global.v4.b32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) global, options(nostack, readonly));
    }
    [a, b, c, d]
}

macro_rules! access_within {
    ($load:ident, $store:ident, $type:ty, $class:ident, $suffix:literal, $bytes:literal) => {
        #[doc = concat!("Reads ", $bytes, " from global memory where `index < bound`, without a branch, and gives 0 elsewhere.\n\nPTX `@p ld.global.", $suffix, "`, any SM, any thread.")]
        ///
        /// # Safety
        /// Where it reads: the address is in bounds and naturally aligned.
        #[inline(always)]
        pub unsafe fn $load(global: u64, index: u32, bound: u32) -> $type {
            let value: $type;
            // SAFETY: the caller guarantees the address.
            unsafe {
                ptx!(concat!("{{ .reg .pred p; setp.lt.u32 p, {2}, {3}; mov.", $suffix, " {0}, 0; @p ld.global.", $suffix, " {0}, [{1}]; }}"),
                    out($class) value, in(reg64) global, in(reg32) index, in(reg32) bound, options(nostack, readonly));
            }
            value
        }

        #[doc = concat!("Writes ", $bytes, " to global memory where `index < bound`, without a branch.\n\nPTX `@p st.global.", $suffix, "`, any SM, any thread.")]
        ///
        /// # Safety
        /// Where it writes: the address is in bounds and naturally aligned, and no other thread touches it.
        #[inline(always)]
        pub unsafe fn $store(global: u64, value: $type, index: u32, bound: u32) {
            // SAFETY: the caller guarantees the address.
            unsafe {
                ptx!(concat!("{{ .reg .pred p; setp.lt.u32 p, {2}, {3}; @p st.global.", $suffix, " [{0}], {1}; }}"),
                    in(reg64) global, in($class) value, in(reg32) index, in(reg32) bound, options(nostack));
            }
        }
    };
}

access_within!(load_u16_within, store_u16_within, u16, reg16, "b16", "2 bytes");
access_within!(load_u32_within, store_u32_within, u32, reg32, "b32", "4 bytes");

/// Reads a byte from global memory where `index < bound`, without a branch, and gives 0 elsewhere.
///
/// PTX `@p ld.global.u8`, any SM, any thread.
///
/// # Safety
/// Where it reads: the address is in bounds.
#[inline(always)]
pub unsafe fn load_u8_within(global: u64, index: u32, bound: u32) -> u32 {
    let value: u32;
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("{{ .reg .pred p; setp.lt.u32 p, {2}, {3}; mov.b32 {0}, 0; @p ld.global.u8 {0}, [{1}]; }}",
            out(reg32) value, in(reg64) global, in(reg32) index, in(reg32) bound, options(nostack, readonly));
    }
    value
}

/// Reads 8 bytes from global memory where `index < bound`, without a branch, and gives zeros elsewhere.
///
/// PTX `@p ld.global.v2.b32`, any SM, any thread.
///
/// # Safety
/// Where it reads: the address is in bounds and a multiple of 8.
#[inline(always)]
pub unsafe fn load_u32x2_within(global: u64, index: u32, bound: u32) -> [u32; 2] {
    let (a, b): (u32, u32);
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("{{ .reg .pred p; setp.lt.u32 p, {3}, {4}; mov.b32 {0}, 0; mov.b32 {1}, 0; @p ld.global.v2.b32 {{{0}, {1}}}, [{2}]; }}",
            out(reg32) a, out(reg32) b, in(reg64) global, in(reg32) index, in(reg32) bound, options(nostack, readonly));
    }
    [a, b]
}

/// Reads 16 bytes from global memory where `index < bound`, without a branch, and gives zeros elsewhere.
///
/// PTX `@p ld.global.v4.b32`, any SM, any thread.
///
/// # Safety
/// Where it reads: the address is in bounds and a multiple of 16.
#[inline(always)]
pub unsafe fn load_u32x4_within(global: u64, index: u32, bound: u32) -> [u32; 4] {
    let (a, b, c, d): (u32, u32, u32, u32);
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("{{ .reg .pred p; setp.lt.u32 p, {5}, {6}; mov.b32 {0}, 0; mov.b32 {1}, 0; mov.b32 {2}, 0; mov.b32 {3}, 0; @p ld.global.v4.b32 {{{0}, {1}, {2}, {3}}}, [{4}]; }}",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg64) global, in(reg32) index, in(reg32) bound,
            options(nostack, readonly));
    }
    [a, b, c, d]
}

/// Writes 16 bytes to global memory where `index < bound`, without a branch.
///
/// PTX `@p st.global.v4.b32`, any SM, any thread.
///
/// # Safety
/// Where it writes: the address is in bounds and a multiple of 16, and no other thread touches it.
#[inline(always)]
pub unsafe fn store_u32x4_within(global: u64, value: [u32; 4], index: u32, bound: u32) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("{{ .reg .pred p; setp.lt.u32 p, {5}, {6}; @p st.global.v4.b32 [{0}], {{{1}, {2}, {3}, {4}}}; }}",
            in(reg64) global, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3], in(reg32) index,
            in(reg32) bound, options(nostack));
    }
}

/// Writes two floats to global memory.
///
/// PTX `st.global.v2.f32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 8, and no other thread touches it.
#[inline(always)]
pub unsafe fn store_f32x2(global: u64, value: [f32; 2]) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("st.global.v2.f32 [{}], {{{}, {}}};",
            in(reg64) global, in(reg32) value[0], in(reg32) value[1], options(nostack));
    }
}

/// Writes 8 bytes to global memory.
///
/// PTX `st.global.v2.b32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 8, and no other thread touches it.
#[inline(always)]
pub unsafe fn store_u32x2(global: u64, value: [u32; 2]) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("st.global.v2.b32 [{}], {{{}, {}}};",
            in(reg64) global, in(reg32) value[0], in(reg32) value[1], options(nostack));
    }
}

/// Writes 16 bytes to global memory.
///
/// PTX `st.global.v4.b32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 16, and no other thread touches it.
#[inline(always)]
pub unsafe fn store_u32x4(global: u64, value: [u32; 4]) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("st.global.v4.b32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) global, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3],
            options(nostack));
    }
}

/// Stores 16 bytes to global memory where `condition` holds, without a branch.
///
/// PTX `@p st.global.v4.b32 [global], value`, any SM, any thread.
///
/// # Safety
/// Where the condition holds: `global` is a multiple of 16 and in bounds.
#[inline(always)]
pub unsafe fn store_u32x4_if(global: u64, value: [u32; 4], condition: bool) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {5}, 0; @p st.global.v4.b32 [{0}], {{{1}, {2}, {3}, {4}}}; }}",
            in(reg64) global, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3],
            in(reg32) condition as u32, options(nostack));
    }
}

/// [`store_f32x2`] where a condition holds.
///
/// PTX `@p st.global.v2.f32 [global], value`, any SM, any thread.
///
/// # Safety
/// Where the condition holds: `global` is a multiple of 8 and in bounds.
#[inline(always)]
pub unsafe fn store_f32x2_if(global: u64, value: [f32; 2], condition: bool) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {3}, 0; @p st.global.v2.f32 [{0}], {{{1}, {2}}}; }}",
            in(reg64) global, in(reg32) value[0], in(reg32) value[1], in(reg32) condition as u32, options(nostack));
    }
}

/// Adds four floats to global memory, each atomically, in any order with those of other threads.
///
/// PTX `red.relaxed.gpu.global.add.v4.f32`, least SM 9.0, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 16, and nobody reads or writes there otherwise before the kernel ends.
#[inline(always)]
pub unsafe fn add_f32x4(global: u64, value: [f32; 4]) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("red.relaxed.gpu.global.add.v4.f32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) global, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3],
            options(nostack));
    }
}

/// Adds to a word of global memory, atomic with what other threads of the GPU do so. Returns what it held before. Orders nothing else.
///
/// PTX `atom.relaxed.gpu.global.add.u32`, least SM 7.0, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 4, and nobody reads or writes there otherwise before the kernel ends.
#[inline(always)]
pub unsafe fn fetch_add(global: u64, value: u32) -> u32 {
    let before: u32;
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("atom.relaxed.gpu.global.add.u32 {}, [{}], {};",
            out(reg32) before, in(reg64) global, in(reg32) value, options(nostack));
    }
    before
}

/// Waits until the number at an address of global memory is `value`, and takes up what was done before it was counted so far.
///
/// PTX `ld.acquire.gpu.global.u32` in a loop, least SM 7.0, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 4; threads that run at the same time count it up, see [`count_if`].
#[allow(named_asm_labels, reason = "inside braces a PTX label is local to the statement")]
#[inline(always)]
pub unsafe fn wait_for_u32(global: u64, value: u32) {
    // The loop is inside the statement: LLVM must not copy a wait into two arms of a branch.
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("{{ .reg .pred p; .reg .u32 n; WAIT: ld.acquire.gpu.global.u32 n, [{0}]; setp.ne.u32 p, n, {1}; @p bra WAIT; }}",
            in(reg64) global, in(reg32) value, options(nostack));
    }
}

/// Adds 1 to a number in global memory, if `condition`, and hands over what was done before: what the thread did, and what it knows of
/// others.
///
/// PTX `@p red.release.gpu.global.add.u32`, least SM 7.0, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 4.
#[inline(always)]
pub unsafe fn count_if(global: u64, condition: bool) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {1}, 0; @p red.release.gpu.global.add.u32 [{0}], 1; }}",
            in(reg64) global, in(reg32) condition as u32, options(nostack));
    }
}

/// Writes four floats to global memory.
///
/// PTX `st.global.v4.f32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 16, and no other thread touches it.
#[inline(always)]
pub unsafe fn store_f32x4(global: u64, value: [f32; 4]) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("st.global.v4.f32 [{}], {{{}, {}, {}, {}}};",
            in(reg64) global, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3],
            options(nostack));
    }
}
