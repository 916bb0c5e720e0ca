//! Operators on rows: what a model computes around attention.

pub mod ahead;
pub mod cross_entropy;
pub mod norm;
pub mod norm_backward;
pub mod online;
pub mod row;
pub mod softmax;
pub mod sums;
