//! candle's tensors as the operators of ferroflash read and write them: in the emulator's memory, or where they are on a GPU.

mod changed;
#[cfg(feature = "emulator")]
mod cpu;
/// A build without the emulator.
#[cfg(not(feature = "emulator"))]
mod cpu {
    use super::*;

    pub(super) fn run(
        op: &'static str,
        _: &[Given<'_>],
        _: Vec<Changed<'_>>,
        _: &[Wanted],
        _: impl for<'v> FnOnce(&Stream, &mut Views<'v>) -> ferroflash::Result<()>,
    ) -> crate::error::Result<Vec<Storage>> {
        Err(crate::Error::NoEmulator { op })
    }
}
#[cfg(feature = "cuda")]
mod cuda;

pub(super) use changed::with_changed;

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::op::BackpropOp;
use candle_core::{CpuStorage, DType, DeviceLocation, Layout, Result, Shape, Storage, Tensor};
use ferroflash::{BoolView, Dims, IndicesView, Operand, Stream, TensorView, TensorViewMut};

/// Memory of a tensor of candle's.
#[derive(Clone, Copy)]
pub(super) enum Memory<'a> {
    Cpu(&'a CpuStorage),
    #[cfg(feature = "cuda")]
    Cuda(&'a candle_core::CudaStorage),
}

impl<'a> Memory<'a> {
    /// `None` for devices that ferroflash has nothing for.
    pub(super) fn of(storage: &'a Storage) -> Option<Memory<'a>> {
        match storage {
            Storage::Cpu(storage) => Some(Memory::Cpu(storage)),
            #[cfg(feature = "cuda")]
            Storage::Cuda(storage) => Some(Memory::Cuda(storage)),
            _ => None,
        }
    }

    pub(super) fn dtype(self) -> DType {
        match self {
            Memory::Cpu(storage) => storage.dtype(),
            #[cfg(feature = "cuda")]
            Memory::Cuda(storage) => storage.dtype(),
        }
    }

    /// Memory of one element, 0, of this type and on this device.
    pub(super) fn one_zero(self) -> Result<Storage> {
        let (shape, dtype) = (Shape::from(1), self.dtype());
        Ok(match self {
            Memory::Cpu(storage) => Storage::Cpu(storage.device().zeros_impl(&shape, dtype)?),
            #[cfg(feature = "cuda")]
            Memory::Cuda(storage) => Storage::Cuda(storage.device().zeros_impl(&shape, dtype)?),
        })
    }

    fn location(self) -> DeviceLocation {
        match self {
            Memory::Cpu(_) => DeviceLocation::Cpu,
            #[cfg(feature = "cuda")]
            Memory::Cuda(storage) => storage.device().location(),
        }
    }
}

/// A tensor that a call reads.
#[derive(Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) operand: Operand,
    pub(super) memory: Memory<'a>,
    pub(super) layout: &'a Layout,
}

impl Given<'_> {
    /// Shape and strides.
    fn axes(&self) -> ferroflash::Result<(Dims, Dims)> {
        Ok((Dims::new(self.layout.dims())?, Dims::new(self.layout.stride())?))
    }

    /// Whether it has numbers of rows, classes or positions in place of elements.
    fn has_numbers(&self) -> bool {
        matches!(self.operand, Operand::Targets | Operand::Ids | Operand::Offsets | Operand::Positions)
    }

    /// Whether it has booleans, a byte each, in place of elements.
    fn has_booleans(&self) -> bool {
        self.operand == Operand::Mask && self.memory.dtype() == DType::U8
    }

    /// That its elements are of a type that no kernel takes.
    fn unaccepted(&self, op: &'static str) -> crate::Error {
        let found = self.memory.dtype();
        match self.operand {
            Operand::Mask => crate::Error::MaskType { op, found },
            operand => crate::Error::ElementType { op, operand, found },
        }
    }
}

