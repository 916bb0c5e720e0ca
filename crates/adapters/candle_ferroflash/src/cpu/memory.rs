//! The emulator of this process, and candle's tensors in its memory.

use crate::error::Result;
use candle_core::Layout;
use ferroflash::{Device, Dims, Element, Tensor, TensorView, TensorViewMut};
use std::sync::OnceLock;

/// The emulator of this process.
pub(crate) fn device() -> Result<&'static Device> {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    if let Some(device) = DEVICE.get() {
        return Ok(device);
    }
    let device = Device::emulator()?;
    Ok(DEVICE.get_or_init(|| device))
}

/// Elements of the storage from the first of the layout to one past its last.
pub(crate) fn reached(layout: &Layout) -> usize {
    let axes = layout.dims().iter().zip(layout.stride());
    match layout.dims().contains(&0) {
        true => 0,
        false => 1 + axes.map(|(extent, stride)| (extent - 1) * stride).sum::<usize>(),
    }
}

/// A tensor in the emulator's memory.
pub(crate) struct Copy {
    memory: Tensor,
    shape: Dims,
    strides: Dims,
}

impl Copy {
    /// What the layout reaches of its storage: the copy has the same strides.
    pub(crate) fn of<T: Element>(data: &[T], layout: &Layout, (shape, strides): (Dims, Dims)) -> Result<Copy> {
        let reached = reached(layout);
        let data = &data[layout.start_offset()..][..reached];
        let memory = Tensor::from_slice(device()?, data, [reached], ferroflash::Layout::RowMajor)?;
        Ok(Copy { memory, shape, strides })
    }

    pub(crate) fn view(&self) -> Result<TensorView<'_>> {
        let Copy { memory, shape, strides } = self;
        let elements = memory.shape()[0];
        // SAFETY: the memory has as many elements as it says, and lives longer than the view.
        let view = unsafe {
            TensorView::from_raw(memory.device(), memory.address(), elements, *shape, *strides, memory.dtype())
        };
        Ok(view?)
    }

    pub(crate) fn view_mut(&mut self) -> Result<TensorViewMut<'_>> {
        let Copy { memory, shape, strides } = self;
        let elements = memory.shape()[0];
        // SAFETY: as for a view, and the copy is borrowed mutably for as long as this one lives.
        let view = unsafe {
            TensorViewMut::from_raw(memory.device(), memory.address(), elements, *shape, *strides, memory.dtype())
        };
        Ok(view?)
    }

    /// Writes what is in the emulator's memory to where `data` begins.
    pub(crate) fn put_back<T: Element>(&self, data: &mut [T]) -> Result<()> {
        let found = self.memory.to_vec::<T>()?;
        data[..found.len()].copy_from_slice(&found);
        Ok(())
    }
}
