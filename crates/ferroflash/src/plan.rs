//! Plans: the launches of a call and the memory they share, as a list that can be looked at, bound to addresses and launched. Nothing
//! here knows what is computed.

use crate::backend::{Launch, RawStream};
use crate::device::{Allocation, Device, DeviceInfo, DeviceKind};
use crate::error::{BindError, Error, Operand, Result, Unsupported, Version};
use crate::specialise::Specialised;
use crate::tensor_map::TensorGeometry;
use kernel_spec::{Arch, Entry};

/// What an address in the parameters of a step is the address of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Binding {
    /// A tensor of the call.
    Operand(Operand),
    /// A buffer of the plan, by its index.
    Buffer(usize),
}

impl std::fmt::Display for Binding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Binding::Operand(operand) => operand.fmt(f),
            Binding::Buffer(index) => write!(f, "buffer {index}"),
        }
    }
}

/// Device memory that a call allocates while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Buffer {
    /// What it holds.
    pub name: &'static str,
    /// Bytes of it.
    pub bytes: u64,
    /// Why it is needed.
    pub reason: &'static str,
}

/// One line of a plan.
impl std::fmt::Display for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Buffer { name, bytes, reason } = self;
        write!(f, "  buffer     {bytes} bytes of {name}: {reason}")
    }
}

/// One launch of a plan.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// What the device loads: an entry point, and the features that its text is specialised for.
    pub kernel: Specialised,
    /// Thread blocks, all along x. 0: there is nothing to do, and it is not launched.
    pub ctas: u32,
    /// Thread blocks of a cluster: neighbours that are on the GPU together and read each other's shared memory. 1: there are no clusters.
    pub cluster: u32,
    /// How the work is cut into thread blocks, and why so.
    pub tile: String,
    params: Params,
}

/// Two lines of a plan.
impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Step { kernel, ctas, cluster, tile, .. } = self;
        let Entry { symbol, arch, threads, shared_bytes, .. } = kernel.entry;
        writeln!(
            f,
            "  launch     {symbol} ({}): {ctas} thread blocks of {threads} threads, {shared_bytes} bytes of shared memory",
            arch.name(),
        )?;
        if *cluster > 1 {
            writeln!(f, "  clusters   of {cluster} thread blocks")?;
        }
        write!(f, "  this tile  {tile}")
    }
}

impl Step {
    pub(crate) fn new(kernel: Specialised, ctas: u32, tile: String, params: Params) -> Step {
        assert_eq!(
            params.bytes.len(),
            kernel.entry.params_bytes as usize,
            "{} takes other parameters",
            kernel.entry.symbol
        );
        Step { kernel, ctas, cluster: 1, tile, params }
    }

    /// The same in clusters of so many thread blocks, which divide them.
    pub(crate) fn in_clusters(self, cluster: u32) -> Step {
        assert!(
            cluster <= self.kernel.entry.max_cluster && self.ctas.is_multiple_of(cluster),
            "whole clusters that the entry takes"
        );
        Step { cluster, ..self }
    }

    /// What its parameters hold the addresses of, in the order of the parameter struct. One may be there twice.
    pub fn bindings(&self) -> impl Iterator<Item = Binding> {
        self.params.holes.iter().map(|hole| hole.binding)
    }

    /// The bytes of its only kernel parameter, a struct passed by value, for tensors and buffers at these addresses: what other
    /// launchers, profilers and tests launch [`Specialised::text`] with, as it is or edited. Buffers are in the order of the plan's.
    ///
    /// # Errors
    /// [`Error::Bind`](crate::Error::Bind) for an address that is missing, or that the plan was not made for; what the device says when
    /// it cannot describe a tensor to the copy engine.
    pub fn params(&self, device: &Device, operands: &[(Operand, u64)], buffers: &[u64]) -> Result<Vec<u8>> {
        let symbol = self.kernel.entry.symbol;
        let mut bytes = self.params.bytes.clone();
        for Hole { offset, binding, further, alignment, content } in &self.params.holes {
            let address = match binding {
                Binding::Operand(operand) => operands.iter().find(|(of, _)| of == operand).map(|&(_, address)| address),
                Binding::Buffer(index) => buffers.get(*index).copied(),
            };
            let address = address.ok_or_else(|| BindError::Unbound { symbol, what: binding.to_string() })? + further;
            if !address.is_multiple_of(*alignment) {
                let (what, needed) = (binding.to_string(), *alignment);
                return Err(BindError::Alignment { symbol, what, address, needed }.into());
            }
            match content {
                Content::Address => bytes[*offset..][..8].copy_from_slice(&address.to_ne_bytes()),
                Content::Map(geometry) => {
                    let map = device.backend().tensor_map(&TensorGeometry { address, ..*geometry })?;
                    bytes[*offset..][..size_of_val(&map.0)].copy_from_slice(bytemuck::bytes_of(&map.0));
                }
            }
        }
        Ok(bytes)
    }
}

