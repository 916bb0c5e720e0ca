#![doc = include_str!("../README.md")]
#![cfg_attr(
    not(any(feature = "cuda", feature = "emulator")),
    allow(dead_code, reason = "a build without either computes nothing; its errors remain")
)]

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
mod differentiable;
mod error;
mod functions;
mod op;
pub mod operators;
mod packed;
pub mod v3;
mod varlen;

pub use cpu::emulate_cpu;
pub use error::{Error, Feature};
pub use functions::{
    flash_attn, flash_attn_alibi, flash_attn_alibi_windowed, flash_attn_alibi_windowed_softcap, flash_attn_sink,
    flash_attn_sink_windowed, flash_attn_windowed,
};
pub use op::FlashAttn;
pub use varlen::{
    flash_attn_varlen, flash_attn_varlen_alibi, flash_attn_varlen_alibi_windowed,
    flash_attn_varlen_alibi_windowed_softcap, flash_attn_varlen_paged_windowed, flash_attn_varlen_windowed,
};
