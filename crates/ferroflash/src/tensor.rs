//! Tensors in device memory and borrowed views of them.

use crate::backend::RawStream;
use crate::device::{Allocation, Device, Stream};
use crate::error::{Error, Result};
use kernel_spec::DType;
use std::ops::Range;

/// Element types of the host: `f32`, [`half::f16`] and [`half::bf16`].
pub trait Element: bytemuck::Pod + Send + Sync + sealed::Sealed + 'static {
    /// The same type on the device.
    const DTYPE: DType;
    /// The exact value.
    fn to_f64(self) -> f64;
    /// The nearest value of this type, ties to even.
    fn from_f64(value: f64) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for f32 {}
impl Element for f32 {
    const DTYPE: DType = DType::F32;
    fn to_f64(self) -> f64 {
        f64::from(self)
    }
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl sealed::Sealed for half::f16 {}
impl Element for half::f16 {
    const DTYPE: DType = DType::F16;
    fn to_f64(self) -> f64 {
        self.to_f64()
    }
    fn from_f64(value: f64) -> Self {
        half::f16::from_f64(value)
    }
}

impl sealed::Sealed for half::bf16 {}
impl Element for half::bf16 {
    const DTYPE: DType = DType::Bf16;
    fn to_f64(self) -> f64 {
        self.to_f64()
    }
    fn from_f64(value: f64) -> Self {
        half::bf16::from_f64(value)
    }
}

/// Order of the axes of a contiguous tensor in memory, the slowest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Layout {
    /// `[batch, row, head, dim]`, as FlashAttention's own packages take it.
    #[default]
    Bshd,
    /// `[batch, head, row, dim]`, as PyTorch's `scaled_dot_product_attention` takes it.
    Bhsd,
}

/// Extents of the four axes, whatever their order in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Sequences.
    pub batch: usize,
    /// Rows (tokens) of a sequence.
    pub rows: usize,
    /// Heads.
    pub heads: usize,
    /// Columns of a head.
    pub head_dim: usize,
}

impl Shape {
    /// A shape from its four extents.
    pub const fn new(batch: usize, rows: usize, heads: usize, head_dim: usize) -> Shape {
        Shape { batch, rows, heads, head_dim }
    }

    /// A shape from a list of extents in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::Rank`] when there are not four.
    pub fn from_dims(dims: &[usize], layout: Layout) -> Result<Shape> {
        let &[batch, second, third, head_dim] = dims else { return Err(Error::Rank { found: dims.len() }) };
        let (rows, heads) = match layout {
            Layout::Bshd => (second, third),
            Layout::Bhsd => (third, second),
        };
        Ok(Shape { batch, rows, heads, head_dim })
    }

    /// Number of elements, or `None` when it does not fit into `usize`.
    pub fn elements(&self) -> Option<usize> {
        // A product of extents of which one is 0 is 0, however large the others are.
        let extents = [self.batch, self.rows, self.heads, self.head_dim];
        if extents.contains(&0) {
            return Some(0);
        }
        extents.into_iter().try_fold(1usize, usize::checked_mul)
    }

    /// Strides of a contiguous tensor of this shape in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::TooLarge`] when the number of elements does not fit into 64 bits.
    pub fn contiguous(&self, layout: Layout) -> Result<Strides> {
        let Shape { batch: _, rows, heads, head_dim } = *self;
        let too_large = || Error::TooLarge { shape: *self, strides: Strides::new(0, 0, 0) };
        self.elements().ok_or_else(too_large)?;
        // An empty axis may hide an overflow of the others, which only a saturating product survives; no element is there then.
        let of = |a: usize, b: usize| a.saturating_mul(b);
        let batch_stride = of(of(rows, heads), head_dim);
        Ok(match layout {
            Layout::Bshd => Strides { batch: batch_stride, row: of(heads, head_dim), head: head_dim, dim: 1 },
            Layout::Bhsd => Strides { batch: batch_stride, row: head_dim, head: of(rows, head_dim), dim: 1 },
        })
    }
}

impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Shape { batch, rows, heads, head_dim } = self;
        write!(f, "[batch {batch}, rows {rows}, heads {heads}, head_dim {head_dim}]")
    }
}

