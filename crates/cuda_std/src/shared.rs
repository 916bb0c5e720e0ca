//! Shared memory: where it starts, and loads and stores by 32-bit shared address.
//!
//! Rust statics live in global memory, so shared memory comes from PTX: [`dynamic`] is the memory that the launch asks for,
//! [`static_shared!`](crate::static_shared) declares a fixed piece.

#[cfg(target_arch = "nvptx64")]
core::arch::global_asm!(".extern .shared .align 1024 .b8 dynamic_shared[];");

/// Shared address of the block's dynamic shared memory, aligned to 1024 bytes (the widest swizzle pattern).
///
/// PTX `mov.u32 d, dynamic_shared`, any SM, any thread. Its size is an argument of the launch.
#[inline(always)]
pub fn dynamic() -> u32 {
    let address: u32;
    // SAFETY: takes an address.
    unsafe {
        ptx!("mov.u32 {}, dynamic_shared;", out(reg32) address, options(pure, nomem, nostack));
    }
    address
}

/// Declares `$bytes` bytes of static shared memory of a block, and gives a function that returns their shared address.
///
/// `static_shared!(fn scratch() -> 256 bytes, align 16);` then `scratch()`. PTX `.shared .align A .b8 name[bytes]`, any SM.
#[macro_export]
macro_rules! static_shared {
    (fn $name:ident() -> $bytes:literal bytes, align $align:literal) => {
        #[cfg(target_arch = "nvptx64")]
        core::arch::global_asm!(concat!(".shared .align ", $align, " .b8 ", stringify!($name), "[", $bytes, "];"));

        /// Shared address of the piece.
        #[inline(always)]
        fn $name() -> u32 {
            #[cfg(target_arch = "nvptx64")]
            {
                let address: u32;
                // SAFETY: takes an address.
                unsafe {
                    core::arch::asm!(concat!("mov.u32 {}, ", stringify!($name), ";"),
                        out(reg32) address, options(pure, nomem, nostack));
                }
                address
            }
            #[cfg(not(target_arch = "nvptx64"))]
            unreachable!("a device instruction was called on the host")
        }
    };
}

macro_rules! shared_access {
    ($load:ident, $store:ident, $type:ty, $class:ident, $suffix:literal, $bytes:literal) => {
        #[doc = concat!("Reads ", $bytes, " from shared memory.\n\nPTX `ld.shared.", $suffix, "`, any SM, any thread.")]
        ///
        /// # Safety
        /// The address is in bounds and naturally aligned; a barrier lies between this and another thread's write.
        #[inline(always)]
        pub unsafe fn $load(shared: u32) -> $type {
            let value: $type;
            // SAFETY: the caller guarantees the address and the order.
            unsafe {
                ptx!(concat!("ld.shared.", $suffix, " {}, [{}];"),
                    out($class) value, in(reg32) shared, options(nostack, readonly));
            }
            value
        }

        #[doc = concat!("Writes ", $bytes, " to shared memory.\n\nPTX `st.shared.", $suffix, "`, any SM, any thread.")]
        ///
        /// # Safety
        /// The address is in bounds and naturally aligned; a barrier lies between this and another thread's access.
        #[inline(always)]
        pub unsafe fn $store(shared: u32, value: $type) {
            // SAFETY: the caller guarantees the address and the order.
            unsafe {
                ptx!(concat!("st.shared.", $suffix, " [{}], {};"),
                    in(reg32) shared, in($class) value, options(nostack));
            }
        }
    };
}

shared_access!(load_u16, store_u16, u16, reg16, "b16", "2 bytes");
shared_access!(load_u32, store_u32, u32, reg32, "b32", "4 bytes");
shared_access!(load_f32, store_f32, f32, reg32, "f32", "an `f32`");

