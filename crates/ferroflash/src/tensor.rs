//! Tensors in device memory and borrowed views of them.

use crate::backend::RawStream;
use crate::device::{Allocation, Device, Stream};
use crate::error::{Error, Result};
use geometry::Geometry;
use kernel_spec::DType;

mod bools;
mod dims;
mod element;
pub(crate) mod geometry;
mod heads;
mod indices;
mod lse;
pub(crate) mod overlap;
mod shape;
mod view;

pub use bools::{BoolTensor, BoolView};
pub use dims::{Dims, MAX_RANK};
pub use element::Element;
pub use heads::HeadsView;
pub use indices::{Indices, IndicesView};
pub use lse::{Lse, LseShape, LseView, LseViewMut};
pub use shape::{Layout, Shape, Strides};
pub use view::{TensorView, TensorViewMut};

/// An owned tensor in device memory, freed on drop. It has any number of axes up to [`MAX_RANK`]; attention reads four of them as
/// `[batch, row, head, dim]`, which a [`Shape`] names.
///
/// ```
/// # #[cfg(feature = "emulator")] {
/// use ferroflash::{Device, Layout, Shape, Tensor};
/// let device = Device::emulator()?;
/// // Two heads of three rows of one sequence, head by head in memory.
/// let data: Vec<f32> = (0..2 * 3 * 8).map(|i| i as f32).collect();
/// let tensor = Tensor::from_slice(&device, &data, Shape::new(1, 3, 2, 8), Layout::Bhsd)?;
/// // Reading gives [batch, row, head, dim]: row 0 of head 1 comes second.
/// assert_eq!(tensor.to_vec::<f32>()?[8..10], [24.0, 25.0]);
/// # }
/// # Ok::<(), ferroflash::Error>(())
/// ```
#[derive(Debug)]
pub struct Tensor {
    storage: Allocation,
    /// Elements from the start of the storage to the first element of the tensor.
    offset: usize,
    geometry: Geometry,
}

