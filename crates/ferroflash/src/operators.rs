//! Operators on rows: what a model computes around attention. Each has options, a plan that says what would be launched and why, a call into new
//! tensors, and one into those that are given.
//!
//! | operator | options | call | gradients |
//! | --- | --- | --- | --- |
//! | RMSNorm, LayerNorm | [`Norm`] | [`Norm::forward`], [`Norm::forward_into`] | [`Norm::backward`], [`Norm::backward_into`] |
//! | a dense layer | [`Dense`] | [`Dense::forward`], [`Dense::forward_into`] | |

mod check;
mod cut;
mod dense;
mod norm;
mod plan;
mod rows;

pub use dense::{Activation, Dense, DenseOutput, DenseOutputViewMut};
pub use norm::{Norm, NormGradients, NormGradientsViewMut, NormOutput, NormOutputViewMut, NormSaved};
pub use plan::{Operation, OperatorPlan};
