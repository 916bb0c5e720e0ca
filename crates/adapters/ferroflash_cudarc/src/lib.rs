#![doc = include_str!("../README.md")]

mod backward;
mod error;
mod forward;
mod merge;
pub mod operators;
mod packed_gradients;
mod program;
mod sequences;
mod view;

pub use backward::{BackwardInputs, Gradients, backward};
pub use error::{Error, Result};
pub use forward::{device, forward, plan};
pub use merge::{Part, merge};
pub use packed_gradients::backward_packed;
pub use program::{Options, Program, ProgramTensor};
pub use sequences::{
    CacheRows, NewRows, Numbers, PackedRows, Pages, Rotary, forward_appending, forward_cached, forward_packed,
};
pub use view::{View, ViewMut};