/// Largest x extent of a grid (CUDA programming guide, table of technical specifications).
pub(crate) const MAX_GRID: u64 = (1 << 31) - 1;

/// Least CUDA version of a driver that compiles the PTX of Hopper's kernels, version 8.1 (PTX ISA, release notes).
const HOPPER_DRIVER: Version = Version { major: 12, minor: 1 };

/// Whether Hopper's kernels run on the device, and its driver compiles them.
pub(crate) fn check_hopper(device: &DeviceInfo) -> Result<(), Unsupported> {
    if !device.runs(Arch::Sm90a) {
        let (major, minor) = Arch::Sm90a.least_compute_capability();
        let accepted = Version { major, minor };
        return Err(Unsupported::ComputeCapability { found: device.compute_capability(), accepted });
    }
    match device.kind {
        DeviceKind::Cuda { driver_version: found, .. } if found < HOPPER_DRIVER => {
            Err(Unsupported::Driver { found, least: HOPPER_DRIVER })
        }
        _ => Ok(()),
    }
}

/// Whether the device runs an entry.
pub(crate) fn check_device(entry: &'static Entry, device: &DeviceInfo) -> Result<()> {
    let Entry { symbol, arch, shared_bytes: needed, .. } = *entry;
    if !device.runs(arch) {
        let (major, minor) = arch.least_compute_capability();
        let least = Version { major, minor };
        return Err(Error::GpuTooOld { name: device.name.clone(), found: device.compute_capability(), least });
    }
    let available = device.max_shared_bytes_per_block;
    if needed > available { Err(Error::SharedMemory { symbol, needed, available }) } else { Ok(()) }
}

/// A parameter struct with holes where addresses go.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Params {
    bytes: Vec<u8>,
    holes: Vec<Hole>,
}

#[derive(Clone, Debug, PartialEq)]
struct Hole {
    /// Bytes from the start of the struct.
    offset: usize,
    binding: Binding,
    /// Bytes from what is bound to the address.
    further: u64,
    /// What the address has to be a multiple of.
    alignment: u64,
    content: Content,
}

#[derive(Clone, Debug, PartialEq)]
enum Content {
    Address,
    /// The copy engine's description of the tensor at the address.
    Map(TensorGeometry),
}

impl Params {
    /// The bytes of a struct, without holes yet.
    pub(crate) fn new(bytes: Vec<u8>) -> Params {
        // The most that a forward pass has: three maps and five addresses.
        Params { bytes, holes: Vec::with_capacity(8) }
    }

    /// An address, 8 bytes at `offset`.
    pub(crate) fn address(mut self, offset: usize, binding: Binding, alignment: u64) -> Params {
        self.holes.push(Hole { offset, binding, further: 0, alignment, content: Content::Address });
        self
    }

    /// The last address is one so many bytes further on.
    pub(crate) fn further(mut self, bytes: u64) -> Params {
        self.holes.last_mut().expect("an address before it").further = bytes;
        self
    }

    /// What the copy engine has to know of the tensor at an address, 128 bytes at `offset`.
    pub(crate) fn map(mut self, offset: usize, binding: Binding, alignment: u64, geometry: TensorGeometry) -> Params {
        self.holes.push(Hole { offset, binding, further: 0, alignment, content: Content::Map(geometry) });
        self
    }
}

/// Allocates the buffers and launches the steps on `stream`; the buffers are freed in its order.
pub(crate) fn run(
    device: &Device,
    stream: RawStream,
    steps: &[Step],
    buffers: &[Buffer],
    operands: &[(Operand, u64)],
) -> Result<()> {
    let memory = buffers.iter().map(|buffer| Allocation::new(device, stream, buffer.bytes));
    let memory = memory.collect::<Result<Vec<_>>>()?;
    let addresses: Vec<u64> = memory.iter().map(Allocation::address).collect();
    for step in steps.iter().filter(|step| step.ctas > 0) {
        let params = step.params(device, operands, &addresses)?;
        tracing::trace!(symbol = step.kernel.entry.symbol, ctas = step.ctas, "launch");
        let Step { ctas, cluster, .. } = *step;
        device.backend().launch(&Launch { kernel: &step.kernel, ctas, cluster, params: &params, stream })?;
    }
    Ok(())
}

impl Device {
    /// Compiles and loads the kernels of a plan, so that a later call finds them: the first call of a process then takes no longer than
    /// the next, and may be captured into a graph.
    ///
    /// # Errors
    /// [`Error::PtxRejected`](crate::Error::PtxRejected), [`Error::MissingVariant`](crate::Error::MissingVariant),
    /// [`Error::Cuda`](crate::Error::Cuda).
    pub fn prepare(&self, plan: impl AsRef<[Step]>) -> Result<()> {
        plan.as_ref().iter().try_for_each(|step| self.backend().prepare(&step.kernel))
    }
}
