#![doc = include_str!("../README.md")]

mod alu;
mod ast;
mod cfg;
mod counters;
mod emulator;
mod error;
mod float;
mod ir;
mod lexer;
mod lower;
mod machine;
mod mbarrier;
mod memory;
mod mma;
mod parser;
mod shared;
mod tensor_map;
mod tma;
mod wgmma;

pub use counters::{Counters, InstructionClass};
pub use emulator::{Checks, Emulator, EmulatorOptions, EntryInfo, Launch, LaunchReport, Module, ParamInfo};
pub use error::{EmuError, Fault, FaultKind, ParseError, ParseErrorKind, SourceLocation};
pub use tensor_map::{Swizzle, TensorDataType, TensorFill, TensorMap, TensorMapSpec};