/// Distances in elements between neighbours along each axis. 0 repeats the same memory (inputs only).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Strides {
    /// From one batch entry to the next.
    pub batch: usize,
    /// From one row to the next.
    pub row: usize,
    /// From one head to the next.
    pub head: usize,
    /// From one column to the next. Attention accepts only 1.
    pub dim: usize,
}

impl Strides {
    /// Strides with contiguous columns.
    pub const fn new(batch: usize, row: usize, head: usize) -> Strides {
        Strides { batch, row, head, dim: 1 }
    }

    /// Strides from a list in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::Rank`] when there are not four.
    pub fn from_dims(strides: &[usize], layout: Layout) -> Result<Strides> {
        let Shape { batch, rows: row, heads: head, head_dim: dim } = Shape::from_dims(strides, layout)?;
        Ok(Strides { batch, row, head, dim })
    }
}

impl std::fmt::Display for Strides {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Strides { batch, row, head, dim } = self;
        write!(f, "[batch {batch}, row {row}, head {head}, dim {dim}]")
    }
}

/// Shape, strides and element type: everything about a view but where it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) shape: Shape,
    pub(crate) strides: Strides,
    pub(crate) dtype: DType,
}

impl Geometry {
    /// Axes as `(extent, stride)`: batch, row, head, dim.
    pub(crate) fn axes(&self) -> [(usize, usize); 4] {
        let (shape, strides) = (self.shape, self.strides);
        [
            (shape.batch, strides.batch),
            (shape.rows, strides.row),
            (shape.heads, strides.head),
            (shape.head_dim, strides.dim),
        ]
    }

    /// Elements from the first to one past the last element; 0 when there is none.
    pub(crate) fn span(&self) -> Result<usize> {
        if self.axes().iter().any(|&(extent, _)| extent == 0) {
            return Ok(0);
        }
        let last = self.axes().iter().try_fold(0usize, |last, &(extent, stride)| {
            (extent - 1).checked_mul(stride).and_then(|distance| last.checked_add(distance))
        });
        // The span in bytes has to fit too, and no device has more than 2^63 bytes.
        last.and_then(|last| last.checked_add(1))
            .filter(|span| span.checked_mul(self.dtype.bytes()).is_some_and(|bytes| bytes <= isize::MAX as usize))
            .ok_or(Error::TooLarge { shape: self.shape, strides: self.strides })
    }

    /// Fails when the elements do not fit into `available` elements of storage from `offset` on.
    fn check_storage(&self, offset: usize, available: usize) -> Result<()> {
        let span = self.span()?;
        let needed = offset.checked_add(span).ok_or(Error::TooLarge { shape: self.shape, strides: self.strides })?;
        if needed > available {
            return Err(Error::StorageTooSmall {
                shape: self.shape,
                strides: self.strides,
                needed: needed as u64,
                available: available as u64,
            });
        }
        Ok(())
    }

    fn check_element<T: Element>(&self) -> Result<()> {
        if self.dtype == T::DTYPE { Ok(()) } else { Err(Error::ElementType { found: self.dtype, requested: T::DTYPE }) }
    }

    /// Elements of the shape, checked against the length of a slice.
    fn check_len(&self, found: usize) -> Result<()> {
        let shape = self.shape;
        let expected = shape.elements().ok_or(Error::TooLarge { shape, strides: self.strides })?;
        if expected == found { Ok(()) } else { Err(Error::DataLength { shape, expected, found }) }
    }

    /// Calls `visit` with the offset of every run of columns in logical order `[batch, row, head]`.
    fn for_each_row(&self, mut visit: impl FnMut(usize)) {
        let [(batch, batch_stride), (rows, row_stride), (heads, head_stride), _] = self.axes();
        for b in 0..batch {
            for r in 0..rows {
                for h in 0..heads {
                    visit(b * batch_stride + r * row_stride + h * head_stride);
                }
            }
        }
    }

