//! Exact attention, `out = softmax(scale * q k^T + mask) v`, as four generations of one kernel.
//!
//! | module | algorithm | work of a warp | extra memory |
//! | --- | --- | --- | --- |
//! | [`naive`] | scores and probabilities in device memory | 16 or 32 query rows | quadratic |
//! | [`v1`] | FlashAttention: online softmax, output normalised at every step | a slice of the keys, all query rows | linear |
//! | [`v2`] | FlashAttention-2: normalisation deferred to the end | 16 or 32 query rows, all keys | linear |
//! | `v3` | FlashAttention-3: Hopper's asynchronous copies and products | 16 query rows of a warpgroup's 64, all keys | linear |
//!
//! A kernel reads like its paper; what it is written in lives beside it: [`tile`] (shared and register tiles), [`element`]
//! (products for each element type), [`stream`] (the pipeline of key and value tiles), [`softmax`], [`block`] (which rows a
//! thread block owns). All of these are types and inlined functions that compile to nothing but their instructions.
//!
//! Safety, once for the whole crate: every function here runs on a GPU inside a kernel launched by the host crate, which has
//! checked shapes, strides and sizes. The `unsafe` functions are collectives: all threads of the block (or, where they say so,
//! of the warp) call them, converged, and the barriers that order shared memory are part of them.
#![no_std]
#![feature(stmt_expr_attributes)]
#![cfg_attr(target_arch = "nvptx64", feature(abi_ptx, asm_experimental_arch))]

pub mod block;
pub mod element;
mod entry;
pub mod exchange;
pub mod naive;
pub mod softmax;
pub mod stream;
pub mod tile;
#[cfg(target_feature = "sm_90a")]
pub mod tiles;
pub mod v1;
pub mod v2;
// Hopper only: its instructions are text that LLVM does not check against the architecture.
#[cfg(target_feature = "sm_90a")]
pub mod pipeline;
#[cfg(target_feature = "sm_90a")]
pub mod turn;
#[cfg(target_feature = "sm_90a")]
pub mod v3;
#[cfg(target_feature = "sm_90a")]
pub mod warpgroup;

#[cfg(target_arch = "nvptx64")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    cuda_std::thread::trap()
}
