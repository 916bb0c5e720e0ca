//! Operators on rows: what a model computes around attention.

pub mod ahead;
pub mod norm;
pub mod norm_backward;
pub mod row;
pub mod sums;