    /// The bytes that the elements lie in, counted from the first element, as ranges with gaps between them.
    fn byte_ranges(&self) -> Vec<Range<usize>> {
        let bytes = self.dtype.bytes();
        let mut ranges = Vec::new();
        self.for_each_row(|start| match self.strides.dim {
            1 => ranges.push(start * bytes..(start + self.shape.head_dim) * bytes),
            stride => ranges.extend((0..self.shape.head_dim).map(|d| {
                let element = start + d * stride;
                element * bytes..(element + 1) * bytes
            })),
        });
        ranges.sort_unstable_by_key(|range| range.start);
        let mut merged: Vec<Range<usize>> = Vec::new();
        for range in ranges {
            match merged.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => merged.push(range),
            }
        }
        merged
    }

    /// Whether memory order is logical order without gaps.
    fn is_logical_order(&self) -> bool {
        self.shape.contiguous(Layout::Bshd).is_ok_and(|strides| strides == self.strides)
    }
}

/// An owned tensor in device memory, freed on drop.
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
    /// Elements from the start of the storage to element `[0, 0, 0, 0]`.
    offset: usize,
    geometry: Geometry,
}

impl Tensor {
    /// A contiguous tensor with the values of `data`, which is in the order of `layout`.
    ///
    /// # Errors
    /// [`Error::DataLength`], [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn from_slice<T: Element>(device: &Device, data: &[T], shape: Shape, layout: Layout) -> Result<Tensor> {
        Geometry { shape, strides: shape.contiguous(layout)?, dtype: T::DTYPE }.check_len(data.len())?;
        let tensor = Tensor::uninit(device, T::DTYPE, shape, layout)?;
        tensor.write_storage(bytemuck::cast_slice(data))?;
        Ok(tensor)
    }

    /// A tensor over a copy of all of `storage`: element `[b, r, h, d]` is
    /// `storage[offset + b * strides.batch + r * strides.row + h * strides.head + d * strides.dim]`.
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn from_slice_strided<T: Element>(
        device: &Device,
        storage: &[T],
        offset: usize,
        shape: Shape,
        strides: Strides,
    ) -> Result<Tensor> {
        let geometry = Geometry { shape, strides, dtype: T::DTYPE };
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
    /// [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn uninit(device: &Device, dtype: DType, shape: Shape, layout: Layout) -> Result<Tensor> {
        let geometry = Geometry { shape, strides: shape.contiguous(layout)?, dtype };
        let bytes = geometry.span()? * dtype.bytes();
        let storage = Allocation::new(device, RawStream::DEFAULT, bytes as u64)?;
        Ok(Tensor { storage, offset: 0, geometry })
    }

    /// A contiguous tensor of zeros.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn zeros(device: &Device, dtype: DType, shape: Shape, layout: Layout) -> Result<Tensor> {
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
    pub fn shape(&self) -> Shape {
        self.geometry.shape
    }

    /// Strides of the axes in elements.
    pub fn strides(&self) -> Strides {
        self.geometry.strides
    }

    /// Elements of the storage, which a strided tensor need not use all.
    pub fn storage_elements(&self) -> usize {
        self.storage.bytes() as usize / self.dtype().bytes()
    }

    /// Device address of element `[0, 0, 0, 0]`.
    pub fn address(&self) -> u64 {
        self.storage.address() + (self.offset * self.dtype().bytes()) as u64
    }

    /// A view of all elements.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { device: self.device(), address: self.address(), geometry: self.geometry }
    }

    /// A view of all elements for writing.
    pub fn view_mut(&mut self) -> TensorViewMut<'_> {
        TensorViewMut(self.view())
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
    /// [`Error::StorageTooSmall`], [`Error::TooLarge`].
    pub fn strided(&self, offset: usize, shape: Shape, strides: Strides) -> Result<TensorView<'_>> {
        let geometry = Geometry { shape, strides, dtype: self.dtype() };
        geometry.check_storage(offset, self.storage_elements())?;
        let address = self.storage.address() + (offset * self.dtype().bytes()) as u64;
        Ok(TensorView { device: self.device(), address, geometry })
    }

    /// Another view of the same storage for writing; see [`Tensor::strided`].
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::TooLarge`].
    pub fn strided_mut(&mut self, offset: usize, shape: Shape, strides: Strides) -> Result<TensorViewMut<'_>> {
        Ok(TensorViewMut(self.strided(offset, shape, strides)?))
    }

    /// The elements in logical order `[batch, row, head, dim]`. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        self.view().to_vec()
    }

    /// The exact values of the elements in logical order `[batch, row, head, dim]`. Waits for work on the device.
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

    /// Writes the elements from `data`, in logical order `[batch, row, head, dim]`. What lies between them stays.
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

/// A borrowed tensor: an address, a shape, strides and an element type. Reads only.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    device: &'a Device,
    address: u64,
    geometry: Geometry,
}

impl<'a> TensorView<'a> {
    /// Uses memory of another framework in place. `address` is that of element `[0, 0, 0, 0]`, and `storage_elements` the
    /// number of elements from there to the end of the memory.
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::MisalignedAddress`], [`Error::TooLarge`].
    ///
    /// # Safety
    /// `storage_elements` elements from `address` on are device memory of `device`, live and not written for `'a` except by
    /// work that is ordered before the use of this view.
    pub unsafe fn from_raw(
        device: &'a Device,
        address: u64,
        storage_elements: usize,
        shape: Shape,
        strides: Strides,
        dtype: DType,
    ) -> Result<TensorView<'a>> {
        let geometry = Geometry { shape, strides, dtype };
        geometry.check_storage(0, storage_elements)?;
        check_address(address, dtype)?;
        Ok(TensorView { device, address, geometry })
    }

    /// The device that holds it.
    pub fn device(&self) -> &'a Device {
        self.device
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.geometry.dtype
    }

    /// Extents of the axes.
    pub fn shape(&self) -> Shape {
        self.geometry.shape
    }

    /// Strides of the axes in elements.
    pub fn strides(&self) -> Strides {
        self.geometry.strides
    }

    /// Device address of element `[0, 0, 0, 0]`.
    pub fn address(&self) -> u64 {
        self.address
    }

    /// These rows of every sequence.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn rows(&self, rows: Range<usize>) -> Result<TensorView<'a>> {
        let len = check_range("rows", &rows, self.geometry.shape.rows)?;
        let mut view = self.shifted(rows.start * self.geometry.strides.row);
        view.geometry.shape.rows = len;
        Ok(view)
    }

    /// These heads.
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn heads(&self, heads: Range<usize>) -> Result<TensorView<'a>> {
        let len = check_range("heads", &heads, self.geometry.shape.heads)?;
        let mut view = self.shifted(heads.start * self.geometry.strides.head);
        view.geometry.shape.heads = len;
        Ok(view)
    }

    /// The elements in logical order `[batch, row, head, dim]`. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>> {
        let geometry = &self.geometry;
        geometry.check_element::<T>()?;
        let mut memory = vec![T::zeroed(); geometry.span()?];
        if memory.is_empty() {
            return Ok(memory);
        }
        let bytes = bytemuck::cast_slice_mut(&mut memory);
        if geometry.is_logical_order() {
            self.device.backend().read(self.address, bytes)?;
            return Ok(memory);
        }
        self.device.backend().read_ranges(self.address, &geometry.byte_ranges(), bytes)?;
        let (head_dim, dim_stride) = (geometry.shape.head_dim, geometry.strides.dim);
        let shape = geometry.shape;
        let elements = shape.elements().ok_or(Error::TooLarge { shape, strides: geometry.strides })?;
        let mut logical = Vec::with_capacity(elements);
        geometry.for_each_row(|start| {
            if dim_stride == 1 {
                logical.extend_from_slice(&memory[start..start + head_dim]);
            } else {
                logical.extend((0..head_dim).map(|d| memory[start + d * dim_stride]));
            }
        });
        Ok(logical)
    }

    /// The exact values of the elements in logical order `[batch, row, head, dim]`. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_f64_vec(&self) -> Result<Vec<f64>> {
        fn values<T: Element>(view: &TensorView<'_>) -> Result<Vec<f64>> {
            Ok(view.to_vec::<T>()?.into_iter().map(T::to_f64).collect())
        }
        match self.dtype() {
            DType::F32 => values::<f32>(self),
            DType::F16 => values::<half::f16>(self),
            DType::Bf16 => values::<half::bf16>(self),
        }
    }

    pub(crate) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The same view from `elements` further on. A view without elements stays where it is, since it has no storage to point at.
    fn shifted(mut self, elements: usize) -> TensorView<'a> {
        if self.geometry.shape.elements() != Some(0) {
            self.address += (elements * self.geometry.dtype.bytes()) as u64;
        }
        self
    }
}

