//! Tensor-core products of a warpgroup (wgmma): four warps multiply a 64-row operand with a tile in shared memory, asynchronously.
//!
//! The order is always: [`fence`] after the registers were last written, any number of products, [`commit`], and [`wait`] before
//! accumulators or operand registers are touched again. Warp `w` holds rows `16 w ..` of the accumulator, in the lanes of
//! `mma.m16n8k16`: `acc[n][i]` is column `8 n + 2 (lane % 4) + i % 2` and row `lane / 4 + 8 (i / 2)`.

use crate::{bf16, f16};

/// Describes an operand in shared memory with 128-byte swizzle.
#[derive(Clone, Copy)]
pub struct Descriptor {
    /// Address and leading offset.
    low: u32,
}

impl Descriptor {
    /// Bits of a shared address that a descriptor holds, in units of 16 bytes.
    const ADDRESS: u32 = 0x3_ffff;

    /// The upper word of all of them: 128-byte swizzle in bits 62 and 63; eight rows of 128 bytes lie 1024 bytes from the next
    /// eight, in units of 16 bytes from bit 32 on.
    const HIGH: u32 = (1 << 30) | (1024 / 16);

    /// Rows along the output, 128 bytes of the shared axis each (K-major).
    ///
    /// The leading offset plays no part with swizzled K-major operands; 1 by convention.
    #[inline(always)]
    pub fn rows(shared: u32) -> Self {
        Descriptor { low: ((shared & Self::ADDRESS) / 16) | (1 << 16) }
    }

    /// Rows along the shared axis, 128 bytes of the output axis each (MN-major); the next 128 bytes of the output axis lie
    /// `panel_bytes` further.
    #[inline(always)]
    pub fn columns(shared: u32, panel_bytes: u32) -> Self {
        Descriptor { low: ((shared & Self::ADDRESS) / 16) | ((panel_bytes / 16) << 16) }
    }

    /// The operand `bytes` further, a multiple of 16.
    ///
    /// One addition: tensor cores wait for every instruction between two products. It does not carry out of the address, whose 14
    /// bits (in units of 16 bytes) cover all of shared memory.
    #[inline(always)]
    pub fn advanced(self, bytes: u32) -> Self {
        Descriptor { low: self.low.wrapping_add(bytes / 16) }
    }

    #[inline(always)]
    fn bits(self) -> u64 {
        (Self::HIGH as u64) << 32 | self.low as u64
    }
}

/// Element types and widths (`N` fragments of 8 columns) that the warpgroup products exist for.
pub trait WarpgroupMma<const N: usize> {
    /// Starts `acc = a b^T` (or `acc += ..` if `accumulate`): 64 x 16 elements of `a`, `8 N` x 16 of `b`, both K-major.
    ///
    /// PTX `wgmma.mma_async.sync.aligned.m64nNk16.f32`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
    ///
    /// # Safety
    /// Converged warpgroup; see the module's order.
    unsafe fn multiply_transposed(acc: &mut [[f32; 4]; N], a: Descriptor, b: Descriptor, accumulate: bool);

    /// Starts `acc = a b^T`, as [`Self::multiply_transposed`] does, whatever `acc` holds: to the compilers it holds nothing, and needs
    /// no registers before.
    ///
    /// PTX `wgmma.mma_async.sync.aligned.m64nNk16.f32`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
    ///
    /// # Safety
    /// Converged warpgroup; see the module's order.
    unsafe fn overwrite_transposed(acc: &mut [[f32; 4]; N], a: Descriptor, b: Descriptor);

    /// Starts `acc += a b`: 64 x 16 elements of `a`, K-major, 16 x `8 N` of `b`, MN-major.
    ///
    /// PTX `wgmma.mma_async.sync.aligned.m64nNk16.f32`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
    ///
    /// # Safety
    /// Converged warpgroup; see the module's order.
    unsafe fn multiply_shared(acc: &mut [[f32; 4]; N], a: Descriptor, b: Descriptor);

    /// Starts `acc = a b`, as [`Self::multiply_shared`] does, whatever `acc` holds.
    ///
    /// PTX `wgmma.mma_async.sync.aligned.m64nNk16.f32`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
    ///
    /// # Safety
    /// Converged warpgroup; see the module's order.
    unsafe fn overwrite_shared(acc: &mut [[f32; 4]; N], a: Descriptor, b: Descriptor);

