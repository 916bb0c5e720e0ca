//! Operators on rows: what a model computes around attention. Each has options, a plan that says what would be launched and why, a call into new
//! tensors, and one into those that are given.
//!
//! | operator | options | call | gradients |
//! | --- | --- | --- | --- |
//! | RMSNorm, LayerNorm | [`Norm`] | [`Norm::forward`], [`Norm::forward_into`] | [`Norm::backward`], [`Norm::backward_into`] |
//! | softmax and its logarithm | [`Softmax`] | [`Softmax::forward`], [`Softmax::forward_into`] | [`Softmax::backward`], [`Softmax::backward_into`] |
//! | cross-entropy | [`CrossEntropy`] | [`CrossEntropy::forward`], [`CrossEntropy::forward_into`] | [`CrossEntropy::backward`], [`CrossEntropy::backward_into`], [`CrossEntropy::backward_in_place`] |

mod check;
mod cross_entropy;
mod cut;
mod norm;
mod plan;
mod rows;
mod softmax;

pub use cross_entropy::{
    CrossEntropy, CrossEntropyGradient, CrossEntropyOutput, CrossEntropyOutputViewMut, CrossEntropySaved,
};
pub use norm::{Norm, NormGradients, NormGradientsViewMut, NormOutput, NormOutputViewMut, NormSaved};
pub use plan::{Operation, OperatorPlan};
pub use softmax::{Softmax, SoftmaxGradient, SoftmaxOutput};
