//! Operators on rows: what a model computes around attention.

pub mod dense;
pub mod norm;
pub mod norm_backward;
pub mod row;
