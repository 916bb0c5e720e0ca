#![doc = include_str!("../README.md")]
#![allow(clippy::too_many_arguments, reason = "operations take the operands that their instruction has")]

mod access;
mod alu;
mod ast;
mod barrier;
mod cfg;
mod cluster;
mod copies;
mod counters;
mod emulator;
mod error;
mod float;
mod history;
mod holes;
mod host;
mod ir;
mod landing;
mod lexer;
mod lower;
mod machine;
mod mbarrier;
mod memory;
mod mma;
mod order;
mod parser;
mod release;
mod remote;
mod shared;
mod talk;
mod tensor_map;
mod tma;
mod wgmma;
mod wmma;

pub use counters::{Counters, InstructionClass};
pub use emulator::{Checks, Emulator, EmulatorOptions, EntryInfo, Launch, LaunchReport, Module, ParamInfo, Severity};
pub use error::{EmuError, Fault, FaultKind, ParseError, ParseErrorKind, SourceLocation};
pub use host::Printed;
pub use tensor_map::{Swizzle, TensorDataType, TensorFill, TensorMap, TensorMapSpec};