/// A borrowed tensor for writing.
#[derive(Debug)]
pub struct TensorViewMut<'a>(TensorView<'a>);

impl<'a> TensorViewMut<'a> {
    /// Uses memory of another framework in place, for writing; see [`TensorView::from_raw`].
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::MisalignedAddress`], [`Error::TooLarge`].
    ///
    /// # Safety
    /// `storage_elements` elements from `address` on are device memory of `device`, live and used by nobody else for `'a`
    /// except by work that is ordered before the use of this view.
    pub unsafe fn from_raw(
        device: &'a Device,
        address: u64,
        storage_elements: usize,
        shape: Shape,
        strides: Strides,
        dtype: DType,
    ) -> Result<TensorViewMut<'a>> {
        // SAFETY: the caller promises more than a view for reading needs.
        Ok(TensorViewMut(unsafe { TensorView::from_raw(device, address, storage_elements, shape, strides, dtype)? }))
    }

    /// The same tensor for reading.
    pub fn view(&self) -> TensorView<'_> {
        self.0
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.0.device
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// Extents of the axes.
    pub fn shape(&self) -> Shape {
        self.0.shape()
    }

    /// Strides of the axes in elements.
    pub fn strides(&self) -> Strides {
        self.0.strides()
    }

    /// These rows of every sequence; see [`TensorView::rows`].
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn into_rows(self, rows: Range<usize>) -> Result<TensorViewMut<'a>> {
        Ok(TensorViewMut(self.0.rows(rows)?))
    }

    /// These heads; see [`TensorView::heads`].
    ///
    /// # Errors
    /// [`Error::Range`].
    pub fn into_heads(self, heads: Range<usize>) -> Result<TensorViewMut<'a>> {
        Ok(TensorViewMut(self.0.heads(heads)?))
    }

    /// Writes the elements from `data`, in logical order `[batch, row, head, dim]`. What lies between them stays.
    ///
    /// # Errors
    /// [`Error::ElementType`], [`Error::DataLength`], [`Error::OutputOverlapsItself`], [`Error::Cuda`], [`Error::Emulator`].
    pub fn write<T: Element>(&mut self, data: &[T]) -> Result<()> {
        let TensorView { device, address, geometry } = self.0;
        geometry.check_element::<T>()?;
        geometry.check_len(data.len())?;
        if data.is_empty() {
            return Ok(());
        }
        if geometry.is_logical_order() {
            return device.backend().write(address, bytemuck::cast_slice(data));
        }
        if crate::overlap::overlaps_itself(&geometry) {
            return Err(Error::OutputOverlapsItself { shape: geometry.shape, strides: geometry.strides });
        }
        let mut memory = vec![T::zeroed(); geometry.span()?];
        let (head_dim, dim_stride) = (geometry.shape.head_dim, geometry.strides.dim);
        let mut rows = data.chunks_exact(head_dim);
        geometry.for_each_row(|start| {
            let row = rows.next().expect("as many rows as check_len counted");
            for (d, &value) in row.iter().enumerate() {
                memory[start + d * dim_stride] = value;
            }
        });
        device.backend().write_ranges(address, &geometry.byte_ranges(), bytemuck::cast_slice(&memory))
    }
}

