#![doc = include_str!("../README.md")]

mod backward;
mod error;
mod forward;
mod view;

pub use backward::{BackwardInputs, Gradients, backward};
pub use error::{Error, Result};
pub use forward::{device, forward, plan};
pub use view::{View, ViewMut};