    /// Starts `acc += a^T b`: 16 x 64 elements of `a` and 16 x `8 N` of `b`, both MN-major.
    ///
    /// PTX `wgmma.mma_async.sync.aligned.m64nNk16.f32`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
    ///
    /// # Safety
    /// Converged warpgroup; see the module's order.
    unsafe fn multiply_columns(acc: &mut [[f32; 4]; N], a: Descriptor, b: Descriptor);

    /// Starts `acc = a^T b`, as [`Self::multiply_columns`] does, whatever `acc` holds.
    ///
    /// PTX `wgmma.mma_async.sync.aligned.m64nNk16.f32`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
    ///
    /// # Safety
    /// Converged warpgroup; see the module's order.
    unsafe fn overwrite_columns(acc: &mut [[f32; 4]; N], a: Descriptor, b: Descriptor);

    /// Starts `acc += a b`: 64 x 16 elements of `a` in registers, 16 x `8 N` of `b`, MN-major.
    ///
    /// PTX `wgmma.mma_async.sync.aligned.m64nNk16.f32`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
    ///
    /// # Safety
    /// Converged warpgroup; see the module's order.
    unsafe fn multiply(acc: &mut [[f32; 4]; N], a: &[u32; 4], b: Descriptor);
}

/// The text of one fragment's four operands, whatever its index.
macro_rules! fragment_operands {
    ($fragment:literal) => {
        ", {}, {}, {}, {}"
    };
}

/// A product of two operands in shared memory: `$accumulate` is 1 where it adds to the accumulator (`inout`), 0 where it overwrites it
/// (`out`); `$transposes` are the flags of A and B.
macro_rules! shared_product {
    ($name:ident $class:ident $accumulate:literal $transposes:literal
     $type:ident $fragments:literal $columns:literal $($fragment:literal)+) => {
        #[inline(always)]
        unsafe fn $name(acc: &mut [[f32; 4]; $fragments], a: Descriptor, b: Descriptor) {
            // SAFETY: the caller keeps the module's order.
            unsafe {
                ptx!(
                    concat!(
                        "{{ .reg .pred p; setp.ne.b32 p, ", $accumulate, ", 0; wgmma.mma_async.sync.aligned.m64n", $columns,
                        "k16.f32.", stringify!($type), ".", stringify!($type), " {{{}, {}, {}, {}",
                        $(fragment_operands!($fragment),)+ "}}, {a}, {b}, p, 1, 1, ", $transposes, "; }}"
                    ),
                    $class(reg32) acc[0][0], $class(reg32) acc[0][1], $class(reg32) acc[0][2], $class(reg32) acc[0][3],
                    $($class(reg32) acc[$fragment][0], $class(reg32) acc[$fragment][1],
                      $class(reg32) acc[$fragment][2], $class(reg32) acc[$fragment][3],)+
                    a = in(reg64) a.bits(), b = in(reg64) b.bits(), options(nostack)
                );
            }
        }
    };
}

macro_rules! warpgroup_mma {
    ($type:ident, $fragments:literal, $columns:literal, $($fragment:literal)+) => {
        impl WarpgroupMma<$fragments> for $type {
            #[inline(always)]
            unsafe fn multiply_transposed(acc: &mut [[f32; 4]; $fragments], a: Descriptor, b: Descriptor, accumulate: bool) {
                // SAFETY: the caller keeps the module's order.
                unsafe {
                    ptx!(
                        concat!(
                            "{{ .reg .pred p; setp.ne.b32 p, {accumulate}, 0; wgmma.mma_async.sync.aligned.m64n", $columns,
                            "k16.f32.", stringify!($type), ".", stringify!($type), " {{{}, {}, {}, {}",
                            $(fragment_operands!($fragment),)+ "}}, {a}, {b}, p, 1, 1, 0, 0; }}"
                        ),
                        inout(reg32) acc[0][0], inout(reg32) acc[0][1], inout(reg32) acc[0][2], inout(reg32) acc[0][3],
                        $(inout(reg32) acc[$fragment][0], inout(reg32) acc[$fragment][1],
                          inout(reg32) acc[$fragment][2], inout(reg32) acc[$fragment][3],)+
                        a = in(reg64) a.bits(), b = in(reg64) b.bits(), accumulate = in(reg32) accumulate as u32, options(nostack)
                    );
                }
            }

            shared_product! { overwrite_transposed out 0 "0, 0" $type $fragments $columns $($fragment)+ }
            shared_product! { multiply_shared inout 1 "0, 1" $type $fragments $columns $($fragment)+ }
            shared_product! { overwrite_shared out 0 "0, 1" $type $fragments $columns $($fragment)+ }
            shared_product! { multiply_columns inout 1 "1, 1" $type $fragments $columns $($fragment)+ }
            shared_product! { overwrite_columns out 0 "1, 1" $type $fragments $columns $($fragment)+ }

            #[inline(always)]
            unsafe fn multiply(acc: &mut [[f32; 4]; $fragments], a: &[u32; 4], b: Descriptor) {
                // SAFETY: the caller keeps the module's order.
                unsafe {
                    ptx!(
                        concat!(
                            "wgmma.mma_async.sync.aligned.m64n", $columns, "k16.f32.", stringify!($type), ".",
                            stringify!($type), " {{{}, {}, {}, {}", $(fragment_operands!($fragment),)+
                            "}}, {{{a0}, {a1}, {a2}, {a3}}}, {b}, 1, 1, 1, 1;"
                        ),
                        inout(reg32) acc[0][0], inout(reg32) acc[0][1], inout(reg32) acc[0][2], inout(reg32) acc[0][3],
                        $(inout(reg32) acc[$fragment][0], inout(reg32) acc[$fragment][1],
                          inout(reg32) acc[$fragment][2], inout(reg32) acc[$fragment][3],)+
                        a0 = in(reg32) a[0], a1 = in(reg32) a[1], a2 = in(reg32) a[2], a3 = in(reg32) a[3],
                        b = in(reg64) b.bits(), options(nostack)
                    );
                }
            }
        }
    };
}