/// The log-sum-exp of every row, owned, in device memory: contiguous `f32 [batch, head, row]`, natural logarithm.
///
/// A row that sees no key has minus infinity.
#[derive(Debug)]
pub struct Lse {
    storage: Allocation,
    shape: LseShape,
}

/// Extents of a log-sum-exp.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LseShape {
    /// Sequences.
    pub batch: usize,
    /// Query heads.
    pub heads: usize,
    /// Query rows.
    pub rows: usize,
}

impl LseShape {
    fn elements(&self) -> Result<usize> {
        let shape = Shape { batch: self.batch, rows: self.rows, heads: self.heads, head_dim: 1 };
        Geometry { shape, strides: shape.contiguous(Layout::Bhsd)?, dtype: DType::F32 }.span()
    }
}

impl Lse {
    /// Memory for the log-sum-exp, unspecified until it is written.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::OutOfMemory`], [`Error::Cuda`].
    pub fn uninit(device: &Device, shape: LseShape) -> Result<Lse> {
        let bytes = shape.elements()? * DType::F32.bytes();
        Ok(Lse { storage: Allocation::new(device, RawStream::DEFAULT, bytes as u64)?, shape })
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.storage.device()
    }

    /// Extents.
    pub fn shape(&self) -> LseShape {
        self.shape
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.storage.address()
    }

