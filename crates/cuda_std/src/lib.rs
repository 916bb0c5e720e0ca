//! Device-side building blocks for kernels that rustc's own `nvptx64-nvidia-cuda` backend compiles: indices, barriers, shared
//! memory, warp collectives, asynchronous copies, tensor-core products, fast math.
//!
//! Every wrapper says, in this order: what it does, its PTX line, the least compute capability, and who has to call it. "All
//! threads of a warp" means converged: PTX calls such instructions `.aligned` or gives them a full member mask.
//!
//! The crate also builds for the host, so that documentation and lints cover it; there, calling a device instruction panics.
//! The conversions of [`f16`] and [`bf16`] are real on the host too, and agree bit for bit with the `half` crate.
#![no_std]
#![cfg_attr(target_arch = "nvptx64", feature(asm_experimental_arch, stdarch_nvptx))]
// On the host a device instruction is `unreachable!`, so what would feed it stays unused.
#![cfg_attr(
    not(target_arch = "nvptx64"),
    allow(unreachable_code, unused_variables, unused_mut, unused_unsafe, unused_assignments, unused_macros, dead_code)
)]

/// Emits inline PTX on the device and panics on the host.
macro_rules! ptx {
    ($($asm:tt)*) => {{
        #[cfg(target_arch = "nvptx64")]
        { core::arch::asm!($($asm)*) }
        #[cfg(not(target_arch = "nvptx64"))]
        { unreachable!("a device instruction was called on the host") }
    }};
}

pub mod cluster;
pub mod copy;
mod float;
pub mod math;
pub mod mbarrier;
pub mod mma;
pub mod shared;
pub mod sync;
pub mod thread;
pub mod tma;
pub mod warp;
pub mod wgmma;

pub use cuda_std_macros::kernel;
pub use float::{bf16, f16};

/// What a kernel module imports: the `#[kernel]` attribute and the element types.
pub mod prelude {
    pub use crate::{bf16, f16, kernel};
}
