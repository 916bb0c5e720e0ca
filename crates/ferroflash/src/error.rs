//! Everything that can go wrong, one variant per cause. Errors hold numbers and names, no types of rooms: everything may depend on them.

use kernel_spec::{DType, Kernel, MAX_HEAD_DIM, MAX_ROWS};
mod axes;
mod bind;
mod dropout;
mod merge;
mod names;
mod operator;
mod program;
mod sequences;
mod sink;
mod unsupported;
pub use self::{
    axes::AxesError, bind::BindError, dropout::DropoutError, merge::MergeError, names::*, operator::OperatorError,
    program::ProgramError, sequences::SequencesError, sink::SinkError, unsupported::Unsupported,
};

/// Result of every fallible function of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. Every message says what was given and what is accepted; no kernel was launched unless the variant says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine has no CUDA driver library.
    #[error("no CUDA driver: {reason}; a CUDA device needs NVIDIA's libcuda.so.1, the device `emulator` needs none")]
    NoDriver {
        /// What the dynamic loader said.
        reason: String,
    },
    /// The driver is older than the least one that this crate works with.
    #[error("the CUDA driver supports CUDA {found}; at least CUDA {least} is needed")]
    DriverTooOld {
        /// CUDA version of the driver.
        found: Version,
        /// Least CUDA version.
        least: Version,
    },
    /// The driver library lacks functions that this crate calls.
    #[error("the CUDA driver lacks {}; it is older than this crate works with, or no NVIDIA driver", .symbols.join(", "))]
    DriverLacksSymbols {
        /// Names of the missing functions.
        symbols: Vec<String>,
    },
    /// The driver is there, but no GPU is visible.
    #[error("the CUDA driver finds no GPU; check that one is present and that CUDA_VISIBLE_DEVICES does not hide it")]
    NoGpu,
    /// The ordinal names no GPU.
    #[error("cuda:{ordinal} does not exist; the driver finds {count} GPU(s), numbered from 0")]
    NoSuchGpu {
        /// The ordinal given.
        ordinal: usize,
        /// GPUs present.
        count: usize,
    },
    /// The GPU's compute capability is below the least that kernels are compiled for.
    #[error("{name} has compute capability {found}; the kernels need at least {least}")]
    GpuTooOld {
        /// Name of the GPU.
        name: String,
        /// Its compute capability.
        found: Version,
        /// Least compute capability.
        least: Version,
    },
    /// A device name that is not understood.
    #[error("unknown device `{name}`; accepted are `cuda`, `cuda:N`, `emulator` and `best`")]
    UnknownDevice {
        /// The name given.
        name: String,
    },
    /// The crate was built without the feature that this device needs.
    #[error("device `{device}` is not in this build: it needs the cargo feature `{feature}`{note}")]
    DeviceNotBuilt {
        /// The device asked for.
        device: &'static str,
        /// The cargo feature that brings it.
        feature: &'static str,
        /// On which platforms the feature works, if not on all.
        note: &'static str,
    },
    /// A call into the CUDA driver failed.
    #[error("{call} failed: {name} ({code}): {message}")]
    Cuda {
        /// Name of the driver function.
        call: &'static str,
        /// CUresult code.
        code: u32,
        /// Name of the code, such as `CUDA_ERROR_ILLEGAL_ADDRESS`.
        name: String,
        /// The driver's own words.
        message: String,
    },
    /// The driver layer refused a call before the driver was asked.
    #[error("the CUDA driver is not asked: {0}")]
    DriverRefuses(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A stream priority that the GPU does not have.
    #[error("stream priority {found} is not accepted; the GPU has {greatest} (first) to {least}")]
    StreamPriority {
        /// The priority given.
        found: i32,
        /// The number of the highest priority.
        greatest: i32,
        /// The number of the lowest priority.
        least: i32,
    },
    /// The time between two events that lie the other way round.
    #[error("the event that is said to be the earlier one is the later one")]
    EventOrder,
    /// The device cannot capture this into a graph.
    #[error("this cannot be captured into a graph: {reason}")]
    CaptureUnsupported {
        /// Why.
        reason: &'static str,
    },
    /// A kernel would have to be loaded while its stream is captured into a graph.
    #[error(
        "{symbol} is not loaded, and no kernel is loaded while a stream is captured into a graph; \
         `Device::prepare` loads the kernels of a plan ahead"
    )]
    KernelNotLoaded {
        /// Entry point.
        symbol: &'static str,
    },
    /// The driver could not compile a kernel's PTX.
    #[error("the driver rejects the PTX of {symbol}: {log}")]
    PtxRejected {
        /// Entry point.
        symbol: &'static str,
        /// The driver's log, or the name of its error.
        log: String,
    },
    /// The text of a kernel does not take what it is to be specialised for.
    #[error("{symbol} cannot be specialised: {reason}")]
    NotSpecialised {
        /// Entry point.
        symbol: &'static str,
        /// What it does not take.
        reason: String,
    },
    /// The emulator stopped a launch or refused a copy; a launch may have run in part.
    // No `source`: the message has it all, and a chain would tell it twice.
    #[error("emulator: {0}")]
    Emulator(Box<dyn std::error::Error + Send + Sync>),
    /// The device has not enough free memory.
    #[error("{requested} bytes do not fit into device memory: {free} of {total} bytes are free")]
    OutOfMemory {
        /// Bytes asked for.
        requested: u64,
        /// Bytes free.
        free: u64,
        /// Bytes of the device.
        total: u64,
    },
    /// Attention reads tensors of four axes.
    #[error("attention takes tensors of 4 axes (batch, row, head, dim); {found} were given")]
    Rank {
        /// Number of axes given.
        found: usize,
    },
    /// What a call says of its sequences does not fit together.
    #[error(transparent)]
    Sequences(#[from] SequencesError),
    /// Partial results do not fit together.
    #[error(transparent)]
    Merge(#[from] MergeError),
    /// What operators around attention do not take.
    #[error(transparent)]
    Operator(#[from] OperatorError),
    /// Sinks, or their gradient, that the call does not take.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// Axes that do not fit together, or that a tensor does not have.
    #[error(transparent)]
    Axes(#[from] AxesError),
    /// The number of elements or bytes does not fit into 64 bits.
    #[error("a tensor of shape {shape:?} and strides {strides:?} reaches past the end of a 64-bit address space")]
    TooLarge {
        /// Shape given.
        shape: Vec<usize>,
        /// Strides given.
        strides: Vec<usize>,
    },
    /// A slice has another length than the shape.
    #[error("shape {shape:?} holds {expected} elements, the slice holds {found}")]
    DataLength {
        /// Shape given.
        shape: Vec<usize>,
        /// Elements of the shape.
        expected: usize,
        /// Elements of the slice.
        found: usize,
    },
    /// The storage ends before the last element of the view.
    #[error("shape {shape:?} with strides {strides:?} needs {needed} elements of storage, {available} are there")]
    StorageTooSmall {
        /// Shape of the view.
        shape: Vec<usize>,
        /// Strides of the view in elements.
        strides: Vec<usize>,
        /// Elements from the start of the storage to the end of the view.
        needed: u64,
        /// Elements of the storage.
        available: u64,
    },
    /// An address is no multiple of the element size.
    #[error("address {address:#x} is no multiple of the {bytes} bytes of one {dtype} element")]
    MisalignedAddress {
        /// The address.
        address: u64,
        /// Bytes of one element.
        bytes: usize,
        /// Element type.
        dtype: DType,
    },
    /// A view was asked for elements of another type.
    #[error("the tensor holds {found}, {requested} was asked for")]
    ElementType {
        /// Element type of the tensor.
        found: DType,
        /// Element type asked for.
        requested: DType,
    },
    /// A range of indices ends past the axis.
    #[error("{axis} {start}..{end} is no range within the tensor's {len}")]
    Range {
        /// `rows`, `heads`, `batch` or `axis N`.
        axis: &'static str,
        /// First index.
        start: usize,
        /// One past the last index.
        end: usize,
        /// Extent of the axis.
        len: usize,
    },
    /// The last dim must be contiguous.
    #[error(
        "the last dim of {tensor} has stride {stride}; it must be contiguous (stride 1), the other strides are free"
    )]
    LastDimNotContiguous {
        /// The tensor.
        tensor: Operand,
        /// Its stride in elements.
        stride: usize,
    },
    /// An axis is empty. Only the rows of k and v may be.
    #[error("{tensor} has no {axis}; at least 1 is needed (only k and v may have 0 rows)")]
    EmptyAxis {
        /// The tensor.
        tensor: Operand,
        /// `batch`, `rows`, `heads` or `head_dim`.
        axis: &'static str,
    },
    /// Batch sizes differ.
    #[error("{tensor} has batch {found}, q has {expected}; they must be equal")]
    BatchMismatch {
        /// The tensor that differs from q.
        tensor: Operand,
        /// Its batch.
        found: usize,
        /// Batch of q.
        expected: usize,
    },
    /// Row counts differ: v against k, or out and lse against q.
    #[error("{tensor} has {found} rows, {of} has {expected}; they must be equal")]
    RowsMismatch {
        /// The tensor that differs.
        tensor: Operand,
        /// Its rows.
        found: usize,
        /// The tensor it is compared with.
        of: Operand,
        /// Rows of that.
        expected: usize,
    },
    /// Head counts differ: v against k, or out and lse against q.
    #[error("{tensor} has {found} heads, {of} has {expected}; they must be equal")]
    HeadsMismatch {
        /// The tensor that differs.
        tensor: Operand,
        /// Its heads.
        found: usize,
        /// The tensor it is compared with.
        of: Operand,
        /// Heads of that.
        expected: usize,
    },
    /// Head dims differ.
    #[error("{tensor} has head_dim {found}, q has {expected}; they must be equal")]
    HeadDimMismatch {
        /// The tensor that differs from q.
        tensor: Operand,
        /// Its head dim.
        found: usize,
        /// Head dim of q.
        expected: usize,
    },
    /// A head dim that no kernel is compiled for.
    #[error("head_dim {found} is not supported; accepted are the multiples of 8 from 8 to {MAX_HEAD_DIM}")]
    HeadDim {
        /// The head dim given.
        found: usize,
    },
    /// The entry point that was asked for is for tensors of another kind.
    #[error("{symbol} is for {dtype} and head dims up to {head_dim}; the problem is {problem}")]
    VariantMismatch {
        /// Entry point.
        symbol: &'static str,
        /// Its element type.
        dtype: DType,
        /// Its compiled head dim.
        head_dim: u32,
        /// The problem given.
        problem: String,
    },
    /// Query heads cannot be shared out over the key-value heads.
    #[error("{q_heads} query heads are no multiple of {kv_heads} key-value heads")]
    HeadGroups {
        /// Heads of q.
        q_heads: usize,
        /// Heads of k and v.
        kv_heads: usize,
    },
    /// Element types differ.
    #[error("{tensor} holds {found}, q holds {expected}; they must be equal")]
    DTypeMismatch {
        /// The tensor that differs from q.
        tensor: Operand,
        /// Its element type.
        found: DType,
        /// Element type of q.
        expected: DType,
    },
    /// Tensors or the stream are on different devices.
    #[error("{what} is on device {found}, q is on {expected}; they must be on the same device")]
    DeviceMismatch {
        /// `k`, `v`, `out`, `lse` or `the stream`.
        what: String,
        /// Its device.
        found: String,
        /// Device of q.
        expected: String,
    },
    /// A tensor is copied to one of another kind.
    #[error("cannot copy a tensor ({from}) to another ({to}); device, element type, shape and strides must be equal")]
    CopyMismatch {
        /// What the source is.
        from: String,
        /// What the destination is.
        to: String,
    },
    /// Two elements of the output share memory.
    #[error("an output of shape {shape:?} and strides {strides:?} overlaps itself; every element needs its own memory")]
    OutputOverlapsItself {
        /// Shape of the output.
        shape: Vec<usize>,
        /// Its strides in elements.
        strides: Vec<usize>,
    },
    /// An output shares memory with another tensor of the call.
    #[error("{output} overlaps {other} in memory; outputs need memory of their own")]
    OutputOverlaps {
        /// `out` or `lse`.
        output: Operand,
        /// The tensor that it overlaps.
        other: Operand,
    },
    /// More rows than the kernels can count.
    #[error("{tensor} has {found} rows; fewer than {MAX_ROWS} are accepted")]
    TooManyRows {
        /// The tensor.
        tensor: Operand,
        /// Its rows.
        found: usize,
    },
    /// The softmax scale is NaN, infinite, or so large that it overflows.
    #[error("scale {found} is not accepted; it must be finite, also after multiplication with log2(e) in f32")]
    Scale {
        /// The scale given.
        found: f32,
    },
    /// The launch needs more thread blocks than a grid can have.
    #[error("{symbol} would need {needed} thread blocks; a grid has at most {limit}")]
    GridTooLarge {
        /// Entry point.
        symbol: &'static str,
        /// Thread blocks needed.
        needed: u128,
        /// Largest grid.
        limit: u64,
    },
    /// The kernel's tiles need more shared memory than the device gives one thread block.
    #[error("{symbol} needs {needed} bytes of shared memory; the device gives a thread block at most {available}")]
    SharedMemory {
        /// Entry point.
        symbol: &'static str,
        /// Bytes needed.
        needed: u32,
        /// Bytes available.
        available: u32,
    },
    /// The kernel's workspace is larger than the device's memory.
    #[error("kernel {kernel} needs {needed} bytes of workspace; the device has {available} bytes of memory")]
    WorkspaceTooLarge {
        /// The kernel.
        kernel: Kernel,
        /// Bytes needed.
        needed: u128,
        /// Bytes of the device.
        available: u64,
    },
    /// The kernel that was asked for does not run this problem, on these tensors or this device.
    #[error("kernel {kernel} cannot run this: {reason}")]
    KernelUnsupported {
        /// The kernel.
        kernel: Kernel,
        /// What rules it out.
        reason: Unsupported,
    },
    /// No kernel of this library does what was asked for.
    #[error("not supported: {0}")]
    Unsupported(Unsupported),
    /// The softcap is no positive finite number, or so large or small that the kernels' factors overflow.
    #[error(
        "softcap {found} is not accepted with scale {scale}; it must be above 0 and finite, also after multiplication with log2(e) \
         and as a divisor of the scale, in f32"
    )]
    Softcap {
        /// The softcap given.
        found: f32,
        /// The factor on the scores.
        scale: f32,
    },
    /// What dropout was asked for.
    #[error(transparent)]
    Dropout(#[from] DropoutError),
    /// Addresses that a step of a plan cannot be launched with.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// A program on scores, or its tensors.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// The build holds no PTX for an entry point.
    #[error("this build has no PTX for {symbol}; build with the kernels' source, or set FERROFLASH_PTX_DIR")]
    MissingVariant {
        /// Entry point.
        symbol: &'static str,
    },
}
