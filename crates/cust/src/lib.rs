//! The CUDA driver API for Rust, over a table of functions that is filled when the program runs.
//!
//! Nothing is linked: a program with this crate builds on a machine without CUDA, starts on a machine without a driver, and gets an
//! [`Error`] that says what is missing when it asks for a GPU. No symbol of the driver is defined, imported or exported, so that other
//! libraries of the process which use the driver see the driver and nothing else.
//!
//! | here | what it is | where it is in the driver API |
//! | --- | --- | --- |
//! | [`Device`] | a GPU and its properties | Device Management |
//! | [`Context`] | its primary context, which the whole process shares | Primary Context Management |
//! | [`Stream`] | a queue of work | Stream Management |
//! | [`Event`] | a point in that queue | Event Management |
//! | [`Module`], [`Function`] | kernels, compiled by the driver or before | Module Management, Occupancy |
//! | [`launch!`], [`Launch`] | starting one | Execution Control |
//! | [`DeviceBuffer`], [`MemoryPool`] | device memory | Memory Management, Stream Ordered Memory Allocator |
//! | [`Graph`], [`GraphExec`] | work captured once and replayed | Graph Management |
//! | [`TensorMapSpec`] | what Hopper's copy engine has to know of a tensor | Tensor Map Object Management |
//! | [`sys`] | types, and the table of functions | |
//!
//! A context is current only while a call of this crate runs, and the one is current again then that was before. Everything may be
//! used from every thread.
//!
//! ```no_run
//! use cust::{Context, Device, DeviceBuffer, JitOptions, Module, Stream, StreamFlags, launch};
//!
//! fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     let context = Context::new(Device::get(0)?)?;
//!     let module = Module::from_ptx(&context, &std::fs::read_to_string("double.ptx")?, &JitOptions::default())?;
//!     let double = module.get_function("double")?;
//!     let stream = Stream::new(&context, StreamFlags::NON_BLOCKING, None)?;
//!     let data = DeviceBuffer::from_slice(&context, &[1.0f32, 2.0, 3.0])?;
//!
//!     // SAFETY: the kernel takes a pointer and a length, and doubles as many values.
//!     unsafe { launch!(double<<<1, 128, 0, stream>>>(data.as_device_ptr(), data.len() as u32)) }?;
//!     stream.synchronize()?;
//!
//!     assert_eq!(data.to_vec()?, [2.0, 4.0, 6.0]);
//!     Ok(())
//! }
//! ```

mod context;
mod device;
mod driver;
mod error;
mod event;
mod function;
mod graph;
mod launch;
mod memory;
mod module;
mod stream;
pub mod sys;
mod tensor_map;

pub use context::{Context, Entered};
pub use device::{Device, DeviceAttribute};
pub use driver::{Driver, LEAST_DRIVER, Version, init, load};
pub use error::{Error, Result};
pub use event::{Event, EventFlags};
pub use function::{Function, FunctionAttribute};
pub use graph::{CaptureMode, CaptureStatus, Graph, GraphExec};
pub use launch::{Extents, Launch, Params};
pub use memory::{DeviceBuffer, DevicePointer, MemoryPool};
pub use module::{JitOptions, Module};
pub use stream::{Stream, StreamFlags};
pub use tensor_map::TensorMapSpec;