macro_rules! warpgroup_mma_widths {
    ($type:ident) => {
        warpgroup_mma!($type, 6, 48, 1 2 3 4 5);
        warpgroup_mma!($type, 8, 64, 1 2 3 4 5 6 7);
        warpgroup_mma!($type, 10, 80, 1 2 3 4 5 6 7 8 9);
        warpgroup_mma!($type, 12, 96, 1 2 3 4 5 6 7 8 9 10 11);
        warpgroup_mma!($type, 14, 112, 1 2 3 4 5 6 7 8 9 10 11 12 13);
        warpgroup_mma!($type, 16, 128, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15);
        warpgroup_mma!($type, 18, 144, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17);
        warpgroup_mma!($type, 20, 160, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19);
        warpgroup_mma!($type, 22, 176, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21);
        warpgroup_mma!($type, 24, 192, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23);
        warpgroup_mma!($type, 32, 256, 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31);
    };
}

warpgroup_mma_widths!(f16);
warpgroup_mma_widths!(bf16);

/// Orders earlier register writes before the products that follow.
///
/// PTX `wgmma.fence.sync.aligned`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
///
/// # Safety
/// Converged warpgroup.
#[inline(always)]
pub unsafe fn fence() {
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("wgmma.fence.sync.aligned;", options(nostack));
    }
}

/// Closes the group of the products started since the last call.
///
/// PTX `wgmma.commit_group.sync.aligned`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
///
/// # Safety
/// Converged warpgroup.
#[inline(always)]
pub unsafe fn commit() {
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("wgmma.commit_group.sync.aligned;", options(nostack));
    }
}

/// Waits until at most `PENDING` of the latest groups are running.
///
/// PTX `wgmma.wait_group.sync.aligned PENDING`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
///
/// # Safety
/// Converged warpgroup.
#[inline(always)]
pub unsafe fn wait<const PENDING: usize>() {
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("wgmma.wait_group.sync.aligned {};", const PENDING, options(nostack));
    }
}

/// A number of registers of a thread: a multiple of 8 from 24 to 256.
pub trait Registers {
    /// The number.
    const COUNT: u32;
}

/// Gives registers back: the threads of the warpgroup keep `R::COUNT` each.
///
/// PTX `setmaxnreg.dec.sync.aligned.u32`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
///
/// # Safety
/// Converged warpgroup that needs no more; the entry has a fixed block size and `min_ctas`.
#[inline(always)]
pub unsafe fn release_registers<R: Registers>() {
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("setmaxnreg.dec.sync.aligned.u32 {};", const R::COUNT, options(nostack));
    }
}

/// Takes registers that other warpgroups gave back, waiting for them.
///
/// PTX `setmaxnreg.inc.sync.aligned.u32`, least SM 9.0 (target `sm_90a`), all threads of the warpgroup.
///
/// # Safety
/// Converged warpgroup; as for [`release_registers`].
#[inline(always)]
pub unsafe fn take_registers<R: Registers>() {
    // SAFETY: the caller guarantees convergence.
    unsafe {
        ptx!("setmaxnreg.inc.sync.aligned.u32 {};", const R::COUNT, options(nostack));
    }
}