impl Tensor {
    /// A contiguous tensor with the values of `data`, which is in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::DataLength`], [`Error::Rank`], [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn from_slice<T: Element>(
        device: &Device,
        data: &[T],
        shape: impl Into<Dims>,
        layout: Layout,
    ) -> Result<Tensor> {
        let geometry = Geometry::contiguous(shape.into(), layout, T::DTYPE)?;
        geometry.check_len(data.len())?;
        let tensor = Tensor::of(device, geometry)?;
        tensor.write_storage(bytemuck::cast_slice(data))?;
        Ok(tensor)
    }

    /// A tensor over a copy of all of `storage`: the element of index `i` along each axis is at `offset` plus the sum of
    /// `i * stride` over the axes.
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::Axes`], [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn from_slice_strided<T: Element>(
        device: &Device,
        storage: &[T],
        offset: usize,
        shape: impl Into<Dims>,
        strides: impl Into<Dims>,
    ) -> Result<Tensor> {
        let geometry = Geometry::new(shape.into(), strides.into(), T::DTYPE)?;
        geometry.check_storage(offset, storage.len())?;
        let bytes: &[u8] = bytemuck::cast_slice(storage);
        let allocation = Allocation::new(device, RawStream::DEFAULT, bytes.len() as u64)?;
        let tensor = Tensor { storage: allocation, offset, geometry };
        tensor.write_storage(bytes)?;
        Ok(tensor)
    }

    /// A contiguous tensor whose values are unspecified until it is written.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn uninit(device: &Device, dtype: DType, shape: impl Into<Dims>, layout: Layout) -> Result<Tensor> {
        Tensor::of(device, Geometry::contiguous(shape.into(), layout, dtype)?)
    }

    /// A tensor in storage of its own, without gaps.
    fn of(device: &Device, geometry: Geometry) -> Result<Tensor> {
        let bytes = geometry.span()? * geometry.dtype.bytes();
        let storage = Allocation::new(device, RawStream::DEFAULT, bytes as u64)?;
        Ok(Tensor { storage, offset: 0, geometry })
    }

    /// A contiguous tensor of zeros.
    ///
    /// # Errors
    /// [`Error::Rank`], [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn zeros(device: &Device, dtype: DType, shape: impl Into<Dims>, layout: Layout) -> Result<Tensor> {
        let mut tensor = Tensor::uninit(device, dtype, shape, layout)?;
        // All bits zero is 0.0 in every element type.
        tensor.fill_bytes(0)?;
        Ok(tensor)
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.storage.device()
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.geometry.dtype
    }

    /// Extents of the axes.
    pub fn shape(&self) -> Dims {
        self.geometry.shape
    }

    /// Strides of the axes in elements.
    pub fn strides(&self) -> Dims {
        self.geometry.strides
    }

    /// Elements of the storage, which a strided tensor need not use all.
    pub fn storage_elements(&self) -> usize {
        self.storage.bytes() as usize / self.dtype().bytes()
    }

    /// Device address of the first element, that of index 0 along every axis.
    pub fn address(&self) -> u64 {
        self.storage.address() + (self.offset * self.dtype().bytes()) as u64
    }

    /// A view of all elements.
    pub fn view(&self) -> TensorView<'_> {
        TensorView::new(self.device(), self.address(), self.geometry)
    }

    /// A view of all elements for writing.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        TensorViewMut::new(self.view())
    }

    /// Another view of the same storage, for tensors packed into one: `offset` counts elements from the start of the storage.
    ///
    /// ```
    /// # #[cfg(feature = "emulator")] {
    /// use ferroflash::{Device, Layout, Shape, Tensor};
    /// let device = Device::emulator()?;
    /// // q, k and v of two heads side by side in one projection of 5 rows: [1, 5, 3 * 2, 16].
    /// let qkv = Tensor::zeros(&device, ferroflash::DType::F16, Shape::new(1, 5, 6, 16), Layout::Bshd)?;
    /// let (shape, strides) = (Shape::new(1, 5, 2, 16), qkv.strides());
    /// let [q, k, v] = [0, 1, 2].map(|i| qkv.strided(i * 2 * 16, shape, strides));
    /// let output = ferroflash::Attention::new().forward(&q?, &k?, &v?)?;
    /// # assert_eq!(output.out.to_f64_vec()?, vec![0.0; 5 * 2 * 16]);
    /// # }
    /// # Ok::<(), ferroflash::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::Axes`], [`Error::TooLarge`].
    pub fn strided(&self, offset: usize, shape: impl Into<Dims>, strides: impl Into<Dims>) -> Result<TensorView<'_>> {
        let geometry = Geometry::new(shape.into(), strides.into(), self.dtype())?;
        geometry.check_storage(offset, self.storage_elements())?;
        let address = self.storage.address() + (offset * self.dtype().bytes()) as u64;
        Ok(TensorView::new(self.device(), address, geometry))
    }

    /// Another view of the same storage for writing; see [`Tensor::strided`].
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::Axes`], [`Error::TooLarge`].
    pub fn strided_mut(
        &mut self,
        offset: usize,
        shape: impl Into<Dims>,
        strides: impl Into<Dims>,
    ) -> Result<TensorViewMut<'_>> {
        Ok(TensorViewMut::new(self.strided(offset, shape, strides)?))
    }

    /// The elements in logical order, the last axis fastest. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.view().to_vec()
    }

    /// The exact values of the elements in logical order, the last axis fastest. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        self.view().to_f64_vec()
    }

    /// Everything in the storage, in memory order: also what lies between and around the elements of a strided tensor.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::Cuda`], [`Error::Emulator`].
    pub fn storage_to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.geometry.check_element::<T>()?;
        let mut storage = vec![T::zeroed(); self.storage_elements()];
        self.device().backend().read(self.storage.address(), bytemuck::cast_slice_mut(&mut storage))?;
        Ok(storage)
    }

    /// Writes the elements from `data`, in logical order, the last axis fastest. What lies between them stays.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::DataLength`], [`Error::Cuda`], [`Error::Emulator`].
    pub fn write<T: Element>(&mut self, data: &[T]) -> Result<()> {
        self.view_mut().write(data)
    }

    /// Copies every element of `source`, in the order of `stream`; may return before it is done.
    ///
    /// # Errors
    /// [`Error::CopyMismatch`] when device, type, shape or place in memory differ, [`Error::DeviceMismatch`] for a stream of
    /// another device, or [`Error::Cuda`].
    pub fn copy_from(&mut self, stream: &Stream, source: &Tensor) -> Result<()> {
        let device = self.device();
        device.check_stream(stream)?;
        let layout = |tensor: &Tensor| (tensor.geometry, tensor.offset, tensor.storage.bytes());
        if source.device() != device || layout(source) != layout(self) {
            return Err(Error::CopyMismatch { from: source.describe(), to: self.describe() });
        }
        match self.storage.bytes() {
            0 => Ok(()),
            bytes => device.backend().copy(source.storage.address(), self.storage.address(), bytes, stream.raw()),
        }
    }

    fn describe(&self) -> String {
        let Geometry { shape, strides, dtype } = self.geometry;
        format!("{dtype} of shape {shape} and strides {strides} on {}", self.device().info().id())
    }

    /// Sets every byte of the storage, for instance to 0xff, which is NaN in every element type.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        if self.storage.bytes() == 0 {
            return Ok(());
        }
        self.device().backend().fill(self.storage.address(), byte, self.storage.bytes())
    }

    fn write_storage(&self, bytes: &[u8]) -> Result<()> {
        if bytes.is_empty() { Ok(()) } else { self.device().backend().write(self.storage.address(), bytes) }
    }
}
