//! The driver API itself: its types as NVIDIA documents them (CUDA Driver API reference manual) and the table of its functions.
//!
//! Enumerations are numbers in new types, not Rust enums: a driver may answer with a value that is newer than this list.
//! Nothing here is linked: no symbol of the driver is defined, imported or exported.
#![allow(non_snake_case, non_camel_case_types, reason = "names of the driver API")]

mod result;
mod table;
mod types;

pub use result::CUresult;
pub use table::{OPTIONAL, REQUIRED, Table};
pub use types::*;