/// Reads two floats from shared memory.
///
/// PTX `ld.shared.v2.f32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 8; a barrier lies between this and another thread's write.
#[inline(always)]
pub unsafe fn load_f32x2(shared: u32) -> [f32; 2] {
    let (a, b): (f32, f32);
    // SAFETY: the caller guarantees the address and the order.
    unsafe {
        ptx!("ld.shared.v2.f32 {{{}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, in(reg32) shared, options(nostack, readonly));
    }
    [a, b]
}

/// Writes two floats to shared memory.
///
/// PTX `st.shared.v2.f32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 8; a barrier lies between this and another thread's access.
#[inline(always)]
pub unsafe fn store_f32x2(shared: u32, value: [f32; 2]) {
    // SAFETY: the caller guarantees the address and the order.
    unsafe {
        ptx!("st.shared.v2.f32 [{}], {{{}, {}}};",
            in(reg32) shared, in(reg32) value[0], in(reg32) value[1], options(nostack));
    }
}

/// Reads four floats from shared memory.
///
/// PTX `ld.shared.v4.f32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 16; a barrier lies between this and another thread's write.
#[inline(always)]
pub unsafe fn load_f32x4(shared: u32) -> [f32; 4] {
    let (a, b, c, d): (f32, f32, f32, f32);
    // SAFETY: the caller guarantees the address and the order.
    unsafe {
        ptx!("ld.shared.v4.f32 {{{}, {}, {}, {}}}, [{}];",
            out(reg32) a, out(reg32) b, out(reg32) c, out(reg32) d, in(reg32) shared, options(nostack, readonly));
    }
    [a, b, c, d]
}

/// Reads 16 bytes from shared memory.
///
/// PTX `ld.shared.v4.b32`, any SM, any thread.
///
/// # Safety
/// As for [`load_f32x4`].
#[inline(always)]
pub unsafe fn load_u32x4(shared: u32) -> [u32; 4] {
    // SAFETY: passed on to the caller.
    unsafe { load_f32x4(shared) }.map(f32::to_bits)
}

/// Writes 16 bytes to shared memory.
///
/// PTX `st.shared.v4.b32`, any SM, any thread.
///
/// # Safety
/// The address is in bounds and a multiple of 16; a barrier lies between this and another thread's access.
#[inline(always)]
pub unsafe fn store_u32x4(shared: u32, value: [u32; 4]) {
    // SAFETY: the caller guarantees the address and the order.
    unsafe {
        ptx!("st.shared.v4.b32 [{}], {{{}, {}, {}, {}}};",
            in(reg32) shared, in(reg32) value[0], in(reg32) value[1], in(reg32) value[2], in(reg32) value[3],
            options(nostack));
    }
}

/// Sets bits of a word where `condition` holds: atomic with what other threads of the block do so.
///
/// PTX `red.shared.or.b32`, least SM 2.0, any thread.
///
/// # Safety
/// The address is in bounds and aligned.
#[inline(always)]
pub unsafe fn set_bits_if(shared: u32, bits: u32, condition: bool) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("{{ .reg .pred p; setp.ne.u32 p, {2}, 0; @p red.shared.or.b32 [{0}], {1}; }}",
            in(reg32) shared, in(reg32) bits, in(reg32) condition as u32, options(nostack));
    }
}

/// Adds to a word, atomic with what other threads of the block do so. Returns what it held before.
///
/// PTX `atom.shared.add.u32`, least SM 2.0, any thread.
///
/// # Safety
/// The address is in bounds and aligned.
#[inline(always)]
pub unsafe fn fetch_add(shared: u32, value: u32) -> u32 {
    let before: u32;
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("atom.shared.add.u32 {}, [{}], {};", out(reg32) before, in(reg32) shared, in(reg32) value, options(nostack));
    }
    before
}

/// Raises a word to at least this value, atomic with what other threads of the block do so.
///
/// PTX `red.shared.max.u32`, least SM 2.0, any thread.
///
/// # Safety
/// The address is in bounds and aligned.
#[inline(always)]
pub unsafe fn raise(shared: u32, value: u32) {
    // SAFETY: the caller guarantees the address.
    unsafe {
        ptx!("red.shared.max.u32 [{}], {};", in(reg32) shared, in(reg32) value, options(nostack));
    }
}

/// The generic address of shared memory, for code that takes any address.
///
/// PTX `cvta.shared.u64`, least SM 2.0, any thread.
#[inline(always)]
pub fn generic(shared: u32) -> u64 {
    let address: u64;
    // SAFETY: arithmetic without side effects.
    unsafe {
        ptx!("{{ .reg .u64 a; cvt.u64.u32 a, {1}; cvta.shared.u64 {0}, a; }}",
            out(reg64) address, in(reg32) shared, options(pure, nomem, nostack));
    }
    address
}