/// Memory of a tensor of candle's that nobody else reads or writes now.
pub(super) enum MemoryMut<'a> {
    Cpu(&'a mut CpuStorage),
    #[cfg(feature = "cuda")]
    Cuda(&'a mut candle_core::CudaStorage),
}

impl MemoryMut<'_> {
    fn dtype(&self) -> DType {
        match self {
            MemoryMut::Cpu(storage) => storage.dtype(),
            #[cfg(feature = "cuda")]
            MemoryMut::Cuda(storage) => storage.dtype(),
        }
    }

    fn location(&self) -> DeviceLocation {
        match self {
            MemoryMut::Cpu(_) => DeviceLocation::Cpu,
            #[cfg(feature = "cuda")]
            MemoryMut::Cuda(storage) => storage.device().location(),
        }
    }
}

/// A tensor that a call overwrites.
pub(super) struct Changed<'a> {
    operand: Operand,
    memory: MemoryMut<'a>,
    layout: &'a Layout,
}

impl Changed<'_> {
    /// Shape and strides.
    fn axes(&self) -> ferroflash::Result<(Dims, Dims)> {
        Ok((Dims::new(self.layout.dims())?, Dims::new(self.layout.stride())?))
    }
}

/// A tensor that a call makes: contiguous.
pub(super) struct Wanted {
    operand: Operand,
    dtype: DType,
    layout: Layout,
}

impl Wanted {
    pub(super) fn new(operand: Operand, dtype: DType, shape: impl Into<Shape>) -> Wanted {
        Wanted { operand, dtype, layout: Layout::contiguous(shape) }
    }

    /// Shape and strides.
    fn axes(&self) -> ferroflash::Result<(Dims, Dims)> {
        Ok((Dims::new(self.layout.dims())?, Dims::new(self.layout.stride())?))
    }
}

/// A tensor that a call reads, as ferroflash knows it.
#[derive(Clone, Copy)]
enum View<'v> {
    Tensor(TensorView<'v>),
    Numbers(IndicesView<'v>),
    Booleans(BoolView<'v>),
}

/// The tensors of a call as ferroflash knows them, by their names.
pub(super) struct Views<'v> {
    given: Vec<(Operand, View<'v>)>,
    made: Vec<(Operand, TensorViewMut<'v>)>,
}

impl<'v> Views<'v> {
    /// A tensor that may be there.
    pub(super) fn find(&self, operand: Operand) -> Option<TensorView<'v>> {
        self.given.iter().find_map(|&(of, view)| match view {
            View::Tensor(view) if of == operand => Some(view),
            _ => None,
        })
    }

    /// A tensor that every such call has.
    pub(super) fn tensor(&self, operand: Operand) -> TensorView<'v> {
        self.find(operand).expect("the caller has given it")
    }

    /// Numbers that may be there.
    pub(super) fn find_numbers(&self, operand: Operand) -> Option<IndicesView<'v>> {
        self.given.iter().find_map(|&(of, view)| match view {
            View::Numbers(view) if of == operand => Some(view),
            _ => None,
        })
    }

    /// Numbers that every such call has.
    pub(super) fn numbers(&self, operand: Operand) -> IndicesView<'v> {
        self.find_numbers(operand).expect("the caller has given them")
    }

    /// Booleans that may be there.
    pub(super) fn find_booleans(&self, operand: Operand) -> Option<BoolView<'v>> {
        self.given.iter().find_map(|&(of, view)| match view {
            View::Booleans(view) if of == operand => Some(view),
            _ => None,
        })
    }

    /// An output that may be wanted. The view goes to the first who asks.
    pub(super) fn find_out(&mut self, operand: Operand) -> Option<TensorViewMut<'v>> {
        let place = self.made.iter().position(|(of, _)| *of == operand)?;
        Some(self.made.swap_remove(place).1)
    }

    /// An output that every such call has.
    pub(super) fn out(&mut self, operand: Operand) -> TensorViewMut<'v> {
        self.find_out(operand).expect("the caller has asked for it, once")
    }
}

/// What a call has made.
pub(super) struct Made(Vec<(Operand, Storage, Shape)>);

