//! Device memory.

mod address;
mod buffer;
mod pool;

pub use buffer::{DeviceBuffer, DevicePointer};
pub use pool::MemoryPool;
