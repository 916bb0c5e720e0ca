//! What a model computes around attention, on candle's tensors: the operators of [`ferroflash::operators`], with the names that candle_nn has for them.
//!
//! | function | of candle_nn | options beyond it | gradients |
//! | --- | --- | --- | --- |
//! | [`rms_norm`], [`layer_norm`] | `ops` | [`Norm`] | x, weights, biases |
//! | [`rms_norm_residual`], [`layer_norm_residual`] | | [`Norm`], with dropout and factors of rows before the sum | x, residual, weights, biases |
//! | [`softmax_last_dim`], [`softmax`], [`log_softmax`] | `ops` | [`Softmax`] | x |
//! | [`cross_entropy`] | `loss` | [`CrossEntropy`] | logits |
//! | [`linear_cross_entropy`] | | [`LinearCrossEntropy`] | x, weights, biases |
//! | [`rope`], [`rope_i`], [`rope_thd`] | `rotary_emb` | [`Rotary`] | x |
//! | [`embedding()`] | `Embedding` | [`Embedding`] | the table |
//! | [`linear`], [`dense()`] | `Linear` | [`Dense`] | x, weights, biases, residual |
//! | [`AdamW`] | `AdamW` | masters in f32, clipping, a learning rate on the device | |
//! | [`grad_norm`], [`clip_grad_norm`] | | | |
//!
//! Each call is one launch on candle's stream, on the tensors where they are; gradients of weights, tables and dense layers, norms of gradients and steps
//! of long lists are some more. Tensors on the CPU are an
//! error until [`emulate_cpu`](crate::emulate_cpu) asks for the emulator. Strides are free but for a contiguous last axis; results are contiguous.
//!
//! Elements are f16, bf16 or f32. Everything is computed in f32 and rounded once, and sums have one order: the same bits from run to run. What is
//! refused is refused before anything is launched, by [`Error`](crate::Error), which says what was given and what is accepted.
//!
//! An operation of candle has one result, and what gradients need beside its inputs and that (statistics of rows, log-sum-exps) is kept in the
//! operation, 4 or 8 bytes a row for as long as the graph lives, as attention keeps its log-sum-exp: computing it again would read all rows once
//! more. Dense layers keep their sums before an activation, as many numbers as their result has, and twice as many of SwiGLU: without them, `backward`
//! would have to multiply once more. A call of which no gradient can be wanted keeps nothing.

mod adamw;
mod apply;
mod cross_entropy;
mod dense;
mod embedding;
mod linear_cross_entropy;
mod memory;
mod norm;
mod rotary;
mod softmax;

pub use adamw::{AdamW, clip_grad_norm, grad_norm};
pub use cross_entropy::{CrossEntropy, cross_entropy};
pub use dense::{Dense, dense, linear};
pub use embedding::{Embedding, embedding};
pub use linear_cross_entropy::{LinearCrossEntropy, linear_cross_entropy};
pub use norm::{Norm, layer_norm, layer_norm_residual, rms_norm, rms_norm_residual};
pub use rotary::{Rotary, rope, rope_i, rope_thd};
pub use softmax::{Softmax, log_softmax, softmax, softmax_last_dim};

pub use ferroflash::Dropout;
pub use ferroflash::operators::Activation;
