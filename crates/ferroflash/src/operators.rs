//! Operators on rows: what a model computes around attention. Each has options, a plan that says what would be launched and why, a call into new
//! tensors, and one into those that are given.
//!
//! | operator | options | call | gradients |
//! | --- | --- | --- | --- |
//! | RMSNorm, LayerNorm | [`Norm`] | [`Norm::forward`], [`Norm::forward_into`] | [`Norm::backward`], [`Norm::backward_into`] |
//! | softmax and its logarithm | [`Softmax`] | [`Softmax::forward`], [`Softmax::forward_into`] | [`Softmax::backward`], [`Softmax::backward_into`] |
//! | cross-entropy | [`CrossEntropy`] | [`CrossEntropy::forward`], [`CrossEntropy::forward_into`] | [`CrossEntropy::backward`], [`CrossEntropy::backward_into`], [`CrossEntropy::backward_in_place`] |
//! | rotary embedding | [`Rotary`] | [`Rotary::forward`], [`Rotary::forward_into`], [`Rotary::in_place`] | [`Rotary::backward`], [`Rotary::backward_into`], [`Rotary::conjugate`] |
//! | embedding tables | [`Embedding`] | [`Embedding::forward`], [`Embedding::forward_into`] | [`Embedding::backward`], [`Embedding::backward_into`] |
//! | AdamW | [`AdamW`] | [`AdamW::step`] | |
//! | norm of gradients | [`GradientNorm`] | [`GradientNorm::measure`] | |
//! | a dense layer | [`Dense`] | [`Dense::forward`], [`Dense::forward_into`] | [`Dense::backward`], [`Dense::backward_into`] |
//! | cross-entropy of a dense layer's logits | [`LinearCrossEntropy`] | [`LinearCrossEntropy::forward`], [`LinearCrossEntropy::forward_into`] | [`LinearCrossEntropy::backward`], [`LinearCrossEntropy::backward_into`] |

mod adamw;
mod check;
mod cross_entropy;
mod cut;
mod dense;
mod embedding;
mod gradient_norm;
mod linear_cross_entropy;
mod list;
mod norm;
mod parts;
mod plan;
mod rotary;
mod rows;
mod softmax;

pub use adamw::{AdamW, AdamWTensor, StepNumber};
pub use cross_entropy::{
    CrossEntropy, CrossEntropyGradient, CrossEntropyOutput, CrossEntropyOutputViewMut, CrossEntropySaved,
};
pub use dense::{Activation, Dense, DenseGradients, DenseGradientsViewMut, DenseOutput, DenseOutputViewMut};
pub use embedding::{Embedding, EmbeddingGradients, EmbeddingOutput};
pub use gradient_norm::GradientNorm;
pub use linear_cross_entropy::{LinearCrossEntropy, LinearCrossEntropyOutput, LinearCrossEntropySaved};
pub use list::ListPlan;
pub use norm::{Norm, NormGradients, NormGradientsViewMut, NormOutput, NormOutputViewMut, NormSaved};
pub use plan::{Operation, OperatorPlan};
pub use rotary::{Rotary, RotaryGradients, RotaryOutput, RotaryPositions};
pub use softmax::{Softmax, SoftmaxGradient, SoftmaxOutput};
