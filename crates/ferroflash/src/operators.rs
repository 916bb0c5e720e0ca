//! Operators on rows: what a model computes around attention. Each has options, a plan that says what would be launched and why, a call into new
//! tensors, and one into those that are given.
//!
//! | operator | options | call | gradients |
//! | --- | --- | --- | --- |
//! | RMSNorm, LayerNorm | [`Norm`] | [`Norm::forward`], [`Norm::forward_into`] | [`Norm::backward`], [`Norm::backward_into`] |
//! | rotary embedding | [`Rotary`] | [`Rotary::forward`], [`Rotary::forward_into`], [`Rotary::in_place`] | [`Rotary::backward`], [`Rotary::backward_into`], [`Rotary::conjugate`] |
//! | embedding tables | [`Embedding`] | [`Embedding::forward`], [`Embedding::forward_into`] | [`Embedding::backward`], [`Embedding::backward_into`] |
//! | AdamW | [`AdamW`] | [`AdamW::step`] | |
//! | norm of gradients | [`GradientNorm`] | [`GradientNorm::measure`] | |

mod adamw;
mod check;
mod cut;
mod embedding;
mod gradient_norm;
mod list;
mod norm;
mod plan;
mod rotary;
mod rows;

pub use adamw::{AdamW, AdamWTensor, StepNumber};
pub use embedding::{Embedding, EmbeddingGradients, EmbeddingOutput};
pub use gradient_norm::GradientNorm;
pub use list::ListPlan;
pub use norm::{Norm, NormGradients, NormGradientsViewMut, NormOutput, NormOutputViewMut, NormSaved};
pub use plan::{Operation, OperatorPlan};
pub use rotary::{Rotary, RotaryGradients, RotaryOutput, RotaryPositions};
