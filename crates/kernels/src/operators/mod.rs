//! Operators on rows: what a model computes around attention.

pub mod adamw;
pub mod ahead;
pub mod branch;
pub mod cross_entropy;
pub mod dense;
pub mod embedding;
pub mod embedding_backward;
pub mod gradient_norm;
pub mod norm;
pub mod norm_backward;
pub mod online;
pub mod rotary;
pub mod row;
pub mod softmax;
pub mod sums;
