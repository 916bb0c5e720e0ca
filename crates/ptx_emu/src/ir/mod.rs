//! The executable form of an entry: calls inlined, registers numbered into dense slots, branches resolved.

mod op;
mod parts;
mod program;
mod value;

pub(crate) use op::*;
pub(crate) use parts::*;
pub(crate) use program::*;
pub(crate) use value::*;