impl Made {
    fn find(&mut self, operand: Operand) -> Option<(Storage, Shape)> {
        let place = self.0.iter().position(|&(of, ..)| of == operand)?;
        let (_, storage, shape) = self.0.swap_remove(place);
        Some((storage, shape))
    }

    /// An output that every such call has, with its shape.
    pub(super) fn storage(&mut self, operand: Operand) -> (Storage, Shape) {
        self.find(operand).expect("the caller has asked for it, once")
    }

    /// An output that may have been wanted, as a tensor that is no part of a graph.
    pub(super) fn tensor(&mut self, operand: Operand) -> Option<Tensor> {
        let (storage, shape) = self.find(operand)?;
        Some(Tensor::from_storage(storage, shape, BackpropOp::none(), false))
    }
}

/// Runs `call` with what is given, with tensors that are `held`, and with new ones. All have to be on one device.
pub(super) fn run(
    op: &'static str,
    given: &[Given<'_>],
    held: &[(Operand, &Tensor)],
    new: Vec<Wanted>,
    call: impl for<'v> FnOnce(&Stream, &mut Views<'v>) -> ferroflash::Result<()>,
) -> Result<Made> {
    run_on(op, given, held, Vec::new(), new, call)
}

/// [`run`], with tensors that are overwritten.
pub(super) fn run_on(
    op: &'static str,
    given: &[Given<'_>],
    held: &[(Operand, &Tensor)],
    changed: Vec<Changed<'_>>,
    new: Vec<Wanted>,
    call: impl for<'v> FnOnce(&Stream, &mut Views<'v>) -> ferroflash::Result<()>,
) -> Result<Made> {
    let locked: Vec<_> = held.iter().map(|&(operand, tensor)| (operand, tensor.storage_and_layout())).collect();
    let locations = given.iter().map(|given| given.memory.location());
    let locations = locations.chain(locked.iter().map(|(_, (storage, _))| storage.device().location()));
    let mut locations = locations.chain(changed.iter().map(|changed| changed.memory.location()));
    let lhs = locations.next().expect("every call has a tensor");
    if let Some(rhs) = locations.find(|&rhs| rhs != lhs) {
        return Err(candle_core::Error::DeviceMismatchBinaryOp { lhs, rhs, op }.bt());
    }
    let mut all = given.to_vec();
    for (operand, (storage, layout)) in &locked {
        let memory = Memory::of(storage).ok_or(crate::Error::Device { op })?;
        all.push(Given { operand: *operand, memory, layout });
    }
    let first = all.first().expect("every call reads something");
    let storages = match first.memory {
        Memory::Cpu(_) => {
            crate::cpu::check_asked(op)?;
            cpu::run(op, &all, changed, &new, call)?
        }
        #[cfg(feature = "cuda")]
        Memory::Cuda(of) => cuda::run(op, of.device(), &all, changed, &new, call)?,
    };
    Ok(Made(
        new.into_iter()
            .zip(storages)
            .map(|(new, storage)| (new.operand, storage, new.layout.shape().clone()))
            .collect(),
    ))
}

/// Numbers of 32 bits as those of u32 with the same bits.
pub(super) fn unsigned(op: &'static str, numbers: &Tensor) -> Result<Tensor> {
    if numbers.dtype() == DType::U32 {
        return Ok(numbers.detach());
    }
    let numbers = numbers.contiguous()?;
    let (storage, layout) = numbers.storage_and_layout();
    let range = layout.start_offset()..layout.start_offset() + layout.shape().elem_count();
    let storage = match &*storage {
        Storage::Cpu(CpuStorage::I32(data)) => {
            Storage::Cpu(CpuStorage::U32(data[range].iter().map(|&number| number as u32).collect()))
        }
        #[cfg(feature = "cuda")]
        Storage::Cuda(storage) => Storage::Cuda(cuda::unsigned(storage, range)?),
        _ => return Err(crate::Error::Numbers { op, operand: Operand::Targets, found: numbers.dtype() }.into()),
    };
    Ok(Tensor::from_storage(storage, layout.shape(), BackpropOp::none(), false))
}
