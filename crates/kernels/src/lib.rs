//! The kernels of ferroflash.
//!
//! [`attention`] holds the algorithms: a kernel reads like its paper. [`operators`] has what a model computes around it, and knows no word of
//! attention. What kernels are built of, tiles, products and rings of buffers, is
//! in [`parts`]: types and inlined functions that compile to nothing but their instructions. `entry` makes an entry point of every
//! row of `kernel_spec`. The two are features of the crate, `kernel_spec::Unit`: each is compiled without the other.
//!
//! Safety, once for the whole crate: every function here runs on a GPU inside a kernel launched by the host crate, which has
//! checked shapes, strides and sizes. The `unsafe` functions are collectives: all threads of the block (or, where they say so,
//! of the warp) call them, converged, and the barriers that order shared memory are part of them.
#![no_std]
#![feature(rustc_attrs, stmt_expr_attributes)]
#![expect(internal_features, reason = "`rustc_force_inline`, see `attention::v3`")]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]

#[cfg(feature = "attention")]
pub mod attention;
mod entry;
#[cfg(feature = "operators")]
pub mod operators;
pub mod parts;

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    cuda_std::thread::trap()
}