    /// A view for writing.
    pub fn view_mut(&mut self) -> LseViewMut<'_> {
        LseViewMut { device: self.storage.device(), address: self.storage.address(), shape: self.shape }
    }

    /// The values in the order `[batch, head, row]`. Waits for work on the device.
    ///
    /// # Errors
    /// [`Error::Cuda`], [`Error::Emulator`].
    pub fn to_vec(&self) -> Result<Vec<f32>> {
        let mut values = vec![0f32; self.shape.elements()?];
        if !values.is_empty() {
            self.device().backend().read(self.storage.address(), bytemuck::cast_slice_mut(&mut values))?;
        }
        Ok(values)
    }

    /// Sets every byte, for instance to 0xff, which is NaN.
    ///
    /// # Errors
    /// [`Error::Cuda`].
    pub fn fill_bytes(&mut self, byte: u8) -> Result<()> {
        if self.storage.bytes() == 0 {
            return Ok(());
        }
        self.device().backend().fill(self.storage.address(), byte, self.storage.bytes())
    }
}

/// Borrowed memory for a log-sum-exp: contiguous `f32 [batch, head, row]`.
#[derive(Debug)]
pub struct LseViewMut<'a> {
    device: &'a Device,
    address: u64,
    shape: LseShape,
}

impl<'a> LseViewMut<'a> {
    /// Uses memory of another framework in place; `storage_elements` counts `f32` from `address` on.
    ///
    /// # Errors
    /// [`Error::StorageTooSmall`], [`Error::MisalignedAddress`], [`Error::TooLarge`].
    ///
    /// # Safety
    /// `storage_elements` `f32` from `address` on are device memory of `device`, live and used by nobody else for `'a` except
    /// by work that is ordered before the use of this view.
    pub unsafe fn from_raw(
        device: &'a Device,
        address: u64,
        storage_elements: usize,
        shape: LseShape,
    ) -> Result<LseViewMut<'a>> {
        let as_tensor = Shape { batch: shape.batch, rows: shape.rows, heads: shape.heads, head_dim: 1 };
        let strides = as_tensor.contiguous(Layout::Bhsd)?;
        Geometry { shape: as_tensor, strides, dtype: DType::F32 }.check_storage(0, storage_elements)?;
        check_address(address, DType::F32)?;
        Ok(LseViewMut { device, address, shape })
    }

    /// The device that holds it.
    pub fn device(&self) -> &Device {
        self.device
    }

    /// Extents.
    pub fn shape(&self) -> LseShape {
        self.shape
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.address
    }
}

pub(crate) fn check_address(address: u64, dtype: DType) -> Result<()> {
    let bytes = dtype.bytes();
    if address.is_multiple_of(bytes as u64) { Ok(()) } else { Err(Error::MisalignedAddress { address, bytes, dtype }) }
}

fn check_range(axis: &'static str, range: &Range<usize>, len: usize) -> Result<usize> {
    if range.start > range.end || range.end > len {
        return Err(Error::Range { axis, start: range.start, end: range.end, len });
    }
    Ok(range.end - range.start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_ranges_merge_neighbours_and_leave_gaps_out() {
        let ranges = |shape, strides| Geometry { shape, strides, dtype: DType::F16 }.byte_ranges();
        let shape = Shape::new(2, 3, 2, 8);
        for layout in [Layout::Bshd, Layout::Bhsd] {
            assert_eq!(ranges(shape, shape.contiguous(layout).unwrap()), [Range { start: 0, end: 192 }]);
        }
        // Two heads of one row side by side, rows 20 elements apart.
        assert_eq!(ranges(Shape::new(1, 3, 2, 8), Strides::new(0, 20, 8)), [0..32, 40..72, 80..112]);
        assert_eq!(ranges(Shape::new(5, 2, 1, 8), Strides::new(0, 8, 0)), [Range { start: 0, end: 32 }]);
        assert_eq!(ranges(Shape::new(1, 1, 1, 3), Strides { dim: 4, ..Strides::new(0, 0, 0) }), [0..2, 8..10, 16..18]);
    }
}
